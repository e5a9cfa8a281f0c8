# SPDX-License-Identifier: GPL-2.0-or-later
"""What is refused, before the guest is touched."""

import os
import socket
import subprocess

import pytest

from harness.checks import guest_lives_on, wait_until
from harness.qmp import QMPError
from harness.vm import VM


def start(make_vm, *args, **kwargs):
    """Without a guest: enough for what the command line decides."""
    vm = make_vm(kernel=False, **kwargs)
    with open(vm.dir / 'image', 'wb') as image:
        image.truncate(8 << 20)
    os.mkdir(vm.dir / 'folder')
    vm.args += [arg.format(dir=vm.dir) for arg in args]
    return vm.start()


def check_refused(vm, *reasons, **arguments):
    """In the error and in query-exec-upgrade, which agree."""
    error = vm.refused(*reasons, **arguments)
    blockers = vm.blockers()
    assert blockers
    for blocker in blockers:
        assert blocker in error
    query = vm.qmp.execute('query-exec-upgrade')
    assert query['last-error'] == error and query['count'] == 0
    return blockers


def test_turned_off(make_vm):
    vm = start(make_vm, machine='pc,exec-upgrade=off')
    check_refused(vm, 'exec-upgrade=off')
    assert vm.qmp.execute('query-exec-upgrade')['enabled'] is False


def test_turned_off_memory_is_as_in_unpatched_qemu(make_vm):
    vm = start(make_vm, machine='pc,exec-upgrade=off')
    with open(f'/proc/{vm.pid}/maps', encoding='ascii') as maps:
        assert 'memfd' not in maps.read()


OPTIONS = {
    'snapshot': (['-snapshot', '-drive', 'format=raw,file={dir}/image'],
                 'snapshot'),
    'drive-snapshot': (['-drive', 'format=raw,snapshot=on,id=temporary,'
                        'file={dir}/image'], 'temporary'),
    'record': (['-icount', 'shift=auto,rr=record,rrfile={dir}/replay'],
               'replay'),
    'incoming': (['-incoming', 'defer'], 'inmigrate'),
    'sandbox': (['-sandbox', 'on,obsolete=deny,elevateprivileges=deny,'
                 'spawn=deny,resourcecontrol=deny'], 'spawn=deny'),
    'chroot': (['-chroot', '/'], 'chroot'),
    'nvme': (['-drive', 'if=none,id=d,format=raw,file={dir}/image',
              '-device', 'nvme,serial=1,drive=d'], 'nvme'),
    'usb-mtp': (['-device', 'qemu-xhci', '-device',
                 'usb-mtp,rootdir={dir}/folder'], 'usb-mtp'),
    'usb-uas': (['-device', 'qemu-xhci', '-device', 'usb-uas'], 'usb-uas'),
    'usb-net': (['-device', 'qemu-xhci', '-netdev', 'user,id=n',
                 '-device', 'usb-net,netdev=n'], 'usb-net'),
    'usb-serial': (['-device', 'qemu-xhci', '-chardev', 'null,id=c',
                    '-device', 'usb-serial,chardev=c'], 'usb-serial'),
    'virtio-crypto': (['-object', 'cryptodev-backend-builtin,id=c', '-device',
                       'virtio-crypto-pci,cryptodev=c'], 'virtio-crypto'),
    'amd-iommu': (['-device', 'amd-iommu'], 'amd-iommu'),
    'usb-wacom-tablet': (['-device', 'qemu-xhci', '-device',
                          'usb-wacom-tablet'], 'wacom'),
    'am53c974': (['-device', 'am53c974,id=s'], "'s' (am53c974)"),
    'dc390': (['-device', 'dc390'], 'dc390'),
    'megasas': (['-device', 'megasas,id=s'], "'s' (megasas)"),
    'megasas-gen2': (['-device', 'megasas-gen2'], 'megasas-gen2'),
    'isa-cirrus-vga': (['-device', 'isa-cirrus-vga'], 'isa-cirrus-vga'),
    'pci-serial-2x': (['-chardev', 'null,id=c', '-chardev', 'null,id=d',
                       '-device', 'pci-serial-2x,chardev1=c,chardev2=d'],
                      'pci-serial-2x'),
    'vmbus-bridge': (['-device', 'vmbus-bridge'], 'vmbus-bridge'),
}


@pytest.mark.parametrize('args, reason', OPTIONS.values(),
                         ids=OPTIONS.keys())
def test_option_or_device(make_vm, args, reason):
    vm = start(make_vm, *args,
               machine='q35' if 'amd-iommu' in args else 'pc')
    check_refused(vm, reason)


