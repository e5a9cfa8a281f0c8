# SPDX-License-Identifier: GPL-2.0-or-later
"""Network backends: the same descriptors, in the same state, before and
after; what falls into the pause is all that may be lost."""

import os
import re
import shutil
import socket
import subprocess
import threading

import pytest

from harness.checks import guest_lives_on, unplug, wait_until
from harness.lines import LineChecker, lines
from harness.net import (GUEST_MAC, HOST, EthernetPeer, attached_queues,
                          check_losses, echo_request,
                         guest_network, listening, listening_ports,
                         timed_upgrade)

NIC = ['-device', f'virtio-net-pci,netdev=n0,id=nic,mac={GUEST_MAC}']


def tap_vm(make_vm, ns, netdev, device=NIC, **kwargs):
    return make_vm(args=['-netdev', netdev, *device],
                   popen=ns.popen(**kwargs.pop('popen', {})), **kwargs)


def boot_on_bridge(vm, ns, tap='tap0'):
    vm.start()
    if tap:
        ns.attach(tap)
    vm.agent.wait_ready()
    guest_network(vm)
    return vm


# Tap

def upgrade_under_ping(vm, pinger, count=2):
    """Upgrades while pings go to the guest."""
    pinger.settle()
    pinger.wait_answers(20)
    upgrades = []
    with guest_lives_on(vm, fill=0):
        for _ in range(count):
            upgrades.append(timed_upgrade(vm))
            pinger.wait_answers(20)
    check_losses(pinger.finish(), upgrades, latency=pinger.latency())


@pytest.mark.parametrize('machine, model', [
    ('pc', 'virtio-net-pci'), ('q35', 'virtio-net-pci'), ('pc', 'e1000'),
    ('pc', 'virtio-net-pci,disable-modern=on'),
    ('pc', 'virtio-net-pci,mrg_rxbuf=off,guest_tso4=off,csum=off')])
def test_tap_ifname(make_vm, ns, machine, model):
    """The headers of packets, and what the tap may leave to the guest,
    are what the guest's driver chose."""
    vm = boot_on_bridge(tap_vm(
        make_vm, ns, 'tap,id=n0,ifname=tap0,script=no,downscript=no',
        ['-device', f'{model},netdev=n0,mac={GUEST_MAC}'], machine=machine),
        ns)
    upgrade_under_ping(vm, ns.pinger())


def link_interrupts(vm):
    """How often e1000e told the guest that the link may have changed."""
    last = vm.agent.sh("grep eth0 /proc/interrupts").splitlines()[-1]
    return int(last.split()[1])


def test_tap_e1000e(make_vm, ns):
    """The guest is not told again of what it was told of before, which after
    a migration makes its driver look at the link."""
    vm = boot_on_bridge(tap_vm(
        make_vm, ns, 'tap,id=n0,ifname=tap0,script=no,downscript=no',
        ['-device', f'e1000e,netdev=n0,mac={GUEST_MAC}'], machine='q35'), ns)
    interrupts = link_interrupts(vm)
    assert interrupts > 0
    upgrade_under_ping(vm, ns.pinger(), count=3)
    assert link_interrupts(vm) == interrupts


def test_tap_without_vnet_header(make_vm, ns):
    vm = boot_on_bridge(tap_vm(
        make_vm, ns,
        'tap,id=n0,ifname=tap0,script=no,downscript=no,vnet_hdr=off'), ns)
    upgrade_under_ping(vm, ns.pinger())


@pytest.mark.parametrize('queues', [1, 2])
def test_tap_fd(make_vm, ns, queues):
    """Descriptors that the launcher opened keep their numbers."""
    fds = ns.tap('tap0', queues)
    names = ':'.join(map(str, fds))
    vm = tap_vm(make_vm, ns, f'tap,id=n0,fds={names}' if queues > 1 else
                f'tap,id=n0,fd={names}', popen={'pass_fds': fds})
    vm.start()
    for fd in fds:
        os.close(fd)
    vm.agent.wait_ready()
    guest_network(vm)
    upgrade_under_ping(vm, ns.pinger())
    assert {os.readlink(f'/proc/{vm.pid}/fd/{fd}') for fd in fds} == \
        {'/dev/net/tun'}


