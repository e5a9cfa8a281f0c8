# SPDX-License-Identifier: GPL-2.0-or-later
"""What commands have added and deleted since start, devices and what they are
connected to: the new process has what there is now, where the guest knows
it."""

import os
import re
import socket

import pytest

from harness.checks import (changes, check_disk, guest_lives_on, unplug,
                            wait_disk_writes, wait_until)
from harness.lines import LineChecker, lines
from harness.net import GUEST_MAC, EthernetPeer, guest_network

MIB = 1 << 20
PORTS = 4
# Where devices can be plugged on q35; on pc that is pci.0
ROOT_PORTS = [word for n in range(PORTS) for word in (
    '-device', f'pcie-root-port,id=rp{n},chassis={n},slot={n}')]
DISKS = [word for name in 'ab' for word in (
    '-blockdev', f'driver=raw,node-name={name},file.driver=file,'
    f'file.filename={{dir}}/{name}')]


def start(make_vm, machine, args=(), **kwargs):
    vm = make_vm(machine=machine, **kwargs)
    vm.buses = [f'rp{n}' for n in range(PORTS)] if machine == 'q35' else None
    for name in 'ab':
        with open(vm.dir / name, 'wb') as image:
            image.truncate(16 * MIB)
    vm.args += ROOT_PORTS if machine == 'q35' else []
    vm.args += [arg.format(dir=vm.dir) for arg in args]
    return vm.boot()


@pytest.fixture(params=['pc', 'q35'])
def machine(request):
    return request.param


def plug(vm, driver, **kwargs):
    """Plugs a PCI device wherever there is room."""
    if vm.buses:
        kwargs.setdefault('bus', vm.buses.pop(0))
    # as they are: some properties have underscores
    vm.qmp.reply(vm.qmp.send('device_add', {'driver': driver, **kwargs}))


def object_add(vm, kind, ident, **kwargs):
    vm.qmp.execute('object-add', qom_type=kind, id=ident, **kwargs)


def places(vm):
    """What QEMU shows of the device tree: each device with its place, but
    not in which order it was plugged."""
    return sorted(re.sub(r' +', ' ', line) for line in
                  vm.qmp.hmp('info qtree').splitlines()
                  if re.search(r'dev:|addr = |bus:|mac =|scsi-id|nr =', line))


def guest_pci(vm):
    """The guest's PCI devices, with their drivers."""
    vm.agent.settle()
    return vm.agent.sh("cd /sys/bus/pci/devices; "
                       "grep -E '^(DRIVER|PCI_ID)=' */uevent")


def upgrade(vm, count=1, fill=40):
    """Upgrades, and checks that the guest has the memory that it had at the
    first time, and that both sides see the same devices."""
    if not hasattr(vm, 'memory'):
        vm.memory = vm.agent.ask(f'mem fill {fill}')
        assert vm.memory['bytes'] > 32 * MIB
    guest, qemu, changed = guest_pci(vm), places(vm), changes(vm)
    for _ in range(count):
        assert not vm.blockers()
        with guest_lives_on(vm, fill=0):
            vm.upgrade()
        assert vm.agent.ask('mem verify') == vm.memory
        assert guest_pci(vm) == guest
        assert places(vm) == qemu
        assert changes(vm) == changed


def connect_network(vm, number):
    """Options of a network backend, the other side of which is in this
    process, and that side."""
    theirs, ours = vm.dir / f'qemu{number}', vm.dir / f'peer{number}'
    for path in theirs, ours:
        path.unlink(missing_ok=True)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.bind(str(ours))
    return {'type': 'dgram', 'id': f'net{number}',
            'local': {'type': 'unix', 'path': str(theirs)},
            'remote': {'type': 'unix', 'path': str(ours)}}, \
        EthernetPeer(sock, False, str(theirs))


def plug_network(vm, number, ident=None, **kwargs):
    """A NIC with such a backend; returns the other side."""
    options, peer = connect_network(vm, number)
    vm.qmp.execute('netdev_add', **options)
    plug(vm, 'virtio-net-pci', id=ident or f'nic{number}',
         netdev=f'net{number}', **kwargs)
    return peer


