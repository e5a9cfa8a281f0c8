# SPDX-License-Identifier: GPL-2.0-or-later
"""Starts QEMU with a test guest, upgrades it, and asks the guest.

A test asks for the fixture boot and says what it wants:

    def test_disk(boot):
        vm = boot(args=['-drive', 'if=virtio,format=raw,file=...'])
        vm.agent.ask('mem fill 75')
        vm.upgrade()                    # from the old release to the new
        assert vm.agent.ask('mem verify')['errors'] == 0

boot(...) takes the arguments of vm.VM; the guest has answered when it
returns. vm.upgrade() checks all that must hold for any upgrade (same process,
same connection, one reply, nothing but one event, same run state, quiet
stderr) and returns the result. vm.refused(...) expects an error instead, and
that the guest did not notice. vm.qmp is a client that sees the raw stream
(qmp.QMP), vm.agent the program in the guest (agent.Agent; commands in
tests/guest/*.c), vm.dir a folder that goes away with the test.

Waiting is for a message, an event or an answer, always with a time limit;
never for time to pass.
"""

import os

# Every wait fails after this time. A loaded machine may need more.
TIMEOUT = float(os.environ.get('EXEC_UPGRADE_TEST_TIMEOUT', 60))
