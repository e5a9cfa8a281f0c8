# SPDX-License-Identifier: GPL-2.0-or-later
"""A domain of libvirt with the test guest in it."""

import json
import shutil
import xml.etree.ElementTree as ET
from pathlib import Path

from harness import TIMEOUT
from harness.agent import Agent
from harness.net import guest_network
from harness.stream import connect
from harness.vm import check_result, process_identity, version_string

from host import CABLE, EMULATOR_FILE, wait_for

XML = Path(__file__).with_name('domain.xml')
IMAGES = '/var/lib/libvirt/images/'
SIZE = '64M'


class Domain:
    """Defines a domain. @change is given the root of its XML
    (xml.etree.ElementTree), to alter it."""

    def __init__(self, host, name='guest', change=None):
        self.host = host
        self.name = name
        self.agent = None
        root = self.describe()
        if change:
            change(root)
        self.make_images()
        self.xml = ET.tostring(root, encoding='unicode')
        path = host.path(f'/run/{name}.xml')
        path.write_text(self.xml)
        host.virsh('define', f'/run/{name}.xml')

    def describe(self):
        """The root of its XML, without @change."""
        root = ET.parse(XML).getroot()
        root.find('name').text = self.name
        root.find('devices/disk/source').set(
            'file', f'{IMAGES}{self.name}.qcow2')
        root.find('devices/serial[@type="unix"]/source').set(
            'path', self.agent_path)
        return root

    @property
    def agent_path(self):
        return f'/var/lib/libvirt/qemu/{self.name}.agent'

    def make_image(self, name, size=SIZE):
        """A new qcow2 image, returns its path."""
        path = IMAGES + name
        self.host.qemu_img('create', '-q', '-f', 'qcow2', path, size)
        return path

    def make_images(self):
        self.make_image(self.name + '.qcow2')
        for number, name in enumerate(('first.iso', 'second.iso'), 1):
            path = self.host.path(IMAGES + name)
            if not path.exists():
                path.write_bytes(b'%d' % number * (1 << 20))

    # Start and end

    def start(self, *options):
        """Starts it and waits for the guest."""
        self.host.virsh('start', self.name, *options)
        return self.connect_agent()

    def connect_agent(self, ready=True):
        """Talks to the guest of a process that nobody talked to yet."""
        if self.agent:
            self.agent.close()
        self.agent = Agent(connect(str(self.host.path(self.agent_path))))
        if ready:
            self.agent.wait_ready()
        else:
            self.agent.resume()
        return self

    def goes_on(self, before, memory):
        """Checks that the guest is in another process, which libvirt made
        from the state of the last, what it was: what it answered there to
        counter and mem verify."""
        self.connect_agent(ready=False)
        assert self.agent.ask('counter')['boot_id'] == before['boot_id']
        assert self.agent.ask('mem verify') == memory
        self.agent.check_log()

    def start_guest_agent(self):
        """Starts qemu-ga in the guest, and waits until libvirt sees it."""
        port = wait_for(self.guest_agent_port, "the agent's port")
        self.agent.sh(f'/usr/sbin/qemu-ga -d -m virtio-serial -p {port} '
                      '> /run/qemu-ga.log 2>&1')
        wait_for(self.guest_agent_connected, "the guest agent's connection")

    def start_acpid(self):
        """Has the guest heed the power button. acpid listens to the devices
        that are there when it starts."""
        button = '/sys/devices/LNXSYSTM:00/LNXPWRBN:00/input'
        wait_for(lambda: self.agent.sh(f'ls {button}/*/ 2> /dev/null | '
                                       'grep event || true'),
                 'the power button')
        self.agent.sh('acpid -l /run/acpid.log')

    def guest_agent_port(self):
        """The guest's name of the channel, once it has loaded a driver."""
        name = self.agent.sh('grep -l guest_agent '
                             '/sys/class/virtio-ports/*/name || true')
        return name.startswith('/sys') and f'/dev/{name.split("/")[4]}'

    def guest_agent_connected(self):
        target = ET.fromstring(self.virsh('dumpxml')).find(
            'devices/channel/target[@name="org.qemu.guest_agent.0"]')
        return target.get('state') == 'connected'

    def start_network(self):
        guest_network(self)

    # What libvirt says

    def virsh(self, command, *args, **kwargs):
        """virsh COMMAND DOMAIN ARGUMENTS"""
        return self.host.virsh(command, self.name, *args, **kwargs)

    def qmp(self, command, timeout=TIMEOUT, **arguments):
        """Sends a command to QEMU through libvirt; returns the reply."""
        message = {'execute': command}
        if arguments:
            message['arguments'] = arguments
        reply = json.loads(self.virsh('qemu-monitor-command',
                                      json.dumps(message), timeout=timeout))
        if 'error' in reply:
            raise QMPError(reply['error']['desc'])
        return reply['return']

    def guest_agent(self, command, **kwargs):
        return json.loads(self.virsh('qemu-agent-command', json.dumps(
            {'execute': command}), **kwargs))['return']

    def inner_pid(self):
        """QEMU's process id in the host."""
        return int(self.host.path(
            f'/run/libvirt/qemu/{self.name}.pid').read_text())

    @property
    def pid(self):
        return self.host.outer_pid(self.inner_pid())

    def log(self):
        """What QEMU wrote to its log."""
        return self.host.path(
            f'/var/log/libvirt/qemu/{self.name}.log').read_text()

    def migrate(self, other):
        """To another host, with its disks."""
        self.virsh('migrate', *self.migrate_options(other))
        self.host = other

    def migrate_options(self, other):
        """For virsh migrate; makes the images that libvirt is to fill. Not
        --live: with TCG, a guest that writes meanwhile came out damaged,
        without any upgrade, too."""
        for row in self.virsh('domblklist', '--details').splitlines():
            _, device, _, path = row.split()
            if device == 'disk':
                other.qemu_img('create', '-q', '-f', 'qcow2', path, SIZE)
            else:
                shutil.copyfile(self.host.path(path), other.path(path))
        return ('--copy-storage-all', '--persistent', '--desturi', other.uri,
                '--migrateuri', f'tcp://{CABLE[1]}')

    # The upgrade

    def upgrade(self, **arguments):
        """Upgrades to what is installed; checks what holds for every
        upgrade and returns the ExecUpgradeResult."""
        before = process_identity(self.pid)
        version = version_string(self.qmp('query-version'))
        state = self.virsh('domstate')
        result = self.qmp('exec-upgrade', **arguments)
        check_result(result)
        assert process_identity(self.pid) == before
        assert result['from'] == version
        assert result['to'] == version_string(self.qmp('query-version'))
        assert result['binary'] == EMULATOR_FILE
        assert result['dropped'] == []
        assert self.virsh('domstate') == state
        return result

    def refused(self, *reasons, **arguments):
        """Expects that an upgrade is refused for all of these reasons."""
        before = process_identity(self.pid)
        try:
            result = self.qmp('exec-upgrade', **arguments)
        except QMPError as error:
            text = str(error)
        else:
            raise AssertionError(f'not refused: {result}')
        for reason in reasons:
            assert reason in text, text
        assert process_identity(self.pid) == before
        return text


class QMPError(Exception):
    """QEMU's answer to a command."""