def unplug_network(vm, number):
    unplug(vm, f'nic{number}')
    vm.qmp.execute('netdev_del', id=f'net{number}')


def test_network(make_vm, machine):
    """Plugged, upgraded twice, unplugged, plugged anew with the same id."""
    vm = start(make_vm, machine)
    peer = plug_network(vm, 1, mac=GUEST_MAC)
    guest_network(vm)
    peer.ping(1)
    upgrade(vm, 2)
    peer.ping(2)
    unplug_network(vm, 1)
    assert not changes(vm)
    upgrade(vm)
    peer = plug_network(vm, 1, mac=GUEST_MAC)
    guest_network(vm)
    peer.ping(3)
    upgrade(vm)
    peer.ping(4)


def test_network_unplugged(make_vm, machine):
    """What the command line has, and the user has deleted, does not come
    back; what it has behind that stays where it is."""
    vm = start(make_vm, machine, [
        '-netdev', 'user,id=net0', '-device', 'virtio-net-pci,netdev=net0,'
        'id=nic0' + (',bus=rp3' if machine == 'q35' else ''),
        '-device', 'virtio-rng-pci,id=rng',
        '-netdev', 'hubport,hubid=1,id=net2',
        '-device', 'e1000e,netdev=net2'])
    vm.agent.wait_path('/sys/class/net/eth1')
    unplug_network(vm, 0)
    before = changes(vm)
    assert before == ["device 'nic0' was removed",
                      "network backend 'net0' was removed"]
    upgrade(vm, 2)
    # the same ids, now for something else; e1000e's driver was first
    peer = plug_network(vm, 0, mac=GUEST_MAC)
    guest_network(vm, interface='eth1')
    peer.ping(1)
    upgrade(vm, 2)
    peer.ping(2)
    unplug_network(vm, 0)
    assert changes(vm) == before
    upgrade(vm)


def carriers(vm, prefix):
    """Whether each of the guest's interfaces with such an address has a
    carrier, in the order of their addresses."""
    lines = vm.agent.sh(
        f'cd /sys/class/net; for d in $(grep -l ^{prefix} */address); do '
        'ip link set ${d%/*} up; echo $(cat $d ${d%/*}/carrier); done')
    return [line.split()[1] == '1' for line in sorted(lines.splitlines())]


@pytest.mark.parametrize('model', ['e1000', 'virtio-net-pci'])
def test_network_backend_removed(make_vm, model):
    """NICs whose backend is gone, of the command line, with and without an
    id, and of a command: they stay without one, and its name is free."""
    prefix = '52:54:00:0b:00'
    vm = start(make_vm, 'pc', [
        '-netdev', 'user,id=net0',
        '-device', f'{model},netdev=net0,mac={prefix}:00,id=nic0',
        '-netdev', 'user,id=net1',
        '-device', f'{model},netdev=net1,mac={prefix}:01'])
    vm.qmp.execute('netdev_add', type='user', id='net2')
    plug(vm, model, id='nic2', netdev='net2', mac=f'{prefix}:02')
    wait_until(lambda: carriers(vm, prefix) == [True] * 3)
    for number in range(3):
        vm.qmp.execute('netdev_del', id=f'net{number}')
        wait_until(lambda n=number: not carriers(vm, prefix)[n])
    upgrade(vm, 2)
    for number in range(3):
        assert f' \\ net{number}: ' in vm.qmp.hmp('info network')
    assert carriers(vm, prefix) == [False] * 3
    # what takes their names is not theirs
    peers = [plug_network(vm, number, mac=GUEST_MAC, ident=f'new{number}')
             for number in (0, 1)]
    guest_network(vm, interface='eth3')
    peers[0].ping(1)
    upgrade(vm, 2)
    peers[0].ping(2)
    assert carriers(vm, prefix) == [False] * 3
    with pytest.raises(Exception, match='Duplicate'):
        vm.qmp.execute('netdev_add', type='user', id='net0')
    for ident in 'nic0', 'nic2', 'new0':
        unplug(vm, ident)
    upgrade(vm, 2)


