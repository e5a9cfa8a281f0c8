# SPDX-License-Identifier: GPL-2.0-or-later
"""contrib/exec-upgrade-domains gives threads their real-time scheduler back.
libvirt makes no cgroups for the controller cpu here: a kernel with
CONFIG_RT_GROUP_SCHED grants no real time to those that it makes."""

import os

import pytest

from keeper import cgroup_hierarchies
from small import SmallDomain, install_tool, run_tool

# For threads that have nothing to do, so that nobody is kept waiting
TUNING = '''<cputune>
  <iothreadpin iothread="1" cpuset="1"/>
  <iothreadsched iothreads="1" scheduler="fifo" priority="3"/>
</cputune>'''
RUNTIME = 'cpu.rt_runtime_us'


@pytest.fixture(scope='module')
def domain(make_host):
    host = make_host(configuration='cgroup_controllers = ["cpuset"]\n')
    for hierarchy in cgroup_hierarchies(['cgroup']):
        if (hierarchy / RUNTIME).exists():
            (hierarchy / host.folder.name / RUNTIME).write_text('10000')
    host.start()
    install_tool(host)
    return SmallDomain(host, 'realtime', tuning=TUNING).start()


def test_realtime(domain, setup):
    before = domain.places()
    assert before['IO iothread1'].scheduler == (os.SCHED_FIFO, 3)
    domain.host.install(setup.new)
    run_tool(domain.host, '--all')
    assert domain.qmp('query-exec-upgrade')['count'] == 1
    assert domain.places() == before
