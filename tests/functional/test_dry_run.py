# SPDX-License-Identifier: GPL-2.0-or-later
"""A dry run: a stand-in loads the guest, and nothing else has changed."""

import os
import shutil
import signal
from pathlib import Path

import pytest
from harness.checks import (check_disk, check_image_locked, guest_lives_on,
                            wait_disk_writes, wait_until)
from harness.qmp import QMPError


@pytest.fixture(name='vm')
def vm_fixture(make_vm):
    """A guest that writes to a disk, and a NIC whose ROM can be taken away."""
    vm = make_vm()
    image, rom = vm.dir / 'disk.qcow2', vm.dir / 'rom'
    vm.setup.qemu_img('create', '-q', '-f', 'qcow2', str(image), '64M')
    shutil.copy('/usr/lib/ipxe/qemu/efi-virtio.rom', rom)
    vm.args += ['-drive', f'if=virtio,format=qcow2,file={image}',
                '-netdev', 'user,id=net0', '-device',
                f'virtio-net-pci,netdev=net0,romfile={rom}',
                '-chardev', f'socket,id=hmp,path={vm.dir}/hmp,server=on,'
                'wait=off', '-mon', 'hmp']
    vm.boot()
    vm.agent.wait_path('/dev/vda')
    vm.agent.settle()
    vm.agent.ask('disk start /dev/vda 4 8')
    return vm


def children(vm):
    return Path(f'/proc/{vm.pid}/task/{vm.pid}/children').read_text().split()


def test_guest_lives_on(vm):
    with guest_lives_on(vm):
        for _ in range(3):
            wait_disk_writes(vm)
            result = vm.dry_run()
            check_image_locked(vm, vm.dir / 'disk.qcow2', 'qcow2')
    assert [p['name'] for p in result['phases']] == [
        'check', 'prepare', 'plan', 'build', 'quiesce', 'save', 'load']
    # and the real one is none the worse for it
    with guest_lives_on(vm):
        vm.upgrade()
        vm.dry_run(vm.setup.old)
    check_disk(vm)


def test_version(vm):
    new = vm.setup.new
    assert vm.dry_run()['to'] == vm.upgrade(new)['to']


@pytest.mark.parametrize('state', ['paused', 'prelaunch'])
def test_guest_that_does_not_run(make_vm, state):
    vm = make_vm(args=['-S'] if state == 'prelaunch' else [])
    if state == 'prelaunch':
        vm.start()
    else:
        vm.boot()
        vm.qmp.execute('stop')
    vm.dry_run()
    vm.qmp.execute('cont')
    assert vm.qmp.execute('query-status')['running']


def test_guest_memory_is_not_written(vm):
    """What a device writes when it is loaded is the stand-in's only."""
    vm.qmp.execute('stop')

    def memory():
        path = vm.dir / 'memory'
        vm.qmp.execute('pmemsave', val=0, size=128 << 20, filename=str(path))
        return path.read_bytes()
    before = memory()
    vm.dry_run()
    assert memory() == before


def fails(vm, *reasons, **arguments):
    """A dry run that fails, which only the one who asked for it learns."""
    with guest_lives_on(vm):
        del vm.qmp.events[:]
        with pytest.raises(QMPError) as caught:
            vm.qmp.reply(vm.qmp.send('exec-upgrade', {'dry-run': True,
                                                      **arguments}))
        assert not vm.qmp.events and not children(vm)
    for reason in reasons:
        assert reason in str(caught.value), caught.value
    wait_disk_writes(vm)
    check_image_locked(vm, vm.dir / 'disk.qcow2', 'qcow2')


def test_new_binary_that_lacks_a_library(vm):
    data = Path(vm.setup.new).read_bytes()
    assert b'libaio.so.1\0' in data
    binary = vm.dir / 'qemu-without-library'
    binary.write_bytes(data.replace(b'libaio.so.1\0', b'libaio.so.9\0'))
    binary.chmod(0o755)
    fails(vm, 'while it was built', 'status 127', 'libaio.so.9',
          binary=str(binary))
    vm.dry_run()


def test_file_that_start_up_misses(vm):
    (vm.dir / 'rom').unlink()
    fails(vm, 'while it was built', 'status 1', 'rom', binary=vm.setup.new)


