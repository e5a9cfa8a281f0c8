# SPDX-License-Identifier: GPL-2.0-or-later
"""After an upgrade all works as in a process that was never upgraded."""

import pytest

from harness.checks import (check_disk, guest_lives_on, unplug,
                            wait_disk_writes, wait_until)


def disk(make_vm, qemu_img, **kwargs):
    vm = make_vm(**kwargs)
    qemu_img('create', '-f', 'qcow2', vm.dir / 'image', '256M')
    vm.args += ['-drive', f'if=none,id=d,format=qcow2,file={vm.dir}/image',
                '-device', 'virtio-blk-pci,drive=d']
    return vm.boot()


@pytest.mark.parametrize('machine', ['pc', 'q35'])
def test_system_reset(boot, machine):
    vm = boot(machine=machine)
    vm.upgrade()
    first = vm.agent.boot_id
    vm.qmp.execute('system_reset')
    vm.qmp.wait_event('RESET')
    assert vm.agent.wait_ready() != first
    with guest_lives_on(vm):
        vm.upgrade()


@pytest.mark.parametrize('smp', ['1', '4'])
def test_reboot_from_inside_the_guest(boot, smp):
    vm = boot(smp=smp)
    vm.upgrade()
    for _ in range(2):
        first = vm.agent.boot_id
        vm.agent.send('sh reboot -f')
        assert vm.agent.wait_ready() != first
        assert vm.agent.ask('counter')['cpus'] == int(smp)
    with guest_lives_on(vm):
        vm.upgrade()


def test_savevm_and_loadvm(make_vm, qemu_img):
    vm = disk(make_vm, qemu_img)
    memory = vm.agent.ask('mem fill 60')
    vm.upgrade()
    vm.agent.sh('touch /tmp/before')
    assert vm.qmp.hmp('savevm one') == ''
    vm.agent.sh('touch /tmp/after')
    assert vm.qmp.hmp('loadvm one') == ''
    assert vm.agent.sh('ls /tmp/*e*r*') == '/tmp/before\n'
    assert vm.agent.ask('mem verify') == memory
    with guest_lives_on(vm, fill=0):
        vm.upgrade()
    assert 'one' in qemu_img('snapshot', '-U', '-l', vm.dir / 'image')


def test_loadvm_of_a_snapshot_from_before(make_vm, qemu_img):
    vm = disk(make_vm, qemu_img)
    memory = vm.agent.ask('mem fill 60')
    assert vm.qmp.hmp('savevm one') == ''
    vm.agent.sh('touch /tmp/after')
    vm.upgrade()
    assert vm.qmp.hmp('loadvm one') == ''
    assert vm.agent.sh('ls /tmp') == ''
    assert vm.agent.ask('mem verify') == memory


@pytest.mark.parametrize('capability', [None, 'x-ignore-shared'])
def test_migration_to_another_process(boot, make_vm, setup, capability):
    """Guest memory is in files now, but to a migration it is no more shared
    than before: it must be sent."""
    source = boot()
    memory = source.agent.ask('mem fill 75')
    source.upgrade()
    target = make_vm(args=['-incoming', 'defer'], binary=setup.new).start()
    if capability:
        for vm in source, target:
            vm.qmp.execute('migrate-set-capabilities', capabilities=[
                {'capability': capability, 'state': True}])
    source.migrate_to(target)
    assert target.agent.ask('mem verify') == memory
    with guest_lives_on(target, fill=0):
        target.upgrade()
    assert target.agent.ask('mem verify') == memory


def test_migration_settings_stay(boot):
    """libvirt sets capabilities once, when it starts a guest: carried, or
    refused, never forgotten."""
    vm = boot()
    vm.qmp.execute('migrate-set-capabilities', capabilities=[
        {'capability': name, 'state': True}
        for name in ('events', 'auto-converge', 'x-ignore-shared')])
    vm.qmp.execute('migrate-set-parameters', max_bandwidth=12345678)
    if vm.blockers():
        vm.refused('migrat')
        return
    before = vm.qmp.execute('query-migrate-capabilities'), \
        vm.qmp.execute('query-migrate-parameters')
    with guest_lives_on(vm):
        vm.upgrade()
    assert (vm.qmp.execute('query-migrate-capabilities'),
            vm.qmp.execute('query-migrate-parameters')) == before


