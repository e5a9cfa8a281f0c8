# SPDX-License-Identifier: GPL-2.0-or-later
"""An image is opened again only if it is the same file and can be opened."""

import ctypes
import os
import shutil
import stat
import subprocess

import pytest

from harness.checks import check_disk, wait_disk_writes

MIB = 8
NOBODY = 65534


@pytest.fixture
def raw_vm(make_vm):
    """A VM with a raw disk, not started; @options of the file's node."""
    def make(options='', path='{dir}/disk', **kwargs):
        vm = make_vm(**kwargs)
        with open(vm.dir / 'disk', 'wb') as f:
            f.truncate(MIB << 20)
        vm.args += ['-blockdev', 'driver=file,node-name=file,filename=' +
                    path.format(dir=vm.dir) + options,
                    '-blockdev', 'driver=raw,node-name=raw,file=file',
                    '-device', 'virtio-blk-pci,drive=raw']
        return vm
    return make


def start_writing(vm):
    vm.agent.wait_path('/dev/vda')
    vm.agent.ask(f'disk start /dev/vda 2 {MIB}')
    wait_disk_writes(vm)


def root_only():
    if os.geteuid():
        pytest.skip('only root can give up rights')


def test_refusal_names_node_path_and_reason(raw_vm):
    vm = raw_vm().boot()
    start_writing(vm)
    (vm.dir / 'disk').rename(vm.dir / 'moved')
    vm.refused("'file'", str(vm.dir / 'disk'), 'no such file')
    assert len(vm.blockers()) == 1
    (vm.dir / 'disk').write_bytes(b'')
    vm.refused("'file'", str(vm.dir / 'disk'), 'another file')
    (vm.dir / 'disk').unlink()
    (vm.dir / 'disk').mkdir()
    vm.refused("'file'", 'another file')
    (vm.dir / 'disk').rmdir()
    (vm.dir / 'moved').rename(vm.dir / 'disk')
    assert not vm.blockers()
    vm.upgrade()
    check_disk(vm)


def test_every_image_is_named(raw_vm):
    vm = raw_vm()
    shutil.copy(vm.dir / 'disk', vm.dir / 'other')
    vm.args += ['-drive', f'if=none,id=d,format=raw,file={vm.dir}/other']
    vm.boot()
    (vm.dir / 'disk').unlink()
    (vm.dir / 'other').unlink()
    vm.refused(str(vm.dir / 'disk'), str(vm.dir / 'other'))


def test_image_that_may_not_be_opened_any_more(raw_vm):
    """After -runas, the process has fewer rights than when it started."""
    root_only()
    vm = raw_vm()
    os.chmod(vm.dir, 0o755)
    vm.args += ['-runas', f'{NOBODY}:{NOBODY}']
    vm.boot()
    start_writing(vm)
    vm.refused("'file'", str(vm.dir / 'disk'), 'permission denied')
    wait_disk_writes(vm)
    check_disk(vm)


def test_read_only_image_needs_no_right_to_write(raw_vm):
    root_only()
    vm = raw_vm()
    os.chmod(vm.dir, 0o755)
    os.chmod(vm.dir / 'disk', 0o444)
    vm.args[-6:] = ['-blockdev', 'driver=file,node-name=file,read-only=on,'
                    f'filename={vm.dir}/disk', '-device',
                    'virtio-blk-pci,drive=file']
    vm.args += ['-runas', f'{NOBODY}:{NOBODY}']
    vm.boot()
    assert not [text for text in vm.blockers() if "'file'" in text]


@pytest.mark.parametrize('kind', ['relative', 'auto-read-only'])
def test_ways_to_open(raw_vm, kind):
    if kind == 'relative':
        vm = raw_vm(path='disk')
        vm.popen = {'cwd': vm.dir}
    else:
        vm = raw_vm(options=',auto-read-only=on')
    vm.boot()
    start_writing(vm)
    vm.upgrade()
    wait_disk_writes(vm)
    vm.upgrade()
    check_disk(vm)


def test_new_process_opens_no_other_image(raw_vm):
    """Nothing is written to a file that the guest did not have, whatever the
    new command line says."""
    vm = raw_vm()
    other = vm.dir / 'other'
    other.write_bytes(os.urandom(MIB << 20))
    before = other.read_bytes(), other.stat().st_mtime_ns
    vm.boot()
    start_writing(vm)
    vm.upgrade(arguments=[arg.replace(f'{vm.dir}/disk', str(other))
                          for arg in vm.args])
    wait_disk_writes(vm)
    check_disk(vm)
    assert (other.read_bytes(), other.stat().st_mtime_ns) == before


PTRACE_CONT, PTRACE_DETACH, PTRACE_SEIZE = 7, 17, 0x4206
PTRACE_O_TRACEEXEC, PTRACE_EVENT_EXEC = 1 << 4, 4


class AtExec:
    """Stops a child of ours in execve(2), when it has got the new program and
    before that has done anything."""

    def __init__(self, pid):
        self.pid = pid
        self.ptrace = ctypes.CDLL(None, use_errno=True).ptrace
        self.ptrace.argtypes = [ctypes.c_long] * 4
        self.request(PTRACE_SEIZE, PTRACE_O_TRACEEXEC)

    def request(self, number, data=0):
        if self.ptrace(number, self.pid, 0, data) < 0:
            raise OSError(ctypes.get_errno(), 'ptrace')

    def wait(self):
        while True:
            _, status = os.waitpid(self.pid, 0)
            assert os.WIFSTOPPED(status), f'it ended: {status:#x}'
            if status >> 16 == PTRACE_EVENT_EXEC:
                return
            self.request(PTRACE_CONT, os.WSTOPSIG(status))

    def go_on(self):
        self.request(PTRACE_DETACH)


def test_image_replaced_in_the_last_moment(raw_vm):
    """Nothing is written to a file that the guest did not have."""
    vm = raw_vm().boot()
    start_writing(vm)
    stop = AtExec(vm.pid)
    vm.qmp.send('exec-upgrade', {'binary': str(vm.setup.new)})
    stop.wait()
    image = (vm.dir / 'disk').rename(vm.dir / 'moved')
    other = vm.dir / 'disk'
    other.write_bytes(image.read_bytes())
    before = other.read_bytes(), other.stat().st_mtime_ns
    stop.go_on()
    assert vm.process.wait(60)
    assert f"'{other}' is not the file that block node 'file' had before" in \
        vm.stderr
    assert (other.read_bytes(), other.stat().st_mtime_ns) == before


@pytest.fixture
def loop_device(tmp_path):
    (tmp_path / 'image').write_bytes(bytes(MIB << 20))
    made = subprocess.run(['losetup', '--show', '-f', tmp_path / 'image'],
                          text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.DEVNULL, check=False)
    if made.returncode:
        pytest.skip('no right to make a loop device')
    yield made.stdout.strip()
    subprocess.run(['losetup', '-d', made.stdout.strip()], check=True)


def test_host_device(make_vm, loop_device):
    """A device's number counts, too."""
    vm = make_vm()
    node = vm.dir / 'device'
    os.mknod(node, stat.S_IFBLK | 0o600, os.stat(loop_device).st_rdev)
    vm.args += ['-blockdev', f'driver=host_device,node-name=dev,'
                f'filename={node}', '-device', 'virtio-blk-pci,drive=dev']
    vm.boot()
    start_writing(vm)
    vm.upgrade()
    wait_disk_writes(vm)
    node.rename(vm.dir / 'moved')
    vm.refused("'dev'", str(node))
    (vm.dir / 'moved').rename(node)
    vm.upgrade()
    check_disk(vm)
