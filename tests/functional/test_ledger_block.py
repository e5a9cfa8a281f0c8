# SPDX-License-Identifier: GPL-2.0-or-later
"""The block graph that a guest has after months: what commands have made of
that of the command line is what the new process has."""

import hashlib
import json
import subprocess

import pytest

from harness.checks import check_disk, guest_lives_on, wait_disk_writes, \
    wait_until

MIB = 8

# How the disk is made: by a drive with a name, or by nodes with names
STYLES = {
    'drive': ['-drive', 'if=none,id=d,format=qcow2,file={dir}/base',
              '-device', 'virtio-blk-pci,drive=d,id=disk'],
    'blockdev': ['-blockdev', 'driver=file,node-name=base-file,'
                 'filename={dir}/base', '-blockdev',
                 'driver=qcow2,node-name=base,file=base-file,discard=unmap',
                 '-device', 'virtio-blk-pci,drive=base,id=disk'],
}
DISK = '/machine/peripheral/disk/virtio-backend'
both = pytest.mark.parametrize('style', STYLES)


@pytest.fixture
def writer(make_vm, qemu_img):
    """A guest that writes and verifies all the time on a qcow2 disk."""
    def make(style='blockdev', *args, **kwargs):
        vm = make_vm(**kwargs)
        qemu_img('create', '-f', 'qcow2', vm.dir / 'base', f'{MIB}M')
        vm.args += [arg.format(dir=vm.dir) for arg in (*STYLES[style], *args)]
        vm.boot()
        vm.agent.wait_path('/dev/vda')
        vm.agent.ask(f'disk start /dev/vda 3 {MIB}')
        wait_disk_writes(vm)
        return vm
    return make


def run(vm, command, **arguments):
    """A command some of whose arguments have names of Python's own."""
    return vm.qmp.reply(vm.qmp.send(command, {
        key.replace('_', '-').rstrip('-'): value
        for key, value in arguments.items()}))


def without_sizes(value):
    """What QEMU tells, but for what the guest's writing changes."""
    if isinstance(value, dict):
        changing = {'actual-size'}
        if value.get('format') == 'file':
            changing.add('virtual-size')
        return {k: without_sizes(v) for k, v in value.items()
                if k not in changing}
    if isinstance(value, list):
        return [without_sizes(v) for v in value]
    if isinstance(value, str) and value.startswith('json:'):
        # options in any order
        return json.loads(value.removeprefix('json:'))
    return value


def graph(vm):
    """All that QEMU tells of nodes, drives and who is whose child."""
    edges = run(vm, 'x-debug-query-block-graph')
    names = {n['id']: n.get('name') for n in edges['nodes']}
    # a job or drive has no name there
    return [
        {n['node-name']: without_sizes(n)
         for n in run(vm, 'query-named-block-nodes')},
        {d.get('qdev') or d['device']: without_sizes(d)
         for d in run(vm, 'query-block')},
        sorted((str(names[e['parent']]), e['name'], names[e['child']],
                sorted(e['perm']), sorted(e['shared-perm']))
               for e in edges['edges'])]


def differences(before, after, where=''):
    """Yields one line for each."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in before.keys() | after.keys():
            yield from differences(before.get(key), after.get(key),
                                   f'{where}/{key}')
    elif isinstance(before, list) and isinstance(after, list) and \
            len(before) == len(after):
        for number, pair in enumerate(zip(before, after)):
            yield from differences(*pair, f'{where}/{number}')
    elif before != after:
        yield f'{where}: {before} became {after}'


def upgrade_same(vm):
    before = graph(vm)
    vm.upgrade()
    changed = list(differences(before, graph(vm)))
    assert not changed, '\n'.join(changed)


def upgrade(vm, times=1):
    """The graph is the same afterwards, and the guest writes on."""
    with guest_lives_on(vm, fill=0):
        for _ in range(times):
            upgrade_same(vm)
            wait_disk_writes(vm)


def top_node(vm, device='disk'):
    info, = [d for d in run(vm, 'query-block')
             if f'/{device}/' in d.get('qdev', '') + '/']
    return info['inserted']['node-name']


def chain(vm, qemu_img, name):
    """File names of an image and its backing files, by their headers."""
    info = json.loads(qemu_img('info', '-U', '--backing-chain', '--output=json',
                               vm.dir / name))
    return [image['filename'].rpartition('/')[2] for image in info]


def node_chain(vm):
    """File names of the disk's nodes, from the top."""
    info, = [d for d in run(vm, 'query-block') if 'inserted' in d]
    image, names = info['inserted']['image'], []
    while image:
        names.append(image['filename'].rpartition('/')[2])
        image = image.get('backing-image')
    return names


