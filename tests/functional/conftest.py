# SPDX-License-Identifier: GPL-2.0-or-later
"""Options and fixtures; the package harness says how to write a test."""

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from harness.image import image
from harness.vm import VM, Setup

TOP = Path(__file__).resolve().parents[2]
OPTIONS = {
    'old': ('build/old/qemu-system-x86_64', 'QEMU to start'),
    'new': ('build/new/qemu-system-x86_64', 'QEMU to upgrade to'),
    'qemu-python': ('build/src/7.2.*/python',
                    "folder of QEMU's Python packages"),
    'cache': ('build/guest', 'where the guest image is kept'),
    'qemu-args': ('', 'arguments added to every QEMU'),
}


def pytest_addoption(parser):
    group = parser.getgroup('exec-upgrade')
    for name, (default, text) in OPTIONS.items():
        env = 'EXEC_UPGRADE_' + name.upper().replace('-', '_')
        group.addoption(f'--{name}', default=os.environ.get(env),
                        help=f'{text} (default: ${env} or "{default}")')


def option(config, name):
    value = config.getoption(name.replace('-', '_'))
    if value is not None:
        return value
    default = OPTIONS[name][0]
    found = sorted(TOP.glob(default) if '*' in default else [TOP / default],
                   key=lambda p: [int(n) for n in re.findall(r'\d+', str(p))])
    return str(found[-1]) if found and default else ''


@pytest.fixture(scope='session')
def setup(request):
    values = {name: option(request.config, name) for name in OPTIONS}
    for name in 'old', 'new':
        if not os.access(values[name], os.X_OK):
            pytest.exit(f"--{name}: no program {values[name]}; run 'make'", 2)
    return Setup(os.path.realpath(values['old']),
                 os.path.realpath(values['new']), image(values['cache']),
                 values['qemu-python'],
                 tuple(shlex.split(values['qemu-args'])))


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
def qemu_img(setup):
    """Runs qemu-img, returns what it prints."""
    def run(*args):
        return subprocess.run([setup.tool('qemu-img'), *map(str, args)],
                              check=True, text=True, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT).stdout
    return run


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    report = outcome.get_result()
    if report.failed and call.when == 'call':
        shared = [value for value in item.funcargs.values()
                  if isinstance(value, VM)]
        for vm in dict.fromkeys([*getattr(item, 'vms', []), *shared]):
            report.sections += vm.report()
