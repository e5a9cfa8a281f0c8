# SPDX-License-Identifier: GPL-2.0-or-later
"""Disk images with a guest that writes and verifies all the time."""

import hashlib
import os

import pytest

from harness.checks import check_disk, check_image_locked, \
    guest_lives_on, wait_disk_writes

MIB = 8


@pytest.fixture
def images(qemu_img):
    """Makes one image of each kind in a folder."""
    def make(folder):
        with open(folder / 'raw', 'wb') as f:
            f.truncate(MIB << 20)
        qemu_img('create', '-f', 'qcow2', folder / 'qcow2', f'{MIB}M')
        qemu_img('create', '-f', 'raw', folder / 'base0', f'{MIB}M')
        qemu_img('create', '-f', 'qcow2', '-F', 'raw', '-b', 'base0',
                 folder / 'base1')
        qemu_img('create', '-f', 'qcow2', '-F', 'qcow2', '-b', 'base1',
                 folder / 'overlay')
        return folder
    return make


FORMATS = {'raw': 'raw', 'qcow2': 'qcow2', 'overlay': 'qcow2'}


def writer_vm(make_vm, images, *args, **kwargs):
    vm = make_vm(**kwargs)
    images(vm.dir)
    vm.args += [arg.format(dir=vm.dir) for arg in args]
    vm.boot()
    return vm


def start_writing(vm, device='/dev/vda', mib=MIB):
    vm.agent.wait_path(device)
    vm.agent.ask(f'disk start {device} 4 {mib}')
    wait_disk_writes(vm, device)


def upgrade_under_load(vm, device='/dev/vda', times=3):
    start_writing(vm, device)
    with guest_lives_on(vm, fill=0):
        for _ in range(times):
            vm.upgrade()
            wait_disk_writes(vm, device)
        check_disk(vm, device)


def quit_and_check(vm, qemu_img, name, device='/dev/vda'):
    """What the guest reads is what is in the image, which is in order."""
    guest = vm.agent.sh(f'sha256sum < {device}').split()[0]
    vm.qmp.send('quit')
    vm.qmp.wait_closed()
    vm.process.wait()
    path = vm.dir / name
    if FORMATS[name] != 'raw':
        report = qemu_img('check', '-f', FORMATS[name], path)
        assert 'No errors were found' in report, report
    qemu_img('convert', '-f', FORMATS[name], '-O', 'raw', path,
             vm.dir / 'content')
    content = (vm.dir / 'content').read_bytes()
    assert hashlib.sha256(content).hexdigest() == guest


@pytest.mark.parametrize('name', FORMATS)
@pytest.mark.parametrize('aio', ['threads', 'native', 'io_uring'])
def test_drive(make_vm, images, qemu_img, name, aio):
    cache = 'none' if aio == 'native' else 'writeback'
    vm = writer_vm(make_vm, images, '-drive',
                   f'if=virtio,format={FORMATS[name]},file={{dir}}/{name},'
                   f'aio={aio},cache={cache}')
    upgrade_under_load(vm)
    quit_and_check(vm, qemu_img, name)


def blockdev(name, file_options='', options=''):
    return ['-blockdev', f'driver={FORMATS[name]},node-name=disk{options},'
            f'file.driver=file,file.filename={{dir}}/{name},'
            f'file.node-name=file{file_options}']


@pytest.mark.parametrize('name', FORMATS)
@pytest.mark.parametrize('device', [
    'virtio-blk-pci,drive=disk,iothread=io',
    'virtio-blk-pci,drive=disk,num-queues=2',
    'scsi-hd,drive=disk,bus=scsi.0'],
    ids=['blk-iothread', 'blk', 'scsi-iothread'])
def test_blockdev(make_vm, images, qemu_img, name, device):
    scsi = device.startswith('scsi')
    vm = writer_vm(
        make_vm, images, '-object', 'iothread,id=io',
        *(['-device', 'virtio-scsi-pci,id=scsi,iothread=io'] if scsi else []),
        *blockdev(name), '-device', device, smp='2')
    node = '/dev/sda' if scsi else '/dev/vda'
    upgrade_under_load(vm, node)
    quit_and_check(vm, qemu_img, name, node)


@pytest.mark.parametrize('aio', ['native', 'io_uring'])
def test_blockdev_direct_with_iothread(make_vm, images, qemu_img, aio):
    vm = writer_vm(
        make_vm, images, '-object', 'iothread,id=io',
        *blockdev('qcow2', f',file.aio={aio},file.cache.direct=on',
                  ',cache.direct=on,discard=unmap'),
        '-device', 'virtio-blk-pci,drive=disk,iothread=io')
    upgrade_under_load(vm)
    quit_and_check(vm, qemu_img, 'qcow2')


