# SPDX-License-Identifier: GPL-2.0-or-later
"""The host's side of tests/guest/lines.c: numbered lines that show every
byte lost, doubled or changed."""

import os
import threading

from . import TIMEOUT


def line(number):
    letters = bytes(ord('a') + (number + i) % 26 for i in range(40))
    return b'%08d %s\n' % (number, letters)


def lines(first, end):
    """The bytes of the lines from number @first up to but without @end."""
    return b''.join(map(line, range(first, end)))


def check_lines(data, first=0):
    """Checks that @data is lines from number @first on, whole but for the
    last; returns the number of the one after the last whole line."""
    whole, _, rest = data.rpartition(b'\n')
    got = whole.split(b'\n') if whole else []
    for i, text in enumerate(got):
        expected = line(first + i)
        assert text + b'\n' == expected, \
            f'line {first + i} is {text!r}, the one before ' \
            f'{got[i - 1] if i else None!r}'
    end = first + len(got)
    assert line(end).startswith(rest), f'after line {end - 1}: {rest!r}'
    return end


class LineChecker(threading.Thread):
    """Reads lines from a descriptor or socket all the time and checks
    them."""

    def __init__(self, source):
        super().__init__(daemon=True)
        self.source = source            # kept open while in use
        fd = source if isinstance(source, int) else source.fileno()
        os.set_blocking(fd, True)
        self.fd = fd
        self.next = 0                   # number of the next line
        self.error = None
        self.changed = threading.Condition()
        self.start()

    def run(self):
        rest = b''
        try:
            while data := os.read(self.fd, 65536):
                rest += data
                end = check_lines(rest, self.next)
                rest = rest[rest.rfind(b'\n') + 1:]
                with self.changed:
                    self.next = end
                    self.changed.notify_all()
            raise EOFError(f'end of file after line {self.next - 1}')
        except (AssertionError, OSError, EOFError) as error:
            with self.changed:
                self.error = error
                self.changed.notify_all()

    def wait(self, end, timeout=TIMEOUT):
        """Waits until all lines before number @end have come."""
        with self.changed:
            self.changed.wait_for(lambda: self.next >= end or self.error,
                                  timeout)
            if self.error:
                raise self.error
            assert self.next >= end, f'line {self.next} did not come'

    def wait_more(self, count=100):
        """Waits for @count more lines than have come."""
        self.wait(self.next + count)