def test_instance_ids(make_vm):
    """User networks have no path in the device state, only a number: it is
    the next, whatever was deleted before."""
    vm = start(make_vm, 'pc', ['-netdev', 'user,id=net0'])
    for ident in 'net1', 'net2':
        vm.qmp.execute('netdev_add', type='user', id=ident)
    vm.qmp.execute('netdev_del', id='net0')
    vm.qmp.execute('netdev_del', id='net1')
    upgrade(vm, 2)
    vm.qmp.execute('netdev_add', type='user', id='net1')
    upgrade(vm, 2)


def write_disk(vm, device):
    vm.agent.wait_path(device)
    vm.agent.ask(f'disk start {device} 2 8')
    wait_disk_writes(vm, device)


def check_written(vm, device):
    wait_disk_writes(vm, device)
    check_disk(vm, device)


def test_virtio_blk(make_vm, machine):
    vm = start(make_vm, machine, DISKS)
    plug(vm, 'virtio-blk-pci', id='disk1', drive='a')
    write_disk(vm, '/dev/vda')
    upgrade(vm, 2)
    check_written(vm, '/dev/vda')
    unplug(vm, 'disk1')
    upgrade(vm)
    plug(vm, 'virtio-blk-pci', id='disk1', drive='a')
    write_disk(vm, '/dev/vda')
    upgrade(vm)
    check_written(vm, '/dev/vda')


def test_after_migration_and_ten_upgrades(make_vm):
    """A guest that came by migration, with a disk that was plugged there and
    here, and that is changed and upgraded again."""
    source = start(make_vm, 'pc', DISKS)
    target = make_vm(args=['-incoming', 'defer', *(
        arg.format(dir=source.dir) for arg in DISKS)]).start()
    target.buses = None
    for vm in source, target:
        plug(vm, 'virtio-blk-pci', id='disk1', drive='a', addr='10')
    write_disk(source, '/dev/vda')
    upgrade(source)
    check_written(source, '/dev/vda')
    source.migrate_to(target)
    source.qmp.execute('quit')
    source.wait_gone()
    target.agent.ask('disk start /dev/vda 2 8')
    plug(target, 'virtio-rng-pci', id='rng1')
    upgrade(target, 10)
    check_written(target, '/dev/vda')
    unplug(target, 'disk1')
    assert changes(target) == ["device 'rng1' was added"]
    upgrade(target)


def test_disk_of_the_command_line_unplugged(make_vm, machine):
    """Its node stays, and can be plugged again."""
    vm = start(make_vm, machine, [
        *DISKS, '-device', 'virtio-blk-pci,drive=a,id=disk0' +
        (',bus=rp3' if machine == 'q35' else ''),
        '-device', 'virtio-blk-pci,drive=b,id=disk1'])
    # as the guest finds them: those behind a port come last
    gone, stays = (('/dev/vdb', '/dev/vda') if machine == 'q35' else
                   ('/dev/vda', '/dev/vdb'))
    write_disk(vm, stays)
    unplug(vm, 'disk0')
    upgrade(vm)
    plug(vm, 'virtio-blk-pci', id='disk2', drive='a')
    write_disk(vm, gone)
    upgrade(vm, 2)
    check_written(vm, gone)
    check_written(vm, stays)


