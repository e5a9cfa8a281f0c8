# SPDX-License-Identifier: GPL-2.0-or-later
"""Monitors go on where they were: a client sees a pause, and nothing else.

Most tests look at the raw stream. None needs a guest: the firmware runs.
"""

import array
import fcntl
import json
import os
import re
import select
import socket
import termios
import threading
import time
import tty

import pytest

from harness import TIMEOUT
from harness.checks import held_open, wait_until
from harness.stream import LineSocket, connect

PROMPT = b'(qemu) '
BANNER = b'monitor - type'
NEXT = b'\x01c'          # gives the focus to the next user of a mux
LAST = 'the last'

# What a client sees of the upgrade of a running guest, and what the one that
# asked sees
PAUSE = ['STOP', 'RESUME']
SEEN = [*PAUSE, 'EXEC_UPGRADE']
ANSWERED = [*PAUSE, 'return', 'EXEC_UPGRADE']


@pytest.fixture
def prepare(make_vm):
    """Makes a VM without a guest, not started."""
    def make(args=(), **kwargs):
        return make_vm(args, kernel=None, agent=False,
                       **{'memory': '16', **kwargs})
    return make


@pytest.fixture
def start(prepare):
    """Starts a VM with QMP monitors of the given names beside its own."""
    def run(*names, args=(), **kwargs):
        vm = prepare(args, **kwargs)
        for name in names:
            vm.args += vm.monitor(name)
        return vm.start()
    return run


class Raw(LineSocket):
    """A QMP client that shows each message in the order of its coming."""

    def __init__(self, sock, *capabilities, negotiate=True):
        super().__init__(sock)
        self.greeting = self.message()
        assert 'QMP' in self.greeting
        if negotiate:
            self.ask('qmp_capabilities', enable=capabilities)

    def message(self):
        return json.loads(self.read_line(time.monotonic() + TIMEOUT))

    def send(self, *messages):
        self.send_bytes(b''.join(json.dumps(m).encode() for m in messages))

    def ask(self, command, **arguments):
        """The answer to a command; there must be nothing before it."""
        self.send({'execute': command, 'arguments': arguments})
        return self.message()['return']

    def rest(self, command='query-name'):
        """All messages up to the answer to one more command."""
        self.send({'execute': command, 'id': LAST})
        messages = [self.message()]
        while messages[-1].get('id') != LAST:
            messages.append(self.message())
        return messages[:-1]


def kinds(messages):
    """The events' names, and 'return' or 'error' for answers."""
    return [m.get('event') or next(k for k in ('return', 'error', 'QMP')
                                   if k in m) for m in messages]


def upgrade(vm, *events):
    return vm.upgrade(events=events)


def upgrade_request(vm, **members):
    return {'execute': 'exec-upgrade',
            'arguments': {'binary': vm.setup.new}, **members}


def wait_read(sock):
    """Waits until the other side has read all that was sent (Linux:
    unix(7), SIOCOUTQ)."""
    def unread():
        data = array.array('i', [0])
        fcntl.ioctl(sock, termios.TIOCOUTQ, data)
        return data[0]
    wait_until(lambda: unread() == 0)


class Terminal(LineSocket):
    """An HMP client."""

    def __init__(self, sock, keys=b'', banners=1):
        super().__init__(sock)
        self.send_bytes(keys)
        assert self.until_prompt().count(BANNER) == banners

    def until(self, end):
        """All text up to and with @end."""
        deadline = time.monotonic() + TIMEOUT
        while (pos := self.buffer.find(end)) < 0:
            self.receive(deadline)
        text = bytes(self.buffer[:pos + len(end)])
        del self.buffer[:pos + len(end)]
        self.log.append(f'< {text!r}')
        return text

    def until_prompt(self):
        return self.until(PROMPT)

    def ask(self, keys):
        """What a command prints, without the echo of the keys."""
        self.send_bytes(keys + b'\n')
        return self.output()

    def output(self):
        return self.until_prompt().partition(b'\r\n')[2] \
            .removesuffix(PROMPT).decode()


def version(vm):
    number = vm.qmp.execute('query-version')['qemu']
    return '{major}.{minor}.{micro}'.format(**number)


def hmp_monitor(name):
    return ['-mon', f'chardev={name},mode=readline']


def start_hmp(prepare, name='hmp', **kwargs):
    vm = prepare(**kwargs)
    vm.args += ['-chardev', f'socket,id={name},path={vm.dir}/{name},'
                'server=on,wait=off', *hmp_monitor(name)]
    vm.start()
    return vm, Terminal(vm.connect(name))


# What a monitor can be connected to: each function adds the options of the
# character device @name to a VM, and returns how to connect once it runs.

class Tty:
    """Some of a socket's methods for a terminal."""

    def __init__(self, fd):
        self.fd = fd
        tty.setraw(fd)
        self.timeout = None

    def settimeout(self, timeout):
        self.timeout = timeout

    def recv(self, size):
        if not select.select([self.fd], [], [], self.timeout)[0]:
            raise TimeoutError
        return os.read(self.fd, size)

    def sendall(self, data):
        while data:
            data = data[os.write(self.fd, data):]

    def close(self):
        os.close(self.fd)


