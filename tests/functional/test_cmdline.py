# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line: options that must not act twice, descriptors given by
the launcher, and the arguments of exec-upgrade."""

import fcntl
import os
import re
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from harness.checks import check_disk, check_image_locked, \
    guest_lives_on, wait_disk_writes, wait_until
from harness.qmp import QMPError
from harness.vm import DEFAULT, process_identity


def make_image(path, size=8 << 20):
    with open(path, 'wb') as image:
        image.truncate(size)
    return path


def command_line(vm):
    return Path(f'/proc/{vm.pid}/cmdline').read_bytes().split(b'\0')


# Options that act once

@pytest.mark.parametrize('uri', ['defer', 'unix'])
def test_incoming(boot, make_vm, uri):
    """A guest that came by migration upgrades like any other, again and
    again."""
    source, target = boot(), make_vm()
    target.args += ['-incoming', uri if uri == 'defer'
                    else f'unix:{target.dir}/migrate']
    target.start()
    memory = source.agent.ask('mem fill 75')
    before = source.agent.ask('counter')
    source.migrate_to(target, started=uri != 'defer')
    for _ in range(2):
        target.upgrade()
        after = target.agent.ask('counter')
        assert after['boot_id'] == before['boot_id']
        assert after['counter'] > before['counter']
    assert target.agent.ask('mem verify') == memory


def test_loadvm(make_vm, qemu_img):
    """The guest goes on from where it is, not from the snapshot."""
    first = make_vm()
    image = first.dir / 'image'
    qemu_img('create', '-f', 'qcow2', image, '64M')
    drive = ['-drive', f'if=virtio,format=qcow2,file={image}']
    first.args += drive
    first.boot()
    assert first.qmp.hmp('savevm here') == ''
    first.qmp.execute('quit')
    first.wait_gone()

    second = make_vm(args=drive + ['-loadvm', 'here']).start()
    assert 'boot_id' in second.agent.ask('counter')
    second.agent.sh('echo changed > /tmp/after')
    with guest_lives_on(second):
        second.upgrade()
        assert second.agent.sh('cat /tmp/after') == 'changed\n'


def test_daemonize_with_relative_paths(make_vm, qemu_img):
    """-daemonize changes the working folder to /."""
    vm = make_vm()
    vm.popen['cwd'] = vm.dir
    make_image(vm.dir / 'disk')
    qemu_img('create', '-f', 'qcow2', '-F', 'raw', '-b', 'disk',
             vm.dir / 'overlay')
    vm.args += ['-daemonize', '-pidfile', f'{vm.dir}/pid', '-drive',
                'if=virtio,format=qcow2,file=overlay']
    vm.boot()
    assert os.readlink(f'/proc/{vm.pid}/cwd') == '/'
    vm.agent.wait_path('/dev/vda')
    vm.agent.ask('disk start /dev/vda 4 8')
    with guest_lives_on(vm):
        for _ in range(2):
            vm.upgrade()
            assert os.readlink(f'/proc/{vm.pid}/cwd') == '/'
            wait_disk_writes(vm)
        check_disk(vm)
    assert int((vm.dir / 'pid').read_text()) == vm.pid


def test_started_paused_and_continued(make_vm):
    """-S does not stop the guest again."""
    vm = make_vm(args=['-S']).start()
    vm.qmp.execute('cont')
    vm.agent.wait_ready()
    with guest_lives_on(vm):
        vm.upgrade()
    assert vm.qmp.execute('query-status')['status'] == 'running'


@pytest.fixture
def open_vm(make_vm, setup):
    """A VM that the user nobody can start or upgrade."""
    if os.getuid():
        pytest.skip('needs root')
    if subprocess.run(['test', '-x', setup.new], user='nobody',
                      check=False).returncode:
        pytest.skip('nobody has no right to execute the binaries here')
    vm = make_vm()
    os.chmod(vm.dir, 0o777)
    for path in setup.image.fast_kernel, setup.image.initrd:
        shutil.copy(path, vm.dir)
        vm.args[vm.args.index(path)] = str(vm.dir / Path(path).name)
    for path in vm.dir.iterdir():
        os.chmod(path, 0o644)
    return vm


@pytest.mark.parametrize('open_to_all', [True, False],
                         ids=['all-files-open', 'image-closed'])
def test_runas(open_vm, open_to_all):
    """Carried where every file can be opened again by that user."""
    vm = open_vm
    os.chmod(make_image(vm.dir / 'image'), 0o666 if open_to_all else 0o600)
    vm.args += ['-runas', 'nobody', '-drive',
                f'if=virtio,format=raw,file={vm.dir}/image']
    vm.boot()
    owner = os.stat(f'/proc/{vm.pid}').st_uid
    assert owner != 0
    if not open_to_all:
        vm.refused('image')
        return
    with guest_lives_on(vm):
        vm.upgrade()
        vm.upgrade()
    status = Path(f'/proc/{vm.pid}/status').read_text()
    assert f'Uid:\t{owner}\t{owner}\t{owner}\t{owner}' in status


def test_host_short_of_threads(open_vm):
    """The new process waits for its threads for a while."""
    vm = open_vm
    vm.args += ['-runas', 'nobody']
    vm.boot()

    def limit_threads(count):
        subprocess.run(['prlimit', f'--pid={vm.pid}', f'--nproc={count}:'],
                       user='nobody', group='nogroup', extra_groups=[],
                       check=True)

    limit_threads(1)
    with guest_lives_on(vm):
        ident = vm.qmp.send('exec-upgrade', {'binary': vm.setup.new})
        wait_until(lambda: "can't create thread" in vm.stderr)
        limit_threads(1000)
        vm.qmp.reply(ident)


def test_pidfile(make_vm):
    """The same file with the same content, locked all the time, and gone
    when QEMU ends."""
    vm = make_vm()
    path = vm.dir / 'pid'
    vm.args += ['-pidfile', str(path)]
    vm.boot()
    before = os.stat(path).st_ino, path.read_text()
    vm.upgrade()
    assert (os.stat(path).st_ino, path.read_text()) == before
    assert int(path.read_text()) == vm.pid
    with open(path, 'r+', encoding='ascii') as f, \
            pytest.raises(BlockingIOError):
        fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
    vm.qmp.execute('quit')
    vm.wait_gone()
    assert not path.exists()


def test_preconfig(make_vm):
    vm = make_vm(preconfig=True).start()
    vm.refused('machine initialization')
    vm.qmp.execute('x-exit-preconfig')
    vm.agent.wait_ready()
    with guest_lives_on(vm):
        vm.upgrade()


def test_names(boot):
    vm = boot(args=['-name', 'guest=one,process=two,debug-threads=on',
                    '-uuid', '00000000-1111-2222-3333-444444444444'])
    before = vm.qmp.execute('query-name'), vm.qmp.execute('query-uuid')
    vm.upgrade()
    assert (vm.qmp.execute('query-name'),
            vm.qmp.execute('query-uuid')) == before
    assert Path(f'/proc/{vm.pid}/comm').read_text() == 'two\n'


def test_log_file_is_continued(make_vm):
    vm = make_vm()
    vm.args += ['-D', f'{vm.dir}/log', '-d', 'guest_errors']
    vm.boot()
    with open(vm.dir / 'log', 'a', encoding='ascii') as log:
        log.write('a line from before\n')
    vm.upgrade()
    assert 'a line from before\n' in (vm.dir / 'log').read_text()


def test_config_file(make_vm):
    vm = make_vm()
    make_image(vm.dir / 'image')
    (vm.dir / 'config').write_text(
        f'[drive "d"]\n  if = "none"\n  format = "raw"\n'
        f'  file = "{vm.dir}/image"\n'
        '[device "disk"]\n  driver = "virtio-blk-pci"\n  drive = "d"\n')
    vm.args += ['-readconfig', f'{vm.dir}/config']
    vm.boot()
    vm.agent.wait_path('/dev/vda')
    with guest_lives_on(vm):
        vm.upgrade()


def test_mem_lock(make_vm):
    """All memory is locked again, after the guest has gone on."""
    vm = make_vm(args=['-overcommit', 'mem-lock=on'])
    vm.boot()
    if 'libasan' in Path(f'/proc/{vm.pid}/maps').read_text():
        pytest.skip('ASan lets mlock(2) do nothing')

    def locked():
        status = Path(f'/proc/{vm.pid}/status').read_text()
        return int(re.search(r'VmLck:\s*(\d+) kB', status)[1])

    assert locked() > 192 << 10
    with guest_lives_on(vm):
        for _ in range(2):
            vm.upgrade()
            wait_until(lambda: locked() > 192 << 10)


# Descriptors from the launcher

def descriptors(vm):
    """Number -> what it is, of the descriptors named below."""
    folder = f'/proc/{vm.pid}/fd'
    return {int(n): os.readlink(f'{folder}/{n}') for n in os.listdir(folder)}


def test_add_fd(make_vm):
    """-add-fd: the set can be used again, and the number stays."""
    vm = make_vm()
    fd = os.open(make_image(vm.dir / 'image'), os.O_RDONLY)
    vm.popen['pass_fds'] = [fd]
    vm.args += ['-add-fd', f'fd={fd},set=7,opaque=disk',
                '-drive', 'if=virtio,format=raw,readonly=on,'
                'file=/dev/fdset/7']
    vm.boot()
    os.close(fd)
    os.rename(vm.dir / 'image', vm.dir / 'moved')
    inode = os.stat(vm.dir / 'moved').st_ino

    def held():
        """The set's own copy may have any number."""
        (found,) = vm.qmp.execute('query-fdsets')
        (member,) = found['fds']
        assert found['fdset-id'] == 7 and member['opaque'] == 'disk'
        return {os.stat(f'/proc/{vm.pid}/fd/{n}').st_ino
                for n in (fd, member['fd'])}

    assert held() == {inode}
    vm.agent.wait_path('/dev/vda')
    digest = vm.agent.sh('md5sum /dev/vda')
    with guest_lives_on(vm):
        for _ in range(3):
            vm.upgrade()
            assert held() == {inode}
            vm.agent.sh('echo 3 > /proc/sys/vm/drop_caches')
            assert vm.agent.sh('md5sum /dev/vda') == digest


