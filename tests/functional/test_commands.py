# SPDX-License-Identifier: GPL-2.0-or-later
"""docs/devel/exec-upgrade-commands.rst says of every QMP command what an
upgrade does with its effect."""

import re
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[2] / \
    'docs/devel/exec-upgrade-commands.rst'
CLASSES = ['Carried', 'Refused', 'No effect']
LIBVIRT = Path('/usr/lib/x86_64-linux-gnu/libvirt/connection-driver/'
               'libvirt_driver_qemu.so')


@pytest.fixture(scope='module')
def table():
    """[(class, command, whether libvirt has it, what becomes of it)]"""
    rows = []
    title = None
    lines = PAGE.read_text().splitlines()
    for line, following in zip(lines, lines[1:] + ['']):
        if line and following == '=' * len(line):
            title = line
        row = re.fullmatch(r'``([\w-]+)`` +(yes|no) +(\S.*)', line)
        if row:
            rows.append((title, row[1], row[2] == 'yes', row[3]))
    return rows


@pytest.fixture(scope='module')
def schema_commands(setup):
    """Names of the commands in QEMU's schema, of all targets"""
    source = Path(setup.qemu_python).parent
    sys.path.append(str(source / 'scripts'))
    # pylint: disable=import-outside-toplevel
    from qapi.schema import QAPISchema, QAPISchemaVisitor

    class Commands(QAPISchemaVisitor):
        names = set()

        def visit_command(self, name, *_args, **_kwargs):
            self.names.add(name)

    QAPISchema(str(source / 'qapi/qapi-schema.json')).visit(Commands())
    return Commands.names


def test_every_command_is_classed_once(table, schema_commands):
    names = [name for _, name, _, _ in table]
    assert sorted(names) == sorted(schema_commands)
    assert {title for title, _, _, _ in table} == set(CLASSES)


@pytest.mark.parametrize('which', ['old', 'new'])
def test_every_command_of_the_binary(table, make_vm, setup, which):
    """The binary may have commands that the newest schema has not."""
    vm = make_vm(binary=getattr(setup, which), kernel=None).start()
    has = {c['name'] for c in vm.qmp.execute('query-commands')}
    assert has <= {name for _, name, _, _ in table}


def test_libvirt_mark(table):
    """A command's name is a string in libvirt's driver, or the end of one:
    linkers merge them. That it is there does not say that it is a command's,
    so that only this direction is checked."""
    strings = LIBVIRT.read_bytes()
    marked = [name for _, name, mark, _ in table if mark]
    assert len(marked) > 100
    assert not [name for name in marked
                if name.encode() + b'\0' not in strings]