def finish(vm, qemu_img, setup, top, files):
    """Nothing is missing in the images, which are as they should be."""
    assert node_chain(vm) == files
    second = subprocess.run(
        [setup.tool('qemu-io'), '-f', 'qcow2', '-c', 'write 0 512',
         vm.dir / top], text=True, capture_output=True, check=False)
    assert 'lock' in second.stdout + second.stderr
    check_disk(vm)
    guest = vm.agent.sh('sha256sum < /dev/vda').split()[0]
    vm.agent.check_log()
    vm.qmp.send('quit')
    vm.qmp.wait_closed()
    vm.process.wait()
    for name in files:
        report = qemu_img('check', '-f', 'qcow2', vm.dir / name)
        assert 'No errors were found' in report, report
    assert chain(vm, qemu_img, top) == files
    qemu_img('convert', '-f', 'qcow2', '-O', 'raw', vm.dir / top,
             vm.dir / 'content')
    content = (vm.dir / 'content').read_bytes()
    assert hashlib.sha256(content).hexdigest() == guest


# External snapshots

def snapshot_sync(vm, name, target):
    run(vm, 'blockdev-snapshot-sync', **target,
        snapshot_file=str(vm.dir / name), format='qcow2')


def add_overlay(vm, qemu_img, name):
    """As libvirt does it: an overlay that has no backing node yet."""
    qemu_img('create', '-f', 'qcow2', '-u', '-F', 'qcow2', '-b',
             vm.dir / top_file(vm), vm.dir / name, f'{MIB}M')
    run(vm, 'blockdev-add', driver='file', node_name=f'{name}-file',
        filename=str(vm.dir / name))
    run(vm, 'blockdev-add', driver='qcow2', node_name=name,
        file=f'{name}-file', backing=None)


def top_file(vm):
    return node_chain(vm)[0]


def snapshot(vm, qemu_img, name, kind='plain'):
    node = top_node(vm)
    if kind == 'sync':
        # a node with a name gets an overlay with one
        snapshot_sync(vm, name, {'node-name': node,
                                 'snapshot-node-name': name}
                      if node[0] != '#' else {'device': 'd'})
    elif kind == 'sync-named':
        run(vm, 'blockdev-snapshot-sync', node_name=node, format='qcow2',
            snapshot_file=str(vm.dir / name), snapshot_node_name=name)
    elif kind == 'transaction':
        add_overlay(vm, qemu_img, name)
        run(vm, 'transaction', actions=[
            {'type': 'blockdev-snapshot',
             'data': {'node': node, 'overlay': name}}])
    else:
        add_overlay(vm, qemu_img, name)
        run(vm, 'blockdev-snapshot', node=node, overlay=name)


@both
def test_five_snapshots(writer, qemu_img, setup, style):
    vm = writer(style)
    files = ['base']
    for number, kind in enumerate(('sync', 'plain', 'transaction',
                                   'sync-named', 'plain')):
        name = f'snap{number}'
        snapshot(vm, qemu_img, name, kind)
        files.insert(0, name)
        if number != 2:
            upgrade(vm)
    upgrade(vm, 2)
    finish(vm, qemu_img, setup, 'snap4', files)


# Jobs that have ended

def wait_job(vm, job, complete=False):
    if complete:
        vm.qmp.wait_event('BLOCK_JOB_READY', device=job)
        run(vm, 'block-job-complete', device=job)
    vm.qmp.wait_event('BLOCK_JOB_COMPLETED', device=job)
    vm.qmp.wait_event('JOB_STATUS_CHANGE', status='null', id=job)


def with_snapshots(writer, qemu_img, style, count):
    vm = writer(style)
    for number in range(count):
        snapshot(vm, qemu_img, f'snap{number}')
        wait_disk_writes(vm)
    return vm


@both
def test_active_commit(writer, qemu_img, setup, style):
    vm = with_snapshots(writer, qemu_img, style, 3)
    upgrade(vm)
    run(vm, 'block-commit', device=top_node(vm), job_id='job',
        base_node='snap0')
    vm.refused("job 'job' (commit)")
    wait_job(vm, 'job', complete=True)
    run(vm, 'blockdev-del', node_name='snap2')
    upgrade(vm, 2)
    finish(vm, qemu_img, setup, 'snap0', ['snap0', 'base'])


