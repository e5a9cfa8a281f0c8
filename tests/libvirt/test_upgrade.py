# SPDX-License-Identifier: GPL-2.0-or-later
"""A domain as virt-install writes it, upgraded with one virsh command: what
libvirt, its clients and the network see of that. One upgrade, with all of
them at work, serves all tests."""

import json
import re
import time
from pathlib import Path

import pytest

from harness.checks import check_disk, wait_disk_writes
from harness.lines import LineChecker, lines
from harness.net import HOST, check_losses
from harness.vm import process_identity

from console import Console, Events
from domain import Domain
from host import wait_for


def pairs(text):
    """{name: value} of virsh's output in two columns."""
    return dict(map(str.strip, re.split(r'[:=]', row, 1))
                for row in text.splitlines() if re.search('[:=]', row))


def look(domain):
    """What libvirt says of a domain."""
    host = domain.host
    return {
        'list': host.virsh('list', '--all'),
        'domid': domain.virsh('domid'),
        'domuuid': domain.virsh('domuuid'),
        'domstate': domain.virsh('domstate'),
        'dominfo': {k: v for k, v in pairs(domain.virsh('dominfo')).items()
                    if k not in ('CPU time', 'Messages', 'tainted')},
        'domstats': {k for k in pairs(domain.virsh('domstats'))},
        'vncdisplay': domain.virsh('vncdisplay'),
        'ttyconsole': domain.virsh('ttyconsole'),
        'domblklist': domain.virsh('domblklist', '--details'),
        'domblkinfo': {k: v for k, v in
                       pairs(domain.virsh('domblkinfo', 'vda')).items()
                       if k == 'Capacity'},     # the rest grows by writing
        'domiflist': domain.virsh('domiflist'),
        'domjobinfo': domain.virsh('domjobinfo'),
        'domcontrol': domain.virsh('domcontrol'),
        'xml': domain.virsh('dumpxml'),
        'process': process_identity(domain.pid),
    }


class Upgrade:
    """The upgrade, and what was seen of it."""

    def __init__(self, host, domain):
        self.host, self.domain = host, domain
        agent = domain.agent
        self.memory = agent.ask('mem fill 40')
        self.counter = agent.ask('counter')
        agent.ask('disk start /dev/vda 2 32')
        wait_disk_writes(domain)

        self.events = Events(host)
        self.events.wait_ready(domain)
        self.events.barrier(domain)
        self.start_console()
        self.start_network()
        domain.guest_agent('guest-ping')
        self.before = look(domain)
        self.logs = host.log(), domain.log()

        self.ping_guest_agent()
        host.install(host.setup.new)
        start = time.monotonic()
        self.result = domain.upgrade()
        self.times = start, time.monotonic(), self.result['downtime'] / 1e6
        assert self.ping.poll() is None
        agent.sh('kill -CONT $(pidof qemu-ga)')
        # Until a guest agent command ends there can't be another
        self.ping_status = self.ping.wait(60)
        self.new_logs = [new[len(old):] for old, new in
                         zip(self.logs, (host.log(), domain.log()))]
        self.after = look(domain)
        self.new_events = self.events.barrier(domain)

    def start_console(self):
        agent = self.domain.agent
        self.console = Console(self.host, self.domain.name)
        agent.ask('reader start /dev/ttyS0')
        agent.ask('lines start /dev/ttyS0 2000')
        self.printed = LineChecker(self.console.fd)
        self.typed = 0
        self.type(20)
        self.printed.wait_more(100)

    def type(self, count):
        self.console.send(lines(self.typed, self.typed + count))
        self.typed += count

    def start_network(self):
        agent = self.domain.agent
        self.domain.start_network()
        self.pinger = self.host.network.pinger(interval=0.02)
        self.pinger.settle()
        server = self.host.network.listen()
        port = server.getsockname()[1]
        agent.sh('cd /root; mkfifo out; '
                 f'(nc {HOST} {port} < out) > /dev/null 2>&1 & ')
        agent.ask('lines start /root/out 2000')
        self.stream = LineChecker(server.accept()[0])
        self.stream.wait_more(100)

    def ping_guest_agent(self):
        """Has a command to the guest agent on the way: it is in the guest,
        which doesn't answer for now."""
        self.domain.agent.sh('kill -STOP $(pidof qemu-ga)')
        start = len(self.host.log())
        self.ping = self.host.popen(
            'virsh', 'qemu-agent-command', self.domain.name,
            '{"execute": "guest-ping"}', '--timeout', '60')
        wait_for(lambda: "Send command '{\"execute\":\"guest-ping\"}'" in
                 self.host.log()[start:], 'the command to be sent')


@pytest.fixture(scope='module')
def upgrade(host):
    domain = Domain(host).start()
    domain.start_guest_agent()
    return Upgrade(host, domain)


