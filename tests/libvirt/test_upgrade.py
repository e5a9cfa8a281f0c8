# SPDX-License-Identifier: GPL-2.0-or-later
"""A domain as virt-install writes it, upgraded with one virsh command."""

from domain import Domain


def test_domain_is_upgraded(make_host, setup):
    host = make_host(configuration='seccomp_sandbox = 0\n').start()
    domain = Domain(host).start()
    domain.start_guest_agent()
    host.install(setup.new)
    domain.upgrade()
    assert host.virsh('list').split() == ['1', 'guest', 'running']
    assert domain.guest_agent('guest-ping') == {}