def chardev_filename(vm, name):
    return next(c['filename'] for c in vm.qmp.execute('query-chardev')
                if c['label'] == name)


def accept(listener):
    listener.settimeout(TIMEOUT)
    with listener:
        return listener.accept()[0]


def unix_server(vm, name):
    vm.args += ['-chardev', f'socket,id={name},path={vm.dir}/{name},'
                'server=on,wait=off']
    return lambda: vm.connect(name)


def tcp_server(vm, name):
    vm.args += ['-chardev', f'socket,id={name},host=127.0.0.1,port=0,'
                'server=on,wait=off']
    return lambda: connect(('127.0.0.1', int(re.search(
        r':(\d+),server', chardev_filename(vm, name))[1])))


def unix_client(vm, name):
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f'{vm.dir}/{name}-listener')
    listener.listen()
    vm.args += ['-chardev', f'socket,id={name},path={vm.dir}/{name}-listener']
    return lambda: accept(listener)


def tcp_client(vm, name):
    listener = socket.create_server(('127.0.0.1', 0))
    vm.args += ['-chardev', f'socket,id={name},host=127.0.0.1,'
                f'port={listener.getsockname()[1]}']
    return lambda: accept(listener)


def pass_fd(vm, sock):
    vm.popen.setdefault('pass_fds', []).append(sock.fileno())
    vm.passed = getattr(vm, 'passed', []) + [sock]      # open until then


def fd_client(vm, name):
    ours, theirs = socket.socketpair()
    pass_fd(vm, theirs)
    vm.args += ['-chardev', f'socket,id={name},fd={theirs.fileno()}']
    return lambda: (theirs.close(), ours)[1]


def fd_server(vm, name):
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f'{vm.dir}/{name}')
    listener.listen()
    pass_fd(vm, listener)
    vm.args += ['-chardev', f'socket,id={name},fd={listener.fileno()},'
                'server=on,wait=off']
    return lambda: (listener.close(), vm.connect(name))[1]


def pty(vm, name):
    vm.args += ['-chardev', f'pty,id={name}']
    return lambda: Tty(os.open(
        chardev_filename(vm, name).removeprefix('pty:'),
        os.O_RDWR | os.O_NOCTTY))


def stdio(vm, name):
    master, slave = os.openpty()
    tty.setraw(slave)
    vm.popen.update(stdin=slave, stdout=slave)
    vm.args += ['-chardev', f'stdio,id={name},signal=off']
    return lambda: (os.close(slave), Tty(master))[1]


def stdio_socket(vm, name):
    ours, theirs = socket.socketpair()
    vm.popen.update(stdin=theirs, stdout=theirs)
    vm.args += ['-chardev', f'stdio,id={name},signal=off']
    return lambda: (theirs.close(), ours)[1]


def mux(vm, name):
    vm.args += ['-chardev', f'socket,id={name},path={vm.dir}/{name},'
                'server=on,wait=off,mux=on']
    return lambda: vm.connect(name)


LINKS = [unix_server, tcp_server, unix_client, tcp_client, fd_client,
         fd_server, pty, stdio, stdio_socket, mux]
each_link = pytest.mark.parametrize('link', LINKS, ids=lambda f: f.__name__)


# Every kind of connection

@each_link
def test_qmp_on(prepare, link):
    vm = prepare()
    connect_it = link(vm, 'second')
    vm.args += ['-mon', 'chardev=second,mode=control']
    vm.start()
    raw = Raw(connect_it())
    for _ in range(2):
        upgrade(vm)
        assert kinds(raw.rest()) == SEEN
    raw.send(upgrade_request(vm, id=7))
    messages = raw.rest()
    assert kinds(messages) == ANSWERED
    assert messages[-2]['id'] == 7
    assert raw.ask('query-exec-upgrade')['count'] == 3


@each_link
def test_hmp_on(prepare, link):
    vm = prepare()
    connect_it = link(vm, 'hmp')
    vm.args += hmp_monitor('hmp')
    vm.start()
    hmp = Terminal(connect_it())
    for _ in range(2):
        hmp.send_bytes(b'info ver')
        hmp.until(b'r\x1b[K')
        upgrade(vm)
        assert hmp.ask(b'sion').startswith(version(vm))
    text = hmp.ask(b'exec_upgrade ' + vm.setup.new.encode())
    assert 'Upgraded from' in text
    vm.qmp.wait_event('EXEC_UPGRADE')
    assert 'Upgrades so far: 3\r\n' in hmp.ask(b'info exec-upgrade')


def test_all_at_once(prepare):
    vm = prepare()
    links = [link for link in LINKS if link is not stdio_socket]
    connectors = [(mode, link(vm, f'{mode}-{link.__name__}'))
                  for link in links for mode in ('control', 'readline')
                  if link is not stdio or mode == 'readline']
    for arg in vm.args[:]:
        if found := re.match(r'\w+,id=((control|readline)-\w+)', arg):
            vm.args += ['-mon', f'chardev={found[1]},mode={found[2]}']
    vm.start()
    clients = [(Raw if mode == 'control' else Terminal)(connect_it())
               for mode, connect_it in connectors]
    for _ in range(2):
        upgrade(vm)
        for client in clients:
            if isinstance(client, Raw):
                assert kinds(client.rest()) == SEEN
            else:
                assert client.ask(b'info version').startswith(version(vm))


