# SPDX-License-Identifier: GPL-2.0-or-later
"""Talks with the program in the guest; tests/guest/agent.h has the
protocol, the .c files there their commands."""

import re
import time

from . import TIMEOUT
from .stream import LineSocket


class AgentError(Exception):
    """The guest could not do what it was asked."""


class Agent(LineSocket):
    def __init__(self, sock):
        super().__init__(sock)
        self.last_id = 0
        self.boot_id = None

    def wait_ready(self, timeout=TIMEOUT):
        """Waits until a boot is complete, returns its boot id. What the
        kernel said while it booted is not looked at by check_log."""
        deadline = time.monotonic() + timeout
        while True:
            words = self.read_line(deadline).decode(errors='replace').split()
            if len(words) == 2 and words[0] == 'ready':
                self.boot_id = words[1]
                self.sh('dmesg -c > /dev/null')
                return self.boot_id

    def send(self, command):
        """Sends a command, returns its id."""
        self.last_id += 1
        self.send_bytes(f'{self.last_id} {command}\n'.encode())
        return self.last_id

    def reply(self, ident, timeout=TIMEOUT):
        """Waits for the answer to a command, returns its text."""
        line = self.read_line(time.monotonic() + timeout).decode()
        got, state, text = line.rstrip('\n').split(' ', 2)
        if int(got) != ident:
            raise AgentError(f'answer {line!r} is not the one to {ident}')
        text = re.sub(r'\\(.)', lambda m: {'n': '\n'}.get(m[1], m[1]), text)
        if state != 'ok':
            raise AgentError(f'guest: {state}: {text}')
        return text

    def resume(self):
        """For a new connection to a guest that runs already, in another
        process: what the last one may have left of a line is dropped."""
        end = f'{self.send("counter")} '.encode()
        while not self.read_line(time.monotonic() + TIMEOUT).startswith(end):
            pass

    def ask(self, command, timeout=TIMEOUT):
        """Sends a command and waits. An answer of the form key=value ...
        comes back as a dict with numbers as numbers."""
        text = self.reply(self.send(command), timeout)
        return {key: int(value) if re.fullmatch(r'-?\d+', value) else value
                for key, value in (w.split('=', 1) for w in text.split())}

    def sh(self, command, timeout=TIMEOUT):
        """Runs a command in the guest's shell, returns its output."""
        return self.reply(self.send(f'sh {command}'), timeout)

    def wait_path(self, path, timeout=TIMEOUT):
        """Waits until the guest has @path, for example a device's node."""
        self.reply(self.send(f'wait {path} {int(timeout)}'), timeout + 5)

    def settle(self):
        """Waits until the guest has drivers for all devices that it saw."""
        self.reply(self.send('settle'))

    def check_log(self):
        """Checks that the guest's kernel did not complain."""
        bad = [line for line in self.sh('dmesg').splitlines() if re.search(
            r'BUG|Oops|Call Trace|lockup|stall|hung_task|I/O error|'
            r'reset (high|super|link)|failed command|timed out',
            line)]
        assert not bad, '\n'.join(bad)
