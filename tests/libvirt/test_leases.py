# SPDX-License-Identifier: GPL-2.0-or-later
"""Lock manager lockd, with a real virtlockd: libvirt gives up a domain's
leases when QEMU stops by itself, and does not take them again. What
contrib/exec-upgrade-domains does about that."""

import fcntl
import json
import re
import threading
from pathlib import Path

import pytest

from harness import TIMEOUT

from domain import IMAGES
from host import CommandError
from small import SmallDomain, install_tool, run_tool

IMAGE = IMAGES + 'shared.qcow2'
LOCKED = f"Lockspace resource '{IMAGE}' is locked"
DISK = f'''<disk type="file" device="disk">
  <driver name="qemu" type="qcow2"/><source file="{IMAGE}"/>
  <target dev="vda" bus="virtio"/></disk>'''


@pytest.fixture(scope='module')
def host(make_host):
    host = make_host(configuration='lock_manager = "lockd"\n').start()
    host.start_daemon('virtlockd', 'virtlockd-sock')
    install_tool(host)
    return host


@pytest.fixture(scope='module')
def domains(host):
    """One with an image, and another one that wants it. That one is saved:
    its QEMU starts without QEMU's own lock on the image, which is taken when
    libvirt has the lease."""
    owner = SmallDomain(host, 'owner', devices=DISK)
    owner.make_image(Path(IMAGE).name)
    other = SmallDomain(host, 'other', devices=DISK).start()
    other.virsh('managedsave')
    return owner, other


@pytest.fixture
def owner(host, domains):
    """Runs the old QEMU; the new one is installed."""
    host.install(host.setup.old)
    domains[0].start()
    host.install(host.setup.new)
    assert is_leased(host)
    yield domains[0]
    domains[0].virsh('destroy')


@pytest.fixture
def other(domains):
    return domains[1]


def is_leased(host):
    """Whether virtlockd has a lock on the image; see proc(5)."""
    pid = host.outer_pid(host.daemon_pid('virtlockd'))
    inode = host.path(IMAGE).stat().st_ino
    return re.search(rf': POSIX +ADVISORY +WRITE {pid} \w+:\w+:{inode} 0 0$',
                     Path('/proc/locks').read_text(), re.M) is not None


def start_error(domain):
    with pytest.raises(CommandError) as error:
        domain.virsh('start')
    return error.value.output


def run(host, *options, status=0):
    row, = json.loads(run_tool(host, '--json', 'owner', *options,
                               status=status))['domains']
    return row


def test_by_hand(host, owner, other):
    """The danger: the lease is anybody's, only QEMU's own lock is left."""
    assert LOCKED in start_error(other)
    owner.upgrade()
    assert owner.virsh('domstate') == 'running'
    assert not is_leased(host)
    assert 'Failed to get "write" lock' in start_error(other)


def test_refused(host, owner):
    """Under another lock manager than lockd, too, whatever the options; only
    the program is told of one."""
    before = owner.executable()
    conf = '/run/sanlock.conf'
    host.path(conf).write_text('lock_manager = "sanlock"\n')
    for options, name, advice in (
            (['--dry-run'], 'lockd', 'see --with-leases'),
            ([], 'lockd', 'see --with-leases'),
            (['--with-leases', '--qemu-conf', conf], 'sanlock',
             'pause the domain (virsh suspend) first')):
        row = run(host, *options, status=1)
        assert row['state'] == 'refused'
        assert row['reasons'] == [
            f'lock manager {name}: the leases would be lost; {advice}']
    assert owner.executable() == before
    assert is_leased(host)


def test_with_leases(host, owner, other):
    places = owner.places()
    row = run(host, '--with-leases')
    assert (row['result'], row['reasons']) == ('upgraded', [])
    assert row['downtime'] > 0
    assert owner.virsh('domstate') == 'running'
    assert owner.places() == places
    assert is_leased(host)
    assert LOCKED in start_error(other)


def test_paused(host, owner, other):
    """It has no leases, and gets them when it is resumed."""
    owner.virsh('suspend')
    assert not is_leased(host)
    assert run(host)['result'] == 'upgraded'
    assert owner.virsh('domstate') == 'paused'
    owner.virsh('resume')
    assert is_leased(host)
    assert LOCKED in start_error(other)


def test_lease_taken_by_other(host, owner):
    """Somebody else has the lease when the upgrade is done: the guest stays
    paused, and the admin is told."""
    with open(host.path(IMAGE), 'r+b') as image:
        waiter = threading.Thread(
            target=lambda: fcntl.lockf(image, fcntl.LOCK_EX, 1))
        waiter.start()                  # gets it as soon as it is free
        row = run(host, '--with-leases', status=1)
        waiter.join(TIMEOUT)
        assert row['result'] == 'failed'
        assert 'the guest is paused' in row['reasons'][0]
        assert 'is locked' in row['reasons'][0]
        assert owner.virsh('domstate') == 'paused'
    owner.virsh('resume')
    assert is_leased(host)
