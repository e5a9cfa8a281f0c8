#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Process 1 of a test host: gives it folders of its own, then waits for the
end of its standard input and for children that nobody else waits for.

init.py FOLDER: each of the paths in FOLDERS is FOLDER/its path.
"""

import os
import select
import signal
import subprocess
import sys

# Where libvirt's own paths, and the emulator's, lead
FOLDERS = ('/run', '/etc/libvirt', '/var/lib/libvirt', '/var/cache/libvirt',
           '/var/log/libvirt', '/usr/local')


def mount(*args):
    subprocess.run(['mount', *args], check=True)


def own_cgroups():
    """Mounts the hierarchies again, so that the host's root is their root."""
    with open('/proc/self/mounts', encoding='ascii') as mounts:
        found = [line.split() for line in mounts]
    for _, path, kind, options, *_ in found:
        if kind == 'cgroup':
            names = [o for o in options.split(',')
                     if o not in ('rw', 'ro', 'relatime', 'nosuid', 'nodev',
                                  'noexec')]
            if any(name.startswith('name=') for name in names):
                names.insert(0, 'none')
            subprocess.run(['umount', path], check=True)
            mount('-t', 'cgroup', '-o', ','.join(names), 'cgroup', path)
        elif kind == 'cgroup2':
            subprocess.run(['umount', path], check=True)
            mount('-t', 'cgroup2', 'cgroup2', path)


def reap():
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return


def main():
    for path in FOLDERS:
        mount('--bind', sys.argv[1] + path, path)
    mount('-t', 'tmpfs', 'tmpfs', '/dev/shm')
    own_cgroups()
    subprocess.run(['ip', 'link', 'set', 'lo', 'up'], check=True)

    read_end, write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(write_end)
    print('ready', flush=True)
    while True:
        reap()
        ready, _, _ = select.select([0, read_end], [], [])
        if read_end in ready:
            os.read(read_end, 4096)
        if 0 in ready and not os.read(0, 4096):
            return


if __name__ == '__main__':
    main()
