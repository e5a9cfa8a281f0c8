# SPDX-License-Identifier: GPL-2.0-or-later
"""What libvirt gives a QEMU that it launches, and the upgrade must leave as
it is: memory of each kind, limits, secrets, descriptors, namespaces."""

import os
import pwd
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from harness.checks import (check_disk, guest_lives_on, ram_files,
                            wait_disk_writes)
from harness.hugepages import huge_pages
from harness.vnc import RFB, needs_openssl

from domain import IMAGES, Domain

PASSWORD = 'sesame'
SECRET = '1f1e1d1c-0001-4000-8000-0123456789ab'
SECRET_IMAGE = IMAGES + 'secret.qcow2'
SECRET_XML = f'''<secret ephemeral="no" private="yes">
  <uuid>{SECRET}</uuid>
  <usage type="volume"><volume>{SECRET_IMAGE}</volume></usage>
</secret>'''
SECRET_DISK = f'''<disk type="file" device="disk">
  <driver name="qemu" type="qcow2"/>
  <source file="{SECRET_IMAGE}">
    <encryption format="luks"><secret type="passphrase" uuid="{SECRET}"/>
    </encryption>
  </source>
  <target dev="vdb" bus="virtio"/>
</disk>'''
LIMITS = {'read_bytes_sec': 50000000, 'write_bytes_sec': 40000000,
          'read_bytes_sec_max': 60000000, 'read_bytes_sec_max_length': 3,
          'total_iops_sec': 3000, 'size_iops_sec': 8192}
DISKS = '/dev/vda', '/dev/vdb'
HUGE = '/run/hugepages'


def upgrade_keeps_memory(domain):
    files = ram_files(domain, 64 << 20)
    assert files
    with guest_lives_on(domain, fill=40):
        domain.upgrade()
    assert ram_files(domain, 64 << 20) == files


# Memory: one domain for each kind

@pytest.fixture(scope='module')
def memory_host(make_host):
    host = make_host(configuration=f'hugetlbfs_mount = "{HUGE}"')
    host.path(HUGE).mkdir()
    host.run('mount', '-t', 'hugetlbfs', 'none', HUGE)
    return host.start()


@pytest.fixture
def start_with_memory(memory_host):
    """Starts and upgrades a domain in whose XML these elements say where
    its memory comes from."""
    domains = []

    def start(*elements, upgrade=True):
        def change(root):
            for element in elements:
                root.insert(3, ET.fromstring(element))
        domain = Domain(memory_host, 'memory', change)
        domains.append(domain)
        memory_host.install(memory_host.setup.old)
        domain.start()
        memory_host.install(memory_host.setup.new)
        if upgrade:
            upgrade_keeps_memory(domain)
        return domain
    yield start
    for domain in domains:
        domain.virsh('destroy')
        domain.virsh('undefine')


def test_hugepages(start_with_memory):
    with huge_pages(128):
        domain = start_with_memory('<memoryBacking><hugepages/>'
                                   '</memoryBacking>')
        backend = domain.qmp('query-memdev')[0]
        assert backend['prealloc']
        smaps = Path(f'/proc/{domain.pid}/smaps').read_text()
        # what the guest has touched since
        assert sum(map(int, re.findall(r'_Hugetlb: *(\d+) kB', smaps))) > \
            64 << 10


@pytest.mark.parametrize('kind', ['memfd', 'file'])
def test_shared_memory(start_with_memory, kind):
    start_with_memory(f'<memoryBacking><source type="{kind}"/>'
                      '<access mode="shared"/></memoryBacking>')


def test_private_memory_file(start_with_memory):
    """What the guest has written is not in the file: refused."""
    domain = start_with_memory('<memoryBacking><source type="file"/>'
                               '</memoryBacking>', upgrade=False)
    domain.refused('private copy')
    domain.agent.ask('counter')


def test_memory_at_once(start_with_memory):
    """On a node, allocated before the guest starts, by threads that libvirt
    has placed by an object that it deletes then."""
    domain = start_with_memory(
        '<memoryBacking><allocation mode="immediate" threads="2"/>'
        '</memoryBacking>',
        '<numatune><memory mode="strict" nodeset="0"/></numatune>')
    backend, = domain.qmp('query-memdev')
    assert backend['prealloc'] and backend['policy'] == 'bind'
    assert backend['host-nodes'] == [0]


def test_guest_nodes(start_with_memory):
    domain = start_with_memory(
        '<cpu><numa><cell id="0" cpus="0" memory="131072" unit="KiB"/>'
        '<cell id="1" cpus="1" memory="131072" unit="KiB"/></numa></cpu>',
        '<numatune><memnode cellid="0" mode="preferred" nodeset="0"/>'
        '</numatune>')
    assert domain.agent.sh('ls -d /sys/devices/system/node/node*').split() \
        == [f'/sys/devices/system/node/node{n}' for n in range(2)]


# Everything else: in one domain

def configure(root):
    disk = root.find('devices/disk')
    limits = ET.SubElement(disk, 'iotune')
    for name, value in LIMITS.items():
        ET.SubElement(limits, name).text = str(value)
    root.find('devices').append(ET.fromstring(SECRET_DISK))
    root.find('devices/graphics').set('passwd', PASSWORD)