# The reply

@pytest.mark.parametrize('request_id', [
    'a', '', 0, -1, 2 ** 63, 1.5, None, True, [], {},
    '\u00e9"\\\u0000\U0001f600',
    [1, {'a': [None, 'b']}], {'id': {'id': ['x'] * 100}}],
    ids=lambda i: json.dumps(i)[:20])
def test_reply_has_the_id(start, request_id):
    vm = start('second')
    raw = Raw(vm.connect('second'))
    raw.send(upgrade_request(vm, id=request_id))
    messages = raw.rest()
    assert kinds(messages) == ANSWERED
    assert json.dumps(messages[-2]['id']) == json.dumps(request_id)


def test_reply_has_no_id_if_the_request_has_none(start):
    vm = start('second')
    raw = Raw(vm.connect('second'))
    raw.send(upgrade_request(vm))
    messages = raw.rest()
    assert kinds(messages) == ANSWERED
    assert 'id' not in messages[-2]
    assert messages[-2]['return'] == messages[-1]['data']['result']


def test_deep_id(start):
    """As deep as QEMU's parser takes it."""
    vm = start('second')
    raw = Raw(vm.connect('second'))
    request = json.dumps(upgrade_request(vm, id='ID')).encode()
    deep = b'[' * 1023 + b']' * 1023
    raw.send_bytes(request.replace(b'"ID"', deep))
    lines = [raw.read_line(time.monotonic() + TIMEOUT) for _ in ANSWERED]
    assert deep in lines[-2].replace(b' ', b''), lines[-2][:200]


def test_pretty(prepare):
    vm = prepare()
    vm.args += ['-chardev', f'socket,id=second,path={vm.dir}/second,'
                'server=on,wait=off', '-mon',
                'chardev=second,mode=control,pretty=on']
    vm.start()
    sock = vm.connect('second')
    stream = LineSocket(sock)

    def message():
        text, deadline = b'', time.monotonic() + TIMEOUT
        while not text.endswith(b'\n}\r\n'):
            text += stream.read_line(deadline)
        return json.loads(text)

    assert 'QMP' in message()
    stream.send_bytes(b'{"execute": "qmp_capabilities"}')
    assert message() == {'return': {}}
    stream.send_bytes(json.dumps(upgrade_request(vm, id=3)).encode())
    messages = [message() for _ in ANSWERED]
    assert kinds(messages) == ANSWERED
    assert messages[-2]['id'] == 3


def test_human_monitor_command(start):
    vm = start('second')
    raw = Raw(vm.connect('second'))
    raw.send({'execute': 'human-monitor-command', 'id': ['h'], 'arguments': {
        'command-line': f'exec_upgrade {vm.setup.new}'}})
    messages = raw.rest()
    assert kinds(messages) == ANSWERED
    result = messages[-1]['data']['result']
    assert messages[-2]['id'] == ['h']
    assert re.fullmatch(
        r'Upgraded from {} to {}\r\nGuest paused for \d+\.\d\d\d ms\r\n'
        .format(re.escape(result['from']), re.escape(result['to'])),
        messages[-2]['return'])
    vm.qmp.wait_event('EXEC_UPGRADE')
    assert 'Upgrades so far: 1\r\n' in vm.qmp.hmp('info exec-upgrade')


def test_error_has_the_id_and_comes_once(start, tmp_path):
    vm = start('second')
    raw = Raw(vm.connect('second'))
    raw.send(upgrade_request(vm, id=9, arguments={'binary': str(tmp_path)}))
    messages = raw.rest()
    assert sorted(kinds(messages)) == ['EXEC_UPGRADE', 'error']
    error = next(m for m in messages if 'error' in m)
    assert error['id'] == 9 and str(tmp_path) in error['error']['desc']
    event = next(m for m in messages if 'event' in m)
    assert event['data']['status'] == 'failed'
    raw.send(upgrade_request(vm, id=10))
    assert kinds(raw.rest()) == ANSWERED


def test_not_out_of_band(start):
    vm = start('second')
    raw = Raw(vm.connect('second'), 'oob')
    raw.send({'exec-oob': 'exec-upgrade', 'id': 1})
    messages = raw.rest()
    assert kinds(messages) == ['error']
    assert 'does not support OOB' in messages[0]['error']['desc']


def test_asker_is_gone(start):
    vm = start('second', 'third')
    other = Raw(vm.connect('third'))
    raw = Raw(vm.connect('second'))
    raw.send(upgrade_request(vm, id=1))
    # QEMU drops the commands of a client that goes before their turn
    messages = [other.message()]
    raw.close()
    messages += [other.message() for _ in SEEN[1:]]
    assert kinds(messages) == SEEN
    again = Raw(vm.connect('second'))
    assert kinds(again.rest()) == []
    again.send(upgrade_request(vm, id=2))
    assert kinds(again.rest()) == ANSWERED