def test_virtio_scsi(make_vm, machine):
    """A disk at a controller of the command line, and one at a controller
    that was plugged, too."""
    vm = start(make_vm, machine, [
        *DISKS, '-device', 'virtio-scsi-pci,id=s0'])
    vm.qmp.execute('device_add', driver='scsi-hd', id='d0', drive='a',
                   bus='s0.0')
    plug(vm, 'virtio-scsi-pci', id='s1')
    vm.qmp.execute('device_add', driver='scsi-hd', id='d1', drive='b',
                   bus='s1.0', lun=3)
    for device in '/dev/sda', '/dev/sdb':
        write_disk(vm, device)
    upgrade(vm, 2)
    for device in '/dev/sda', '/dev/sdb':
        check_written(vm, device)
    unplug(vm, 'd0')
    unplug(vm, 's1')
    upgrade(vm)
    vm.qmp.execute('device_add', driver='scsi-hd', id='d0', drive='a')
    wait_until(lambda: '/dev/sd' in vm.agent.sh('ls /dev/sd* || true'))
    upgrade(vm)


def test_usb(make_vm, machine):
    vm = start(make_vm, machine, ['-device', 'qemu-xhci,id=usb', *DISKS])

    def usb():
        return vm.agent.sh('cd /sys/bus/usb/devices; for d in *; do '
                           'echo $d $(cat $d/product || true); done')
    vm.qmp.execute('device_add', driver='usb-tablet', id='t1')
    wait_until(lambda: 'Tablet' in usb())
    vm.qmp.execute('device_add', driver='usb-storage', id='d1', drive='a')
    write_disk(vm, '/dev/sda')
    before = usb()
    upgrade(vm, 2)
    assert usb() == before
    check_written(vm, '/dev/sda')
    unplug(vm, 't1')
    wait_until(lambda: 'Tablet' not in usb())
    upgrade(vm)
    vm.qmp.execute('device_add', driver='usb-tablet', id='t2')
    wait_until(lambda: 'Tablet' in usb())
    upgrade(vm)


def socket_backend(vm, name):
    return {'type': 'socket', 'data': {
        'addr': {'type': 'unix', 'data': {'path': str(vm.dir / name)}},
        'server': True, 'wait': False}}


def test_virtio_serial(make_vm):
    """Ports and their character devices, of which no byte is lost."""
    vm = start(make_vm, 'pc', ['-device', 'virtio-serial-pci'])
    for name in 'out', 'in':
        vm.qmp.execute('chardev-add', id=name,
                       backend=socket_backend(vm, name))
        vm.qmp.execute('device_add', driver='virtserialport', chardev=name,
                       id=f'port-{name}', name=name)
    vm.agent.wait_path('/dev/vport0p2')
    checker, incoming = LineChecker(vm.connect('out')), vm.connect('in')
    vm.agent.ask('lines start /dev/vport0p1')
    vm.agent.ask('reader start /dev/vport0p2')
    for name in 'port-out', 'port-in':
        vm.qmp.wait_event('VSERPORT_CHANGE', id=name, open=True)
    checker.wait_more(100)
    incoming.sendall(lines(0, 500))
    upgrade(vm, 2)
    incoming.sendall(lines(500, 1000))
    checker.wait_more(100)
    checker.wait(vm.agent.ask('lines stop /dev/vport0p1')['next'])
    assert wait_until(lambda: (r := vm.agent.ask(
        'reader status /dev/vport0p2'))['lines'] >= 1000 and r) == \
        {'lines': 1000, 'errors': 0}
    unplug(vm, 'port-out')
    vm.qmp.execute('chardev-remove', id='out')
    upgrade(vm)
    vm.qmp.execute('chardev-add', id='out', backend=socket_backend(vm, 'out'))
    vm.qmp.execute('device_add', driver='virtserialport', chardev='out',
                   id='port-out', name='out')
    vm.agent.wait_path('/dev/vport0p1')
    client = vm.connect('out')
    upgrade(vm)
    vm.agent.sh('echo again > /dev/vport0p1')
    with client.makefile('rb') as received:
        assert received.readline() == b'again\n'


