# SPDX-License-Identifier: GPL-2.0-or-later
"""Fixtures; README.md says how to write a test."""

import contextlib
import os

import pytest

# libvirt runs an emulator that it does not know several times before it
# starts a domain. Read by harness, for all its waiting.
os.environ.setdefault('EXEC_UPGRADE_TEST_TIMEOUT', '180')

# pylint: disable=wrong-import-position
from harness.options import add_options, read_setup

from host import Host


def pytest_addoption(parser):
    add_options(parser)


@pytest.fixture(scope='session')
def setup(request):
    return read_setup(request.config)


@pytest.fixture(scope='module')
def make_host(setup):
    """Makes a host without daemons; all end with the module's tests."""
    with contextlib.ExitStack() as hosts:
        def make(*args, **kwargs):
            host = Host(setup, *args, **kwargs)
            hosts.callback(host.close)
            return host

        yield make


@pytest.fixture(scope='module')
def host(make_host):
    """With daemons, and Debian's configuration."""
    return make_host().start()
