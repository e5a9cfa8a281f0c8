# SPDX-License-Identifier: GPL-2.0-or-later
"""Block exports: the same ones on the same sockets; clients connect again."""

import contextlib
import socket
import struct
import threading

import nbd
import pytest

from harness.checks import changes, check_disk, guest_lives_on, \
    wait_disk_writes, wait_until
from harness.qmp import QMPError

MIB = 1 << 20
PATTERN = bytes(range(1, 256)) * 514 + b'\0' * 2     # 128 KiB
DROPPED = "nbd client unix: of block export 'e'"


class Client:
    """A client of an NBD export, on a Unix socket."""
    def __init__(self, path, name='e', contexts=(), psk=None):
        self.nbd = nbd.NBD()
        self.nbd.set_export_name(name)
        for context in contexts:
            self.nbd.add_meta_context(context)
        if psk:
            self.nbd.set_tls(nbd.TLS_REQUIRE)
            self.nbd.set_tls_username('user')
            self.nbd.set_tls_psk_file(str(psk))
        self.nbd.connect_unix(str(path))

    def works(self, offset=0):
        self.nbd.pwrite(PATTERN, offset, nbd.CMD_FLAG_FUA)
        assert self.nbd.pread(len(PATTERN), offset) == PATTERN

    def has_pattern(self, offset=0):
        return self.nbd.pread(len(PATTERN), offset) == PATTERN

    def gone(self):
        with pytest.raises(nbd.Error):
            self.nbd.pread(512, 0)
        return True

    def dirty(self, context):
        """Offset and length of what a bitmap has."""
        extents = []

        def extent(name, offset, entries, error):
            assert name == context
            for length, flags in zip(entries[::2], entries[1::2]):
                if flags:
                    extents.append((offset, length))
                offset += length
        self.nbd.block_status(self.nbd.get_size(), 0, extent)
        return extents


@pytest.fixture
def exporter(make_vm):
    """A guest with an NBD server and a spare node."""
    def make(*args, export=True, server=None, **kwargs):
        vm = make_vm(**kwargs)
        vm.path = vm.dir / 'nbd'
        for name in 'spare', 'disk', 'image':
            with open(vm.dir / name, 'wb') as image:
                image.truncate(8 * MIB)
        vm.args += ['-blockdev', 'driver=raw,node-name=spare,file.driver=file,'
                    f'file.filename={vm.dir}/spare',
                    *(arg.format(dir=vm.dir) for arg in args)]
        vm.boot()
        vm.qmp.execute('nbd-server-start', addr={
            'type': 'unix', 'data': {'path': str(vm.path)}}, **(server or {}))
        if export:
            vm.qmp.execute('block-export-add', type='nbd', id='e', name='e',
                           node_name='spare', writable=True)
        return vm
    return make


def exports(vm):
    return vm.qmp.execute('query-block-exports')


def commands(vm):
    """The commands by which exports would be made."""
    return [c for c in vm.qmp.execute('query-exec-upgrade')['configuration']
            if c['execute'] in ('nbd-server-start', 'block-export-add')]


def upgrade(vm, **kwargs):
    """Exports, and what they were made with, are the same afterwards."""
    before = exports(vm), commands(vm)
    with guest_lives_on(vm):
        result = vm.upgrade(**kwargs)
    assert (exports(vm), commands(vm)) == before
    return result


def test_clients_connect_again(exporter):
    vm = exporter()
    vm.qmp.execute('block-export-add', type='nbd', id='r', name='read',
                   description='what is there', node_name='spare')
    client, reader = Client(vm.path), Client(vm.path, 'read')
    client.works()
    upgrade(vm, dropped=[DROPPED, DROPPED.replace("'e'", "'r'")])
    assert client.gone() and reader.gone()

    client, reader = Client(vm.path), Client(vm.path, 'read')
    assert client.has_pattern() and reader.has_pattern()
    assert reader.nbd.is_read_only()
    assert reader.nbd.get_export_description() == 'what is there'
    client.works(MIB)
    assert {'the NBD server was started', "block export 'e' was added",
            "block export 'r' was added"} <= set(changes(vm))
    client.nbd.shutdown()
    reader.nbd.shutdown()
    wait_until(lambda: not upgrade_dropped(vm))

    vm.qmp.execute('block-export-del', id='r')
    assert [e['id'] for e in exports(vm)] == ['e']
    vm.qmp.execute('nbd-server-stop')
    assert not vm.path.exists() and not exports(vm)
    upgrade(vm)
    with open(vm.dir / 'spare', 'rb') as image:
        data = image.read()
    assert data[:len(PATTERN)] == data[MIB:MIB + len(PATTERN)] == PATTERN


