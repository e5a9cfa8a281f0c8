#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Shows one upgrade: a Linux guest runs under the old QEMU, which is told to
replace itself, and goes on under the new one. Exit status 0 only if all that
it shows holds."""

import argparse
import os
import sys
import time
from pathlib import Path

TOP = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TOP / 'tests' / 'functional'))
# pylint: disable=wrong-import-position
from harness.image import image                             # noqa: E402
from harness.lines import LineChecker                       # noqa: E402
from harness.vm import (VM, Setup, check_result,            # noqa: E402
                        process_identity, version_string)

TTY = sys.stdout.isatty()
BAR = 36        # columns


def style(code, text):
    return f'\033[{code}m{text}\033[0m' if TTY else text


def say(text=''):
    print(text, flush=True)


class Table:
    """Lines of: what, before, after, whether it is as it should be."""

    def __init__(self):
        self.rows = []
        self.good = True

    def add(self, name, before, after, good, remark=''):
        self.good &= bool(good)
        self.rows.append((name, str(before), str(after), good, remark))

    def show(self):
        widths = [max(len(row[i]) for row in self.rows) for i in range(3)]
        say(style('1', '  {:{}}  {:{}}  {:{}}'.format(
            '', widths[0], 'before', widths[1], 'after', widths[2])))
        for name, before, after, good, remark in self.rows:
            mark = style('32', 'ok ') if good else style('31', 'BAD')
            say(f'  {name:{widths[0]}}  {before:{widths[1]}}  '
                f'{after:{widths[2]}}  {mark} {remark}'.rstrip())


def bars(phases, downtime):
    """The phases as bars on one time axis; those before the pause too."""
    longest = max(phase['duration'] for phase in phases) or 1
    width = max(len(phase['name']) for phase in phases)
    names = [phase['name'] for phase in phases]
    pause = names.index('quiesce') if 'quiesce' in names else 0
    for i, phase in enumerate(phases):
        length = round(BAR * phase['duration'] / longest)
        bar = ('█' if TTY else '#') * length or '·' * TTY or '.'
        say(f'  {phase["name"]:{width}} {phase["duration"] / 1000:8.2f} ms  '
            + style('33' if i >= pause else '36', bar)
            + ('' if i >= pause else '  (guest runs)'))
    say(f'  {"pause":{width}} {downtime / 1000:8.2f} ms  '
        'in which the guest stood still')


def show_guest(checker, seconds):
    """Shows for a while what the guest prints on its serial line."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        number = checker.next
        if TTY:
            say(f'\033[1A\033[K  guest prints line {number:08d}')
        checker.wait(number + 1)
    if not TTY:
        say(f'  guest prints line {checker.next:08d}')


def demo(setup):
    vm = VM(setup, memory='256', kernel=setup.image.kernel)
    disk = vm.dir / 'disk'
    with open(disk, 'wb') as f:
        f.truncate(16 << 20)
    vm.args += [
        '-drive', f'if=virtio,format=raw,file={disk}',
        '-device', 'virtio-serial-pci', '-chardev',
        f'socket,id=lines,path={vm.dir}/lines,server=on,wait=off',
        '-device', 'virtserialport,chardev=lines,nr=1']
    try:
        return run(setup, vm)
    except BaseException:
        say()
        for title, text in vm.report():
            say(f'--- {title}\n{text}')
        raise
    finally:
        vm.kill()


