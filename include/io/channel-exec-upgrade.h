/*
 * Exec-upgrade: end sessions that can't be carried
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef QIO_CHANNEL_EXEC_UPGRADE_H
#define QIO_CHANNEL_EXEC_UPGRADE_H

#include "crypto/tlssession.h"
#include "io/channel.h"

/**
 * exec_upgrade_channel_bye: tell the peer that a session ends
 * @ioc: a channel whose handshakes are complete
 *
 * Sends the close frame of a websocket and the close_notify alert of TLS,
 * each if @ioc has it and the socket takes it at once.  The socket stays
 * open, and may not be used for anything but to be closed.
 */
void exec_upgrade_channel_bye(QIOChannel *ioc);

/* The part of it that is private to crypto/ */
void exec_upgrade_tls_session_bye(QCryptoTLSSession *session);

#endif
