# SPDX-License-Identifier: GPL-2.0-or-later
"""The other side of a guest's network: a network namespace with a bridge, or
a program that speaks Ethernet over a socket; and what is asked of both."""

import contextlib
import ctypes
import fcntl
import itertools
import os
import queue
import re
import select
import socket
import struct
import subprocess
import threading
import time
from pathlib import Path

from . import TIMEOUT
from .vm import die_with_parent

CLONE_NEWNET = 0x40000000
TUNSETIFF = 0x400454ca
IFF_TAP, IFF_NO_PI, IFF_MULTI_QUEUE, IFF_VNET_HDR = 2, 0x1000, 0x100, 0x4000
SIOCOUTQ = 0x5411

# Of this host in each test's network; the guest is .2
HOST, GUEST = '10.9.0.1', '10.9.0.2'
GUEST_MAC, HOST_MAC = '52:54:00:09:00:02', '52:54:00:09:00:01'

numbers = itertools.count()


def checksum(data):
    """RFC 1071."""
    data += bytes(len(data) % 2)
    total = sum(struct.unpack(f'!{len(data) // 2}H', data))
    while total >> 16:
        total = (total & 0xffff) + (total >> 16)
    return ~total & 0xffff


def echo_request(number, identifier=0, size=32):
    """ICMP, RFC 792: type 8; the number is in the data as well."""
    data = struct.pack('!I', number) + bytes(size - 4)
    head = struct.pack('!BBHHH', 8, 0, 0, identifier, number & 0xffff)
    sum_ = checksum(head + data)
    return head[:2] + struct.pack('!H', sum_) + head[4:] + data


def echo_reply_number(packet, identifier=0):
    """The number in an ICMP echo reply with that identifier, else None."""
    if len(packet) < 12 or packet[0] != 0 or \
            struct.unpack_from('!H', packet, 4)[0] != identifier:
        return None
    return struct.unpack_from('!I', packet, 8)[0]


class Pinger(threading.Thread):
    """Sends an echo request every @interval seconds and notes what comes
    back. @send and @receive (which waits at most a while, and may return
    None) take and give ICMP packets."""

    def __init__(self, send, receive, interval=0.01):
        super().__init__(daemon=True)
        self.send, self.receive, self.interval = send, receive, interval
        # What another has asked for can come to the same socket
        self.identifier = next(numbers) & 0xffff
        self.sent, self.answered = {}, {}       # number: time
        self.doubled = 0
        self.first = -1
        self.running = True
        self.error = None
        self.start()

    def run(self):
        try:
            number, due = 0, time.monotonic()
            while True:
                now = time.monotonic()
                if self.running and now >= due:
                    self.sent[number] = now
                    self.send(echo_request(number, self.identifier))
                    number, due = number + 1, now + self.interval
                packet = self.receive(max(due - now, 0.001))
                got = None if packet is None else \
                    echo_reply_number(packet, self.identifier)
                if got is not None:
                    self.doubled += got in self.answered
                    self.answered[got] = time.monotonic()
                if not self.running and (not self.unanswered() or
                                         now > self.end):
                    return
        except OSError as error:
            self.error = error

    def unanswered(self):
        """The times at which the pings were sent that have no answer."""
        return [t for n, t in self.sent.items()
                if n not in self.answered and n > self.first]

    def wait_answers(self, count):
        """Waits for @count more answers."""
        end, deadline = len(self.answered) + count, time.monotonic() + TIMEOUT
        while len(self.answered) < end:
            assert not self.error, self.error
            assert time.monotonic() < deadline, \
                f'{len(self.sent)} pings, {len(self.answered)} answers'
            time.sleep(0.005)

    def settle(self, steady=100):
        """Waits until the guest has answered the last @steady pings, all of
        them: while its interface comes up it answers some late, and then none
        for most of a second. What was lost before does not count."""
        deadline = time.monotonic() + TIMEOUT
        first = 0
        while True:
            assert not self.error, self.error
            assert time.monotonic() < deadline, 'the guest does not answer'
            last = max(self.answered, default=0)
            if last < first + steady:
                time.sleep(0.005)
            elif all(n in self.answered for n in range(first, last)):
                self.first = last
                return
            else:
                first = last

    def latency(self):
        """The longest time, in seconds, that an answer took."""
        return max(self.answered[n] - self.sent[n] for n in self.answered
                   if n >= self.first)

    def finish(self, patience=10):
        """Ends it; returns the times at which the pings without an answer
        were sent."""
        self.end = time.monotonic() + patience
        self.running = False
        self.join()
        assert not self.error, self.error
        assert not self.doubled
        return self.unanswered()


