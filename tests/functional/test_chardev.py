# SPDX-License-Identifier: GPL-2.0-or-later
"""Character devices across an upgrade: no byte is lost or doubled, in either
direction, and nobody is cut off who need not be.

Most tests run tests/guest/serial.S: the guest prints numbered lines on the
chardev 'lines' without pause and echoes what comes in on the chardev 'echo'.
Where single bytes matter, qtest drives the serial port's registers."""

import base64
import fcntl
import os
import re
import socket
import ssl
import struct
import subprocess
import termios
import threading
import time
import tty

import pytest

from harness import TIMEOUT
from harness.checks import wait_until
from harness.image import GUEST
from harness.lines import LineChecker, check_lines, line, lines
from harness.stream import LineSocket, connect

LINE = len(line(0))
LSR_DR, LSR_THRE, IIR_FIFO = 0x01, 0x20, 0xc0
SERVER = 'server=on,wait=off'


@pytest.fixture(scope='session')
def sector(tmp_path_factory):
    out = tmp_path_factory.mktemp('serial') / 'sector'
    obj = out.with_suffix('.o')
    subprocess.run(['gcc', '-m32', '-c', '-o', obj, GUEST / 'serial.S'],
                   check=True)
    subprocess.run(['ld', '-m', 'elf_i386', '-Ttext', '0x7c00',
                    '--oformat', 'binary', '-o', out, obj], check=True)
    return out.read_bytes()


@pytest.fixture
def serial_vm(make_vm, sector):
    """Makes a VM with the serial guest, not yet started. {dir} in an
    argument is the test's folder."""
    def make(lines_chardev='null', echo_chardev='null', *args, **kwargs):
        vm = make_vm(kernel=None, agent=False, memory='32', **kwargs)
        (vm.dir / 'sector').write_bytes(sector)
        vm.args += [arg.format(dir=vm.dir) for arg in [
            '-S', '-drive', 'if=ide,format=raw,file={dir}/sector', *args,
            '-chardev', with_id(lines_chardev, 'lines'),
            '-device', 'isa-serial,chardev=lines,index=0',
            '-chardev', with_id(echo_chardev, 'echo'),
            '-device', 'isa-serial,chardev=echo,index=1']]
        return vm
    return make


def with_id(chardev, name):
    backend, _, options = chardev.partition(',')
    return f'{backend},id={name}' + (',' + options if options else '')


@pytest.fixture
def qtest_vm(make_vm):
    """Starts a VM whose devices a test drives itself."""
    def make(*args):
        vm = make_vm(kernel=None, agent=False, memory='32', accel='qtest')
        vm.args += [arg.format(dir=vm.dir) for arg in [
            '-qtest', f'unix:{{dir}}/qtest,{SERVER}', '-qtest-log', 'none',
            *args]]
        vm.start()
        vm.qtest = Qtest(vm.connect('qtest'))
        return vm
    return make


class Qtest(LineSocket):
    def ask(self, command):
        self.send_bytes(command.encode() + b'\n')
        return self.answer()

    def answer(self):
        words = self.read_line(time.monotonic() + TIMEOUT).split()
        assert words[0] == b'OK', words
        return int(words[1], 0) if len(words) > 1 else None

    def inb(self, port):
        return self.ask(f'inb {port:#x}')

    def outb(self, port, value):
        self.ask(f'outb {port:#x} {value:#x}')

    def receive_serial(self, port):
        """A byte from a serial port."""
        wait_until(lambda: self.inb(port + 5) & LSR_DR)
        return bytes([self.inb(port)])


class Sender(threading.Thread):
    """Sends lines to a descriptor or socket all the time, not too far ahead
    of those that a checker sees coming back."""

    def __init__(self, sink, checker):
        super().__init__(daemon=True)
        self.checker = checker
        self.fd = sink if isinstance(sink, int) else sink.fileno()
        self.sink = sink                # kept open while in use
        os.set_blocking(self.fd, True)
        self.stopping = threading.Event()
        self.sent = 0
        self.start()

    def run(self):
        while not self.stopping.is_set():
            self.checker.wait(self.sent - 200)
            data = line(self.sent)
            while data:
                data = data[os.write(self.fd, data):]
            self.sent += 1

    def stop(self):
        """Returns how many lines were sent."""
        self.stopping.set()
        self.join(TIMEOUT)
        assert not self.is_alive()
        return self.sent


class Traffic:
    """Checks the guest's lines, and sends it lines that come back."""

    def __init__(self, lines_source=None, echo_source=None, echo_sink=None):
        self.checkers = [LineChecker(source) for source in
                         (lines_source, echo_source) if source is not None]
        self.echo = echo_source if echo_sink is None else echo_sink
        self.sender = None

    def go_on(self):
        """To be called when the guest runs."""
        if self.echo is not None and not self.sender:
            self.sender = Sender(self.echo, self.checkers[-1])
        for checker in self.checkers:
            checker.wait_more()

    def finish(self):
        self.go_on()
        if self.sender:
            self.checkers[-1].wait(self.sender.stop())


