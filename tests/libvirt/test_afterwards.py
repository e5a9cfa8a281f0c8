# SPDX-License-Identifier: GPL-2.0-or-later
"""After an upgrade, libvirt's commands do what they do with a process that
was never upgraded. One domain serves all tests, in this order: those that
change nothing, those that start the guest again, those that change its
configuration, those that end its process."""

import os
import re
import struct

import pytest

from harness.checks import check_disk, guest_lives_on, wait_disk_writes
from harness.net import GUEST, HOST

from domain import IMAGES, Domain
from host import wait_for

MAC = '52:54:00:09:00:02'       # of the domain's interface
SECOND_MAC, SECOND_GUEST = '52:54:00:09:00:03', '10.9.0.3'
SAVED = '/var/lib/libvirt/qemu/saved'

DISK = '''<disk type="file" device="disk">
  <driver name="qemu" type="qcow2"/>
  <source file="{path}"/><target dev="{name}" bus="virtio"/>
</disk>'''
INTERFACE = f'''<interface type="bridge">
  <source bridge="br0"/><mac address="{SECOND_MAC}"/>
  <model type="virtio"/>
</interface>'''
BACKUP = f'''<domainbackup><disks>
  <disk name="vda" type="file">
    <target file="{IMAGES}backup.qcow2"/><driver type="qcow2"/>
  </disk>
  <disk name="sda" backup="no"/>
</disks></domainbackup>'''


def more_vcpus(root):
    """Room for one more processor."""
    root.find('vcpu').text = '3'
    root.find('vcpu').set('current', '2')


@pytest.fixture(scope='module')
def the_domain(host):
    return Domain(host, change=more_vcpus)


def start_services(domain):
    """What the tests need in a guest that has just booted."""
    domain.start_guest_agent()
    domain.start_acpid()
    domain.start_network()


def run_upgraded(domain):
    """Sees to it that the domain runs, and was upgraded."""
    if domain.virsh('domstate') != 'running' or \
            not domain.qmp('query-exec-upgrade')['count']:
        domain.virsh('destroy', check=False)
        domain.host.install(domain.host.setup.old)
        domain.start()
        start_services(domain)
        domain.host.install(domain.host.setup.new)
        domain.upgrade()
    return domain


@pytest.fixture
def domain(the_domain):
    return run_upgraded(the_domain)


def write_xml(domain, text):
    """A file in the host for virsh to read."""
    domain.host.path('/run/device.xml').write_text(text)
    return '/run/device.xml'


def source_of(domain, target):
    """The file behind the disk @target, as libvirt sees it."""
    return dict(row.split(None, 1) for row in
                domain.virsh('domblklist').splitlines())[target]


def statistic(domain, command, name, *args):
    """A number among what virsh prints."""
    return int(re.search(rf'\b{name} (\d+)',
                         domain.virsh(command, *args))[1])


# Nothing changes

def test_suspend_resume(domain):
    domain.virsh('suspend')
    assert domain.virsh('domstate', '--reason') == 'paused (user)'
    assert domain.qmp('query-status')['running'] is False
    domain.virsh('resume')
    assert domain.virsh('domstate', '--reason') == 'running (unpaused)'
    domain.agent.ask('counter')


@pytest.mark.parametrize('option, magic', [('', b'QEVM'),
                                           ('--memory-only', b'\x7fELF')])
def test_dump(domain, option, magic):
    path = '/var/lib/libvirt/qemu/dump.core'
    with guest_lives_on(domain, fill=0):
        domain.virsh('dump', path, '--live', *option.split())
    file = domain.host.path(path)
    with open(file, 'rb') as core:
        assert core.read(4) == magic
    assert file.stat().st_size > 64 << 20
    file.unlink()


def test_screenshot(domain):
    path = domain.host.path('/run/screen.png')
    domain.virsh('screenshot', '/run/screen.png')
    data = path.read_bytes()
    # PNG: signature, and the header's width and height
    assert data[:8] == b'\x89PNG\r\n\x1a\n'
    width, height = struct.unpack_from('>II', data, 16)
    assert width >= 640 and height >= 400
    assert data[-8:-4] == b'IEND'


def test_guest_agent_commands(domain):
    assert GUEST in domain.virsh('domifaddr', '--source', 'agent')
    assert domain.agent.sh('uname -r').strip() in \
        domain.virsh('guestinfo', '--os')
    guest_time = int(domain.virsh('domtime').split()[-1])
    assert abs(guest_time - domain.agent.ask('counter')['realtime'] / 1e9) < 60
    assert re.search(r'^online *: 0-1$', domain.virsh('guestvcpus'), re.M)