def test_chardev_changed(make_vm):
    """A serial line of the command line gets another character device: the
    front-end finds it where it had the first."""
    vm = make_vm()
    vm.args += ['-chardev', f'file,id=line,path={vm.dir}/first',
                '-device', 'isa-serial,chardev=line,index=2']
    vm.boot()
    vm.agent.sh('echo one > /dev/ttyS2')
    wait_until(lambda: b'one' in (vm.dir / 'first').read_bytes())
    vm.qmp.execute('chardev-change', id='line', backend={
        'type': 'file', 'data': {'out': str(vm.dir / 'second')}})
    upgrade(vm, 2)
    vm.agent.sh('echo two > /dev/ttyS2')
    wait_until(lambda: b'two' in (vm.dir / 'second').read_bytes())
    assert b'two' not in (vm.dir / 'first').read_bytes()
    vm.qmp.execute('chardev-change', id='line', backend={
        'type': 'file', 'data': {'out': str(vm.dir / 'third')}})
    upgrade(vm)
    vm.agent.sh('echo three > /dev/ttyS2')
    wait_until(lambda: b'three' in (vm.dir / 'third').read_bytes())


def test_objects(make_vm):
    """Of every kind of moment at which start-up makes them; one that something
    still needs is not left out."""
    vm = start(make_vm, 'pc', [
        '-object', 'iothread,id=io', '-object', 'iothread,id=used',
        '-object', 'rng-random,id=rng0', *DISKS,
        '-device', 'virtio-rng-pci,rng=rng0',
        '-device', 'virtio-blk-pci,drive=a,id=disk,iothread=used',
        '-netdev', 'hubport,hubid=1,id=net0'])
    object_add(vm, 'iothread', 'io1', poll_max_ns=12345)
    object_add(vm, 'secret', 'sec', data='letmein')
    object_add(vm, 'filter-dump', 'dump', netdev='net0',
               file=str(vm.dir / 'dump'))
    object_add(vm, 'memory-backend-ram', 'mem', size=16 * MIB)
    object_add(vm, 'rng-builtin', 'rng1')
    plug(vm, 'virtio-rng-pci', id='rng-device', rng='rng1')
    vm.qmp.execute('object-del', id='io')
    object_add(vm, 'throttle-group', 'limit', limits={'iops-total': 500})
    vm.qmp.execute('qom-set', path='/objects/limit', property='limits',
                   value={'bps-total': 1 << 20})

    def limits():
        return vm.qmp.execute('qom-get', path='/objects/limit',
                              property='limits')
    before = limits()

    def check():
        upgrade(vm, 2)
        assert limits() == before
        assert vm.qmp.execute('qom-get', path='/objects/io1',
                              property='poll-max-ns') == 12345
        with pytest.raises(Exception, match='io'):
            vm.qmp.execute('object-del', id='io')
    check()
    object_add(vm, 'iothread', 'io')
    vm.qmp.execute('object-del', id='io')
    check()
    for ident in 'sec', 'dump', 'mem':
        vm.qmp.execute('object-del', id=ident)
    check()
    vm.qmp.execute('object-del', id='used')
    vm.refused("object 'used' was removed after start", 'may still need it')


def test_pc_dimm(make_vm, machine):
    """Memory that was plugged: its place, and what the guest has in it."""
    vm = start(make_vm, machine, memory='192,slots=4,maxmem=2G',
               append='memhp_default_state=online')

    def total():
        return int(vm.agent.sh(
            "awk '/^MemTotal/ { print $2 }' /proc/meminfo")) >> 10
    first = total()

    def plug_dimm(number, kind):
        size = total()
        object_add(vm, kind, f'm{number}', size=128 * MIB)
        vm.qmp.execute('device_add', driver='pc-dimm', id=f'd{number}',
                       memdev=f'm{number}')
        wait_until(lambda: total() > size + 100)
    plug_dimm(1, 'memory-backend-ram')
    plug_dimm(2, 'memory-backend-memfd')
    before = vm.qmp.execute('query-memory-devices')
    assert total() > first + 200
    upgrade(vm, 2, fill=75)
    assert vm.qmp.execute('query-memory-devices') == before
    plug_dimm(3, 'memory-backend-ram')
    upgrade(vm)