def make_secret(host):
    """An encrypted image, and what libvirt has to know to use it."""
    host.path('/run/secret.xml').write_text(SECRET_XML)
    host.path('/run/passphrase').write_text('of the disk')
    host.virsh('secret-define', '/run/secret.xml')
    host.virsh('secret-set-value', SECRET, '--file', '/run/passphrase',
               '--plain')
    host.qemu_img(
        'create', '-q', '-f', 'qcow2', '--object',
        f'secret,id=s,file={host.path("/run/passphrase")}', '-o',
        'encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10',
        SECRET_IMAGE, '64M')


@pytest.fixture(scope='module')
def upgraded(make_host):
    """A domain, and what there was before its upgrade."""
    host = make_host().start()
    make_secret(host)
    domain = Domain(host, change=configure).start()
    for disk in DISKS:
        domain.agent.wait_path(disk)
        domain.agent.ask(f'disk start {disk} 2 16')
        wait_disk_writes(domain, disk)
    before = look(domain)
    host.install(host.setup.new)
    with guest_lives_on(domain, fill=40):
        domain.upgrade()
    return domain, before, look(domain)


def limits(domain):
    """QEMU's, of each drive."""
    names = re.compile(r'(bps|iops)(_|$)|group')
    return {drive['qdev']: {name: value for name, value in
                            drive.get('inserted', {}).items()
                            if names.match(name)}
            for drive in domain.qmp('query-block')}


def given_descriptors(domain):
    """What is behind the descriptors that the command line names."""
    words = Path(f'/proc/{domain.pid}/cmdline').read_text()
    numbers = set(re.findall(r'"?\bfds?"?[=:]"?(\d+)', words))
    assert len(numbers) >= 2, words
    return {number: os.readlink(f'/proc/{domain.pid}/fd/{number}')
            for number in numbers}


def status(domain, *names):
    text = Path(f'/proc/{domain.pid}/status').read_text()
    return {name: re.search(rf'^{name}:\s*(.*)$', text, re.M)[1]
            for name in names}


def pidfile_locks(domain):
    """Who has locked the file by which libvirt knows the process."""
    file = domain.host.path(f'/run/libvirt/qemu/{domain.name}.pid').stat()
    return [words.split()[1:6] for words in
            Path('/proc/locks').read_text().splitlines()
            if words.split()[-3].endswith(f':{file.st_ino}')]


def namespaces(domain):
    folder = Path(f'/proc/{domain.pid}/ns')
    return {name: os.readlink(folder / name)
            for name in sorted(os.listdir(folder))}


def devices(domain):
    """The private /dev that libvirt made."""
    top = Path(f'/proc/{domain.pid}/root/dev')
    return sorted(path.name for path in top.iterdir())


def look(domain):
    return {
        'limits': limits(domain),
        'blkdeviotune': domain.virsh('blkdeviotune', 'vda'),
        'descriptors': given_descriptors(domain),
        'locks': pidfile_locks(domain),
        'rights': status(domain, 'Uid', 'Gid', 'Groups', 'CapInh', 'CapPrm',
                         'CapEff', 'CapBnd', 'CapAmb', 'NoNewPrivs',
                         'Seccomp', 'Seccomp_filters'),
        'namespaces': namespaces(domain),
        'devices': devices(domain),
        'cgroup': Path(f'/proc/{domain.pid}/cgroup').read_text(),
        'process limits': Path(f'/proc/{domain.pid}/limits').read_text(),
        'oom': Path(f'/proc/{domain.pid}/oom_score_adj').read_text(),
    }


@pytest.mark.parametrize('what', [
    'limits', 'blkdeviotune', 'descriptors', 'locks', 'rights', 'namespaces',
    'devices', 'cgroup', 'process limits', 'oom'])
def test_same(upgraded, what):
    _, before, after = upgraded
    assert before[what]
    assert after[what] == before[what]


def test_limits(upgraded):
    """libvirt sets them with a command after it has started QEMU, and
    changes them in the same way."""
    domain, before, _ = upgraded
    found, = (drive for drive in before['limits'].values()
              if drive.get('iops') == LIMITS['total_iops_sec'])
    assert found['bps_rd_max_length'] == LIMITS['read_bytes_sec_max_length']
    domain.virsh('blkdeviotune', 'vda', '--total-iops-sec', '2000')
    assert 2000 in (drive.get('iops') for drive in limits(domain).values())


@needs_openssl
def test_vnc_password(upgraded):
    domain = upgraded[0]
    number = int(domain.virsh('vncdisplay').split(':')[1])
    for password, right in (PASSWORD, True), ('guessed', False):
        with domain.host.network.inside():
            client = RFB(('127.0.0.1', 5900 + number))
        assert bool(client.login(password)) is right


def test_encrypted_disk(upgraded):
    """Its passphrase is encrypted with a key in a file, named on the command
    line."""
    domain = upgraded[0]
    for disk in DISKS:
        wait_disk_writes(domain, disk)
        check_disk(domain, disk)
    domain.agent.check_log()


def test_runs_as_libvirt_qemu(upgraded):
    uid, *_ = upgraded[2]['rights']['Uid'].split()
    assert pwd.getpwuid(int(uid)).pw_name == 'libvirt-qemu'
    assert not int(upgraded[2]['rights']['CapEff'], 16)
