# SPDX-License-Identifier: GPL-2.0-or-later
"""
Each folder of migration/exec-upgrade/ uses only those below it

Checked in the text of the files, not by the compiler:

- A file includes headers of its own folder, the one header of a folder below
  it, as core/core.h, and QEMU's.
- It uses no function or variable of ours that a folder above it defines.
- A folder's header declares what this folder defines, so that no name gets
  down by way of a header.
- Files of one folder may use each other, but not in a circle.
- Code of ours beside QEMU's own files (*.c.inc), and stubs, include core's
  header and public ones; QEMU's own files and the public headers, only public
  ones.
- QEMU's libraries, which other programs have, too, use nothing of migration.
"""

import os
import re
import sys
import tempfile
import unittest
from pathlib import Path

sys.dont_write_bytecode = True
from plan import overlay_files  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
HOUSE = 'migration/exec-upgrade'
# From bottom to top
LAYERS = ('core', 'block', 'carry', 'ledger', 'handover', 'command')
# QEMU's libraries, with what the project adds to them
LIBRARY = re.compile(r'(include/)?(util|qemu|io|crypto|qom|qobject|qapi/qmp)/')
# Of the whole house
COMMON = (f'{HOUSE}/trace.h',)

NAME = re.compile(r'\b(?:qmp_|hmp_)?(?:query_|info_)?exec_upgrade(?:_\w+)?\b')
INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]+"([^"]+)"', re.MULTILINE)
# At the beginning of a line there is nothing but declarations and definitions
TOP = re.compile(r'^(?!typedef\b|return\b)(?P<before>[A-Za-z_][\w \t*]*?[\s*])'
                 rf'(?P<name>{NAME.pattern})\s*'
                 r'(?P<after>\((?:[^();{}]|\([^();{}]*\))*\)[\w\s(),]*?[;{]'
                 r'|(?:\[\w*\]\s*)*[=;])',
                 re.MULTILINE)


def code(text):
    """@text without comments and what is in strings; lines stay where they are

    What is included stays, too.
    """
    def blank(match):
        found = match.group()
        if found.startswith('/*') or found.startswith('//'):
            return re.sub(r'[^\n]', ' ', found)
        return found if match.group('include') else '""'

    return re.sub(r'(?s)/\*.*?\*/|//[^\n]*'
                  r'|(?P<include>#[ \t]*include[ \t]+"[^"\n]*")'
                  r'|"(?:[^"\\\n]|\\.)*"', blank, text)


def layer_of(path):
    """The folder of the house that has @path, or None"""
    parts = path.split('/')
    top = HOUSE.split('/')
    return parts[2] if parts[:2] == top and len(parts) > 3 else None


class File:
    """A source file or header of ours: what it includes, defines and uses"""

    def __init__(self, path, text):
        self.path = path
        self.layer = layer_of(path)
        self.code = code(text)
        self.defined, self.static, self.declared = set(), set(), {}
        for match in TOP.finditer(self.code):
            words = match['before'].split()
            name = match['name']
            if 'static' in words:
                self.static.add(name)
            elif match['after'].endswith(';') and (
                    'extern' in words or match['after'].startswith('(')):
                self.declared[name] = self.line(match.start('name'))
            else:
                self.defined.add(name)

    def line(self, position):
        return self.code.count('\n', 0, position) + 1

    def includes(self):
        for match in INCLUDE.finditer(self.code):
            yield self.line(match.start(1)), match.group(1)

    def uses(self):
        """(line, name) of each name that it does not define itself"""
        for match in NAME.finditer(self.code):
            if match.group() not in self.defined | self.static:
                yield self.line(match.start()), match.group()