def test_virtio_mem(make_vm):
    vm = start(make_vm, 'pc', memory='192,maxmem=1G',
               append='memhp_default_state=online')

    def wait_plugged(size):
        # the event comes later than the change, at most one in a second
        vm.qmp.wait_event('MEMORY_DEVICE_SIZE_CHANGE', size=size)
    object_add(vm, 'memory-backend-ram', 'm', size=256 * MIB)
    plug(vm, 'virtio-mem-pci', id='vmem', memdev='m',
         **{'requested-size': 128 * MIB})
    wait_plugged(128 * MIB)
    vm.qmp.execute('qom-set', path='/machine/peripheral/vmem',
                   property='requested-size', value=192 * MIB)
    wait_plugged(192 * MIB)
    upgrade(vm, 2, fill=75)
    assert vm.qmp.execute('qom-get', path='/machine/peripheral/vmem',
                          property='requested-size') == 192 * MIB


def test_cpu(make_vm, machine):
    vm = start(make_vm, machine, smp='1,maxcpus=3,sockets=3')
    # no CPU comes or goes while the kernel probes a PCI device (EBUSY)
    vm.agent.settle()
    for number in 1, 2:
        vm.qmp.execute('device_add', driver='qemu64-x86_64-cpu',
                       id=f'cpu{number}', socket_id=number, core_id=0,
                       thread_id=0)
        path = f'/sys/devices/system/cpu/cpu{number}'
        vm.agent.wait_path(path)
        vm.agent.sh(f'echo 1 > {path}/online')
    cpus = [c['qom-path'] for c in vm.qmp.execute('query-cpus-fast')]
    assert len(cpus) == 3
    upgrade(vm, 2)
    assert [c['qom-path'] for c in vm.qmp.execute('query-cpus-fast')] == cpus
    assert vm.agent.sh('cat /sys/devices/system/cpu/online') == '0-2\n'
    # with TCG, QEMU does not finalize it, so that there is no event
    vm.qmp.execute('device_del', id='cpu1')
    wait_until(lambda: len(vm.qmp.execute('query-cpus-fast')) == 2)
    assert changes(vm) == ["device 'cpu2' was added"]
    upgrade(vm)
    assert vm.agent.sh('cat /sys/devices/system/cpu/online') == '0,2\n'


def test_without_id(make_vm):
    """They have numbers, which deleted ones leave free."""
    vm = start(make_vm, 'pc', ['-device', 'virtio-balloon-pci'])

    def anonymous():
        return {d['name'] for d in vm.qmp.execute(
            'qom-list', path='/machine/peripheral-anon')}
    plugged = []
    for _ in range(3):
        before = anonymous()
        plug(vm, 'virtio-scsi-pci')
        plugged += anonymous() - before
    wait_until(lambda: guest_pci(vm).count('virtio-pci') == 4)
    vm.qmp.execute('device_del',
                   id=f'/machine/peripheral-anon/{plugged[1]}')
    vm.qmp.wait_event('DEVICE_DELETED')
    before = anonymous()
    assert plugged[1] not in before
    upgrade(vm, 2)
    assert anonymous() == before


def peripheral_anon(vm):
    """Numbers of the devices without an id, with their types."""
    return {int(re.search(r'\d+', d['name'])[0]): d['type']
            for d in vm.qmp.execute('qom-list',
                                    path='/machine/peripheral-anon')
            if d['name'].startswith('device[')}


def unplug_number(vm, number):
    path = f'/machine/peripheral-anon/device[{number}]'
    vm.qmp.execute('device_del', id=path)
    vm.qmp.wait_event('DEVICE_DELETED', path=path)