@both
def test_intermediate_commit(writer, qemu_img, setup, style):
    vm = with_snapshots(writer, qemu_img, style, 3)
    run(vm, 'block-commit', device=top_node(vm), job_id='job',
        top_node='snap1', base_node='snap0')
    wait_job(vm, 'job')
    upgrade(vm, 2)
    finish(vm, qemu_img, setup, 'snap2', ['snap2', 'snap0', 'base'])


@pytest.mark.parametrize('base, left', [
    (None, ['snap2']), ('snap0', ['snap2', 'snap0', 'base'])])
def test_stream(writer, qemu_img, setup, base, left):
    vm = with_snapshots(writer, qemu_img, 'blockdev', 3)
    run(vm, 'block-stream', device=top_node(vm), job_id='job',
        **({'base_node': base} if base else {}))
    wait_job(vm, 'job')
    upgrade(vm, 2)
    finish(vm, qemu_img, setup, 'snap2', left)


@both
def test_mirror_with_pivot(writer, qemu_img, setup, style):
    """drive-mirror opens the copy itself, blockdev-mirror is given it."""
    vm = writer(style)
    if style == 'drive':
        run(vm, 'drive-mirror', device='d', job_id='job', sync='full',
            format='qcow2', target=str(vm.dir / 'copy'))
    else:
        qemu_img('create', '-f', 'qcow2', vm.dir / 'copy', f'{MIB}M')
        run(vm, 'blockdev-add', driver='qcow2', node_name='copy', file={
            'driver': 'file', 'filename': str(vm.dir / 'copy')})
        run(vm, 'blockdev-mirror', device='base', job_id='job', sync='full',
            target='copy')
    wait_job(vm, 'job', complete=True)
    upgrade(vm, 2)
    finish(vm, qemu_img, setup, 'copy', ['copy'])


def test_backup_done(writer, qemu_img, setup):
    vm = writer('drive')
    run(vm, 'drive-backup', device='d', job_id='job', sync='full',
        format='qcow2', target=str(vm.dir / 'backup'))
    wait_job(vm, 'job')
    upgrade(vm)
    # one that is not dismissed is still there, and named
    run(vm, 'drive-backup', device='d', job_id='job', sync='full',
        format='qcow2', target=str(vm.dir / 'backup'), auto_dismiss=False)
    vm.qmp.wait_event('JOB_STATUS_CHANGE', status='concluded', id='job')
    vm.refused("job 'job' (backup) is concluded")
    run(vm, 'job-dismiss', id='job')
    upgrade(vm)
    finish(vm, qemu_img, setup, 'base', ['base'])


# Nodes

def test_add_and_del(writer, qemu_img, setup):
    vm = writer()
    (vm.dir / 'raw').write_bytes(bytes(1 << 20))
    run(vm, 'blockdev-add', driver='raw', node_name='added', read_only=True,
        file={'driver': 'file', 'filename': str(vm.dir / 'raw')})
    run(vm, 'blockdev-add', driver='null-co', node_name='nothing', size=4096)
    upgrade(vm)
    run(vm, 'blockdev-del', node_name='nothing')
    upgrade(vm)
    run(vm, 'blockdev-del', node_name='added')
    upgrade(vm)
    # nothing has it open any more, and its name is free
    with open(vm.dir / 'raw', 'r+b'):
        run(vm, 'blockdev-add', driver='null-co', node_name='added')
    finish(vm, qemu_img, setup, 'base', ['base'])


def test_ownership(writer):
    """What was opened for a parent goes with it, what was added stays."""
    vm = writer()
    for name in 'one', 'two':
        (vm.dir / name).write_bytes(bytes(1 << 20))
    run(vm, 'blockdev-add', driver='raw', node_name='whole', file={
        'driver': 'file', 'node-name': 'part',
        'filename': str(vm.dir / 'one')})
    run(vm, 'blockdev-add', driver='file', node_name='own-part',
        filename=str(vm.dir / 'two'))
    run(vm, 'blockdev-add', driver='raw', node_name='own-whole',
        file='own-part')
    upgrade(vm)
    with pytest.raises(Exception, match='not owned by the monitor'):
        run(vm, 'blockdev-del', node_name='part')
    run(vm, 'blockdev-del', node_name='whole')
    run(vm, 'blockdev-del', node_name='own-whole')
    names = {n['node-name'] for n in run(vm, 'query-named-block-nodes')}
    assert names == {'base', 'base-file', 'own-part'}