class House:
    """All files of ours in the tree @root"""

    def __init__(self, root, paths):
        self.root = Path(root)
        self.files = {path: File(path, (self.root / path).read_text())
                      for path in paths if path.endswith(('.c', '.h', '.inc'))}
        self.owner = {name: file for path, file in self.files.items()
                      for name in file.defined if file.layer}

    def problems(self):
        found = []
        for file in self.files.values():
            found += self._includes(file)
            if LIBRARY.match(file.path):
                found += self._library(file)
            if file.layer and file.layer not in LAYERS:
                found.append(f'{file.path}:1: folder {file.layer} has no '
                             f'place among {", ".join(LAYERS)}')
            elif file.layer and file.path.endswith('.h'):
                found += self._declarations(file)
            elif file.layer:
                found += self._uses(file)
        for patch in sorted(self.root.glob('hooks/*/*.patch')):
            found += self._hooks(patch)
        return found + list(self._circles())

    def _resolve(self, file, name):
        """Path of the header of the house that "@name" is, or None"""
        beside = os.path.normpath(os.path.join(os.path.dirname(file.path),
                                               name))
        for path in (beside, name, f'include/{name}'):
            if path in self.files:
                return path if path.startswith(HOUSE + '/') else None
        return name if name.startswith(HOUSE + '/') else None

    def _may_include(self, file, path):
        layer = layer_of(path)
        if path in COMMON:
            return bool(file.layer)
        if layer not in LAYERS:
            return False
        if file.layer == layer:
            return True
        if path != f'{HOUSE}/{layer}/{layer}.h':
            return False
        if file.layer in LAYERS:
            return LAYERS.index(layer) < LAYERS.index(file.layer)
        return layer == 'core' and not file.path.startswith('include/')

    def _includes(self, file):
        for line, name in file.includes():
            path = self._resolve(file, name)
            if path and not self._may_include(file, path):
                yield (f'{file.path}:{line}: includes {path}, which is not '
                       f'below it')

    def _hooks(self, patch):
        path = ''
        for number, line in enumerate(patch.read_text().splitlines(), 1):
            where = f'{patch.relative_to(self.root)}:{number}'
            if line.startswith('+++ '):
                path = line.partition('/')[2]
            elif line.startswith('+'):
                for _, name in File(path, line[1:]).includes():
                    if name.startswith(HOUSE + '/'):
                        yield f'{where}: has {path} include {name}'
                if LIBRARY.match(path):
                    for problem in self._library(File(path, line[1:])):
                        yield f'{where}: {problem}'

    def _library(self, file):
        for line, name in file.includes():
            if name.startswith('migration/'):
                yield f'{file.path}:{line}: a library, includes {name}'
        for line, name in file.uses():
            if name in self.owner:
                yield (f'{file.path}:{line}: a library, uses {name} of '
                       f'{self.owner[name].path}')

    def _uses(self, file):
        for line, name in file.uses():
            owner = self.owner.get(name)
            if owner and owner.layer in LAYERS and (
                    LAYERS.index(owner.layer) > LAYERS.index(file.layer)):
                yield (f'{file.path}:{line}: uses {name} of {owner.path}, '
                       f'which is above it')

    def _declarations(self, file):
        for name, line in file.declared.items():
            owner = self.owner.get(name)
            if not owner or owner.layer != file.layer:
                where = owner.path if owner else 'no file of the house'
                yield (f'{file.path}:{line}: declares {name}, which {where} '
                       f'defines')

    def _circles(self):
        """A message for each use that is a part of a circle"""
        for file in self.files.values():
            for path, (line, name) in self._neighbours(file).items():
                way = self._way(path, file.path)
                if way:
                    yield (f'{file.path}:{line}: uses {name} of '
                           f'{" -> ".join(way)}, a circle')

    def _neighbours(self, file):
        """{ path of another file in its folder: first use of it }"""
        found = {}
        if file.layer and file.path.endswith('.c'):
            for line, name in file.uses():
                owner = self.owner.get(name)
                if owner and owner.layer == file.layer:
                    found.setdefault(owner.path, (line, name))
        return found

    def _way(self, start, end):
        """Paths from @start to @end by what each uses, or None"""
        ways = [[start]]
        seen = set()
        while ways:
            way = ways.pop(0)
            if way[-1] == end:
                return way
            if way[-1] not in seen:
                seen.add(way[-1])
                ways += [way + [path]
                         for path in self._neighbours(self.files[way[-1]])]
        return None


class LayersTest(unittest.TestCase):
    def test_tree(self):
        house = House(ROOT, overlay_files(ROOT))
        # It reads what it is to read
        self.assertEqual({file.layer for file in house.files.values()
                          if file.layer}, set(LAYERS))
        self.assertEqual(house.owner['exec_upgrade_add_blocker'].path,
                         f'{HOUSE}/core/report.c')
        self.assertEqual(house.owner['exec_upgrade_stage_block'].path,
                         f'{HOUSE}/block/block.c')
        self.assertEqual(house.owner['qmp_exec_upgrade'].path,
                         f'{HOUSE}/command/qmp.c')
        problems = house.problems()
        self.assertFalse(problems, '\n' + '\n'.join(problems))


