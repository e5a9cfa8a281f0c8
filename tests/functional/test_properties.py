# SPDX-License-Identifier: GPL-2.0-or-later
"""Properties that commands have set, and trace events that they switched."""

import pytest

from harness.checks import wait_until
from harness.qmp import QMPError

OBJECTS = ['-object', 'iothread,id=io', '-object',
           'throttle-group,id=tg,x-iops-total=100',
           '-device', 'virtio-balloon-pci,id=balloon']


@pytest.fixture
def vm(make_vm):
    """Nothing runs in it."""
    return make_vm(OBJECTS, kernel=False, memory='16').start()


def get(vm, path, name):
    return vm.qmp.execute('qom-get', path=path, property=name)


def test_set(vm):
    io = '/objects/io'
    before = get(vm, io, 'poll-grow')
    vm.qmp.execute('qom-set', path='io', property='poll-max-ns', value=4711)
    vm.qmp.hmp(f'qom-set {io} aio-max-batch 7')
    vm.qmp.hmp(f'qom-set -j {io} poll-shrink 3')
    for _ in range(2):
        vm.upgrade()
        assert [get(vm, io, name) for name in (
            'poll-max-ns', 'aio-max-batch', 'poll-shrink', 'poll-grow')] == \
            [4711, 7, 3, before]
    vm.qmp.execute('qom-set', path=io, property='poll-max-ns', value=0)
    vm.upgrade()
    assert get(vm, io, 'poll-max-ns') == 0


def test_set_is_what_it_is_now(vm):
    """Not what the command has set: balloon's is counted by another one."""
    path = '/machine/peripheral/balloon'
    name = 'guest-stats-polling-interval'
    vm.qmp.execute('qom-set', path=path, property=name, value=9)
    vm.upgrade()
    assert get(vm, path, name) == 9
    vm.qmp.execute('qom-set', path=path, property=name, value=0)
    vm.upgrade()
    assert get(vm, path, name) == 0


def test_limits(vm):
    path = '/objects/tg'
    vm.qmp.execute('qom-set', path=path, property='limits',
                   value={'iops-total': 500, 'iops-size': 4096})
    limits = get(vm, path, 'limits')
    for _ in range(2):
        vm.upgrade()
        assert get(vm, path, 'limits') == limits
    assert (limits['iops-total'], limits['iops-size']) == (500, 4096)


def test_refused_is_not_carried(vm):
    """What could not be set, or is not there, leaves nothing behind."""
    for arguments in ({'path': '/objects/io', 'property': 'poll-max-ns',
                       'value': -1},
                      {'path': '/objects/io', 'property': 'no', 'value': 1},
                      {'path': '/objects/no', 'property': 'no', 'value': 1}):
        with pytest.raises(QMPError):
            vm.qmp.execute('qom-set', **arguments)
    before = get(vm, '/objects/io', 'poll-max-ns')
    vm.upgrade()
    assert get(vm, '/objects/io', 'poll-max-ns') == before


def trace_state(vm, name):
    event, = vm.qmp.execute('trace-event-get-state', name=name)
    return event['state']


def test_trace_events(make_vm):
    """One of the command line that is off, and one that is on since."""
    off, on = 'system_wakeup_request', 'qemu_system_powerdown_request'
    vm = make_vm([*OBJECTS, '-trace', off], kernel=False, memory='16').start()
    assert trace_state(vm, off) == 'enabled'
    vm.qmp.execute('trace-event-set-state', name=off, enable=False)
    vm.qmp.execute('trace-event-set-state', name=on, enable=True)
    for _ in range(2):
        vm.upgrade()
        assert trace_state(vm, off) == 'disabled'
        assert trace_state(vm, on) == 'enabled'
    vm.qmp.execute('system_powerdown')
    wait_until(lambda: on in vm.stderr_path.read_text())
