# SPDX-License-Identifier: GPL-2.0-or-later
"""
The overlay, the plan of the series, and how files are split between patches

hooks/plan is a file of paragraphs as in debian/control, one for each patch
of the series, in order:

    Patch: 0003-ram
    Subject: softmmu: keep guest RAM in memory that outlives exec
    Files:
     softmmu/physmem.c
     migration/exec-upgrade/carry/ram.c
     migration/exec-upgrade/carry/meson.build /ram\\.c/
    Body:
     Why, in one or more lines.
     .
     A dot stands for an empty line.

Patch is the name of the quilt patch in hooks/<base>/, without .patch; a
patch that changes none of QEMU's own files has no quilt patch.  Subject and
Body are the commit message; without them the text on top of the quilt patch
is used.

A line of Files is a path or a glob (* does not stop at a slash), in the
overlay or in QEMU.  A path beats a glob and a longer glob beats a shorter
one.  After it may come a claim on single lines of that file:

    /re/            lines that match
    /re/,/re/       from a line that matches to the next that does
    /re/,+N         a line that matches and the N that follow

Only lines that the project adds or removes can be claimed.  What nobody
claims goes to the patch that names the file without a claim.  A replaced
line goes where any of the lines that replace it goes.
"""

import fnmatch
import os
import re
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

# What goes into QEMU's tree: every top-level folder of ours that has the
# name of one of QEMU's.  Of tests and docs only these parts do, the rest
# is the project's own.
PARTS = {
    'tests': ('tests/qtest', 'tests/unit'),
    'docs': ('docs/system', 'docs/devel', 'docs/interop', 'docs/about'),
}
QEMU_FOLDERS = (
    'accel', 'audio', 'authz', 'backends', 'block', 'chardev', 'contrib',
    'crypto', 'docs', 'dump', 'fsdev', 'gdbstub', 'hw', 'include', 'io',
    'migration', 'monitor', 'nbd', 'net', 'qapi', 'qga', 'qobject', 'qom', 'replay',
    'scsi', 'softmmu', 'storage-daemon', 'stubs', 'target', 'tests',
    'tools', 'trace', 'ui', 'util',
)


class PlanError(Exception):
    """Something in the plan or the tree that the reader must repair"""


def in_overlay(path):
    """True if the repository's file @path goes to the same path in QEMU"""
    top = path.split('/', 1)[0]
    if '/' not in path or top not in QEMU_FOLDERS:
        return False
    parts = PARTS.get(top)
    return not parts or any(path.startswith(part + '/') for part in parts)


def overlay_files(root):
    """Sorted paths of the overlay's files below the repository @root

    Editors' leftovers and Python's caches are not the overlay's.
    """
    root = Path(root)
    found = []
    for top in QEMU_FOLDERS:
        for part in PARTS.get(top, (top,)):
            for path in (root / part).rglob('*'):
                name = path.name
                if (path.is_dir() or '__pycache__' in path.parts
                        or name.startswith('.')
                        or name.endswith(('~', '.orig', '.rej', '.pyc'))):
                    continue
                found.append(str(path.relative_to(root)))
    return sorted(found)


@dataclass
class Claim:
    """One line of Files: a path or glob, and the lines that it claims"""
    patch: int
    pattern: str
    start: re.Pattern = None
    end: re.Pattern = None
    count: int = 0

    def is_glob(self):
        return any(c in self.pattern for c in '*?[')

    def covers(self, path):
        if self.is_glob():
            return fnmatch.fnmatchcase(path, self.pattern)
        return path == self.pattern

    def lines(self, text):
        """Indices of the lines in the list @text that are claimed"""
        claimed = set()
        i = 0
        while i < len(text):
            if not self.start.search(text[i]):
                i += 1
                continue
            last = i + self.count
            if self.end:
                last = next((j for j in range(i + 1, len(text))
                             if self.end.search(text[j])), None)
                if last is None:
                    raise PlanError(f'{self.pattern}: /{self.start.pattern}/ '
                                    f'is not followed by a line with '
                                    f'/{self.end.pattern}/')
            claimed.update(range(i, min(last, len(text) - 1) + 1))
            i = last + 1
        return claimed