@pytest.fixture
def fdset_vm(make_vm):
    """A guest that writes to an image which QEMU knows by a descriptor set
    only: it opens it for reading first, and for writing when the guest's
    disk is there."""
    vm = make_vm()
    writable = os.open(make_image(vm.dir / 'image'), os.O_RDWR)
    readable = os.open(vm.dir / 'image', os.O_RDONLY)
    vm.popen['pass_fds'] = [writable, readable]
    vm.args += ['-add-fd', f'fd={writable},set=7,opaque=rw',
                '-add-fd', f'fd={readable},set=7,opaque=ro',
                '-drive', 'if=virtio,format=raw,file=/dev/fdset/7']
    vm.boot()
    os.close(writable)
    os.close(readable)
    vm.agent.wait_path('/dev/vda')
    vm.agent.ask('disk start /dev/vda 4 8')
    return vm


def add_fd(vm, path, flags, **arguments):
    """Sends a descriptor of a file; returns what add-fd returns."""
    fd = os.open(path, flags)
    result = vm.qmp.reply(vm.qmp.send_fds('add-fd', [fd], {
        key.replace('_', '-'): value for key, value in arguments.items()}))
    os.close(fd)
    return result


def test_set_of_two_descriptors(fdset_vm):
    """One for reading and one for writing, and others that came later; the
    image's locks lie on one of them at a time."""
    vm = fdset_vm
    # a newer one is chosen first when the image is opened again
    add_fd(vm, vm.dir / 'image', os.O_RDWR, fdset_id=7, opaque='later')
    add_fd(vm, make_image(vm.dir / 'other'), os.O_RDWR, fdset_id=3)
    free = add_fd(vm, vm.dir / 'other', os.O_RDONLY, opaque='free')
    before = vm.qmp.execute('query-fdsets')
    numbers = descriptors(vm)
    assert {e['fdset-id'] for e in before} == {7, 3, free['fdset-id']}
    with guest_lives_on(vm):
        for _ in range(3):
            check_image_locked(vm, vm.dir / 'image')
            vm.upgrade()
            assert vm.qmp.execute('query-fdsets') == before
            now = descriptors(vm)
            for member in (m for e in before for m in e['fds']):
                assert now[member['fd']] == numbers[member['fd']]
            wait_disk_writes(vm)
        check_image_locked(vm, vm.dir / 'image')
        check_disk(vm)
    # what is in the other sets can be used
    for node, fdset in ('n3', 3), ('free', free['fdset-id']):
        vm.qmp.execute('blockdev-add', driver='file', node_name=node,
                       filename=f'/dev/fdset/{fdset}',
                       read_only=fdset != 3)


