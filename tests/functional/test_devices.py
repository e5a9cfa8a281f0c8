# SPDX-License-Identifier: GPL-2.0-or-later
"""Each device goes on across an upgrade, without a reset.

A case is a generator: what is before its yield runs before the upgrade, what
is after it runs afterwards."""

import contextlib
import re

import pytest

from harness.checks import (check_disk, guest_lives_on, screen,
                            wait_disk_writes, wait_until)
from harness.lines import LineChecker, check_lines, lines

CASES = []


def case(*args, **kwargs):
    """Adds a generator with its part of the command line; {dir} in it is
    the test's folder."""
    def add(function):
        CASES.append(pytest.param(function, args, kwargs,
                                  id=kwargs.pop('id', None) or
                                  function.__name__.replace('_', '-')))
        return function
    return add


def run_case(make_vm, function, args, kwargs):
    vm = make_vm(**kwargs)
    for name, size in ('a', 16), ('b', 16), ('c', 16):
        with open(vm.dir / name, 'wb') as image:
            image.truncate(size << 20)
    vm.args += [arg.format(dir=vm.dir) for arg in args]
    vm.boot()
    steps = function(vm)
    next(steps)
    with guest_lives_on(vm, fill=40):
        vm.upgrade()
    with contextlib.suppress(StopIteration):
        next(steps)
    if vm.qmp.execute('query-status')['running']:
        vm.agent.check_log()


def drive(name, options=''):
    return ['-drive', f'if=none,id={name},format=raw,file={{dir}}/{name}'
            + options]


def write_disks(vm, *devices, mib=8):
    for device in devices:
        vm.agent.wait_path(device)
        vm.agent.ask(f'disk start {device} 4 {mib}')
    for device in devices:
        wait_disk_writes(vm, device)
    yield
    for device in devices:
        wait_disk_writes(vm, device)
        check_disk(vm, device)


@case(*drive('a'), '-device', 'virtio-blk-pci,drive=a,num-queues=2',
      *drive('b'), '-device', 'virtio-blk-pci,drive=b,packed=on',
      smp='2')
def virtio_blk(vm):
    yield from write_disks(vm, '/dev/vda', '/dev/vdb')


@case('-device', 'virtio-scsi-pci,id=s', *drive('a'), *drive('b'),
      '-device', 'scsi-hd,bus=s.0,drive=a,scsi-id=3',
      '-device', 'scsi-hd,bus=s.0,drive=b,scsi-id=5,lun=1')
def virtio_scsi_disks(vm):
    yield from write_disks(vm, '/dev/sda', '/dev/sdb')


def read_and_eject_cd(vm):
    vm.agent.wait_path('/dev/sr0')
    read = 'dd if=/dev/sr0 bs=64k iflag=direct 2>/dev/null | sha256sum'
    content = vm.agent.sh(read)
    yield
    assert vm.agent.sh(read) == content
    vm.agent.ask('eject /dev/sr0')
    assert vm.qmp.wait_event('DEVICE_TRAY_MOVED')['data']['tray-open']


@case('-device', 'virtio-scsi-pci', *drive('a', ',media=cdrom'),
      '-device', 'scsi-cd,drive=a,id=cd')
def virtio_scsi_cd(vm):
    yield from read_and_eject_cd(vm)


@case(*drive('a', ',media=cdrom'), '-device', 'ide-cd,drive=a,id=cd')
def ide_cd(vm):
    yield from read_and_eject_cd(vm)


@case(*drive('a', ',media=cdrom'), '-device', 'ide-cd,drive=a,id=cd',
      machine='q35')
def ahci_cd(vm):
    yield from read_and_eject_cd(vm)


@case(*drive('a', ',throttling.iops-total=100'),
      '-device', 'ide-hd,drive=a,bus=ide.0',
      *drive('b'), '-device', 'ide-hd,drive=b,bus=ide.1')
def ide_disks_with_commands_pending(vm):
    """The throttled disk has a command pending nearly all the time."""
    yield from write_disks(vm, '/dev/sda', '/dev/sdb', mib=1)


@case(*drive('a', ',throttling.iops-total=100'),
      '-device', 'ide-hd,drive=a,bus=ide.0',
      *drive('b'), '-device', 'ide-hd,drive=b,bus=ide.1', machine='q35')
def ahci_disks_with_commands_pending(vm):
    yield from write_disks(vm, '/dev/sda', '/dev/sdb', mib=1)


def ping(vm, pci_driver):
    """slirp's gateway answers by itself."""
    vm.agent.wait_path('/sys/class/net/eth0')
    driver = vm.agent.sh('readlink /sys/class/net/eth0/device/driver; true')
    assert pci_driver in driver
    vm.agent.sh('ip addr add 10.0.2.15/24 dev eth0; ip link set eth0 up')
    send = 'ping -c 3 -i 0.1 -W 5 10.0.2.2'
    wait_until(lambda: vm.agent.sh(send + ' || true').count(' bytes from '))
    mac = vm.agent.sh('cat /sys/class/net/eth0/address')
    yield
    out = vm.agent.sh(send)
    assert ' 0% packet loss' in out, out
    assert vm.agent.sh('cat /sys/class/net/eth0/address') == mac


