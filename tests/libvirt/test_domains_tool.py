# SPDX-License-Identifier: GPL-2.0-or-later
"""contrib/exec-upgrade-domains upgrades ten domains of a host, one of which
can't be upgraded and two of which end while it is at work. One run serves
most tests."""

import contextlib
import json
import os
import re
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from harness import TIMEOUT
from harness.vm import process_identity

from host import EMULATOR_FILE, wait_for
from small import MAN_PAGE, TOOL, SmallDomain, install_tool, run_tool

PINS = '''<cputune>
  <vcpupin vcpu="0" cpuset="0"/><vcpupin vcpu="1" cpuset="1"/>
  <emulatorpin cpuset="0"/>
  <iothreadpin iothread="1" cpuset="1"/>
</cputune>'''
BATCH = '''<cputune>
  <vcpupin vcpu="1" cpuset="1"/>
  <vcpusched vcpus="1" scheduler="batch"/>
</cputune>'''
SCHEDULERS = '''<cputune>
  <iothreadsched iothreads="1" scheduler="idle"/>
  <emulatorsched scheduler="batch"/>
</cputune>'''
DOMAINS = {
    'bare': {'machine': 'pc', 'vcpus': 1},
    'pinned': {'tuning': PINS},
    'batch': {'machine': 'pc', 'tuning': BATCH},
    'schedulers': {'tuning': SCHEDULERS},
    'paused': {'tuning': PINS},
    'unified': {},
    'refused': {'machine': 'pc', 'tuning': PINS},
    'by-hand': {'tuning': PINS},
    'destroyed': {'machine': 'pc'},
    'undefined': {},
}
UPGRADED = ['bare', 'pinned', 'batch', 'schedulers', 'paused', 'unified']
PLACED = [*UPGRADED, 'refused', 'by-hand']

# Its memory is another process's, which is why it can't be migrated
SHARED_MEMORY = '''<shmem name="shared" role="peer">
  <model type="ivshmem-plain"/><size unit="M">4</size></shmem>'''
REASON = "Migration is disabled when using feature 'peer mode' in device " \
    "'ivshmem'"

COMMANDS = ['vcpuinfo', 'vcpupin', 'emulatorpin', 'iothreadinfo',
            'domstats --vcpu', 'domstate']

RESTART = '/usr/local/sbin/restart-libvirtd'
RESTARTS = '/run/restarts'
RESTART_SCRIPT = f'''#!/bin/sh -e
echo restart >> {RESTARTS}
pid=$(cat /run/libvirtd.pid)
kill $pid
tail --pid=$pid -s 0.05 -f /dev/null
exec libvirtd --daemon
'''


class Pipe:
    """One that is full, so that who writes to it waits until it is read."""

    def __init__(self):
        self.read_end, self.write_end = os.pipe()
        os.set_blocking(self.write_end, False)
        self.filled = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                self.filled += os.write(self.write_end, bytes(4096))
        os.set_blocking(self.write_end, True)
        self.data = b''

    @property
    def text(self):
        """What was written to it, and read."""
        return self.data[self.filled:].decode()

    def read_all(self):
        """Until its writers close it; returns the text."""
        os.close(self.write_end)
        with open(self.read_end, 'rb', buffering=0) as file:
            while data := file.read(4096):
                self.data += data
        return self.text


class HeldRun:
    """A run of the tool with --json which is held when it has found out what
    there is to do, and is about to say so."""

    def __init__(self, host, *options):
        self.pipe = Pipe()
        self.process = host.popen(TOOL, '--json', *options, text=True,
                                  stdout=subprocess.PIPE,
                                  stderr=self.pipe.write_end)
        self.pid, = wait_for(self.held, 'the tool to write a table')

    def held(self):
        """The tool's process id, once it waits in write(2) to stderr."""
        assert self.process.poll() is None, self.process.returncode
        pid = self.process.pid
        children = Path(f'/proc/{pid}/task/{pid}/children').read_text()
        return [int(child) for child in children.split()
                if Path(f'/proc/{child}/syscall').read_text()
                .startswith('1 0x2 ')]

    def finish(self, status):
        """Lets it go on; returns the document and the texts."""
        with ThreadPoolExecutor() as pool:
            texts = pool.submit(self.pipe.read_all)
            try:
                out, _ = self.process.communicate(timeout=TIMEOUT)
            except subprocess.TimeoutExpired:
                os.kill(self.pid, signal.SIGKILL)
                raise
            texts = texts.result()
        assert self.process.returncode == status, texts
        return json.loads(out), texts