def chardevs(vm):
    """All but those whose label QEMU makes up."""
    return sorted((c for c in vm.qmp.execute('query-chardev')
                   if not c['label'].startswith('#')),
                  key=lambda c: c['label'])


def filename(vm, label):
    return next(c['filename'] for c in chardevs(vm) if c['label'] == label)


def upgrade(vm, **kwargs):
    before = chardevs(vm)
    yank = vm.qmp.execute('query-yank')
    vm.upgrade(**kwargs)
    del vm.qmp.events[:]                # vm.upgrade has looked at them
    assert chardevs(vm) == before
    assert vm.qmp.execute('query-yank') == yank


def upgrade_twice(vm, traffic):
    """Upgrades a guest that has traffic, and again."""
    traffic.go_on()
    upgrade(vm)
    traffic.go_on()
    upgrade(vm)
    traffic.finish()
    vm.qmp.expect_silence()


def inb(vm, port):
    return int(re.search(r'= (0x\w+)', vm.qmp.hmp(f'i /b {port:#x}'))[1], 0)


def lsr(vm, port):
    """A serial port's line status register."""
    return inb(vm, port + 5)


def run(vm):
    """Lets the guest run, and waits until it echoes."""
    vm.qmp.execute('cont')
    wait_until(lambda: inb(vm, 0x2f8 + 2) & IIR_FIFO)


def port_of(vm, label):
    """Port of a chardev that listens on one that the kernel chose."""
    return int(re.search(r'127\.0\.0\.1:(\d+)', filename(vm, label))[1])


def listen(path):
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(path))
    sock.listen()
    sock.settimeout(TIMEOUT)
    return sock


def accept(listener):
    sock, _ = listener.accept()
    sock.settimeout(TIMEOUT)
    return sock


def read_exactly(source, size):
    data = b''
    while len(data) < size:
        more = source.recv(size - len(data))
        assert more, f'end of file after {data!r}'
        data += more
    return data


def join_lines(source):
    """Skips to the beginning of a line, returns the number of the next."""
    while read_exactly(source, 1) != b'\n':
        pass
    text = read_exactly(source, LINE)
    number = int(text[:8])
    assert text == line(number)
    return number + 1


# Sockets


def test_unix_server(serial_vm):
    vm = serial_vm(f'socket,path={{dir}}/lines,{SERVER}',
                   f'socket,path={{dir}}/echo,{SERVER}').start()
    traffic = Traffic(vm.connect('lines'), vm.connect('echo'))
    run(vm)
    upgrade_twice(vm, traffic)


def test_tcp_server(serial_vm):
    tcp = f'socket,host=127.0.0.1,port=0,{SERVER}'
    vm = serial_vm(tcp, tcp).start()
    traffic = Traffic(*(connect(('127.0.0.1', port_of(vm, name)))
                        for name in ('lines', 'echo')))
    run(vm)
    upgrade_twice(vm, traffic)


def test_unix_client(serial_vm):
    vm = serial_vm('socket,path={dir}/lines', 'socket,path={dir}/echo')
    listeners = [listen(vm.dir / name) for name in ('lines', 'echo')]
    vm.start()
    traffic = Traffic(*map(accept, listeners))
    run(vm)
    upgrade_twice(vm, traffic)
    for listener in listeners:
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()


def test_reconnect_while_connected(serial_vm):
    vm = serial_vm('socket,path={dir}/lines,reconnect=1')
    listener = listen(vm.dir / 'lines')
    vm.start()
    traffic = Traffic(accept(listener))
    run(vm)
    upgrade_twice(vm, traffic)
    listener.setblocking(False)
    with pytest.raises(BlockingIOError):
        listener.accept()


def test_reconnect_while_disconnected(serial_vm):
    vm = serial_vm('socket,path={dir}/lines,reconnect=1')
    listener = listen(vm.dir / 'lines')
    vm.start()
    run(vm)
    client = accept(listener)
    join_lines(client)
    listener.close()
    (vm.dir / 'lines').unlink()
    client.close()
    wait_until(lambda: filename(vm, 'lines').startswith('disconnected'))
    vm.upgrade(noise=['Unable to connect character device lines'])
    client = accept(listen(vm.dir / 'lines'))
    join_lines(client)
    # and when the connection ends in the new process
    client.shutdown(socket.SHUT_RDWR)


