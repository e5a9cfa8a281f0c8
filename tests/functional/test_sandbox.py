# SPDX-License-Identifier: GPL-2.0-or-later
"""exec-upgrade under -sandbox: what it lets through, and what not."""

import errno
import os
import re
import shutil
import signal
import subprocess
import tempfile
from itertools import product
from pathlib import Path

import pytest

from harness.checks import guest_lives_on, wait_until
from harness.vm import DEFAULT

LIBVIRT = 'on,obsolete=deny,elevateprivileges=deny,spawn=deny,' \
    'resourcecontrol=deny'
DEBIAN = '/usr/bin/qemu-system-x86_64'
LOADER = '/lib64/ld-linux-x86-64.so.2'
HARNESS = Path(__file__).parent / 'harness'


@pytest.fixture
def emulator(setup, tmp_path):
    """The old release in a folder of its own, as a package should have it."""
    path = tmp_path / 'libexec' / 'qemu-system-x86_64'
    path.parent.mkdir()
    shutil.copy(setup.old, path)
    return path


def install(source, path):
    """As a package upgrade does it."""
    new = path.with_name('.new')
    shutil.copy(source, new)
    new.rename(path)


@pytest.fixture(scope='session')
def build(tmp_path_factory):
    """Builds a program of the harness; returns its path."""
    folder = tmp_path_factory.mktemp('programs')

    def compile_program(name, *args):
        subprocess.run(['gcc', '-O2', '-Wall', '-Wextra', '-Werror', '-o',
                        folder / name, HARNESS / f'{name}.c', *args],
                       check=True)
        return str(folder / name)
    return compile_program


@pytest.fixture(scope='session')
def inject(build):
    program = build('inject')

    def run(tid, *call):
        """What comes of a system call by a thread: a word and a number."""
        result = subprocess.run([program, str(tid), *map(str, call)],
                                check=True, text=True, timeout=60,
                                stdout=subprocess.PIPE).stdout
        word, number = result.split()
        return word, int(number)
    return run


@pytest.fixture
def idle_vm(make_vm, emulator):
    """Starts a process that has every kind of thread, and no guest."""
    def start(*args, sandbox=LIBVIRT, binary=emulator, **kwargs):
        return make_vm(args=['-name', 'guest,debug-threads=on', '-object',
                             'iothread,id=io', '-sandbox', sandbox, *args],
                       kernel=None, memory=kwargs.pop('memory', '16'),
                       binary=str(binary), **kwargs).start()
    return start


def status(vm, field):
    text = Path(f'/proc/{vm.pid}/status').read_text()
    return int(re.search(rf'^{field}:\s*(\d+)', text, re.M)[1])


def threads(vm):
    """{ name: tid }"""
    tasks = Path(f'/proc/{vm.pid}/task')
    tids = sorted(int(task.name) for task in tasks.iterdir())
    names = {(tasks / str(tid) / 'comm').read_text().strip(): tid
             for tid in tids}
    tids.remove(vm.pid)
    # RCU's is created before main() and before threads get names
    return {'main': vm.pid, 'call_rcu': tids[0],
            'vCPU': names['CPU 0/TCG'], 'iothread': names['IO io']}


# The upgrade

def test_upgrade_as_libvirt_starts_it(boot, setup, emulator):
    vm = boot(args=['-sandbox', LIBVIRT], binary=str(emulator))
    before = [status(vm, name) for name in ('Seccomp', 'NoNewPrivs')]
    install(setup.new, emulator)
    with guest_lives_on(vm, fill=40):
        vm.upgrade(DEFAULT)
        filters = status(vm, 'Seccomp_filters')
        vm.upgrade(DEFAULT)
    assert [status(vm, name) for name in ('Seccomp', 'NoNewPrivs')] == \
        before == [2, 1]
    assert status(vm, 'Seccomp_filters') == filters


def test_memfds_of_its_own(idle_vm):
    """The filter lets through only those that can never be executed: that of
    a dirty bitmap's bits is one."""
    vm = idle_vm('-blockdev', 'driver=null-co,node-name=n,size=1048576')
    vm.qmp.execute('block-dirty-bitmap-add', node='n', name='b')
    vm.upgrade(DEFAULT)
    bitmap, = vm.qmp.execute('query-named-block-nodes')[0]['dirty-bitmaps']
    assert bitmap['name'] == 'b'


@pytest.mark.parametrize('keys', product(('allow', 'deny'), repeat=4),
                         ids='-'.join)
def test_keys(idle_vm, keys):
    names = 'obsolete', 'elevateprivileges', 'spawn', 'resourcecontrol'
    sandbox = ','.join(['on', *map('='.join, zip(names, keys))])
    vm = idle_vm(sandbox=sandbox)
    filters = status(vm, 'Seccomp_filters')
    vm.upgrade(DEFAULT)
    assert status(vm, 'Seccomp_filters') == filters