class SelfTest(unittest.TestCase):
    """It finds what is wrong in a tree that is made up"""

    CORE_H = 'void exec_upgrade_ground(void);\n'
    CORE_C = ('#include "core.h"\n\n'
              'void exec_upgrade_ground(void)\n{\n}\n')
    CARRY_H = ('#include "migration/exec-upgrade/core/core.h"\n'
               'extern const int exec_upgrade_stage_net;\n'
               'char *exec_upgrade_net(int (*func)(int),\n'
               '                       int i);\n')
    CARRY_C = ('#include "migration/exec-upgrade/carry/carry.h"\n\n'
               'const int exec_upgrade_stage_net = 1;\n\n'
               'char *exec_upgrade_net(int (*func)(int),\n'
               '                       int i)\n'
               '{\n    exec_upgrade_ground();\n}\n')

    def check(self, expected, files=()):
        tree = {'core/core.h': self.CORE_H, 'core/core.c': self.CORE_C,
                'carry/carry.h': self.CARRY_H, 'carry/net.c': self.CARRY_C}
        tree = {f'{HOUSE}/{path}': text for path, text in tree.items()}
        tree.update(files)
        with tempfile.TemporaryDirectory() as tmp:
            for path, text in tree.items():
                (Path(tmp) / path).parent.mkdir(parents=True, exist_ok=True)
                (Path(tmp) / path).write_text(text)
            self.assertEqual(House(tmp, sorted(tree)).problems(), expected)

    def test_nothing_wrong(self):
        self.check([], files={
            f'{HOUSE}/core/a.c': '/* exec_upgrade_net() */\n'
                                 'static void exec_upgrade_own(void)\n{\n'
                                 '    puts("exec_upgrade_net");\n}\n',
            'net/tap-exec-upgrade.c.inc':
                '#include "net/exec-upgrade.h"\n'
                '#include "migration/exec-upgrade/core/core.h"\n'
                'void exec_upgrade_tap(void)\n{\n'
                '    exec_upgrade_net(NULL, 1);\n}\n',
            'include/net/exec-upgrade.h': 'void exec_upgrade_tap(void);\n'})

    def test_call_upwards(self):
        self.check([f'{HOUSE}/core/a.c:4: uses exec_upgrade_net of '
                    f'{HOUSE}/carry/net.c, which is above it'],
                   files={f'{HOUSE}/core/a.c':
                          '\nvoid exec_upgrade_a(void)\n{\n'
                          '    exec_upgrade_net(NULL, 1);\n}\n'})

    def test_variable_upwards(self):
        self.check([f'{HOUSE}/core/a.c:1: uses exec_upgrade_stage_net of '
                    f'{HOUSE}/carry/net.c, which is above it'],
                   files={f'{HOUSE}/core/a.c':
                          'int *all[] = { &exec_upgrade_stage_net };\n'})

    def test_include_upwards(self):
        for name in ('../carry/carry.h', f'{HOUSE}/carry/carry.h'):
            with self.subTest(name):
                self.check([f'{HOUSE}/core/a.c:2: includes '
                            f'{HOUSE}/carry/carry.h, which is not below it'],
                           files={f'{HOUSE}/core/a.c':
                                  f'\n#include "{name}"\n'})

    def test_private_header(self):
        self.check([f'{HOUSE}/carry/a.c:1: includes {HOUSE}/core/note.h, '
                    f'which is not below it'],
                   files={f'{HOUSE}/core/note.h': '\n',
                          f'{HOUSE}/carry/a.c':
                          f'#include "{HOUSE}/core/note.h"\n'})

    def test_beside_qemus_files(self):
        self.check([f'include/net/a.h:1: includes {HOUSE}/core/core.h, which '
                    f'is not below it',
                    f'net/a.c.inc:1: includes {HOUSE}/carry/carry.h, which '
                    f'is not below it',
                    f'hooks/7.2/net.patch:2: has net/net.c include '
                    f'{HOUSE}/core/core.h'],
                   files={'net/a.c.inc':
                          f'#include "{HOUSE}/carry/carry.h"\n',
                          'include/net/a.h':
                          f'#include "{HOUSE}/core/core.h"\n',
                          'hooks/7.2/net.patch':
                          f'+++ b/net/net.c\n+#include "{HOUSE}/core/core.h"\n'
                          })

    def test_library(self):
        self.check(['io/a.c:1: a library, includes migration/exec-upgrade.h',
                    f'io/a.c:2: a library, uses exec_upgrade_ground of '
                    f'{HOUSE}/core/core.c',
                    f'hooks/7.2/io.patch:2: util/a.c:1: a library, uses '
                    f'exec_upgrade_ground of {HOUSE}/core/core.c'],
                   files={'io/a.c': '#include "migration/exec-upgrade.h"\n'
                                    'int a = exec_upgrade_ground();\n',
                          'hooks/7.2/io.patch':
                          '+++ b/util/a.c\n+    exec_upgrade_ground();\n'})

    def test_declared_below(self):
        self.check([f'{HOUSE}/core/core.h:2: declares exec_upgrade_net, which '
                    f'{HOUSE}/carry/net.c defines'],
                   files={f'{HOUSE}/core/core.h': self.CORE_H +
                          'char *exec_upgrade_net(int (*func)(int), int i);\n'
                          })

    def test_circle(self):
        one = 'void exec_upgrade_one(void)\n{\n    exec_upgrade_two();\n}\n'
        two = 'void exec_upgrade_two(void)\n{\n    exec_upgrade_one();\n}\n'
        self.check([f'{HOUSE}/core/1.c:3: uses exec_upgrade_two of '
                    f'{HOUSE}/core/2.c -> {HOUSE}/core/1.c, a circle',
                    f'{HOUSE}/core/2.c:3: uses exec_upgrade_one of '
                    f'{HOUSE}/core/1.c -> {HOUSE}/core/2.c, a circle'],
                   files={f'{HOUSE}/core/1.c': one, f'{HOUSE}/core/2.c': two})

    def test_folder_without_a_place(self):
        self.check([f'{HOUSE}/misc/a.c:1: folder misc has no place among '
                    f'{", ".join(LAYERS)}'],
                   files={f'{HOUSE}/misc/a.c': '\n'})


if __name__ == '__main__':
    unittest.main()