def test_next_client_gets_no_reply(start, tmp_path):
    """Nor an event before its greeting: one that connects in place of the one
    that asked, while the new QEMU is held where it reads a file."""
    secret = tmp_path / 'secret'
    secret.write_text('of nobody')
    vm = start('second', args=['-object', f'secret,id=s,file={secret}'])
    for _ in range(10):
        raw = Raw(vm.connect('second'))
        with held_open(secret) as wait_opened:
            raw.send(upgrade_request(vm, id=1))
            wait_opened()
            raw.close()
            sock = vm.connect('second')
        raw = Raw(sock)
        assert set(kinds(raw.rest())) <= {'EXEC_UPGRADE'}
        raw.close()


def test_two_ask_at_once(start):
    vm = start('second', 'third')
    clients = [Raw(vm.connect(name)) for name in ('second', 'third')]
    for i, client in enumerate(clients):
        client.send(upgrade_request(vm, id=i))
    for i, client in enumerate(clients):
        messages = [client.message() for _ in [*SEEN, *ANSWERED]]
        answers = [m for m in messages if 'event' not in m]
        assert kinds(answers) == ['return'] and answers[0]['id'] == i
        assert kinds(m for m in messages if 'event' in m) == SEEN * 2
        assert not client.rest()


# Capabilities

def test_new_client_is_greeted(start):
    vm = start('second')
    upgrade(vm)
    raw = Raw(vm.connect('second'))
    assert raw.greeting['QMP']['version'] == vm.qmp.execute('query-version')
    assert raw.greeting['QMP']['capabilities'] == ['oob']
    raw.close()
    raw = Raw(vm.connect('second'), 'oob')
    upgrade(vm)
    assert kinds(raw.rest()) == SEEN


def test_not_negotiated_yet(start):
    vm = start('second')
    raw = Raw(vm.connect('second'), negotiate=False)
    upgrade(vm)
    raw.send({'execute': 'query-version'})
    assert 'Expecting capabilities negotiation' in \
        raw.message()['error']['desc']
    raw.ask('qmp_capabilities', enable=['oob'])
    assert raw.rest() == []
    upgrade(vm)
    assert kinds(raw.rest()) == SEEN


@pytest.mark.parametrize('capabilities', [(), ('oob',)], ids=['none', 'oob'])
def test_capabilities_stay(start, capabilities):
    vm = start('second')
    raw = Raw(vm.connect('second'), *capabilities)
    for _ in range(2):
        upgrade(vm)
        assert kinds(raw.rest()) == SEEN
        raw.send({'exec-oob': 'yank', 'id': 'o',
                  'arguments': {'instances': []}})
        answer = raw.message()
        assert answer['id'] == 'o'
        assert ('return' in answer) == bool(capabilities), answer
    raw.send({'execute': 'qmp_capabilities'})
    assert raw.message()['error']['class'] == 'CommandNotFound'


# Input

@pytest.mark.parametrize('capabilities', [(), ('oob',)], ids=['none', 'oob'])
@pytest.mark.parametrize('separator', [b'', b'\r\n', b' \t'],
                         ids=['nothing', 'line', 'blank'])
def test_commands_behind_it_in_the_same_write(start, capabilities, separator):
    vm = start('second')
    raw = Raw(vm.connect('second'), *capabilities)
    before = raw.ask('query-version')
    requests = [upgrade_request(vm, id='u'),
                *({'execute': 'query-version', 'id': i} for i in range(20)),
                {'execute': 'query-exec-upgrade', 'id': 'q'}]
    raw.send_bytes(separator.join(json.dumps(r).encode() for r in requests))
    messages = [m for m in raw.rest() if 'event' not in m]
    assert [m['id'] for m in messages] == ['u', *range(20), 'q']
    assert messages[-1]['return']['count'] == 1
    new = vm.qmp.execute('query-version')
    assert all(m['return'] == new for m in messages[1:-1])
    if vm.setup.old != vm.setup.new:
        assert new != before


TRICKY = (br'''{ "execute": "query-version" , 'id' : [ "}\"]{'\\", '\'"{[',
  "\u00e9\u20AC\ud83d\ude00 \n\t\/" , -1.5e+10 , 0, 12, true,null , false ,
  { "a{" : { "b[" : [ [ ] , { } ] } } , "''' +
          '\u00e9\u20ac\U0001f600'.encode() + br'''" ] }''')


def test_cut_everywhere(start):
    """One monitor for each place; all commands are complete after it."""
    cuts = range(len(TRICKY))
    vm = start(*(f'm{cut}' for cut in cuts))
    whole = Raw(vm.connect('m0'))
    whole.send_bytes(TRICKY)
    expected = whole.message()
    whole.close()
    clients = [Raw(vm.connect(f'm{cut}')) for cut in cuts]
    for cut, client in zip(cuts, clients):
        client.send_bytes(TRICKY[:cut])
        wait_read(client.sock)
    upgrade(vm)
    new = vm.qmp.execute('query-version')
    for cut, client in zip(cuts, clients):
        client.send_bytes(TRICKY[cut:])
        messages = client.rest()
        assert kinds(messages) == [*SEEN, 'return'], (cut, TRICKY[:cut])
        assert messages[-1] == {**expected, 'return': new}


def test_cut_again_and_again(start):
    """The same message is carried by several upgrades, a part each time."""
    vm = start('second')
    raw = Raw(vm.connect('second'))
    parts = [TRICKY[i:i + 20] for i in range(0, len(TRICKY), 20)]
    for part in parts[:-1]:
        raw.send_bytes(part)
        wait_read(raw.sock)
        upgrade(vm)
    raw.send_bytes(parts[-1])
    messages = raw.rest()
    assert kinds(messages) == SEEN * \
        (len(parts) - 1) + ['return']
    assert '}"]{\'\\' in messages[-1]['id']


