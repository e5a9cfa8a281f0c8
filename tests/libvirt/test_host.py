# SPDX-License-Identifier: GPL-2.0-or-later
"""Nothing of a host is left behind."""

import multiprocessing
import signal

from harness import TIMEOUT

from host import Host, wait_for
from keeper import cgroup_hierarchies


def remains(folder):
    """What there is of a host."""
    return [path for path in (
        folder, *(top / folder.name for top in cgroup_hierarchies()))
        if path.exists()]


def test_closed(make_host):
    host = make_host().start()
    assert len(remains(host.folder)) == 1 + len(list(cgroup_hierarchies()))
    host.close()
    assert not remains(host.folder)


def test_killed(setup):
    """The process that made it is."""
    context = multiprocessing.get_context('fork')
    ours, theirs = context.Pipe()

    def hold():
        theirs.send(Host(setup).start().folder)
        signal.pause()

    process = context.Process(target=hold)
    process.start()
    theirs.close()
    assert ours.poll(TIMEOUT)
    folder = ours.recv()
    assert remains(folder)
    process.kill()
    process.join()
    wait_for(lambda: not remains(folder), 'the end of the host')