def upgrade_dropped(vm):
    """A client that has left may be there for a moment yet."""
    return vm.qmp.execute('exec-upgrade',
                          binary=str(vm.setup.new))['dropped']


def test_socket_is_never_closed(exporter):
    """A client that connects at any time is not refused."""
    vm = exporter()
    stop, outcomes = threading.Event(), []

    def connect():
        while not stop.is_set():
            with socket.socket(socket.AF_UNIX) as sock:
                try:
                    sock.connect(str(vm.path))
                    outcomes.append('greeted' if sock.recv(8) == b'NBDMAGIC'
                                    else 'ended')
                except ConnectionResetError:
                    outcomes.append('ended')
                except OSError as error:
                    outcomes.append(error)
    thread = threading.Thread(target=connect)
    thread.start()
    try:
        for _ in range(5):
            before = len(outcomes)
            vm.qmp.execute('exec-upgrade', binary=str(vm.setup.new))
            wait_until(lambda: len(outcomes) > before + 5)
    finally:
        stop.set()
        thread.join()
    assert set(outcomes) <= {'greeted', 'ended'}
    assert outcomes.count('greeted') > 10


def test_written_is_there(exporter):
    """A client that writes all the time, on the disk that the guest writes."""
    vm = exporter(
        '-blockdev', 'driver=raw,node-name=disk,file.driver=file,'
        'file.filename={dir}/disk',
        '-device', 'virtio-blk-pci,drive=disk,share-rw=on', export=False)
    vm.agent.wait_path('/dev/vda')
    vm.qmp.execute('block-export-add', type='nbd', id='e', name='e',
                   node_name='disk', writable=True)
    vm.agent.ask('disk start /dev/vda 3 4')
    stop, written, failures = threading.Event(), {}, []

    def write():
        client, number = None, 0
        while not stop.is_set():
            number += 1
            block = 4 * MIB + number % 1024 * 4096
            try:
                client = client or Client(vm.path)
                client.nbd.pwrite(number.to_bytes(8, 'big') * 512, block)
                written[block] = number
            except nbd.Error as error:
                failures.append(error)
                client = None
                # May be written or not
                written.pop(block, None)
    thread = threading.Thread(target=write)
    thread.start()
    try:
        for _ in range(5):
            count = len(failures)
            before = max(written.values(), default=0)
            wait_until(lambda: max(written.values(), default=0) > before + 100)
            wait_disk_writes(vm)
            vm.qmp.execute('exec-upgrade', binary=str(vm.setup.new))
            wait_until(lambda: len(failures) > count)
    finally:
        stop.set()
        thread.join()
    check_disk(vm)
    assert written
    with open(vm.dir / 'disk', 'rb') as image:
        for block, number in written.items():
            image.seek(block)
            assert image.read(4096) == number.to_bytes(8, 'big') * 512


def test_client_that_does_not_read(exporter):
    """It would keep the guest paused for as long as it likes."""
    vm = exporter()
    client = Client(vm.path)
    for number in range(8):
        # Of holes, replies would be short
        client.nbd.pwrite(b'x' * MIB, number * MIB)
    for number in range(64):
        # Nobody calls poll(), so that the replies stay where they are
        client.nbd.aio_pread(nbd.Buffer(MIB), number % 8 * MIB)
    with guest_lives_on(vm):
        vm.refused("a client of block export 'e' does not read its replies")
    del client
    wait_until(lambda: not upgrade_dropped(vm))
    Client(vm.path).works()


@pytest.mark.parametrize('length', [14, 28 + 1000])
def test_request_cut_in_half(exporter, length):
    """A part of a request's header, or of its data."""
    vm = exporter()
    Client(vm.path).works()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(vm.path))
        sock.recv(18, socket.MSG_WAITALL)
        # NBD_FLAG_C_FIXED_NEWSTYLE | _NO_ZEROES, NBD_OPT_EXPORT_NAME
        sock.sendall(struct.pack('>IQII', 3, 0x49484156454F5054, 1, 1) + b'e')
        sock.recv(10, socket.MSG_WAITALL)
        request = struct.pack('>IHHQQI', 0x25609513, 0, 1, 7, MIB, 4096) + \
            b'y' * 4096
        sock.sendall(request[:length])
        if length > 28:
            with guest_lives_on(vm):
                vm.refused("block export 'e'", 'send the rest of a request')
            sock.sendall(request[length:])
            assert sock.recv(16, socket.MSG_WAITALL)[4:] == \
                struct.pack('>IQ', 0, 7)
        upgrade(vm, dropped=[DROPPED])
        with contextlib.suppress(ConnectionResetError):
            while sock.recv(64):
                pass
    client = Client(vm.path)
    assert client.has_pattern()
    # of half a request, nothing is done
    assert client.nbd.pread(4096, MIB) == \
        (b'y' if length > 28 else b'\0') * 4096