def test_reopen(writer, qemu_img, setup):
    vm = writer()
    (vm.dir / 'raw').write_bytes(bytes(1 << 20))
    run(vm, 'blockdev-add', driver='raw', node_name='raw', read_only=True,
        file={'driver': 'file', 'filename': str(vm.dir / 'raw')})
    node = {'driver': 'qcow2', 'node-name': 'base', 'file': 'base-file'}
    run(vm, 'blockdev-reopen', options=[
        {**node, 'cache-size': 1 << 20, 'detect-zeroes': 'on'},
        {'driver': 'raw', 'node-name': 'raw', 'read-only': False,
         'file': run_file(vm, 'raw')}])
    before = graph(vm)[0]
    assert before['base']['detect_zeroes'] == 'on'
    assert before['raw']['ro'] is False
    upgrade(vm, 2)
    run(vm, 'blockdev-reopen', options=[node])
    assert graph(vm)[0]['base']['detect_zeroes'] == 'off'
    upgrade(vm)
    finish(vm, qemu_img, setup, 'base', ['base'])


def run_file(vm, node):
    """Name of the node below another one."""
    edges = run(vm, 'x-debug-query-block-graph')
    ids = {n.get('name'): n['id'] for n in edges['nodes']}
    names = {n['id']: n.get('name') for n in edges['nodes']}
    child, = [names[e['child']] for e in edges['edges']
              if e['parent'] == ids[node] and e['name'] == 'file']
    return child


@both
def test_resize(writer, qemu_img, setup, style):
    vm = writer(style)
    run(vm, 'block_resize', node_name=top_node(vm), size=2 * MIB << 20)
    upgrade(vm)
    assert int(vm.agent.sh('cat /sys/block/vda/size')) == 2 * MIB << 11
    vm.agent.sh('dd if=/dev/urandom of=/dev/vda bs=1M count=1 oflag=direct '
                f'seek={2 * MIB - 1} 2>/dev/null')
    finish(vm, qemu_img, setup, 'base', ['base'])


def test_change_backing_file(writer, qemu_img, setup):
    """The header's name does not say what the backing file is."""
    vm = with_snapshots(writer, qemu_img, 'drive', 1)
    (vm.dir / 'link').symlink_to('base')
    run(vm, 'change-backing-file', device='d', image_node_name='snap0',
        backing_file=str(vm.dir / 'link'))
    upgrade(vm, 2)
    assert chain(vm, qemu_img, 'snap0') == ['snap0', 'link']
    run(vm, 'change-backing-file', device='d', image_node_name='snap0',
        backing_file='no-such-file')
    upgrade(vm)
    run(vm, 'change-backing-file', device='d', image_node_name='snap0',
        backing_file=str(vm.dir / 'base'))
    upgrade(vm)
    finish(vm, qemu_img, setup, 'snap0', ['snap0', 'base'])


def test_quorum(writer):
    """A quorum counts its children when it is opened."""
    vm = writer('blockdev', '-blockdev', 'driver=quorum,node-name=quorum,'
                'vote-threshold=2,' + ','.join(
                    f'children.{i}.driver=null-co,children.{i}.read-zeroes=on'
                    for i in range(4)))
    run(vm, 'x-blockdev-change', parent='quorum', child='children.3')
    upgrade(vm)
    run(vm, 'blockdev-add', driver='null-co', node_name='added')
    run(vm, 'x-blockdev-change', parent='quorum', node='added')
    upgrade(vm)
    run(vm, 'x-blockdev-change', parent='quorum', child='children.1')
    vm.refused("block node 'quorum' (quorum) has lost a child")


def test_write_threshold(writer):
    vm = writer()
    run(vm, 'block-set-write-threshold', node_name='base-file',
        write_threshold=MIB << 30)
    upgrade(vm)
    assert graph(vm)[0]['base-file']['write_threshold'] == MIB << 30


def test_names_stay_unique(writer):
    """Nodes with generated names, carried and new, don't meet."""
    vm = writer('drive')
    for number in range(3):
        snapshot_sync(vm, f'snap{number}', {'device': 'd'})
        upgrade(vm)
    names = [n['node-name'] for n in run(vm, 'query-named-block-nodes')]
    assert len(names) == 8 and len(set(names)) == 8
    assert all(name[0] == '#' for name in names)


