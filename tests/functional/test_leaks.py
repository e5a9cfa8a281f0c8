# SPDX-License-Identifier: GPL-2.0-or-later
"""Nothing is left behind, however often a process is upgraded."""

import os
import re
from collections import Counter
from pathlib import Path

from harness.checks import check_disk, guest_lives_on, wait_disk_writes

UPGRADES = 100


def descriptors(vm):
    """What is open: numbers of files, sockets, memfds and others. Inode
    numbers of sockets and the like are left out."""
    folder = Path(f'/proc/{vm.pid}/fd')
    return Counter(re.sub(r'\d+', 'N', os.readlink(path))
                   if '/dev/' not in os.readlink(path) else os.readlink(path)
                   for path in folder.iterdir())


def threads(vm):
    names = Counter()
    for task in Path(f'/proc/{vm.pid}/task').iterdir():
        try:
            name = (task / 'comm').read_text().strip()
        except FileNotFoundError:
            continue
        # It starts before main(), and has its name only if it comes late
        names[name.replace('call_rcu', 'qemu-system-x86')] += 1
    names.pop('worker', None)       # block requests' helpers come and go
    return names


def children(vm):
    return ''.join((task / 'children').read_text() for task in
                   Path(f'/proc/{vm.pid}/task').iterdir()).split()


def mappings(vm):
    """Files mapped, and how often; anonymous memory is in the size."""
    names = Counter()
    for line in Path(f'/proc/{vm.pid}/maps').read_text().splitlines():
        words = line.split(None, 5)
        if len(words) > 5 and not words[5].startswith('['):
            names[words[5]] += 1
    return names


def status(vm, key):
    text = Path(f'/proc/{vm.pid}/status').read_text()
    return int(re.search(rf'^{key}:\s+(\d+)', text, re.M)[1])


def state(vm):
    return {'descriptors': descriptors(vm), 'threads': threads(vm),
            'children': children(vm), 'mappings': mappings(vm),
            'signals': re.findall(
                r'^(?:Sig(?:Blk|Ign|Cgt)|Seccomp.*):.*$',
                Path(f'/proc/{vm.pid}/status').read_text(), re.M)}


def test_hundred_upgrades(make_vm, qemu_img):
    """All that is open, running or mapped after the hundredth is what was
    after the first, and memory in use does not grow."""
    vm = make_vm(smp='2')
    qemu_img('create', '-f', 'qcow2', vm.dir / 'image', '8M')
    vm.args += [
        '-name', 'leaks,debug-threads=on', *vm.monitor('second'),
        '-object', 'iothread,id=io',
        '-drive', f'if=none,id=d,format=qcow2,file={vm.dir}/image',
        '-device', 'virtio-blk-pci,drive=d,iothread=io',
        '-netdev', 'user,id=n', '-device', 'virtio-net-pci,netdev=n',
        '-device', 'VGA', '-device', 'qemu-xhci', '-device', 'usb-tablet']
    vm.boot()
    second = vm.connect_qmp('second')
    vm.agent.wait_path('/dev/vda')
    vm.agent.ask('disk start /dev/vda 2 8')

    def upgrade(times):
        for _ in range(times):
            vm.upgrade()
            second.wait_event('EXEC_UPGRADE')
        wait_disk_writes(vm)

    with guest_lives_on(vm, fill=50):
        upgrade(1)
        first = state(vm)
        upgrade(9)
    # As at the end: it depends on what the guest has done in this process
    resident = status(vm, 'RssAnon')
    with guest_lives_on(vm, fill=50):
        upgrade(UPGRADES - 10)
        check_disk(vm)
        last = state(vm)
    assert vm.qmp.execute('query-exec-upgrade')['count'] == UPGRADES
    for key, value in first.items():
        assert last[key] == value, key
    # Not VmRSS: guest memory counts there only once it was touched again
    assert status(vm, 'RssAnon') < resident * 1.1 + 8192


def test_refused_upgrades_leave_nothing(boot):
    vm = boot()
    vm.refused('/bin/true', binary='/bin/true')
    first = state(vm)
    resident = status(vm, 'VmRSS')
    for _ in range(50):
        vm.refused('/bin/true', binary='/bin/true')
        vm.refused('/nonexistent', binary='/nonexistent')
    assert state(vm) == first
    assert status(vm, 'VmRSS') < resident * 1.1 + 4096


def test_no_file_left(boot):
    """No file appears beside the guest's own, and none goes."""
    vm = boot()
    before = sorted(os.listdir(vm.dir))
    shm = sorted(os.listdir('/dev/shm'))
    vm.upgrade()
    vm.upgrade()
    assert sorted(os.listdir(vm.dir)) == before
    assert sorted(os.listdir('/dev/shm')) == shm