def test_client_without_reconnect_stays_disconnected(serial_vm):
    vm = serial_vm('socket,path={dir}/lines')
    listener = listen(vm.dir / 'lines')
    vm.start()
    accept(listener).close()
    wait_until(lambda: filename(vm, 'lines').startswith('disconnected'))
    listener.close()
    upgrade(vm)


def test_waiting_server(serial_vm):
    vm = serial_vm(f'socket,path={{dir}}/lines,{SERVER}').start()
    before = os.stat(vm.dir / 'lines')
    run(vm)
    upgrade(vm)
    assert os.stat(vm.dir / 'lines') == before
    client = vm.connect('lines')
    join_lines(client)
    client.close()
    wait_until(lambda: filename(vm, 'lines').startswith('disconnected'))
    upgrade(vm)
    join_lines(vm.connect('lines'))


def test_client_in_the_backlog(serial_vm):
    """Somebody who waits behind another client gets his turn."""
    vm = serial_vm(f'socket,path={{dir}}/lines,{SERVER}').start()
    first = vm.connect('lines')
    second = vm.connect('lines')
    run(vm)
    join_lines(first)
    upgrade(vm)
    join_lines(first)
    first.close()
    join_lines(second)


def test_server_waits_only_once(serial_vm):
    vm = serial_vm('socket,path={dir}/lines,server=on,wait=on')
    clients = []

    def come():
        while not clients:
            try:
                clients.append(connect(str(vm.dir / 'lines')))
            except (FileNotFoundError, ConnectionRefusedError):
                time.sleep(0.005)       # until QEMU listens

    thread = threading.Thread(target=come, daemon=True)
    thread.start()
    vm.start()
    thread.join()
    clients[0].close()
    wait_until(lambda: filename(vm, 'lines').startswith('disconnected'))
    upgrade(vm)
    client = vm.connect('lines')
    run(vm)
    join_lines(client)


def test_path_is_removed_at_the_end(serial_vm):
    """As in a process that was never upgraded."""
    vm = serial_vm(f'socket,path={{dir}}/lines,{SERVER}').start()
    upgrade(vm)
    assert (vm.dir / 'lines').exists()
    vm.qmp.send('quit')
    vm.process.wait(TIMEOUT)
    assert not (vm.dir / 'lines').exists()


def test_socket_by_descriptor(serial_vm):
    ours, theirs = socket.socketpair()
    ours.settimeout(TIMEOUT)
    vm = serial_vm(f'socket,fd={theirs.fileno()}',
                   popen={'pass_fds': [theirs.fileno()]}).start()
    theirs.close()
    run(vm)
    upgrade_twice(vm, Traffic(ours))


def test_listener_by_descriptor(serial_vm, tmp_path):
    listener = listen(tmp_path / 'lines')
    vm = serial_vm(f'socket,fd={listener.fileno()},{SERVER}',
                   popen={'pass_fds': [listener.fileno()]}).start()
    upgrade(vm)
    traffic = Traffic(connect(str(tmp_path / 'lines')))
    run(vm)
    upgrade_twice(vm, traffic)


def test_client_that_does_not_read(serial_vm):
    """What the guest could not yet write goes out once, and once only."""
    vm = serial_vm(f'socket,path={{dir}}/lines,{SERVER}').start()
    client = vm.connect('lines')
    run(vm)
    wait_until(lambda: not lsr(vm, 0x3f8) & LSR_THRE)
    upgrade(vm)
    assert not lsr(vm, 0x3f8) & LSR_THRE
    upgrade(vm)
    checker = LineChecker(client)
    checker.wait_more(20000)


def test_client_that_is_gone(serial_vm):
    """The connection ends while nobody looks."""
    vm = serial_vm(f'socket,path={{dir}}/lines,{SERVER}').start()
    client = vm.connect('lines')
    run(vm)
    join_lines(client)
    ident = vm.qmp.send('exec-upgrade', {'binary': str(vm.setup.new)})
    client.close()
    vm.qmp.reply(ident)
    wait_until(lambda: filename(vm, 'lines').startswith('disconnected'))
    join_lines(vm.connect('lines'))


def test_telnet(serial_vm):
    telnet = f'socket,host=127.0.0.1,port=0,telnet=on,{SERVER}'
    vm = serial_vm(telnet, telnet).start()
    clients = [connect(('127.0.0.1', port_of(vm, name)))
               for name in ('lines', 'echo')]
    for client in clients:
        assert read_exactly(client, 12) == \
            b'\xff\xfb\x01\xff\xfb\x03\xff\xfb\x00\xff\xfd\x00'
    run(vm)
    upgrade_twice(vm, Traffic(*clients))