@case('-netdev', 'user,id=n', '-device', 'virtio-net-pci,netdev=n')
def virtio_net(vm):
    yield from ping(vm, 'virtio_net')


@case('-netdev', 'user,id=n', '-device', 'e1000e,netdev=n', machine='q35')
def e1000e(vm):
    yield from ping(vm, 'e1000e')


@case('-netdev', 'user,id=n', '-device', 'e1000,netdev=n')
def e1000(vm):
    yield from ping(vm, 'e1000')


@case('-device', 'virtio-serial-pci,max_ports=4',
      '-chardev', 'socket,id=out,path={dir}/out,server=on,wait=off',
      '-device', 'virtserialport,chardev=out,name=out,nr=1',
      '-chardev', 'socket,id=in,path={dir}/in,server=on,wait=off',
      '-device', 'virtserialport,chardev=in,name=in,nr=2')
def virtio_serial(vm):
    incoming = vm.connect('in')
    checker = LineChecker(vm.connect('out'))
    vm.agent.wait_path('/dev/vport0p2')
    vm.agent.ask('lines start /dev/vport0p1')
    vm.agent.ask('reader start /dev/vport0p2')
    incoming.sendall(lines(0, 500))
    checker.wait_more()
    yield
    checker.wait_more()
    incoming.sendall(lines(500, 1000))
    checker.wait(vm.agent.ask('lines stop /dev/vport0p1')['next'])
    result = wait_until(lambda: (r := vm.agent.ask(
        'reader status /dev/vport0p2'))['lines'] >= 1000 and r)
    assert result == {'lines': 1000, 'errors': 0}


@case()
def isa_serial(vm):
    """The first line goes to a file, the agent's own is the second."""
    vm.agent.ask('lines start /dev/ttyS0')
    yield
    end = vm.agent.ask('lines stop /dev/ttyS0')['next']
    text = (vm.dir / 'console').read_bytes()
    start = text.index(lines(0, 1))
    assert wait_until(lambda: check_lines(
        (vm.dir / 'console').read_bytes()[start:]) == end)


@case('-device', 'virtio-balloon-pci,id=balloon')
def virtio_balloon(vm):
    vm.agent.wait_path('/sys/bus/virtio/drivers/virtio_balloon/virtio0')
    size = 176 << 20
    vm.qmp.execute('balloon', value=size)
    # Sent once a second at most, so that the last one comes late
    while vm.qmp.wait_event('BALLOON_CHANGE')['data']['actual'] != size:
        pass
    device = {'path': '/machine/peripheral/balloon'}
    interval = {**device, 'property': 'guest-stats-polling-interval'}
    def statistics():
        return vm.qmp.execute('qom-get', property='guest-stats', **device)

    # the driver has sent some by itself, before it was asked
    own = statistics()['last-update']
    vm.qmp.execute('qom-set', value=1, **interval)
    wait_until(lambda: statistics()['last-update'] > own)
    # so that they come no more
    vm.qmp.execute('qom-set', value=1 << 20, **interval)
    before = statistics()
    # what the kernel leaves, with or without what is in the balloon
    assert 64 << 20 < before['stats']['stat-total-memory'] < 192 << 20
    yield
    assert vm.qmp.execute('query-balloon')['actual'] == size
    assert vm.qmp.execute('qom-get', **interval) == 1 << 20
    # as after any pause, QEMU has read again what the guest had sent last
    after = statistics()
    assert after['stats'] == before['stats']
    assert after['last-update'] >= before['last-update']
    vm.qmp.execute('qom-set', value=1, **interval)
    wait_until(lambda: statistics()['last-update'] > after['last-update'])
    vm.qmp.execute('balloon', value=192 << 20)
    wait_until(lambda: vm.qmp.execute('query-balloon')['actual'] == 192 << 20)


@case('-object', 'rng-random,id=r,filename=/dev/urandom',
      '-device', 'virtio-rng-pci,rng=r')
def virtio_rng(vm):
    vm.agent.wait_path('/sys/bus/virtio/drivers/virtio_rng/virtio0')
    read = 'dd if=/dev/hwrng bs=64 count=4 iflag=fullblock 2>/dev/null|wc -c'
    assert vm.agent.sh(read) == '256\n'
    yield
    assert vm.agent.sh(read) == '256\n'