def check_losses(lost, upgrades, interval=0.01, latency=0):
    """Pings may be lost only if they were on the way, for which they have
    @latency, while an upgrade was; and no more than fit into its pause.
    @upgrades has (start, end, downtime in seconds)."""
    all_lost = lost
    for start, end, downtime in upgrades:
        inside = [t for t in lost if start - latency <= t <= end]
        assert len(inside) <= downtime / interval + 2, \
            f'{len(inside)} pings lost in {downtime} s, from ' \
            f'{inside[0] - start:.3f} to {inside[-1] - start:.3f} of ' \
            f'{end - start:.3f} s, latency {latency:.3f} s'
        lost = [t for t in lost if t not in inside]
    first = upgrades[0][0]
    assert not lost, (
        f'{len(lost)} of {len(all_lost)} pings lost outside of the upgrades: '
        f'at {[round(t - first, 3) for t in lost]}, upgrades at '
        f'{[round(s - first, 3) for s, _, _ in upgrades]}')


def timed_upgrade(vm, **kwargs):
    start = time.monotonic()
    result = vm.upgrade(**kwargs)
    return start, time.monotonic(), result['downtime'] / 1e6


class Namespace:
    """A network namespace with a bridge br0 that has the address HOST."""

    def __init__(self):
        self.name = f'eu{os.getpid()}-{next(numbers)}'
        self.path = f'/run/netns/{self.name}'
        subprocess.run(['ip', 'netns', 'add', self.name], check=True)
        self.run('ip link set lo up')
        self.run('ip link add br0 type bridge')
        self.run(f'ip addr add {HOST}/24 dev br0')
        self.run('ip link set br0 up')

    def run(self, command):
        """Runs a command in it."""
        subprocess.run(['ip', 'netns', 'exec', self.name, *command.split()],
                       check=True)

    def enter(self):
        """Moves the calling thread, or a process about to be executed."""
        fd = os.open(self.path, os.O_RDONLY)
        try:
            if ctypes.CDLL(None, use_errno=True).setns(fd, CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), 'setns')
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def inside(self):
        """What is opened in this context belongs to it."""
        home = os.open('/proc/thread-self/ns/net', os.O_RDONLY)
        self.enter()
        try:
            yield
        finally:
            ctypes.CDLL(None).setns(home, CLONE_NEWNET)
            os.close(home)

    def popen(self, **kwargs):
        """Arguments of a VM that is to run in it."""
        def prepare():
            die_with_parent()
            self.enter()
        return {'preexec_fn': prepare, **kwargs}

    def tap(self, name, queues=1, vnet_hdr=True):
        """Opens a tap that is on the bridge, returns a descriptor for each
        queue."""
        flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR * vnet_hdr | \
            IFF_MULTI_QUEUE * (queues > 1)
        fds = []
        with self.inside():
            for _ in range(queues):
                fds.append(os.open('/dev/net/tun', os.O_RDWR))
                fcntl.ioctl(fds[-1], TUNSETIFF,
                            struct.pack('16sH22x', name.encode(), flags))
        self.attach(name)
        return fds

    def attach(self, name):
        self.run(f'ip link set {name} master br0 up')

    def pinger(self, source=HOST, interval=0.01):
        """Pings the guest from the host's address @source."""
        with self.inside():
            sock = socket.socket(socket.AF_INET, socket.SOCK_RAW,
                                 socket.IPPROTO_ICMP)
        sock.bind((source, 0))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)

        def receive(timeout):
            if not select.select([sock], [], [], timeout)[0]:
                return None
            return sock.recv(65536)[20:]
        return Pinger(lambda p: sock.sendto(p, (GUEST, 0)), receive, interval)

    def listen(self, port=0):
        with self.inside():
            return socket.create_server((HOST, port))

    def close(self):
        subprocess.run(['ip', 'netns', 'del', self.name], check=True)


def guest_network(vm, address=GUEST, interface='eth0'):
    """Sets the guest's address."""
    vm.agent.wait_path(f'/sys/class/net/{interface}')
    vm.agent.sh(f'ip addr add {address}/24 dev {interface}; '
                f'ip link set {interface} up')