@pytest.mark.parametrize('queues', [1, 2])
def test_tap_deleted(make_vm, ns, queues):
    """A NIC that has lost its tap, and whose driver relies on what that could
    do."""
    vm = boot_on_bridge(tap_vm(
        make_vm, ns, 'tap,id=n0,ifname=tap0,script=no,downscript=no'
        f',queues={queues}', ['-device', 'virtio-net-pci,netdev=n0,id=nic,'
                              f'mq={"on" if queues > 1 else "off"}'],
        smp='2', append='maxcpus=2'), ns)

    def features():
        return vm.agent.sh('cat /sys/class/net/eth0/device/features')
    before = features()
    vm.qmp.execute('netdev_del', id='n0')
    wait_until(lambda: vm.agent.sh('cat /sys/class/net/eth0/carrier') == '0\n')
    for _ in range(2):
        with guest_lives_on(vm):
            vm.upgrade()
    assert features() == before
    # the driver begins anew, as it would without an upgrade
    vm.agent.sh('cd /sys/bus/virtio/drivers/virtio_net; for d in virtio*; do '
                'echo $d > unbind; echo $d > bind; done')
    vm.agent.wait_path('/sys/class/net/eth0')
    assert features() == before
    with guest_lives_on(vm):
        vm.upgrade()
    unplug(vm, 'nic')
    with guest_lives_on(vm):
        vm.upgrade()


def test_tap_persistent(make_vm, ns):
    """A tap that was there before is there afterwards."""
    ns.run('ip tuntap add tap0 mode tap vnet_hdr')
    vm = boot_on_bridge(tap_vm(
        make_vm, ns, 'tap,id=n0,ifname=tap0,script=no,downscript=no'), ns)
    upgrade_under_ping(vm, ns.pinger())
    vm.qmp.send('quit')
    vm.process.wait()
    ns.run('ip link show tap0')


def test_tap_scripts(make_vm, ns):
    """A script runs once at the start, the other once at the end, whatever
    lies between."""
    vm = tap_vm(make_vm, ns, None)
    log = vm.dir / 'log'
    for name, action in (('up', 'ip link set $1 master br0 up'),
                         ('down', 'ip link set $1 nomaster')):
        script = vm.dir / name
        script.write_text(f'#!/bin/sh\necho {name} $1 >> {log}\n{action}\n')
        script.chmod(0o755)
    vm.args[vm.args.index(None)] = \
        f'tap,id=n0,script={vm.dir}/up,downscript={vm.dir}/down'
    vm.boot()
    name = log.read_text().split()[1]
    guest_network(vm)
    upgrade_under_ping(vm, ns.pinger(), 3)
    assert log.read_text() == f'up {name}\n'
    vm.qmp.send('quit')
    vm.process.wait()
    assert log.read_text() == f'up {name}\ndown {name}\n'


HELPER = '''#!/usr/bin/python3
import array, fcntl, os, socket, struct, subprocess, sys
number = next(int(a[5:]) for a in sys.argv if a.startswith('--fd='))
bridge = next(a[5:] for a in sys.argv if a.startswith('--br='))
tap = os.open('/dev/net/tun', os.O_RDWR)
name = fcntl.ioctl(tap, 0x400454ca, struct.pack('16sH22x', b'tap%d', 0x5002))
name = name[:16].rstrip(b'\\0').decode()
subprocess.run(['ip', 'link', 'set', name, 'master', bridge, 'up'],
               check=True)
socket.socket(fileno=number).sendmsg([b'x'], [(
    socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [tap]))])
print(name, file=open(sys.argv[0] + '.log', 'a'))
'''


@pytest.mark.parametrize('netdev', [
    'tap,id=n0,br=br0,helper={}', 'bridge,id=n0,br=br0,helper={}'])
def test_bridge_helper(make_vm, ns, netdev):
    """A program of the test's own, which does as QEMU's does. It runs
    once."""
    vm = tap_vm(make_vm, ns, None)
    helper = vm.dir / 'helper'
    helper.write_text(HELPER)
    helper.chmod(0o755)
    vm.args[vm.args.index(None)] = netdev.format(helper)
    vm.boot()
    guest_network(vm)
    upgrade_under_ping(vm, ns.pinger())
    assert len((vm.dir / 'helper.log').read_text().split()) == 1