def test_stand_in_that_is_killed(vm):
    """Its start-up waits for a file for as long as the test wants."""
    waits_for_rom(vm)
    ident = vm.qmp.send('exec-upgrade', {'binary': vm.setup.new,
                                         'dry-run': True})
    pid, = wait_until(lambda: children(vm))
    os.kill(int(pid), signal.SIGSEGV)
    with pytest.raises(QMPError, match='signal 11'):
        vm.qmp.reply(ident)
    assert not children(vm)


def waits_for_rom(vm):
    (vm.dir / 'rom').unlink()
    os.mkfifo(vm.dir / 'rom')


def test_refused_where_a_second_opening_is_felt(make_vm):
    vm = make_vm()
    wav = vm.dir / 'wav'
    vm.args += ['-audiodev', f'wav,id=wav,path={wav}',
                '-device', 'AC97,audiodev=wav']
    vm.boot()
    with pytest.raises(QMPError, match='-audiodev'):
        vm.qmp.execute('exec-upgrade', binary=vm.setup.new, dry_run=True)
    with guest_lives_on(vm):
        vm.upgrade()


def test_timeout(vm):
    waits_for_rom(vm)
    fails(vm, 'not built in 1 s', binary=vm.setup.new, timeout=1)


def test_max_pause(vm):
    fails(vm, 'in time', **{'binary': vm.setup.new, 'max-pause': 1})
    vm.dry_run()


@pytest.mark.parametrize('how', ['quit', 'SIGTERM', 'SIGKILL'])
def test_end_while_it_is_built(vm, how):
    """Nothing is left running."""
    waits_for_rom(vm)
    vm.qmp.send('exec-upgrade', {'binary': vm.setup.new, 'dry-run': True})
    pid, = wait_until(lambda: children(vm))
    if how == 'quit':
        hmp = vm.connect('hmp')
        hmp.sendall(b'quit\n')
    else:
        os.kill(vm.pid, getattr(signal, how))
    vm.wait_gone()
    wait_until(lambda: not Path(f'/proc/{pid}').exists())


def test_power_off_while_it_is_built(vm):
    waits_for_rom(vm)
    vm.qmp.send('exec-upgrade', {'binary': vm.setup.new, 'dry-run': True})
    pid, = wait_until(lambda: children(vm))
    vm.agent.send('sh echo o > /proc/sysrq-trigger')
    assert vm.wait_gone() == 0
    wait_until(lambda: not Path(f'/proc/{pid}').exists())


def test_stand_in_that_is_stopped(vm):
    waits_for_rom(vm)
    ident = vm.qmp.send('exec-upgrade', {'binary': vm.setup.new,
                                         'dry-run': True, 'timeout': 2})
    pid, = wait_until(lambda: children(vm))
    os.kill(int(pid), signal.SIGSTOP)
    with pytest.raises(QMPError, match='not built in 2 s'):
        vm.qmp.reply(ident)
    assert not children(vm)


def test_many_descriptors(make_vm):
    """More than a message takes, twice."""
    vm = make_vm()
    names = [f'c{n}' for n in range(220)]
    for name in names:
        vm.args += ['-chardev', f'socket,id={name},path={vm.dir}/{name},'
                    'server=on,wait=off']
    vm.boot()
    clients = [vm.connect(name) for name in names]
    with guest_lives_on(vm):
        vm.dry_run()
        vm.upgrade()
        vm.dry_run(vm.setup.old)
    for client in clients:
        client.close()


@pytest.fixture(name='two')
def two_fixture(make_vm):
    """A guest, and a second client."""
    vm = make_vm()
    vm.args += vm.monitor('second')
    vm.boot()
    return vm, vm.connect_qmp('second')


def test_second_client_upgrades(two):
    """Its command waits for the dry run to end, and is then executed."""
    vm, second = two
    with guest_lives_on(vm):
        first = vm.qmp.send('exec-upgrade', {'binary': vm.setup.new,
                                             'dry-run': True})
        ident = second.send('exec-upgrade', {'binary': vm.setup.new})
        tried = vm.qmp.reply(first)
        done = second.reply(ident)
    assert [p['name'] for p in tried['pauses']] == ['dry-run']
    assert [p['name'] for p in done['pauses']] == ['upgrade']
    assert vm.exe() == os.path.realpath(vm.setup.new)


def test_client_that_hangs_up(two):
    vm, second = two
    with guest_lives_on(vm):
        second.send('exec-upgrade', {'binary': vm.setup.new, 'dry-run': True})
        wait_until(lambda: children(vm))
        second.close()
        wait_until(lambda: not children(vm))
    vm.dry_run()