def test_set_with_half_of_its_descriptors(fdset_vm):
    """QEMU itself gets on, but could not open the image again."""
    vm = fdset_vm
    (fdset,) = vm.qmp.execute('query-fdsets')
    (readable,) = (m['fd'] for m in fdset['fds'] if m['opaque'] == 'ro')
    vm.qmp.execute('remove-fd', fdset_id=7, fd=readable)
    vm.refused("descriptor set '7' has none for reading only")
    check_image_locked(vm, vm.dir / 'image')
    wait_disk_writes(vm)
    check_disk(vm)


def test_set_after_execve_failed(fdset_vm, broken_binary):
    """The locks were given up, and are taken back."""
    vm = fdset_vm
    before = vm.qmp.execute('query-fdsets')
    with pytest.raises(QMPError, match='execute'):
        vm.qmp.execute('exec-upgrade', binary=str(broken_binary))
    check_image_locked(vm, vm.dir / 'image')
    wait_disk_writes(vm)
    with guest_lives_on(vm):
        vm.upgrade()
    assert vm.qmp.execute('query-fdsets') == before
    check_image_locked(vm, vm.dir / 'image')
    check_disk(vm)


def test_getfd_names(boot):
    """A descriptor sent with getfd is still there by its name."""
    vm = boot()
    ours, theirs = socket.socketpair()
    vm.qmp.reply(vm.qmp.send_fds('getfd', [theirs.fileno()],
                                 {'fdname': 'mine'}))
    theirs.close()
    if vm.blockers():
        vm.refused('mine')
        return
    vm.upgrade()
    vm.qmp.execute('closefd', fdname='mine')
    ours.settimeout(10)
    assert ours.recv(1) == b'', 'the descriptor was doubled or lost'