@dataclass
class Patch:
    """One paragraph of the plan"""
    name: str
    subject: str = ''
    body: str = ''
    claims: list = field(default_factory=list)


class Plan:
    """The plan of the series, read from @path"""

    def __init__(self, path):
        self.path = path
        self.patches = []
        for fields in self._paragraphs(Path(path).read_text()):
            self._add(fields)
        if not self.patches:
            raise PlanError(f'{path}: no patch in it')

    def _paragraphs(self, text):
        fields, key = {}, None
        for number, line in enumerate(text.splitlines() + [''], 1):
            if line.startswith('#'):
                continue
            if not line.strip():
                if fields:
                    yield fields
                fields, key = {}, None
            elif line[0] in ' \t':
                if not key:
                    raise PlanError(f'{self.path}:{number}: '
                                    f'continues nothing')
                rest = line[1:].rstrip()
                fields[key].append('' if rest == '.' else rest)
            else:
                key, colon, value = line.partition(':')
                if not colon or key not in ('Patch', 'Subject',
                                            'Files', 'Body'):
                    raise PlanError(f'{self.path}:{number}: expected '
                                    f'Patch, Subject, Files or Body')
                if key in fields:
                    raise PlanError(f'{self.path}:{number}: '
                                    f'{key} twice in one paragraph')
                fields[key] = [value.strip()] if value.strip() else []

    def _add(self, fields):
        name = ' '.join(fields.get('Patch', []))
        if not re.fullmatch(r'[A-Za-z0-9][A-Za-z0-9._+-]*', name):
            raise PlanError(f'{self.path}: a paragraph has no usable Patch '
                            f'name ("{name}")')
        if any(patch.name == name for patch in self.patches):
            raise PlanError(f'{self.path}: {name} is there twice')
        patch = Patch(name, ' '.join(fields.get('Subject', [])),
                      '\n'.join(fields.get('Body', [])).strip('\n'))
        for line in fields.get('Files', []):
            patch.claims.append(self._claim(len(self.patches), line.strip()))
        self.patches.append(patch)

    def _claim(self, patch, line):
        pattern, _, lines = line.partition(' ')
        lines = lines.strip()
        if not lines:
            return Claim(patch, pattern)
        match = re.fullmatch(r'/((?:[^/\\]|\\.)+)/'
                             r'(?:,(?:/((?:[^/\\]|\\.)+)/|\+(\d+)))?', lines)
        if not match:
            raise PlanError(f'{self.path}: "{line}": after the path comes '
                            f'/re/, /re/,/re/ or /re/,+N')
        start, end, count = match.groups()
        return Claim(patch, pattern, re.compile(start),
                     re.compile(end) if end else None, int(count or 0))

    def _whole(self, path):
        """Index of the patch that has @path but for claimed lines, or None"""
        found = [claim for patch in self.patches for claim in patch.claims
                 if not claim.start and claim.covers(path)]
        found.sort(key=lambda claim: (claim.is_glob(), -len(claim.pattern)))
        if len(found) > 1 and found[0].pattern == found[1].pattern:
            names = ' and '.join(self.patches[claim.patch].name
                                 for claim in found[:2])
            raise PlanError(f'{self.path}: {found[0].pattern} is in {names}')
        return found[0].patch if found else None

    def _owner(self, path, whole, number, claimed):
        if number in claimed:
            return claimed[number]
        if whole is None:
            raise PlanError(f'{self.path}: {path}: line {number + 1} '
                            f'is in no patch')
        return whole

    def _claimed(self, path, lines):
        claimed = {}
        for patch in self.patches:
            for claim in patch.claims:
                if claim.start and claim.covers(path):
                    for number in claim.lines(lines):
                        claimed.setdefault(number, claim.patch)
        return claimed

    def split(self, path, old, new):
        """What @path holds after each patch

        @old, @new: lines before and after the whole series, with their line
        ends; None for a file that does not exist
        Returns { index of the patch: lines, or None if the file goes }, with
        an entry only for the patches that change the file.
        """
        whole = self._whole(path)
        claimed = self._claimed(path, new or [])
        if whole is None and not claimed:
            raise PlanError(f'{self.path}: {path} is in no patch')
        if old is None and not new or new is None or (
                not claimed and whole is not None):
            if whole is None:
                raise PlanError(f'{self.path}: {path} is in no patch')
            return {whole: new}
        pieces = self._pieces(path, old or [], new, whole, claimed)
        result = {}
        for patch in sorted({owner for owner, _, _ in pieces
                             if owner is not None}):
            result[patch] = [line for owner, before, after in pieces
                             for line in
                             (after if owner is None or owner <= patch
                              else before)]
        return result

    def _pieces(self, path, old, new, whole, claimed):
        """[(index of the patch or None, lines before, lines after)]"""
        removed = self._claimed(path, old) if old else {}
        pieces, at = [], 0
        for a, a_len, b, b_len in diff_hunks(old, new):
            pieces.append((None, [], old[at:a]))
            at = a + a_len
            if a_len:
                owners = [claimed[i] for i in range(b, b + b_len)
                          if i in claimed]
                owners += [removed[i] for i in range(a, a + a_len)
                           if i in removed]
                owner = owners[0] if owners else (
                    self._owner(path, whole, b, {}))
                pieces.append((owner, old[a:at], new[b:b + b_len]))
                continue
            for i in range(b, b + b_len):
                pieces.append((self._owner(path, whole, i, claimed), [],
                               [new[i]]))
        pieces.append((None, [], old[at:]))
        return pieces