def run(setup, vm):
    vm.start()
    version = version_string(vm.qmp.execute('query-version'))
    say(style('1', 'exec-upgrade: a running QEMU replaces itself by a newer '
              'version; its guest goes on'))
    say()
    say(f'1. Debian boots under QEMU {version}, with a disk and a serial '
        'line ...')
    vm.agent.wait_ready()
    vm.agent.wait_path('/dev/vport0p1')
    vm.agent.wait_path('/dev/vda')
    memory = vm.agent.ask('mem fill 75')
    vm.agent.ask('disk start /dev/vda 4 16')
    checker = LineChecker(vm.connect('lines'))
    vm.agent.ask('lines start /dev/vport0p1 5000')
    say(f'   It fills {memory["bytes"] >> 20} MiB of memory with a pattern, '
        'writes to its disk without pause,')
    say('   and prints numbered lines:')
    if TTY:
        say()
    show_guest(checker, 1.5)

    before = process_identity(vm.pid)
    connection = os.stat(f'/proc/self/fd/{vm.qmp.sock.fileno()}').st_ino
    counter = vm.agent.ask('counter')
    exe = vm.exe()
    lines = checker.next
    writes = vm.agent.ask('disk status /dev/vda')['writes']

    say()
    say('2. Over the QMP connection:')
    say(style('36', f'   -> {{ "execute": "exec-upgrade", "arguments": '
              f'{{ "binary": "{setup.new}" }} }}'))
    result = vm.qmp.execute('exec-upgrade', binary=setup.new)
    check_result(result)
    say(style('36', f'   <- {{ "return": {{ "from": "{result["from"]}", '
              f'"to": "{result["to"]}", "downtime": {result["downtime"]}, '
              '... } }'))

    after = vm.agent.ask('counter')
    checker.wait_more(50)
    stopped = vm.agent.ask('lines stop /dev/vport0p1')['next']
    checker.wait(stopped)
    verified = vm.agent.ask('mem verify')
    blocks = vm.agent.ask('disk stop /dev/vda')
    new_version = version_string(vm.qmp.execute('query-version'))
    now = process_identity(vm.pid)
    vm.agent.check_log()

    say()
    say('3. What was before, and what is now:')
    say()
    table = Table()
    table.add('QEMU version', version, new_version,
              setup.old == setup.new or new_version != version)
    table.add('binary', Path(exe).parent.name + '/' + Path(exe).name,
              Path(vm.exe()).parent.name + '/' + Path(vm.exe()).name,
              vm.exe() == os.path.realpath(setup.new))
    table.add('process id', before[0], now[0], before == now,
              'the same process')
    table.add('QMP connection', f'socket {connection}',
              f'socket {connection}', vm.qmp.greeting is not None,
              'the reply came over it, no second greeting')
    table.add('guest booted as', counter['boot_id'][:8],
              after['boot_id'][:8], counter['boot_id'] == after['boot_id'],
              'not booted again')
    table.add('guest counter', counter['counter'], after['counter'],
              after['counter'] > counter['counter'], 'goes on')
    table.add('guest uptime', f'{counter["uptime"]} s',
              f'{after["uptime"]} s',
              after['monotonic'] > counter['monotonic'], 'goes on')
    table.add('guest memory', memory['sum'], verified['sum'],
              memory['sum'] == verified['sum'] and not verified['errors'],
              'checksum in the guest')
    table.add('serial line', f'line {lines}', f'line {stopped}',
              stopped > lines, 'none lost, none doubled')
    table.add('disk', f'{writes} blocks', f'{blocks["writes"]} blocks',
              blocks['writes'] > writes and not blocks['errors'] and
              not blocks['failed'], 'all there, no errors')
    table.show()
    say()
    say(f'4. The pause: {result["downtime"] / 1000:.1f} ms')
    say()
    bars(result['phases'], result['downtime'])
    say()
    if result['dropped']:
        table.good = False
        say('   dropped: ' + ', '.join(result['dropped']))
    say(style('1;32', 'All held.') if table.good
        else style('1;31', 'Not all held.'))
    return table.good


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    build = TOP / 'build'
    parser.add_argument('--old', help='QEMU to start',
                        default=build / 'old' / 'qemu-system-x86_64')
    parser.add_argument('--new', help='QEMU to upgrade to',
                        default=build / 'new' / 'qemu-system-x86_64')
    parser.add_argument('--cache', default=build / 'guest',
                        help='where the guest image is kept')
    parser.add_argument('--qemu-arg', action='append', default=[],
                        help='argument added to QEMU')
    args = parser.parse_args()
    setup = Setup(os.path.realpath(args.old), os.path.realpath(args.new),
                  image(args.cache), '', tuple(args.qemu_arg))
    return 0 if demo(setup) else 1


if __name__ == '__main__':
    sys.exit(main())