class EthernetPeer:
    """The other end of a socket that carries Ethernet frames: answers ARP
    for HOST and pings GUEST. @stream: a length comes before each frame
    (docs: -netdev socket and stream)."""

    def __init__(self, sock, stream, destination=None):
        self.sock, self.stream = sock, stream
        self.destination = destination
        self.buffer = b''
        if destination:
            # QEMU spins while it has a datagram that is not taken: poll()
            # calls a socket writable that is not connected
            self.datagrams = queue.SimpleQueue()
            threading.Thread(target=self.take_datagrams, daemon=True).start()
        self.host_mac = bytes.fromhex(HOST_MAC.replace(':', ''))
        self.guest_mac = bytes.fromhex(GUEST_MAC.replace(':', ''))

    def take_datagrams(self):
        with contextlib.suppress(OSError):
            while True:
                self.datagrams.put(self.sock.recv(1 << 16))

    def encode(self, frame):
        return struct.pack('!I', len(frame)) + frame if self.stream else frame

    def send_frame(self, frame):
        data = self.encode(frame)
        if self.destination:
            self.sock.sendto(data, self.destination)
        else:
            self.sock.sendall(data)

    def icmp_frame(self, packet):
        head = struct.pack('!BBHHHBBH4s4s', 0x45, 0, 20 + len(packet), 0, 0,
                           64, 1, 0, socket.inet_aton(HOST),
                           socket.inet_aton(GUEST))
        head = head[:10] + struct.pack('!H', checksum(head)) + head[12:]
        return self.guest_mac + self.host_mac + b'\x08\x00' + head + packet

    def send_icmp(self, packet):
        self.send_frame(self.icmp_frame(packet))

    def receive_frame(self, timeout):
        """The next frame, or None. Checks that a stream is whole."""
        if self.destination:
            with contextlib.suppress(queue.Empty):
                return self.datagrams.get(timeout=max(timeout, 0))
            return None
        deadline = time.monotonic() + timeout
        while True:
            if self.stream and len(self.buffer) >= 4:
                length = struct.unpack_from('!I', self.buffer)[0]
                assert 14 <= length <= 65550, \
                    f'{length} is no length: the stream lost its rhythm'
                if len(self.buffer) >= 4 + length:
                    frame = self.buffer[4:4 + length]
                    self.buffer = self.buffer[4 + length:]
                    assert frame[6:12] == self.guest_mac, frame[:14].hex()
                    return frame
            left = deadline - time.monotonic()
            if not select.select([self.sock], [], [], max(left, 0))[0]:
                return None
            data = self.sock.recv(1 << 20)
            if not data:
                raise EOFError('QEMU closed the connection')
            if not self.stream:
                return data
            self.buffer += data

    def receive_icmp(self, timeout):
        """Answers what the guest asks; an ICMP packet, or None."""
        frame = self.receive_frame(timeout)
        if frame is None:
            return None
        kind = frame[12:14]
        if kind == b'\x08\x06' and frame[20:22] == b'\x00\x01' and \
                frame[38:42] == socket.inet_aton(HOST):
            self.send_frame(
                frame[6:12] + self.host_mac + b'\x08\x06' + frame[14:20] +
                b'\x00\x02' + self.host_mac + frame[38:42] + frame[22:32])
        if kind == b'\x08\x00' and frame[23] == 1:
            return frame[34:]
        return None

    def pinger(self, interval=0.01):
        return Pinger(self.send_icmp, self.receive_icmp, interval)

    def ping(self, number=0, timeout=TIMEOUT):
        """Sends one ping and waits for the answer."""
        self.send_icmp(echo_request(number))
        self.wait_answer(number, timeout)

    def wait_answer(self, number, timeout=TIMEOUT):
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            packet = self.receive_icmp(deadline - time.monotonic())
            if packet and echo_reply_number(packet) == number:
                return
        raise AssertionError(f'no answer to ping {number}')

    def wait_read(self):
        """Waits until QEMU has read all that was sent."""
        deadline = time.monotonic() + TIMEOUT
        while struct.unpack('i', fcntl.ioctl(self.sock, SIOCOUTQ,
                                             bytes(4)))[0]:
            assert time.monotonic() < deadline
            time.sleep(0.005)


def attached_queues(ns, name):
    """How many queues of a tap are attached."""
    text = subprocess.run(['ip', '-n', ns.name, '-d', 'link', 'show', name],
                          check=True, capture_output=True, text=True).stdout
    return int(re.search(r' numqueues (\d+)', text.partition('tun')[2])[1])


def listening(vm):
    """The process's listening and datagram sockets, as {inode: (local
    address and port in hex, or path)}."""
    inodes = set()
    for fd in Path(f'/proc/{vm.pid}/fd').iterdir():
        with contextlib.suppress(OSError):
            found = re.fullmatch(r'socket:\[(\d+)\]', os.readlink(fd))
            if found:
                inodes.add(int(found[1]))
    result = {}
    net = Path(f'/proc/{vm.pid}/net')
    for kind in 'tcp', 'tcp6', 'udp', 'udp6':
        for text in (net / kind).read_text().splitlines()[1:]:
            words = text.split()
            if int(words[9]) in inodes and (words[3] == '0A' or
                                            kind.startswith('udp')):
                result[int(words[9])] = (kind, words[1])
    for text in (net / 'unix').read_text().splitlines()[1:]:
        words = text.split()
        if int(words[6]) in inodes and int(words[3], 16) & 0x10000:
            result[int(words[6])] = ('unix', words[7])
    return result


def listening_ports(vm):
    """{TCP port: inode}."""
    return {int(address.split(':')[1], 16): inode
            for inode, (kind, address) in listening(vm).items()
            if kind.startswith('tcp')}
