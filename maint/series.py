#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Write build/series/RELEASE: the project as patches for `git am`

hooks/plan says what is in which patch.  The project's entry in MAINTAINERS
goes where the plan names MAINTAINERS, behind QEMU's entry for migration.
"""

import argparse
import fcntl
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

sys.dont_write_bytecode = True
import source_tree  # noqa: E402
from plan import (Plan, PlanError, git, in_overlay, overlay_files,  # noqa: E402
                  patch_text)

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / 'build'

# The one thing that checkpatch may say: the series adds its entry to
# MAINTAINERS once, for all of its files.
HARMLESS = 'does MAINTAINERS need updating?'
PROGRAMS = ('qemu-system-x86_64', 'qemu-img', 'qemu-io',
            'storage-daemon/qemu-storage-daemon')


def maintainers_entry():
    """(entry for QEMU's MAINTAINERS, name and address of the first M:)"""
    text = (ROOT / 'MAINTAINERS').read_text()
    address = re.search(r'^M: (.*)$', text, re.MULTILINE)
    if not address:
        raise PlanError('MAINTAINERS: no line "M: NAME <ADDRESS>"')
    entry = []
    for paragraph in re.split(r'\n\n+', text.strip()):
        lines = paragraph.split('\n')
        kept = [line for line in lines if not line.startswith('F: ')
                or in_overlay(line[3:].strip().rstrip('/') + '/x')
                or in_overlay(line[3:].strip())]
        if any(line.startswith('F: ') for line in kept):
            entry.append('\n'.join(kept))
    return '\n\n'.join(entry), address.group(1)


def add_maintainers(path, entry):
    text = path.read_text()
    match = re.search(r'^Migration\n(?:.+\n)+\n', text, re.MULTILINE)
    if not match:
        raise PlanError('QEMU\'s MAINTAINERS has no entry "Migration"')
    path.write_text(text[:match.end()] + entry + '\n\n' + text[match.end():])


class Series:
    """The series for @release, in a git repository of its own"""

    def __init__(self, base, release):
        self.release = release
        self.hooks = source_tree.Hooks(base)
        self.plan = Plan(ROOT / 'hooks' / 'plan')
        self.work = BUILD / 'series' / f'{release}.git'
        self.out = BUILD / 'series' / release

    def start(self, branch):
        """Have the pristine release, and nothing else, in the work tree

        Returns its commit.
        """
        base = git(BUILD / 'qemu', 'rev-parse', f'v{self.release}').strip()
        if not self.work.exists():
            new = self.work.with_suffix('.new')
            shutil.rmtree(new, ignore_errors=True)
            git(BUILD, 'clone', '-q', '--shared', '--no-tags',
                '--no-checkout', str(BUILD / 'qemu'), str(new))
            git(new, 'config', 'core.hooksPath', '/dev/null')
            git(new, 'config', 'commit.gpgsign', 'false')
            git(new, 'config', 'core.excludesFile', '/dev/null')
            new.rename(self.work)
        # A run that was broken off may have left an am, a change, a file
        shutil.rmtree(self.work / '.git' / 'rebase-apply',
                      ignore_errors=True)
        git(self.work, 'checkout', '-q', '-f', '-B', branch, base)
        git(self.work, 'clean', '-q', '-f', '-d', '-x')
        return base

    def overlay_steps(self):
        """{ index of the patch: { path: lines } }"""
        steps = {}
        for path in overlay_files(ROOT):
            data = (ROOT / path).read_bytes().decode('utf-8',
                                                     'surrogateescape')
            lines = re.findall(r'[^\n]*\n|[^\n]+', data)
            for patch, text in self.plan.split(path, None, lines).items():
                steps.setdefault(patch, {})[path] = text
        return steps

    def hook_steps(self):
        """{ index of the patch: quilt patch }"""
        index = {patch.name: i for i, patch in enumerate(self.plan.patches)}
        steps = {}
        for hook in self.hooks.patches:
            name = hook.name[:-len('.patch')]
            if name not in index:
                raise PlanError(f'hooks/plan: {hook.name} is in no patch')
            if steps and index[name] < max(steps):
                raise PlanError(f'hooks/plan: {name} stands in another order '
                                f'than in {self.hooks.folder.name}/series')
            steps[index[name]] = hook
        return steps

    def message(self, patch, hook, author):
        subject, body = patch_text(hook) if hook else ('', '')
        subject, body = patch.subject or subject, patch.body or body
        if ': ' not in subject or not body:
            raise PlanError(f'hooks/plan: {patch.name} needs a subject '
                            f'"area: what it does" and a body')
        if len(subject) > 76:
            raise PlanError(f'hooks/plan: {patch.name}: subject is too long')
        return f'{subject}\n\n{body}\n\nSigned-off-by: {author}\n'

    def commit(self, message, author, date):
        name, address = re.fullmatch(r'(.*?)\s*<(.*)>', author).groups()
        env = {f'GIT_{who}_{what}': value
               for who in ('AUTHOR', 'COMMITTER')
               for what, value in (('NAME', name), ('EMAIL', address),
                                   ('DATE', date))}
        git(self.work, 'add', '-A', '-f')
        git(self.work, 'commit', '-q', '--cleanup=whitespace', '-F', '-',
            stdin=message.encode('utf-8', 'surrogateescape'), env=env)

    def date(self):
        """Date of the repository's last commit: the same series each time"""
        try:
            return git(ROOT, 'log', '-1', '--format=%cI').strip()
        except PlanError:
            return '2026-01-01T00:00:00Z'

    def write(self):
        base = self.start('series')
        overlay, hooks = self.overlay_steps(), self.hook_steps()
        entry, author = maintainers_entry()
        date = self.date()
        entry_patch = self.plan.split('MAINTAINERS', None, ['x\n']).popitem()[0]
        for i, patch in enumerate(self.plan.patches):
            if i not in overlay and i not in hooks and i != entry_patch:
                continue
            hook = hooks.get(i)
            if hook:
                source_tree.run_patch(self.work, hook)
            for path, lines in overlay.get(i, {}).items():
                target = self.work / path
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(''.join(lines).encode(
                    'utf-8', 'surrogateescape'))
                target.chmod((ROOT / path).stat().st_mode & 0o777)
            if i == entry_patch:
                add_maintainers(self.work / 'MAINTAINERS', entry)
            self.commit(self.message(patch, hook, author), author, date)
        shutil.rmtree(self.out, ignore_errors=True)
        git(self.work, 'format-patch', '-q', '--no-signature',
            '--zero-commit', '--no-renames', '-o', str(self.out), base)
        return self.patches()

    def patches(self):
        return sorted(self.out.glob('*.patch'))

    def check(self):
        """Apply with git am to the pristine release, ask checkpatch

        Returns the number of patches that something is wrong with.
        """
        wanted = git(self.work, 'rev-parse', 'HEAD^{tree}')
        base = self.start('check')
        env = {'GIT_COMMITTER_NAME': 'check',
               'GIT_COMMITTER_EMAIL': 'check@localhost'}
        git(self.work, 'am', '-q', *map(str, self.patches()), env=env)
        if git(self.work, 'rev-parse', 'HEAD^{tree}') != wanted:
            raise PlanError('git am leads to another tree than the series '
                            'was made from')
        commits = git(self.work, 'rev-list', '--reverse',
                      f'{base}..HEAD').split()
        if len(commits) != len(self.patches()):
            raise PlanError('git am made another number of commits')
        print(f'{len(commits)} patches apply to {self.release} with git am')
        return sum(not self.checkpatch(patch) for patch in self.patches())

    def checkpatch(self, patch):
        out = subprocess.run(
            ['perl', 'scripts/checkpatch.pl', '--no-color', '--terse',
             '--no-summary', str(patch)], cwd=self.work,
            capture_output=True, text=True, check=False, errors='replace')
        wrong = [line for line in (out.stdout + out.stderr).splitlines()
                 if line.strip() and HARMLESS not in line]
        for line in wrong:
            print('     ' + line.replace(str(self.out) + os.sep, ''))
        print(f'{"FAIL" if wrong else "ok  "} {patch.name}', flush=True)
        return not wrong

    def build(self):
        """Build each patch over the one before, in one build folder

        Returns the number of patches that don't build.
        """
        src, out = self.work, self.work.with_suffix('.build')
        # Without firmware nothing builds: Debian's patches come first
        self.start('build')
        for patch in source_tree.DEBIAN_PATCHES:
            source_tree.run_patch(src, patch)
        env = {f'GIT_{who}_{what}': 'check@localhost'
               for who in ('AUTHOR', 'COMMITTER')
               for what in ('NAME', 'EMAIL')}
        git(src, 'commit', '-q', '-a', '-m', 'build without firmware',
            env=env)
        first = git(src, 'rev-parse', 'HEAD').strip()
        git(src, 'am', '-q', *map(str, self.patches()), env=env)
        commits = git(src, 'rev-list', '--reverse', f'{first}..HEAD').split()
        git(src, 'checkout', '-q', first)
        shutil.rmtree(out, ignore_errors=True)
        subprocess.run([str(ROOT / 'configure'), '--compile-only',
                        f'--tree={src}', f'--out={out}'], check=True)
        failed = 0
        for patch, commit in zip(self.patches(), commits):
            # Only what differs is written, and so built again
            git(src, 'checkout', '-q', commit)
            print(f'-- building {patch.name}', flush=True)
            if subprocess.run(['ninja', '-C', str(out), *PROGRAMS],
                              check=False).returncode:
                print(f'FAIL {patch.name} does not build', flush=True)
                failed += 1
        print(f'{len(commits) - failed} of {len(commits)} patches build')
        return failed


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('release', nargs='?', default='newest',
                        help='(default: the newest)')
    parser.add_argument('--base', default='7.2',
                        help='which hooks (default: %(default)s)')
    parser.add_argument('--check', action='store_true',
                        help='apply it to the pristine release, and ask '
                             'checkpatch about each patch')
    parser.add_argument('--build', action='store_true',
                        help='build each patch, over the one before')
    args = parser.parse_args()

    releases = (BUILD / 'releases').read_text().split()
    release = releases[-1] if args.release == 'newest' else args.release
    if release not in releases:
        raise PlanError(f'no release {release}')
    (BUILD / 'series').mkdir(exist_ok=True)
    with open(BUILD / 'series' / '.lock', 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return run(Series(args.base, release), args)


def run(series, args):
    patches = series.write()
    print(f'{len(patches)} patches in {series.out.relative_to(ROOT)}',
          flush=True)
    failed = series.check() if args.check or args.build else 0
    if args.build and not failed:
        failed = series.build()
    return 1 if failed else 0


if __name__ == '__main__':
    try:
        sys.exit(main())
    except PlanError as error:
        sys.exit(f'series: {error}')
