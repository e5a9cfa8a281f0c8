# SPDX-License-Identifier: GPL-2.0-or-later
"""A host for libvirt's daemons: namespaces of its own for mounts, processes,
network, cgroups and name, with its own /etc/libvirt, /run, /var/lib/libvirt.
Nothing of it is left when it ends, also if the test is killed: see keeper.py.
Several run side by side. What is in its folders can be seen from outside in
host.path(...).
"""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import time
import uuid
from pathlib import Path

import libvirt

from harness import TIMEOUT
from harness.net import HOST, Namespace
from harness.stream import connect
from harness.vm import die_with_parent

from init import FOLDERS

# As a package should install it: alone in its folder, known by a link
EMULATOR = '/usr/local/bin/qemu-system-x86_64'
EMULATOR_FILE = '/usr/local/libexec/qemu/qemu-system-x86_64'

KEEPER = Path(__file__).with_name('keeper.py')

# Of two hosts on the cable between them
CABLE = '10.10.0.1', '10.10.0.2'

LIBVIRTD_CONF = '''
host_uuid = "{uuid}"
log_filters = "1:qemu.qemu_monitor 1:qemu.qemu_agent 3:object 3:event 3:rpc"
log_outputs = "1:file:/var/log/libvirt/libvirtd.log"
'''


def wait_for(condition, what, timeout=TIMEOUT):
    """For what nothing announces: asks until it is so."""
    deadline = time.monotonic() + timeout
    while not (result := condition()):
        assert time.monotonic() < deadline, f'in vain waited for {what}'
        time.sleep(0.01)
    return result


def only_child(pid):
    """The process id of a process's child."""
    child, = Path(f'/proc/{pid}/task/{pid}/children').read_text().split()
    return int(child)


class CommandError(Exception):
    def __init__(self, command, process):
        self.output = process.stdout + process.stderr
        super().__init__(f'{" ".join(command)}: exit status '
                         f'{process.returncode}\n{self.output}')


class HostNetwork(Namespace):
    """The host's network namespace, with a bridge."""

    # pylint: disable=super-init-not-called
    def __init__(self, host):
        self.host = host
        self.path = f'/proc/{host.pid}/ns/net'
        self.run('ip link add br0 type bridge')
        self.run(f'ip addr add {HOST}/24 dev br0')
        self.run('ip link set br0 up')

    def run(self, command):
        return self.host.run(*command.split())