def test_statistics(domain):
    """They count, from where they were."""
    port = domain.virsh('domiflist').split()[0]
    written = statistic(domain, 'domblkstat', 'wr_req', 'vda')
    received = statistic(domain, 'domifstat', 'rx_packets', port)
    assert received
    domain.agent.sh('dd if=/dev/zero of=/dev/vda bs=4k count=1 2> /dev/null')
    domain.agent.sh(f'ping -c 1 {HOST}')
    assert statistic(domain, 'domblkstat', 'wr_req', 'vda') > written
    assert statistic(domain, 'domifstat', 'rx_packets', port) > received
    assert statistic(domain, 'dommemstat', 'actual') == 256 << 10
    # the guest's own, which the balloon asks for every two seconds
    first = statistic(domain, 'dommemstat', 'last_update')
    wait_for(lambda: statistic(domain, 'dommemstat', 'last_update') > first,
             "the balloon's statistics")
    assert statistic(domain, 'dommemstat', 'available') > 128 << 10


def test_send_key(domain):
    keyboard = domain.agent.sh(
        "grep -A4 'AT Translated' /proc/bus/input/devices | "
        "grep -o 'event[0-9]*'").strip()
    domain.agent.sh(f'cat /dev/input/{keyboard} > /tmp/keys 2> /dev/null & '
                    'echo $! > /tmp/reader')
    wait_for(lambda: domain.agent.sh(
        'ls -l /proc/$(cat /tmp/reader)/fd').count('/dev/input'),
        'the keyboard to be listened to')
    domain.virsh('send-key', 'KEY_A')
    wait_for(lambda: int(domain.agent.sh('stat -c %s /tmp/keys')), 'the key')
    domain.agent.sh('kill $(cat /tmp/reader)')


def test_inject_nmi(domain):
    domain.agent.check_log()
    domain.virsh('inject-nmi')
    wait_for(lambda: 'NMI' in domain.agent.sh('dmesg'), 'the interrupt')
    domain.agent.sh('dmesg -c > /dev/null')


def test_hmp(domain):
    assert 'running' in domain.virsh('qemu-monitor-command', '--hmp',
                                     'info status')


def test_setmem(domain):
    def guest_memory():
        return int(domain.agent.sh('grep MemTotal /proc/meminfo').split()[1])
    first = guest_memory()
    for size in 220 << 10, 256 << 10:
        domain.virsh('setmem', size)
        wait_for(lambda s=size: statistic(domain, 'dommemstat', 'actual') == s,
                 'the balloon')
        assert guest_memory() == first - (256 << 10) + size
    domain.agent.check_log()


def test_setlink(domain):
    def wait_carrier(state):
        wait_for(lambda: domain.agent.sh(
            'cat /sys/class/net/eth0/carrier').strip() == state, 'the link')
    domain.virsh('domif-setlink', MAC, 'down')
    wait_carrier('0')
    domain.virsh('domif-setlink', MAC, 'up')
    wait_carrier('1')


# The guest starts again

def rebooted(domain):
    """Waits for the guest after it was reset."""
    before = domain.agent.boot_id
    assert domain.agent.wait_ready() != before
    start_services(domain)


def test_reset(domain):
    domain.virsh('reset')
    rebooted(domain)


@pytest.mark.parametrize('mode', ['acpi', 'agent'])
def test_reboot(domain, mode):
    process = domain.pid
    domain.virsh('reboot', '--mode', mode)
    rebooted(domain)
    assert domain.pid == process


def test_guest_reboots(domain):
    domain.agent.send('sh reboot -f')
    rebooted(domain)


def test_another_upgrade(domain):
    """Also of a guest that was reset, and twice."""
    first = domain.qmp('query-exec-upgrade')['count']
    for count in first + 1, first + 2:
        with guest_lives_on(domain, fill=40):
            domain.upgrade()
        assert domain.qmp('query-exec-upgrade')['count'] == count
    assert domain.guest_agent('guest-ping') == {}


# The configuration changes

def test_blkdeviotune(domain):
    domain.virsh('blkdeviotune', 'vda', '--total-iops-sec', '500')
    assert re.search(r'total_iops_sec *: 500',
                     domain.virsh('blkdeviotune', 'vda'))
    domain.upgrade()
    assert re.search(r'total_iops_sec *: 500',
                     domain.virsh('blkdeviotune', 'vda'))
    domain.virsh('blkdeviotune', 'vda', '--total-iops-sec', '0')


