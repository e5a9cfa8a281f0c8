# SPDX-License-Identifier: GPL-2.0-or-later
"""Options and fixtures; the package harness says how to write a test."""

import os
import shutil
from pathlib import Path

import pytest

from harness.net import Namespace
from harness.options import add_options, read_setup
from harness.vm import VM


def pytest_addoption(parser):
    add_options(parser)


@pytest.fixture(scope='session')
def setup(request):
    return read_setup(request.config)


@pytest.fixture
def make_vm(setup, request):
    """Makes a VM without starting it; all are ended with the test."""
    vms = request.node.vms = []

    def make(*args, **kwargs):
        vms.append(VM(setup, *args, **kwargs))
        return vms[-1]

    yield make
    for vm in vms:
        vm.kill()


@pytest.fixture
def boot(make_vm):
    """Makes a VM and waits until its guest is up."""
    return lambda *args, **kwargs: make_vm(*args, **kwargs).boot()


@pytest.fixture
def broken_binary(setup, tmp_path):
    """One that passes every check, and that the kernel can't execute."""
    loader = b'/lib64/ld-linux-x86-64.so.2\0'
    data = Path(setup.new).read_bytes()
    assert data.count(loader) == 1, 'not linked as expected'
    path = tmp_path / 'broken'
    path.write_bytes(data.replace(loader, loader.replace(b'2', b'X', 1)))
    path.chmod(0o755)
    return path


@pytest.fixture
def ns():
    """A network of its own: bridge, taps and the host's side of them."""
    if os.geteuid() or not os.access('/dev/net/tun', os.W_OK) or \
            not shutil.which('ip'):
        pytest.skip('needs root, ip and /dev/net/tun')
    namespace = Namespace()
    yield namespace
    namespace.close()


@pytest.fixture
def qemu_img(setup):
    """Runs qemu-img, returns its standard output."""
    return setup.qemu_img


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    report = outcome.get_result()
    if report.failed and call.when == 'call':
        shared = [value for value in item.funcargs.values()
                  if isinstance(value, VM)]
        for vm in dict.fromkeys([*getattr(item, 'vms', []), *shared]):
            report.sections += vm.report()
