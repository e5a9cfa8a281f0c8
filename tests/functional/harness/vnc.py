# SPDX-License-Identifier: GPL-2.0-or-later
"""A VNC client, just large enough for a test."""

import shutil
import socket
import struct
import subprocess

import pytest

from . import TIMEOUT

needs_openssl = pytest.mark.skipif(not shutil.which('openssl'),
                                   reason='needs openssl')


class RFB:
    """A VNC client, RFC 6143."""

    def __init__(self, address):
        family = socket.AF_UNIX if isinstance(address, str) else \
            socket.AF_INET
        self.sock = socket.socket(family)
        self.sock.settimeout(TIMEOUT)
        self.sock.connect(address)

    def read(self, count):
        data = b''
        while len(data) < count:
            more = self.sock.recv(count - len(data))
            if not more:
                raise EOFError('VNC server closed the connection')
            data += more
        return data

    def login(self, password=None):
        """Returns the screen's size, or None if the password is wrong."""
        assert self.read(12) == b'RFB 003.008\n'
        self.sock.sendall(b'RFB 003.008\n')
        kind = 1 if password is None else 2
        assert kind in self.read(self.read(1)[0])
        self.sock.sendall(bytes([kind]))
        if password is not None:
            self.sock.sendall(encrypt(self.read(16), password))
        if struct.unpack('!I', self.read(4))[0]:
            return None
        self.sock.sendall(b'\x01')      # share the screen with others
        width, height, _, length = struct.unpack('!HH16sI', self.read(24))
        self.read(length)
        return width, height

    def screen(self, width, height):
        """Asks for the whole screen, returns the first update's bytes."""
        self.sock.sendall(struct.pack('!BBHi', 2, 0, 1, 0))     # raw
        self.sock.sendall(struct.pack('!BBHHHH', 3, 0, 0, 0, width, height))
        kind, _, rectangles = struct.unpack('!BBH', self.read(4))
        assert kind == 0 and rectangles
        _, _, w, h, encoding = struct.unpack('!HHHHi', self.read(12))
        assert encoding == 0
        return self.read(w * h * 4)

    def wait_closed(self):
        try:
            while self.sock.recv(65536):
                pass
        except ConnectionResetError:
            pass

    def name(self):
        """As it is called when it is dropped."""
        return 'vnc client tcp:{}:{}'.format(*self.sock.getsockname())


def encrypt(challenge, password):
    """Section 7.2.2: DES, the bits of each of the key's bytes mirrored; done
    by three keys that are the same, which every OpenSSL has."""
    key = bytes(int(f'{byte:08b}'[::-1], 2)
                for byte in password.encode()[:8].ljust(8, b'\0'))
    return subprocess.run(
        ['openssl', 'enc', '-des-ede3-ecb', '-nopad', '-K', (key * 3).hex()],
        input=challenge, check=True, stdout=subprocess.PIPE).stdout