def test_telnet_command_cut_in_two(qtest_vm):
    vm = qtest_vm('-chardev', f'socket,id=s,path={{dir}}/s,telnet=on,{SERVER}',
                  '-device', 'isa-serial,chardev=s')
    client = vm.connect('s')
    read_exactly(client, 12)
    client.sendall(b'a\xff')
    assert vm.qtest.receive_serial(0x3f8) == b'a'
    upgrade(vm)
    client.sendall(b'\xffb\xff\xfd')
    assert vm.qtest.receive_serial(0x3f8) == b'\xff'
    assert vm.qtest.receive_serial(0x3f8) == b'b'
    upgrade(vm)
    client.sendall(b'\x01c')
    assert vm.qtest.receive_serial(0x3f8) == b'c'


def test_yank(serial_vm):
    vm = serial_vm(f'socket,path={{dir}}/lines,{SERVER}').start()
    client = vm.connect('lines')
    # the kernel has accepted it before QEMU has
    wait_until(lambda: 'disconnected' not in filename(vm, 'lines'))
    upgrade(vm)
    vm.qmp.execute('yank', instances=[{'type': 'chardev', 'id': 'lines'}])
    assert client.recv(1) == b''


# Sessions that can't be carried


@pytest.fixture
def certificate(tmp_path):
    """Options for a tls-creds-x509 object."""
    def make(name, basic, usage, *args):
        subprocess.run(
            ['openssl', 'req', '-x509', '-newkey', 'rsa:2048', '-nodes',
             '-days', '2', '-subj', '/CN=' + name,
             '-addext', 'basicConstraints=critical,' + basic,
             '-addext', 'keyUsage=critical,' + usage,
             '-keyout', tmp_path / f'{name}-key.pem',
             '-out', tmp_path / f'{name}-cert.pem', *args],
            check=True, capture_output=True)

    make('ca', 'CA:TRUE', 'keyCertSign')
    make('server', 'CA:FALSE', 'digitalSignature,keyEncipherment',
         '-CA', tmp_path / 'ca-cert.pem', '-CAkey', tmp_path / 'ca-key.pem')
    return f'tls-creds-x509,id=tls,dir={tmp_path},endpoint=server,' \
        'verify-peer=off'


def tls_connect(port):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context.wrap_socket(connect(('127.0.0.1', port)),
                               suppress_ragged_eofs=False)


def read_to_end(source):
    data = b''
    while more := source.recv(65536):
        data += more
    return data


TLS = f'socket,host=127.0.0.1,port=0,tls-creds=tls,{SERVER}'


def test_tls_is_dropped(serial_vm, certificate):
    vm = serial_vm(TLS, 'null', '-object', certificate).start()
    port = port_of(vm, 'lines')
    client = tls_connect(port)
    run(vm)
    data = read_exactly(client, LINE)
    name = '%s:%d' % client.getsockname()
    reader = []
    thread = threading.Thread(target=lambda: reader.append(
        read_to_end(client)), daemon=True)
    thread.start()
    vm.upgrade(dropped=[f'chardev lines: TLS client {name}'])
    thread.join(TIMEOUT)
    # close_notify, or the read would have failed
    check_lines(data + reader[0])
    assert port_of(vm, 'lines') == port
    client = tls_connect(port)
    join_lines(client)
    vm.upgrade(dropped=['chardev lines: TLS client %s:%d'
                        % client.getsockname()])


def test_tls_client_that_does_not_read(serial_vm, certificate):
    """The guest does not wait for ever for somebody who is gone."""
    vm = serial_vm(TLS, 'null', '-object', certificate).start()
    port = port_of(vm, 'lines')
    client = tls_connect(port)
    run(vm)
    wait_until(lambda: not lsr(vm, 0x3f8) & LSR_THRE)
    vm.upgrade(dropped=['chardev lines: TLS client %s:%d'
                        % client.getsockname()])
    wait_until(lambda: lsr(vm, 0x3f8) & LSR_THRE)
    join_lines(tls_connect(port))


def test_tls_client_without_reconnect_is_refused(serial_vm, certificate,
                                                 tmp_path):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / 'server-cert.pem',
                            tmp_path / 'server-key.pem')
    listener = socket.create_server(('127.0.0.1', 0))
    vm = serial_vm(
        f'socket,host=127.0.0.1,port={listener.getsockname()[1]},'
        'tls-creds=tls', 'null', '-object',
        certificate.replace('endpoint=server', 'endpoint=client'))
    sessions = []
    thread = threading.Thread(target=lambda: sessions.append(
        context.wrap_socket(listener.accept()[0], server_side=True)),
        daemon=True)
    thread.start()
    vm.start()
    thread.join(TIMEOUT)
    wait_until(lambda: not filename(vm, 'lines').startswith('disconnected'))
    vm.refused("chardev 'lines'", 'TLS client', 'reconnect')
    sessions[0].settimeout(TIMEOUT)
    run(vm)
    assert read_exactly(sessions[0], LINE) == line(0)