def test_qemu_bridge_helper(make_vm, ns, setup):
    """QEMU's own program, with a configuration that only it sees."""
    real = setup.tool('qemu-bridge-helper')
    if not real:
        pytest.skip('qemu-bridge-helper is not built')
    # It says where it looks when there is nothing
    said = subprocess.run([real, '--br=none', '--fd=0'], check=False,
                          capture_output=True, text=True).stderr
    found = re.search(r'acl file `(.*)/bridge\.conf', said)
    if not found:
        pytest.skip(f'the host has a configuration for it: {said}')
    conf = top = found[1]
    while not os.path.isdir(top):
        top = os.path.dirname(top)
    vm = tap_vm(make_vm, ns, None)
    helper = vm.dir / 'helper'
    helper.write_text(
        '#!/bin/sh\nexec unshare -m sh -c "mount -t tmpfs none '
        f'{top} && mkdir -p {conf} && echo allow br0 > {conf}/bridge.conf && '
        f'exec {real} $*"\n')
    helper.chmod(0o755)
    vm.args[vm.args.index(None)] = f'tap,id=n0,br=br0,helper={helper}'
    vm.boot()
    guest_network(vm)
    upgrade_under_ping(vm, ns.pinger())


def ping_from_all(vm, ns, count=8):
    """Pings from many addresses, so that all queues are used."""
    for i in range(count):
        ns.run(f'ip addr replace 10.9.0.{10 + i}/24 dev br0')
    pingers = [ns.pinger(f'10.9.0.{10 + i}', 0.05) for i in range(count)]
    for pinger in pingers:
        pinger.settle()
        pinger.wait_answers(3)
    for pinger in pingers:
        assert not pinger.finish()
    vm.agent.check_log()


def test_multiqueue(make_vm, ns):
    """Queues that the guest does not use stay detached; once it takes more,
    they work."""
    vm = tap_vm(
        make_vm, ns,
        'tap,id=n0,ifname=tap0,script=no,downscript=no,queues=4',
        ['-device',
         f'virtio-net-pci,netdev=n0,mac={GUEST_MAC},mq=on,vectors=10'],
        smp='4', append='maxcpus=2')
    boot_on_bridge(vm, ns)
    # Linux takes a queue for each of its processors
    assert attached_queues(ns, 'tap0') == 2
    upgrade_under_ping(vm, ns.pinger())
    assert attached_queues(ns, 'tap0') == 2
    ping_from_all(vm, ns)

    vm.agent.sh('for i in 2 3; do '
                'echo 1 > /sys/devices/system/cpu/cpu$i/online; done; '
                'cd /sys/bus/virtio/drivers/virtio_net; for d in virtio*; do '
                'echo $d > unbind; echo $d > bind; done')
    guest_network(vm)
    assert attached_queues(ns, 'tap0') == 4
    ping_from_all(vm, ns)
    upgrade_under_ping(vm, ns.pinger())
    assert attached_queues(ns, 'tap0') == 4
    ping_from_all(vm, ns)


def test_tcp_stream(make_vm, ns):
    """A connection of the guest goes on in both directions, nothing lost or
    doubled; large segments included."""
    vm = boot_on_bridge(tap_vm(
        make_vm, ns, 'tap,id=n0,ifname=tap0,script=no,downscript=no'), ns)
    server = ns.listen()
    port = server.getsockname()[1]
    vm.agent.sh('cd /root; mkfifo out in; '
                f'(nc {HOST} {port} < out > in) > /dev/null 2>&1 & ')
    vm.agent.ask('reader start /root/in')
    vm.agent.ask('lines start /root/out')
    connection = server.accept()[0]
    received = LineChecker(connection)

    def send():
        first = 0
        while sending:
            connection.sendall(lines(first, first + 100))
            first += 100
    sending = [True]
    sender = threading.Thread(target=send, daemon=True)
    sender.start()
    for _ in range(3):
        received.wait_more(2000)
        timed_upgrade(vm)
    received.wait_more(2000)
    before = vm.agent.ask('reader status /root/in')
    wait_until(lambda: vm.agent.ask('reader status /root/in')['lines'] >
               before['lines'] + 1000)
    assert vm.agent.ask('reader status /root/in')['errors'] == 0
    sending.clear()
    vm.agent.check_log()


