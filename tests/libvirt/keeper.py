#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Keeps a test host: makes its folder, says where that is, and starts its
process 1 (init.py) when it is told so by a byte. When its standard input
ends, which it also does when the test is killed, it removes all that there
is of the host.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

INIT = Path(__file__).with_name('init.py')
# How long the kernel may take to end the host's processes
TIMEOUT = 60


def cgroup_hierarchies(kinds=('cgroup', 'cgroup2')):
    """Folders of the hierarchies that this machine has mounted, of these
    kinds of file systems."""
    for text in Path('/proc/self/mounts').read_text().splitlines():
        _, path, kind, *_ = text.split()
        if kind in kinds:
            yield Path(path)


def make_cgroups(name):
    """Yields the paths."""
    for hierarchy in cgroup_hierarchies():
        folder = hierarchy / name
        folder.mkdir()
        yield folder
        for file in 'cpuset.cpus', 'cpuset.mems':
            if (folder / file).exists():
                (folder / file).write_text((hierarchy / file).read_text())


def enter(cgroups):
    for folder in cgroups:
        (folder / 'cgroup.procs').write_text('0')


def run_init(folder, cgroups):
    """Until the end of standard input, which is init.py's, too."""
    # pylint: disable=subprocess-popen-preexec-fn
    subprocess.run(
        ['setpriv', '--pdeathsig', 'KILL', 'unshare', '--mount',
         '--propagation', 'private', '--pid', '--fork', '--kill-child',
         '--mount-proc', '--net', '--uts', '--ipc', '--cgroup',
         sys.executable, '-B', INIT, folder],
        preexec_fn=lambda: enter(cgroups), check=True)


def remove_cgroup(folder):
    deadline = time.monotonic() + TIMEOUT
    while True:
        with contextlib.suppress(FileNotFoundError):
            try:
                folder.rmdir()
            except OSError:             # processes have not ended yet
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
                continue
        return


def main():
    folder = tempfile.mkdtemp(prefix='exec-upgrade-libvirt-', dir='/var/tmp')
    cgroups = []
    try:
        os.chmod(folder, 0o755)
        print(folder, flush=True)
        if os.read(0, 1):
            for cgroup in make_cgroups(Path(folder).name):
                cgroups.append(cgroup)
            run_init(folder, cgroups)
            os.read(0, 1)               # should it have ended by itself
    finally:
        for top in cgroups:
            for path, _, _ in os.walk(top, topdown=False):
                remove_cgroup(Path(path))
        shutil.rmtree(folder)


if __name__ == '__main__':
    main()
