# SPDX-License-Identifier: GPL-2.0-or-later
"""What the guest was doing, and what is to happen when it ends, stays."""

import os
import re
import subprocess

import pytest

from harness.checks import guest_lives_on, wait_until


def status(vm):
    return vm.qmp.execute('query-status')['status']


def test_running(boot):
    vm = boot()
    with guest_lives_on(vm):
        vm.upgrade()
    assert status(vm) == 'running'


def test_paused_by_the_user(boot):
    vm = boot()
    with guest_lives_on(vm):
        vm.qmp.execute('stop')
        vm.upgrade()
        vm.upgrade()
        assert status(vm) == 'paused'
        vm.qmp.execute('cont')
        vm.qmp.wait_event('RESUME')


def test_paused_guest_does_not_run(boot):
    """Not even for a moment: a byte sent to it stays where it is."""
    vm = boot()
    vm.qmp.execute('stop')
    ident = vm.agent.send('counter')
    vm.upgrade()
    vm.agent.sock.settimeout(0.3)
    with pytest.raises(TimeoutError):
        vm.agent.sock.recv(1)
    vm.qmp.execute('cont')
    assert 'boot_id' in vm.agent.reply(ident)


def test_never_started(make_vm):
    vm = make_vm(args=['-S']).start()
    assert status(vm) == 'prelaunch'
    vm.upgrade()
    assert status(vm) == 'prelaunch'
    vm.qmp.execute('cont')
    vm.agent.wait_ready()
    with guest_lives_on(vm):
        vm.upgrade()


@pytest.mark.parametrize('machine', ['pc', 'q35'])
def test_suspended(boot, setup, machine):
    # the unpacked kernel would be loaded anew, over itself, at each wakeup
    vm = boot(machine=machine, kernel=setup.image.kernel)
    with guest_lives_on(vm):
        ident = vm.agent.send('sh echo mem > /sys/power/state')
        vm.qmp.wait_event('SUSPEND')
        assert status(vm) == 'suspended'
        vm.upgrade()
        vm.upgrade()
        assert status(vm) == 'suspended'
        vm.qmp.execute('system_wakeup')
        vm.qmp.wait_event('WAKEUP')
        vm.agent.reply(ident)
        assert status(vm) == 'running'
        if machine == 'pc':     # on q35 this guest can sleep only once
            ident = vm.agent.send('sh echo mem > /sys/power/state')
            vm.qmp.wait_event('SUSPEND')
            vm.qmp.execute('system_wakeup')
            vm.agent.reply(ident)


@pytest.fixture
def small_disk(tmp_path):
    """A folder with room for 1 MiB, which can be made to grow."""
    if subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=1M', 'none',
                       tmp_path], check=False).returncode:
        pytest.skip('no right to mount a tmpfs')
    yield tmp_path
    subprocess.run(['umount', '-l', tmp_path], check=True)


def test_stopped_on_an_io_error(boot, small_disk):
    """The disk is full; after the upgrade there is room, and the request
    that failed is done."""
    image = small_disk / 'image'
    with open(image, 'wb') as f:
        f.truncate(4 << 20)
    vm = boot(args=['-drive', f'if=virtio,format=raw,file={image},'
                    'werror=stop,id=d'])
    vm.agent.wait_path('/dev/vda')
    ident = vm.agent.send('sh dd if=/dev/urandom of=/tmp/x bs=64k count=64 '
                          '2>/dev/null; dd if=/tmp/x of=/dev/vda bs=64k '
                          'oflag=direct 2>&1 && cmp /tmp/x /dev/vda')
    vm.qmp.wait_event('BLOCK_IO_ERROR')
    vm.qmp.wait_event('STOP')
    assert status(vm) == 'io-error'
    vm.upgrade()
    assert status(vm) == 'io-error'
    subprocess.run(['mount', '-o', 'remount,size=8M', small_disk], check=True)
    vm.qmp.execute('cont')
    vm.agent.reply(ident)
    assert status(vm) == 'running'
    vm.agent.check_log()


# What happens when the guest ends

def shutdown_reason(vm):
    return vm.qmp.wait_event('SHUTDOWN')['data']['reason']


def test_no_reboot(boot):
    vm = boot(args=['-no-reboot'])
    vm.upgrade()
    vm.agent.send('sh reboot -f')
    assert shutdown_reason(vm) == 'guest-reset'
    vm.qmp.wait_closed()
    assert vm.process.wait(10) == 0


