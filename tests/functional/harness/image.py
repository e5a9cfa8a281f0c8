# SPDX-License-Identifier: GPL-2.0-or-later
"""Builds the test guest: Debian's kernel, an initramfs with tests/guest's
agent as init, and a boot sector. All is cached under build/, keyed by what
it was made from."""

import fcntl
import glob
import hashlib
import lzma
import os
import re
import stat
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

GUEST = Path(__file__).resolve().parents[2] / 'guest'
GUEST_AGENT = '/usr/sbin/qemu-ga'
AGENT = 'agent.c', 'mem.c', 'disk.c', 'lines.c', 'clock.c'

# With what they depend on. Which of them a guest loads, its devices decide.
MODULES = '''
    virtio_pci virtio_blk virtio_scsi virtio_net virtio_console
    virtio_balloon virtio_rng virtio_mem virtio-gpu virtio_input
    sd_mod sr_mod ahci ata_piix ata_generic e1000e e1000 xhci_pci
    usb_storage uas usbhid hid_generic evdev i2c_i801 psmouse button
    sym53c8xx mptsas vmw_pvscsi i6300esb pvpanic_mmio pvpanic_pci bochs
'''.split()


@dataclass(frozen=True)
class Image:
    kernel: str         # Debian's own file
    fast_kernel: str    # the same unpacked: starts two seconds sooner
    initrd: str
    boot_sector: str

    def initrd_with_guest_agent(self):
        """@initrd with Debian's qemu-ga, built unless it is there."""
        path = Path(self.initrd).with_name('initrd-guest-agent')
        with open(path.with_name('lock'), 'w') as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.exists():
                new = path.with_suffix('.new')
                # the kernel unpacks one archive after the other
                new.write_bytes(Path(self.initrd).read_bytes() +
                                guest_agent_archive())
                new.rename(path)
        return str(path)


def newest_kernel():
    """Path and version of the newest kernel in /boot that has modules."""
    found = [(path, path.removeprefix('/boot/vmlinuz-'))
             for path in glob.glob('/boot/vmlinuz-*')]
    found = [(path, version) for path, version in found
             if os.path.exists(f'/lib/modules/{version}/modules.dep')]
    if not found:
        raise RuntimeError('no kernel with modules in /boot; '
                           'install linux-image-amd64')
    return max(found, key=lambda f: [int(n) for n in re.findall(r'\d+', f[1])])


class Cpio:
    """An archive in the kernel's format
    (Documentation/driver-api/early-userspace/buffer-format.rst)."""

    def __init__(self):
        self.data = bytearray()
        self.dirs = set()

    def _entry(self, name, mode, content=b''):
        name = name.encode() + b'\0'
        fields = [0, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name), 0]
        self.data += b'070701' + b''.join(b'%08x' % f for f in fields) + name
        self._pad()
        self.data += content
        self._pad()

    def _pad(self):
        self.data += bytes(-len(self.data) % 4)

    def dir(self, name):
        if name and name not in self.dirs:
            self.dir(os.path.dirname(name))
            self.dirs.add(name)
            self._entry(name, stat.S_IFDIR | 0o755)

    def file(self, name, content, mode=0o755):
        self.dir(os.path.dirname(name))
        self._entry(name, stat.S_IFREG | mode, content)

    def link(self, name, target):
        self.dir(os.path.dirname(name))
        self._entry(name, stat.S_IFLNK | 0o777, target.encode())

    def finish(self):
        self._entry('TRAILER!!!', 0)
        return bytes(self.data)


def modules(version):
    """Yields (name in the guest, content) of all module files needed."""
    top = Path('/lib/modules') / version
    depends = dict(line.split(':') for line in
                   (top / 'modules.dep').read_text().splitlines())
    by_name = {Path(path).stem.replace('-', '_'): path for path in depends}
    wanted = set()
    for name in MODULES:
        path = by_name.get(name.replace('-', '_'))
        if path:
            wanted |= {path, *depends[path].split()}
    names = {Path(path).stem.replace('-', '_') for path in wanted}
    aliases = [line for line in
               (top / 'modules.alias').read_text().splitlines(True)
               if line.split()[-1].replace('-', '_') in names]
    prefix = f'lib/modules/{version}/'
    for path in sorted(wanted):
        yield prefix + path, (top / path).read_bytes()
    yield prefix + 'modules.dep', ''.join(
        f'{path}:{depends[path]}\n' for path in sorted(wanted)).encode()
    yield prefix + 'modules.alias', ''.join(aliases).encode()