def test_upgrade_after_migration_was_cancelled(boot, make_vm, setup):
    source = boot()
    target = make_vm(args=['-incoming', 'defer'], binary=setup.new).start()
    uri = f'unix:{target.dir}/migrate'
    target.qmp.execute('migrate-incoming', uri=uri)
    source.qmp.execute('migrate-set-parameters', max_bandwidth=4096)
    source.qmp.execute('migrate', uri=uri)
    source.refused('migration')
    source.qmp.execute('migrate_cancel')
    wait_until(lambda: source.qmp.execute('query-migrate')['status'] ==
               'cancelled')
    with guest_lives_on(source):
        source.upgrade()


@pytest.mark.parametrize('machine', ['pc', 'q35'])
def test_device_add_and_blockdev_add(make_vm, qemu_img, machine):
    vm = make_vm(machine=machine)
    vm.args += ['-device', 'pcie-root-port,id=rp1,chassis=1'] \
        if machine == 'q35' else []
    vm.boot()
    vm.upgrade()
    qemu_img('create', '-f', 'qcow2', vm.dir / 'image', '8M')
    vm.qmp.execute('blockdev-add', driver='qcow2', node_name='n', file={
        'driver': 'file', 'filename': str(vm.dir / 'image')})
    vm.qmp.execute('device_add', driver='virtio-blk-pci', drive='n', id='new',
                   bus='rp1' if machine == 'q35' else 'pci.0')
    vm.agent.wait_path('/dev/vda')
    vm.agent.ask('disk start /dev/vda 4 8')
    wait_disk_writes(vm)
    check_disk(vm)
    unplug(vm, 'new')
    vm.qmp.execute('blockdev-del', node_name='n')
    assert not vm.blockers()
    with guest_lives_on(vm):
        vm.upgrade()


def test_chardev_and_netdev_add(boot):
    vm = boot()
    vm.upgrade()
    vm.qmp.execute('chardev-add', id='c', backend={
        'type': 'ringbuf', 'data': {'size': 64}})
    vm.qmp.execute('netdev_add', type='user', id='n')
    vm.qmp.execute('device_add', driver='e1000', netdev='n', id='nic')
    vm.agent.wait_path('/sys/class/net/eth0')
    vm.qmp.execute('chardev-remove', id='c')


def test_another_upgrade(boot):
    vm = boot()
    with guest_lives_on(vm):
        for count in range(1, 6):
            vm.upgrade()
            assert vm.qmp.execute('query-exec-upgrade')['count'] == count


def test_back_to_the_old_release(boot, setup):
    """An administrator may find the new release wanting."""
    vm = boot()
    with guest_lives_on(vm):
        vm.upgrade()
        vm.upgrade(setup.old)
        vm.upgrade()


def test_block_job(make_vm, qemu_img):
    vm = disk(make_vm, qemu_img)
    vm.agent.sh('dd if=/dev/urandom of=/dev/vda bs=64k count=32 2>/dev/null')
    vm.upgrade()
    vm.qmp.execute('drive-mirror', device='d', sync='full', format='qcow2',
                   target=str(vm.dir / 'copy'), job_id='j')
    vm.qmp.wait_event('BLOCK_JOB_READY')
    vm.qmp.execute('block-job-cancel', device='j')
    vm.qmp.wait_event('BLOCK_JOB_COMPLETED')
    assert 'identical' in qemu_img('compare', '-U', vm.dir / 'image',
                                   vm.dir / 'copy')


def test_quit(boot):
    vm = boot()
    vm.upgrade()
    vm.qmp.execute('quit')
    assert vm.wait_gone() == 0
    assert not (vm.dir / 'qmp').exists(), 'the socket was left behind'
