/*
 * Exec-upgrade: end a TLS session
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef QCRYPTO_TLSSESSION_EXEC_UPGRADE_H
#define QCRYPTO_TLSSESSION_EXEC_UPGRADE_H

#include "crypto/tlssession.h"

/**
 * exec_upgrade_tls_session_bye: tell the peer that a session ends
 * @session: the session, whose handshake is complete
 *
 * Sends the close_notify alert, if it can be sent at once.
 */
void exec_upgrade_tls_session_bye(QCryptoTLSSession *session);

#endif
