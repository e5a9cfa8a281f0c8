# SPDX-License-Identifier: GPL-2.0-or-later
"""Descriptors that a client sends and commands then use by the name that it
gave them: the name is gone with the first use, what was made of it stays."""

import os
import socket

import pytest

from harness.checks import (changes, guest_lives_on, unplug, wait_disk_writes,
                            wait_until)
from harness.lines import LineChecker
from harness.net import (GUEST_MAC, EthernetPeer, attached_queues,
                         guest_network)
from harness.qmp import QMPError


def getfd(vm, name, fd):
    """Sends a descriptor, which is closed here."""
    vm.qmp.reply(vm.qmp.send_fds('getfd', [fd], {'fdname': name}))
    os.close(fd)


def add_fd(vm, fdset, path, flags):
    fd = os.open(path, flags)
    vm.qmp.reply(vm.qmp.send_fds('add-fd', [fd], {'fdset-id': fdset}))
    os.close(fd)


def upgrade(vm, **kwargs):
    with guest_lives_on(vm, fill=0):
        vm.upgrade(**kwargs)


def plug_nic(vm, **kwargs):
    vm.qmp.execute('device_add', driver='virtio-net-pci', id='nic',
                   netdev='n0', mac=GUEST_MAC, **kwargs)
    guest_network(vm)


def check_gone(vm):
    """What was added is deleted, and the guest upgrades without it."""
    assert not changes(vm)
    upgrade(vm)


# Network backends

@pytest.mark.parametrize('queues', [1, 2])
def test_tap(make_vm, ns, queues):
    vm = make_vm(popen=ns.popen())
    vm.boot()
    for _ in range(2):
        names = [f'tap-{i}' for i in range(queues)]
        for name, fd in zip(names, ns.tap('tap0', queues)):
            getfd(vm, name, fd)
        vm.qmp.execute('netdev_add', type='tap', id='n0',
                       **({'fds': ':'.join(names)} if queues > 1 else
                          {'fd': names[0]}))
        plug_nic(vm, **({'mq': True, 'vectors': 6} if queues > 1 else {}))
        attached = queues > 1 and attached_queues(ns, 'tap0')
        for _ in range(3):
            with pytest.raises(QMPError):
                vm.qmp.execute('closefd', fdname=names[0])
            pinger = ns.pinger()
            pinger.wait_answers(10)
            upgrade(vm)
            pinger.wait_answers(10)
            pinger.finish(patience=0)
            assert attached == (queues > 1 and
                                attached_queues(ns, 'tap0'))
        unplug(vm, 'nic')
        vm.qmp.execute('netdev_del', id='n0')
        check_gone(vm)


# Of "stream", QEMU looks for the name in a thread, where there is none
KINDS = {
    'socket': (socket.SOCK_STREAM, {'type': 'socket', 'fd': 'mine'}),
    'dgram': (socket.SOCK_DGRAM, {
        'type': 'dgram', 'local': {'type': 'fd', 'str': 'mine'}}),
}


@pytest.mark.parametrize('kind', KINDS)
def test_network_socket(make_vm, kind):
    """Another descriptor has the name when the guest is upgraded."""
    vm = make_vm()
    vm.boot()
    sock_type, options = KINDS[kind]
    for _ in range(2):
        ours, theirs = socket.socketpair(socket.AF_UNIX, sock_type)
        getfd(vm, 'mine', theirs.detach())
        vm.qmp.execute('netdev_add', id='n0', **options)
        plug_nic(vm)
        peer = EthernetPeer(ours, sock_type == socket.SOCK_STREAM)
        peer.ping(1)
        upgrade(vm)
        peer.ping(2)
        getfd(vm, 'mine', os.open('/dev/null', os.O_RDWR))
        upgrade(vm)
        peer.ping(3)
        vm.qmp.execute('closefd', fdname='mine')
        unplug(vm, 'nic')
        vm.qmp.execute('netdev_del', id='n0')
        ours.settimeout(10)
        if sock_type == socket.SOCK_STREAM:
            while ours.recv(65536):
                pass
        check_gone(vm)


def test_network_socket_whose_peer_is_gone(make_vm):
    """There is no descriptor any more to make the backend of."""
    vm = make_vm()
    vm.boot()
    ours, theirs = socket.socketpair()
    getfd(vm, 'mine', theirs.detach())
    vm.qmp.execute('netdev_add', id='n0', **KINDS['socket'][1])
    plug_nic(vm)
    EthernetPeer(ours, True).ping(1)
    ours.close()
    for _ in range(2):
        upgrade(vm)
    unplug(vm, 'nic')
    vm.qmp.execute('netdev_del', id='n0')
    check_gone(vm)


# Character devices

def chardev(vm, command, ident, **data):
    vm.qmp.execute(command, id=ident, backend={
        'type': 'socket', 'data': {
            'addr': {'type': 'fd', 'data': {'str': 'mine'}}, **data}})


def plug_port(vm, ident):
    vm.qmp.execute('device_add', driver='virtserialport', chardev=ident,
                   id=f'port-{ident}', name=ident)
    vm.agent.wait_path('/dev/vport0p1')