def test_legacy_options(make_vm, ns):
    """-net and -nic: hub, names that QEMU makes up."""
    vm = make_vm(args=['-net', f'nic,model=virtio,macaddr={GUEST_MAC}',
                       '-net', 'tap,ifname=tap0,script=no,downscript=no',
                       '-nic', 'tap,ifname=tap1,script=no,downscript=no,'
                       'model=e1000'], popen=ns.popen())
    vm.start()
    ns.attach('tap0')
    ns.attach('tap1')
    vm.agent.wait_ready()
    for name in 'eth0', 'eth1':
        vm.agent.wait_path(f'/sys/class/net/{name}')
    found = vm.agent.sh(f'grep -l {GUEST_MAC} /sys/class/net/eth*/address')
    guest_network(vm, interface=found.split('/')[4])
    info = vm.qmp.hmp('info network')
    upgrade_under_ping(vm, ns.pinger())
    assert vm.qmp.hmp('info network') == info


def test_link_state(make_vm, ns):
    vm = boot_on_bridge(tap_vm(
        make_vm, ns, 'tap,id=n0,ifname=tap0,script=no,downscript=no'), ns)

    def carrier():
        return vm.agent.sh('cat /sys/class/net/eth0/carrier').strip()
    vm.qmp.execute('set_link', name='nic', up=False)
    wait_until(lambda: carrier() == '0')
    vm.upgrade()
    assert carrier() == '0'
    vm.qmp.execute('set_link', name='nic', up=True)
    wait_until(lambda: carrier() == '1')
    upgrade_under_ping(vm, ns.pinger())


def test_guest_reboots_afterwards(make_vm, ns):
    vm = boot_on_bridge(tap_vm(
        make_vm, ns, 'tap,id=n0,ifname=tap0,script=no,downscript=no'), ns)
    vm.upgrade()
    vm.agent.send('sh reboot -f')
    vm.agent.wait_ready()
    guest_network(vm)
    upgrade_under_ping(vm, ns.pinger())


def test_dump(make_vm, ns):
    """A file that packets are dumped to goes on where it was."""
    vm = tap_vm(make_vm, ns,
                'tap,id=n0,ifname=tap0,script=no,downscript=no')
    dump = vm.dir / 'dump'
    vm.args += ['-object', f'filter-dump,id=dump,netdev=n0,file={dump}']
    boot_on_bridge(vm, ns)
    pinger = ns.pinger()
    pinger.wait_answers(5)
    before = dump.read_bytes()
    vm.upgrade()
    pinger.wait_answers(5)
    pinger.finish()
    after = dump.read_bytes()
    assert len(before) > 24 and after.startswith(before)
    assert len(after) > len(before)
    offset, last = 24, 0.0              # a pcap file: header, then records
    while offset < len(after):
        seconds, micro, length = (
            int.from_bytes(after[offset + i:offset + i + 4], 'little')
            for i in (0, 4, 8))
        now = seconds + micro / 1e6
        assert last <= now and length < 65536
        last, offset = now, offset + 16 + length


# Backends that are sockets