def websocket_connect(port):
    client = connect(('127.0.0.1', port))
    client.sendall(b'GET / HTTP/1.1\r\nHost: localhost\r\n'
                   b'Upgrade: websocket\r\nConnection: Upgrade\r\n'
                   b'Sec-WebSocket-Key: ' + base64.b64encode(bytes(16)) +
                   b'\r\nSec-WebSocket-Version: 13\r\n'
                   b'Sec-WebSocket-Protocol: binary\r\n\r\n')
    head = b''
    while not head.endswith(b'\r\n\r\n'):
        head += read_exactly(client, 1)
    assert head.startswith(b'HTTP/1.1 101'), head
    return client


def read_frame(client):
    """Opcode and content; RFC 6455, section 5.2."""
    first, size = read_exactly(client, 2)
    if size == 126:
        size, = struct.unpack('>H', read_exactly(client, 2))
    return first & 15, read_exactly(client, size)


def test_websocket_is_dropped(serial_vm):
    vm = serial_vm(f'socket,host=127.0.0.1,port=0,websocket=on,{SERVER}')
    vm.start()
    port = port_of(vm, 'lines')
    client = websocket_connect(port)
    wait_until(lambda: not filename(vm, 'lines').startswith('disconnected'))
    run(vm)
    opcode, data = read_frame(client)
    assert opcode == 2
    frames = []

    def read_all():
        while not frames or frames[-1][0] != 8:
            frames.append(read_frame(client))
        frames.append(client.recv(1))

    thread = threading.Thread(target=read_all, daemon=True)
    thread.start()
    vm.upgrade(dropped=['chardev lines: websocket client %s:%d'
                        % client.getsockname()])
    thread.join(TIMEOUT)
    assert frames[-1] == b''
    assert frames[-2] == (8, struct.pack('>H', 1001))
    assert all(opcode == 2 for opcode, _ in frames[:-2])
    check_lines(data + b''.join(text for _, text in frames[:-2]))
    client = websocket_connect(port)
    assert read_frame(client)[0] == 2


# pty, file, pipe, stdio, udp


def open_pty(vm, label):
    """Opens a pty, and waits until QEMU has noticed."""
    fd = os.open(filename(vm, label).removeprefix('pty:'),
                 os.O_RDWR | os.O_NOCTTY)
    os.write(fd, b'x')
    port = {'lines': 0x3f8, 'echo': 0x2f8}[label]
    wait_until(lambda: lsr(vm, port) & LSR_DR)
    return fd


def test_pty(serial_vm):
    vm = serial_vm('pty', f'socket,path={{dir}}/echo,{SERVER}').start()
    before = filename(vm, 'lines')
    traffic = Traffic(open_pty(vm, 'lines'), vm.connect('echo'))
    run(vm)
    upgrade_twice(vm, traffic)
    assert filename(vm, 'lines') == before
    assert vm.stderr.count('char device redirected') == 1


def test_pty_input(qtest_vm):
    vm = qtest_vm('-chardev', 'pty,id=lines',
                  '-device', 'isa-serial,chardev=lines')
    fd = os.open(filename(vm, 'lines').removeprefix('pty:'),
                 os.O_RDWR | os.O_NOCTTY)
    os.write(fd, b'abc')
    assert vm.qtest.receive_serial(0x3f8) == b'a'
    upgrade(vm)
    os.write(fd, b'd')
    for letter in b'b', b'c', b'd':
        assert vm.qtest.receive_serial(0x3f8) == letter
    os.close(fd)


def test_pty_without_user(serial_vm):
    """It can still be opened, under the same name."""
    vm = serial_vm('pty').start()
    upgrade(vm)
    traffic = Traffic(open_pty(vm, 'lines'))
    run(vm)
    upgrade_twice(vm, traffic)


def wait_growth(path):
    size = path.stat().st_size
    wait_until(lambda: path.stat().st_size > size + 5000)


@pytest.mark.parametrize('append', ['on', 'off'])
def test_file_and_logfile(serial_vm, append):
    vm = serial_vm('file,path={dir}/out,logfile={dir}/log,'
                   f'append={append},logappend={append}')
    for name in 'out', 'log':
        (vm.dir / name).write_bytes(b'before\n')
    vm.start()
    run(vm)
    for _ in range(2):
        wait_growth(vm.dir / 'out')
        upgrade(vm)
    wait_growth(vm.dir / 'out')
    vm.qmp.execute('stop')
    out, log = ((vm.dir / name).read_bytes() for name in ('out', 'log'))
    assert out == log
    if append == 'on':
        assert out.startswith(b'before\n')
        out = out.removeprefix(b'before\n')
    assert check_lines(out) > 300


