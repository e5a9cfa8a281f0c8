#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Run the test suites of meson.build and add up what they say

Arguments are given to pytest, and choose among the functional tests: with any,
those with libvirt don't run.
"""

import os
import shlex
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CHECK = ROOT / 'build' / 'check'


def junit(path):
    """{ suite: Counter of passed, failed, skipped } in a JUnit file"""
    found = {}
    for suite in ET.parse(path).getroot().iter('testsuite'):
        for case in suite.iter('testcase'):
            # "project:suite / test" from meson, else the suite's own name
            name = case.get('name')
            name = name if ' / ' in name else suite.get('name')
            tags = {child.tag for child in case}
            found.setdefault(name.split(':')[-1], Counter())[
                'failed' if tags & {'failure', 'error'} else
                'skipped' if 'skipped' in tags else 'passed'] += 1
    return found


def results():
    """The same for everything that ran, the tests of pytest one by one"""
    found = junit(CHECK / 'meson-logs' / 'testlog.junit.xml')
    for suite in 'functional', 'libvirt':
        path = CHECK / f'{suite}.xml'
        if not path.exists():
            continue
        counts = sum(junit(path).values(), Counter())
        name = f'{suite} / {suite}'
        # pytest that ended badly counts, whatever it wrote before
        if counts['failed'] or not found[name]['failed']:
            found[name] = counts
    return found


def main():
    start = time.monotonic()
    # The list of tests is made here, so that a new one isn't missed
    shutil.rmtree(CHECK, ignore_errors=True)
    env = dict(os.environ, PATH='/usr/bin:/bin:/usr/sbin:/sbin',
               PYTEST_ADDOPTS=shlex.join(sys.argv[1:]),
               PYTHONDONTWRITEBYTECODE='1')
    subprocess.run(['/usr/bin/meson', 'setup', str(CHECK), str(ROOT)],
                   check=True, env=env, stdout=subprocess.DEVNULL)
    status = subprocess.run(
        ['/usr/bin/meson', 'test', '-C', str(CHECK), '--verbose',
         '--no-rebuild', *(['--no-suite', 'libvirt'] if sys.argv[1:] else [])],
        check=False, env=env).returncode
    total = Counter()
    print()
    for name, counts in sorted(results().items()):
        total += counts
        print(f'{name:<32}' + ', '.join(
            f'{counts[what]} {what}'
            for what in ('passed', 'failed', 'skipped') if counts[what]))
    print(f'{total["passed"]} passed, {total["failed"]} failed, '
          f'{total["skipped"]} skipped '
          f'in {time.monotonic() - start:.0f}s')
    return 1 if status or total['failed'] or not total['passed'] else 0


if __name__ == '__main__':
    sys.exit(main())
