#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Measures how long an upgrade stops a guest, by the size of its memory.

Three quarters of the memory are touched by the guest before. Prints the
median of each phase; nothing passes or fails here."""

import argparse
import os
import statistics
import sys
from pathlib import Path

TOP = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(TOP / 'tests' / 'functional'))
# pylint: disable=wrong-import-position
from harness.image import image                     # noqa: E402
from harness.vm import VM, Setup                    # noqa: E402


def measure(setup, memory, runs, machine, smp):
    """Runs upgrades of one guest, old to new and on; returns the median of
    each phase and of the whole pause in milliseconds, and the largest
    pause."""
    vm = VM(setup, memory=memory, machine=machine, smp=smp)
    try:
        vm.boot()
        touched = vm.agent.ask('mem fill 75', timeout=600)['bytes']
        results = [vm.upgrade() for _ in range(runs)]
        assert vm.agent.ask('mem verify', timeout=600)['errors'] == 0
    finally:
        vm.kill()
    names = [phase['name'] for phase in results[0]['phases']]
    table = {name: statistics.median(
        phase['duration'] / 1000 for result in results
        for phase in result['phases'] if phase['name'] == name)
        for name in names}
    pauses = [result['downtime'] / 1000 for result in results]
    table['pause'] = statistics.median(pauses)
    table['longest pause'] = max(pauses)
    return touched, table


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    build = TOP / 'build'
    parser.add_argument('--mem', default='512M,8G',
                        help='sizes of guest memory (default: %(default)s)')
    parser.add_argument('--runs', type=int, default=7,
                        help='upgrades of each (default: %(default)s)')
    parser.add_argument('--machine', default='pc')
    parser.add_argument('--smp', default='2')
    parser.add_argument('--old', default=build / 'old/qemu-system-x86_64')
    parser.add_argument('--new', default=build / 'new/qemu-system-x86_64')
    parser.add_argument('--cache', default=build / 'guest')
    parser.add_argument('--qemu-arg', action='append', default=[])
    args = parser.parse_args()
    setup = Setup(os.path.realpath(args.old), os.path.realpath(args.new),
                  image(args.cache), '', tuple(args.qemu_arg))

    print(f'{args.machine}, {args.smp} vCPUs, TCG; median of {args.runs} '
          'upgrades, milliseconds', flush=True)
    columns = {}
    for memory in args.mem.split(','):
        touched, columns[memory] = measure(setup, memory, args.runs,
                                           args.machine, args.smp)
        print(f'  {memory}: the guest touched {touched >> 20} MiB',
              flush=True)
    print()
    print(f'{"phase":14}' + ''.join(f'{memory:>10}' for memory in columns))
    for name in next(iter(columns.values())):
        print(f'{name:14}' + ''.join(f'{column.get(name, 0):10.2f}'
                                     for column in columns.values()))


if __name__ == '__main__':
    main()
