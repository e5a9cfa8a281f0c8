/*
 * Exec-upgrade: the sequence in the old and the new process
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef EXEC_UPGRADE_HANDOVER_H
#define EXEC_UPGRADE_HANDOVER_H

#include "migration/exec-upgrade/core/core.h"

/* The stage table: see ExecUpgradeStage for the order of its use */
extern const ExecUpgradeStage *const exec_upgrade_stages[];

/*
 * The old process
 */

/* exec_upgrade_find_blockers: what stands in the way; the caller frees it */
strList *exec_upgrade_find_blockers(void);

/**
 * ExecUpgradeRequest: what to execute
 *
 * @path: path of the binary
 * @binary_fd: a descriptor of it for execveat(2)
 * @argv: its command line, NULL-terminated
 * @check_argv: append to @blockers why @argv does not make what there is;
 *              false with an error if it can't be parsed.  NULL if @argv is
 *              that of this process.
 * @dry_run: have a stand-in load the guest, and go on here
 * @max_pause: of a dry run, in microseconds
 * @timeout: for building its stand-in, in milliseconds
 * @start: when the user asked for it, in microseconds of CLOCK_MONOTONIC
 */
typedef struct ExecUpgradeRequest {
    const char *path;
    int binary_fd;
    char **argv;
    bool (*check_argv)(char **argv, strList **blockers, Error **errp);
    bool dry_run;
    int64_t max_pause;
    int64_t timeout;
    int64_t start;
} ExecUpgradeRequest;

/**
 * exec_upgrade_execute: replace this process, or try whether that works
 * @req: by what; stays the caller's
 * @errp: error
 *
 * Returns only if it fails; then all is undone.  Returns what was done, which
 * the caller frees, after a dry run that succeeds; that must be called from a
 * coroutine.  Lets the guest run, and other commands be executed, if called
 * from a coroutine.
 */
ExecUpgradeResult *exec_upgrade_execute(const ExecUpgradeRequest *req,
                                        Error **errp);

/*
 * The new process
 */

/* exec_upgrade_count: how many upgrades this guest has had */
int64_t exec_upgrade_count(void);

/* exec_upgrade_last_result: that of the last one, or NULL */
const ExecUpgradeResult *exec_upgrade_last_result(void);

/*
 * Both
 */

/*
 * exec_upgrade_phase_add: append a phase that took @duration microseconds
 * exec_upgrade_phase_end: end the one that began at *@start, in microseconds of
 * CLOCK_MONOTONIC; the next one begins
 */
void exec_upgrade_phase_add(ExecUpgradePhaseList **phases, const char *name,
                            int64_t duration);
void exec_upgrade_phase_end(ExecUpgradePhaseList **phases, const char *name,
                            int64_t *start);

/* exec_upgrade_guest_resume: let it go on as it did in @run_state */
void exec_upgrade_guest_resume(RunState run_state);

#endif