def diff_hunks(old, new):
    """[(start, length, start, length)] of what differs, counted from 0"""
    if not old or not new:
        return [(0, len(old), 0, len(new))]
    with tempfile.TemporaryDirectory() as tmp:
        names = os.path.join(tmp, 'a'), os.path.join(tmp, 'b')
        for name, lines in zip(names, (old, new)):
            with open(name, 'w', encoding='utf-8', newline='',
                      errors='surrogateescape') as f:
                f.writelines(lines)
        out = subprocess.run(['git', 'diff', '--no-index', '--no-color',
                              '--no-ext-diff', '-U0', *names],
                             capture_output=True, check=False).stdout
    hunks = []
    for match in re.finditer(rb'^@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@',
                             out, re.MULTILINE):
        a, a_len, b, b_len = (1 if g is None else int(g)
                              for g in match.groups())
        # With a length of 0, the number is that of the line before
        hunks.append((a - (1 if a_len else 0), a_len,
                      b - (1 if b_len else 0), b_len))
    return hunks


def git(repo, *args, stdin=None, env=None, text=True):
    """Output of git in @repo"""
    result = subprocess.run(
        ['git', '-c', 'core.quotepath=off', *args], cwd=repo, input=stdin,
        capture_output=True, check=False,
        env=dict(os.environ, **env) if env else None)
    if result.returncode:
        raise PlanError(f'git {" ".join(args[:3])}: '
                        + result.stderr.decode(errors='replace').strip())
    return (result.stdout.decode('utf-8', 'surrogateescape')
            if text else result.stdout)


def patch_text(path):
    """Subject and body on top of the quilt patch @path, '' if there is none"""
    try:
        lines = Path(path).read_text(errors='surrogateescape').splitlines()
    except FileNotFoundError:
        return '', ''
    header = []
    for line in lines:
        if re.match(r'(--- |diff |Index: |=====)', line):
            break
        header.append(line)
    subject = ''
    if header and header[0].startswith('Subject:'):
        subject = header.pop(0)[len('Subject:'):].strip()
    while header and header[0][:1] in (' ', '\t'):
        subject += ' ' + header.pop(0).strip()
    return subject, '\n'.join(header).strip('\n')
