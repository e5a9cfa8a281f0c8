# SPDX-License-Identifier: GPL-2.0-or-later
"""A QMP client that is strict about the stream: exactly one greeting, one
reply for each request, in QEMU's own order. (QEMU's own client, qemu.qmp, is
used beside it, see VM.stock_qmp.)"""

import json
import socket
import time

from . import TIMEOUT
from .stream import LineSocket, connect


class QMPError(Exception):
    """An error that QEMU sent."""

    def __init__(self, error):
        super().__init__(f"{error['class']}: {error['desc']}")
        self.error_class = error['class']
        self.desc = error['desc']


class QMP(LineSocket):
    def __init__(self, where, capabilities=(), negotiate=True):
        """@where: the path or address of a server socket, or a socket."""
        super().__init__(where if hasattr(where, 'recv') else connect(where))
        self.events = []        # not yet taken by wait_event
        self.pending = {}       # id of a request -> its reply, or None
        self.last_id = 0
        self.greeting = None
        self._read_until(lambda: self.greeting, TIMEOUT)
        if negotiate:
            self.execute('qmp_capabilities', enable=list(capabilities))

    def _read_until(self, condition, timeout):
        deadline = time.monotonic() + timeout
        while not (found := condition()):
            self._take(json.loads(self.read_line(deadline)))
        return found

    def _take(self, message):
        if 'QMP' in message:
            assert self.greeting is None, f'second greeting: {message}'
            self.greeting = message
        elif 'event' in message:
            self.events.append(message)
        else:
            ident = message.get('id')
            assert ident in self.pending, f'reply to no request: {message}'
            assert self.pending[ident] is None, f'second reply: {message}'
            self.pending[ident] = message

    def encode(self, command, arguments=None, oob=False):
        """A request's bytes, and the id by which to wait for its reply."""
        self.last_id += 1
        ident = f'request-{self.last_id}'
        message = {'exec-oob' if oob else 'execute': command, 'id': ident}
        if arguments:
            message['arguments'] = arguments
        self.pending[ident] = None
        return json.dumps(message).encode() + b'\n', ident

    def send(self, command, arguments=None, oob=False):
        """Sends a request, returns its id."""
        data, ident = self.encode(command, arguments, oob)
        self.send_bytes(data)
        return ident

    def send_fds(self, command, fds, arguments=None):
        """Sends a request with descriptors, returns its id."""
        data, ident = self.encode(command, arguments)
        socket.send_fds(self.sock, [data], fds)
        return ident

    def reply(self, ident, timeout=TIMEOUT):
        """Waits for the reply to a request, returns it or raises QMPError."""
        message = self._read_until(lambda: self.pending[ident], timeout)
        del self.pending[ident]
        if 'error' in message:
            raise QMPError(message['error'])
        return message['return']

    def execute(self, command, timeout=TIMEOUT, **arguments):
        """Sends a request and waits for its reply. A keyword's underscores
        stand for dashes, except where QEMU's name has one (use send)."""
        return self.reply(self.send(command, {
            key.replace('_', '-'): value
            for key, value in arguments.items()}), timeout)

    def hmp(self, line):
        return self.reply(self.send('human-monitor-command',
                                    {'command-line': line}))

    def wait_event(self, name, timeout=TIMEOUT, **data):
        """Waits for the event @name with all of @data, and takes it out of
        the list of events."""
        def find():
            for event in self.events:
                if event['event'] == name and \
                        data.items() <= event.get('data', {}).items():
                    return event
            return None
        event = self._read_until(find, timeout)
        self.events.remove(event)
        return event

    def expect_silence(self):
        """Checks that nothing came in but what was waited for."""
        self.execute('query-version')
        assert not self.events, self.events

    def wait_closed(self, timeout=TIMEOUT):
        """Reads until QEMU closes the connection."""
        try:
            self._read_until(lambda: False, timeout)
        except (EOFError, ConnectionResetError):
            pass
