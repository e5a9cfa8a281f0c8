# SPDX-License-Identifier: GPL-2.0-or-later
"""Disk controllers that are in the middle of something."""

import contextlib

import pytest

from harness.checks import (check_disk, guest_lives_on, wait_disk_writes,
                            wait_until)
from harness.qmp import QMPError
from harness.vm import VM

MIB = 8

DISKS = {
    'ahci': ('q35', 'ide-hd,drive=disk,bus=ide.1', '/dev/sda'),
    'ide': ('pc', 'ide-hd,drive=disk,bus=ide.1', '/dev/sda'),
    'virtio-blk': ('pc', 'virtio-blk-pci,drive=disk', '/dev/vda'),
    'virtio-scsi': ('pc', 'scsi-hd,drive=disk,bus=s.0', '/dev/sda'),
    'usb-storage': ('pc', 'usb-storage,drive=disk', '/dev/sda'),
    'mptsas1068': ('pc', 'scsi-hd,drive=disk,bus=s.0,wwn=1', '/dev/sda'),
}

# QEMU does not save their commands
UNCARRIED = {
    'lsi53c895a': ('pc', 'scsi-hd,id=d,drive=disk,bus=s.0', '/dev/sda'),
    'pvscsi': ('q35', 'scsi-hd,id=d,drive=disk,bus=s.0', '/dev/sda'),
}

CONTROLLERS = {'virtio-scsi': 'virtio-scsi-pci,id=s',
               'usb-storage': 'qemu-xhci',
               **{kind: kind + ',id=s' for kind in ('mptsas1068', *UNCARRIED)}}


def disk_vm(make_vm, kind, blockdev, options=''):
    machine, device, path = {**DISKS, **UNCARRIED}[kind]
    vm = make_vm(machine=machine)
    with open(vm.dir / 'image', 'wb') as f:
        f.truncate(MIB << 20)
    if kind in CONTROLLERS:
        vm.args += ['-device', CONTROLLERS[kind]]
    vm.args += [arg.format(dir=vm.dir) for arg in blockdev]
    vm.args += ['-device', device + options]
    vm.boot()
    vm.agent.wait_path(path)
    return vm, path


SLOW = ['-object', 'throttle-group,id=slow,x-iops-total=500',
        '-blockdev', 'driver=throttle,throttle-group=slow,node-name=disk,'
        'file.driver=file,file.filename={dir}/image']


@contextlib.contextmanager
def upgraded_while_writing(make_vm, kind, upgrade):
    """A guest that wrote with more commands than the disk takes at a time, in
    each of ten calls of @upgrade. It lives on until the end of the block."""
    vm, path = disk_vm(make_vm, kind, SLOW)
    vm.agent.ask(f'disk start {path} 8 {MIB}')
    with guest_lives_on(vm, fill=0):
        for _ in range(10):
            wait_disk_writes(vm, path, 3)
            upgrade(vm)
        wait_disk_writes(vm, path)
        check_disk(vm, path)
        yield vm, path


@pytest.mark.parametrize('kind', DISKS)
def test_requests_wait_in_the_controller(make_vm, kind):
    with upgraded_while_writing(make_vm, kind, VM.upgrade):
        pass


FAILING = ['-blockdev', 'driver=blkdebug,node-name=disk,'
           'inject-error.0.event=none,inject-error.0.iotype=write,'
           'inject-error.0.errno=28,inject-error.0.once=on,image.driver=file,'
           'image.filename={dir}/image']


def start_failing(vm, path):
    """Returns once the guest is stopped, perhaps before its answer."""
    start = vm.agent.send(f'disk start {path} 8 {MIB}')
    vm.qmp.wait_event('STOP')
    return start


def stopped_on_error(make_vm, kind):
    vm, path = disk_vm(make_vm, kind, FAILING, ',werror=stop,rerror=stop')
    return vm, path, start_failing(vm, path)


