# SPDX-License-Identifier: GPL-2.0-or-later
"""Dirty bitmaps in an image hold exactly what they held; for the others see
test_ledger_block.py."""

import pytest

from harness.checks import check_disk, wait_disk_writes

NODE = 'disk'


@pytest.fixture
def vm(make_vm, qemu_img):
    result = make_vm()
    qemu_img('create', '-f', 'qcow2', result.dir / 'image', '16M')
    result.args += [
        '-object', 'iothread,id=io', '-blockdev',
        f'driver=qcow2,node-name={NODE},file.driver=file,'
        f'file.filename={result.dir}/image', '-device',
        f'virtio-blk-pci,drive={NODE},iothread=io']
    result.boot()
    result.agent.wait_path('/dev/vda')
    return result


def add(vm, name, **options):
    vm.qmp.execute('block-dirty-bitmap-add', node=NODE, name=name,
                   **{'persistent': True, 'granularity': 65536, **options})


def write(vm, block):
    vm.agent.sh(f'dd if=/dev/urandom of=/dev/vda bs=64k count=1 seek={block} '
                'oflag=direct 2>/dev/null')


def bitmaps(vm):
    """What QEMU tells of each, with a checksum of its content."""
    info, = vm.qmp.execute('query-block')
    return {b['name']: (b, vm.qmp.execute(
        'x-debug-block-dirty-bitmap-sha256', node=NODE, name=b['name']))
            for b in info['inserted'].get('dirty-bitmaps', [])}


def test_content_and_state(vm):
    for name in 'on', 'off', 'fine', 'empty':
        add(vm, name, granularity=512 if name == 'fine' else 65536)
    for block in 1, 2, 77, 255:
        write(vm, block)
    vm.qmp.execute('block-dirty-bitmap-disable', node=NODE, name='off')
    vm.qmp.execute('block-dirty-bitmap-clear', node=NODE, name='empty')
    write(vm, 9)
    for _ in range(2):
        before = bitmaps(vm)
        assert len(before) == 4
        vm.upgrade()
        assert bitmaps(vm) == before
    write(vm, 10)
    after = bitmaps(vm)
    assert after['off'] == before['off']
    for name in 'on', 'fine', 'empty':
        assert after[name][0]['count'] == before[name][0]['count'] + 65536


def test_guest_writes_all_the_time(vm, qemu_img):
    """No write is missing in the bitmap: what it marks, copied over a copy
    of the image made before, makes that equal."""
    base = vm.dir / 'base'
    vm.agent.sh('sync')
    qemu_img('create', '-f', 'raw', base, '16M')
    add(vm, 'b')
    vm.agent.ask('disk start /dev/vda 4 16')
    for _ in range(3):
        wait_disk_writes(vm)
        vm.upgrade()
    wait_disk_writes(vm)
    check_disk(vm)
    vm.qmp.execute('blockdev-add', driver='raw', node_name='target',
                   file={'driver': 'file', 'filename': str(base)})
    vm.qmp.execute('blockdev-backup', job_id='job', device=NODE,
                   target='target', sync='bitmap', bitmap='b',
                   bitmap_mode='on-success')
    vm.qmp.wait_event('BLOCK_JOB_COMPLETED')
    vm.qmp.execute('blockdev-del', node_name='target')
    vm.qmp.send('quit')
    vm.qmp.wait_closed()
    vm.process.wait()
    assert 'identical' in qemu_img('compare', '-f', 'qcow2', '-F', 'raw',
                                   vm.dir / 'image', base)


def test_refused_upgrade_leaves_bitmaps_alone(vm):
    add(vm, 'b')
    write(vm, 3)
    before = bitmaps(vm)
    vm.refused('', binary='/bin/true')
    assert bitmaps(vm) == before
    write(vm, 4)
    assert bitmaps(vm)['b'][0]['count'] == 2 * 65536
