# SPDX-License-Identifier: GPL-2.0-or-later
"""Machine types, numbers of vCPUs, and accelerators."""

import os
import re
import shutil

import pytest

from harness.checks import guest_lives_on, wait_until

MACHINES = ['pc-i440fx-6.2', 'pc-i440fx-7.2', 'pc-q35-6.2', 'pc-q35-7.2']


def upgrade_twice(vm):
    with guest_lives_on(vm):
        vm.upgrade()
        vm.upgrade()


@pytest.mark.parametrize('machine', MACHINES)
def test_machine_type(boot, machine):
    upgrade_twice(boot(machine=machine, smp='2'))


@pytest.mark.parametrize('machine, smp', [
    ('pc', '1'), ('q35', '2'), ('pc', '4,sockets=2,cores=2'), ('q35', '8'),
    ('pc', '2,maxcpus=4')])
def test_vcpus(boot, machine, smp):
    vm = boot(machine=machine, smp=smp)
    count = int(smp.split(',')[0])
    assert vm.agent.ask('counter')['cpus'] == count
    upgrade_twice(vm)
    for cpu in range(count):
        assert vm.agent.sh(f'taskset {1 << cpu:x} echo here') == 'here\n'
    assert len(vm.qmp.execute('query-cpus-fast')) == count


@pytest.mark.parametrize('cpu', ['max', 'Nehalem', 'qemu64,+x2apic'])
def test_cpu_model(boot, cpu):
    vm = boot(args=['-cpu', cpu])
    flags = vm.agent.sh('grep flags /proc/cpuinfo')
    upgrade_twice(vm)
    assert vm.agent.sh('grep flags /proc/cpuinfo') == flags


def test_single_threaded_tcg(boot):
    upgrade_twice(boot(accel='tcg,thread=single', smp='2'))


def test_debian_kernel_as_installed(boot, setup):
    """The other tests start an unpacked copy of the kernel."""
    upgrade_twice(boot(kernel=setup.image.kernel))


# KVM, with a boot sector as the guest: see tests/guest/bootsect.S

@pytest.fixture
def kvm_vm(make_vm, setup):
    if not os.access('/dev/kvm', os.R_OK | os.W_OK):
        pytest.skip('no access to /dev/kvm')

    def make(machine='pc', smp='1', args=()):
        vm = make_vm(machine=machine, accel='kvm', smp=smp, kernel=False,
                     memory='64')
        shutil.copy(setup.image.boot_sector, vm.dir / 'boot')
        # the firmware's AHCI driver does not get on with nested KVM
        bus = 'ide.0'
        if 'q35' in machine:
            vm.args += ['-device', 'piix3-ide,id=piix']
            bus = 'piix.0'
        vm.args += [
            '-drive', f'if=none,id=boot,format=raw,file={vm.dir}/boot',
            '-device', f'ide-hd,drive=boot,bus={bus}',
            '-chardev', f'socket,id=rounds,path={vm.dir}/rounds,'
            'server=on,wait=off', '-device', 'isa-serial,chardev=rounds',
            *args]
        vm.start()
        vm.rounds = Rounds(vm.connect('rounds'))
        return vm
    return make


class Rounds:
    """Reads the letters that the boot sector prints, one for each round
    over its memory."""

    def __init__(self, sock):
        self.sock = sock
        self.last = None

    def wait_more(self, count):
        while count > 0:
            data = self.sock.recv(count)
            assert data, 'end of file'
            assert re.fullmatch(rb'[a-z]+', data), f'memory error: {data}'
            for letter in data:
                assert self.last is None or \
                    letter == ord('a') + (self.last - ord('a') + 1) % 26
                self.last = letter
            count -= len(data)


@pytest.mark.parametrize('machine, smp', [
    ('pc-i440fx-6.2', '1'), ('pc-i440fx-7.2', '4'), ('pc-q35-6.2', '8'),
    ('pc-q35-7.2', '2'), ('pc,kernel-irqchip=split', '2'),
    ('pc,kernel-irqchip=off', '1')])
def test_kvm(kvm_vm, machine, smp):
    vm = kvm_vm(machine, smp)
    vm.rounds.wait_more(3)
    for _ in range(3):
        vm.upgrade()
        vm.rounds.wait_more(3)


def test_kvm_paused(kvm_vm):
    vm = kvm_vm()
    vm.rounds.wait_more(3)
    vm.qmp.execute('stop')
    vm.upgrade()
    vm.qmp.execute('cont')
    vm.rounds.wait_more(3)


def test_kvm_reset(kvm_vm):
    vm = kvm_vm()
    vm.rounds.wait_more(3)
    vm.upgrade()
    vm.qmp.execute('system_reset')
    vm.qmp.wait_event('RESET')
    wait_until(lambda: vm.rounds.sock.recv(1) == b'a')
    vm.rounds.last = ord('a')
    vm.rounds.wait_more(3)
