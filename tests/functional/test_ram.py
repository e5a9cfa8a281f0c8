# SPDX-License-Identifier: GPL-2.0-or-later
"""Guest memory of every kind stays in its place, nothing copied."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from harness.checks import (guest_lives_on, memory_sum, pci_address,
                            ram_files, screen, wait_until)
from harness.hugepages import huge_pages
from harness.qmp import QMPError


@pytest.fixture
def hugepages(tmp_path_factory):
    """A hugetlbfs folder with room for the guest, for one test at a time."""
    folder = tmp_path_factory.mktemp('huge')
    with huge_pages(100):
        if subprocess.run(['mount', '-t', 'hugetlbfs', 'none', folder],
                          check=False).returncode:
            pytest.skip('no right to mount hugetlbfs')
        try:
            yield folder
        finally:
            subprocess.run(['umount', '-l', folder], check=True)


def upgrade_keeps_ram(vm):
    files = ram_files(vm)
    assert files, 'guest memory is not in a file'
    with guest_lives_on(vm):
        vm.upgrade()
        assert ram_files(vm) == files
        vm.upgrade()
        assert ram_files(vm) == files


BACKENDS = {
    'backend-ram': 'memory-backend-ram',
    'backend-ram-preallocated':
        'memory-backend-ram,prealloc=on,prealloc-threads=2',
    'backend-memfd': 'memory-backend-memfd',
    'backend-memfd-private': 'memory-backend-memfd,share=off',
    'backend-memfd-unsealed': 'memory-backend-memfd,seal=off',
    'backend-file-shared': 'memory-backend-file,share=on,mem-path={dir}/ram',
    'backend-file-preallocated':
        'memory-backend-file,share=on,prealloc=on,mem-path={dir}/ram',
}


def backend_vm(make_vm, backend, folder=None, **kwargs):
    vm = make_vm(machine='pc,memory-backend=ram', **kwargs)
    vm.args += ['-object', backend.format(dir=folder or vm.dir) +
                ',id=ram,size=192M']
    return vm.boot()


def test_plain_memory(boot):
    upgrade_keeps_ram(boot())


def test_plain_memory_preallocated(boot):
    upgrade_keeps_ram(boot(args=['-mem-prealloc']))


@pytest.mark.parametrize('backend', BACKENDS.values(), ids=BACKENDS.keys())
def test_memory_backend(make_vm, backend):
    upgrade_keeps_ram(backend_vm(make_vm, backend))


@pytest.mark.parametrize('options', ['', ',prealloc=on', ',share=on'],
                         ids=['private', 'preallocated', 'shared'])
def test_file_on_hugetlbfs(make_vm, hugepages, options):
    """As libvirt writes it for hugepages: without share=on, in a folder
    where the file is deleted at once."""
    upgrade_keeps_ram(backend_vm(
        make_vm, 'memory-backend-file,mem-path={dir}' + options, hugepages))


def test_memory_path_on_hugetlbfs(boot, hugepages):
    upgrade_keeps_ram(boot(args=['-mem-path', str(hugepages),
                                 '-mem-prealloc']))


def test_memfd_hugetlb(make_vm, hugepages):
    upgrade_keeps_ram(backend_vm(
        make_vm, 'memory-backend-memfd,hugetlb=on,hugetlbsize=2M'))


def test_numa_nodes(boot):
    args = []
    for node in range(3):
        args += ['-object', f'memory-backend-ram,id=ram{node},size=64M',
                 '-numa', f'node,nodeid={node},memdev=ram{node},cpus={node}']
    vm = boot(args=args, smp='3')
    nodes = vm.agent.sh('ls -d /sys/devices/system/node/node*').split()
    assert len(nodes) == 3
    upgrade_keeps_ram(vm)


def test_numa_nodes_of_different_kinds(make_vm):
    vm = make_vm(smp='2')
    vm.args += ['-object', 'memory-backend-memfd,id=a,size=64M',
                '-object', f'memory-backend-file,id=b,size=128M,share=on,'
                f'mem-path={vm.dir}/ram', '-numa', 'node,memdev=a,cpus=0',
                '-numa', 'node,memdev=b,cpus=1']
    upgrade_keeps_ram(vm.boot())


@pytest.mark.parametrize('kind', ['ram', 'memfd'])
def test_cold_plugged_dimm(boot, kind):
    vm = boot(memory='128,slots=2,maxmem=1G', machine='q35',
              append='memhp_default_state=online',
              args=['-object', f'memory-backend-{kind},id=dimm,size=128M',
                    '-device', 'pc-dimm,memdev=dimm'])
    total = int(vm.agent.sh('grep MemTotal /proc/meminfo').split()[1])
    assert total > 160 << 10, 'the guest does not use its DIMM'
    upgrade_keeps_ram(vm)


def test_memory_above_4g(boot):
    """Memory on both sides of the hole below 4 GiB, most of it untouched."""
    vm = boot(memory='4G')
    files = ram_files(vm, 1 << 30)
    with guest_lives_on(vm, fill=10):
        vm.upgrade()
        assert ram_files(vm, 1 << 30) == files
    pages = vm.agent.sh('grep -i dma32 /proc/zoneinfo | wc -l')
    assert int(pages) > 0


def test_memory_being_written(boot):
    """The guest changes all its memory while it is upgraded again and
    again."""
    vm = boot(smp='2')
    vm.agent.ask('mem fill 75')
    vm.agent.ask('mem run')
    for _ in range(5):
        vm.upgrade()
    result = vm.agent.ask('mem stop')
    assert result['errors'] == 0, result


@pytest.mark.parametrize('device, pci_id', [
    ('VGA', '1234:1111'), ('virtio-vga', '1af4:1050'),
    ('bochs-display', '1234:1111')])
def test_video_memory(boot, device, pci_id):
    vm = boot(args=['-device', device],
              append='vt.global_cursor_default=0')
    vm.agent.wait_path('/dev/fb0')
    blank = screen(vm)
    vm.agent.sh('dd if=/dev/urandom of=/dev/fb0 bs=64k count=8; true')
    wait_until(lambda: screen(vm) != blank)
    bar = int(vm.agent.sh(f'head -1 /sys/bus/pci/devices/'
                          f'{pci_address(vm, pci_id)}/resource').split()[0],
              16)
    vm.qmp.execute('stop')      # so that the screen stands still
    picture, content = screen(vm), memory_sum(vm, bar, 8 << 20)
    vm.upgrade()
    assert memory_sum(vm, bar, 8 << 20) == content
    assert screen(vm) == picture
    vm.qmp.execute('cont')
    vm.agent.check_log()


def acpi_sum(vm):
    return vm.agent.sh('cat /sys/firmware/acpi/tables/[A-Z]* | sha256sum')


@pytest.mark.parametrize('machine', ['pc', 'q35'])
def test_rom_and_acpi(boot, machine):
    """Firmware, option ROMs and ACPI tables, before and after a reboot."""
    vm = boot(machine=machine, smp='2', args=['-device', 'e1000e'])
    low, high = (0xc0000, 0x40000), (0xfffc0000, 0x40000)
    before = memory_sum(vm, *low), memory_sum(vm, *high), acpi_sum(vm)
    with guest_lives_on(vm):
        vm.upgrade()
        assert (memory_sum(vm, *low), memory_sum(vm, *high),
                acpi_sum(vm)) == before
    vm.agent.send('sh reboot -f')
    vm.agent.wait_ready()
    assert acpi_sum(vm) == before[2]
    assert vm.agent.ask('counter')['cpus'] == 2


def rom_sum(vm, pci_id='8086:10d3'):
    path = f'/sys/bus/pci/devices/{pci_address(vm, pci_id)}'
    return vm.agent.sh(f'echo 1 > {path}/rom; cat {path}/rom | sha256sum')


@pytest.mark.parametrize('size', [32 << 10, 200 << 10, 260 << 10],
                         ids=['smaller', 'same-block-size', 'larger'])
def test_option_rom_changed(make_vm, size):
    """A new release with another option ROM: the guest keeps the one it
    has; if that can't be, the upgrade is refused."""
    rom = b'\x55\xaa\x40' + bytes(i * 7 % 251 for i in range((150 << 10) - 3))
    vm = make_vm()
    (vm.dir / 'rom').write_bytes(rom)
    vm.args += ['-device', f'e1000e,romfile={vm.dir}/rom']
    vm.boot()
    before = rom_sum(vm)
    (vm.dir / 'rom').write_bytes(rom[:3] + os.urandom(size - 3))
    with guest_lives_on(vm):
        try:
            vm.upgrade()
        except QMPError as error:
            assert 'rom' in error.desc.lower()
            assert size != 200 << 10, 'refused without need'
        assert rom_sum(vm) == before


def test_firmware_of_another_size(make_vm):
    """As above with the machine's own firmware, from 128 to 256 KiB."""
    folder = Path('/usr/share/seabios')
    vm = make_vm()
    shutil.copy(folder / 'bios.bin', vm.dir / 'bios')
    vm.args += ['-bios', str(vm.dir / 'bios')]
    vm.boot()
    before = memory_sum(vm, 0xfffe0000, 0x20000)
    shutil.copy(folder / 'bios-256k.bin', vm.dir / 'bios')
    with guest_lives_on(vm):
        try:
            vm.upgrade()
        except QMPError as error:
            assert 'bios' in error.desc.lower()
        assert memory_sum(vm, 0xfffe0000, 0x20000) == before
