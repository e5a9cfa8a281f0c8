# SPDX-License-Identifier: GPL-2.0-or-later
"""dbus-vmstate: the helpers, whose state it migrates, live on with the
guest."""

import pytest

from harness.checks import guest_lives_on
from harness.dbus import Bus, Helper

WAYS = ['command-line', 'object-add']


@pytest.fixture
def dbus():
    """Makes a bus, or a helper, that ends with the test."""
    made = []

    def make(kind, *args, **kwargs):
        made.append(kind(*args, **kwargs))
        return made[-1]
    yield make
    while made:
        made.pop().close()


def boot_with_bus(vm, dbus, way):
    bus = dbus(Bus, vm.dir)
    options = {'addr': bus.address, 'id-list': 'helper'}
    if way == 'command-line':
        vm.args += ['-object', 'dbus-vmstate,id=dbus,' + ','.join(
            f'{key}={value}' for key, value in options.items())]
    vm.boot()
    if way == 'object-add':
        vm.qmp.execute('object-add', qom_type='dbus-vmstate', id='dbus',
                       **options)
    return bus


@pytest.mark.parametrize('way', WAYS)
def test_helper_keeps_its_state(make_vm, dbus, way):
    """It is asked for nothing; what it was and did meanwhile stays.  A later
    migration takes its state along."""
    vm = make_vm()
    bus = boot_with_bus(vm, dbus, way)
    helper = dbus(Helper, bus, 'helper', b'before')
    with guest_lives_on(vm):
        for _ in range(2):
            vm.upgrade()
    assert not helper.calls

    helper.state = b'after'
    target = make_vm(args=['-incoming', 'defer'])
    target_bus = dbus(Bus, target.dir)
    there = dbus(Helper, target_bus, 'helper', b'')
    target.args += ['-object', f'dbus-vmstate,id=dbus,id-list=helper,'
                    f'addr={target_bus.address}']
    vm.migrate_to(target.start())
    assert helper.calls == ['Save'] and there.calls == ['Load']
    assert there.state == b'after'
    target.agent.check_log()


@pytest.mark.parametrize('way', WAYS)
def test_helper_that_fails_or_is_gone(make_vm, dbus, way):
    """It is not needed."""
    vm = make_vm()
    bus = boot_with_bus(vm, dbus, way)
    failing = Helper(bus, 'helper', b'', error=True)
    with guest_lives_on(vm):
        vm.upgrade()
        failing.close()
        vm.upgrade()
    vm.qmp.execute('object-del', id='dbus')
    vm.upgrade()


@pytest.mark.parametrize('way', WAYS)
def test_bus_that_is_gone(make_vm, dbus, way):
    """The new process could not connect to it."""
    vm = make_vm()
    bus = boot_with_bus(vm, dbus, way)
    bus.process.kill()
    bus.process.wait()
    with guest_lives_on(vm):
        vm.refused("object 'dbus'", bus.address)
        dbus(Bus, vm.dir)
        vm.upgrade()
