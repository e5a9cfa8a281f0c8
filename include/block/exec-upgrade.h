/*
 * Exec-upgrade: block exports
 *
 * What block exports call, and what of them is private to their files.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef BLOCK_EXEC_UPGRADE_H
#define BLOCK_EXEC_UPGRADE_H

#include "block/dirty-bitmap.h"
#include "block/export.h"
#include "crypto/tlscreds.h"
#include "io/net-listener.h"
#include "qemu/vhost-user-server.h"

/**
 * exec_upgrade_export_added: a block export was made
 * @options: what it was made with
 */
void exec_upgrade_export_added(const BlockExportOptions *options);

/*
 * ExecUpgradeNbdServerState: the NBD server, all of whose members stay its own
 *
 * @tls_creds: NULL without TLS
 * @tls_authz: id of the object that authorizes clients, or NULL
 * @max_connections: 0 is no limit
 */
typedef struct ExecUpgradeNbdServerState {
    QIONetListener *listener;
    QCryptoTLSCreds *tls_creds;
    const char *tls_authz;
    uint32_t max_connections;
    uint32_t connections;
} ExecUpgradeNbdServerState;

/* exec_upgrade_nbd_server: fill in @state; returns false if it doesn't run */
bool exec_upgrade_nbd_server(ExecUpgradeNbdServerState *state);

/*
 * exec_upgrade_nbd_hold: from now on, or not any more, a client that has
 * chosen an export waits before its first request
 * exec_upgrade_nbd_held: whether clients are to wait
 */
void exec_upgrade_nbd_hold(bool hold);
bool exec_upgrade_nbd_held(void);

/* exec_upgrade_nbd_export_clients: call @func for each client of @exp */
void exec_upgrade_nbd_export_clients(BlockExport *exp,
                                     void (*func)(QIOChannelSocket *sioc,
                                                  void *opaque), void *opaque);

/*
 * exec_upgrade_nbd_export_drive: name of the drive with whose medium @exp
 * ends, or NULL
 */
const char *exec_upgrade_nbd_export_drive(BlockExport *exp);

/**
 * exec_upgrade_nbd_export_bitmaps: the dirty bitmaps that an export offers
 * @exp: the export
 * @count: set to their number
 *
 * Returns the export's own array.
 */
BdrvDirtyBitmap **exec_upgrade_nbd_export_bitmaps(BlockExport *exp,
                                                  size_t *count);

/* exec_upgrade_vhost_user_blk_server: the server of a vhost-user-blk export */
VuServer *exec_upgrade_vhost_user_blk_server(BlockExport *exp);

#endif
