# SPDX-License-Identifier: GPL-2.0-or-later
"""Clients written for any QEMU live through an upgrade: QEMU's own Python
packages know nothing of it."""

import pytest

from harness.checks import guest_lives_on
from harness.vm import PAUSE_EVENTS


def qemu_machine(setup, args):
    """QEMU's own class for a process with a monitor given by fd=."""
    # pylint: disable=import-outside-toplevel
    from qemu.machine import QEMUMachine
    return QEMUMachine(setup.old, args=[*setup.extra_args, *args])


def check_events(client, result):
    """Those of one upgrade, in their order, and no others."""
    for name in [*PAUSE_EVENTS, 'EXEC_UPGRADE']:
        event = client.pull_event(wait=60)
        assert event['event'] == name
    assert event['data'] == {'status': 'completed', 'result': result}


@pytest.fixture
def python_packages(setup, monkeypatch):
    monkeypatch.syspath_prepend(setup.qemu_python)


def test_another_client_sees_the_event(make_vm):
    """It did not ask for the upgrade: it gets the event and goes on."""
    vm = make_vm()
    vm.args += vm.monitor('stock')
    vm.boot()
    client = vm.stock_qmp('stock')
    with guest_lives_on(vm):
        result = vm.upgrade()
        check_events(client, result)
        assert client.command('query-status')['status'] == 'running'
        assert not client.get_events()
    client.close()


def test_client_that_asks(make_vm, setup):
    vm = make_vm()
    vm.args += vm.monitor('stock')
    vm.boot()
    client = vm.stock_qmp('stock')
    for count in 1, 2, 3:
        result = client.command('exec-upgrade', binary=setup.new)
        assert result['binary'] == setup.new
        assert client.command('query-exec-upgrade')['count'] == count
        check_events(client, result)
    client.close()


def test_machine_class(setup, python_packages):
    """qemu.machine, with its monitor on a descriptor that it passed."""
    with qemu_machine(setup, ['-m', '64']) as machine:
        machine.launch()
        pid = machine.get_pid()
        result = machine.command('exec-upgrade', binary=setup.new)
        assert result['dropped'] == []
        assert machine.get_pid() == pid
        assert machine.command('query-status')['running']
        machine.shutdown()
        assert machine.exitcode() == 0


def test_asyncio_client(make_vm, setup, python_packages):
    """qemu.qmp's client proper, which fails on anything unexpected."""
    # pylint: disable=import-outside-toplevel
    import asyncio
    from qemu.qmp import QMPClient
    vm = make_vm()
    vm.args += vm.monitor('stock')
    vm.boot()

    async def talk():
        client = QMPClient('upgrade')
        await client.connect(str(vm.dir / 'stock'))
        with client.listener('EXEC_UPGRADE') as listener:
            result = await client.execute('exec-upgrade',
                                          {'binary': setup.new})
            event = await listener.get()
            assert event['data']['result'] == result
        assert (await client.execute('query-status'))['running']
        await client.disconnect()
    asyncio.run(asyncio.wait_for(talk(), 120))