@pytest.fixture(scope='module')
def domain(upgrade):
    return upgrade.domain


@pytest.mark.parametrize('what', [
    'list', 'domid', 'domuuid', 'domstate', 'dominfo', 'domstats',
    'vncdisplay', 'ttyconsole', 'domblklist', 'domblkinfo', 'domiflist',
    'domjobinfo', 'domcontrol', 'xml', 'process'])
def test_same(upgrade, what):
    """virsh says the same as before; process id and start time are."""
    assert upgrade.before[what]
    assert upgrade.after[what] == upgrade.before[what]


def test_query_version(upgrade, domain):
    version = domain.qmp('query-version')['qemu']
    assert '{major}.{minor}.{micro} '.format(**version) in \
        upgrade.result['to'] + ' '


def test_sandbox_stays(upgrade, domain):
    """libvirt's default: the filter outlives the upgrade."""
    proc = Path('/proc') / str(domain.pid)
    words = (proc / 'cmdline').read_bytes().split(b'\0')
    assert b'spawn=deny' in words[words.index(b'-sandbox') + 1]
    status = (proc / 'status').read_text()
    assert re.search(r'^Seccomp:\s*2$', status, re.M)
    assert re.search(r'^NoNewPrivs:\s*1$', status, re.M)


def test_guest_goes_on(upgrade, domain):
    after = domain.agent.ask('counter')
    assert after['boot_id'] == upgrade.counter['boot_id']
    assert after['counter'] > upgrade.counter['counter']
    assert domain.agent.ask('mem verify') == upgrade.memory
    domain.agent.check_log()


def test_disk(domain):
    wait_disk_writes(domain)
    check_disk(domain)


def test_console(upgrade, domain):
    """virsh console was open; each byte came once, in both directions."""
    upgrade.printed.wait_more(500)
    upgrade.type(100)
    wait_for(lambda: domain.agent.ask('reader status /dev/ttyS0')['lines'] ==
             upgrade.typed, 'the guest to read what was typed')
    assert domain.agent.ask('reader status /dev/ttyS0')['errors'] == 0
    end = domain.agent.ask('lines stop /dev/ttyS0')['next']
    upgrade.printed.wait(end)


def test_guest_agent_after(domain):
    assert domain.guest_agent('guest-ping') == {}
    assert domain.guest_agent('guest-info')['version']


def test_guest_agent_in_flight(upgrade):
    """A command that the guest had not answered yet was answered."""
    assert upgrade.ping_status == 0


def test_ping(upgrade):
    upgrade.pinger.wait_answers(50)
    check_losses(upgrade.pinger.finish(), [upgrade.times], 0.02,
                 upgrade.pinger.latency())


def test_tcp_stream(upgrade, domain):
    upgrade.stream.wait_more(500)
    end = domain.agent.ask('lines stop /root/out')['next']
    upgrade.stream.wait(end)


def test_bridge_port(upgrade, host):
    ports = host.run('ip', '-o', 'link', 'show', 'master', 'br0')
    assert len(ports.splitlines()) == 1
    assert 'vnet0' in ports and 'LOWER_UP' in ports


def test_events(upgrade):
    """A client of all events sees suspended and resumed, nothing else."""
    assert upgrade.new_events == [
        "event 'lifecycle' for domain 'guest': Suspended Paused",
        "event 'lifecycle' for domain 'guest': Resumed Unpaused"]


def monitor_stream(log):
    """What came in on the monitor, message by message."""
    return [json.loads(text) for text in re.findall(
        r'qemuMonitorJSONIOProcessLine:\d+ : Line \[(.*)\]$', log, re.M)]


def test_one_greeting(upgrade):
    """QEMU greeted once, when it was started; after an upgrade the stream
    goes on as if nothing had happened."""
    assert [m for m in monitor_stream(upgrade.logs[0]) if 'QMP' in m]
    stream = monitor_stream(upgrade.new_logs[0])
    assert not [m for m in stream if 'QMP' in m]
    assert [m['event'] for m in stream if 'event' in m] == [
        'STOP', 'RESUME', 'EXEC_UPGRADE']
    ids = [m['id'] for m in stream if 'id' in m]
    assert len(ids) == len(set(ids))


def test_logs(upgrade):
    """libvirt and QEMU only say that somebody used the monitor."""
    libvirtd, qemu = upgrade.new_logs
    said = [text for text in libvirtd.splitlines()
            if re.search(r': (warning|error) :', text)]
    assert [text for text in said if 'tainted: custom-monitor' not in text] \
        == []
    assert [text for text in qemu.splitlines()
            if 'tainted: custom-monitor' not in text] == []


def test_messages(domain):
    """virsh says of the domain only what was done to it."""
    assert re.findall(r'tainted: (.*)', domain.virsh('dominfo')) == [
        'custom monitor control commands issued',
        'custom guest agent control commands issued']