class Kind:
    """One way to connect: options for QEMU, and the other end."""

    def __init__(self, name, stream):
        self.name, self.stream = name, stream

    def prepare(self, vm, ns):
        """Returns -netdev's options, descriptors to pass, and a function
        that returns the other end."""
        path = f'{vm.dir}/net'
        if self.name in ('socket-listen', 'stream-listen-inet'):
            port = free_port()
            options = f'socket,listen=127.0.0.1:{port}' \
                if self.name == 'socket-listen' else \
                f'stream,server=on,addr.type=inet,addr.host=127.0.0.1,' \
                f'addr.port={port}'
            return options, [], lambda: EthernetPeer(
                connect_retry(vm, ('127.0.0.1', port)), True)
        if self.name == 'stream-listen':
            return f'stream,server=on,addr.type=unix,addr.path={path}', [], \
                lambda: EthernetPeer(vm.connect('net'), True)
        if self.name in ('socket-connect', 'stream-connect'):
            server = socket.create_server(('127.0.0.1', 0))
            # little room, so that a packet may fit in part
            server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            port = server.getsockname()[1]
            options = f'socket,connect=127.0.0.1:{port}' \
                if self.name == 'socket-connect' else \
                f'stream,server=off,addr.type=inet,addr.host=127.0.0.1,' \
                f'addr.port={port}'
            return options, [], lambda: EthernetPeer(server.accept()[0], True)
        if self.name in ('socket-fd', 'stream-fd', 'dgram-fd'):
            ours, theirs = socket.socketpair(
                socket.AF_UNIX, socket.SOCK_STREAM if self.stream
                else socket.SOCK_DGRAM)
            fd = theirs.detach()
            options = {
                'socket-fd': f'socket,fd={fd}',
                'stream-fd': f'stream,addr.type=fd,addr.str={fd}',
                'dgram-fd': f'dgram,local.type=fd,local.str={fd}'}[self.name]
            return options, [fd], lambda: EthernetPeer(ours, self.stream)
        if self.name == 'dgram-unix':
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            sock.bind(f'{path}-peer')
            return (f'dgram,local.type=unix,local.path={path},'
                    f'remote.type=unix,remote.path={path}-peer', [],
                    lambda: EthernetPeer(sock, False, path))
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind(('127.0.0.1', 0))
        port, theirs = sock.getsockname()[1], free_port(socket.SOCK_DGRAM)
        options = f'socket,udp=127.0.0.1:{port},' \
            f'localaddr=127.0.0.1:{theirs}' if self.name == 'socket-udp' \
            else f'dgram,local.type=inet,local.host=127.0.0.1,' \
            f'local.port={theirs},remote.type=inet,' \
            f'remote.host=127.0.0.1,remote.port={port}'
        return options, [], lambda: EthernetPeer(sock, False,
                                                 ('127.0.0.1', theirs))


STREAMS = ['socket-listen', 'socket-connect', 'socket-fd', 'stream-listen',
           'stream-listen-inet', 'stream-connect', 'stream-fd']
DATAGRAMS = ['socket-udp', 'dgram-unix', 'dgram-inet', 'dgram-fd']
KINDS = [Kind(n, True) for n in STREAMS] + [Kind(n, False) for n in DATAGRAMS]


def free_port(kind=socket.SOCK_STREAM):
    with socket.socket(socket.AF_INET, kind) as sock:
        sock.bind(('127.0.0.1', 0))
        return sock.getsockname()[1]


def connect_retry(vm, address):
    """Connects as soon as QEMU listens."""
    def attempt():
        assert vm.process.poll() is None
        try:
            return socket.create_connection(address)
        except ConnectionRefusedError:
            return None
    return wait_until(attempt)


def boot_with_peer(make_vm, kind, agent=True):
    vm = make_vm(args=NIC, agent=agent)
    options, fds, connect = kind.prepare(vm, None)
    kind_, _, rest = options.partition(',')
    vm.args += ['-netdev', f'{kind_},id=n0,{rest}']
    # the netdev has to come before the device
    vm.args = [*vm.args[:-4], *vm.args[-2:], *vm.args[-4:-2]]
    vm.popen = {'pass_fds': fds}
    vm.start()
    peer = connect()
    for fd in fds:
        os.close(fd)
    if agent:
        vm.agent.wait_ready()
        guest_network(vm)
    return vm, peer


@pytest.mark.parametrize('kind', KINDS, ids=lambda k: k.name)
def test_socket(make_vm, kind):
    vm, peer = boot_with_peer(make_vm, kind)
    sockets = listening(vm)
    info = vm.qmp.hmp('info network')
    upgrade_under_ping(vm, peer.pinger())
    assert vm.qmp.hmp('info network') == info
    known = {i: a for i, a in listening(vm).items() if i in sockets}
    assert known == sockets


@pytest.mark.parametrize('kind', [KINDS[STREAMS.index(n)] for n in (
    'socket-fd', 'stream-listen')], ids=lambda k: k.name)