def signal_all(domains, name):
    """Sends a signal to their QEMUs."""
    domains[0].host.run('kill', f'-{name}',
                        *(domain.inner_pid() for domain in domains))


@contextlib.contextmanager
def held_upgrade(host, domains, *options, sent=1, status=0):
    """Runs the tool; yields the HeldRun and a future of its finish() when as
    many domains as @sent have got the command. Their QEMUs stand still."""
    held = HeldRun(host, *(domain.name for domain in domains), *options)
    signal_all(domains, 'STOP')
    start = len(host.log())
    with ThreadPoolExecutor() as pool:
        result = pool.submit(held.finish, status)
        try:
            wait_for(lambda: len(re.findall(
                'QEMU_MONITOR_IO_WRITE: .*"exec-upgrade"',
                host.log()[start:])) == sent, 'the command to be sent')
            yield held, result
        finally:
            signal_all(domains, 'CONT')


def rows(text, *columns):
    """{first column: rest} of the last table with these columns in a text."""
    table = text.rpartition(re.search(r'\s+'.join(columns) + '\n', text)[0])[2]
    found = {}
    for line in table.splitlines():
        name, _, rest = line.partition(' ')
        if name not in DOMAINS:
            break
        found[name] = rest.strip()
    return found


def commands(domain):
    """What virsh says of a domain's threads, but how long they ran and where
    they are at the moment."""
    return {command: re.sub(
        r'^(CPU( time)?:|  vcpu\.\d+\.(time|wait|delay)=).*\n?', '',
        domain.virsh(*command.split()), flags=re.M) for command in COMMANDS}


class Upgrade:
    """What the tool did, and what was seen of it."""

    def __init__(self, host):
        self.host = host
        self.domains = {name: SmallDomain(host, name, **what)
                        for name, what in DOMAINS.items()}
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(SmallDomain.start, self.domains.values()))
        self.domains['paused'].virsh('suspend')
        host.path('/run/shmem.xml').write_text(SHARED_MEMORY)
        self.domains['refused'].virsh('attach-device', '/run/shmem.xml')
        self.domains['unified'].enter_cgroup2()
        self.before = self.look()
        self.dry_before = run_tool(host, '--all', '--dry-run')

        host.install(host.setup.new)
        self.hand_result = self.domains['by-hand'].upgrade()
        self.by_hand = self.domains['by-hand'].places()
        self.dry_after = run_tool(host, '--all', '--dry-run', status=1)
        self.after_dry = {name: domain.executable() for name, domain
                          in self.domains.items()}
        self.run()
        self.after = self.look()

    def run(self):
        held = HeldRun(self.host, '--all', '--parallel', '4',
                       '--refresh-libvirt', '--restart-command', RESTART)
        self.domains['destroyed'].virsh('destroy')
        self.domains['undefined'].virsh('undefine')
        self.domains['undefined'].virsh('destroy')
        self.document, self.texts = held.finish(status=1)
        self.rows = {row['domain']: row for row in self.document['domains']}

    def look(self):
        return {name: (domain.places(), commands(domain),
                       process_identity(domain.pid), domain.executable())
                for name, domain in self.domains.items() if name in PLACED}


@pytest.fixture(scope='module')
def host(make_host):
    host = make_host().start()
    install_tool(host)
    script = host.path(RESTART)
    script.write_text(RESTART_SCRIPT)
    script.chmod(0o755)
    return host


@pytest.fixture(scope='module')
def upgrade(host):
    return Upgrade(host)


