/*
 * Exec-upgrade: a child process that executes the new binary
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef EXEC_UPGRADE_STAND_IN_H
#define EXEC_UPGRADE_STAND_IN_H

#include "migration/exec-upgrade/handover/handover.h"

/**
 * ExecUpgradeStandIn: a stand-in as its parent sees it
 *
 * @pid: process id, -1 if there is none
 * @sock: socket to it, or -1
 * @stderr_fd: file that is its standard error, or -1
 */
typedef struct ExecUpgradeStandIn {
    pid_t pid;
    int sock;
    int stderr_fd;
} ExecUpgradeStandIn;

/**
 * exec_upgrade_stand_in_spawn: start one
 * @s: gets what it is
 * @req: what to execute
 * @plan_fd: the handoff that it is built from, without FD_CLOEXEC; stays the
 *           caller's
 * @errp: error
 *
 * What exec_upgrade_fd_carry() has noted is open in it.
 */
bool exec_upgrade_stand_in_spawn(ExecUpgradeStandIn *s,
                                 const ExecUpgradeRequest *req, int plan_fd,
                                 Error **errp);

/* exec_upgrade_stand_in_end: kill it, wait for its end, free what @s has */
void exec_upgrade_stand_in_end(ExecUpgradeStandIn *s);

/**
 * exec_upgrade_stand_in_error: tell why it has ended, and what it said last
 * @s: the stand-in, whose socket was closed by it
 * @when: doing what
 * @errp: error
 */
void exec_upgrade_stand_in_error(ExecUpgradeStandIn *s, const char *when,
                                 Error **errp);

#endif