def test_blockdev_chain_named_node_by_node(make_vm, images, qemu_img):
    """As libvirt writes it: each node on its own, backing files by name."""
    vm = writer_vm(
        make_vm, images,
        '-blockdev', '{{"driver":"file","filename":"{dir}/base0",'
        '"node-name":"s3","read-only":true,"auto-read-only":true}}',
        '-blockdev', '{{"driver":"raw","file":"s3","node-name":"f3",'
        '"read-only":true}}',
        '-blockdev', '{{"driver":"file","filename":"{dir}/base1",'
        '"node-name":"s2","auto-read-only":true}}',
        '-blockdev', '{{"driver":"qcow2","file":"s2","backing":"f3",'
        '"node-name":"f2","read-only":true}}',
        '-blockdev', '{{"driver":"file","filename":"{dir}/overlay",'
        '"node-name":"s1","auto-read-only":true,"discard":"unmap"}}',
        '-blockdev', '{{"driver":"qcow2","file":"s1","backing":"f2",'
        '"node-name":"f1","read-only":false}}',
        '-device', 'virtio-blk-pci,drive=f1,id=disk,write-cache=on,'
        'werror=stop,rerror=stop')
    nodes = {n['node-name'] for n in
             vm.qmp.execute('query-named-block-nodes', flat=True)}
    upgrade_under_load(vm)
    assert {n['node-name'] for n in
            vm.qmp.execute('query-named-block-nodes', flat=True)} == nodes
    quit_and_check(vm, qemu_img, 'overlay')


def test_throttled_drive(make_vm, images, qemu_img):
    """Requests wait in the throttle queue while the upgrade starts."""
    vm = writer_vm(make_vm, images, '-drive',
                   'if=virtio,format=qcow2,file={dir}/qcow2,'
                   'throttling.iops-total=200')
    start_writing(vm, mib=1)
    vm.upgrade()
    wait_disk_writes(vm)
    info, = vm.qmp.execute('query-block')
    assert info['inserted']['iops'] == 200
    check_disk(vm)
    quit_and_check(vm, qemu_img, 'qcow2')


def test_throttle_group(make_vm, images, qemu_img):
    vm = writer_vm(
        make_vm, images, '-object', 'throttle-group,id=limit,'
        'x-iops-total=200', *blockdev('qcow2'), '-blockdev',
        'driver=throttle,throttle-group=limit,file=disk,node-name=top',
        '-device', 'virtio-blk-pci,drive=top')
    start_writing(vm, mib=1)
    vm.upgrade()
    wait_disk_writes(vm)
    limits = vm.qmp.execute('qom-get', path='/objects/limit',
                            property='limits')
    assert limits['iops-total'] == 200
    check_disk(vm)
    quit_and_check(vm, qemu_img, 'qcow2')


def test_several_disks(make_vm, images, qemu_img):
    vm = writer_vm(
        make_vm, images, '-object', 'iothread,id=io',
        '-drive', 'if=none,id=a,format=raw,file={dir}/raw,cache=none',
        '-device', 'virtio-blk-pci,drive=a,iothread=io',
        '-drive', 'if=none,id=b,format=qcow2,file={dir}/qcow2',
        '-device', 'virtio-blk-pci,drive=b',
        '-drive', 'if=ide,format=qcow2,file={dir}/overlay', smp='2')
    disks = '/dev/vda', '/dev/vdb', '/dev/sda'
    for disk in disks:
        start_writing(vm, disk)
    vm.upgrade()
    vm.upgrade()
    for disk in disks:
        wait_disk_writes(vm, disk)
        check_disk(vm, disk)
    vm.agent.check_log()
    quit_and_check(vm, qemu_img, 'overlay', '/dev/sda')


def test_content_of_a_backing_file(make_vm, images, qemu_img):
    """It shows through the overlays after the upgrade as before."""
    vm = make_vm()
    images(vm.dir)
    content = os.urandom(MIB << 20)
    (vm.dir / 'base0').write_bytes(content)
    vm.args += ['-drive', f'if=virtio,format=qcow2,file={vm.dir}/overlay']
    vm.boot()
    vm.agent.wait_path('/dev/vda')
    vm.agent.sh('dd if=/dev/urandom of=/dev/vda bs=64k count=16 2>/dev/null;'
                'sync')
    before = vm.agent.sh('sha256sum < /dev/vda')
    vm.upgrade()
    vm.agent.sh('echo 3 > /proc/sys/vm/drop_caches')
    assert vm.agent.sh('sha256sum < /dev/vda') == before
    quit_and_check(vm, qemu_img, 'overlay')


def bitmap_of(vm, name):
    info, = vm.qmp.execute('query-block')
    return {b['name']: b for b in info['inserted'].get('dirty-bitmaps', [])
            }.get(name)