SECRET = 'secret,id=key,data=secret'
DRIVERS = [
    'driver=raw,offset=4096,size=65536,file.driver=file,'
    'file.filename={dir}/raw,file.cache.direct=on,file.aio=native',
    'driver=luks,key-secret=key,file.driver=file,file.filename={dir}/luks',
    'driver=qcow2,encrypt.format=luks,encrypt.key-secret=key,'
    'file.driver=file,file.filename={dir}/encrypted',
    'driver=qcow2,lazy-refcounts=on,l2-cache-size=1048576,file.driver=file,'
    'file.filename={dir}/external,data-file.driver=file,'
    'data-file.filename={dir}/data,discard=unmap,detect-zeroes=unmap',
    'driver=throttle,throttle-group=tg,file.driver=null-co,'
    'file.read-zeroes=on,cache.no-flush=on',
    'driver=copy-on-read,file.driver=qcow2,file.file.driver=file,'
    'file.file.filename={dir}/overlay,file.backing.driver=raw,'
    'file.backing.file.driver=file,file.backing.file.filename={dir}/below',
    'driver=compress,file.driver=qcow2,file.file.driver=file,'
    'file.file.filename={dir}/compressed',
    'driver=quorum,vote-threshold=2,read-pattern=quorum,'
    'children.0.driver=null-co,children.1.driver=null-co,'
    'children.2.driver=null-co',
    'driver=blkdebug,align=4096,image.driver=null-co,image.read-zeroes=on,'
    'inject-error.0.event=flush_to_os,inject-error.0.errno=5',
    'driver=blkverify,test.driver=null-co,test.read-zeroes=on,'
    'raw.driver=null-co,raw.read-zeroes=on',
    'driver=blklogwrites,file.driver=null-co,log.driver=file,'
    'log.filename={dir}/log',
    'driver=preallocate,prealloc-size=1048576,file.driver=file,'
    'file.filename={dir}/growing',
]
DRIVES = [
    'file={dir}/probed,copy-on-read=on,detect-zeroes=unmap,discard=unmap',
    'file={dir}/drive,format=raw,cache=none,aio=native,werror=stop,'
    'rerror=ignore,bps_rd=1000000,group=g',
    'file={dir}/drive2,format=raw,cache=writethrough,readonly=on',
    'file={dir}/drive3,format=qcow2,cache=unsafe,l2-cache-size=1M',
    'file=blkdebug::{dir}/drive4,format=raw,iops=100',
    'driver=null-co,size=1M,read-zeroes=on',
    'media=cdrom',
]


def test_every_driver_and_option(make_vm, qemu_img):
    vm = make_vm(args=['-object', SECRET, '-object',
                       'throttle-group,id=tg,x-iops-total=100'])
    for name in 'raw', 'below', 'log', 'growing', 'drive', 'drive2', 'drive4':
        (vm.dir / name).write_bytes(bytes(1 << 20))
    for name, *options in (
            ('luks', '-f', 'luks', '-o', 'key-secret=key,iter-time=10'),
            ('encrypted', '-f', 'qcow2', '-o', 'encrypt.format=luks,'
             'encrypt.key-secret=key,encrypt.iter-time=10'),
            ('external', '-f', 'qcow2', '-o', f'data_file={vm.dir}/data'),
            ('compressed', '-f', 'qcow2'),
            ('overlay', '-f', 'qcow2', '-F', 'raw', '-b', vm.dir / 'below'),
            ('probed', '-f', 'qcow2'), ('drive3', '-f', 'qcow2')):
        qemu_img('create', '--object', SECRET, *options, vm.dir / name, '1M')
    for number, options in enumerate(DRIVERS):
        vm.args += ['-blockdev', f'node-name=node{number},' +
                    options.format(dir=vm.dir)]
    for number, options in enumerate(DRIVES):
        vm.args += ['-drive', f'if=none,id=drive{number},' +
                    options.format(dir=vm.dir)]
    vm.boot()
    upgrade_same(vm)
    upgrade_same(vm)


# Drives

