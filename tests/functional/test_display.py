# SPDX-License-Identifier: GPL-2.0-or-later
"""Display servers: listening sockets and passwords stay, clients are ended
by name and come back."""

import os
import re
import shutil
import socket
import struct
import subprocess

import pytest

from harness import TIMEOUT
from harness.checks import guest_lives_on
from harness.net import listening, listening_ports
from harness.vnc import RFB, needs_openssl


def boot_vnc(make_vm, *options, **kwargs):
    vm = make_vm(args=['-device', 'VGA'], **kwargs)
    for option in options:
        vm.args += ['-vnc', option.format(dir=vm.dir)]
    return vm.boot()


def vnc_address(vm, number=0):
    """Host and port of a server, as QEMU tells them."""
    server = vm.qmp.execute('query-vnc-servers')[number]['server'][0]
    return server['host'], int(server['service'])


def display():
    """A display's number whose port is free."""
    with socket.create_server(('127.0.0.1', 0)) as sock:
        return sock.getsockname()[1] - 5900


def test_vnc_listens_on(make_vm):
    """The same socket on the same port, taken from a range; so that a port
    of it that has become free meanwhile changes nothing."""
    with socket.create_server(('127.0.0.1', 0)) as taken:
        first = taken.getsockname()[1] - 5900
        vm = boot_vnc(make_vm, f'127.0.0.1:{first},to={first + 20}')
    address = vnc_address(vm)
    assert address[1] > first + 5900
    sockets = listening(vm)
    inode = listening_ports(vm)[address[1]]
    before = RFB(address)
    size = before.login()
    picture = before.screen(*size)
    with guest_lives_on(vm, fill=0):
        vm.upgrade(dropped=[before.name()], events=['VNC_DISCONNECTED'])
        event = next(e for e in vm.qmp.events
                     if e['event'] == 'VNC_DISCONNECTED')
        assert event['data']['client']['service'] == \
            str(before.sock.getsockname()[1])
        before.wait_closed()
        assert vnc_address(vm) == address
        assert listening_ports(vm)[address[1]] == inode
        assert {i: a for i, a in listening(vm).items()
                if i in sockets} == sockets
        after = RFB(address)
        assert after.login() == size
        assert after.screen(*size) == picture
        vm.upgrade(dropped=[after.name()], events=[
            'VNC_DISCONNECTED', 'VNC_CONNECTED', 'VNC_INITIALIZED'])
        after.wait_closed()
        assert listening_ports(vm)[address[1]] == inode


def test_vnc_connects_during_the_pause(make_vm):
    """A client that comes while nobody can answer is served afterwards."""
    vm = boot_vnc(make_vm, f'127.0.0.1:{display()}')
    address = vnc_address(vm)
    ident = vm.qmp.send('exec-upgrade', {'binary': str(vm.setup.new)})
    vm.qmp.wait_event('STOP')
    client = RFB(address)
    result = vm.qmp.reply(ident)
    if client.name() in result['dropped']:
        client = RFB(address)
    assert client.login()


def test_vnc_unix_and_websocket(make_vm):
    """Several servers; no path is unlinked or made anew."""
    vm = boot_vnc(make_vm, 'unix:{dir}/vnc,id=a',
                  f'127.0.0.1:{display()},websocket=on,id=b')
    inode = os.stat(f'{vm.dir}/vnc').st_ino
    sockets = listening(vm)
    servers = vm.qmp.execute('query-vnc-servers')
    assert len([s for s in sockets.values() if s[1] == f'{vm.dir}/vnc']) == 1
    vm.upgrade()
    assert os.stat(f'{vm.dir}/vnc').st_ino == inode
    assert {i: a for i, a in listening(vm).items() if i in sockets} == sockets
    assert vm.qmp.execute('query-vnc-servers') == servers
    assert RFB(f'{vm.dir}/vnc').login()
    port = next(int(s['service']) for server in servers
                for s in server['server'] if s.get('websocket'))
    with socket.create_connection(('127.0.0.1', port)) as sock:
        sock.settimeout(TIMEOUT)
        sock.sendall(b'GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n'
                     b'Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n'
                     b'Sec-WebSocket-Protocol: binary\r\n'
                     b'Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n')
        assert b'101 Switching' in sock.recv(4096)