def test_persistent_dirty_bitmap(make_vm, images, qemu_img):
    vm = writer_vm(make_vm, images, *blockdev('qcow2'), '-device',
                   'virtio-blk-pci,drive=disk')
    vm.agent.wait_path('/dev/vda')
    vm.qmp.execute('block-dirty-bitmap-add', node='disk', name='b',
                   persistent=True, granularity=65536)
    write = 'dd if=/dev/urandom of=/dev/vda bs=64k count=2 seek=%d ' \
            'oflag=direct 2>/dev/null'
    vm.agent.sh(write % 4)
    before = bitmap_of(vm, 'b')
    assert before['count'] == 2 * 65536
    vm.upgrade()
    after = bitmap_of(vm, 'b')
    assert after and after['recording'] and after['persistent']
    assert after['count'] == before['count']
    vm.agent.sh(write % 20)
    assert bitmap_of(vm, 'b')['count'] == 4 * 65536
    vm.upgrade()
    assert bitmap_of(vm, 'b')['count'] == 4 * 65536
    quit_and_check(vm, qemu_img, 'qcow2')
    report = qemu_img('info', vm.dir / 'qcow2')
    assert 'name: b' in report and 'in-use' not in report, report


@pytest.mark.parametrize('name', ['raw', 'qcow2'])
def test_image_lock_holds(make_vm, images, name):
    """After the upgrade a second QEMU is refused, as before it."""
    vm = writer_vm(make_vm, images, '-drive',
                   f'if=virtio,format={FORMATS[name]},file={{dir}}/{name}')
    vm.upgrade()
    check_image_locked(vm, vm.dir / name, FORMATS[name])
    start_writing(vm)
    check_disk(vm)


def test_read_only_image_stays_shared(make_vm, images, qemu_img):
    vm = writer_vm(make_vm, images, '-drive',
                   'if=virtio,format=qcow2,file={dir}/qcow2,read-only=on')
    vm.upgrade()
    qemu_img('check', vm.dir / 'qcow2')
    info, = vm.qmp.execute('query-block')
    assert info['inserted']['ro']


@pytest.mark.parametrize('name, path', [
    ('raw', 'raw'), ('qcow2', 'qcow2'), ('overlay', 'base0'),
    ('overlay', 'base1')])
def test_replaced_image_is_refused(make_vm, images, name, path):
    """The path leads to another file now, even one with equal content."""
    vm = writer_vm(make_vm, images, '-drive',
                   f'if=virtio,format={FORMATS[name]},file={{dir}}/{name}')
    start_writing(vm)
    wait_disk_writes(vm)
    original = vm.dir / path
    (vm.dir / 'copy').write_bytes(original.read_bytes())
    original.rename(vm.dir / 'moved')
    (vm.dir / 'copy').rename(original)
    vm.refused(path)
    wait_disk_writes(vm)
    original.unlink()
    vm.refused(path)
    (vm.dir / 'moved').rename(original)
    vm.upgrade()
    check_disk(vm)


def test_renamed_image_with_a_link_in_its_place(make_vm, images):
    """Another way to the same file is the same file."""
    vm = writer_vm(make_vm, images, '-drive',
                   'if=virtio,format=qcow2,file={dir}/qcow2')
    (vm.dir / 'qcow2').rename(vm.dir / 'moved')
    (vm.dir / 'qcow2').symlink_to('moved')
    start_writing(vm)
    vm.upgrade()
    check_disk(vm)


def test_empty_cd_and_floppy_drives(make_vm, images):
    vm = writer_vm(make_vm, images, '-drive', 'if=ide,media=cdrom,id=cd',
                   '-drive', 'if=floppy,format=raw,file={dir}/raw')
    before = {d['device']: 'inserted' in d
              for d in vm.qmp.execute('query-block')}
    vm.upgrade()
    assert {d['device']: 'inserted' in d
            for d in vm.qmp.execute('query-block')} == before


def test_statistics_and_names_stay(make_vm, images):
    vm = writer_vm(make_vm, images, '-drive',
                   'if=none,id=d,format=qcow2,file={dir}/qcow2',
                   '-device', 'virtio-blk-pci,drive=d,id=disk,serial=S17')
    start_writing(vm)
    before = vm.qmp.execute('query-block')
    vm.upgrade()
    after = vm.qmp.execute('query-block')
    for info in before, after:
        for disk in info:
            # what the guest's writing changes
            disk['inserted']['image'].pop('actual-size', None)
    assert after == before
    assert vm.agent.sh('cat /sys/block/vda/serial') == 'S17'
    check_disk(vm)


def test_guest_flushes_reach_the_image(make_vm, images, setup):
    """cache=writeback: what the guest flushed is in the file when the new
    process is killed at once."""
    vm = writer_vm(make_vm, images, '-drive',
                   'if=virtio,format=qcow2,file={dir}/qcow2')
    start_writing(vm)
    vm.upgrade()
    check_disk(vm)
    guest = vm.agent.sh('sha256sum < /dev/vda').split()[0]
    vm.process.kill()
    vm.process.wait()
    setup.qemu_img('convert', '-O', 'raw', vm.dir / 'qcow2',
                   vm.dir / 'content')
    content = (vm.dir / 'content').read_bytes()
    assert hashlib.sha256(content).hexdigest() == guest
