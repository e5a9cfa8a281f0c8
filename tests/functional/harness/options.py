# SPDX-License-Identifier: GPL-2.0-or-later
"""What the test suites are told on their command line."""

import os
import re
import shlex
from pathlib import Path

import pytest

from .image import image
from .vm import Setup

TOP = Path(__file__).resolve().parents[3]
OPTIONS = {
    'old': ('build/old/qemu-system-x86_64', 'QEMU to start'),
    'new': ('build/new/qemu-system-x86_64', 'QEMU to upgrade to'),
    'qemu-python': ('build/src/7.2.*/python',
                    "folder of QEMU's Python packages"),
    'cache': ('build/guest', 'where the guest image is kept'),
    'qemu-args': ('', 'arguments added to every QEMU'),
}


def add_options(parser):
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


def read_setup(config):
    """The options, as the tests want them."""
    values = {name: option(config, name) for name in OPTIONS}
    for name in 'old', 'new':
        if not os.access(values[name], os.X_OK):
            pytest.exit(f"--{name}: no program {values[name]}; run 'make'", 2)
    return Setup(os.path.realpath(values['old']),
                 os.path.realpath(values['new']), image(values['cache']),
                 values['qemu-python'],
                 tuple(shlex.split(values['qemu-args'])))