def test_dry_run_before(upgrade):
    found = rows(upgrade.dry_before, 'DOMAIN', 'FROM', 'TO', 'UPGRADABLE')
    assert sorted(found) == sorted(DOMAINS)
    version = upgrade.hand_result['from']
    for text in found.values():
        assert re.fullmatch(rf'({re.escape(version)}\s+){{2}}not needed', text)


def test_dry_run_after(upgrade):
    found = rows(upgrade.dry_after, 'DOMAIN', 'FROM', 'TO', 'UPGRADABLE')
    assert sorted(found) == sorted(DOMAINS)
    old, new = upgrade.hand_result['from'], upgrade.hand_result['to']
    for name, text in found.items():
        first, second, what = re.split(r'  +', text, 2)
        assert (first, second) == (new if name == 'by-hand' else old, new)
        if name == 'refused':
            assert what.startswith('no: ') and REASON in what
        else:
            assert what == ('done, threads are to be put back'
                            if name == 'by-hand' else 'yes')


def test_dry_run_does_nothing(upgrade):
    for name in UPGRADED:
        assert upgrade.after_dry[name] == upgrade.before[name][3]


@pytest.mark.parametrize('name', UPGRADED)
def test_upgraded(upgrade, host, name):
    row = upgrade.rows[name]
    assert (row['state'], row['result'], row['reasons'], row['notes']) == (
        'upgradable', 'upgraded', [], [])
    assert row['from'] == upgrade.hand_result['from']
    assert row['to'] == upgrade.hand_result['to']
    assert row['binary'] == EMULATOR_FILE
    assert row['downtime'] > 0
    stat = host.path(EMULATOR_FILE).stat()
    assert upgrade.after[name][3] == (stat.st_dev, stat.st_ino)
    assert upgrade.after[name][2] == upgrade.before[name][2]


def test_refused(upgrade):
    """It says why, nothing happens to it, and the others go on."""
    row = upgrade.rows['refused']
    assert (row['state'], row['result']) == ('refused', 'refused')
    assert REASON in ' '.join(row['reasons'])
    assert upgrade.after['refused'] == upgrade.before['refused']


def test_by_hand(upgrade):
    """Its threads are where execve(2) left them, and then put back."""
    main = upgrade.by_hand['main']
    assert set(upgrade.by_hand.values()) == {main}
    row = upgrade.rows['by-hand']
    assert (row['state'], row['result'], row['reasons']) == (
        'misplaced', 'repaired', [])


@pytest.mark.parametrize('name', ['destroyed', 'undefined'])
def test_ended(upgrade, name):
    row = upgrade.rows[name]
    assert (row['state'], row['result']) == ('upgradable', 'failed')
    assert len(row['reasons']) == 1
    assert 'gone or not running any more' in row['reasons'][0]


@pytest.mark.parametrize('name', PLACED)
def test_places(upgrade, name):
    """Each thread is where libvirt had put it."""
    places = upgrade.before[name][0]
    assert upgrade.after[name][0] == places
    vcpus = DOMAINS[name].get('vcpus', 2)
    assert sorted(places) == sorted([
        'main', 'IO iothread1', *(f'CPU {n}/TCG' for n in range(vcpus))])
    assert 'vcpu0' in places['CPU 0/TCG'].cgroup_names
    assert 'iothread1' in places['IO iothread1'].cgroup_names


def test_places_differ(upgrade):
    """What test_places compares is what the domains ask for."""
    def find(name, thread):
        return upgrade.before[name][0][thread]
    for name in 'pinned', 'paused', 'by-hand', 'refused':
        assert [find(name, t).cpus for t in (
            'CPU 0/TCG', 'CPU 1/TCG', 'main', 'IO iothread1')] == \
            [{0}, {1}, {0}, {1}]
    assert [find(*which).scheduler for which in (
        ('batch', 'CPU 1/TCG'), ('batch', 'CPU 0/TCG'),
        ('schedulers', 'main'), ('schedulers', 'CPU 1/TCG'),
        ('schedulers', 'IO iothread1'))] == [
            (os.SCHED_BATCH, 0), (os.SCHED_OTHER, 0), (os.SCHED_BATCH, 0),
            (os.SCHED_OTHER, 0), (os.SCHED_IDLE, 0)]