def test_packet_cut_in_the_middle(make_vm, kind):
    """A packet of which QEMU has read the first bytes, cut in its length
    and in its data, arrives once the rest has come."""
    vm, peer = boot_with_peer(make_vm, kind)
    peer.ping(1)
    for number, cut in enumerate((1, 3, 4, 5, 40), 100):
        data = peer.encode(peer.icmp_frame(echo_request(number)))
        peer.sock.sendall(data[:cut])
        peer.wait_read()
        vm.qmp.execute('query-status')      # QEMU has dealt with it
        vm.upgrade()
        peer.sock.sendall(data[cut:])
        peer.wait_answer(number)


@pytest.mark.parametrize('kind', [KINDS[STREAMS.index(n)] for n in (
    'socket-connect', 'stream-connect')], ids=lambda k: k.name)
def test_reader_that_stands_still(make_vm, kind):
    """The other side does not read, so that QEMU has sent a part of a
    packet when it is upgraded: what follows is still whole packets."""
    vm, peer = boot_with_peer(make_vm, kind)
    peer.ping(1)
    vm.agent.sh(f'ip neigh replace {HOST} lladdr 52:54:00:09:00:01 dev eth0; '
                'cat /proc/net/dev > /dev/null')
    number = 10
    for _ in range(4):
        vm.agent.sh('for s in 700 701 711 777 800 997 1001 1111 1400; do '
                    'dd if=/dev/zero bs=$s count=300 2>/dev/null | '
                    f'timeout 1 nc -u -w 1 {HOST} 9; done; true')
        vm.upgrade()
        number += 1
        peer.ping(number)           # reads, and checks, all before it


@pytest.mark.parametrize('kind', [KINDS[STREAMS.index('stream-listen')],
                                  KINDS[len(STREAMS)]],
                         ids=lambda k: k.name)
def test_packets_for_a_paused_guest(make_vm, kind):
    """What QEMU has read for a guest that is paused is not lost."""
    vm, peer = boot_with_peer(make_vm, kind)
    peer.ping(1)
    vm.qmp.execute('stop')
    vm.qmp.wait_event('STOP')
    frames = [peer.icmp_frame(echo_request(number))
              for number in range(50, 55)]
    if kind.stream:
        # at once, since QEMU reads no more after the first that it can't
        # give to the guest
        peer.sock.sendall(b''.join(map(peer.encode, frames)))
        peer.wait_read()
    else:
        for frame in frames:
            peer.send_frame(frame)
    vm.qmp.execute('query-status')
    vm.upgrade()
    vm.qmp.execute('cont')
    for number in range(50, 55):
        peer.wait_answer(number)


@pytest.mark.parametrize('name', ['socket-listen', 'stream-listen'])
def test_listening_for_a_connection(make_vm, name):
    """Nobody has connected yet, and the one who did is gone."""
    kind = Kind(name, True)
    vm = make_vm()
    options, _, connect = kind.prepare(vm, None)
    kind_, _, rest = options.partition(',')
    vm.args += ['-netdev', f'{kind_},id=n0,{rest}', *NIC]
    vm.boot()
    guest_network(vm)
    sockets = listening(vm)
    vm.upgrade()
    assert {i: a for i, a in listening(vm).items() if i in sockets} == sockets
    for _ in range(2):
        peer = connect()
        peer.ping(1)
        peer.sock.close()
        wait_until(lambda: 'connection from' not in
                   vm.qmp.hmp('info network') and
                   'unix:' not in vm.qmp.hmp('info network'))
        vm.upgrade(events=['NETDEV_STREAM_DISCONNECTED'])


def test_pair(make_vm):
    """Two processes, upgraded in turn."""
    port = free_port()
    a = make_vm(args=['-netdev', f'socket,id=n0,listen=127.0.0.1:{port}',
                      *NIC], memory='128')
    b = make_vm(args=['-netdev', f'socket,id=n0,connect=127.0.0.1:{port}',
                      '-device', 'virtio-net-pci,netdev=n0'], memory='128')
    a.start()
    b.boot()
    a.agent.wait_ready()
    guest_network(a)
    guest_network(b, '10.9.0.3')
    ident = b.agent.send('sh ping -q -i 0.05 -c 200 10.9.0.2')
    downtime = sum(vm.upgrade()['downtime'] for vm in (a, b, a)) / 1e6
    sent, came = re.search(r'(\d+) packets transmitted, (\d+) ',
                           b.agent.reply(ident)).groups()
    assert int(sent) - int(came) <= downtime / 0.05 + 6


