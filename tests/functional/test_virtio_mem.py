# SPDX-License-Identifier: GPL-2.0-or-later
"""virtio-mem discards memory when it starts and is reset, but not what the
guest has plugged."""

import pytest

from harness.checks import guest_lives_on, wait_until

MIB = 1 << 20

BACKENDS = ['memory-backend-ram', 'memory-backend-ram,share=on',
            'memory-backend-memfd']


@pytest.fixture(params=BACKENDS)
def vm(boot, request):
    return boot(memory='192,slots=1,maxmem=1G', args=[
        '-object', f'{request.param},id=m,size=256M', '-device',
        'virtio-mem-pci,id=vmem,memdev=m,requested-size=128M'],
        append='memhp_default_state=online')


def plugged(vm):
    device, = vm.qmp.execute('query-memory-devices')
    return device['data']['size']


def wait_plugged(vm, size):
    """Until the guest has taken it, and uses it."""
    wait_until(lambda: plugged(vm) == size)
    wait_until(lambda: int(vm.agent.sh(
        "awk '/^MemTotal/ { print $2 }' /proc/meminfo")) << 10 > size)


def resize(vm, size):
    vm.qmp.execute('qom-set', path='/machine/peripheral/vmem',
                   property='requested-size', value=size)
    wait_plugged(vm, size)


def upgrade(vm):
    # the guest may still be taking or giving back memory in its own time
    vm.upgrade(events=['MEMORY_DEVICE_SIZE_CHANGE'])


def test_memory_stays(vm):
    wait_plugged(vm, 128 * MIB)
    with guest_lives_on(vm, fill=75):
        upgrade(vm)
        assert plugged(vm) == 128 * MIB
        upgrade(vm)
    assert plugged(vm) == 128 * MIB


def test_resized_before_and_after(vm):
    """What was unplugged stays so, what is asked for later is given."""
    resize(vm, 256 * MIB)
    resize(vm, 64 * MIB)
    with guest_lives_on(vm):
        upgrade(vm)
    assert plugged(vm) == 64 * MIB
    resize(vm, 192 * MIB)
    memory = vm.agent.ask('mem verify')
    upgrade(vm)
    assert vm.agent.ask('mem verify') == memory
    assert plugged(vm) == 192 * MIB


def test_reset_unplugs(vm):
    """As without an upgrade."""
    upgrade(vm)
    vm.qmp.execute('system_reset')
    vm.agent.wait_ready()
    wait_plugged(vm, 128 * MIB)
    with guest_lives_on(vm, fill=75):
        upgrade(vm)