@needs_openssl
@pytest.mark.parametrize('command, arguments', [
    ('set_password', {'protocol': 'vnc', 'password': 'run-time'}),
    ('change-vnc-password', {'password': 'run-time'})])
def test_vnc_password(make_vm, command, arguments):
    """A password that was set at run time."""
    vm = boot_vnc(make_vm, f'127.0.0.1:{display()},password=on')
    address = vnc_address(vm)
    vm.qmp.reply(vm.qmp.send(command, arguments))
    for _ in range(2):
        client = RFB(address)
        assert client.login('run-time')
        assert RFB(address).login('another') is None
        vm.qmp.execute('query-vnc')
        client.sock.close()
        result = vm.qmp.execute('exec-upgrade', binary=str(vm.setup.new))
        assert all(d.startswith('vnc client') for d in result['dropped'])
    assert RFB(address).login('run-time')


@needs_openssl
def test_vnc_password_expires(make_vm):
    vm = boot_vnc(make_vm, f'127.0.0.1:{display()},password=on')
    address = vnc_address(vm)
    vm.qmp.execute('set_password', protocol='vnc', password='secret')
    vm.qmp.reply(vm.qmp.send('expire_password',
                             {'protocol': 'vnc', 'time': 'now'}))
    vm.upgrade()
    assert RFB(address).login('secret') is None
    vm.qmp.reply(vm.qmp.send('expire_password',
                             {'protocol': 'vnc', 'time': 'never'}))
    client = RFB(address)
    assert client.login('secret')
    client.sock.close()


def test_vnc_addresses_changed(make_vm):
    """display-update has moved the server: it stays where it is."""
    vm = boot_vnc(make_vm, f'127.0.0.1:{display()}')
    with socket.create_server(('127.0.0.1', 0)) as sock:
        port = sock.getsockname()[1]
    vm.qmp.execute('display-update', type='vnc', addresses=[
        {'type': 'inet', 'host': '127.0.0.1', 'port': str(port)}])
    assert vnc_address(vm) == ('127.0.0.1', port)
    vm.upgrade()
    assert vnc_address(vm) == ('127.0.0.1', port)
    assert RFB(('127.0.0.1', port)).login()


def test_vnc_reverse(make_vm):
    """A connection that QEMU made is named, and not made again."""
    server = socket.create_server(('127.0.0.1', 0))
    port = server.getsockname()[1]
    vm = boot_vnc(make_vm, f'127.0.0.1:{port},reverse=on')
    client = server.accept()[0]
    client.settimeout(TIMEOUT)
    assert client.recv(12) == b'RFB 003.008\n'
    vm.upgrade(dropped=[f'vnc client tcp:127.0.0.1:{port}'])
    while client.recv(4096):
        pass
    server.settimeout(0.2)
    with pytest.raises(TimeoutError):
        server.accept()


# SPICE

def spice_link(address):
    """Greets a SPICE server (spice-protocol, protocol.h: magic, version,
    size; then a SpiceLinkMess with no capabilities for the main channel).
    Returns the connection once the server has answered."""
    sock = socket.socket(socket.AF_UNIX if isinstance(address, str)
                         else socket.AF_INET)
    sock.settimeout(TIMEOUT)
    sock.connect(address)
    message = struct.pack('<IBBIII', 0, 1, 0, 0, 0, 18)
    sock.sendall(b'REDQ' + struct.pack('<III', 2, 2, len(message)) + message)
    reply = sock.recv(4096)
    assert reply[:4] == b'REDQ', reply
    return sock