def test_no_shutdown(boot):
    vm = boot(args=['-no-shutdown'])
    vm.upgrade()
    vm.agent.send('sh poweroff -f')
    assert shutdown_reason(vm) == 'guest-shutdown'
    vm.qmp.wait_event('STOP')
    assert status(vm) == 'shutdown'


def test_poweroff(boot):
    vm = boot()
    vm.upgrade()
    vm.agent.send('sh poweroff -f')
    assert shutdown_reason(vm) == 'guest-shutdown'
    vm.qmp.wait_closed()
    assert vm.process.wait(10) == 0


def test_powerdown_button(boot):
    vm = boot()
    vm.agent.sh('modprobe evdev button')
    path = '/dev/input/' + wait_until(lambda: re.search(
        'Name="Power Button".*?(event[0-9]+)',
        vm.agent.sh('cat /proc/bus/input/devices'), re.S))[1]
    vm.upgrade()
    vm.agent.sh(f'dd if={path} of=/tmp/key bs=24 count=1 '
                '2>/dev/null & true')

    def pressed():
        vm.qmp.execute('system_powerdown')
        return vm.agent.sh('stat -c %s /tmp/key 2>&1; true') == '24\n'
    wait_until(pressed)


@pytest.mark.parametrize('action', ['shutdown', 'pause'])
def test_panic_action(boot, action):
    vm = boot(args=['-device', 'pvpanic', '-action', f'panic={action}'])
    vm.agent.wait_path('/sys/bus/platform/drivers/pvpanic-mmio/QEMU0001:00')
    vm.upgrade()
    vm.agent.send('sh echo c > /proc/sysrq-trigger')
    vm.qmp.wait_event('GUEST_PANICKED')
    if action == 'shutdown':
        vm.qmp.wait_closed()
        assert vm.process.wait(10) == 0
    else:
        vm.qmp.wait_event('STOP')
        assert status(vm) == 'guest-panicked'


def test_action_set_at_run_time(boot):
    """libvirt sends set-action: carried or refused, never forgotten."""
    vm = boot()
    vm.qmp.execute('set-action', reboot='shutdown', shutdown='pause')
    if vm.blockers():
        vm.refused('action')
        return
    vm.upgrade()
    vm.agent.send('sh reboot -f')
    assert shutdown_reason(vm) == 'guest-reset'
    vm.qmp.wait_event('STOP')
    assert status(vm) == 'shutdown'


@pytest.mark.parametrize('state', ['guest-panicked', 'shutdown'])
def test_ended_guest(boot, state):
    """A guest that is over: it stays as it is, or the upgrade is refused."""
    vm = boot(args=['-device', 'pvpanic', '-action', 'panic=pause',
                    '-no-shutdown'])
    vm.agent.wait_path('/sys/bus/platform/drivers/pvpanic-mmio/QEMU0001:00')
    vm.agent.send('sh ' + ('poweroff -f' if state == 'shutdown'
                           else 'echo c > /proc/sysrq-trigger'))
    vm.qmp.wait_event('STOP')
    assert status(vm) == state
    if vm.blockers():
        vm.refused(state)
    else:
        vm.upgrade()
        assert status(vm) == state
    vm.qmp.execute('system_reset')
    vm.qmp.execute('cont')
    vm.agent.wait_ready()


def test_paused_by_the_watchdog(boot):
    vm = boot(args=['-device', 'i6300esb', '-action', 'watchdog=pause'])
    vm.agent.wait_path('/dev/watchdog')
    vm.agent.sh('watchdog -T 2 -t 1 /dev/watchdog; killall -9 watchdog')
    vm.qmp.wait_event('WATCHDOG')
    vm.qmp.wait_event('STOP')
    assert status(vm) == 'watchdog'
    if vm.blockers():
        vm.refused('watchdog')
    else:
        vm.upgrade()
        assert status(vm) == 'watchdog'
    vm.qmp.execute('cont')
    assert vm.agent.ask('counter')['counter'] > 0


def test_launcher_sees_exit_status(boot):
    """The launcher's child is the same process to the end."""
    vm = boot()
    vm.upgrade()
    vm.upgrade()
    vm.qmp.execute('quit')
    assert vm.process.wait(10) == 0
    assert not os.path.exists(f'/proc/{vm.pid}')