def test_multicast(make_vm, ns):
    """Both sides are bound to the group; QEMU sends to it and hears itself
    as well."""
    with ns.inside():
        ns.run('ip route add 224.0.0.0/4 dev br0')
    a = make_vm(args=['-netdev', 'socket,id=n0,mcast=230.0.0.1:1234', *NIC],
                memory='128', popen=ns.popen())
    b = make_vm(args=['-netdev', 'socket,id=n0,mcast=230.0.0.1:1234',
                      '-device', 'virtio-net-pci,netdev=n0'],
                memory='128', popen=ns.popen())
    a.start()
    b.boot()
    a.agent.wait_ready()
    guest_network(a)
    guest_network(b, '10.9.0.3')
    b.agent.sh('ping -c 1 10.9.0.2')
    a.upgrade()
    b.upgrade()
    assert ' 0% packet loss' in b.agent.sh('ping -q -i 0.05 -c 20 10.9.0.2')


# User mode

def user_vm(make_vm, options='', device=None):
    vm = make_vm(args=['-netdev', f'user,id=n0{options}',
                       *(device or NIC)])
    vm.boot()
    vm.agent.wait_path('/sys/class/net/eth0')
    vm.agent.sh('ip link set eth0 up; udhcpc -i eth0 -n -q -s /bin/true; '
                'ip addr add 10.0.2.15/24 dev eth0; '
                'ip route add default via 10.0.2.2')
    return vm


def greet(port):
    """Connects to a forwarded port, where the guest says a word; again
    while it does not listen because it has just said it to another."""
    def attempt():
        with socket.create_connection(('127.0.0.1', port), 10) as sock:
            sock.settimeout(10)
            try:
                return sock.makefile().readline()
            except ConnectionResetError:
                return ''
    return wait_until(attempt)


def forwarded_port(vm, guest_port):
    """The host's port, as the monitor shows it."""
    found = re.search(rf'TCP\[HOST_FORWARD\]\s+\d+\s+\S+\s+(\d+)\s+\S+\s+'
                      rf'{guest_port} ', vm.qmp.hmp('info usernet'))
    return int(found[1])


def test_user_forwarding(make_vm):
    """Forwarded ports listen all the time, on the same sockets, also one
    that was chosen at start and one that was added since."""
    vm = user_vm(make_vm, ',hostfwd=tcp:127.0.0.1:0-:7000,'
                 'hostfwd=udp:127.0.0.1:0-:7001')
    vm.agent.sh('while true; do echo hello | nc -l -p 7000; done '
                '> /dev/null 2>&1 & sleep 0.2')
    vm.agent.sh('while true; do echo there | nc -l -p 7002; done '
                '> /dev/null 2>&1 & sleep 0.2')
    vm.qmp.hmp('hostfwd_add n0 tcp:127.0.0.1:0-:7002')
    first, second = forwarded_port(vm, 7000), forwarded_port(vm, 7002)
    assert greet(first) == 'hello\n'
    sockets = listening(vm)
    for _ in range(2):
        result = vm.qmp.execute('exec-upgrade', binary=vm.setup.new)
        assert all(d.startswith("netdev 'n0': ") for d in result['dropped'])
        assert {i: a for i, a in listening(vm).items()
                if i in sockets} == sockets
        assert forwarded_port(vm, 7000) == first
        assert forwarded_port(vm, 7002) == second
        assert greet(first) == 'hello\n'
        assert greet(second) == 'there\n'
    vm.qmp.hmp(f'hostfwd_remove n0 tcp:127.0.0.1:{first}')
    assert first not in listening_ports(vm)


