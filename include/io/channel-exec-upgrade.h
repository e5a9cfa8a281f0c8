/*
 * Exec-upgrade: listening sockets; end sessions that can't be carried
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef QIO_CHANNEL_EXEC_UPGRADE_H
#define QIO_CHANNEL_EXEC_UPGRADE_H

#include "io/channel.h"
#include "io/net-listener.h"

/**
 * exec_upgrade_listener_open: if it is set, what qio_net_listener_open_sync()
 * does in place of listening
 * @listener: the listener, without a socket
 * @errp: error
 *
 * Returns what that returns.
 */
extern int (*exec_upgrade_listener_open)(QIONetListener *listener,
                                         Error **errp);

/**
 * exec_upgrade_channel_bye: tell the peer that a session ends
 * @ioc: a channel whose handshakes are complete
 *
 * Sends the close frame of a websocket and the close_notify alert of TLS,
 * each if @ioc has it and the socket takes it at once.  The socket stays
 * open, and may not be used for anything but to be closed.
 */
void exec_upgrade_channel_bye(QIOChannel *ioc);

#endif