def test_logfile_of_another_device(serial_vm):
    vm = serial_vm('null,logfile={dir}/log').start()
    run(vm)
    for _ in range(2):
        wait_growth(vm.dir / 'log')
        upgrade(vm)
    wait_growth(vm.dir / 'log')
    vm.qmp.execute('stop')
    check_lines((vm.dir / 'log').read_bytes())


def test_file_by_descriptor_set(serial_vm, tmp_path):
    with open(tmp_path / 'out', 'ab') as out:
        vm = serial_vm('file,path=/dev/fdset/3,append=on', 'null',
                       '-add-fd', f'fd={out.fileno()},set=3',
                       popen={'pass_fds': [out.fileno()]}).start()
    run(vm)
    for _ in range(2):
        wait_growth(tmp_path / 'out')
        upgrade(vm)
    vm.qmp.execute('stop')
    check_lines((tmp_path / 'out').read_bytes())


def test_pipe(serial_vm):
    vm = serial_vm('pipe,path={dir}/lines', 'pipe,path={dir}/echo')
    for name in 'lines', 'echo':
        for end in 'in', 'out':
            os.mkfifo(vm.dir / f'{name}.{end}')
    vm.start()
    fds = [os.open(vm.dir / name, flags) for name, flags in (
        ('lines.out', os.O_RDONLY), ('echo.out', os.O_RDONLY),
        ('echo.in', os.O_WRONLY))]
    run(vm)
    upgrade_twice(vm, Traffic(*fds))


def test_stdio(serial_vm):
    master, slave = os.openpty()
    attributes = termios.tcgetattr(slave)
    attributes[1] &= ~termios.ONLCR         # QEMU leaves that to the user
    termios.tcsetattr(slave, termios.TCSANOW, attributes)
    attributes = termios.tcgetattr(slave)
    flags = fcntl.fcntl(slave, fcntl.F_GETFL)
    # what the user has is not what the process ends with
    assert attributes[3] & termios.ECHO and not flags & os.O_NONBLOCK

    vm = serial_vm('null', 'stdio,signal=off',
                   popen={'stdin': slave, 'stdout': slave}).start()
    raw = termios.tcgetattr(slave)
    assert raw != attributes
    traffic = Traffic(None, master)
    run(vm)
    traffic.go_on()
    for _ in range(2):
        upgrade(vm)
        assert termios.tcgetattr(slave) == raw
        assert fcntl.fcntl(slave, fcntl.F_GETFL) & os.O_NONBLOCK
        traffic.go_on()
    traffic.finish()
    vm.qmp.send('quit')
    vm.process.wait(TIMEOUT)
    assert termios.tcgetattr(slave) == attributes
    assert fcntl.fcntl(slave, fcntl.F_GETFL) == flags


def test_udp(serial_vm):
    ours = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    ours.bind(('127.0.0.1', 0))
    ours.settimeout(TIMEOUT)
    spare = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    spare.bind(('127.0.0.1', 0))
    port = spare.getsockname()[1]
    spare.close()
    vm = serial_vm('null', 'udp,host=127.0.0.1,'
                   f'port={ours.getsockname()[1]},localaddr=127.0.0.1,'
                   f'localport={port}').start()
    ours.connect(('127.0.0.1', port))
    run(vm)

    def echo(data):
        return b''.join(ours.recv(4096) for _ in data)

    ours.send(b'hello')
    assert echo(b'hello') == b'hello'
    # one datagram of which the serial port takes only the beginning
    vm.qmp.execute('stop')
    ours.send(lines(0, 20))
    wait_until(lambda: lsr(vm, 0x2f8) & LSR_DR)
    upgrade(vm)
    ours.send(lines(20, 40))
    run(vm)
    assert echo(lines(0, 40)) == lines(0, 40)


def test_host_serial_port(serial_vm):
    """A terminal device of the host: a pty serves as one."""
    master, slave = os.openpty()
    tty.setraw(slave)
    vm = serial_vm('serial,path=' + os.ttyname(slave)).start()
    traffic = Traffic(master)
    run(vm)
    traffic.go_on()
    before = termios.tcgetattr(slave)
    upgrade(vm)
    assert termios.tcgetattr(slave) == before
    traffic.go_on()
    upgrade(vm)
    traffic.finish()


# ringbuf, mux, and others without a host side


def ringbuf_read(vm, name):
    return vm.qmp.execute('ringbuf-read', device=name, size=1 << 20)