def test_standard_descriptors(make_vm):
    vm = make_vm()
    out = os.open(vm.dir / 'out', os.O_WRONLY | os.O_CREAT)
    vm.popen.update(stdout=out)
    vm.boot()
    os.close(out)
    before = {n: descriptors(vm)[n] for n in (0, 1, 2)}
    vm.upgrade()
    assert {n: descriptors(vm)[n] for n in (0, 1, 2)} == before


def test_inherited_descriptor_stays_untouched(make_vm):
    """One that QEMU does not know of: a lock of the launcher's."""
    vm = make_vm()
    fd = os.open(make_image(vm.dir / 'launcher'), os.O_RDWR)
    vm.popen['pass_fds'] = [fd]
    vm.boot()
    before = descriptors(vm)[fd]
    vm.upgrade()
    assert descriptors(vm)[fd] == before
    os.close(fd)


# exec-upgrade's own arguments

@pytest.fixture
def installed(setup):
    """Puts a copy of a binary beside it, as a package would install it."""
    copies = []

    def install(source, name='qemu'):
        path = Path(setup.old).with_name(f'.test-{os.getpid()}-{name}')
        path.with_suffix('.new').unlink(missing_ok=True)
        shutil.copy(source, path.with_suffix('.new'))
        path.with_suffix('.new').rename(path)
        copies.append(path)
        return path
    yield install
    for path in copies:
        path.unlink(missing_ok=True)


def test_default_binary_is_the_running_one(boot):
    vm = boot()
    with guest_lives_on(vm):
        vm.upgrade(DEFAULT)


def test_default_binary_was_replaced(boot, installed, setup):
    """As a package upgrade does: the file has the same path, and what runs
    shows as deleted."""
    vm = boot(binary=str(installed(setup.old)))
    installed(setup.new)
    assert vm.exe().endswith(' (deleted)')
    with guest_lives_on(vm):
        vm.upgrade(DEFAULT)
    assert vm.qmp.execute('query-version')['qemu']['micro'] == int(
        subprocess.run([setup.new, '--version'], text=True, check=True,
                       capture_output=True).stdout.split()[3].split('.')[2]
        .split('(')[0])


def test_default_binary_was_deleted(boot, installed, setup):
    path = installed(setup.old)
    vm = boot(binary=str(path))
    path.unlink()
    vm.refused(str(path), binary=None)
    installed(setup.new)
    vm.upgrade(DEFAULT)


