# SPDX-License-Identifier: GPL-2.0-or-later
"""A QEMU process with a test guest in it."""

import contextlib
import ctypes
import os
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from . import TIMEOUT
from .agent import Agent
from .image import Image
from .qmp import QMP, QMPError
from .stream import connect

PR_SET_PDEATHSIG = 1
DEFAULT = 'default'     # the binary that exec-upgrade chooses by itself
# What clients see of the pause of a running guest, before EXEC_UPGRADE
PAUSE_EVENTS = ['STOP', 'RESUME']
# What a sanitized QEMU says of itself, now and then
SANITIZER_NOTICES = ('WARNING: ASan', 'False positive error reports may follow',
                     'For details see https://github.com/google/sanitizers')


@dataclass
class Setup:
    """What the tests run with."""
    old: str
    new: str
    image: Image
    qemu_python: str            # folder of QEMU's Python packages
    extra_args: tuple = ()      # to every QEMU

    def tool(self, name):
        """Path of qemu-img and the like: of the new build, else any."""
        path = Path(self.new).parent / name
        return str(path) if path.exists() else shutil.which(name)

    def qemu_img(self, *args):
        """Runs qemu-img, returns its standard output.

        To encrypt an image it measures itself by ticks of the clock.  In one
        run of ten there is none and it gives up (crypto/pbkdf.c), before it
        has written anything that matters: it is run again then.
        """
        command = [self.tool('qemu-img'), *map(str, args)]
        deadline = time.monotonic() + TIMEOUT
        while True:
            process = subprocess.run(command, check=False, text=True,
                                     capture_output=True)
            if not process.returncode:
                return process.stdout
            assert 'Unable to get accurate CPU usage' in process.stderr and \
                time.monotonic() < deadline, \
                f'{shlex.join(command)}: {process.stdout}{process.stderr}'


def die_with_parent():
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def process_identity(pid):
    """The process id with its start time: what no other process has."""
    stat = Path(f'/proc/{pid}/stat').read_text()
    return pid, int(stat.rpartition(')')[2].split()[19])


def process_state(pid):
    """What a dry run must leave as it was: descriptors, children, program."""
    fds = {}
    for entry in Path(f'/proc/{pid}/fd').iterdir():
        number = entry.name
        info = Path(f'/proc/{pid}/fdinfo/{number}').read_text()
        fds[number] = (os.readlink(entry),
                       re.search(r'^flags:\s*(\d+)$', info, re.M)[1])
    children = [p for task in Path(f'/proc/{pid}/task').iterdir()
                for p in (task / 'children').read_text().split()]
    return process_identity(pid), os.readlink(f'/proc/{pid}/exe'), fds, children


def check_result(result):
    """Checks that a value is an ExecUpgradeResult."""
    assert set(result) == {'from', 'to', 'binary', 'downtime', 'pauses',
                           'phases', 'dropped'}
    for key in 'from', 'to', 'binary':
        assert isinstance(result[key], str) and result[key]
    assert isinstance(result['downtime'], int) and result['downtime'] > 0
    assert result['phases']
    assert sum(p['duration'] for p in result['pauses']) == result['downtime']
    for phase in result['phases'] + result['pauses']:
        assert set(phase) == {'name', 'duration'}
        assert isinstance(phase['name'], str)
        assert isinstance(phase['duration'], int) and phase['duration'] >= 0
    assert all(isinstance(name, str) for name in result['dropped'])


def version_string(version):
    """The form in which a result gives a query-version."""
    number = '{major}.{minor}.{micro}'.format(**version['qemu'])
    return number + (f" ({version['package']})" if version['package'] else '')


# One processor, and code for it as for several: TCG leaves out the guest's
# memory barriers (and LOCK prefixes) where there can be only one, and a guest
# and its virtio devices, which run beside it, now and then miss each other's
# last word (QEMU 7.2, tcg_gen_mb()).
ONE_CPU = '1,maxcpus=2'

# What Linux need not do when it boots: a fifth of the time
FAST = 'cryptomgr.notests rodata=off mitigations=off nokaslr'


