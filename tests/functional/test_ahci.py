# SPDX-License-Identifier: GPL-2.0-or-later
"""Disk controllers that are in the middle of something."""

import pytest

from harness.checks import check_disk, guest_lives_on, wait_disk_writes

MIB = 8

DISKS = {
    'ahci': ('q35', 'ide-hd,drive=disk,bus=ide.1', '/dev/sda'),
    'ide': ('pc', 'ide-hd,drive=disk,bus=ide.1', '/dev/sda'),
    'virtio-blk': ('pc', 'virtio-blk-pci,drive=disk', '/dev/vda'),
    'virtio-scsi': ('pc', 'scsi-hd,drive=disk,bus=s.0', '/dev/sda'),
}


def disk_vm(make_vm, kind, blockdev, options=''):
    machine, device, path = DISKS[kind]
    vm = make_vm(machine=machine)
    with open(vm.dir / 'image', 'wb') as f:
        f.truncate(MIB << 20)
    if kind == 'virtio-scsi':
        vm.args += ['-device', 'virtio-scsi-pci,id=s']
    vm.args += [arg.format(dir=vm.dir) for arg in blockdev]
    vm.args += ['-device', device + options]
    vm.boot()
    vm.agent.wait_path(path)
    return vm, path


@pytest.mark.parametrize('kind', DISKS)
def test_requests_wait_in_the_controller(make_vm, kind):
    """More commands than the disk takes at a time, in every upgrade."""
    vm, path = disk_vm(
        make_vm, kind, ['-object', 'throttle-group,id=slow,x-iops-total=300',
                        '-blockdev', 'driver=throttle,throttle-group=slow,'
                        'node-name=disk,file.driver=file,'
                        'file.filename={dir}/image'])
    vm.agent.ask(f'disk start {path} 8 {MIB}')
    with guest_lives_on(vm, fill=0):
        for _ in range(10):
            wait_disk_writes(vm, path, 3)
            vm.upgrade()
        wait_disk_writes(vm, path)
        check_disk(vm, path)


FAILING = ['-blockdev', 'driver=blkdebug,node-name=disk,'
           'inject-error.0.event=none,inject-error.0.iotype=write,'
           'inject-error.0.errno=28,inject-error.0.once=on,image.driver=file,'
           'image.filename={dir}/image']


@pytest.mark.parametrize('kind', DISKS)
def test_stopped_on_a_write_error(make_vm, kind):
    """The requests that failed, and those behind them, are in the device;
    they are done when the guest goes on, and not before."""
    vm, path = disk_vm(make_vm, kind, FAILING, ',werror=stop,rerror=stop')
    # the guest may be stopped before it answers
    start = vm.agent.send(f'disk start {path} 8 {MIB}')
    vm.qmp.wait_event('STOP')
    image = vm.dir / 'image'
    for _ in range(2):
        assert vm.qmp.execute('query-status')['status'] == 'io-error'
        before = image.read_bytes()
        vm.upgrade()
        assert image.read_bytes() == before
        # the new process's node fails once, too
        vm.qmp.execute('cont')
        vm.qmp.wait_event('STOP')
    vm.qmp.execute('cont')
    vm.agent.reply(start)
    wait_disk_writes(vm, path)
    check_disk(vm, path)
    vm.agent.check_log()


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