@pytest.mark.parametrize('wrong', [
    b'{"execute": \x01', b'{"a": 00', b'{"execute": nonsense, "b": @',
    b'}', b'[1 2', b'{"execute": "query-version"'],
    ids=['control', 'number', 'character', 'brace', 'comma', 'unfinished'])
def test_wrong_input_is_the_same_error(start, wrong):
    """A cut in erroneous input: the same errors as without an upgrade."""
    rest = b' , "x", : 5 ]}\xff'
    vm = start('second', 'third')
    plain = Raw(vm.connect('third'))
    plain.send_bytes(wrong)
    wait_read(plain.sock)
    plain.send_bytes(rest)
    expected = plain.rest()
    assert 'error' in kinds(expected)
    plain.close()

    raw = Raw(vm.connect('second'))
    raw.send_bytes(wrong)
    wait_read(raw.sock)
    upgrade(vm)
    raw.send_bytes(rest)
    messages = [m for m in raw.rest() if 'event' not in m]
    assert messages == expected


def test_queued_requests(start):
    """Commands that were read, but not executed yet."""
    vm = start('busy', 'asker', 'second', 'single')
    busy, asker, single = (Raw(vm.connect(n))
                           for n in ('busy', 'asker', 'single'))
    raw = Raw(vm.connect('second'), 'oob')
    bad = [{'execute': 'no-such-command', 'id': 'b'}, {'id': 'c'}]
    # The main thread is busy; the monitors' own thread goes on reading
    busy.send({'execute': 'human-monitor-command', 'arguments': {
        'command-line': 'xp /400000xb 0'}})
    wait_read(busy.sock)
    asker.send(upgrade_request(vm, id='u'))
    single.send({'execute': 'query-name', 'id': 's'})
    for i in range(5):
        raw.send({'execute': 'query-exec-upgrade', 'id': i})
    raw.send(*bad)
    raw.send_bytes(b'{"execute": "query-name", "id": "wrong", }')
    for sock in asker.sock, single.sock, raw.sock:
        wait_read(sock)
    busy.sock.setblocking(False)
    with pytest.raises(BlockingIOError):
        busy.sock.recv(1)
    assert 'return' in busy.message()

    messages = [m for m in raw.rest() if 'event' not in m]
    assert kinds(messages) == ['return'] * 5 + ['error'] * 3
    assert [m.get('id') for m in messages] == [*range(5), 'b', 'c', None]
    # The first may have had its turn before the upgrade
    assert [m['return']['count'] for m in messages[1:5]] == [1] * 4
    assert messages[5]['error']['class'] == 'CommandNotFound'
    assert 'JSON parse error' in messages[7]['error']['desc']
    assert [m['id'] for m in asker.rest() if 'event' not in m] == ['u']
    assert [m['id'] for m in single.rest() if 'event' not in m] == ['s']


def test_clients_that_never_pause(start):
    """Each request gets one answer, in order, through many upgrades."""
    vm = start('one', 'two', 'three', 'four')
    clients = [Raw(vm.connect(name), *caps) for name, caps in (
        ('one', ()), ('two', ('oob',)), ('three', ()), ('four', ('oob',)))]
    done = threading.Event()
    counts = {}

    def talk(client):
        sent = received = 0
        while received < sent or not done.is_set():
            while sent < received + 30 and not done.is_set():
                client.send({'execute': 'query-name', 'id': sent})
                sent += 1
            message = client.message()
            if 'event' not in message:
                assert message == {'return': {}, 'id': received}
                received += 1
        counts[client] = received

    threads = [threading.Thread(target=talk, args=[c]) for c in clients]
    for thread in threads:
        thread.start()
    try:
        for _ in range(10):
            upgrade(vm)
    finally:
        done.set()
        for thread in threads:
            thread.join(TIMEOUT)
    assert len(counts) == len(clients) and all(counts.values())


# Output

def test_output_that_was_not_read(start):
    """A client sends many commands and reads nothing until much later."""
    count = 40
    vm = start('second', 'third')
    raw, third = (Raw(vm.connect(name)) for name in ('second', 'third'))
    schema = third.ask('query-qmp-schema')
    raw.send(*({'execute': 'query-qmp-schema', 'id': i}
               for i in range(count)))
    wait_read(raw.sock)
    upgrade(vm)
    upgrade(vm)
    messages = raw.rest()
    answers = [m for m in messages if 'event' not in m]
    assert [m['id'] for m in answers] == list(range(count))
    events = [m for m in messages if 'event' in m]
    assert kinds(events) == SEEN * 2
    # There was far more than fits into a socket
    assert messages.index(events[0]) > 10
    assert all(m['return'] == schema for m in answers[:10])


def test_hmp_output_that_was_not_read(prepare):
    vm, hmp = start_hmp(prepare)
    expected = hmp.ask(b'help')
    hmp.send_bytes(b'help\n' * 100)
    wait_read(hmp.sock)
    upgrade(vm)
    for _ in range(100):
        assert hmp.output() == expected
    assert hmp.ask(b'info version').startswith(version(vm))