def test_change_media(domain):
    def read_medium():
        return domain.agent.sh('dd if=/dev/sr0 bs=2048 count=1 2> /dev/null | '
                               'head -c 4; true')
    domain.agent.check_log()
    domain.agent.wait_path('/dev/sr0')
    assert read_medium() == '1111'
    domain.virsh('change-media', 'sda', '--eject')
    assert source_of(domain, 'sda') == '-'
    domain.virsh('change-media', 'sda', IMAGES + 'second.iso', '--insert')
    wait_for(lambda: read_medium() == '2222', 'the medium')
    domain.virsh('change-media', 'sda', IMAGES + 'first.iso', '--update')
    assert source_of(domain, 'sda') == IMAGES + 'first.iso'
    wait_for(lambda: read_medium() == '1111', 'the medium')
    # Linux fails the first read of another medium, and says so
    domain.agent.sh('dmesg -c > /dev/null')


def test_disk_hotplug(domain):
    path = domain.make_image('more.qcow2')
    file = write_xml(domain, DISK.format(path=path, name='vdb'))
    domain.virsh('attach-device', file, '--live')
    domain.agent.wait_path('/dev/vdb')
    domain.agent.ask('disk start /dev/vdb 1 16')
    wait_disk_writes(domain, '/dev/vdb')
    check_disk(domain, '/dev/vdb')
    domain.virsh('blockresize', 'vdb', '128M')
    wait_for(lambda: domain.agent.sh('cat /sys/block/vdb/size').strip() ==
             str(128 << 11), 'the new size')
    domain.virsh('detach-disk', 'vdb', '--live')
    wait_for(lambda: 'vdb' not in domain.agent.sh('ls /sys/block'),
             'the disk to go')
    wait_for(lambda: 'vdb' not in domain.virsh('domblklist'),
             'libvirt to know')
    domain.agent.check_log()


def test_interface_hotplug(domain):
    domain.virsh('attach-device', write_xml(domain, INTERFACE), '--live')
    domain.agent.wait_path('/sys/class/net/eth1')
    domain.agent.sh(f'ip addr add {SECOND_GUEST}/24 dev eth1; '
                    'ip link set eth1 up')
    wait_for(lambda: 'seq=0' in domain.agent.sh(
        f'ping -c 1 -W 1 -I eth1 {HOST}; true'), 'an answer')
    domain.virsh('detach-interface', 'bridge', '--mac', SECOND_MAC, '--live')
    wait_for(lambda: 'eth1' not in domain.agent.sh('ls /sys/class/net'),
             'the interface to go')
    wait_for(lambda: SECOND_MAC not in domain.virsh('domiflist'),
             'libvirt to know')
    domain.agent.sh(f'ping -c 1 {HOST}')


def test_iothreads(domain):
    domain.virsh('iothreadadd', '1', '--live')
    assert domain.virsh('iothreadinfo').split()[0] == '1'
    domain.virsh('iothreaddel', '1', '--live')
    assert domain.qmp('query-iothreads') == []


@pytest.fixture
def writing(domain):
    """The guest writes to its disk while the test does something with the
    image; nothing that was written is missing at the end."""
    domain.agent.ask('disk start /dev/vda 2 16')
    wait_disk_writes(domain)
    yield domain
    wait_disk_writes(domain)
    check_disk(domain)
    domain.agent.check_log()


def take_disk_snapshot(domain, name):
    """Puts a new image on top."""
    domain.virsh('snapshot-create-as', '--disk-only', '--no-metadata',
                 '--diskspec', f'vda,file={IMAGES}{name}', '--diskspec',
                 'sda,snapshot=no')
    assert source_of(domain, 'vda') == IMAGES + name


def test_snapshot_and_blockcommit(writing):
    base = source_of(writing, 'vda')
    take_disk_snapshot(writing, 'top.qcow2')
    wait_disk_writes(writing)
    writing.virsh('blockcommit', 'vda', '--active', '--pivot', '--wait')
    assert source_of(writing, 'vda') == base


def test_blockcopy(writing):
    writing.virsh('blockcopy', 'vda', IMAGES + 'copy.qcow2',
                  '--transient-job', '--pivot', '--wait')
    assert source_of(writing, 'vda') == IMAGES + 'copy.qcow2'


def test_blockpull(writing):
    take_disk_snapshot(writing, 'pulled.qcow2')
    writing.virsh('blockpull', 'vda', '--wait')
    assert source_of(writing, 'vda') == IMAGES + 'pulled.qcow2'
    assert 'backing' not in writing.host.qemu_img(
        'info', '-U', IMAGES + 'pulled.qcow2')


