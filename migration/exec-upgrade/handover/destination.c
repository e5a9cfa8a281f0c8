/*
 * Exec-upgrade: the sequence in the new process
 *
 *     adopt, load, commit, resume
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qapi/qapi-events-exec-upgrade.h"
#include "qapi/qapi-visit-exec-upgrade.h"
#include "qemu/cutils.h"
#include "qemu/error-report.h"
#include "qemu/exec-upgrade.h"
#include "sysemu/runstate.h"
#include "migration/exec-upgrade/block/block.h"
#include "migration/exec-upgrade/carry/carry.h"
#include "migration/exec-upgrade/handover/channel.h"
#include "migration/exec-upgrade/handover/handover.h"
#include "migration/exec-upgrade/ledger/ledger.h"

static struct {
    int64_t count;
    ExecUpgradeResult *last;
    /* Until commit: what the old process left */
    ExecUpgradeHandoff *handoff;
    int64_t adopt_start;
    /* Stand-in: socket to its parent */
    int sock;
} upgrade;

int64_t exec_upgrade_count(void)
{
    return upgrade.count;
}

const ExecUpgradeResult *exec_upgrade_last_result(void)
{
    return upgrade.last;
}

/* The number of a descriptor that the variable @name holds; removes that */
static int take_number(const char *name, const char *value)
{
    int fd;

    if (qemu_strtoi(value, NULL, 10, &fd) < 0 || fd < 0) {
        error_report("%s: not a descriptor's number: %s", name, value);
        exit(1);
    }
    unsetenv(name);
    return fd;
}

void exec_upgrade_init(char **argv)
{
    const char *env = getenv(EXEC_UPGRADE_ENV);
    Error *err = NULL;
    int fd;

    exec_upgrade_process_init();
    exec_upgrade_ledger_init();
    exec_upgrade_properties_init();
    exec_upgrade_launch_note(argv);
    if (!env) {
        return;
    }
    upgrade.adopt_start = g_get_monotonic_time();
    fd = take_number(EXEC_UPGRADE_ENV, env);
    env = getenv(EXEC_UPGRADE_CHANNEL_ENV);
    if (env) {
        upgrade.sock = take_number(EXEC_UPGRADE_CHANNEL_ENV, env);
        qemu_set_cloexec(upgrade.sock);
        exec_upgrade_set_stand_in();
    }
    upgrade.handoff = exec_upgrade_handoff_read(fd, &err);
    exec_upgrade_handoff_set(upgrade.handoff);
    if (!upgrade.handoff ||
        !exec_upgrade_process_adopt(upgrade.handoff, &err)) {
        error_report_err(err);
        exit(1);
    }
    upgrade.count = upgrade.handoff->count;
    runstate_set(RUN_STATE_INMIGRATE);
}

static bool build_stages(const ExecUpgradeHandoff *h, Error **errp)
{
    for (int i = 0; exec_upgrade_stages[i]; i++) {
        if (exec_upgrade_stages[i]->build &&
            !exec_upgrade_stages[i]->build(h, errp)) {
            return false;
        }
    }
    return true;
}

static bool load_stages(const ExecUpgradeHandoff *h, Error **errp)
{
    for (int i = 0; exec_upgrade_stages[i]; i++) {
        if (exec_upgrade_stages[i]->load &&
            !exec_upgrade_stages[i]->load(h, errp)) {
            return false;
        }
    }
    return true;
}

/* The stand-in has nothing to clean up, and must not */
static void G_NORETURN stand_in_exit(Error *err)
{
    if (err) {
        error_report_err(err);
    }
    _exit(err ? EXIT_FAILURE : EXIT_SUCCESS);
}

/* Waits for the state, and for what it names; NULL if the parent has ended */
static ExecUpgradeHandoff *receive_state(Error **errp)
{
    int fds[EXEC_UPGRADE_MESSAGE_FDS];
    ExecUpgradeMessage m;

    while (exec_upgrade_channel_receive(upgrade.sock, 0, &m, fds, errp)) {
        switch (m.type) {
        case EXEC_UPGRADE_MESSAGE_DESCRIPTORS:
            exec_upgrade_fds_received(m.numbers, fds, m.count);
            break;
        case EXEC_UPGRADE_MESSAGE_STATE:
            return exec_upgrade_handoff_read(fds[0], errp);
        case EXEC_UPGRADE_MESSAGE_END:
            return NULL;
        default:
            error_setg(errp, "exec-upgrade: unexpected message %" PRIu32,
                       m.type);
            return NULL;
        }
    }
    return NULL;
}

