/*
 * Exec-upgrade: listening sockets
 *
 * They stay open, so that no port is ever free for others, no path is
 * unlinked, and who connects meanwhile waits.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "io/channel-exec-upgrade.h"
#include "io/net-listener.h"
#include "migration/exec-upgrade/core/core.h"

/* What qio_net_listener_open_sync() is to take over */
static const ExecUpgradeFdList *carried;

ExecUpgradeFdList *exec_upgrade_listener_save(QIONetListener *listener)
{
    ExecUpgradeFdList *list = NULL, **tail = &list;

    for (size_t i = 0; listener && i < listener->nsioc; i++) {
        QAPI_LIST_APPEND(tail, exec_upgrade_fd_carry(listener->sioc[i]->fd));
    }
    return list;
}

bool exec_upgrade_listener_adopt(QIONetListener *listener,
                                 const ExecUpgradeFdList *fds,
                                 const char *what, Error **errp)
{
    for (; fds; fds = fds->next) {
        int fd = exec_upgrade_fd_adopt(fds->value, what, errp);
        QIOChannelSocket *sioc;

        if (fd < 0) {
            return false;
        }
        sioc = qio_channel_socket_new_fd(fd, errp);
        if (!sioc) {
            close(fd);
            return false;
        }
        qio_net_listener_add(listener, sioc);
        object_unref(OBJECT(sioc));
    }
    return true;
}

void exec_upgrade_listener_own(QIONetListener *listener)
{
    for (size_t i = 0; listener && i < listener->nsioc; i++) {
        qio_channel_set_feature(QIO_CHANNEL(listener->sioc[i]),
                                QIO_CHANNEL_FEATURE_LISTEN);
    }
}

static int open_carried(QIONetListener *listener, Error **errp)
{
    if (!exec_upgrade_listener_adopt(listener, carried, "listening socket",
                                     errp)) {
        return -1;
    }
    exec_upgrade_listener_own(listener);
    return 0;
}

void exec_upgrade_listener_carried(const ExecUpgradeFdList *fds)
{
    carried = fds;
    exec_upgrade_listener_open = fds ? open_carried : NULL;
}
