/*
 * Exec-upgrade: what every program's libraries know of it
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef QEMU_EXEC_UPGRADE_H
#define QEMU_EXEC_UPGRADE_H

/* Environment variable with the number of the handoff's descriptor */
#define EXEC_UPGRADE_ENV "QEMU_EXEC_UPGRADE_HANDOFF"

/* The same with that of a stand-in's socket to its parent */
#define EXEC_UPGRADE_CHANNEL_ENV "QEMU_EXEC_UPGRADE_CHANNEL"

/**
 * exec_upgrade_adopting: whether this process is still taking over a guest
 *
 * True from exec_upgrade_init() until the guest can go on.  Until then
 * nothing may be read from a carried connection, or written to the guest's
 * memory or images.
 */
bool exec_upgrade_adopting(void);

/* exec_upgrade_set_adopting: it is, or not any more; for migration/ only */
void exec_upgrade_set_adopting(bool adopting);

/**
 * exec_upgrade_is_stand_in: whether this process is the stand-in of another
 *
 * The guest is the other one's.  Nothing outside of this process may change:
 * no guest memory, image, lock, socket, terminal, or file's name.
 */
bool exec_upgrade_is_stand_in(void);

/* exec_upgrade_set_stand_in: it is; for migration/ only */
void exec_upgrade_set_stand_in(void);

/**
 * exec_upgrade_thread_retry: whether to try again to create a thread
 * @name: its name
 * @err: what pthread_create(3) has returned
 *
 * Returns true, after a short wait, in a process that is adopting a guest and
 * that has been refused a thread for want of memory or numbers: the host may
 * have run short for a moment, and the guest would be lost.  Standard error
 * has a line of it if that lasts.
 */
bool exec_upgrade_thread_retry(const char *name, int err);

#endif