def build_fast_kernel(out, kernel):
    """Unpacks a bzImage (Documentation/x86/boot.rst, payload_offset); QEMU
    starts the ELF file in it by its PVH note."""
    data = Path(kernel).read_bytes()
    start = (data[0x1f1] + 1) * 512
    offset, length = struct.unpack_from('<II', data, 0x248)
    payload = data[start + offset:start + offset + length]
    if not payload.startswith(b'\xfd7zXZ'):
        out.symlink_to(kernel)
        return
    out.write_bytes(lzma.LZMADecompressor().decompress(payload))


def build_agent(out):
    subprocess.run(['gcc', '-static', '-O2', '-s', '-Wall', '-pthread',
                    '-o', out, *(GUEST / name for name in AGENT)],
                   check=True)


def build_boot_sector(out):
    obj = out.with_suffix('.o')
    subprocess.run(['gcc', '-m32', '-c', '-o', obj, GUEST / 'bootsect.S'],
                   check=True)
    subprocess.run(['ld', '-m', 'elf_i386', '-Ttext', '0x7c00',
                    '--oformat', 'binary', '-o', out, obj], check=True)


def build_initrd(out, version, agent):
    busybox = next((p for p in ('/bin/busybox', '/usr/bin/busybox')
                    if os.path.exists(p)), None)
    if not busybox:
        raise RuntimeError('no busybox; install busybox-static')
    cpio = Cpio()
    for name in 'proc', 'sys', 'dev', 'root', 'etc':
        cpio.dir(name)
    cpio.file('init', agent.read_bytes())
    cpio.file('bin/busybox', Path(busybox).read_bytes())
    applets = subprocess.run([busybox, '--list'], check=True, text=True,
                             capture_output=True).stdout.split()
    for applet in applets:
        if applet != 'busybox':
            cpio.link(f'bin/{applet}', 'busybox')
    for name, content in modules(version):
        cpio.file(name, content, 0o644)
    out.write_bytes(cpio.finish())


def libraries(program):
    """Paths of the dynamic loader and all libraries that a program needs."""
    text = subprocess.run(['ldd', program], check=True, text=True,
                          capture_output=True).stdout
    return re.findall(r'(/\S+) \(0x', text)


def guest_agent_archive():
    """qemu-ga, and what it runs when it is told to shut down."""
    if not os.path.exists(GUEST_AGENT):
        raise RuntimeError(f'no {GUEST_AGENT}; install qemu-guest-agent')
    cpio = Cpio()
    for path in GUEST_AGENT, *libraries(GUEST_AGENT):
        cpio.file(path.lstrip('/'), Path(path).read_bytes())
    cpio.dir('run')
    cpio.dir('var')
    cpio.link('var/run', '/run')
    # qemu-ga says -P, -H or -r (qga/commands-posix.c, qmp_guest_shutdown)
    cpio.file('sbin/shutdown', b'''#!/bin/sh
case "$*" in *-r*) reboot -f ;; *) poweroff -f ;; esac
''')
    # where busybox's acpid looks for what the power button does
    cpio.file('etc/acpi/PWRF/00000080', b'#!/bin/sh\npoweroff -f\n')
    return cpio.finish()


def image(cache):
    """The guest image, built in the folder @cache unless it is there."""
    kernel, version = newest_kernel()
    key = hashlib.sha256(f'{version} {os.stat(kernel).st_mtime}'.encode())
    for path in [Path(__file__), *(GUEST / name for name in (
            *AGENT, 'agent.h', 'bootsect.S'))]:
        key.update(path.read_bytes())
    folder = Path(cache) / key.hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    initrd, sector = folder / 'initrd', folder / 'boot-sector'
    fast_kernel = folder / 'vmlinux'
    with open(folder / 'lock', 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not initrd.exists():
            build_agent(folder / 'agent')
            build_boot_sector(sector)
            build_fast_kernel(fast_kernel, kernel)
            build_initrd(folder / 'initrd.new', version, folder / 'agent')
            (folder / 'initrd.new').rename(initrd)
    return Image(kernel, str(fast_kernel), str(initrd), str(sector))