def test_spice(make_vm):
    with socket.create_server(('127.0.0.1', 0)) as taken:
        port = taken.getsockname()[1]
    vm = make_vm(args=['-device', 'VGA', '-spice',
                       f'addr=127.0.0.1,port={port}']).boot()
    inode = listening_ports(vm)[port]
    spice_link(('127.0.0.1', port)).close()
    for _ in range(2):
        client = spice_link(('127.0.0.1', port))
        info = vm.qmp.execute('query-spice')
        result = vm.qmp.execute('exec-upgrade', binary=str(vm.setup.new))
        assert all(re.match(r'spice client 127\.0\.0\.1:\d+$', d)
                   for d in result['dropped'])
        while True:             # the rest of the answer, then the end
            try:
                if not client.recv(4096):
                    break
            except ConnectionResetError:
                break
        assert listening_ports(vm)[port] == inode
        after = vm.qmp.execute('query-spice')
        assert (after['host'], after['port'], after['auth']) == \
            (info['host'], info['port'], info['auth'])
        spice_link(('127.0.0.1', port)).close()


def test_spice_unix(make_vm):
    vm = make_vm(args=['-device', 'VGA'])
    path = f'{vm.dir}/spice'
    vm.args += ['-spice', f'unix=on,addr={path},disable-ticketing=on']
    vm.boot()
    inode, sockets = os.stat(path).st_ino, listening(vm)
    vm.upgrade()
    assert os.stat(path).st_ino == inode
    assert {i: a for i, a in listening(vm).items() if i in sockets} == sockets
    spice_link(path).close()


def test_spice_password(make_vm):
    """A password set at run time is still there: it can be given a time at
    which it expires only if there is one to expire."""
    with socket.create_server(('127.0.0.1', 0)) as taken:
        port = taken.getsockname()[1]
    vm = make_vm(args=['-device', 'VGA', '-spice',
                       f'addr=127.0.0.1,port={port}']).boot()
    vm.qmp.execute('set_password', protocol='spice', password='run-time')
    assert spice_ticket(port, b'run-time') == 0
    vm.upgrade()
    assert spice_ticket(port, b'run-time') == 0
    assert spice_ticket(port, b'another') != 0


def spice_ticket(port, password):
    """Logs in with a password, returns SPICE's error number. The server
    sends an RSA key, the client the password encrypted with it (OAEP)."""
    if not shutil.which('openssl'):
        pytest.skip('needs openssl')
    with socket.create_connection(('127.0.0.1', port)) as sock:
        sock.settimeout(TIMEOUT)
        # one word of common capabilities: none of them, so the old way
        message = struct.pack('<IBBIII', 0, 1, 0, 0, 0, 18)
        sock.sendall(b'REDQ' + struct.pack('<III', 2, 2, len(message)) +
                     message)
        head = read(sock, 16)
        size = struct.unpack_from('<I', head, 12)[0]
        body = read(sock, size)
        error = struct.unpack_from('<I', body)[0]
        assert error == 0
        key = body[4:4 + 162]           # SubjectPublicKeyInfo, DER
        sock.sendall(oaep(key, password + b'\0'))
        return struct.unpack('<I', read(sock, 4))[0]


def read(sock, count):
    data = b''
    while len(data) < count:
        more = sock.recv(count - len(data))
        assert more, 'SPICE server closed the connection'
        data += more
    return data


def oaep(key, data):
    with open(f'/proc/self/fd/{os.memfd_create("key")}', 'wb') as f:
        f.write(key)
        f.flush()
        return subprocess.run(
            ['openssl', 'pkeyutl', '-encrypt', '-pubin', '-keyform', 'DER',
             '-inkey', f'/proc/{os.getpid()}/fd/{f.fileno()}', '-pkeyopt',
             'rsa_padding_mode:oaep'], input=data, check=True,
            stdout=subprocess.PIPE).stdout