def test_backup(domain):
    domain.virsh('backup-begin', write_xml(domain, BACKUP))
    wait_for(lambda: re.search(
        r'Job type: *Completed.*Operation: *Backup',
        domain.virsh('domjobinfo', '--completed'), re.S), 'the backup')
    domain.agent.sh('sync')
    source = source_of(domain, 'vda')
    assert 'identical' in domain.host.qemu_img(
        'compare', '-U', source, IMAGES + 'backup.qcow2')


# The process ends

def test_internal_snapshot(domain):
    """libvirt reverts by way of another process, with -loadvm; that can be
    upgraded as well."""
    with guest_lives_on(domain, fill=20):
        memory = domain.agent.ask('mem verify')
        before = domain.agent.ask('counter')
        domain.virsh('snapshot-create-as', 'first')
    domain.agent.sh('touch /tmp/after')
    domain.virsh('snapshot-revert', 'first')
    domain.goes_on(before, memory)
    assert domain.agent.sh('ls /tmp/after 2> /dev/null; true') == ''
    with guest_lives_on(domain, fill=0):
        domain.upgrade()
    assert domain.agent.sh('ls /tmp/after 2> /dev/null; true') == ''
    domain.virsh('snapshot-delete', 'first')
    assert domain.virsh('snapshot-list') == ''


@pytest.fixture(scope='module')
def saved(the_domain):
    """Saves the upgraded domain to a file; returns what it was."""
    run_upgraded(the_domain)
    before = the_domain.agent.ask('counter')
    memory = the_domain.agent.ask('mem fill 40')
    the_domain.virsh('save', SAVED)
    assert the_domain.virsh('domstate', '--reason') == 'shut off (saved)'
    return before, memory


@pytest.fixture
def restored(the_domain, saved):
    """A guest that came from a file and was upgraded: like any other, but
    there in a second."""
    the_domain.virsh('destroy', check=False)
    the_domain.host.virsh('restore', SAVED)
    the_domain.goes_on(*saved)
    the_domain.upgrade()
    assert the_domain.agent.ask('mem verify') == saved[1]
    yield the_domain
    the_domain.virsh('destroy', check=False)


def test_save_restore(restored):
    assert restored.guest_agent('guest-ping') == {}


def test_managedsave(restored, saved):
    restored.virsh('managedsave')
    assert restored.virsh('domstate', '--reason') == 'shut off (saved)'
    restored.virsh('start')
    restored.goes_on(*saved)


def test_setvcpus(restored):
    """Only plugging in: after unplugging a processor, QEMU 7.2 with TCG
    aborts at the next snapshot, also without the project. Here because
    libvirt can't revert to a snapshot that has a plugged processor."""
    restored.virsh('setvcpus', '3', '--live')
    restored.agent.wait_path('/sys/devices/system/cpu/cpu2')
    restored.agent.sh('echo 1 > /sys/devices/system/cpu/cpu2/online')
    assert restored.agent.ask('counter')['cpus'] == 3
    # libvirt has now looked at all threads
    assert restored.virsh('vcpuinfo').count('running') == 3
    restored.agent.check_log()


@pytest.fixture
def other_host(host, make_host):
    other = make_host('other').start()
    host.connect_to(other)
    return other


def test_migrate(restored, saved, other_host):
    """To the old release on another host, with its disk; there it can be
    upgraded as well, although it was started to wait for a migration."""
    host = restored.host
    with guest_lives_on(restored, fill=0):
        restored.migrate(other_host)
        restored.goes_on(*saved)
    assert host.virsh('domstate', restored.name) == 'shut off'
    assert restored.guest_agent('guest-ping') == {}
    other_host.install(other_host.setup.new)
    with guest_lives_on(restored, fill=0):
        restored.upgrade()
    assert restored.agent.ask('mem verify') == saved[1]
    restored.virsh('destroy')
    restored.host = host


def wait_shutdown(domain):
    wait_for(lambda: domain.virsh('domstate', '--reason') ==
             'shut off (shutdown)', 'the guest to shut down')


@pytest.mark.parametrize('mode', ['acpi', 'agent'])
def test_shutdown(restored, mode):
    restored.virsh('shutdown', '--mode', mode)
    wait_shutdown(restored)


def test_guest_powers_off(restored):
    restored.agent.send('sh poweroff -f')
    wait_shutdown(restored)


def test_destroy(restored):
    pid = restored.pid
    restored.virsh('destroy')
    assert restored.virsh('domstate', '--reason') == 'shut off (destroyed)'
    wait_for(lambda: not os.path.exists(f'/proc/{pid}'), 'the process to end')