def test_paused(exporter):
    """Clients don't depend on the guest."""
    vm = exporter()
    vm.qmp.execute('stop')
    for number in range(2):
        client = Client(vm.path)
        client.works(number * MIB)
        vm.upgrade(dropped=[DROPPED])
        assert client.gone()
    client = Client(vm.path)
    assert client.has_pattern() and client.has_pattern(MIB)
    vm.qmp.execute('cont')
    upgrade(vm, dropped=[DROPPED])


def test_handshake_that_does_not_end(exporter):
    vm = exporter()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(vm.path))
        assert sock.recv(8) == b'NBDMAGIC'
        upgrade(vm, dropped=['nbd client that has not chosen a block export'])
        while sock.recv(64):
            pass
    Client(vm.path).works()


@pytest.fixture
def bitmaps(exporter, qemu_img):
    """An export with the bitmaps that it offers to its clients."""
    vm = exporter(export=False)
    qemu_img('create', '-f', 'qcow2', vm.dir / 'image', '8M')
    vm.qmp.execute('blockdev-add', driver='qcow2', node_name='image', file={
        'driver': 'file', 'filename': str(vm.dir / 'image')})
    for name, persistent in ('stays', True), ('goes', False):
        vm.qmp.execute('block-dirty-bitmap-add', node='image', name=name,
                       persistent=persistent)
    vm.qmp.execute('block-export-add', type='nbd', id='e', name='e',
                   node_name='image', writable=True,
                   bitmaps=['stays', 'goes'], allocation_depth=True)
    vm.contexts = 'qemu:dirty-bitmap:stays', 'qemu:dirty-bitmap:goes'
    return vm


def test_bitmaps(bitmaps):
    vm = bitmaps

    def dirty():
        return [Client(vm.path, contexts=[c]).dirty(c) for c in vm.contexts]
    Client(vm.path).works(MIB)
    before = dirty()
    assert before == [[(MIB, len(PATTERN))]] * 2
    wait_until(lambda: not upgrade_dropped(vm))
    assert dirty() == before
    Client(vm.path).works(2 * MIB)
    after = dirty()
    assert after == [[(MIB, len(PATTERN)), (2 * MIB, len(PATTERN))]] * 2
    wait_until(lambda: not upgrade_dropped(vm))
    assert dirty() == after
    vm.qmp.execute('block-export-del', id='e', mode='hard')
    vm.qmp.wait_event('BLOCK_EXPORT_DELETED')
    for name in 'stays', 'goes':
        vm.qmp.execute('block-dirty-bitmap-remove', node='image', name=name)


def test_failed_upgrade_is_not_noticed(bitmaps, broken_binary):
    vm = bitmaps
    context = vm.contexts[0]
    client = Client(vm.path, contexts=[context])
    client.works(MIB)
    with socket.socket(socket.AF_UNIX) as waiting, guest_lives_on(vm):
        waiting.connect(str(vm.path))
        for _ in range(3):
            with pytest.raises(QMPError, match="can't execute"):
                vm.qmp.execute('exec-upgrade', binary=str(broken_binary))
            client.works(2 * MIB)
            assert client.dirty(context) == [(MIB, len(PATTERN)),
                                             (2 * MIB, len(PATTERN))]
    upgrade(vm, dropped=[DROPPED])
    assert Client(vm.path).has_pattern(2 * MIB)


@pytest.mark.parametrize('fixed', [False, True])
def test_iothread(exporter, fixed):
    vm = exporter('-object', 'iothread,id=io', export=False)
    vm.qmp.execute('block-export-add', type='nbd', id='e', name='e',
                   node_name='spare', writable=True, iothread='io',
                   fixed_iothread=fixed)
    for number in range(3):
        client = Client(vm.path)
        client.works(number * MIB)
        upgrade(vm, dropped=[DROPPED])
    client = Client(vm.path)
    assert all(client.has_pattern(number * MIB) for number in range(3))


def test_ends_with_the_medium(exporter):
    """nbd-server-add ties the export to a drive."""
    vm = exporter('-drive', 'if=none,id=cd,media=cdrom,format=raw,'
                  'file={dir}/spare', '-device', 'ide-cd,drive=cd',
                  export=False)
    vm.qmp.execute('nbd-server-add', device='cd')
    upgrade(vm)
    assert Client(vm.path, 'cd').nbd.get_size() == 8 * MIB
    vm.qmp.execute('eject', device='cd', force=True)
    vm.qmp.wait_event('BLOCK_EXPORT_DELETED', id='cd')
    assert not exports(vm)