/*
 * The machine is built.  Nothing but this thread runs, and it does not return
 * to the main loop, so that nothing is read from what is carried.
 */
static void G_NORETURN stand_in_run(void)
{
    g_autofree char *version = exec_upgrade_version();
    int fds[EXEC_UPGRADE_MESSAGE_FDS];
    ExecUpgradeHandoff *h;
    ExecUpgradeMessage m;
    Error *err = NULL;

    if (!exec_upgrade_channel_send(upgrade.sock, EXEC_UPGRADE_MESSAGE_READY,
                                   version, &err)) {
        stand_in_exit(err);
    }
    h = receive_state(&err);
    if (!h) {
        stand_in_exit(err);
    }
    exec_upgrade_handoff_set(h);
    if (!load_stages(h, &err) ||
        !exec_upgrade_channel_send(upgrade.sock, EXEC_UPGRADE_MESSAGE_LOADED,
                                   "", &err)) {
        stand_in_exit(err);
    }
    exec_upgrade_channel_receive(upgrade.sock, 0, &m, fds, &err);
    stand_in_exit(err);
}

void exec_upgrade_machine_ready(void)
{
    ExecUpgradeHandoff *h = upgrade.handoff;
    ExecUpgradeResult *result;
    int64_t start = g_get_monotonic_time();
    Error *err = NULL;

    exec_upgrade_process_ready();
    if (!h) {
        exec_upgrade_configuration_note();
        exec_upgrade_block_note();
        return;
    }
    if (!build_stages(h, &err)) {
        error_report_err(err);
        exit(1);
    }
    if (exec_upgrade_is_stand_in()) {
        stand_in_run();
    }
    exec_upgrade_phase_add(&h->phases, "exec",
                           upgrade.adopt_start - h->exec_start);
    exec_upgrade_phase_add(&h->phases, "adopt", start - upgrade.adopt_start);

    if (!load_stages(h, &err)) {
        error_report_err(err);
        exit(1);
    }
    exec_upgrade_phase_end(&h->phases, "load", &start);

    /* Out of INMIGRATE first: in it, activation puts off its permissions */
    runstate_set(h->run_state == RUN_STATE_RUNNING ? RUN_STATE_PAUSED
                                                   : h->run_state);
    if (!exec_upgrade_block_activate(&err)) {
        error_report_err(err);
        exit(1);
    }
    exec_upgrade_phase_end(&h->phases, "commit", &start);

    upgrade.handoff = NULL;
    exec_upgrade_handoff_set(NULL);
    exec_upgrade_guest_resume(h->run_state);
    exec_upgrade_phase_end(&h->phases, "resume", &start);

    result = g_new0(ExecUpgradeResult, 1);
    result->from = g_steal_pointer(&h->from);
    result->to = exec_upgrade_version();
    result->binary = g_steal_pointer(&h->binary);
    result->downtime = start - h->pause_start;
    exec_upgrade_phase_add(&result->pauses, "upgrade", result->downtime);
    result->phases = g_steal_pointer(&h->phases);
    result->dropped = g_steal_pointer(&h->dropped);
    upgrade.last = result;

    for (int i = 0; exec_upgrade_stages[i]; i++) {
        if (exec_upgrade_stages[i]->commit) {
            exec_upgrade_stages[i]->commit(h);
        }
    }
    exec_upgrade_fds_close_rest(h);
    exec_upgrade_configuration_note();
    exec_upgrade_monitor_reply(h, result);
    qapi_event_send_exec_upgrade(EXEC_UPGRADE_STATUS_COMPLETED, true, result,
                                 false, NULL);
    exec_upgrade_monitor_go_on();
    qapi_free_ExecUpgradeHandoff(h);
}