def draw(vm):
    """The same picture before and after, and another one afterwards."""
    vm.agent.wait_path('/dev/fb0')
    blank = screen(vm)
    fill = 'dd if=/dev/urandom of=/dev/fb0 bs=64k count=4 2>/dev/null; true'
    vm.agent.sh(fill)
    # what is drawn is shown some 20 times a second, from the top
    width = int(blank.split()[1])
    row = (256 << 10) // (width * 4) - 1
    end = slice(len(blank.split(b'\n', 3)[0]) + row * width * 3,
                len(blank.split(b'\n', 3)[0]) + (row + 1) * width * 3)
    picture = wait_until(lambda: (s := screen(vm))[end] != blank[end] and
                         s == screen(vm) and s)
    yield
    assert screen(vm) == picture
    vm.agent.sh(fill)
    wait_until(lambda: screen(vm) != picture)


QUIET = 'vt.global_cursor_default=0'


@case('-device', 'virtio-gpu-pci', append=QUIET)
def virtio_gpu(vm):
    yield from draw(vm)


@case('-device', 'VGA', append=QUIET)
def std_vga(vm):
    yield from draw(vm)


@case('-vga', 'virtio', append=QUIET, machine='q35')
def virtio_vga(vm):
    yield from draw(vm)


def read_input(vm, name, events):
    """The guest gets an input event from the device with that name."""
    devices = vm.agent.sh('cat /proc/bus/input/devices')
    found = re.search(rf'Name="[^"]*{name}[^"]*".*?H: Handlers=.*?(event\d+)',
                      devices, re.S)
    path = f'/dev/input/{found[1]}'
    vm.agent.sh(f'rm -f /tmp/input; dd if={path} of=/tmp/input bs=24 '
                'count=1 2>/dev/null </dev/null & true')

    def arrived():
        vm.qmp.execute('input-send-event', events=events)
        return vm.agent.sh('stat -c %s /tmp/input 2>&1; true') == '24\n'
    wait_until(arrived)


def press_keys_and_move(vm):
    for name, kind in ('Keyboard', 'key'), ('Tablet', 'abs'):
        for step in range(2):
            if kind == 'key':
                data = {'key': {'type': 'qcode', 'data': 'a'},
                        'down': not step}
            else:
                data = {'axis': 'x', 'value': 1000 + 1000 * step}
            read_input(vm, name, [{'type': kind, 'data': data}])


@case('-device', 'qemu-xhci,id=x', '-device', 'usb-tablet,bus=x.0',
      '-device', 'usb-kbd,bus=x.0', *drive('a'),
      '-device', 'usb-storage,bus=x.0,drive=a')
def xhci_with_tablet_keyboard_and_storage(vm):
    wait_until(lambda: all(name in vm.agent.sh(
        'cat /proc/bus/input/devices') for name in ('Keyboard', 'Tablet')))
    steps = write_disks(vm, '/dev/sda')
    next(steps)
    yield
    press_keys_and_move(vm)
    next(steps, None)


@case('-device', 'i6300esb,id=w')
def i6300esb(vm):
    """Fed, it stays quiet; when that ends, it fires."""
    vm.qmp.execute('set-action', watchdog='none')
    vm.agent.wait_path('/dev/watchdog')
    vm.agent.sh('watchdog -T 6 -t 1 /dev/watchdog')
    yield
    assert not [e for e in vm.qmp.events if e['event'] == 'WATCHDOG']
    vm.agent.sh('killall -9 watchdog')
    vm.qmp.wait_event('WATCHDOG')


@case('-device', 'pvpanic', '-action', 'panic=pause')
def pvpanic(vm):
    vm.agent.wait_path('/sys/bus/acpi/devices/QEMU0001:00')
    vm.agent.wait_path('/sys/bus/platform/drivers/pvpanic-mmio/QEMU0001:00')
    yield
    vm.agent.send('sh echo c > /proc/sysrq-trigger')
    vm.qmp.wait_event('GUEST_PANICKED')
    vm.qmp.wait_event('STOP')
    assert vm.qmp.execute('query-status')['status'] == 'guest-panicked'


@case('-device', 'vmgenid,guid=auto', id='vmgenid-auto')
@case('-device', 'vmgenid,guid=324e6eaf-d1d1-4bf6-bf41-b9bb6c91fb87')
def vmgenid(vm):
    """The same generation, and no notification: nobody cloned the guest."""
    guid = vm.qmp.execute('query-vm-generation-id')
    count = vm.agent.sh('grep -i acpi /proc/interrupts')
    yield
    assert vm.qmp.execute('query-vm-generation-id') == guid
    assert vm.agent.sh('grep -i acpi /proc/interrupts') == count
    assert 'crng reseeded' not in vm.agent.sh('dmesg')


@case('-device', 'intel-iommu,intremap=on', *drive('a'),
      '-device', 'virtio-blk-pci,drive=a,disable-legacy=on,'
      'iommu_platform=on,ats=on', *drive('b'), '-device',
      'ide-hd,drive=b,bus=ide.1', machine='q35', append='intel_iommu=on')
