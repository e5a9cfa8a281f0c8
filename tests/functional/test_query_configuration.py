# SPDX-License-Identifier: GPL-2.0-or-later
"""What query-exec-upgrade tells of a QEMU's configuration."""

import json
import re

import pytest

from test_ledger_devices import ROOT_PORTS, places

ARGS = [
    '-object', 'secret,id=sec,data=hidden', '-object', 'iothread,id=io',
    '-object', '{{"qom-type":"rng-random","id":"rng0","filename":'
    '"/dev/urandom"}}',
    '-chardev', 'socket,id=out,path={dir}/out,server=on,wait=off',
    '-netdev', 'user,id=net0,hostfwd=tcp:127.0.0.1:0-:22',
    '-device', 'virtio-net-pci,netdev=net0,id=nic0',
    '-drive', 'if=none,id=d0,format=qcow2,file={dir}/top,discard=unmap',
    '-device', 'virtio-blk-pci,drive=d0,id=disk0,iothread=io',
    '-drive', 'if=none,id=cd0,media=cdrom,format=raw,file={dir}/cd',
    '-device', 'virtio-scsi-pci,id=scsi',
    '-device', 'scsi-cd,drive=cd0,id=cd',
    '-device', 'virtio-serial-pci,id=serial',
    '-device', 'virtserialport,chardev=out,id=port0',
]


@pytest.fixture
def vm(make_vm, qemu_img):
    result = make_vm(kernel=False, memory='64')
    qemu_img('create', '-f', 'qcow2', result.dir / 'base', '8M')
    qemu_img('create', '-f', 'qcow2', '-b', result.dir / 'base', '-F',
             'qcow2', result.dir / 'top')
    for name in 'cd', 'cd2', 'more':
        (result.dir / name).write_bytes(bytes(1 << 20))
    result.args += [arg.format(dir=result.dir) for arg in ARGS]
    return result.start()


def query(vm):
    info = vm.qmp.execute('query-exec-upgrade')
    assert not info['blockers']
    return info['configuration'], info['changes']


def change(vm):
    """As months do."""
    vm.qmp.execute('blockdev-snapshot-sync', device='d0', format='qcow2',
                   snapshot_file=str(vm.dir / 'snap'))
    vm.qmp.execute('blockdev-change-medium', id='cd', format='raw',
                   filename=str(vm.dir / 'cd2'), force=True)
    vm.qmp.execute('blockdev-add', driver='raw', node_name='more', file={
        'driver': 'file', 'filename': str(vm.dir / 'more')})
    vm.qmp.execute('device_add', driver='scsi-hd', drive='more', id='disk1')
    vm.qmp.execute('netdev_add', type='hubport', id='net1', hubid=3)
    vm.qmp.execute('device_add', driver='virtio-net-pci', id='nic1',
                   netdev='net1')
    vm.qmp.reply(vm.qmp.send('object-add', {
        'qom-type': 'throttle-group', 'id': 'tg',
        'limits': {'iops-total': 100}}))
    vm.qmp.execute('qom-set', path='/objects/tg', property='limits',
                   value={'iops-total': 200})
    vm.qmp.execute('qom-set', path='/objects/io', property='poll-max-ns',
                   value=4711)


def files(vm):
    return sorted(d['inserted']['file'] for d in
                  vm.qmp.execute('query-block'))


def by_text(commands):
    return sorted(json.dumps(command, sort_keys=True) for command in commands)


def check_recreated(vm, other):
    """Ends @vm, and has @other made from what it told."""
    def wanted(vm):
        # the monitor has the same name, in another folder, and a root port
        # can't be plugged
        return [c for c in query(vm)[0]
                if not re.fullmatch(r'qmp|rp\d', c['arguments'].get('id', ''))]
    configuration = wanted(vm)
    before = places(vm), files(vm)
    vm.qmp.send('quit')
    vm.qmp.wait_closed()
    vm.process.wait()

    other.start()
    for command in configuration:
        other.qmp.reply(other.qmp.send(command['execute'],
                                       command['arguments']))
    assert (places(other), files(other)) == before
    assert by_text(wanted(other)) == by_text(configuration)


def test_changes(vm):
    assert query(vm)[1] == []
    nodes = {d['device']: d['inserted']['node-name']
             for d in vm.qmp.execute('query-block') if 'inserted' in d}
    change(vm)
    now = {d['device']: d['inserted']['node-name']
           for d in vm.qmp.execute('query-block') if d['device']}
    changes = query(vm)[1]
    assert set(changes) >= {
        "network backend 'net1' was added", "device 'nic1' was added",
        "object 'tg' was added",
        "device 'disk1' was added", "block node 'more' was added",
        f"drive 'd0' shows block node '{now['d0']}'",
        f"drive 'cd0' shows block node '{now['cd0']}'",
        f"block node '{nodes['cd0']}' was removed"}
    assert not any(nodes['d0'] in text for text in changes)
    for _ in range(2):
        vm.upgrade()
        assert sorted(query(vm)[1]) == sorted(changes)


def test_recreate(vm, make_vm):
    """The commands make the same again, of a machine without devices."""
    change(vm)
    configuration = query(vm)[0]
    assert 'hidden' not in json.dumps(configuration)
    assert {'execute': 'qom-set', 'arguments': {
        'path': '/objects/io', 'property': 'poll-max-ns',
        'value': 4711}} in configuration
    vm.upgrade()
    assert query(vm)[0] == configuration
    check_recreated(vm, make_vm(kernel=False, memory='64'))


def test_recreate_network(make_vm):
    """A failover pair, of which the guest has not heard, and a NIC that has
    lost its network backend."""
    vm = make_vm(kernel=False, memory='64', machine='q35', args=[
        *ROOT_PORTS, *[word for n in range(3) for word in (
            '-netdev', f'hubport,hubid={n},id=net{n}')],
        '-device', 'virtio-net-pci,id=standby,netdev=net1,failover=on,bus=rp1',
        '-device', 'e1000e,id=primary,netdev=net2,bus=rp2,'
        'failover_pair_id=standby',
        '-device', 'virtio-net-pci,id=nic,netdev=net0,bus=rp3']).start()
    vm.qmp.execute('netdev_del', id='net0')
    before = query(vm)
    assert before[1] == ["network backend 'net0' was removed"]
    for _ in range(2):
        vm.upgrade()
        assert query(vm) == before
    check_recreated(vm, make_vm(kernel=False, memory='64', machine='q35',
                                args=ROOT_PORTS))
