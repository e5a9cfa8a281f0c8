# SPDX-License-Identifier: GPL-2.0-or-later
"""A socket read line by line, with a limit on the time to wait."""

import socket
import time
from collections import deque

from . import TIMEOUT


def connect(path):
    """A connection to the unix socket @path, or (host, port)."""
    family = socket.AF_UNIX if isinstance(path, (str, bytes)) \
        else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.settimeout(TIMEOUT)
    try:
        sock.connect(path)
    except OSError:
        sock.close()
        raise
    return sock


class LineSocket:
    def __init__(self, sock):
        self.sock = sock
        self.buffer = bytearray()
        self.log = deque(maxlen=100)    # what was said, for a failed test

    def send_bytes(self, data):
        self.log.append(f'> {data!r}')
        self.sock.settimeout(TIMEOUT)
        self.sock.sendall(data)

    def receive(self, deadline):
        """Adds at least one byte to the buffer."""
        self.sock.settimeout(max(deadline - time.monotonic(), 0.001))
        try:
            data = self.sock.recv(65536)
        except TimeoutError:
            raise TimeoutError(f'no answer in time; incomplete line: '
                               f'{bytes(self.buffer)!r}') from None
        if not data:
            raise EOFError('connection closed by QEMU')
        self.buffer += data

    def read_line(self, deadline):
        while (end := self.buffer.find(b'\n')) < 0:
            self.receive(deadline)
        line = bytes(self.buffer[:end + 1])
        del self.buffer[:end + 1]
        self.log.append(f'< {line!r}')
        return line

    def close(self):
        self.sock.close()
