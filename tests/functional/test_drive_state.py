# SPDX-License-Identifier: GPL-2.0-or-later
"""What a drive has beside its image and its device's state."""

import pytest


def drive(vm):
    info, = vm.qmp.execute('query-block')
    return info


@pytest.mark.parametrize('device, path', [
    ('virtio-blk-pci,drive=d', '/sys/block/vda/cache_type'),
    ('scsi-hd,drive=d', '/sys/class/scsi_disk/*/cache_type')],
    ids=['virtio-blk', 'scsi'])
def test_write_cache_that_the_guest_has_turned_off(make_vm, device, path):
    """It does not flush any more, so that each write must reach the disk."""
    vm = make_vm()
    (vm.dir / 'image').write_bytes(bytes(1 << 20))
    vm.args += ['-drive', f'if=none,id=d,format=raw,file={vm.dir}/image',
                '-device', 'virtio-scsi-pci', '-device', device]
    vm.boot()
    vm.agent.wait_path('/dev/' + ('vda' if 'vda' in path else 'sda'))
    assert drive(vm)['inserted']['cache']['writeback']
    vm.upgrade()
    assert drive(vm)['inserted']['cache']['writeback']
    vm.agent.sh(f'for f in {path}; do echo write through > $f; done')
    assert not drive(vm)['inserted']['cache']['writeback']
    vm.upgrade()
    assert not drive(vm)['inserted']['cache']['writeback']
    vm.agent.sh(f'for f in {path}; do echo write back > $f; done')
    assert drive(vm)['inserted']['cache']['writeback']


@pytest.mark.parametrize('errno, status', [(28, 'nospace'), (5, 'failed')])
def test_io_status(make_vm, errno, status):
    """A manager that comes later still learns why the guest is stopped."""
    vm = make_vm()
    (vm.dir / 'image').write_bytes(bytes(1 << 20))
    vm.args += ['-blockdev', 'driver=blkdebug,node-name=n,image.driver=file,'
                f'image.filename={vm.dir}/image,inject-error.0.event=none,'
                f'inject-error.0.iotype=write,inject-error.0.errno={errno}',
                '-device', 'virtio-blk-pci,drive=n,werror=stop']
    vm.boot()
    vm.agent.wait_path('/dev/vda')
    vm.agent.send('sh dd if=/dev/zero of=/dev/vda bs=4k count=1 oflag=direct')
    vm.qmp.wait_event('STOP')
    assert drive(vm)['io-status'] == status
    vm.upgrade()
    assert drive(vm)['io-status'] == status
    assert vm.qmp.execute('query-status')['status'] == 'io-error'


def test_accounting(make_vm):
    """What a manager has counted goes on from where it was."""
    vm = make_vm()
    (vm.dir / 'image').write_bytes(bytes(1 << 20))
    vm.args += ['-drive', f'if=none,id=d,format=raw,file={vm.dir}/image',
                '-device', 'virtio-blk-pci,id=disk,drive=d']
    vm.boot()
    vm.agent.wait_path('/dev/vda')
    vm.qmp.execute('block-latency-histogram-set',
                   id='/machine/peripheral/disk/virtio-backend',
                   boundaries=[1000, 1000000])
    vm.agent.sh('dd if=/dev/zero of=/dev/vda bs=4k count=8 seek=8 conv=fsync')

    def counted():
        stats, = vm.qmp.execute('query-blockstats')
        del stats['stats']['idle_time_ns']
        return stats

    before = counted()
    assert before['stats']['wr_bytes'] == 32768
    assert before['stats']['rd_total_time_ns'] > 0
    assert before['stats']['wr_highest_offset'] == 65536
    assert before['parent']['stats']['wr_highest_offset'] == 65536
    assert sum(before['stats']['wr_latency_histogram']['bins']) > 0
    vm.qmp.execute('stop')      # or the guest might read meanwhile
    before = counted()
    for _ in range(2):
        vm.upgrade()
        assert counted() == before
    vm.qmp.execute('cont')
    vm.agent.sh('dd if=/dev/zero of=/dev/vda bs=4k count=1 conv=fsync')
    assert counted()['stats']['wr_bytes'] == 36864