@pytest.mark.parametrize('backend', [
    'memory-backend-file,mem-path={dir}/ram,share=off',
    'memory-backend-file,mem-path={dir}/ram'], ids=['file', 'file-default'])
def test_memory_that_cannot_be_shared(make_vm, backend):
    vm = start(make_vm, '-object', backend + ',id=named-ram,size=64M',
               machine='pc,memory-backend=named-ram', memory='64')
    check_refused(vm, 'named-ram', 'share')


def test_every_reason_in_one_error(make_vm):
    vm = start(make_vm, '-object', 'memory-backend-file,mem-path={dir}/ram,'
               'share=off,id=named-ram,size=64M',
               '-drive', 'if=none,id=d,format=raw,file={dir}/image,'
               'snapshot=on', '-device', 'nvme,serial=1,drive=d',
               '-device', 'qemu-xhci', '-device', 'usb-uas',
               machine='pc,memory-backend=named-ram', memory='64')
    blockers = check_refused(vm, 'nvme', 'named-ram', 'usb-uas',
                             'snapshot=on')
    assert len(blockers) >= 4


def test_device_served_to_another_process(make_vm):
    """By the command line; object-add of one is the end of QEMU 7.2."""
    vm = make_vm(args=['-device', 'virtio-rng-pci,id=rng'])
    ours, theirs = socket.socketpair()
    vm.popen['pass_fds'] = [theirs.fileno()]
    vm.args += ['-object', f'x-remote-object,id=served,devid=rng,'
                f'fd={theirs.fileno()}']
    vm.boot()
    theirs.close()
    with guest_lives_on(vm):
        check_refused(vm, "object 'served' (x-remote-object) serves a device")
    ours.close()


# What runs at that moment; when it has ended, the upgrade goes through

def test_migration_running(boot):
    vm = boot()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(vm.dir / 'sink'))
        listener.listen()
        vm.qmp.execute('migrate-set-parameters', max_bandwidth=4096)
        vm.qmp.execute('migrate', uri=f'unix:{vm.dir}/sink')
        wait_until(lambda: vm.qmp.execute('query-migrate')['status'] ==
                   'active')
        check_refused(vm, 'migration')
        vm.qmp.execute('migrate_cancel')
    wait_until(lambda: vm.qmp.execute('query-migrate')['status'] in
               ('cancelled', 'failed'))
    with guest_lives_on(vm):
        vm.upgrade()


def block_vm(boot_or_make, qemu_img):
    vm = boot_or_make()
    qemu_img('create', '-f', 'raw', vm.dir / 'base', '64M')
    qemu_img('create', '-f', 'qcow2', '-F', 'raw', '-b', vm.dir / 'base',
             vm.dir / 'image')
    with open(vm.dir / 'base', 'r+b') as base:
        base.write(os.urandom(32 << 20))
    vm.args += ['-drive', f'if=none,id=d,format=qcow2,file={vm.dir}/image,'
                'node-name=top', '-device', 'virtio-blk-pci,drive=d']
    return vm.boot()


JOBS = {
    'mirror': ('drive-mirror', {'device': 'd', 'sync': 'full',
                                'target': '{dir}/copy'}),
    'backup': ('drive-backup', {'device': 'd', 'sync': 'full',
                                'target': '{dir}/copy'}),
    'stream': ('block-stream', {'device': 'd'}),
}


@pytest.mark.parametrize('command, arguments', JOBS.values(), ids=JOBS.keys())
def test_block_job_running(make_vm, qemu_img, command, arguments):
    vm = block_vm(make_vm, qemu_img)
    vm.qmp.reply(vm.qmp.send(command, {
        **{k: v.format(dir=vm.dir) for k, v in arguments.items()},
        'speed': 65536, 'job-id': 'the-job'}))
    check_refused(vm, 'the-job')
    vm.qmp.execute('block-job-cancel', device='the-job', force=True)
    vm.qmp.wait_event('JOB_STATUS_CHANGE', status='null', id='the-job')
    with guest_lives_on(vm):
        vm.upgrade()


def test_exec_upgrade_already_running(make_vm):
    """Two at once: one happens; the other happens after it, or is refused
    for that reason."""
    vm = make_vm()
    vm.args += vm.monitor('second')
    vm.boot()
    second = vm.connect_qmp('second')
    with guest_lives_on(vm):
        requests = [(client, client.send('exec-upgrade',
                                         {'binary': vm.setup.new}))
                    for client in (vm.qmp, second)]
        results = []
        for client, ident in requests:
            try:
                results.append(client.reply(ident))
            except QMPError as error:
                assert 'running' in error.desc
    count = vm.qmp.execute('query-exec-upgrade')['count']
    assert count == len(results) >= 1