def go_on_writing(vm, path, start):
    vm.qmp.execute('cont')
    vm.agent.reply(start)
    wait_disk_writes(vm, path)
    check_disk(vm, path)


@pytest.mark.parametrize('kind', DISKS)
def test_stopped_on_a_write_error(make_vm, kind):
    """The requests that failed, and those behind them, are in the device;
    they are done when the guest goes on, and not before."""
    vm, path, start = stopped_on_error(make_vm, kind)
    image = vm.dir / 'image'
    for _ in range(2):
        assert vm.qmp.execute('query-status')['status'] == 'io-error'
        before = image.read_bytes()
        vm.upgrade()
        assert image.read_bytes() == before
        # the new process's node fails once, too
        vm.qmp.execute('cont')
        vm.qmp.wait_event('STOP')
    go_on_writing(vm, path, start)
    vm.agent.check_log()


UNDER_WAY = "'d' is in the middle of a SCSI command"


@pytest.mark.parametrize('kind', UNCARRIED)
def test_refused_while_commands_wait(make_vm, kind):
    """A guest that writes may be refused, and notices nothing."""
    def upgrade(vm):
        try:
            vm.upgrade()
        except QMPError as error:
            assert UNDER_WAY in error.desc and kind in error.desc
    with upgraded_while_writing(make_vm, kind, upgrade) as (vm, path):
        vm.agent.check_log()
        upgrade_idle(vm, path)


@pytest.mark.parametrize('kind', UNCARRIED)
def test_refused_when_stopped_on_a_write_error(make_vm, kind):
    vm, path, start = stopped_on_error(make_vm, kind)
    vm.refused(UNDER_WAY, kind)
    assert any(UNDER_WAY in text for text in vm.blockers())
    go_on_writing(vm, path, start)
    upgrade_idle(vm, path, fails=True)


def upgrade_idle(vm, path, fails=False):
    """Without commands there is nothing that the controller would lose."""
    vm.upgrade()
    if fails:       # the new process's node, once too
        del vm.qmp.events[:]
        go_on_writing(vm, path, start_failing(vm, path))
    else:
        vm.agent.ask(f'disk start {path} 8 {MIB}')
        wait_disk_writes(vm, path)
        check_disk(vm, path)


def test_usb_storage_answers_wait_for_the_guest(make_vm):
    """The guest has sent a command and not fetched the answer."""
    vm, path = disk_vm(make_vm, 'usb-storage', [
        '-blockdev', 'driver=file,node-name=disk,filename={dir}/image'])
    done = '/tmp/rescans'
    vm.agent.sh(f'(while echo 1 > /sys/block/sda/device/rescan; do '
                f'echo >> {done}; done) > /dev/null 2>&1 &')

    def rescans():
        return int(vm.agent.sh(f'wc -l < {done}'))
    with guest_lives_on(vm, fill=0):
        for _ in range(20):
            before = rescans()
            wait_until(lambda: rescans() > before)
            vm.upgrade()
        before = rescans()
        wait_until(lambda: rescans() > before)
        assert int(vm.agent.sh(f'blockdev --getsize64 {path}')) == MIB << 20


@pytest.mark.parametrize('kind', ['ahci', 'ide'])
def test_paused_guest_stays_paused(make_vm, kind):
    """No command is begun before the guest runs."""
    vm, path = disk_vm(
        make_vm, kind, ['-blockdev', 'driver=file,node-name=disk,'
                        'filename={dir}/image'])
    vm.agent.ask(f'disk start {path} 8 {MIB}')
    wait_disk_writes(vm, path)
    for _ in range(5):
        vm.qmp.execute('stop')
        image = (vm.dir / 'image').read_bytes()
        vm.upgrade()
        vm.upgrade()
        assert (vm.dir / 'image').read_bytes() == image
        vm.qmp.execute('cont')
        wait_disk_writes(vm, path, 5)
    check_disk(vm, path)
