#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Make build/src/RELEASE: a release of QEMU, with overlay and hooks in

A tree that is there is brought up to date: only files whose content changes
are written, so that a build does what is needed and no more.
"""

import argparse
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

sys.dont_write_bytecode = True
from plan import PlanError, git, overlay_files  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / 'build'
QEMU = BUILD / 'qemu'

# Debian's source has no firmware; without these its build looks for it
DEBIAN_PATCHES = [
    BUILD / 'debian' / 'patches' / name
    for name in ('skip-meson-pc-bios.diff',
                 'ignore-roms-dependency-in-qtest.patch')
]
STATE = '.exec-upgrade.json'


class Hooks:
    """The quilt series hooks/@base"""

    def __init__(self, base):
        self.folder = ROOT / 'hooks' / base
        series = self.folder / 'series'
        if not series.exists():
            raise PlanError(f'no {series.relative_to(ROOT)}')
        lines = [line.split('#')[0].strip()
                 for line in series.read_text().splitlines()]
        self.patches = [self.folder / line for line in lines if line]

    def files(self):
        return patched_files(self.patches)


def patched_files(patches):
    """Set of the paths that the patches change, all of which must exist"""
    found = set()
    for patch in patches:
        text = patch.read_text(errors='surrogateescape')
        for old, new in re.findall(r'^--- (\S+).*\n\+\+\+ (\S+).*$', text,
                                   re.MULTILINE):
            if old == '/dev/null':
                raise PlanError(f'{patch.name}: {new} is new, and so belongs '
                                f'into the overlay')
            found.add(old.split('/', 1)[1])
    return found


def digest(path):
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except FileNotFoundError:
        return None


def extract(release, folder, paths=()):
    """Put files of the pristine release, or all of it, into @folder"""
    data = git(QEMU, 'archive', '--format=tar', f'v{release}', '--', *paths,
               text=False)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        archive.extractall(folder)


def run_patch(folder, patch):
    result = subprocess.run(
        ['patch', '-p1', '-s', '-F0', '-f', '--no-backup-if-mismatch',
         '-i', str(patch)], cwd=folder, capture_output=True, text=True,
        check=False)
    if result.returncode:
        raise PlanError(f'{patch.name} does not apply:\n'
                        + result.stdout + result.stderr)


def check_new(release, paths):
    """Refuse overlay files that the release has itself"""
    have = set(git(QEMU, 'ls-tree', '-r', '--name-only',
                   f'v{release}').splitlines())
    for path in paths:
        if path in have:
            raise PlanError(f'{path}: QEMU {release} has a file of that '
                            f'name; a change to it is a hook')
    return have


def check(release, hooks, paths):
    """Apply everything to a release, without keeping the result"""
    try:
        have = check_new(release, paths)
        for path in hooks.files():
            if path not in have:
                raise PlanError(f'{path}: not in this release')
        with tempfile.TemporaryDirectory() as tmp:
            extract(release, tmp,
                    sorted(hooks.files() | patched_files(DEBIAN_PATCHES)))
            for patch in hooks.patches + DEBIAN_PATCHES:
                run_patch(tmp, patch)
    except PlanError as error:
        raise PlanError(f'{release}: {error}') from None


class SourceTree:
    """build/src/RELEASE"""

    def __init__(self, release, hooks):
        self.release = release
        self.hooks = hooks
        self.path = BUILD / 'src' / release

    def read_state(self):
        try:
            return json.loads((self.path / STATE).read_text())
        except FileNotFoundError:
            return {'key': None, 'files': {}, 'overlay': []}

    def key(self, overlay):
        text = json.dumps([overlay] + [
            [patch.name, digest(patch)]
            for patch in self.hooks.patches + DEBIAN_PATCHES])
        return hashlib.sha256(text.encode()).hexdigest()

    def unpack(self):
        print(f'-- unpacking QEMU {self.release}', flush=True)
        new = self.path.with_name(self.release + '.new')
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        extract(self.release, new)
        (new / 'patches').symlink_to(
            os.path.relpath(self.hooks.folder, new))
        new.rename(self.path)

    def derive(self, folder, paths):
        """What @paths of the tree must hold, with quilt's record of it"""
        extract(self.release, folder, sorted(paths))
        for patch in DEBIAN_PATCHES:
            run_patch(folder, patch)
        # Not inside folder, where its path would not be the tree's
        (folder / 'patches').symlink_to(self.hooks.folder)
        if self.hooks.patches:
            result = subprocess.run(
                ['quilt', '--quiltrc', '/dev/null', 'push', '-a',
                 '--fuzz=0'],
                cwd=folder, capture_output=True, text=True, check=False,
                env=dict(os.environ, QUILT_PATCHES='patches',
                         QUILT_PC='.pc'))
            if result.returncode:
                raise PlanError(f'hooks on {self.release}:\n'
                                + result.stdout + result.stderr)

    def update_files(self, state):
        paths = (self.hooks.files() | patched_files(DEBIAN_PATCHES)
                 | set(state['files']))
        with tempfile.TemporaryDirectory(dir=BUILD) as tmp, \
                tempfile.TemporaryDirectory() as pristine:
            tmp = Path(tmp)
            self.derive(tmp, paths)
            extract(self.release, pristine, sorted(paths))
            changed = [path for path in sorted(paths)
                       if digest(tmp / path) != digest(self.path / path)]
            for path in changed:
                expected = state['files'].get(
                    path, digest(Path(pristine) / path))
                if digest(self.path / path) not in (expected, None):
                    raise PlanError(
                        f'{self.path.relative_to(ROOT) / path} was edited '
                        f'and no hook has the change: `quilt refresh` it '
                        f'there (`quilt push -a` first if patches are not '
                        f'applied), or remove the file to drop the change')
            for path in changed:
                target = self.path / path
                if (tmp / path).exists():
                    shutil.copy(tmp / path, target)
                else:
                    target.unlink(missing_ok=True)
            shutil.rmtree(self.path / '.pc', ignore_errors=True)
            if (tmp / '.pc').exists():
                shutil.move(tmp / '.pc', self.path / '.pc')
            return {path: digest(self.path / path) for path in paths}

    def update_links(self, old, new):
        for path in sorted(set(old) - set(new)):
            link = self.path / path
            link.unlink(missing_ok=True)
            for parent in link.parents:
                if parent == self.path or any(parent.iterdir()):
                    break
                parent.rmdir()
        for path in new:
            link = self.path / path
            target = os.path.relpath(ROOT / path, link.parent)
            if link.is_symlink() and os.readlink(link) == target:
                continue
            link.parent.mkdir(parents=True, exist_ok=True)
            link.unlink(missing_ok=True)
            link.symlink_to(target)

    def update(self):
        overlay = overlay_files(ROOT)
        key = self.key(overlay)
        if not self.path.exists():
            self.unpack()
        state = self.read_state()
        if state['key'] == key:
            return
        check_new(self.release, overlay)
        print(f'-- putting overlay and hooks into QEMU {self.release}',
              flush=True)
        state['files'] = self.update_files(state)
        self.update_links(state['overlay'], overlay)
        state['overlay'] = overlay
        state['key'] = key
        (self.path / STATE).write_text(json.dumps(state, indent=1))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('release', nargs='*',
                        help='as in build/releases (default: all of them)')
    parser.add_argument('--base', default='7.2',
                        help='which hooks (default: %(default)s)')
    parser.add_argument('--check', action='store_true',
                        help='only see that everything applies')
    args = parser.parse_args()

    hooks = Hooks(args.base)
    overlay = overlay_files(ROOT)
    failed = []
    for release in args.release or (BUILD / 'releases').read_text().split():
        if not args.check:
            SourceTree(release, hooks).update()
            continue
        try:
            check(release, hooks, overlay)
            print(f'ok   {release}', flush=True)
        except PlanError as error:
            failed.append(release)
            print(f'FAIL {error}', flush=True)
    if args.check:
        print(f'{len(overlay)} overlay files and {len(hooks.patches)} hooks: '
              + (f'failed on {" ".join(failed)}' if failed
                 else 'they fit every release'))
    return 1 if failed else 0


if __name__ == '__main__':
    try:
        sys.exit(main())
    except PlanError as error:
        sys.exit(f'source_tree: {error}')