# Events

def test_events_of_other_clients(start):
    vm = start('second', 'third')
    clients = [Raw(vm.connect(name)) for name in ('second', 'third')]
    for i in range(3):
        result = upgrade(vm)
        for client in clients:
            messages = client.rest()
            assert kinds(messages) == SEEN, i
            assert messages[-1]['data'] == {'status': 'completed',
                                           'result': result}
            stamps = [(m['timestamp']['seconds'],
                       m['timestamp']['microseconds']) for m in messages]
            assert stamps == sorted(stamps)


def test_events_of_a_paused_guest(start):
    vm = start('second', args=['-S'])
    raw = Raw(vm.connect('second'))
    raw.send(upgrade_request(vm))
    assert kinds(raw.rest()) == ['return', 'EXEC_UPGRADE']
    raw.send({'execute': 'cont'})
    assert sorted(kinds(raw.rest())) == ['RESUME', 'return']
    raw.send({'execute': 'stop'})
    assert sorted(kinds(raw.rest())) == ['STOP', 'return']
    raw.send(upgrade_request(vm))
    assert kinds(raw.rest()) == ['return', 'EXEC_UPGRADE']


def test_delayed_event_is_not_lost(prepare):
    """RTC_CHANGE comes at most once a second, of a clock that stands."""
    vm = prepare(accel='qtest')
    vm.args += ['-qtest', f'unix:{vm.dir}/qtest,server=on,wait=off',
                '-qtest-log', 'none']
    vm.start()
    qtest = LineSocket(vm.connect('qtest'))

    def set_rtc(hours):
        for port, value in ((0x70, 4), (0x71, hours)):
            qtest.send_bytes(f'outb {port:#x} {value:#x}\n'.encode())
            assert qtest.read_line(time.monotonic() + TIMEOUT) == b'OK\n'

    set_rtc(0x02)
    first = vm.qmp.wait_event('RTC_CHANGE')
    set_rtc(0x05)
    set_rtc(0x07)
    vm.qmp.expect_silence()
    vm.dry_run()        # after which it is still held back
    upgrade(vm, 'RTC_CHANGE')
    second = vm.qmp.wait_event('RTC_CHANGE')
    hours = (second['data']['offset'] - first['data']['offset']) / 3600
    assert round(hours) == 5
    assert 'RTC_CHANGE' not in kinds(vm.qmp.events)


# Descriptors

def getfd(raw, name, file):
    raw_bytes = json.dumps({'execute': 'getfd', 'arguments': {
        'fdname': name}}).encode()
    socket.send_fds(raw.sock, [raw_bytes], [file.fileno()])


def check_dump(vm, raw, name, path):
    """Uses a descriptor that was named: writes guest memory to it."""
    raw.send({'execute': 'dump-guest-memory', 'arguments': {
        'paging': False, 'protocol': f'fd:{name}'}})
    assert 'return' in kinds(raw.rest())
    assert path.read_bytes().startswith(b'\x7fELF')
    assert path.stat().st_size > 16 << 20


def test_named_descriptors(start, tmp_path):
    vm = start('second', 'third')
    raw, third = (Raw(vm.connect(name)) for name in ('second', 'third'))
    path = tmp_path / 'dump'
    with open(path, 'wb') as dump, open('/dev/null', 'rb') as null:
        for name, file in (('n', null), ('dump', dump), ('m', null)):
            getfd(raw, name, file)
            assert raw.message() == {'return': {}}
    upgrade(vm)
    upgrade(vm)
    third.send({'execute': 'closefd', 'arguments': {'fdname': 'dump'}})
    assert 'error' in kinds(third.rest()), 'names are one monitor\'s own'
    check_dump(vm, raw, 'dump', path)
    for name in 'n', 'm':
        assert raw.ask('closefd', fdname=name) == {}
        raw.send({'execute': 'closefd', 'arguments': {'fdname': name}})
        assert 'error' in raw.message()


def test_named_descriptor_outlives_its_client(start, tmp_path):
    vm = start('second')
    raw = Raw(vm.connect('second'))
    with open(tmp_path / 'dump', 'wb') as dump:
        getfd(raw, 'dump', dump)
    assert raw.message() == {'return': {}}
    raw.close()
    upgrade(vm)
    check_dump(vm, Raw(vm.connect('second')), 'dump', tmp_path / 'dump')


def test_descriptor_of_a_command_that_is_cut(start, tmp_path):
    command = b'{"execute": "getfd", "arguments": {"fdname": "dump"}}'
    vm = start('second')
    raw = Raw(vm.connect('second'))
    with open(tmp_path / 'dump', 'wb') as dump:
        socket.send_fds(raw.sock, [command[:20]], [dump.fileno()])
    wait_read(raw.sock)
    upgrade(vm)
    raw.send_bytes(command[20:])
    messages = raw.rest()
    assert kinds(messages) == ['STOP', 'RESUME', 'EXEC_UPGRADE', 'return']
    check_dump(vm, raw, 'dump', tmp_path / 'dump')