def test_user_connections(make_vm):
    """What is open is named, and ended on both sides; new connections
    work."""
    vm = user_vm(make_vm, ',hostfwd=tcp:127.0.0.1:0-:7000')
    server = socket.create_server(('127.0.0.1', 0))
    port = server.getsockname()[1]
    vm.agent.sh('cd /root; mkfifo out; '
                f'(nc 10.0.2.2 {port} < out > in; echo ended > end) '
                '> /dev/null 2>&1 & ')
    vm.agent.ask('lines start /root/out 1000')
    outgoing = server.accept()[0]
    assert outgoing.recv(10)
    vm.agent.sh('(nc -l -p 7000 > /root/in2; echo ended > /root/end2) '
                '> /dev/null 2>&1 & sleep 0.2')
    incoming = socket.create_connection(
        ('127.0.0.1', forwarded_port(vm, 7000)))
    incoming.sendall(b'x')
    wait_until(lambda: vm.agent.sh('cat /root/in2') == 'x')

    result = vm.qmp.execute('exec-upgrade', binary=vm.setup.new)
    dropped = result['dropped']
    assert len(dropped) == 2, dropped
    assert any(re.fullmatch(
        rf"netdev 'n0': tcp 10\.0\.2\.15:\d+ to 10\.0\.2\.2:{port}", d)
        for d in dropped), dropped
    assert any(d.endswith('to 10.0.2.15:7000') for d in dropped), dropped
    for sock in outgoing, incoming:
        sock.settimeout(10)
        try:
            while sock.recv(65536):
                pass
        except ConnectionResetError:
            pass
    # the guest writes, so it hears of it at once
    wait_until(lambda: vm.agent.sh('cat /root/end; true') == 'ended\n')
    vm.agent.sh('killall nc; true')
    vm.agent.sh('echo again | nc -w 5 10.0.2.2 ' + str(port) +
                ' > /dev/null 2>&1 & ')
    again = server.accept()[0]
    again.settimeout(10)
    assert again.recv(10) == b'again\n'
    vm.agent.check_log()


# Refused

def test_refused_filters(make_vm):
    """Filters that hold packets are refused by name, all at once."""
    vm = make_vm(args=['-netdev', 'user,id=n0', *NIC,
                       '-object', 'filter-buffer,id=f0,netdev=n0,'
                       'interval=1000',
                       '-object', 'filter-rewriter,id=f1,netdev=n0'])
    vm.boot()
    vm.refused("filter-buffer 'f0'", "filter-rewriter 'f1'")


def test_refused_vhost(make_vm, ns):
    if not os.path.exists('/dev/vhost-net'):
        pytest.skip('the host has no /dev/vhost-net')
    vm = boot_on_bridge(tap_vm(
        make_vm, ns,
        'tap,id=n0,ifname=tap0,script=no,downscript=no,vhost=on'), ns)
    vm.refused("netdev 'n0'", 'vhost')


def test_refused_vhost_user_device(make_vm, setup):
    """A device whose queues another process serves is refused by name."""
    build = os.path.dirname(os.path.realpath(setup.new))
    daemon = f'{build}/storage-daemon/qemu-storage-daemon'
    if not os.path.exists(daemon):
        daemon = shutil.which('qemu-storage-daemon')
    if not daemon:
        pytest.skip('needs qemu-storage-daemon')
    vm = make_vm(machine='pc,memory-backend=ram')
    path = f'{vm.dir}/vhost'
    server = subprocess.Popen(
        [daemon, '--blockdev', 'null-co,node-name=n,size=1048576', '--export',
         f'vhost-user-blk,id=e,node-name=n,addr.type=unix,addr.path={path}'])
    try:
        wait_until(lambda: os.path.exists(path))
        vm.args += ['-object', 'memory-backend-memfd,id=ram,size=192M,'
                    'share=on', '-chardev', f'socket,id=c,path={path}',
                    '-device', 'vhost-user-blk-pci,id=vub,chardev=c']
        vm.boot()
        vm.refused("device 'vub' (vhost-user-blk)")
    finally:
        server.kill()
        server.wait()


def test_failed_upgrade_changes_nothing(make_vm, ns):
    """Given up before the guest is touched, the network goes on."""
    vm = boot_on_bridge(tap_vm(
        make_vm, ns, 'tap,id=n0,ifname=tap0,script=no,downscript=no'), ns)
    pinger = ns.pinger()
    pinger.settle()
    pinger.wait_answers(10)
    vm.refused('No such file', binary='/nonexistent')
    pinger.wait_answers(10)
    assert not pinger.finish()
    vm.upgrade()
