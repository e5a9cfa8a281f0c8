# SPDX-License-Identifier: GPL-2.0-or-later
"""Huge pages for a guest's memory."""

import fcntl
from contextlib import contextmanager
from pathlib import Path

import pytest

COUNT = Path('/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages')


@contextmanager
def huge_pages(count):
    """Adds @count pages of 2 MiB to the host's, for one test at a time;
    where that is impossible, the test is skipped."""
    with open('/var/tmp/exec-upgrade-hugepages.lock', 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            before = COUNT.read_text()
            COUNT.write_text(str(int(before) + count))
        except OSError as error:
            pytest.skip(f'no right to allocate huge pages: {error}')
        try:
            if int(COUNT.read_text()) < int(before) + count:
                pytest.skip('the host has not enough huge pages')
            yield
        finally:
            COUNT.write_text(before)