# Bad arguments; one guest sees all of them

@pytest.fixture(scope='module')
def bystander(setup):
    vm = VM(setup)
    try:
        yield vm.boot()
    finally:
        vm.kill()


def write(path, content, mode=0o755):
    path.write_bytes(content)
    path.chmod(mode)


def elf(setup, machine=None, note=None):
    """The new binary, changed: other architecture, or other text in its
    note."""
    with open(setup.new, 'rb') as f:
        data = bytearray(f.read())
    if machine:
        data[18:20] = machine.to_bytes(2, 'little')
    if note:
        at = data.index(b'QEMU-EU\0')
        note(data, at + 8)
    return data


def other_format(data, at):
    data[at:at + 8] = b'\xf0\0\0\0\xff\0\0\0'


def other_target(data, at):
    data[at + 8:at + 40] = b'aarch64'.ljust(32, b'\0')


BINARIES = {
    'missing': lambda setup, path: None,
    'folder': lambda setup, path: path.mkdir(),
    'not-executable': lambda setup, path: write(
        path, elf(setup), 0o644),
    'empty-file': lambda setup, path: write(path, b''),
    'script': lambda setup, path: write(path, b'#!/bin/sh\nexit 0\n'),
    'text': lambda setup, path: write(path, b'hello\n'),
    'cut-elf': lambda setup, path: write(path, elf(setup)[:100]),
    'other-architecture': lambda setup, path: write(
        path, elf(setup, machine=183)),
    'no-note': lambda setup, path: write(
        path, open('/bin/true', 'rb').read()),
    'other-format': lambda setup, path: write(
        path, elf(setup, note=other_format)),
    'other-target': lambda setup, path: write(
        path, elf(setup, note=other_target)),
    'fifo': lambda setup, path: os.mkfifo(path, 0o755),
    'device': lambda setup, path: path.symlink_to('/dev/zero'),
    'dangling-link': lambda setup, path: path.symlink_to('nowhere'),
    'link-to-itself': lambda setup, path: path.symlink_to(path.name),
}


@pytest.mark.parametrize('make', BINARIES.values(), ids=BINARIES.keys())
def test_bad_binary(bystander, setup, tmp_path, make):
    path = tmp_path / 'qemu'
    make(setup, path)
    bystander.refused(str(path), binary=str(path))
    assert bystander.agent.ask('counter')['boot_id'] == \
        bystander.agent.boot_id


ARGUMENTS = {
    'unknown-key': ({'colour': 'red'}, 'colour'),
    'empty-list': ({'arguments': []}, 'arguments'),
    'argument-no-string': ({'arguments': [1]}, 'arguments'),
    'argument-with-nul': ({'arguments': ['-m', '1\0']}, 'arguments'),
    'binary-empty': ({'binary': ''}, 'binary'),
    'binary-with-nul': ({'binary': '/bin/true\0'}, 'binary'),
    'binary-no-string': ({'binary': 7}, 'binary'),
    'binary-relative': ({'binary': 'no/such/qemu'}, 'no/such/qemu'),
    'binary-bare-name': ({'binary': 'qemu-system-x86_64'},
                         'qemu-system-x86_64'),
    'binary-too-long': ({'binary': '/x' * 5000}, '/x/x'),
    'dry-run-no-bool': ({'dry-run': 'yes'}, 'dry-run'),
    'max-pause-zero': ({'dry-run': True, 'max-pause': 0}, 'max-pause'),
    'max-pause-huge': ({'dry-run': True, 'max-pause': 1 << 32}, 'max-pause'),
    'max-pause-alone': ({'max-pause': 500}, 'dry-run'),
    'timeout-negative': ({'dry-run': True, 'timeout': -1}, 'timeout'),
    'timeout-alone': ({'timeout': 5}, 'dry-run'),
}


@pytest.mark.parametrize('arguments, reason', ARGUMENTS.values(),
                         ids=ARGUMENTS.keys())
def test_bad_argument(bystander, arguments, reason):
    bystander.refused(reason, **arguments)


def test_guest_is_well_after_all_those_errors(bystander):
    with guest_lives_on(bystander):
        bystander.upgrade()


def test_unpatched_qemu(bystander):
    """Another QEMU of this architecture, such as the distribution's."""
    path = '/usr/bin/qemu-system-x86_64'
    if not os.path.exists(path) or b'QEMU-EU' in subprocess.run(
            ['cat', path], capture_output=True, check=True).stdout:
        pytest.skip('no unpatched QEMU installed')
    bystander.refused(path, binary=path)