def test_ringbuf(make_vm):
    vm = make_vm(['-chardev', 'ringbuf,id=full,size=1024',
                  '-chardev', 'ringbuf,id=part,size=1024',
                  '-chardev', 'ringbuf,id=empty,size=1024'],
                 kernel=None, memory='32').start()
    text = lines(0, 40).decode()
    vm.qmp.execute('ringbuf-write', device='full', data=text)
    vm.qmp.execute('ringbuf-write', device='part', data='some')
    upgrade(vm)
    assert ringbuf_read(vm, 'full') == text[-1024:]
    assert ringbuf_read(vm, 'part') == 'some'
    vm.qmp.execute('ringbuf-write', device='part', data='more')
    upgrade(vm)
    assert ringbuf_read(vm, 'part') == 'more'
    assert ringbuf_read(vm, 'full') == ringbuf_read(vm, 'empty') == ''


def test_ringbuf_of_a_guest(serial_vm):
    vm = serial_vm('ringbuf,size=4096').start()
    run(vm)
    wait_until(lambda: len(ringbuf_read(vm, 'lines')) == 4096)
    upgrade(vm)
    text = ringbuf_read(vm, 'lines').encode()
    start = text.index(b'\n') + 1
    check_lines(text[start:], int(text[start:start + 8]))


def test_mux(qtest_vm):
    """Focus, an escape sequence cut in two, and input nobody took yet."""
    vm = qtest_vm('-chardev', f'socket,id=m,path={{dir}}/m,mux=on,{SERVER}',
                  '-device', 'isa-serial,chardev=m,index=0',
                  '-device', 'isa-serial,chardev=m,index=1')
    first, second = 0x3f8, 0x2f8
    client = vm.connect('m')
    client.sendall(b'a\x01cxyz\x01')
    assert vm.qtest.receive_serial(second) == b'a'
    upgrade(vm)
    for letter in b'x', b'y', b'z':
        assert vm.qtest.receive_serial(first) == letter
    client.sendall(b'cb')
    assert vm.qtest.receive_serial(second) == b'b'
    upgrade(vm)
    client.sendall(b'd\x01ce')
    assert vm.qtest.receive_serial(second) == b'd'
    assert vm.qtest.receive_serial(first) == b'e'
    assert not vm.qtest.inb(second + 5) & LSR_DR
    for port, letter in (first, b'1'), (second, b'2'):
        vm.qtest.outb(port, letter[0])
        assert read_exactly(client, 1) == letter


def test_mux_with_traffic(serial_vm):
    vm = serial_vm(f'socket,path={{dir}}/lines,mux=on,{SERVER}').start()
    traffic = Traffic(vm.connect('lines'))
    run(vm)
    upgrade_twice(vm, traffic)
    assert {c['label'] for c in chardevs(vm)} >= {'lines', 'lines-base'}


def test_serial_mouse(qtest_vm):
    """It stays powered, and goes on with what it was saying."""
    vm = qtest_vm('-chardev', 'msmouse,id=m', '-device', 'isa-serial,chardev=m')
    vm.qtest.outb(0x3fc, 3)
    assert vm.qtest.receive_serial(0x3f8) == b'M'
    upgrade(vm)
    for byte in b'3\x08\x01$':
        assert vm.qtest.receive_serial(0x3f8) == bytes([byte])


def test_rebuilt_devices(make_vm):
    vm = make_vm(['-chardev', 'null,id=n', '-chardev', 'vc,id=v',
                  '-device', 'isa-serial,chardev=v'],
                 kernel=None, memory='32').start()
    upgrade(vm)


@pytest.mark.parametrize('kind', ['testdev', 'wctablet'])
def test_device_that_is_refused(make_vm, kind):
    vm = make_vm(['-chardev', f'{kind},id=it'], kernel=None,
                 memory='32').start()
    vm.refused(f"chardev 'it' is a 'chardev-{kind}'")


# Front-ends


def test_debugger(make_vm):
    vm = make_vm(['-chardev', f'socket,id=g,path={{dir}}/g,{SERVER}',
                  '-gdb', 'chardev:g'], kernel=None, memory='32')
    vm.args = [arg.format(dir=vm.dir) for arg in vm.args]
    vm.start()
    upgrade(vm)
    debugger = vm.connect('g')
    vm.qmp.wait_event('STOP')
    vm.refused('debugger')
    debugger.sendall(b'+$?#3f')
    answer = b''
    while not re.search(rb'\$T05.*#..', answer):
        answer += read_exactly(debugger, 1)
    debugger.close()
    wait_until(lambda: filename(vm, 'g').startswith('disconnected'))
    upgrade(vm)


def test_qtest(qtest_vm):
    vm = qtest_vm()
    now = vm.qtest.ask('clock_step 1000000')
    vm.qtest.send_bytes(b'clock_')
    vm.qmp.execute('query-version')
    upgrade(vm)
    vm.qtest.send_bytes(b'step 5\n')
    assert vm.qtest.answer() == now + 5
    vm.qtest.outb(0x3ff, 0)
    vm.qtest.ask('irq_intercept_in ioapic')
    vm.refused('qtest intercepts')