def test_without_id_unplugged(make_vm):
    """Those of the command line that stay keep their numbers, their places
    and the numbers of their buses."""
    vm = start(make_vm, 'pc', [
        *DISKS, '-device', 'virtio-scsi-pci', '-device', 'virtio-scsi-pci',
        '-device', 'scsi-hd,drive=a,bus=scsi.1', '-device', 'virtio-rng-pci',
        '-device', '{{"driver":"virtio-balloon-pci"}}',
        '-device', '{{"driver":"virtio-scsi-pci"}}',
        '-device', '{{"driver":"virtio-rng-pci"}}'])
    write_disk(vm, '/dev/sda')
    # before them are the guest's two serial lines
    before = peripheral_anon(vm)
    assert set(before) == set(range(9))
    for number in 2, 6, 8:
        unplug_number(vm, number)
    expected = sorted(f"device '/machine/peripheral-anon/device[{number}]' "
                      'was removed' for number in (2, 6, 8))
    assert changes(vm) == expected
    after = peripheral_anon(vm)
    assert set(after) == {0, 1, 3, 4, 5, 7}
    upgrade(vm, 2)
    assert peripheral_anon(vm) == after
    check_written(vm, '/dev/sda')
    # no number is given twice
    plug(vm, 'virtio-balloon-pci')
    assert peripheral_anon(vm) == {**after, 9: 'child<virtio-balloon-pci>'}
    vm.qmp.execute('device_add', driver='scsi-hd', drive='b', bus='scsi.2')
    vm.agent.wait_path('/dev/sdb')
    upgrade(vm, 2)
    unplug_number(vm, 3)
    unplug_number(vm, 5)
    upgrade(vm)
    write_disk(vm, '/dev/sdb')
    upgrade(vm)
    check_written(vm, '/dev/sdb')


def test_if_virtio_unplugged(make_vm):
    """The drive goes with the device that -drive has made."""
    vm = start(make_vm, 'pc', [
        '-drive', 'if=virtio,format=raw,file={dir}/a',
        '-drive', 'if=virtio,format=raw,file={dir}/b'])
    write_disk(vm, '/dev/vdb')
    first = min(number for number, kind in peripheral_anon(vm).items()
                if 'virtio-blk' in kind)
    unplug_number(vm, first)
    upgrade(vm, 2)
    check_written(vm, '/dev/vdb')
    assert vm.agent.sh('ls /dev/vd*').split() == ['/dev/vdb']


def test_unplug_pending(make_vm, machine):
    """The guest answers after the upgrade what it was asked before."""
    vm = start(make_vm, machine, [
        '-device', 'virtio-rng-pci,id=rng0' +
        (',bus=rp3' if machine == 'q35' else '')])
    plug(vm, 'virtio-rng-pci', id='rng1')
    wait_until(lambda: guest_pci(vm).count('virtio') >= 2)
    vm.qmp.execute('stop')
    for ident in 'rng0', 'rng1':
        vm.qmp.execute('device_del', id=ident)
    vm.upgrade()
    vm.qmp.execute('cont')
    for ident in 'rng0', 'rng1':
        vm.qmp.wait_event('DEVICE_DELETED', device=ident)
    upgrade(vm)


# Below it there is a bus number for a bridge, which Linux needs to find it
WIDE_PORT = ['-device', 'pcie-root-port,id=wide,chassis=9,slot=9,bus-reserve=4']


def plug_bridge(vm, machine, **kwargs):
    if machine == 'pc':
        plug(vm, 'pci-bridge', chassis_nr=9, **kwargs)
    else:
        plug(vm, 'pcie-pci-bridge', bus='wide', **kwargs)


def test_bridge(make_vm, machine):
    """A bridge that was plugged, and what was plugged below it, before the
    guest has looked, and afterwards."""
    vm = start(make_vm, machine,
               DISKS + (WIDE_PORT if machine == 'q35' else []))
    vm.qmp.execute('stop')
    plug_bridge(vm, machine, id='bridge')
    plug(vm, 'virtio-blk-pci', id='disk1', drive='a', bus='bridge', addr='3')
    vm.upgrade()
    vm.qmp.execute('cont')
    write_disk(vm, '/dev/vda')
    upgrade(vm, 2)
    check_written(vm, '/dev/vda')
    unplug(vm, 'bridge')
    assert not changes(vm)
    upgrade(vm)


