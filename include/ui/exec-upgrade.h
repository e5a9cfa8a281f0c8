/*
 * Exec-upgrade: display servers
 *
 * What QEMU's display servers call.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef UI_EXEC_UPGRADE_H
#define UI_EXEC_UPGRADE_H

struct VncDisplay;
struct RedsState;

/* The stage of VNC, in ui/vnc-exec-upgrade.c.inc */
extern const struct ExecUpgradeStage exec_upgrade_stage_vnc;

/* That of SPICE, set when its code is there, which may be a module */
extern const struct ExecUpgradeStage *exec_upgrade_spice;

/**
 * exec_upgrade_vnc_open: adopt a VNC server's listening sockets and password
 * @vd: the server, complete but for these
 * @errp: error
 *
 * Returns false if there is nothing to adopt.
 */
bool exec_upgrade_vnc_open(struct VncDisplay *vd, Error **errp);

/**
 * exec_upgrade_spice_open: adopt the SPICE server's listening socket
 * @server: the server, not initialized yet
 * @port: its port; set to 0 if it need not be opened
 * @tls_port: that for TLS, likewise
 * @flags: SPICE_ADDR_FLAG_...; set to 0 likewise
 */
void exec_upgrade_spice_open(struct RedsState *server, int *port,
                             int *tls_port, int *flags);

/**
 * exec_upgrade_spice_watch: libspice-server watches a descriptor
 * @fd: the descriptor
 */
void exec_upgrade_spice_watch(int fd);

#endif
