# SPDX-License-Identifier: GPL-2.0-or-later
"""How the plan splits files between patches"""

import sys
import tempfile
import unittest

sys.dont_write_bytecode = True
from plan import Plan, PlanError, in_overlay  # noqa: E402


def plan(*files):
    """A plan with one patch for each argument, a list of its Files"""
    with tempfile.NamedTemporaryFile('w') as f:
        for number, lines in enumerate(files):
            f.write(f'Patch: {number}\nFiles:\n')
            f.writelines(f' {line}\n' for line in lines)
            f.write('\n')
        f.flush()
        return Plan(f.name)


def text(lines):
    return [line + '\n' for line in lines.split()]


class SplitTest(unittest.TestCase):
    def test_path_beats_glob_and_long_glob_beats_short(self):
        p = plan(['net/*', '*'], ['net/tap.c'], ['net/t*'])
        self.assertEqual(p.split('net/tap.c', None, ['x']), {1: ['x']})
        self.assertEqual(p.split('net/tun.c', None, ['x']), {2: ['x']})
        self.assertEqual(p.split('net/net.c', None, ['x']), {0: ['x']})
        self.assertEqual(p.split('vl.c', None, ['x']), {0: ['x']})

    def test_nobody_has_the_file(self):
        with self.assertRaisesRegex(PlanError, 'net/tap.c is in no patch'):
            plan(['ui/*']).split('net/tap.c', None, ['x'])

    def test_nobody_has_the_rest_of_the_file(self):
        with self.assertRaisesRegex(PlanError, 'line 2 is in no patch'):
            plan(['a.c /x/']).split('a.c', None, text('x y'))

    def test_two_have_the_file(self):
        with self.assertRaisesRegex(PlanError, 'a.c is in 0 and 1'):
            plan(['a.c'], ['a.c']).split('a.c', None, ['x'])

    def test_lines_of_a_new_file(self):
        p = plan(['a.c'], ['a.c /b/,/d/'], ['a.c /f/,+1'])
        self.assertEqual(p.split('a.c', None, text('a b c d e f g h')),
                         {0: text('a e h'), 1: text('a b c d e h'),
                          2: text('a b c d e f g h')})

    def test_lines_added_to_a_file(self):
        p = plan(['a.c'], ['a.c /two/'])
        self.assertEqual(p.split('a.c', text('a b c'),
                                 text('a one two b c')),
                         {0: text('a one b c'), 1: text('a one two b c')})

    def test_lines_replaced_and_removed(self):
        p = plan(['a.c'], ['a.c /new|gone/'])
        self.assertEqual(
            p.split('a.c', text('a old b c d gone e'),
                    text('x a new b c d e')),
            {0: text('x a old b c d gone e'), 1: text('x a new b c d e')})

    def test_file_removed(self):
        self.assertEqual(plan(['a.c']).split('a.c', ['x'], None), {0: None})

    def test_range_without_end(self):
        with self.assertRaisesRegex(PlanError, 'is not followed by'):
            plan(['*'], ['a.c /b/,/z/']).split('a.c', None, text('a b c'))


class OverlayTest(unittest.TestCase):
    def test_folders(self):
        for path in ('net/x.c', 'tests/qtest/x.c', 'docs/devel/x.rst'):
            self.assertTrue(in_overlay(path), path)
        for path in ('configure', 'hooks/7.2/series', 'tests/guest/x.c',
                     'docs/index.rst', 'maint/plan.py', 'tests/demo.py'):
            self.assertFalse(in_overlay(path), path)


if __name__ == '__main__':
    unittest.main()