def test_drive_add_and_del(writer, qemu_img, setup):
    vm = writer('drive', '-drive', 'if=none,id=old,format=raw,file={dir}/base,'
                'read-only=on,file.locking=off,copy-on-read=off')
    (vm.dir / 'raw').write_bytes(bytes(1 << 20))
    assert not vm.qmp.hmp('drive_del old')
    upgrade(vm)
    assert 'old' not in graph(vm)[1]
    text = vm.qmp.hmp(f'drive_add 0 if=none,id=old,file={vm.dir}/raw,'
                      'format=raw,cache=none,iops=100')
    assert text.strip() == 'OK', text
    vm.qmp.hmp(f'drive_add 0 if=none,id=new,file={vm.dir}/raw,format=raw,'
               'readonly=on,file.locking=off')
    upgrade(vm, 2)
    assert graph(vm)[1]['old']['inserted']['iops'] == 100
    for name in 'old', 'new':
        assert not vm.qmp.hmp(f'drive_del {name}')
    upgrade(vm)
    finish(vm, qemu_img, setup, 'base', ['base'])


@pytest.mark.parametrize('machine', ['pc', 'microvm'])
def test_default_drives(make_vm, machine):
    vm = make_vm(machine=machine, kernel=None, args=[
        '-nic', 'none', '-serial', 'none', '-parallel', 'none', '-monitor',
        'none'])
    vm.args.remove('-nodefaults')
    vm.start()
    assert graph(vm)[1]
    upgrade_same(vm)
    upgrade_same(vm)


def test_drive_deleted_under_its_device(writer):
    vm = writer('drive')
    vm.agent.ask('disk stop /dev/vda')
    assert not vm.qmp.hmp('drive_del d')
    vm.refused("drive of device", 'drive_del')


def test_drive_of_usb_storage(writer, qemu_img):
    """It gives its drive to a disk that it makes."""
    vm = writer('blockdev', '-blockdev', 'driver=file,node-name=stick,'
                'filename={dir}/base,read-only=on,locking=off',
                '-device', 'qemu-xhci', '-device',
                'usb-storage,drive=stick,id=usb,removable=on')
    (vm.dir / 'copy').write_bytes((vm.dir / 'base').read_bytes())
    run(vm, 'blockdev-add', driver='file', node_name='copy', read_only=True,
        filename=str(vm.dir / 'copy'))
    run(vm, 'qom-set', path=usb_disk(vm), property='drive', value='copy')
    run(vm, 'blockdev-del', node_name='stick')
    upgrade(vm, 2)
    run(vm, 'eject', id=usb_disk(vm), force=True)
    vm.refused(usb_disk(vm), 'is empty')


def usb_disk(vm):
    path, = [d['qdev'] for d in run(vm, 'query-block')
             if '/usb/' in d.get('qdev', '')]
    return path


def test_node_in_another_iothread(writer):
    vm = writer('blockdev', '-object', 'iothread,id=io', '-blockdev',
                'driver=null-co,node-name=null,read-zeroes=on')

    def move(iothread):
        run(vm, 'x-blockdev-set-iothread', node_name='null', iothread=iothread)
    move('io')
    vm.refused("block node 'null' was moved to an iothread")
    move(None)
    upgrade(vm)


@both
def test_io_throttle(writer, qemu_img, setup, style):
    vm = writer(style)
    limits = dict.fromkeys(('bps', 'bps_rd', 'bps_wr', 'iops', 'iops_rd',
                            'iops_wr'), 0)

    def throttle(**changes):
        vm.qmp.reply(vm.qmp.send('block_set_io_throttle', {
            **limits, 'id': DISK, **changes}))
    throttle(iops=300, iops_max=600, iops_max_length=2, group='g')
    upgrade(vm, 2)
    info = graph(vm)[1][DISK]['inserted']
    assert (info['iops'], info['iops_max'], info['group']) == (300, 600, 'g')
    throttle()
    upgrade(vm)
    finish(vm, qemu_img, setup, 'base', ['base'])


# Media

CDROM = ('-drive', 'if=none,id=cd0,media=cdrom,format=raw,file={dir}/one',
         '-device', 'ide-cd,drive=cd0,id=cd')
CDROM_NODE = ('-blockdev', 'driver=raw,node-name=one,read-only=on,'
              'file.driver=file,file.filename={dir}/one',
              '-device', 'virtio-scsi-pci', '-device',
              'scsi-cd,drive=one,id=cd')


def wait_cd(vm, content):
    """The first access to a medium may only tell that it is another one."""
    vm.agent.wait_path('/dev/sr0')
    wait_until(lambda: vm.agent.sh(
        'dd if=/dev/sr0 bs=2k count=1 2>/dev/null | head -c 3') == content)