class VM:
    """@args are added to the command line. The rest chooses what is on it
    before them; a memory, kernel, qmp or agent that is None or False leaves
    that part to @args. @kernel may be the path of another kernel, @popen has
    arguments for subprocess.Popen.

    With @preconfig QEMU waits for x-exit-preconfig, and for the client of its
    monitor: with wait=off, QEMU 7.2's main loop would be there at once, and
    accept a client while the monitor's thread begins to use the socket. Now
    and then that one is greeted twice."""

    def __init__(self, setup, args=(), *, binary=None, machine='pc',
                 accel='tcg', memory='192', smp=ONE_CPU, kernel=True, append='',
                 qmp=True, agent=True, preconfig=False, popen=None,
                 folder=None):
        self.setup = setup
        self.binary = binary or setup.old
        self.dir = Path(folder or tempfile.mkdtemp(prefix='exec-upgrade-',
                                                dir='/var/tmp'))
        self.owns_dir = folder is None
        self.stderr_path = self.dir / 'stderr'
        self.process = None
        self.pid = None
        self.qmp = self.agent = None
        self.has_qmp, self.has_agent = qmp, agent and kernel
        self.popen = popen or {}

        self.args = ['-nodefaults', '-display', 'none',
                     '-machine', machine, '-accel', accel]
        if memory:
            self.args += ['-m', memory]
        if smp:
            self.args += ['-smp', smp]
        if kernel is True:
            kernel, append = setup.image.fast_kernel, f'{FAST} {append}'
        if kernel:
            self.args += [
                '-kernel', kernel, '-initrd', setup.image.initrd,
                '-append', 'console=ttyS0 quiet panic=-1 no_console_suspend '
                'agent=/dev/ttyS1 ' + append]
        if qmp:
            self.args += self.monitor('qmp', wait='on' if preconfig else 'off')
        if preconfig:
            self.args += ['-preconfig']
        if self.has_agent:
            self.args += [
                '-chardev', f'file,id=console,path={self.dir}/console',
                '-device', 'isa-serial,chardev=console,index=0',
                '-chardev', f'socket,id=agent,path={self.dir}/agent,'
                'server=on,wait=off',
                '-device', 'isa-serial,chardev=agent,index=1']
        self.args += [*setup.extra_args, *args]

    def monitor(self, name, wait='off'):
        """Options for one more QMP monitor; connect with vm.connect_qmp."""
        return ['-chardev', f'socket,id={name},path={self.dir}/{name},'
                f'server=on,wait={wait}',
                '-mon', f'chardev={name},mode=control']

    # Start and end

    def start(self):
        """Starts the process and connects to its monitor."""
        with open(self.stderr_path, 'ab') as stderr:
            self.process = subprocess.Popen(
                [self.binary, *self.args], **{
                    'stdin': subprocess.DEVNULL, 'stdout': stderr,
                    'stderr': stderr, 'preexec_fn': die_with_parent,
                    **self.popen})
        self.pid = self.process.pid
        if '-daemonize' in self.args:
            if self.process.wait(TIMEOUT):
                raise RuntimeError('QEMU did not start: ' + self.stderr)
            self.pid = int((self.dir / 'pid').read_text())
        if self.has_qmp:
            self.qmp = self.connect_qmp('qmp')
        if self.has_agent:
            self.agent = Agent(self.connect('agent'))
        return self

    def boot(self):
        """Starts the process and waits for the guest."""
        self.start()
        if self.agent:
            self.agent.wait_ready()
        return self

    def connect(self, name):
        """A connection to a socket in the test's folder, as soon as QEMU
        listens there."""
        deadline = time.monotonic() + TIMEOUT
        while True:
            try:
                return connect(str(self.dir / name))
            except (FileNotFoundError, ConnectionRefusedError):
                if not self.alive():
                    raise RuntimeError('QEMU did not start: ' + self.stderr) \
                        from None
                if time.monotonic() > deadline:
                    raise
                # nothing announces that a program started to listen
                time.sleep(0.005)

    def connect_qmp(self, name, **kwargs):
        return QMP(self.connect(name), **kwargs)

    def stock_qmp(self, name):
        """QEMU's own QMP client, connected to the monitor @name."""
        if self.setup.qemu_python not in sys.path:
            sys.path.append(self.setup.qemu_python)
        # pylint: disable=import-outside-toplevel
        from qemu.qmp.legacy import QEMUMonitorProtocol
        client = QEMUMonitorProtocol(str(self.dir / name))
        client.connect()
        client.settimeout(TIMEOUT)
        return client

    def alive(self):
        if self.pid == self.process.pid:
            return self.process.poll() is None
        return os.path.exists(f'/proc/{self.pid}')

    def wait_gone(self, timeout=TIMEOUT):
        """Waits until the process has ended; returns its exit status if it
        is a child."""
        if self.pid == self.process.pid:
            return self.process.wait(timeout)
        with contextlib.suppress(ProcessLookupError):
            pidfd = os.pidfd_open(self.pid)
            ended, _, _ = select.select([pidfd], [], [], timeout)
            os.close(pidfd)
            assert ended, 'the process did not end'
        return None

    def kill(self):
        """Ends the process and removes all that it left."""
        for client in self.qmp, self.agent:
            if client:
                client.close()
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                if self.alive():
                    os.kill(self.pid, signal.SIGKILL)
            self.wait_gone()
        if self.owns_dir:
            shutil.rmtree(self.dir, ignore_errors=True)

    # What a failed test prints

    @property
    def stderr(self):
        if not self.stderr_path.exists():
            return ''
        return self.stderr_path.read_text(errors='replace')

    def report(self):
        """Yields (title, text)."""
        yield 'QEMU command line', subprocess.list2cmdline(
            [self.binary, *self.args])
        state = 'not started'
        if self.process:
            code = self.process.poll()
            state = 'running' if code is None else f'exit status {code}'
        yield f'QEMU standard error ({state})', self.stderr[-8000:]
        console = self.dir / 'console'
        if console.exists():
            yield 'guest console', \
                console.read_text(errors='replace')[-2000:]
        for name, client in (('QMP', self.qmp), ('agent', self.agent)):
            if client:
                yield name, '\n'.join(line[:500] for line in
                                      list(client.log)[-30:])

    # The upgrade

    def exe(self):
        return os.readlink(f'/proc/{self.pid}/exe')

    def dry_run(self, binary=None, **arguments):
        """Tries an upgrade to @binary, and checks that nobody but the one who
        asked has noticed. Returns the ExecUpgradeResult."""
        qmp, binary = self.qmp, str(binary or self.setup.new)
        stderr = self.stderr
        status = qmp.execute('query-status')
        query = qmp.execute('query-exec-upgrade')
        version = version_string(qmp.execute('query-version'))
        # now: other clients that have just connected are accepted
        before = process_state(self.pid)
        del qmp.events[:]

        result = qmp.execute('exec-upgrade', binary=binary, dry_run=True,
                             **arguments)

        check_result(result)
        assert result['from'] == version and result['binary'] == binary
        assert [p['name'] for p in result['pauses']] == ['dry-run']
        assert version_string(qmp.execute('query-version')) == version
        assert qmp.execute('query-status') == status
        assert qmp.execute('query-exec-upgrade') == query
        assert not qmp.events, qmp.events
        assert self.stderr == stderr
        assert process_state(self.pid) == before
        return result

    def upgrade(self, binary=None, *, dropped=(), events=(), noise=(),
                timeout=TIMEOUT, **arguments):
        """Upgrades to @binary (unless given, the new release; DEFAULT: the
        command has no such argument) and checks what holds for every upgrade.
        @dropped: names expected in the result; @events: names of other events
        that the test itself causes; @noise: what lines that the new process
        adds to stderr contain. Returns the ExecUpgradeResult."""
        qmp, binary = self.qmp, str(binary or self.setup.new)
        if binary == DEFAULT:
            binary = self.binary
        else:
            arguments['binary'] = binary
        before = process_identity(self.pid)
        status = qmp.execute('query-status')
        version = version_string(qmp.execute('query-version'))
        stderr = self.stderr
        del qmp.events[:]

        result = qmp.execute('exec-upgrade', timeout, **arguments)

        check_result(result)
        assert process_identity(self.pid) == before
        assert self.exe() == os.path.realpath(binary)
        assert result['from'] == version
        assert result['to'] == version_string(qmp.execute('query-version'))
        assert result['binary'] == binary
        assert sorted(result['dropped']) == sorted(dropped)
        event = qmp.wait_event('EXEC_UPGRADE')
        assert event['data'] == {'status': 'completed', 'result': result}
        assert qmp.execute('query-status') == status
        # A running guest is seen to stop and to go on, and nothing else
        pause = PAUSE_EVENTS if status['running'] else []
        others = [e['event'] for e in qmp.events if e['event'] not in events]
        assert others == pause, f'unexpected events: {qmp.events}'
        query = qmp.execute('query-exec-upgrade')
        assert query['last'] == result and query['enabled']
        new = [line for line in self.stderr[len(stderr):].splitlines()
               if line not in stderr and not any(
                   n in line for n in (*noise, *SANITIZER_NOTICES))]
        assert not new, 'new lines on stderr:\n' + '\n'.join(new)
        return result

    def refused(self, *reasons, error_class='GenericError', **arguments):
        """Expects that exec-upgrade is refused, with all of @reasons (parts
        of text) in the error, and that the process goes on as it was.
        Returns the error's text."""
        arguments.setdefault('binary', str(self.setup.new))
        before, exe = process_identity(self.pid), self.exe()
        status = self.qmp.execute('query-status')
        del self.qmp.events[:]
        ident = self.qmp.send('exec-upgrade', {
            k: v for k, v in arguments.items() if v is not None})
        try:
            result = self.qmp.reply(ident)
        except QMPError as error:
            desc = error.desc
            assert error.error_class == error_class, str(error)
        else:
            raise AssertionError(f'not refused: {result}')
        for reason in reasons:
            assert reason.lower() in desc.lower(), desc
        assert process_identity(self.pid) == before
        assert self.exe() == exe
        assert self.qmp.execute('query-status') == status
        moved = {'STOP', 'RESUME'} & {e['event'] for e in self.qmp.events}
        assert not moved, f'the guest was touched: {self.qmp.events}'
        return desc

    def blockers(self):
        return self.qmp.execute('query-exec-upgrade')['blockers']

    def migrate_to(self, destination, *, started=False, timeout=TIMEOUT):
        """Migrates to another VM, which was started with -incoming defer,
        or (@started) with -incoming unix:DIR/migrate."""
        uri = f'unix:{destination.dir}/migrate'
        if not started:
            destination.qmp.execute('migrate-incoming', uri=uri)
        self.qmp.execute('migrate-set-capabilities', capabilities=[
            {'capability': 'events', 'state': True}])
        self.qmp.execute('migrate', uri=uri)
        self.qmp.wait_event('MIGRATION', timeout, status='completed')
        destination.qmp.wait_event('RESUME', timeout)
        destination.agent.boot_id = self.agent.boot_id
