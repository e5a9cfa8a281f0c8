# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs of virsh that go on while the test does something else."""

import os
import pty
import re
import threading
import tty

from harness import TIMEOUT


class Terminal:
    """A program in the host with a terminal of its own."""

    def __init__(self, host, *command):
        self.fd, terminal = pty.openpty()
        tty.setraw(terminal)
        self.process = host.popen(*command, stdin=terminal, stdout=terminal,
                                  stderr=terminal, start_new_session=True)
        os.close(terminal)

    def close(self):
        self.process.kill()
        self.process.wait(TIMEOUT)
        os.close(self.fd)


class Console(Terminal):
    """`virsh console`. What comes is read from fd."""

    def __init__(self, host, name):
        super().__init__(host, 'virsh', 'console', name, '--force')
        # virsh says this before anything else; byte by byte, not to take
        # what is the guest's
        self.banner = b''
        while not re.search(rb'Escape character is .*\n\r?', self.banner):
            self.banner += os.read(self.fd, 1)

    def send(self, data):
        while data:
            data = data[os.write(self.fd, data):]


class Events(threading.Thread):
    """`virsh event --all --loop`; lines has what it printed."""

    def __init__(self, host):
        super().__init__(daemon=True)
        self.terminal = Terminal(host, 'virsh', 'event', '--all', '--loop')
        self.lines = []
        self.said = self.seen = 0
        self.changed = threading.Condition()
        self.start()

    def run(self):
        rest = b''
        while True:
            try:
                data = os.read(self.terminal.fd, 4096)
            except OSError:
                return
            *whole, rest = (rest + data).replace(b'\r', b'').split(b'\n')
            with self.changed:
                self.lines += [line.decode() for line in whole if line]
                self.changed.notify_all()

    def wait(self, text, first=0, timeout=TIMEOUT):
        """Waits for a line with @text among those from number @first on."""
        with self.changed:
            found = self.changed.wait_for(
                lambda: any(text in line for line in self.lines[first:]),
                timeout)
        assert found, f'no event with {text!r}: {self.lines[first:]}'

    def wait_ready(self, domain):
        """Nothing says that it listens: asks until it hears us."""
        while not self.lines:
            self.say(domain)
            with self.changed:
                self.changed.wait_for(lambda: self.lines, 1)
        self.barrier(domain)

    def say(self, domain):
        """Causes an event like no other, returns what it will show."""
        self.said += 1
        uri = f'urn:test:{self.said}'
        domain.virsh('metadata', '--live', '--uri', uri, '--key', 'test',
                     '--set', '<said/>')
        return uri

    def barrier(self, domain):
        """Waits until all events until now were printed; returns those that
        are not known yet."""
        self.wait(self.say(domain))
        first, self.seen = self.seen, len(self.lines)
        return [line for line in self.lines[first:self.seen]
                if 'urn:test' not in line]