@pytest.mark.parametrize('cdrom', [CDROM, CDROM_NODE], ids=['ide', 'scsi'])
def test_medium(make_vm, cdrom):
    vm = make_vm()
    for name in 'one', 'two':
        (vm.dir / name).write_bytes(name.encode().ljust(1 << 20))
    vm.args += [arg.format(dir=vm.dir) for arg in cdrom]
    vm.boot()

    wait_cd(vm, 'one')
    upgrade_same(vm)
    run(vm, 'blockdev-change-medium', id='cd', format='raw', force=True,
        filename=str(vm.dir / 'two'))
    upgrade_same(vm)
    wait_cd(vm, 'two')
    run(vm, 'eject', id='cd', force=True)
    upgrade_same(vm)
    run(vm, 'blockdev-open-tray', id='cd', force=True)
    run(vm, 'blockdev-add', driver='raw', node_name='three', read_only=True,
        file={'driver': 'file', 'filename': str(vm.dir / 'two')})
    run(vm, 'blockdev-insert-medium', id='cd', node_name='three')
    upgrade_same(vm)
    run(vm, 'blockdev-close-tray', id='cd')
    upgrade_same(vm)
    wait_cd(vm, 'two')


@pytest.mark.parametrize('device', ['ide-cd', 'scsi-cd', 'floppy'])
def test_drive_that_a_device_makes(make_vm, device):
    """No option of the command line speaks of it."""
    vm = make_vm(args=['-device', 'virtio-scsi-pci',
                       '-device', f'{device},id=cd'])
    (vm.dir / 'one').write_bytes(b'one'.ljust(1440 << 10))
    vm.boot()
    upgrade_same(vm)
    run(vm, 'blockdev-add', driver='raw', node_name='one', read_only=True,
        file={'driver': 'file', 'filename': str(vm.dir / 'one')})
    run(vm, 'blockdev-open-tray', id='cd')
    run(vm, 'blockdev-insert-medium', id='cd', node_name='one')
    run(vm, 'blockdev-close-tray', id='cd')
    upgrade_same(vm)
    if device != 'floppy':
        wait_cd(vm, 'one')
    upgrade_same(vm)


def test_locked_tray(make_vm):
    vm = make_vm()
    (vm.dir / 'one').write_bytes(b'one'.ljust(1 << 20))
    vm.args += [arg.format(dir=vm.dir) for arg in CDROM]
    vm.boot()
    vm.agent.wait_path('/dev/sr0')
    vm.agent.sh('sleep 1000 < /dev/sr0 > /dev/null 2>&1 &')
    wait_until(lambda: run(vm, 'query-block')[0]['locked'])
    upgrade_same(vm)
    with pytest.raises(Exception, match='is locked'):
        run(vm, 'eject', id='cd')


def test_floppy(make_vm):
    vm = make_vm()
    for name in 'one', 'two':
        (vm.dir / name).write_bytes(name.encode().ljust(1440 << 10))
    vm.args += ['-drive', f'if=floppy,format=raw,file={vm.dir}/one',
                '-drive', 'if=floppy,index=1']
    vm.boot()
    for device, name in (('floppy0', 'two'), ('floppy1', 'one')):
        run(vm, 'blockdev-change-medium', device=device, format='raw',
            filename=str(vm.dir / name))
        upgrade_same(vm)
    run(vm, 'eject', device='floppy0')
    upgrade_same(vm)


# Dirty bitmaps

def bitmaps(vm, node):
    """What QEMU tells of each, with a checksum of its content."""
    info = graph(vm)[0][node].get('dirty-bitmaps', [])
    return {b['name']: (b, run(vm, 'x-debug-block-dirty-bitmap-sha256',
                               node=node, name=b['name'])) for b in info}


def test_bitmaps(writer, qemu_img, setup):
    vm = writer()
    for name, options in (('on', {}), ('fine', {'granularity': 512}),
                          ('off', {}), ('empty', {'granularity': 1 << 20}),
                          ('kept', {'persistent': True})):
        run(vm, 'block-dirty-bitmap-add', node='base', name=name, **options)
    wait_disk_writes(vm)
    run(vm, 'block-dirty-bitmap-add', node='base', name='merged',
        disabled=True)
    run(vm, 'block-dirty-bitmap-disable', node='base', name='off')
    run(vm, 'block-dirty-bitmap-merge', node='base', target='merged',
        bitmaps=['fine', 'off'])
    run(vm, 'block-dirty-bitmap-add', node='base', name='gone')
    run(vm, 'block-dirty-bitmap-remove', node='base', name='gone')
    check_disk(vm)
    run(vm, 'block-dirty-bitmap-clear', node='base', name='empty')
    for _ in range(2):
        before = bitmaps(vm, 'base')
        assert len(before) == 6 and before['fine'][0]['count'] > 0
        vm.upgrade()
        assert bitmaps(vm, 'base') == before
    vm.agent.sh('dd if=/dev/urandom of=/dev/vda bs=4k count=1 oflag=direct '
                '2>/dev/null')
    after = bitmaps(vm, 'base')
    assert after['empty'][0]['count'] == 1 << 20
    assert after['off'] == before['off']
    assert after['merged'] == before['merged']
    # what lies below a snapshot is read-only
    snapshot(vm, qemu_img, 'snap0')
    before = bitmaps(vm, 'base')
    vm.upgrade()
    assert bitmaps(vm, 'base') == before


