# SPDX-License-Identifier: GPL-2.0-or-later
"""Another command line: it is held against what there is, commands' changes
among it, before the guest is touched."""

import pytest

from harness.checks import changes, guest_lives_on, unplug

RNG = ['-device', 'virtio-rng-pci,id=rng']
NET = ['-netdev', 'hubport,hubid=1,id=net0',
       '-device', 'e1000,netdev=net0,id=nic0']


def qtree(vm):
    return [line for line in vm.qmp.hmp('info qtree').splitlines()
            if 'dev: ' in line or 'addr = ' in line]


def upgrade(vm, **kwargs):
    before = sorted(qtree(vm))
    with guest_lives_on(vm, fill=0):
        vm.upgrade(**kwargs)
    assert sorted(qtree(vm)) == before


@pytest.fixture
def changed(boot):
    """A guest of which commands have changed all kinds of things."""
    vm = boot(args=[
        '-object', 'rng-builtin,id=r0', '-chardev', 'null,id=c0', *NET, *RNG,
        '-device', 'virtio-serial-pci,id=serial', '-device', 'e1000'])
    vm.qmp.execute('chardev-remove', id='c0')
    vm.qmp.execute('object-del', id='r0')
    unplug(vm, 'nic0')
    vm.qmp.execute('netdev_del', id='net0')
    vm.qmp.execute('object-add', qom_type='rng-builtin', id='r1')
    vm.qmp.execute('chardev-add', id='c1', backend={
        'type': 'null', 'data': {}})
    vm.qmp.execute('netdev_add', type='hubport', id='net1', hubid=2)
    vm.qmp.execute('device_add', driver='virtio-rng-pci', id='rng1', rng='r1')
    vm.qmp.execute('device_add', driver='virtserialport', id='port1',
                   chardev='c1', bus='serial.0')
    vm.qmp.execute('device_add', driver='virtio-net-pci', id='nic1',
                   netdev='net1')
    return vm


def test_harmless_options(changed):
    before = changes(changed)
    upgrade(changed, arguments=[
        *changed.args, '-name', 'other', '-trace', 'qemu_system_powerdown_request',
        '-object', 'secret,id=new,data=x'])
    assert changed.qmp.execute('query-name')['name'] == 'other'
    assert changes(changed) == before
    upgrade(changed)


def without(args, *left_out):
    """@args without these, each of which comes with its option."""
    return [word for option, value in zip(args[::2], args[1::2])
            if value not in left_out for word in (option, value)]


def pairs(vm):
    """The command line, in which only -nodefaults has no value."""
    assert vm.args[0] == '-nodefaults'
    return vm.args[1:]


def test_what_was_deleted_is_left_out(changed):
    """Of the arguments, too; then it is no news any more."""
    deleted = ['rng-builtin,id=r0', 'null,id=c0', NET[1], NET[3]]
    before = changes(changed)
    upgrade(changed, arguments=[
        '-nodefaults', *without(pairs(changed), *deleted)])
    assert changes(changed) == [c for c in before if 'added' in c]
    assert len(before) == len(changes(changed)) + len(deleted)
    upgrade(changed)
    # its id, and its place, can be had by others
    changed.qmp.execute('netdev_add', type='hubport', id='net0', hubid=1)
    changed.qmp.execute('device_add', driver='virtio-net-pci', id='nic0',
                        netdev='net0')
    upgrade(changed)


def test_what_was_added_is_there(changed):
    """In the arguments as well as in the ledger: made once, and when it is
    deleted it does not come back."""
    upgrade(changed, arguments=[
        *changed.args, '-object', 'rng-builtin,id=r1',
        '-chardev', 'null,id=c1', '-netdev', 'hubport,id=net1,hubid=2',
        '-device', 'virtio-rng-pci,id=rng1,rng=r1',
        '-device', '{"driver":"virtserialport","id":"port1","chardev":"c1"}',
        '-device', 'virtio-net-pci,id=nic1,netdev=net1'])
    upgrade(changed)
    for ident in 'nic1', 'port1', 'rng1':
        unplug(changed, ident)
    changed.qmp.execute('netdev_del', id='net1')
    changed.qmp.execute('chardev-remove', id='c1')
    changed.qmp.execute('object-del', id='r1')
    assert not [c for c in changes(changed) if 'added' in c]
    upgrade(changed)
    assert 'rng1' not in ' '.join(qtree(changed))