def test_cgroup2(upgrade):
    """Threads are put back in version 2 as well."""
    places = upgrade.before['unified'][0]
    for thread, name in (('CPU 1/TCG', 'vcpu1'), ('main', 'emulator'),
                         ('IO iothread1', 'iothread1')):
        assert f':{name}' in places[thread].cgroups
    assert upgrade.after['unified'][0] == places


@pytest.mark.parametrize('command', COMMANDS)
def test_libvirt_refreshed(upgrade, command):
    """libvirt was restarted, and knows the new threads."""
    for name in PLACED:
        assert upgrade.after[name][1][command] == \
            upgrade.before[name][1][command]


def test_restart(upgrade, host):
    assert upgrade.document['libvirt'] == {
        'restarted': True, 'stale': [], 'error': None}
    assert host.path(RESTARTS).read_text() == 'restart\n'
    assert upgrade.texts.endswith("libvirt's daemon was restarted\n")


def test_document(upgrade):
    assert (upgrade.document['ok'], upgrade.document['dry-run']) == (
        False, False)
    assert sorted(upgrade.rows) == sorted(DOMAINS)


def test_texts(upgrade):
    """A table, a line for each domain on which there is work, a table."""
    plan, _, rest = upgrade.texts.partition('[1/9] ')
    assert sorted(rows(plan, 'DOMAIN', 'FROM', 'TO', 'UPGRADABLE')) == \
        sorted(DOMAINS)
    lines = re.findall(r'^\[(\d)/9\] (\S+): (\w+)', '[1/9] ' + rest, re.M)
    assert [number for number, _, _ in lines] == list('123456789')
    results = {name: row['result'] for name, row in upgrade.rows.items()}
    assert {name: result for _, name, result in lines} == {
        name: result for name, result in results.items()
        if result != 'refused'}
    found = rows(rest, 'DOMAIN', 'FROM', 'TO', 'DOWNTIME', 'RESULT')
    assert {name: re.split(r'  +', text)[3].split(':')[0]
            for name, text in found.items()} == results


@pytest.mark.parametrize('command, thread', [
    ('vcpupin {} 1 0', 'CPU 1/TCG'), ('iothreadpin {} 1 0', 'IO iothread1'),
    ('emulatorpin {} 1', 'main')])
def test_pin_again(upgrade, host, command, thread):
    domain = upgrade.domains['pinned']
    before = domain.places()[thread].cpus
    host.virsh(*command.format(domain.name).split(), '--live')
    assert domain.places()[thread].cpus == {0, 1} - before


def test_nothing_to_do(upgrade, host):
    """Nobody has to be upgraded, and libvirt not to be restarted."""
    restarts = host.path(RESTARTS).read_text()
    document = json.loads(run_tool(
        host, '--json', *UPGRADED, '--refresh-libvirt', '--restart-command',
        RESTART))
    assert document['ok']
    assert [(row['domain'], row['result']) for row in document['domains']] \
        == [(name, 'unchanged') for name in UPGRADED]
    assert document['libvirt'] == {
        'restarted': False, 'stale': [], 'error': None}
    assert host.path(RESTARTS).read_text() == restarts


def test_lost_connection(upgrade, host):
    """libvirtd is killed while a domain replaces itself; it is known what
    became of the domain, and its threads are put back."""
    domain = upgrade.domains['paused']
    before = domain.executable()
    host.install(host.setup.new)
    with held_upgrade(host, [domain]) as (_, result):
        host.run('kill', '-STOP', host.daemon_pid('libvirtd'))
        signal_all([domain], 'CONT')
        wait_for(lambda: domain.executable() != before, 'execve')
        host.run('kill', '-KILL', host.daemon_pid('libvirtd'))
        host.run('libvirtd', '--daemon')
        document, _ = result.result()
    row, = document['domains']
    assert (row['result'], row['reasons']) == ('upgraded', [])
    assert row['notes'] == ['the connection to libvirt was lost meanwhile']
    assert domain.places() == upgrade.before[domain.name][0]