def intel_iommu(vm):
    assert vm.agent.sh('ls /sys/class/iommu') == 'dmar0\n'
    yield from write_disks(vm, '/dev/vda', '/dev/sda')


test_device = pytest.mark.parametrize('function, args, kwargs', CASES)(
    run_case)


# What QEMU 7.2 has for PCs, but what is tested above, refused, or needs
# another process; each is a virtual machine, the first word its machine type
EVERY = {
    'pc-storage': '''
        lsi53c810,id=lsi scsi-hd,bus=lsi.0,drive=a lsi53c895a mptsas1068
        pvscsi ich9-ahci,id=ahci ide-hd,bus=ahci.0,drive=b piix4-ide
        isa-ide,iobase=0x1e8,iobase2=0x3ee,irq=11 sdhci-pci
        floppy,drive=c virtio-9p-pci,fsdev=f,mount_tag=f''',
    'pc-serial': '''
        isa-serial,chardev=c1 pci-serial,chardev=c2
        pci-serial-4x,chardev1=c3,chardev2=c4 isa-parallel,chardev=c5
        isa-debugcon,chardev=c6 isa-debug-exit ipmi-bmc-sim,id=bmc
        isa-ipmi-bt,bmc=bmc,irq=0 pvpanic edu pci-testdev vmcoreinfo ib700''',
    'pc-net': '''
        ne2k_pci pcnet rtl8139 tulip vmxnet3 i82550 i82557c i82562
        i82801 e1000-82544gc e1000-82545em''',
    'pc-usb': '''
        piix3-usb-uhci,id=uhci usb-hub,bus=uhci.0,port=1
        usb-mouse,bus=uhci.0,port=2 pci-ohci,id=ohci usb-kbd,bus=ohci.0
        ich9-usb-ehci1,id=ehci,multifunction=on,addr=8.7
        ich9-usb-uhci1,masterbus=ehci.0,firstport=0,multifunction=on,addr=8.0
        ich9-usb-uhci2,masterbus=ehci.0,firstport=2,multifunction=on,addr=8.1
        ich9-usb-uhci3,masterbus=ehci.0,firstport=4,multifunction=on,addr=8.2
        usb-tablet,bus=ehci.0 nec-usb-xhci,id=xhci
        usb-ccid,bus=xhci.0 usb-bot,bus=xhci.0,id=bot
        scsi-cd,bus=bot.0,lun=0''',
    'pc-display': '''
        cirrus-vga secondary-vga bochs-display qxl virtio-gpu-pci ramfb
        virtio-keyboard-pci virtio-mouse-pci virtio-tablet-pci''',
    'q35-sound': '''
        ich9-intel-hda,id=hda hda-duplex,bus=hda.0,audiodev=s
        hda-micro,bus=hda.0,audiodev=s intel-hda,id=hda2
        hda-output,bus=hda2.0,audiodev=s AC97,audiodev=s ES1370,audiodev=s
        sb16,audiodev=s adlib,audiodev=s gus,audiodev=s cs4231a,audiodev=s''',
    'q35-bridges': '''
        pcie-root-port,id=r1,chassis=1 x3130-upstream,id=up,bus=r1
        xio3130-downstream,id=d1,bus=up,chassis=2 virtio-rng-pci,bus=d1
        ioh3420,chassis=3 pcie-pci-bridge,id=pp
        pci-bridge,id=pb,bus=pp,chassis_nr=4,addr=1 i6300esb,bus=pb,addr=1
        i82801b11-bridge virtio-iommu-pci,bus=pcie.0 pxb-pcie,bus_nr=64''',
}
BACKENDS = [
    *[word for name in 'abc' for word in (
        '-blockdev', f'driver=null-co,node-name={name},size=1474560,'
        'read-zeroes=on')],
    *[word for number in range(1, 7) for word in (
        '-chardev', f'ringbuf,id=c{number}')],
    '-audiodev', 'none,id=s',
    '-fsdev', 'local,id=f,path=/var/tmp,security_model=none']


@pytest.mark.parametrize('name', EVERY)
def test_every_other_device(make_vm, name):
    """It is saved and loaded, and what comes after it."""
    vm = make_vm(machine=name.partition('-')[0], kernel=None, agent=False,
                 args=BACKENDS)
    for device in EVERY[name].split():
        vm.args += ['-device', device]
    vm.start()
    for _ in range(2):
        # The BIOS itself may reset the machine
        vm.upgrade(events=['RESET'])
        vm.qmp.execute('system_reset')
        vm.qmp.wait_event('RESET', guest=False)
    vm.qmp.execute('stop')
    before = vm.qmp.hmp('info qtree')
    vm.upgrade()
    assert vm.qmp.hmp('info qtree') == before