def test_descriptors_do_not_pile_up(start):
    vm = start('second', 'third')
    raw, third = (Raw(vm.connect(name)) for name in ('second', 'third'))
    with open('/dev/null', 'rb') as null:
        getfd(raw, 'n', null)
    raw.message()
    third.send(*({'execute': 'query-qmp-schema'} for _ in range(20)))

    def descriptors():
        return sorted(os.listdir(f'/proc/{vm.pid}/fd'), key=int)

    upgrade(vm)
    before = descriptors()
    for _ in range(5):
        upgrade(vm)
    assert descriptors() == before


# HMP

def test_hmp_asks(prepare):
    vm, hmp = start_hmp(prepare)
    text = hmp.ask(b'exec_upgrade ' + vm.setup.new.encode())
    result = vm.qmp.wait_event('EXEC_UPGRADE')['data']['result']
    assert text == (
        f"Upgraded from {result['from']} to {result['to']}\r\n"
        f"Guest paused for {result['downtime'] / 1000:.3f} ms\r\n")
    text = hmp.ask(b'info exec-upgrade')
    for part in 'Upgrades so far: 1', result['to'], result['binary']:
        assert part in text


def test_hmp_asks_without_binary(prepare):
    vm, hmp = start_hmp(prepare, binary=None)
    assert 'Upgraded from' in hmp.ask(b'exec_upgrade')
    assert vm.qmp.wait_event('EXEC_UPGRADE')['data']['result']['binary'] == \
        vm.binary


def test_hmp_commands_behind_it_in_the_same_write(prepare):
    vm, hmp = start_hmp(prepare)
    hmp.send_bytes(b'exec_upgrade ' + vm.setup.new.encode()
                   + b'\ninfo version\ninfo exec-upgrade\ninfo na')
    assert 'Upgraded' in hmp.output()
    assert hmp.output().startswith(version(vm))
    assert 'Upgrades so far: 1\r\n' in hmp.output()
    assert 'ame' not in hmp.ask(b'me')


def test_hmp_error(prepare):
    vm, hmp = start_hmp(prepare)
    text = hmp.ask(b'exec_upgrade /no/such/file')
    assert text.startswith('Error: ') and '/no/such/file' in text
    text = hmp.ask(b'info exec-upgrade')
    assert 'Upgrades so far: 0\r\n' in text and '/no/such/file' in text
    assert 'Upgraded' in hmp.ask(b'exec_upgrade ' + vm.setup.new.encode())


def test_hmp_asker_is_gone(prepare):
    vm, hmp = start_hmp(prepare)
    hmp.send_bytes(b'exec_upgrade ' + vm.setup.new.encode() + b'\n')
    wait_read(hmp.sock)
    hmp.close()
    vm.qmp.wait_event('EXEC_UPGRADE')
    hmp = Terminal(vm.connect('hmp'))
    assert 'Upgrades so far: 1\r\n' in hmp.ask(b'info exec-upgrade')


def test_hmp_asks_while_qmp_clients_never_pause(prepare):
    vm = prepare()
    vm.args += vm.monitor('second')
    vm.args += ['-chardev', f'socket,id=hmp,path={vm.dir}/hmp,'
                'server=on,wait=off', *hmp_monitor('hmp')]
    vm.start()
    hmp, raw = Terminal(vm.connect('hmp')), Raw(vm.connect('second'), 'oob')
    done = threading.Event()
    answers = []

    def talk():
        sent = 0
        while len(answers) < sent or not done.is_set():
            while sent < len(answers) + 20 and not done.is_set():
                raw.send({'execute': 'query-name', 'id': sent})
                sent += 1
            message = raw.message()
            if 'event' not in message:
                answers.append(message['id'])

    thread = threading.Thread(target=talk)
    thread.start()
    try:
        for _ in range(5):
            assert 'Upgraded' in hmp.ask(b'exec_upgrade '
                                         + vm.setup.new.encode())
    finally:
        done.set()
        thread.join(TIMEOUT)
    assert answers and answers == list(range(len(answers)))


def test_hmp_line_is_carried(prepare):
    """A line with the cursor in its middle, shown as it was."""
    vm, hmp = start_hmp(prepare)
    hmp.send_bytes(b'xinfo versionx\b\x01\x1b[C')
    wait_read(hmp.sock)
    hmp.until(b'\x1b[C')
    upgrade(vm)
    hmp.send_bytes(b'\b')
    # The terminal shows the rest of the line in the place of the old one
    assert hmp.until(b'\x1b[K') == b'\x1b[Dinfo version\x1b[K'
    assert hmp.ask(b'').startswith(version(vm))


@pytest.mark.parametrize('cut', [1, 2], ids=['escape', 'bracket'])
def test_hmp_escape_sequence_is_cut(prepare, cut):
    vm, hmp = start_hmp(prepare)
    hmp.ask(b'info version')
    hmp.ask(b'info name')
    keys = b'\x1b[A'
    hmp.send_bytes(keys[:cut])
    wait_read(hmp.sock)
    upgrade(vm)
    hmp.send_bytes(keys[cut:])
    hmp.send_bytes(keys)
    assert hmp.ask(b'').startswith(version(vm))


