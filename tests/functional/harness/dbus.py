# SPDX-License-Identifier: GPL-2.0-or-later
"""A D-Bus bus of a test's own, and helpers on it whose state QEMU migrates
(docs/interop/dbus-vmstate.rst)."""

import contextlib
import select
import subprocess
import threading

from gi.repository import Gio, GLib

from . import TIMEOUT
from .vm import die_with_parent

INTERFACE = 'org.qemu.VMState1'
XML = f"""<node><interface name="{INTERFACE}">
<property name="Id" type="s" access="read"/>
<method name="Load"><arg type="ay" name="data" direction="in"/></method>
<method name="Save"><arg type="ay" name="data" direction="out"/></method>
</interface></node>"""

CONFIG = """<busconfig><type>session</type><listen>unix:path={path}</listen>
<auth>EXTERNAL</auth><policy context="default"><allow user="*"/>
<allow own="*"/><allow send_destination="*" eavesdrop="true"/>
<allow eavesdrop="true"/></policy></busconfig>"""


class Bus:
    """Runs until it is closed; @folder has its socket."""

    def __init__(self, folder):
        config = folder / 'bus.conf'
        config.write_text(CONFIG.format(path=folder / 'bus'))
        # pylint: disable=consider-using-with
        self.process = subprocess.Popen(
            ['dbus-daemon', f'--config-file={config}', '--nofork',
             '--print-address'], stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, text=True,
            preexec_fn=die_with_parent)
        assert select.select([self.process.stdout], [], [], TIMEOUT)[0]
        assert self.process.stdout.readline()
        self.address = f'unix:path={folder}/bus'

    def close(self):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


class Helper(threading.Thread):
    """Has an id and a state (bytes), and notes in @calls what it is asked
    for. @error: it answers with errors only."""

    def __init__(self, bus, ident, state, error=False):
        super().__init__(daemon=True)
        self.bus, self.helper_id = bus, ident
        self.state, self.error = state, error
        self.calls = []
        self.ready = threading.Event()
        self.loop = None
        self.start()
        assert self.ready.wait(TIMEOUT)

    def run(self):
        context = GLib.MainContext.new()
        context.push_thread_default()
        self.loop = GLib.MainLoop.new(context, False)
        connection = Gio.DBusConnection.new_for_address_sync(
            self.bus.address,
            Gio.DBusConnectionFlags.AUTHENTICATION_CLIENT |
            Gio.DBusConnectionFlags.MESSAGE_BUS_CONNECTION, None, None)
        connection.register_object(
            '/org/qemu/VMState1', Gio.DBusNodeInfo.new_for_xml(XML)
            .interfaces[0], self.called, self.property, None)
        connection.call_sync(
            'org.freedesktop.DBus', '/org/freedesktop/DBus',
            'org.freedesktop.DBus', 'RequestName',
            GLib.Variant('(su)', (INTERFACE, 0)), None,
            Gio.DBusCallFlags.NONE, -1, None)
        self.ready.set()
        self.loop.run()
        with contextlib.suppress(GLib.Error):
            connection.close_sync(None)

    def property(self, *_):
        return GLib.Variant('s', self.helper_id)

    def called(self, *args):
        method, parameters, invocation = args[-3:]
        self.calls.append(method)
        if self.error:
            invocation.return_dbus_error('org.qemu.Error', 'as asked for')
        elif method == 'Save':
            invocation.return_value(GLib.Variant('(ay)', (self.state,)))
        else:
            self.state = bytes(parameters.unpack()[0])
            invocation.return_value(None)

    def close(self):
        self.loop.quit()
        self.join()