def test_bitmap_misses_no_write(writer, qemu_img):
    """What it marks, copied over a copy of the image made before, makes that
    equal to the image."""
    vm = writer()
    check_disk(vm)
    qemu_img('convert', '-U', '-f', 'qcow2', '-O', 'raw', vm.dir / 'base',
             vm.dir / 'copy')
    run(vm, 'block-dirty-bitmap-add', node='base', name='b')
    vm.agent.ask(f'disk start /dev/vda 2 {MIB // 2}')
    wait_disk_writes(vm)
    upgrade_bitmap(vm, 3)
    check_disk(vm)
    run(vm, 'blockdev-add', driver='raw', node_name='target', file={
        'driver': 'file', 'filename': str(vm.dir / 'copy')})
    run(vm, 'blockdev-backup', job_id='job', device='base', target='target',
        sync='bitmap', bitmap='b', bitmap_mode='on-success')
    wait_job(vm, 'job')
    run(vm, 'blockdev-del', node_name='target')
    vm.qmp.send('quit')
    vm.qmp.wait_closed()
    vm.process.wait()
    assert 'identical' in qemu_img('compare', '-f', 'qcow2', '-F', 'raw',
                                   vm.dir / 'base', vm.dir / 'copy')


def upgrade_bitmap(vm, times):
    for _ in range(times):
        vm.upgrade()
        wait_disk_writes(vm)


def test_bitmap_too_large(writer):
    vm = writer()
    run(vm, 'blockdev-add', driver='null-co', node_name='huge',
        size=1 << 40)
    run(vm, 'block-dirty-bitmap-add', node='huge', name='large',
        granularity=512)
    vm.refused("dirty bitmap 'large' of block node 'huge'", 'bytes')
    run(vm, 'block-dirty-bitmap-remove', node='huge', name='large')
    run(vm, 'block-dirty-bitmap-add', node='huge', name='large')
    upgrade(vm)


# All together

def test_ten_upgrades_with_changes_between(writer, qemu_img, setup):
    vm = writer()
    files = ['base']
    for number in range(10):
        name = f'snap{number}'
        snapshot(vm, qemu_img, name)
        files.insert(0, name)
        run(vm, 'block-dirty-bitmap-add', node=name, name='b')
        if len(files) > 3:
            run(vm, 'block-commit', device=top_node(vm), job_id='job',
                top_node=files[1], base_node=files[2])
            wait_job(vm, 'job')
            run(vm, 'blockdev-del', node_name=files[1])
            del files[1]
        upgrade_bitmap(vm, 1)
        assert node_chain(vm) == files
    finish(vm, qemu_img, setup, 'snap9', files)


def test_after_incoming_migration(writer, make_vm, qemu_img, setup):
    """The graph is that of the destination's commands."""
    source = with_snapshots(writer, qemu_img, 'blockdev', 1)
    vm = make_vm(folder=source.dir / 'destination')
    (source.dir / 'destination').mkdir()
    vm.args += [arg.format(dir=source.dir) for arg in STYLES['blockdev']]
    vm.args[vm.args.index('virtio-blk-pci,drive=base,id=disk')] = \
        'virtio-blk-pci,drive=snap0,id=disk'
    vm.args += ['-blockdev', 'driver=qcow2,node-name=snap0,backing=base,'
                f'file.driver=file,file.filename={source.dir}/snap0',
                '-incoming', 'defer']
    vm.start()
    source.migrate_to(vm)
    wait_disk_writes(vm)
    vm.dir = source.dir
    snapshot(vm, qemu_img, 'snap1')
    upgrade(vm, 2)
    finish(vm, qemu_img, setup, 'snap1', ['snap1', 'snap0', 'base'])
