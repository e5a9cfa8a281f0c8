# SPDX-License-Identifier: GPL-2.0-or-later
"""contrib/exec-upgrade-domains: what it does without a libvirt daemon."""

import importlib.machinery
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).resolve().parents[2] / 'contrib/exec-upgrade-domains'


@pytest.fixture(scope='module')
def tool():
    loader = importlib.machinery.SourceFileLoader('exec_upgrade_domains',
                                                  str(TOOL))
    module = importlib.util.module_from_spec(
        importlib.util.spec_from_loader(loader.name, loader))
    sys.modules[loader.name] = module       # dataclasses look it up
    loader.exec_module(module)
    return module


@pytest.mark.parametrize('text, numbers', [
    ('', []), ('3\n', [3]), ('0-2,8', [0, 1, 2, 8]),
    ('0-3,^2', [0, 1, 3]), (' 1, 5-6', [1, 5, 6])])
def test_cpuset(tool, text, numbers):
    assert tool.parse_cpuset(text) == frozenset(numbers)


def test_placement(tool):
    placement = tool.parse_placement('''<domain>
      <vcpu cpuset='0-1'>3</vcpu>
      <cputune>
        <vcpupin vcpu='1' cpuset='1'/>
        <iothreadpin iothread='1' cpuset='0'/>
        <vcpusched vcpus='0-1' scheduler='fifo' priority='7'/>
        <emulatorsched scheduler='batch'/>
        <cachetune vcpus='0'/>
      </cputune></domain>''')
    vcpu = [tool.Thread('vcpu', n, 100 + n) for n in range(3)]
    iothread = tool.Thread('iothread', 1, 200)
    assert [placement.cpus(t) for t in vcpu] == [{0, 1}, {1}, {0, 1}]
    assert placement.cpus(iothread) == {0}
    fifo = tool.Scheduler(os.SCHED_FIFO, 7)
    assert [placement.scheduler(t) for t in vcpu] == [fifo, fifo, None]
    assert placement.emulator_scheduler == tool.Scheduler(os.SCHED_BATCH)
    assert placement.untouched == ['cachetune']


def test_no_placement(tool):
    placement = tool.parse_placement('<domain><vcpu>1</vcpu></domain>')
    assert placement.cpus(tool.Thread('vcpu', 0, 1)) is None


MOUNTS = r'''30 24 0:26 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
31 24 0:27 / /sys/fs/cgroup/a\040b rw shared:9 - cgroup cgroup rw,cpuset
32 24 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
33 24 0:29 / /proc rw - proc proc rw
'''


def test_cgroups(tool):
    mounts = tool.parse_cgroup_mounts(MOUNTS)
    groups = tool.emulator_cgroups(
        '7:cpuset:/m/d/emulator\n3:cpu,cpuacct:/m/d/emulator\n'
        '1:name=systemd:/m/d\n0::/m/d/emulator\n', mounts)
    assert [(str(g.path), g.version) for g in groups] == [
        ('/sys/fs/cgroup/a b/m/d/emulator', 1),
        ('/sys/fs/cgroup/cpu,cpuacct/m/d/emulator', 1),
        ('/sys/fs/cgroup/unified/m/d/emulator', 2)]
    assert [g.sibling('vcpu1').threads_file.name for g in groups] == \
        ['tasks', 'tasks', 'cgroup.threads']


def test_vcpu_numbers_follow_topology(tool):
    """A vCPU that was plugged late has a high cpu-index and a low number."""
    slots = [{'vcpus-count': 1, 'qom-path': f'/cpu{core}',
              'props': {'socket-id': 0, 'core-id': core}} for core in (2, 0, 1)]
    cpus = [{'qom-path': '/cpu0', 'cpu-index': 0, 'thread-id': 10},
            {'qom-path': '/cpu2', 'cpu-index': 1, 'thread-id': 12},
            {'qom-path': '/cpu1', 'cpu-index': 2, 'thread-id': 11}]
    assert {t.number: t.tid for t in tool.vcpu_threads(cpus, slots, 1)} == \
        {0: 10, 1: 11, 2: 12}
    # all in the main thread
    assert tool.vcpu_threads(cpus[:1], slots, 10) == []


def test_foreign_thread_is_not_moved(tool):
    with pytest.raises(tool.UpgradeError, match='none of its threads'):
        tool.check_threads([tool.Thread('vcpu', 0, 1)], {os.getpid()})


@pytest.mark.parametrize('text, manager', [
    ('', None), ('#lock_manager = "lockd"\n', None),
    ('lock_manager = "nop"\n', None), (' lock_manager = "lockd"\n', 'lockd'),
    ('lock_manager = "lockd"\nlock_manager = "sanlock"\n', 'sanlock')])
def test_lock_manager(tool, text, manager):
    assert tool.lock_manager(text) == manager


def test_handoff_note(tool, setup):
    assert tool.has_handoff_note(setup.old)
    assert tool.has_handoff_note(setup.new)
    assert not tool.has_handoff_note('/usr/bin/qemu-system-x86_64')
    assert not tool.has_handoff_note('/bin/sh')
    assert not tool.has_handoff_note(__file__)


def test_version(tool, setup):
    text = subprocess.run([setup.new, '--version'], check=True, text=True,
                          capture_output=True).stdout
    assert tool.parse_version(text).endswith('(exec-upgrade)')
    assert tool.parse_version('GNU bash, version 5') is None


def test_printable(tool):
    assert tool.printable('a\x1b[2Jb\n') == r'a\x1b[2Jb\x0a'


def test_help_and_usage():
    result = subprocess.run([str(TOOL), '--help'], check=True, text=True,
                            capture_output=True).stdout
    for option in '--all', '--dry-run', '--parallel', '--refresh-libvirt', \
            '--json':
        assert option in result
    bad = subprocess.run([str(TOOL), '--no-such-option'], check=False,
                         capture_output=True)
    assert bad.returncode == 2
