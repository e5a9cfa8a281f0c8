# SPDX-License-Identifier: GPL-2.0-or-later
"""What query-exec-upgrade tells of a QEMU's configuration."""

import json

import pytest

from test_ledger_devices import places

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
    before = places(vm), files(vm)
    vm.qmp.send('quit')
    vm.qmp.wait_closed()
    vm.process.wait()

    # its monitor has the same name, in another folder
    wanted = [c for c in configuration if c['arguments'].get('id') != 'qmp']
    other = make_vm(kernel=False, memory='64').start()
    for command in wanted:
        other.qmp.reply(other.qmp.send(command['execute'],
                                       command['arguments']))
    assert (places(other), files(other)) == before
    assert by_text(c for c in query(other)[0]
                   if c['arguments'].get('id') != 'qmp') == by_text(wanted)