def test_interrupted(upgrade, host):
    """The domain that is being upgraded is waited for, the other one is left
    alone."""
    domains = upgrade.domains['bare'], upgrade.domains['batch']
    before = domains[1].executable()
    host.install(host.setup.new)
    with held_upgrade(host, domains, status=1) as (held, result):
        os.kill(held.pid, signal.SIGINT)
        wait_for(lambda: 'interrupted: ' in held.pipe.text, 'its answer')
        signal_all(domains, 'CONT')
        document, _ = result.result()
    assert [(row['result'], row['reasons']) for row in document['domains']] \
        == [('upgraded', []), ('skipped', ['interrupted'])]
    assert domains[1].executable() == before


def test_parallel(upgrade, host):
    """Both are at work before one has done it."""
    domains = upgrade.domains['bare'], upgrade.domains['batch']
    host.install(host.setup.new)
    with held_upgrade(host, domains, '--parallel', '2', sent=2) as (_, result):
        signal_all(domains, 'CONT')
        document, _ = result.result()
    assert [row['result'] for row in document['domains']] == ['upgraded'] * 2


def test_text(upgrade, host):
    """Without --json; a domain that has to be upgraded, and is."""
    host.install(host.setup.new)
    text = run_tool(host, 'bare')
    version = upgrade.hand_result['to']
    assert rows(text, 'DOMAIN', 'FROM', 'TO', 'UPGRADABLE') == {
        'bare': f'{version}  {version}  yes'}
    assert re.search(r'^\[1/1\] bare: upgraded in [\d.]+ ms$', text, re.M)
    assert re.fullmatch(
        rf'(?:{re.escape(version)}  ){{2}}[\d.]+ ms +upgraded',
        rows(text, 'DOMAIN', 'FROM', 'TO', 'DOWNTIME', 'RESULT')['bare'])
    assert text.endswith('libvirt has old thread ids of bare: restart its '
                         'daemon, or use --refresh-libvirt\n')


@pytest.mark.parametrize('options, error', [
    (['--restart-command', "sh -c 'echo sorry; exit 3'"],
     "sh -c 'echo sorry; exit 3': exit status 3: sorry"),
    ([], "this host has no systemd: restart libvirt's daemon, or say how "
         'with --restart-command')])
def test_restart_fails(upgrade, host, options, error):
    name = upgrade.domains['bare'].name
    document = json.loads(run_tool(
        host, '--json', name, '--refresh-libvirt', *options, status=1))
    assert not document['ok']
    assert document['domains'][0]['result'] == 'unchanged'
    assert document['libvirt'] == {
        'restarted': False, 'stale': [name], 'error': error}


def test_unknown_domain(host):
    row, = json.loads(run_tool(host, '--json', 'no-such-domain',
                               status=1))['domains']
    assert (row['state'], row['result']) == ('refused', 'refused')
    assert 'no domain with matching name' in row['reasons'][0]


@pytest.mark.parametrize('options', [
    [], ['--all', 'bare'], ['--all', '--connect', 'qemu+ssh://other/system'],
    ['--all', '--parallel', '0'], ['--all', '--restart-command', '']])
def test_usage(host, options):
    assert run_tool(host, *options, status=2) == ''


def test_man_page(host):
    """It describes what --help names."""
    text = host.path(MAN_PAGE).read_text().replace('\\-', '-')
    assert re.search(r'^\.SH NAME\nexec-upgrade-domains - \w', text, re.M)
    options = set(re.findall(r'^\.BI? .*?(--[a-z-]+)', text, re.M))
    assert options == set(re.findall(r'^ +(?:-h, )?(--[a-z-]+)',
                                     run_tool(host, '--help'), re.M))