def unplug_port(vm, ident):
    unplug(vm, f'port-{ident}')
    vm.qmp.execute('chardev-remove', id=ident)
    wait_until(lambda: 'vport' not in vm.agent.sh('ls /dev'))


@pytest.fixture
def serial_vm(boot):
    return boot(args=['-device', 'virtio-serial-pci'])


def check_lines_over_upgrades(vm, source):
    checker = LineChecker(source)
    vm.agent.ask('lines start /dev/vport0p1')
    for _ in range(2):
        checker.wait_more(100)
        upgrade(vm)
    checker.wait_more(100)
    checker.wait(vm.agent.ask('lines stop /dev/vport0p1')['next'])
    return checker


def test_socket(serial_vm):
    vm = serial_vm
    ours, theirs = socket.socketpair()
    getfd(vm, 'mine', theirs.detach())
    chardev(vm, 'chardev-add', 'c', server=False)
    plug_port(vm, 'c')
    check_lines_over_upgrades(vm, ours)
    unplug_port(vm, 'c')
    check_gone(vm)


def test_socket_whose_peer_is_gone(serial_vm):
    """It stays without a connection, and can be replaced."""
    vm = serial_vm
    ours, theirs = socket.socketpair()
    getfd(vm, 'mine', theirs.detach())
    chardev(vm, 'chardev-add', 'c', server=False)
    plug_port(vm, 'c')
    ours.close()

    def filename():
        return {c['label']: c['filename']
                for c in vm.qmp.execute('query-chardev')}['c']
    wait_until(lambda: filename().startswith('disconnected'))
    for _ in range(2):
        upgrade(vm)
        assert filename().startswith('disconnected')
    ours, theirs = socket.socketpair()
    getfd(vm, 'mine', theirs.detach())
    chardev(vm, 'chardev-change', 'c', server=False)
    check_lines_over_upgrades(vm, ours)
    unplug_port(vm, 'c')
    check_gone(vm)


def test_listener(serial_vm):
    vm = serial_vm
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(vm.dir / 'lines'))
        listener.listen()
        getfd(vm, 'mine', listener.detach())
    chardev(vm, 'chardev-add', 'c', server=True, wait=False)
    plug_port(vm, 'c')
    upgrade(vm)
    client = vm.connect('lines')
    check_lines_over_upgrades(vm, client)
    unplug_port(vm, 'c')
    check_gone(vm)


# Descriptor sets, of which commands use a member, and the client removes it

def fdsets(vm):
    return vm.qmp.execute('query-fdsets')


def test_file_of_a_set(serial_vm):
    """The file stays open until its user is gone, and the set as long."""
    vm = serial_vm
    for _ in range(2):
        (vm.dir / 'out').unlink(missing_ok=True)
        add_fd(vm, 3, vm.dir / 'out', os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        vm.qmp.execute('chardev-add', id='c', backend={
            'type': 'file', 'data': {'out': '/dev/fdset/3', 'append': True}})
        vm.qmp.execute('remove-fd', fdset_id=3)
        before = fdsets(vm)
        assert before == [{'fdset-id': 3, 'fds': []}]
        plug_port(vm, 'c')
        for number in range(3):
            vm.agent.sh(f'echo {number} > /dev/vport0p1')
            wait_until(lambda n=number: (vm.dir / 'out').read_text()
                       .endswith(f'{n}\n'))
            upgrade(vm, events=('VSERPORT_CHANGE',))
            assert fdsets(vm) == before
        assert (vm.dir / 'out').read_text() == '0\n1\n2\n'
        unplug_port(vm, 'c')
        assert not fdsets(vm)
        check_gone(vm)


def test_image_of_a_set(boot):
    """QEMU could not open the image again: refused until its user is gone or
    the descriptor is back."""
    vm = boot()
    with open(vm.dir / 'image', 'wb') as image:
        image.truncate(8 << 20)
    add_fd(vm, 3, vm.dir / 'image', os.O_RDWR)
    vm.qmp.execute('blockdev-add', driver='file', node_name='n',
                   filename='/dev/fdset/3')
    vm.qmp.execute('device_add', driver='virtio-blk-pci', id='disk',
                   drive='n')
    vm.agent.wait_path('/dev/vda')
    vm.agent.ask('disk start /dev/vda 2 8')
    wait_disk_writes(vm)
    upgrade(vm)
    wait_disk_writes(vm)
    vm.qmp.execute('remove-fd', fdset_id=3)
    vm.refused("descriptor set '3' has none")
    wait_disk_writes(vm)
    add_fd(vm, 3, vm.dir / 'image', os.O_RDWR)
    upgrade(vm)
    wait_disk_writes(vm)
    assert vm.agent.ask('disk stop /dev/vda')['errors'] == 0
    vm.qmp.execute('remove-fd', fdset_id=3)
    unplug(vm, 'disk')
    vm.qmp.execute('blockdev-del', node_name='n')
    assert not fdsets(vm)
    check_gone(vm)