def test_keys_of_children(idle_vm):
    idle_vm(sandbox='on,elevateprivileges=children').upgrade(DEFAULT)


def test_three_hundred_upgrades(idle_vm, setup, emulator):
    """The kernel allows 16 layers of Landlock and about 124 filters."""
    vm = idle_vm()
    new = emulator.with_name('qemu-new')
    shutil.copy(setup.new, new)
    for binary in emulator, new:
        vm.upgrade(binary)
    filters = status(vm, 'Seccomp_filters')
    for _ in range(149):
        for binary in emulator, new:
            vm.qmp.execute('exec-upgrade', binary=str(binary))
    assert vm.qmp.execute('query-exec-upgrade')['count'] == 300
    assert status(vm, 'Seccomp_filters') == filters
    assert status(vm, 'NoNewPrivs') == 1


def test_stricter_filter(idle_vm, inject):
    """The new process is told to deny more, and does."""
    vm = idle_vm(sandbox='on')
    filters = status(vm, 'Seccomp_filters')
    vm.upgrade(DEFAULT, arguments=[
        LIBVIRT if arg == 'on' else arg for arg in vm.args])
    assert status(vm, 'Seccomp_filters') == filters + 1
    vm.upgrade(DEFAULT)
    assert status(vm, 'Seccomp_filters') == filters + 1
    assert inject(vm.pid, *PROGRAM) == ('returned', -errno.EACCES)
    assert inject(vm.pid, *CALLS['fork'][1]) == KILLED
    vm.wait_gone()


def test_library_upgrade(idle_vm, emulator):
    """The dynamic loader is replaced, too, as with the C library."""
    with tempfile.TemporaryDirectory(prefix='xu', dir='/tmp') as folder:
        loader = Path(folder) / 'ld.so'
        shutil.copy(LOADER, loader)
        # another path in the place of what the program header names
        name = bytes(loader).ljust(len(LOADER), b'\0')
        assert len(name) == len(LOADER)
        program = emulator.read_bytes()
        assert program.count(LOADER.encode() + b'\0') == 1
        emulator.write_bytes(program.replace(LOADER.encode(), name))
        vm = idle_vm()
        install(LOADER, loader)
        vm.upgrade(DEFAULT)


def test_thread_context(idle_vm):
    """As libvirt has it: to preallocate memory, and deleted before the guest
    runs."""
    vm = idle_vm('-object', '{"qom-type":"thread-context","id":"tc",'
                 '"node-affinity":[0]}',
                 '-object', '{"qom-type":"memory-backend-ram","id":"ram",'
                 '"size":33554432,"prealloc":true,"prealloc-threads":2,'
                 '"prealloc-context":"tc","host-nodes":[0],"policy":"bind"}',
                 machine='pc,memory-backend=ram', memory='32')
    vm.qmp.execute('object-del', id='tc')
    for _ in range(2):
        vm.upgrade(DEFAULT)
        names = {e['name'] for e in vm.qmp.execute('qom-list',
                                                   path='/objects')}
        assert 'ram' in names and 'tc' not in names


def test_thread_context_in_use(idle_vm):
    vm = idle_vm('-object', 'thread-context,id=tc,cpu-affinity=0')
    vm.refused("the affinity of thread context 'tc' can't be set again",
               binary=None)
    vm.qmp.execute('object-del', id='tc')
    vm.upgrade(DEFAULT)


# What is refused

def test_folder_of_general_programs(idle_vm, setup, emulator):
    shutil.copy('/bin/true', emulator.parent)
    vm = idle_vm()
    vm.refused('-sandbox spawn=deny', "has the program 'true' in it",
               'libexec', binary=None)
    other = emulator.parent.parent / 'qemu-system-x86_64'
    shutil.copy(setup.new, other)
    vm.refused('-sandbox spawn=deny', binary=str(other))


def test_program_came_later(idle_vm, emulator):
    vm = idle_vm()
    shutil.copy('/bin/true', emulator.parent)
    vm.refused("has the program 'true' in it", binary=None)
    emulator.with_name('true').unlink()
    vm.upgrade(DEFAULT)


def test_other_folder(idle_vm, setup, emulator):
    vm = idle_vm()
    vm.refused('the only folder from which', binary=setup.new)
    # a link leads to where its target is
    link = emulator.parent.parent / 'link'
    link.symlink_to(emulator)
    vm.qmp.execute('exec-upgrade', binary=str(link))




def test_kernel_without_landlock(make_vm, build, emulator):
    program = build('without-landlock', '-lseccomp')
    vm = make_vm(args=['-sandbox', LIBVIRT], kernel=None, memory='16',
                 binary=program)
    vm.args.insert(0, str(emulator))
    vm.start()
    vm.refused('this kernel has no Landlock', 'spawn=allow', binary=None)


# What the process may do