def test_hmp_history(prepare):
    vm, hmp = start_hmp(prepare)
    lines = [b'info version', b'info \xc3\xa9', b'info name']
    for line in lines:
        hmp.ask(line)
    hmp.send_bytes(b'\x1b[A\x1b[A')     # shows the second
    wait_read(hmp.sock)
    upgrade(vm)
    hmp.send_bytes(b'\x1b[A')           # and from there the first
    assert hmp.ask(b'').startswith(version(vm))
    assert hmp.ask(b'\x1b[A\x1b[A') == ''     # info name
    upgrade(vm)
    hmp.send_bytes(b'\x1b[A' * 3)
    hmp.until(b'info \xc3\xa9')


def test_hmp_history_outlives_its_client(prepare):
    vm, hmp = start_hmp(prepare)
    hmp.ask(b'info version')
    hmp.close()
    upgrade(vm)
    hmp = Terminal(vm.connect('hmp'))
    assert hmp.ask(b'\x1b[A').startswith(version(vm))


def test_hmp_cpu(prepare):
    vm, hmp = start_hmp(prepare, smp='2')
    hmp.ask(b'cpu 1')
    assert '* CPU #1' in hmp.ask(b'info cpus')
    upgrade(vm)
    assert '* CPU #1' in hmp.ask(b'info cpus')


# Several on one connection

def start_mux(prepare, monitors):
    """A serial port and monitors share a connection. The serial port is the
    last that was attached, and has the focus."""
    vm = prepare()
    vm.args += ['-chardev', f'socket,id=m,path={vm.dir}/m,server=on,wait=off,'
                'mux=on', '-serial', 'chardev:m', *hmp_monitor('m') * monitors]
    vm.start()
    # The first banner had to wait until its monitor got the focus
    return vm, Terminal(vm.connect('m'), keys=NEXT, banners=2)


def test_mux_of_monitors(prepare):
    """Each has its own history; the one with the focus keeps it."""
    vm, hmp = start_mux(prepare, 2)
    assert hmp.ask(b'info version').startswith(version(vm))
    hmp.ask(b'info name')
    upgrade(vm)
    assert hmp.ask(b'\x1b[A\x1b[A').startswith(version(vm))
    hmp.send_bytes(NEXT)
    hmp.until_prompt()
    assert 'running' in hmp.ask(b'info status')
    upgrade(vm)
    assert 'running' in hmp.ask(b'\x1b[A\x1b[A')
    hmp.send_bytes(NEXT + NEXT)
    hmp.until_prompt()
    assert hmp.ask(b'\x1b[A').startswith(version(vm))


def test_mux_focus_elsewhere(prepare):
    """The serial port has the focus: the monitor stays silent."""
    vm, hmp = start_mux(prepare, 1)
    hmp.send_bytes(b'info ve' + NEXT)
    hmp.until(b'e\x1b[K')
    wait_read(hmp.sock)
    upgrade(vm)
    upgrade(vm)
    hmp.send_bytes(b'info status\n')    # to the serial port
    hmp.send_bytes(NEXT)
    assert hmp.until_prompt() == b'\r\n' + PROMPT
    assert hmp.ask(b'info version').startswith(version(vm))


# What can't be done

def test_refused_while_a_monitor_waits_for_a_password(prepare):
    vm = prepare()
    vm.args += ['-chardev', f'socket,id=hmp,path={vm.dir}/hmp,'
                'server=on,wait=off', *hmp_monitor('hmp'),
                '-vnc', f'unix:{vm.dir}/vnc,password=on']
    vm.start()
    hmp = Terminal(vm.connect('hmp'))
    hmp.send_bytes(b'change vnc password\n')
    hmp.until(b'Password: ')
    vm.refused("monitor 'hmp' is waiting for a password")
    hmp.ask(b'secret')
    upgrade(vm)
    assert hmp.ask(b'info version').startswith(version(vm))


def test_sessions_go_on_after_execve_failed(start, broken_binary):
    """All was saved, and is undone: the old process goes on with it."""
    vm = start('second', 'cut', 'slow')
    raw, cut, slow = (Raw(vm.connect(name), 'oob')
                      for name in ('second', 'cut', 'slow'))
    cut.send_bytes(TRICKY[:50])
    slow.send(*({'execute': 'query-qmp-schema', 'id': i} for i in range(20)))
    for client in cut, slow:
        wait_read(client.sock)
    raw.send({'execute': 'exec-upgrade', 'id': 1,
              'arguments': {'binary': str(broken_binary)}},
             {'execute': 'query-exec-upgrade', 'id': 2})
    messages = raw.rest()
    assert kinds(messages) == [*PAUSE, 'EXEC_UPGRADE', 'error', 'return']
    assert messages[2]['data']['status'] == 'failed'
    assert [m['id'] for m in messages[3:]] == [1, 2]
    assert messages[4]['return']['count'] == 0
    with open('/dev/null', 'rb') as null:
        getfd(raw, 'n', null)       # the monitors' thread reads again
    assert raw.message() == {'return': {}}
    raw.send(upgrade_request(vm))
    assert kinds(raw.rest()) == ANSWERED

    cut.send_bytes(TRICKY[50:])
    assert kinds(cut.rest()) == [*SEEN, *SEEN, 'return']
    messages = slow.rest()
    assert [m['id'] for m in messages if 'event' not in m] == list(range(20))
    assert kinds(m for m in messages if 'event' in m) == [*SEEN, *SEEN]
