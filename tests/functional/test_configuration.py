# SPDX-License-Identifier: GPL-2.0-or-later
"""What was changed since start is refused by name, or carried."""

import shutil

import pytest

from harness.checks import guest_lives_on

ARGS = [
    '-drive', 'if=none,id=d0,format=qcow2,file={dir}/a',
    '-device', 'virtio-blk-pci,drive=d0,id=disk0',
    '-drive', 'if=none,id=cd0,media=cdrom,format=raw,file={dir}/b',
    '-device', 'ide-cd,drive=cd0,id=cd',
    '-blockdev', 'driver=qcow2,node-name=spare,file.driver=file,'
    'file.filename={dir}/q,file.node-name=spare-file',
    '-object', 'rng-random,id=used', '-device', 'virtio-rng-pci,rng=used',
    '-nic', 'hubport,hubid=1,id=hub,model=e1000',
    '-chardev', 'null,id=nothing',
]


TAKEN_BACK = 'taken back'


@pytest.fixture
def vm(make_vm, qemu_img):
    result = make_vm()
    for name in 'bc':
        (result.dir / name).write_bytes(bytes(1 << 20))
    for name in 'aq':
        qemu_img('create', '-f', 'qcow2', result.dir / name, '1M')
    result.args += [arg.format(dir=result.dir) for arg in ARGS]
    result.boot()
    assert not result.blockers()
    return result


# Each makes a change, yields the reasons expected, and may take it back

def netdev_del(vm):
    vm.qmp.execute('netdev_del', id='hub')
    yield "network backend of 'e1000.0' was removed"


def object_del(vm):
    vm.qmp.execute('object-del', id='used')
    yield "object 'used' was removed"


def gdbserver(vm):
    vm.qmp.hmp(f'gdbserver unix:{vm.dir}/gdb,server=on,wait=off')
    yield "character device 'gdb' was added"


def backup_job(vm):
    vm.qmp.execute('drive-backup', job_id='j7', device='d0', sync='full',
                   target=str(vm.dir / 'backup'), auto_finalize=False)
    yield "job 'j7' (backup) is"


CHANGES = [netdev_del, object_del, gdbserver, backup_job]


@pytest.mark.parametrize('change', CHANGES, ids=lambda f: f.__name__)
def test_change_is_refused(vm, change):
    """One that is taken back is no reason any more."""
    steps = change(vm)
    reasons = next(steps)
    vm.refused(*([reasons] if isinstance(reasons, str) else reasons))
    vm.agent.ask('counter')
    if next(steps, None) == TAKEN_BACK:
        assert not vm.blockers()
        vm.upgrade()


def test_all_reasons_in_one_error(vm):
    steps = [change(vm) for change in (netdev_del, object_del)]
    reasons = [next(step) for step in steps]
    vm.refused(*reasons)
    assert len(vm.blockers()) == len(reasons)


def test_use_is_no_change(vm):
    """What users and guests do all day does not look like one."""
    qmp = vm.qmp
    with guest_lives_on(vm):
        qmp.execute('stop')
        qmp.execute('cont')
        for line in ('info qtree', 'info mtree', 'info block -v', 'info pci',
                     'info chardev', 'info network', 'info roms',
                     'sendkey a'):
            qmp.hmp(line)
        for query in ('query-block', 'query-blockstats', 'query-chardev',
                      'query-named-block-nodes', 'query-memory-devices',
                      'query-cpu-definitions', 'query-hotpluggable-cpus'):
            qmp.execute(query)
        qmp.execute('device-list-properties', typename='virtio-blk-pci')
        qmp.execute('qom-get', path='/machine/peripheral/disk0',
                    property='realized')
        qmp.execute('blockdev-open-tray', id='cd', force=True)
        qmp.execute('blockdev-close-tray', id='cd')
        vm.agent.wait_path('/dev/vda')
        vm.agent.sh('dd if=/dev/vda of=/dev/null bs=64k; '
                    'dd if=/dev/zero of=/dev/vda bs=64k count=4; sync')
        assert not vm.blockers()
        assert not qmp.hmp('savevm one')
        assert not vm.blockers()
        vm.upgrade()
        assert not vm.blockers()
        vm.upgrade()


def test_reset_is_no_change(vm):
    vm.qmp.execute('system_reset')
    vm.agent.wait_ready()
    assert not vm.blockers()
    vm.upgrade()


def test_actions_are_carried(boot):
    """Those of the command line, and those set since."""
    vm = boot(args=['-no-shutdown', '-device', 'i6300esb', '-action',
                    'watchdog=pause'])
    vm.upgrade()
    vm.qmp.execute('set-action', panic='none', reboot='shutdown',
                   watchdog='inject-nmi')
    vm.upgrade()
    vm.qmp.execute('system_reset')
    vm.qmp.wait_event('SHUTDOWN')
    assert vm.qmp.execute('query-status')['status'] == 'shutdown'
    vm.upgrade()


def test_migration_settings_are_carried(boot):
    def settings():
        on = {c['capability'] for c in
              vm.qmp.execute('query-migrate-capabilities') if c['state']}
        return on, vm.qmp.execute('query-migrate-parameters')
    vm = boot()
    vm.qmp.execute('migrate-set-capabilities', capabilities=[
        {'capability': name, 'state': True}
        for name in ('events', 'multifd', 'auto-converge')])
    vm.qmp.execute('migrate-set-parameters', multifd_channels=5,
                   downtime_limit=1234, tls_hostname='name')
    before = settings()
    vm.upgrade()
    assert settings() == before
    assert before[1]['multifd-channels'] == 5
    vm.upgrade()
    assert settings() == before


def test_file_that_start_needs_is_gone(make_vm, setup):
    """The new process would not start without it."""
    vm = make_vm()
    kernel = vm.dir / 'kernel'
    shutil.copy(setup.image.fast_kernel, kernel)
    secret = vm.dir / 'secret'
    secret.write_text('x')
    vm.args[vm.args.index('-kernel') + 1] = str(kernel)
    vm.args += ['-object', f'secret,id=s,file={secret}']
    vm.boot()
    kernel.rename(vm.dir / 'moved')
    secret.unlink()
    vm.refused('the kernel', str(kernel), "secret 's'", str(secret))
    (vm.dir / 'moved').rename(kernel)
    secret.write_text('x')
    vm.upgrade()


def test_preconfig(make_vm):
    """What the command line says is rebuilt, what commands made is not."""
    vm = make_vm(args=['-object', 'iothread,id=io'], preconfig=True).start()
    vm.qmp.execute('x-exit-preconfig')
    vm.agent.wait_ready()
    vm.upgrade()


def test_changed_in_preconfig(make_vm):
    vm = make_vm(preconfig=True).start()
    vm.qmp.reply(vm.qmp.send('object-add', {
        'qom-type': 'memory-backend-ram', 'id': 'm7', 'size': 192 << 20}))
    vm.qmp.execute('set-numa-node', type='node', nodeid=0, memdev='m7')
    vm.qmp.execute('x-exit-preconfig')
    vm.agent.wait_ready()
    vm.refused("object 'm7' was added", 'set-numa-node')