def test_binary_by_relative_path(make_vm, setup):
    """It is looked for from the folder in which QEMU was started."""
    vm = make_vm()
    vm.popen['cwd'] = vm.dir
    (vm.dir / 'qemu').symlink_to(setup.new)
    vm.boot()
    result = vm.qmp.execute('exec-upgrade', binary='./qemu')
    assert os.path.samefile(vm.dir / result['binary'], setup.new)
    vm.agent.check_log()


def test_arguments(boot):
    """Another command line for the same machine."""
    vm = boot(args=['-name', 'first'])
    arguments = vm.args[:-1] + ['second']
    with guest_lives_on(vm):
        vm.upgrade(arguments=arguments)
        assert vm.qmp.execute('query-name')['name'] == 'second'
        assert [a.decode() for a in command_line(vm)[1:-1]] == arguments
        vm.upgrade()
        assert vm.qmp.execute('query-name')['name'] == 'second'


def test_descriptors_that_arguments_no_longer_name(make_vm):
    """They are closed: the client learns that nobody serves it any more."""
    vm = make_vm()
    args = list(vm.args)
    vm.args += ['-netdev', 'stream,id=n,server=on,addr.type=unix,'
                f'addr.path={vm.dir}/n']
    vm.boot()
    client = vm.connect('n')
    vm.qmp.wait_event('NETDEV_STREAM_CONNECTED')

    def sockets():
        return sum('socket' in name for name in descriptors(vm).values())

    before = sockets()
    vm.upgrade()
    assert sockets() == before
    vm.upgrade(arguments=args)
    assert client.recv(1) == b''
    client.close()
    # the listening socket and the connection
    assert sockets() == before - 2
    vm.upgrade()
    assert sockets() == before - 2


def test_command_line_and_environment_stay(boot):
    vm = boot()
    before = command_line(vm)
    vm.upgrade()
    environment = Path(f'/proc/{vm.pid}/environ').read_bytes()
    vm.upgrade()
    vm.upgrade()
    assert command_line(vm) == before
    assert len(Path(f'/proc/{vm.pid}/environ').read_bytes()) <= \
        len(environment) + 2


# The command's other sides

def test_hmp(boot, setup):
    vm = boot()
    assert 'exec_upgrade' in vm.qmp.hmp('help exec_upgrade')
    before = process_identity(vm.pid)
    vm.upgrade()
    text = vm.qmp.hmp('info exec-upgrade')
    assert '7.2' in text and setup.new in text, text
    assert process_identity(vm.pid) == before
    assert 'exec-upgrade' in vm.qmp.hmp('exec_upgrade /nonexistent')


def test_query_exec_upgrade(boot):
    vm = boot()
    query = vm.qmp.execute('query-exec-upgrade')
    configuration = query['configuration']
    assert {c['arguments']['id'] for c in configuration
            if c['execute'] == 'chardev-add'} == {'qmp', 'console', 'agent'}
    assert query == {'enabled': True, 'blockers': [], 'count': 0,
                     'changes': [], 'configuration': configuration}
    for count in 1, 2:
        result = vm.upgrade()
        assert vm.qmp.execute('query-exec-upgrade') == {
            'enabled': True, 'blockers': [], 'count': count, 'changes': [],
            'configuration': configuration, 'last': result}
    error = vm.refused('/nonexistent', binary='/nonexistent')
    query = vm.qmp.execute('query-exec-upgrade')
    assert query['last-error'] == error and query['count'] == 2


def test_schema(make_vm):
    """The interface that other programs depend on."""
    vm = make_vm(args=['-S']).start()
    schema = vm.qmp.execute('query-qmp-schema')
    names = {e['name'] for e in schema if e['meta-type'] in
             ('command', 'event')}
    assert {'exec-upgrade', 'query-exec-upgrade', 'EXEC_UPGRADE'} <= names
    assert vm.qmp.execute('qom-get', path='/machine',
                          property='exec-upgrade') is True


def test_result_phases(boot):
    """Named, in order, and those of the pause add up to the downtime."""
    result = boot().upgrade()
    names = [phase['name'] for phase in result['phases']]
    assert len(set(names)) == len(names)
    paused = [p['duration'] for p in
              result['phases'][names.index('quiesce'):]]
    assert abs(sum(paused) - result['downtime']) < \
        max(2000, result['downtime'] // 10)