def virtio_ports(vm):
    """What QEMU knows of both sides of each port."""
    return re.findall(r'port (\d+), guest (\w+), host (\w+)',
                      vm.qmp.hmp('info qtree'))


VIRTIO = ['-device', 'virtio-serial-pci,max_ports=4',
          '-device', 'virtserialport,chardev=out,name=out,nr=1,id=out-port',
          '-device', 'virtserialport,chardev=in,name=in,nr=2,id=in-port']


def start_unread(vm, chardev, connect_out):
    """Starts a guest that fills a port whose client does not read; returns
    the client."""
    vm.args += ['-chardev', chardev, '-chardev',
                f'socket,id=in,path={vm.dir}/in,{SERVER}', *VIRTIO]
    vm.boot()
    vm.agent.wait_path('/dev/vport0p2')
    client = connect_out()
    vm.agent.ask('lines start /dev/vport0p1')
    wait_until(lambda: 'throttle on' in vm.qmp.hmp('info qtree'))
    return client


def test_virtio_serial(make_vm):
    """Neither the guest nor a monitor hears of an upgrade, a client that
    does not read gets all, and the port of one who is not there stays
    closed."""
    vm = make_vm()
    client = start_unread(vm, f'socket,id=out,path={vm.dir}/out,{SERVER}',
                          lambda: vm.connect('out'))
    vm.agent.ask('reader start /dev/vport0p2')
    for name in 'out-port', 'in-port':
        vm.qmp.wait_event('VSERPORT_CHANGE', id=name, open=True)
    ports = virtio_ports(vm)
    assert sorted(ports) == [('1', 'on', 'on'), ('2', 'on', 'off')]
    upgrade(vm)
    vm.agent.ask('counter')
    assert virtio_ports(vm) == ports
    upgrade(vm)
    vm.agent.ask('counter')
    vm.qmp.expect_silence()
    checker = LineChecker(client)
    incoming = vm.connect('in')
    wait_until(lambda: sorted(virtio_ports(vm))[1] == ('2', 'on', 'on'))
    incoming.sendall(lines(0, 500))
    upgrade(vm)
    incoming.sendall(lines(500, 1000))
    checker.wait_more(1000)
    checker.wait(vm.agent.ask('lines stop /dev/vport0p1')['next'])
    result = wait_until(lambda: (r := vm.agent.ask(
        'reader status /dev/vport0p2'))['lines'] >= 1000 and r)
    assert result == {'lines': 1000, 'errors': 0}
    vm.qmp.expect_silence()
    vm.agent.check_log()


def test_virtio_serial_drops_tls(make_vm, certificate):
    """The guest learns that the other side is gone, and that it is back."""
    vm = make_vm()
    vm.args += ['-object', certificate]
    client = start_unread(vm, with_id(TLS, 'out'),
                          lambda: tls_connect(port_of(vm, 'out')))
    port = client.getpeername()[1]
    vm.qmp.wait_event('VSERPORT_CHANGE', id='out-port', open=True)
    vm.upgrade(dropped=['chardev out: TLS client %s:%d'
                        % client.getsockname()])
    del vm.qmp.events[:]
    wait_until(lambda: ('1', 'on', 'off') in virtio_ports(vm) and
               'throttle on' not in vm.qmp.hmp('info qtree'))
    client = tls_connect(port)
    join_lines(client)
    assert ('1', 'on', 'on') in virtio_ports(vm)
    vm.qmp.expect_silence()


def test_virtio_serial_client_leaves(make_vm, monkeypatch):
    """QEMU forgets what it could not send to a client that leaves: after an
    upgrade, too, the queue knows of it (docs: traps)."""
    # What malloc() returns is not 0, as it often is by chance
    monkeypatch.setenv('MALLOC_PERTURB_', '90')
    monkeypatch.setenv('GLIBC_TUNABLES', 'glibc.malloc.tcache_count=0')
    vm = make_vm()
    client = start_unread(vm, f'socket,id=out,path={vm.dir}/out,{SERVER}',
                          lambda: vm.connect('out'))
    upgrade(vm)
    client.close()
    wait_until(lambda: ('1', 'on', 'off') in virtio_ports(vm))
    join_lines(vm.connect('out'))


def test_virtio_serial_paused(make_vm, certificate):
    """The next client comes before the guest goes on."""
    vm = make_vm()
    vm.args += ['-object', certificate]
    client = start_unread(vm, with_id(TLS, 'out'),
                          lambda: tls_connect(port_of(vm, 'out')))
    port = client.getpeername()[1]
    vm.qmp.execute('stop')
    vm.upgrade(dropped=['chardev out: TLS client %s:%d'
                        % client.getsockname()])
    client = tls_connect(port)
    vm.qmp.execute('cont')
    join_lines(client)
