/*
 * Exec-upgrade: block exports of programs that can't be upgraded
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "block/exec-upgrade.h"
#include "io/channel-exec-upgrade.h"

void exec_upgrade_export_added(const BlockExportOptions *options)
{
}

int exec_upgrade_listener_open(QIONetListener *listener, SocketAddress *addr,
                               int backlog, Error **errp)
{
    return qio_net_listener_open_sync(listener, addr, backlog, errp);
}
