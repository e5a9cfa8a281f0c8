# SPDX-License-Identifier: GPL-2.0-or-later
"""libvirtd ends and comes back around an upgrade; an upgrade meets a job of
libvirt. One domain serves all tests, in this order."""

import contextlib
import json
import os

import pytest

from harness.checks import (check_disk, guest_lives_on, held_open,
                            wait_disk_writes)
from harness.vm import process_identity

from domain import IMAGES, Domain
from host import wait_for

HELPER = '/usr/lib/libvirt/libvirt_iohelper'


@pytest.fixture(scope='module')
def domain(host):
    domain = Domain(host).start()
    domain.start_guest_agent()
    host.install(host.setup.new)
    return domain


def look(domain):
    return {'process': process_identity(domain.pid),
            **{what: domain.virsh(what) for what in (
                'domid', 'domuuid', 'domstate', 'vncdisplay', 'ttyconsole',
                'domblklist', 'domiflist', 'dumpxml')}}


@contextlib.contextmanager
def stays(domain):
    """Around a restart of libvirtd, which must find the domain as it was and
    be able to work with it."""
    before = look(domain)
    with guest_lives_on(domain, fill=40):
        yield
    wait_for(lambda: domain.guest_agent_connected(), 'the guest agent')
    assert look(domain) == before
    assert domain.guest_agent('guest-ping') == {}
    # asks for what the threads do, by their ids
    assert domain.virsh('vcpuinfo').count('State:          running') == 2
    domain.virsh('suspend')
    assert domain.virsh('domstate') == 'paused'
    domain.virsh('resume')
    assert domain.virsh('domstate') == 'running'


@pytest.mark.parametrize('signal_name', ['TERM', 'KILL'])
def test_restarted_before(domain, signal_name):
    with stays(domain):
        domain.host.restart_libvirtd(signal_name)
        domain.upgrade()
        # the ids of threads are new, and libvirt reads them when it starts
        domain.host.restart_libvirtd()


@pytest.mark.parametrize('signal_name', ['TERM', 'KILL'])
def test_restarted_after(domain, signal_name):
    with stays(domain):
        domain.upgrade()
        domain.host.restart_libvirtd(signal_name)


@pytest.mark.parametrize('back', ['during', 'after'])
def test_killed_during(domain, back):
    """The new QEMU is held where it reads the master key of the domain, long
    before the guest goes on; meanwhile libvirtd is killed, and in one case
    it is back before that."""
    host = domain.host
    count = domain.qmp('query-exec-upgrade')['count']
    key, = host.path('/var/lib/libvirt/qemu').glob(
        f'domain-*-{domain.name}/master-key.aes')
    with stays(domain):
        with held_open(key) as wait_opened:
            upgrade = host.popen(
                'virsh', 'qemu-monitor-command', domain.name,
                json.dumps({'execute': 'exec-upgrade'}))
            wait_opened()
            host.stop_daemon('libvirtd', 'KILL')
            assert upgrade.wait(60)
            if back == 'during':
                host.start_daemon('libvirtd', 'libvirt-sock')
        if back == 'after':
            domain.agent.ask('counter')
            host.start_daemon('libvirtd', 'libvirt-sock')
    assert domain.qmp('query-exec-upgrade')['count'] == count + 1


def start_job(domain, command, *args):
    return domain.host.popen('virsh', command, domain.name, *args)


def test_migrate(domain, make_host):
    """libvirt copies the disk, then memory, slowly until it is allowed to use
    more bandwidth. The tests that follow find the domain in the other host."""
    other = make_host('other').start()
    domain.host.connect_to(other)
    before = domain.agent.ask('counter')
    memory = domain.agent.ask('mem fill 40')
    migration = start_job(domain, 'migrate', *domain.migrate_options(other),
                          '--bandwidth', '8')
    wait_for(lambda: migration.poll() is not None or
             domain.qmp('query-migrate').get('status') == 'active',
             'the migration')
    domain.refused('migration')
    assert migration.poll() is None
    domain.virsh('migrate-setspeed', '1000')
    assert migration.wait(60) == 0
    domain.host = other
    domain.goes_on(before, memory)


def test_blockcopy(domain):
    """The job is one of QEMU's, which goes on until it is told to end."""
    domain.agent.ask('disk start /dev/vda 2 16')
    wait_disk_writes(domain)
    domain.virsh('blockcopy', 'vda', IMAGES + 'copy.qcow2', '--transient-job',
                 '--wait')
    domain.refused('job')
    wait_disk_writes(domain)
    domain.virsh('blockjob', 'vda', '--pivot')
    wait_disk_writes(domain)
    check_disk(domain)
    assert IMAGES + 'copy.qcow2' in domain.virsh('domblklist')


@pytest.fixture
def held_helper(domain):
    """libvirt's program that writes a saved domain's file does not begin
    before it is let."""
    host = domain.host
    script = host.path('/run/iohelper')
    host.run('cp', HELPER, '/run/iohelper.real')
    script.write_text('#!/bin/sh\nread go < /run/go\n'
                      'exec /run/iohelper.real "$@"\n')
    script.chmod(0o755)
    os.mkfifo(host.path('/run/go'))
    host.run('mount', '--bind', '/run/iohelper', HELPER)
    yield lambda: host.path('/run/go').write_text('go\n')
    host.run('umount', HELPER)


def test_save(domain, held_helper):
    host, path = domain.host, '/var/lib/libvirt/qemu/saved'
    memory = domain.agent.ask('mem fill 40')
    before = domain.agent.ask('counter')
    save = start_job(domain, 'save', path)
    wait_for(lambda: domain.virsh('domstate', '--reason') ==
             'paused (saving)', 'the domain to be saved')
    domain.refused('migration')
    held_helper()
    assert save.wait(60) == 0
    host.virsh('restore', path)
    domain.goes_on(before, memory)