def test_snapshot_below_an_export(exporter):
    """The node that is exported is another than the one it was made with."""
    vm = exporter()
    Client(vm.path).works()
    vm.qmp.execute('blockdev-snapshot-sync', node_name='spare',
                   snapshot_node_name='top', snapshot_file=str(vm.dir / 'top'))
    assert exports(vm)[0]['node-name'] == 'top'
    wait_until(lambda: not upgrade_dropped(vm))
    client = Client(vm.path)
    assert client.has_pattern()
    client.works(MIB)
    with open(vm.dir / 'spare', 'rb') as image:
        image.seek(MIB)
        assert not any(image.read(len(PATTERN)))
    upgrade(vm, dropped=[DROPPED])
    assert Client(vm.path).has_pattern(MIB)


def test_node_that_only_its_export_has(exporter):
    vm = exporter('-drive', 'if=none,id=d,node-name=n,format=raw,'
                  'file={dir}/image', export=False)
    vm.qmp.execute('block-export-add', type='nbd', id='e', name='e',
                   node_name='n', writable=True)
    vm.qmp.hmp('drive_del d')
    for number in range(2):
        client = Client(vm.path)
        client.works(number * MIB)
        upgrade(vm, dropped=[DROPPED])
    vm.qmp.execute('block-export-del', id='e')
    vm.qmp.wait_event('BLOCK_EXPORT_DELETED')
    wait_until(lambda: not [n for n in vm.qmp.execute(
        'query-named-block-nodes') if n['node-name'] == 'n'])


def test_tls(exporter, tmp_path):
    (tmp_path / 'keys.psk').write_text('user:' + '5a' * 32)
    vm = exporter('-object', f'tls-creds-psk,id=tls,endpoint=server,'
                  f'dir={tmp_path}', '-object', 'authz-list,id=authz',
                  server={'tls_creds': 'tls', 'tls_authz': 'authz',
                          'max_connections': 7})
    arguments = commands(vm)[0]['arguments']
    assert arguments['tls-creds'] == 'tls'
    assert arguments['tls-authz'] == 'authz'
    assert arguments['max-connections'] == 7
    psk = tmp_path / 'keys.psk'
    Client(vm.path, psk=psk).works()
    for _ in range(2):
        wait_until(lambda: not upgrade_dropped(vm))
        assert commands(vm)[0]['arguments'] == arguments
        assert Client(vm.path, psk=psk).has_pattern()
        with pytest.raises(nbd.Error):
            Client(vm.path)
    vm.qmp.execute('object-del', id='tls')
    vm.refused('the TLS credentials of the NBD server were deleted')


def test_tcp(exporter):
    vm = exporter(export=False)
    vm.qmp.execute('nbd-server-stop')
    vm.qmp.execute('nbd-server-start', addr={
        'type': 'inet', 'data': {'host': '127.0.0.1', 'port': '0'}})
    vm.qmp.execute('block-export-add', type='nbd', id='e', name='e',
                   node_name='spare', writable=True)
    where = commands(vm)[0]['arguments']['addr']['data']
    client = nbd.NBD()
    client.set_export_name('e')
    client.connect_tcp('127.0.0.1', where['port'])
    client.pwrite(PATTERN, 0)
    result = upgrade_dropped(vm)
    assert len(result) == 1 and result[0].startswith('nbd client tcp:')
    client = nbd.NBD()
    client.set_export_name('e')
    client.connect_tcp('127.0.0.1', where['port'])
    assert client.pread(len(PATTERN), 0) == PATTERN


def test_vhost_user_blk(exporter, make_vm):
    """Another QEMU has the export as its guest's disk, and connects again."""
    vm = exporter(export=False)
    path = vm.dir / 'vhost'
    vm.qmp.execute('block-export-add', type='vhost-user-blk', id='v',
                   node_name='spare', writable=True, num_queues=1,
                   addr={'type': 'unix', 'path': str(path)})
    user = make_vm(['-object', 'memory-backend-memfd,id=ram,size=192M,share=on',
                   '-chardev', f'socket,id=c,path={path},reconnect=1',
                   '-device', 'vhost-user-blk-pci,chardev=c,num-queues=1'],
                   machine='pc,memory-backend=ram').boot()
    user.agent.wait_path('/dev/vda')
    user.agent.ask('disk start /dev/vda 3 8')
    for _ in range(3):
        wait_disk_writes(user)
        upgrade(vm, dropped=["vhost-user client unix: of block export 'v'"])
    wait_disk_writes(user)
    check_disk(user)
    user.kill()
    vm.qmp.execute('block-export-del', id='v', mode='hard')
    vm.qmp.wait_event('BLOCK_EXPORT_DELETED')
    assert not path.exists()
    upgrade(vm)
