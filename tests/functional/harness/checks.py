# SPDX-License-Identifier: GPL-2.0-or-later
"""What several tests check in the same way."""

import fcntl
import hashlib
import os
import re
import signal
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

from . import TIMEOUT

# <linux/fcntl.h>; Python 3.11 has no name for it
F_SETSIG = 10


@contextmanager
def guest_lives_on(vm, fill=75):
    """Around an upgrade: the guest goes on counting, was not booted again,
    its memory is what it was and its kernel does not complain."""
    before = vm.agent.ask('counter')
    memory = vm.agent.ask(f'mem fill {fill}') if fill else None
    assert not fill or memory['bytes'] > 32 << 20
    yield

    def counted_on():
        now = vm.agent.ask('counter')
        return now['counter'] > before['counter'] and now
    after = wait_until(counted_on)
    assert after['boot_id'] == before['boot_id']
    assert after['monotonic'] > before['monotonic']
    assert after['cpus'] == before['cpus']
    if fill:
        assert vm.agent.ask('mem verify') == memory
    vm.agent.check_log()


def mappings(vm):
    """Yields (size, device and inode, name) of the process's mappings."""
    for text in Path(f'/proc/{vm.pid}/maps').read_text().splitlines():
        words = text.split(None, 5)
        start, end = (int(n, 16) for n in words[0].split('-'))
        yield end - start, (words[3], int(words[4])), \
            words[5] if len(words) > 5 else ''


def ram_files(vm, least=32 << 20):
    """The files mapped by the process that are as large as guest memory:
    where these stay the same, nothing was copied."""
    return {file for size, file, _ in mappings(vm)
            if size >= least and file[1]}


def memory_sum(vm, address, size):
    """Checksum of guest physical memory, read from outside."""
    path = vm.dir / 'pmemsave'
    vm.qmp.execute('pmemsave', val=address, size=size, filename=str(path))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def screen(vm, **arguments):
    """What the screen shows, as a PPM file's bytes."""
    path = vm.dir / 'screen'
    vm.qmp.execute('screendump', filename=str(path), **arguments)
    return path.read_bytes()


def wait_until(condition):
    """Asks again until it holds, for what sends no event."""
    deadline = time.monotonic() + TIMEOUT
    while not (result := condition()):
        assert time.monotonic() < deadline, 'did not come true in time'
        time.sleep(0.01)        # leave the processor to the guest
    return result


@contextmanager
def held_open(path):
    """Whoever opens the file @path, which nobody has open, waits until the
    block ends (fcntl(2), leases). Gives a function that waits until somebody
    tries."""
    fd = os.open(path, os.O_WRONLY)
    try:
        # The kernel's signal would end this process; one that is ignored
        fcntl.fcntl(fd, F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        yield lambda: wait_until(
            lambda: fcntl.fcntl(fd, fcntl.F_GETLEASE) != fcntl.F_WRLCK)
    finally:
        os.close(fd)


def check_disk(vm, device='/dev/vda'):
    """Ends the guest's writing to a disk; nothing may be missing."""
    result = vm.agent.ask(f'disk stop {device}')
    assert result['errors'] == 0 and result['failed'] == 0, result
    assert result['writes'] > 0
    return result


def check_image_locked(vm, path, driver='raw'):
    """A second QEMU can't have the image of a disk that a guest writes."""
    second = subprocess.run(
        [vm.setup.new, *vm.setup.extra_args, '-nodefaults', '-display',
         'none', '-S', '-drive', f'if=virtio,format={driver},file={path}'],
        text=True, stderr=subprocess.PIPE, check=False, timeout=TIMEOUT)
    assert second.returncode and 'lock' in second.stderr, second.stderr


def unplug(vm, ident):
    """Removes a device with an id, as soon as the guest has let it go."""
    vm.qmp.execute('device_del', id=ident)
    vm.qmp.wait_event('DEVICE_DELETED', device=ident)


def changes(vm):
    """What commands have changed, as query-exec-upgrade tells it."""
    return sorted(vm.qmp.execute('query-exec-upgrade')['changes'])


def wait_disk_writes(vm, device='/dev/vda', more=20):
    """Waits until the guest has written @more blocks than it had."""
    first = vm.agent.ask(f'disk status {device}')['writes']
    wait_until(lambda: vm.agent.ask(f'disk status {device}')['writes']
               >= first + more)


def pci_address(vm, device_id):
    """The guest's name of the PCI device with an id like '1af4:1050'."""
    found = re.search(rf'^(\S+)/uevent:PCI_ID={device_id.upper()}$',
                      vm.agent.sh('cd /sys/bus/pci/devices; '
                                  'grep ^PCI_ID= */uevent'), re.M)
    assert found, f'no device {device_id} in the guest'
    return found[1]
