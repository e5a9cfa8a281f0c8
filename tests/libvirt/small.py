# SPDX-License-Identifier: GPL-2.0-or-later
"""Small domains, to have many of them, and contrib/exec-upgrade-domains on
their host."""

import contextlib
import os
import re
import subprocess
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path

from harness import TIMEOUT

from domain import Domain
from host import EMULATOR
from keeper import cgroup_hierarchies

TOOL = '/usr/local/sbin/exec-upgrade-domains'
MAN_PAGE = '/usr/local/share/man/man8/exec-upgrade-domains.8'
ROOT = Path(__file__).resolve().parents[2]

XML = '''<domain type="qemu">
  <name>{name}</name>
  <memory unit="MiB">32</memory>
  <vcpu>{vcpus}</vcpu>
  <iothreads>1</iothreads>
  {tuning}
  <os><type arch="x86_64" machine="{machine}">hvm</type></os>
  <features><acpi/></features>
  <devices>
    <emulator>{emulator}</emulator>
    {devices}
    <controller type="usb" model="none"/>
    <memballoon model="none"/>
  </devices>
</domain>'''


@dataclass(frozen=True)
class Place:
    """Where a thread is: the ends of its cgroups' paths with controllers,
    affinity, and scheduler."""
    cgroups: frozenset
    cpus: frozenset
    scheduler: tuple                    # policy and priority

    @property
    def cgroup_names(self):
        """Without controllers."""
        return {cgroup.partition(':')[2] for cgroup in self.cgroups}


def thread_name(task):
    try:
        return (task / 'comm').read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ''                       # one that came and went


def cgroup_name(name):
    """libvirt's name of the cgroup for a thread of this name."""
    if found := re.match(r'CPU (\d+)/|IO iothread(\d+)', name):
        return f'vcpu{found[1]}' if found[1] else f'iothread{found[2]}'
    return 'emulator'


class SmallDomain(Domain):
    """A domain that has nothing to boot: its firmware says so, and waits.
    @devices and @tuning are XML."""

    # pylint: disable=too-many-arguments
    def __init__(self, host, name, machine='q35', vcpus=2, tuning='',
                 devices=''):
        self.text = XML.format(name=name, machine=machine, vcpus=vcpus,
                               tuning=tuning, devices=devices,
                               emulator=EMULATOR)
        super().__init__(host, name)

    def describe(self):
        return ET.fromstring(self.text)

    def make_images(self):
        pass

    def connect_agent(self, ready=True):
        return self

    def executable(self):
        """Identifies the file that its process runs."""
        stat = os.stat(f'/proc/{self.pid}/exe')
        return stat.st_dev, stat.st_ino

    def enter_cgroup2(self):
        """Puts its threads in cgroups of version 2, named as libvirt's, as
        cgroups(7) wants it. libvirt does it itself only if the controllers
        of CPUs are there, and not in version 1."""
        if ':emulator' in self.places()['main'].cgroups:
            return
        hierarchy = next(cgroup_hierarchies(['cgroup2']))
        top = hierarchy / self.host.folder.name / self.name
        top.mkdir()
        (top / 'cgroup.procs').write_text(str(self.pid))
        for task in Path(f'/proc/{self.pid}/task').iterdir():
            group = top / cgroup_name(thread_name(task))
            if not group.exists():
                group.mkdir()
                (group / 'cgroup.type').write_text('threaded')
            with contextlib.suppress(ProcessLookupError):
                (group / 'cgroup.threads').write_text(task.name)

    def places(self):
        """{name: Place} of the threads that libvirt places on their own, and
        of the main thread."""
        pid = self.pid
        places = {}
        for task in Path(f'/proc/{pid}/task').iterdir():
            tid = int(task.name)
            name = 'main' if tid == pid else thread_name(task)
            if not name.startswith(('main', 'CPU ', 'IO iothread')):
                continue
            places[name] = Place(
                frozenset(line.split(':')[1] + ':' + line.split('/')[-1]
                          for line in
                          (task / 'cgroup').read_text().splitlines()),
                frozenset(os.sched_getaffinity(tid)),
                (os.sched_getscheduler(tid) & ~os.SCHED_RESET_ON_FORK,
                 os.sched_getparam(tid).sched_priority))
        return places


def install_tool(host):
    """As an admin would, below /usr/local of the host."""
    subprocess.run(['make', '-C', ROOT, '--no-print-directory', '-s',
                    'install-contrib', f'DESTDIR={host.folder}'], check=True,
                   stdin=subprocess.DEVNULL)


def run_tool(host, *options, status=0):
    """Runs the tool in the host; returns what it writes to stdout."""
    process = subprocess.run(
        host.command(TOOL, *options), text=True, capture_output=True,
        check=False, stdin=subprocess.DEVNULL, timeout=TIMEOUT)
    assert process.returncode == status, process.stdout + process.stderr
    return process.stdout
