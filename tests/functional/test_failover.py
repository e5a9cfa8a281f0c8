# SPDX-License-Identifier: GPL-2.0-or-later
"""Failover pairs: a virtio-net device and another NIC with the same address,
which QEMU plugs in when the guest has said that it can take it."""

import json

from harness.checks import changes, unplug, wait_until
from harness.net import GUEST_MAC, guest_network
from test_ledger_devices import ROOT_PORTS, connect_network, upgrade

STANDBY = {'driver': 'virtio-net-pci', 'id': 'standby', 'netdev': 'net1',
           'failover': 'on', 'mac': GUEST_MAC, 'bus': 'rp1'}


# Linux takes no virtio-net device for one
PRIMARY = {'driver': 'e1000e', 'id': 'primary', 'netdev': 'net2',
           'failover_pair_id': 'standby', 'mac': GUEST_MAC, 'bus': 'rp2'}


def option(options):
    """As a command line has it."""
    return ['-device', ','.join(f'{key}={value}'.removeprefix('driver=')
                                for key, value in options.items())]


def pair_vm(make_vm, args=()):
    """A guest with network backends for a pair, of which it returns the other
    sides, too."""
    vm = make_vm(machine='q35')
    vm.args += ROOT_PORTS
    peers = []
    for number in 1, 2:
        options, peer = connect_network(vm, number)
        vm.args += ['-netdev', json.dumps(options)]
        peers.append(peer)
    vm.args += args
    return vm, peers


def device_add(vm, options):
    # as they are: some properties have underscores
    vm.qmp.reply(vm.qmp.send('device_add', options))


def has_device(vm, ident):
    return any(d['name'] == ident for d in vm.qmp.execute(
        'qom-list', path='/machine/peripheral'))


def masters(vm):
    """The guest's interfaces that have others, with those."""
    found = {}
    for path in vm.agent.sh('ls -d /sys/class/net/*/lower_* 2> /dev/null || '
                            'true').split():
        *_, name, lower = path.split('/')
        found.setdefault(name, set()).add(lower.removeprefix('lower_'))
    return found


def wait_pair(vm, count=2):
    """Waits until the guest has the pair, or what is left of it."""
    wait_until(lambda: [len(m) for m in masters(vm).values()] == [count])


def wait_negotiated(vm):
    vm.qmp.wait_event('FAILOVER_NEGOTIATED', **{'device-id': 'standby'})
    wait_pair(vm)


def set_up(vm):
    guest_network(vm, interface=next(iter(masters(vm))))


def check_pair(vm, peer, count=2):
    """The guest's network is there, and still is after upgrades."""
    before = masters(vm)
    # the guest may not use it yet
    pinger = peer.pinger()
    pinger.settle()
    pinger.finish(patience=0)
    upgrade(vm, count)
    peer.ping(2)
    assert masters(vm) == before


def test_command_line(make_vm):
    """Before the guest has said anything, afterwards, without the primary,
    without both, and with another pair of the same name."""
    vm, (standby_peer, primary_peer) = pair_vm(
        make_vm, ['-S', *option(STANDBY), *option(PRIMARY)])
    vm.start()
    assert not has_device(vm, 'primary')
    for _ in range(2):
        assert not vm.blockers()
        vm.upgrade()
        assert not has_device(vm, 'primary')
        assert not changes(vm)
    vm.qmp.execute('cont')
    vm.agent.wait_ready()
    wait_negotiated(vm)
    set_up(vm)
    assert not changes(vm)
    check_pair(vm, primary_peer)

    unplug(vm, 'primary')
    wait_pair(vm, 1)
    assert changes(vm) == ["device 'primary' was removed"]
    check_pair(vm, standby_peer)
    # QEMU has kept what the command line said of it
    vm.qmp.execute('system_reset')
    vm.agent.wait_ready()
    wait_negotiated(vm)
    del vm.memory
    set_up(vm)
    check_pair(vm, primary_peer)

    for ident in 'primary', 'standby':
        unplug(vm, ident)
    wait_until(lambda: not masters(vm))
    removed = ["device 'primary' was removed", "device 'standby' was removed"]
    assert changes(vm) == removed
    upgrade(vm, 2)
    assert changes(vm) == removed
    device_add(vm, STANDBY)
    vm.qmp.wait_event('FAILOVER_NEGOTIATED')
    # QEMU keeps the id of an option that had to wait
    device_add(vm, {**PRIMARY, 'id': 'other', 'bus': 'rp3'})
    wait_pair(vm)
    set_up(vm)
    check_pair(vm, primary_peer)


def test_commands(make_vm):
    """Plugged into a guest that is stopped."""
    vm, (standby_peer, primary_peer) = pair_vm(make_vm)
    vm.boot()
    vm.qmp.execute('stop')
    device_add(vm, STANDBY)
    device_add(vm, PRIMARY)
    assert not has_device(vm, 'primary')
    for _ in range(2):
        assert changes(vm) == ["device 'primary' was added",
                               "device 'standby' was added"]
        vm.upgrade()
        assert not has_device(vm, 'primary')
    vm.qmp.execute('cont')
    wait_negotiated(vm)
    set_up(vm)
    check_pair(vm, primary_peer)

    # the other one first
    unplug(vm, 'standby')
    assert changes(vm) == ["device 'primary' was added"]
    upgrade(vm, 2)
    device_add(vm, STANDBY)
    wait_negotiated(vm)
    set_up(vm)
    check_pair(vm, primary_peer)
    unplug(vm, 'primary')
    wait_pair(vm, 1)
    check_pair(vm, standby_peer)


def test_primary_first(make_vm):
    """One that the command line has before its standby is made at once."""
    vm, (_, primary_peer) = pair_vm(
        make_vm, [*option(PRIMARY), *option(STANDBY)])
    vm.boot()
    assert has_device(vm, 'primary')
    wait_negotiated(vm)
    set_up(vm)
    assert not changes(vm)
    check_pair(vm, primary_peer)


def test_after_failed_migration(make_vm):
    """A migration has the guest give the primary back, and its state would
    not be carried afterwards."""
    vm, _ = pair_vm(make_vm, [*option(STANDBY), *option(PRIMARY)])
    vm.boot()
    wait_negotiated(vm)
    vm.qmp.execute('migrate-set-capabilities', capabilities=[
        {'capability': 'events', 'state': True}])
    vm.qmp.execute('migrate', uri=f'unix:{vm.dir}/nobody')
    vm.qmp.wait_event('MIGRATION', status='failed')
    upgrade(vm)
    vm.qmp.execute('migrate', uri='exec:false')
    vm.qmp.wait_event('MIGRATION', status='failed')
    wait_pair(vm)
    vm.refused("device 'primary' is the primary of a failover pair")