THREADS = 'main', 'call_rcu', 'vCPU', 'iothread'
PROCESS, THREAD = 'ends the process', 'ends the thread'
KILLED = 'killed', signal.SIGSYS
CLONE3_ARGS = '=' + ''.join(f'\\x{byte:02x}' for byte in
                            [0] * 32 + [signal.SIGCHLD] + [0] * 31)
AT_FDCWD, AT_EMPTY_PATH = -100, 0x1000
PROGRAM = (322, AT_FDCWD, '=/bin/true', 0, 0, AT_EMPTY_PATH)

# What comes of it in any QEMU, and the call
CALLS = {
    'fork': (PROCESS, (57,)),
    'clone': (PROCESS, (56, int(signal.SIGCHLD))),
    'clone3': (-errno.ENOSYS, (435, CLONE3_ARGS, 64)),
    'execve': (PROCESS, (59, '=/bin/true')),
    'execveat': (THREAD, (322, AT_FDCWD, '=/bin/true')),
    'setns': (THREAD, (308, -1)),
    'unshare': (THREAD, (272,)),
    'sched_setaffinity': (-errno.EPERM, (203, 0, 8, '=aaaaaaaa')),
    'sched_setscheduler': (-errno.EPERM, (144, 0, 1, '=aaaa')),
    'setpriority': (-errno.EPERM, (141, 0, 0, 5)),
    'setuid': (PROCESS, (105,)),
}


def check_outcome(vm, inject, thread, expected, what):
    tid = threads(vm)[thread]
    outcome = inject(tid, *what)
    if isinstance(expected, int):
        assert outcome == ('returned', expected)
        return
    assert outcome == KILLED
    if expected == PROCESS:
        vm.wait_gone()
    elif thread == 'main':
        state = Path(f'/proc/{vm.pid}/status')
        wait_until(lambda: 'State:\tZ' in state.read_text())
        assert len(list(Path(f'/proc/{vm.pid}/task').iterdir())) > 2
    else:
        # which may have held a lock that the others wait for
        wait_until(lambda: not os.path.exists(f'/proc/{vm.pid}/task/{tid}'))
        state = Path(f'/proc/{vm.pid}/status').read_text()
        assert 'State:\tZ' not in state


@pytest.mark.parametrize('name', CALLS)
def test_denied_in_unpatched_qemu(idle_vm, inject, name):
    """What is expected of ours is so in QEMU as Debian has it."""
    vm = idle_vm(binary=DEBIAN)
    check_outcome(vm, inject, 'main', *CALLS[name])


@pytest.mark.parametrize('name', CALLS)
def test_denied(idle_vm, inject, name):
    """From each thread, before and after an upgrade."""
    vms = {}
    for upgraded, thread in product((False, True), THREADS):
        vm = vms.get(upgraded)
        if not vm:
            vm = idle_vm()
            if upgraded:
                vm.upgrade(DEFAULT)
        check_outcome(vm, inject, thread, *CALLS[name])
        if isinstance(CALLS[name][0], int):
            vms[upgraded] = vm      # can be asked again
        else:
            vm.kill()


@pytest.mark.parametrize('upgraded', [False, True])
def test_execute(idle_vm, inject, tmp_path, upgraded):
    """What the filter lets through, Landlock denies, in each thread; but for
    the dynamic loader."""
    vm = idle_vm()
    if upgraded:
        vm.upgrade(DEFAULT)
    folders = tmp_path / 'one', tmp_path / 'two'
    for folder in folders:
        folder.mkdir()
    (folders[0] / 'file').touch()

    def value(*what):
        word, number = inject(tid, *what)
        assert word == 'returned'
        return number

    denied = -errno.EACCES
    for tid in threads(vm).values():
        assert value(*PROGRAM) == denied
        program = value(257, AT_FDCWD, '=/bin/true')
        assert program > 2
        assert value(322, program, '=', 0, 0, AT_EMPTY_PATH) == denied
        assert value(3, program) == 0
        # a memory file: not one that could be executed, nor another one
        assert value(319, '=file', 0) == denied
        memory = value(319, '=file', 8)
        assert memory > 2
        assert value(322, memory, '=', 0, 0, AT_EMPTY_PATH) == denied
        assert value(3, memory) == 0
        # as the rehearsal does
        assert value(58) > 0
        # what 9p does for the guest, to another folder
        assert value(82, f'={folders[0]}/file', f'={folders[1]}/file') == 0
        folders = folders[::-1]
    vm.qmp.execute('query-status')
    # the gap that is documented: it could run any ELF file that can be read
    tid = vm.pid
    loader = value(257, AT_FDCWD, f'={LOADER}')
    assert inject(tid, 322, loader, '=', 0, 0, AT_EMPTY_PATH)[0] == 'exited'


def test_filter_is_unpatched_where_it_can_be(idle_vm, inject):
    """With exec-upgrade=off, nothing is opened."""
    vm = idle_vm(machine='pc,exec-upgrade=off')
    assert inject(vm.pid, 58) == KILLED
    vm.wait_gone()