def test_plug_below_bridge(make_vm):
    """Once the guest has the bridge; it is the bridge that tells it."""
    vm = start(make_vm, 'q35', DISKS + WIDE_PORT)
    plug_bridge(vm, 'q35', id='bridge')
    wait_until(lambda: '1B36:000E' in guest_pci(vm))
    upgrade(vm)
    for addr in '3', '4':
        plug(vm, 'virtio-blk-pci', id='disk1', drive='a', bus='bridge',
             addr=addr)
        write_disk(vm, '/dev/vda')
        upgrade(vm, 2)
        check_written(vm, '/dev/vda')
        unplug(vm, 'disk1')
    upgrade(vm)


def test_bridges_without_id(make_vm):
    """The names of their buses have numbers."""
    vm = start(make_vm, 'pc')
    vm.qmp.execute('stop')
    for bus in 'pci.1', 'pci.2':
        plug_bridge(vm, 'pc')
        plug(vm, 'virtio-rng-pci', id=f'below-{bus}', bus=bus, addr='1')
    vm.qmp.execute('cont')
    wait_until(lambda: guest_pci(vm).count('virtio-pci') == 2)
    unplug_number(vm, max(peripheral_anon(vm)) - 1)
    wait_until(lambda: guest_pci(vm).count('virtio-pci') == 1)
    upgrade(vm, 2)
    assert changes(vm) == [
        "device '/machine/peripheral-anon/device[3]' was added",
        "device 'below-pci.2' was added"]


def send_all(vm, *commands):
    """Sends commands one behind the other, and waits for all replies."""
    for ident in [vm.qmp.send(*command) for command in commands]:
        vm.qmp.reply(ident)


def churn(vm, numbers, devices):
    """Makes some of each kind, @devices of them devices, and deletes them."""
    ports = [n for n in numbers if n % (len(numbers) // devices) == 0]
    send_all(vm, *[command for n in numbers for command in (
        ('chardev-add', {'id': f'c{n}',
                         'backend': {'type': 'null', 'data': {}}}),
        ('netdev_add', {'type': 'hubport', 'id': f'n{n}', 'hubid': 7}),
        ('object-add', {'qom-type': 'secret', 'id': f's{n}', 'data': 'x'}),
        ('blockdev-add', {'driver': 'null-co', 'node-name': f'b{n}'}))])
    send_all(vm, *[command for n in ports for command in (
        ('device_add', {'driver': 'virtserialport', 'id': f'p{n}',
                        'chardev': f'c{n}'}),
        ('device_del', {'id': f'p{n}'}))])
    for n in ports:
        vm.qmp.wait_event('DEVICE_DELETED', device=f'p{n}')
    send_all(vm, *[command for n in numbers for command in (
        ('chardev-remove', {'id': f'c{n}'}), ('netdev_del', {'id': f'n{n}'}),
        ('object-del', {'id': f's{n}'}),
        ('blockdev-del', {'node-name': f'b{n}'}))])


@pytest.mark.parametrize('operations', [1000])
def test_nothing_grows(make_vm, operations):
    """With what was done, and is no more."""
    vm = start(make_vm, 'pc', ['-device', 'virtio-serial-pci'])
    plug(vm, 'virtio-rng-pci', id='stays')
    # both drivers have their queues when they show what they have
    vm.qmp.execute('device_add', driver='virtserialport', id='port')
    vm.agent.wait_path('/dev/vport0p1')
    wait_until(lambda: 'virtio' in vm.agent.sh(
        'cat /sys/class/misc/hw_random/rng_current'))
    unplug(vm, 'port')
    before = vm.qmp.execute('query-exec-upgrade')
    assert before['changes'] == ["device 'stays' was added"]
    descriptors = len(os.listdir(f'/proc/{vm.pid}/fd'))
    for first in range(0, operations, 100):
        churn(vm, range(first, first + 100), 10)
        del vm.qmp.events[:]
    assert vm.qmp.execute('query-exec-upgrade') == before
    assert len(os.listdir(f'/proc/{vm.pid}/fd')) == descriptors
    upgrade(vm)