def edit(args, old, new):
    assert old in args
    return [new if arg == old else arg for arg in args]


BAD = {
    'option': (lambda a: [*a, '-no-such-option'],
               "'-no-such-option' is no option"),
    'no-argument': (lambda a: [*a, '-name'], "'-name' requires"),
    'help': (lambda a: [*a, '-device', 'help'], 'help'),
    'version': (lambda a: [*a, '--version'], 'help'),
    'json': (lambda a: [*a, '-device', '{"driver":'], '{"driver":'),
    'json-list': (lambda a: [*a, '-object', '{}]'], '{}]'),
    'bad-id': (lambda a: [*a, '-device', 'e1000,id=1'], '1'),
    'twice': (lambda a: [*a, *RNG], "device 'rng' is there twice"),
    'memory': (lambda a: edit(a, '192', '256'),
               "expected '-m 192', found '-m 256'"),
    'cpus': (lambda a: [*a, '-smp', '2'], 'found \'-smp 2\''),
    'machine': (lambda a: edit(a, 'pc', 'q35'), "and not 'q35'"),
    'default-machine': (lambda a: edit(a, 'pc', 'microvm'),
                        "and not 'microvm'"),
    'no-device': (lambda a: ['-nodefaults', *without(a[1:], RNG[1])],
                  "expected device 'rng'"),
    'other-device': (lambda a: edit(a, RNG[1], 'virtio-balloon-pci,id=rng'),
                     'virtio-balloon-pci'),
    'other-place': (lambda a: edit(a, RNG[1], RNG[1] + ',addr=0x10'),
                    'address 0x10'),
    'new-device': (lambda a: [*a, '-device', 'e1000,id=new'], "'new'"),
    'new-device-without-id': (lambda a: [*a, '-device', 'e1000'], 'e1000'),
    'order': (lambda a: ['-nodefaults', *RNG, *without(a[1:], RNG[1])],
              "found device 'rng'"),
    'no-chardev': (lambda a: ['-nodefaults', *without(a[1:], *(
        w for w in a if w.startswith('file,id=console')))], "'console'"),
    'kernel': (lambda a: edit(a, a[a.index('-kernel') + 1], '/nonexistent'),
               "'/nonexistent' can't be read"),
    'no-kernel': (lambda a: ['-nodefaults', *without(
        a[1:], a[a.index('-kernel') + 1])], "expected '-kernel'"),
    'config-file': (lambda a: [*a, '-readconfig', '/nonexistent'],
                    "'/nonexistent' can't be read"),
    'drive': (lambda a: [*a, '-hda', 'image'], '-hda image'),
    'disk': (lambda a: [*a, 'image'], 'image'),
    'no-monitor': (lambda a: ['-nodefaults', *without(
        a[1:], 'chardev=qmp,mode=control')], "'-mon chardev=qmp"),
}


def test_what_would_lose_the_guest(boot):
    """Each is refused, and all that is wrong with one is in its error."""
    vm = boot(args=[*RNG, '-device', 'virtio-balloon-pci'])
    with guest_lives_on(vm):
        for change, reason in BAD.values():
            vm.refused('arguments: ', reason, arguments=change(vm.args))
        vm.refused('-m 256', "'-smp 2'", "'q35'", arguments=[
            *edit(edit(vm.args, '192', '256'), 'pc', 'q35'), '-smp', '2'])
        vm.upgrade(arguments=edit(vm.args, 'pc', 'pc-i440fx-7.2'))


def test_network_backend_of_a_device(boot):
    vm = boot(args=NET)
    vm.refused("netdev 'net0' is missing", arguments=[
        '-nodefaults', *without(pairs(vm), NET[1])])
    vm.upgrade(arguments=vm.args)