class Host:
    """@setup: which binaries and guest image; see harness.options."""

    def __init__(self, setup, name='host', configuration=''):
        self.setup = setup
        self.name = name
        self.configuration = configuration      # added to qemu.conf
        self.uuid = str(uuid.uuid4())
        self.daemons = {}
        self.processes = []
        # In a session of its own: what ends the test has to leave it alone
        # pylint: disable=consider-using-with
        self.keeper = subprocess.Popen(
            [sys.executable, '-B', KEEPER], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, start_new_session=True)
        self.folder = Path(self.keeper.stdout.readline().decode().rstrip())
        try:
            self.make_folders()
            self.start_init()
            self.network = HostNetwork(self)
        except BaseException:
            self.close()
            raise

    def path(self, path):
        """Where a path in the host is found from outside."""
        assert path.startswith(FOLDERS), path
        return self.folder / path.lstrip('/')

    # Start and end

    def make_folders(self):
        for path in FOLDERS:
            self.path(path).mkdir(parents=True)
        # What Debian's package installs, with its modes and owners
        for path in '/etc/libvirt', '/var/lib/libvirt', '/var/cache/libvirt':
            subprocess.run(['cp', '-a', '--', *Path(path).glob('*'),
                            self.path(path)], check=True)
        for path in Path('/etc/libvirt/qemu/networks/autostart').glob('*'):
            self.path(str(path)).unlink()
        with open(self.path('/etc/libvirt/qemu.conf'), 'a',
                  encoding='ascii') as conf:
            conf.write('\n' + self.configuration)
        self.path('/etc/libvirt/libvirtd.conf').write_text(
            LIBVIRTD_CONF.format(uuid=self.uuid))
        self.path('/run/lock').mkdir()
        self.path(EMULATOR).parent.mkdir()
        self.path(EMULATOR_FILE).parent.mkdir(parents=True)
        self.path(EMULATOR).symlink_to(EMULATOR_FILE)
        self.install(self.setup.old)
        for name, source in (('vmlinux', self.setup.image.fast_kernel),
                             ('initrd',
                              self.setup.image.initrd_with_guest_agent())):
            shutil.copyfile(source, self.path('/var/lib/libvirt/boot/' + name))

    def start_init(self):
        self.keeper.stdin.write(b'\n')
        self.keeper.stdin.flush()
        assert self.keeper.stdout.readline() == b'ready\n'
        self.pid = only_child(only_child(self.keeper.pid))
        self.run('hostname', self.name)

    def close(self):
        """Ends all processes and removes all that is left."""
        for process in self.processes:
            process.kill()
        with self.keeper:
            self.keeper.stdin.close()
            status = self.keeper.wait(TIMEOUT)
        for process in self.processes:
            process.wait(TIMEOUT)
        assert status == 0, f'{KEEPER}: exit status {status}'

    # Programs in it

    def command(self, *command):
        """@command such that it runs in the host."""
        return ['nsenter', '-t', str(self.pid), '-m', '-n', '-p', '-u', '-i',
                '-C', '--', *map(str, command)]

    def popen(self, *command, **kwargs):
        """Starts a program; it ends with the host at the latest."""
        # pylint: disable=consider-using-with
        process = subprocess.Popen(self.command(*command), **{
            'stdin': subprocess.DEVNULL, 'preexec_fn': die_with_parent,
            **kwargs})
        self.processes.append(process)
        return process

    def run(self, *command, timeout=TIMEOUT, check=True):
        """Runs a program, returns what it prints."""
        process = subprocess.run(
            self.command(*command), text=True, capture_output=True,
            check=False, stdin=subprocess.DEVNULL, timeout=timeout)
        if check and process.returncode:
            raise CommandError([str(word) for word in command], process)
        return process.stdout

    def virsh(self, *command, **kwargs):
        """Runs virsh, returns what it prints, without blanks around it."""
        return self.run('virsh', '-q', *command, **kwargs).strip()

    def qemu_img(self, *arguments):
        """Runs qemu-img on files in the host, returns its standard output."""
        return self.setup.qemu_img(
            *(self.path(word) if word.startswith('/') else word
              for word in arguments))

    def outer_pid(self, pid):
        """The process id outside of one in the host."""
        for status in Path('/proc').glob('[0-9]*/status'):
            with contextlib.suppress(OSError):
                found = re.search(r'^NSpid:\t(\d+)\t(\d+)$',
                                  status.read_text(), re.M)
                if found and int(found[2]) == pid and os.path.samefile(
                        status.parent / 'ns/pid', f'/proc/{self.pid}/ns/pid'):
                    return int(found[1])
        raise ProcessLookupError(pid)

    # Daemons

    def start_daemon(self, name, socket):
        """Starts a daemon and waits until it listens."""
        log = self.path(f'/var/log/libvirt/{name}.stderr')
        with open(log, 'ab') as out:
            process = self.popen(name, stdout=out, stderr=out)
        path = self.path('/run/libvirt/' + socket)

        def connected():
            assert process.poll() is None, \
                f'{name} ended:\n{log.read_text()}'
            with contextlib.suppress(OSError):
                connect(str(path)).close()
                return True
            return False
        wait_for(connected, f'{name} to listen')
        self.daemons[name] = process

    def stop_daemon(self, name, signal='TERM'):
        self.run('kill', f'-{signal}', self.daemon_pid(name))
        self.daemons.pop(name).wait(TIMEOUT)

    def daemon_pid(self, name):
        """Its process id in the host."""
        return int(self.path(f'/run/{name}.pid').read_text())

    def start(self):
        self.path('/run/libvirt').mkdir(exist_ok=True)
        self.start_daemon('virtlogd', 'virtlogd-sock')
        self.start_daemon('libvirtd', 'libvirt-sock')
        return self

    def restart_libvirtd(self, signal='TERM'):
        self.stop_daemon('libvirtd', signal)
        self.start_daemon('libvirtd', 'libvirt-sock')

    def connect(self):
        """A libvirt.virConnect to libvirtd."""
        return libvirt.open(self.uri)

    def log(self):
        """What libvirtd wrote."""
        return self.path('/var/log/libvirt/libvirtd.log').read_text(
            errors='replace')

    # Another host

    def connect_to(self, other):
        """Lays a cable to another host; over it, libvirt migrates."""
        subprocess.run(
            ['nsenter', '-t', str(self.pid), '-n', 'ip', 'link', 'add',
             'cable0', 'type', 'veth', 'peer', 'name', 'cable0', 'netns',
             str(other.pid)], check=True)
        for host, address in (self, CABLE[0]), (other, CABLE[1]):
            host.run('ip', 'addr', 'add', f'{address}/30', 'dev', 'cable0')
            host.run('ip', 'link', 'set', 'cable0', 'up')

    @property
    def uri(self):
        """libvirt's, for programs that run outside or in another host."""
        return ('qemu+unix:///system?socket=' +
                str(self.path('/run/libvirt/libvirt-sock')))

    # The emulator

    def install(self, binary):
        """Puts a QEMU where domains find it, as a package does: the old
        file stays what it is for those who have it open."""
        target = self.path(EMULATOR_FILE)
        new = target.with_suffix('.dpkg-new')
        shutil.copyfile(binary, new)
        new.chmod(0o755)
        new.rename(target)
