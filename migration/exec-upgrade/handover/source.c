/*
 * Exec-upgrade: the sequence in the old process
 *
 *     check, prepare, quiesce, save, inactivate, exec
 *
 * Whatever fails before exec is undone, and the guest goes on here.  A dry run
 * never gets there:
 *
 *     check, prepare, plan, build, quiesce, save, load
 *
 * where build and load are done by a stand-in, a child process.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <sys/syscall.h>
#include "block/aio.h"
#include "migration/exec-upgrade-monitor.h"
#include "migration/exec-upgrade-owners.h"
#include "qapi/error.h"
#include "qemu/coroutine.h"
#include "qemu/cutils.h"
#include "qemu/error-report.h"
#include "qemu/main-loop.h"
#include "qemu/timer.h"
#include "sysemu/cpus.h"
#include "sysemu/cpu-timers.h"
#include "sysemu/runstate.h"
#include "migration/exec-upgrade/block/block.h"
#include "migration/exec-upgrade/handover/channel.h"
#include "migration/exec-upgrade/handover/handover.h"
#include "migration/exec-upgrade/handover/stand-in.h"
#include "migration/exec-upgrade/trace.h"

/* How often the main loop may get in between, before we give up */
#define QUIESCE_TRIES 20

/*
 * Check
 */

strList *exec_upgrade_find_blockers(void)
{
    strList *blockers = NULL;

    if (!exec_upgrade_enabled()) {
        exec_upgrade_add_blocker(&blockers, "the machine was started with "
                                 "exec-upgrade=off");
        /* Nothing was prepared for it, which is no news to the user */
        return blockers;
    }
    switch (exec_upgrade_runstate()) {
    case RUN_STATE_RUNNING:
    case RUN_STATE_PAUSED:
    case RUN_STATE_PRELAUNCH:
    case RUN_STATE_SUSPENDED:
    case RUN_STATE_IO_ERROR:
    case RUN_STATE_SHUTDOWN:
    case RUN_STATE_WATCHDOG:
    case RUN_STATE_GUEST_PANICKED:
        break;
    default:
        exec_upgrade_add_blocker(&blockers, "the guest's run state is '%s'",
                                 RunState_str(exec_upgrade_runstate()));
    }
    for (int i = 0; exec_upgrade_stages[i]; i++) {
        if (exec_upgrade_stages[i]->check) {
            exec_upgrade_stages[i]->check(&blockers);
        }
    }
    return blockers;
}

/* Takes the ownership of @blockers */
static bool no_blockers(strList *blockers, const char *where, Error **errp)
{
    g_autoptr(GString) all = g_string_new(NULL);

    for (strList *e = blockers; e; e = e->next) {
        g_string_append_printf(all, "%s%s", e == blockers ? "" : "; ",
                               e->value);
    }
    qapi_free_strList(blockers);
    if (all->len) {
        error_setg(errp, "exec-upgrade: %s%s", where, all->str);
        return false;
    }
    return true;
}

static bool check_request(const ExecUpgradeRequest *req, Error **errp)
{
    strList *blockers = NULL;

    if (!no_blockers(exec_upgrade_find_blockers(), "", errp)) {
        return false;
    }
    if (!req->check_argv) {
        return true;
    }
    return req->check_argv(req->argv, &blockers, errp) &&
           no_blockers(blockers, "arguments: ", errp);
}

/*
 * Quiesce and its reverse
 */

typedef struct ExecUpgradePause {
    RunState run_state;
    int64_t start;
} ExecUpgradePause;

static bool pause_guest(ExecUpgradePause *pause, Error **errp)
{
    int ret;

    pause->run_state = exec_upgrade_runstate();
    pause->start = g_get_monotonic_time();

    if (pause->run_state == RUN_STATE_SUSPENDED) {
        /* vm_stop() would leave both its clock and its devices running */
        cpu_disable_ticks();
        pause_all_vcpus();
        vm_state_notify(false, RUN_STATE_SUSPENDED);
    }
    ret = vm_stop(RUN_STATE_PAUSED);
    if (ret < 0) {
        error_setg_errno(errp, -ret, "exec-upgrade: can't flush the images");
        return false;
    }
    return exec_upgrade_block_quiesce(errp);
}

/*
 * Save and exec
 */

static void undo_stages(int count)
{
    /* A stage may close what it carried for the handoff only */
    exec_upgrade_fds_restore();
    while (count-- > 0) {
        if (exec_upgrade_stages[count]->undo) {
            exec_upgrade_stages[count]->undo();
        }
    }
}

static bool save_stages(ExecUpgradeHandoff *h, Error **errp)
{
    for (int i = 0; exec_upgrade_stages[i]; i++) {
        if (exec_upgrade_stages[i]->save &&
            !exec_upgrade_stages[i]->save(h, errp)) {
            undo_stages(i);
            return false;
        }
    }
    return true;
}

static int stage_count(void)
{
    int i = 0;

    while (exec_upgrade_stages[i]) {
        i++;
    }
    return i;
}

/* Returns only if it fails */
static void exec_binary(int binary_fd, char **argv, int handoff_fd,
                        Error **errp)
{
    g_autofree char *number = g_strdup_printf("%d", handoff_fd);
    sigset_t all, old;

    setenv(EXEC_UPGRADE_ENV, number, true);

    /* A signal must not find the new process before its handlers stand */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);

    if (exec_upgrade_fds_inherit(errp)) {
        syscall(SYS_execveat, binary_fd, "", argv, environ, AT_EMPTY_PATH);
        error_setg_errno(errp, errno, "exec-upgrade: can't execute the new "
                         "binary");
    }

    pthread_sigmask(SIG_SETMASK, &old, NULL);
    unsetenv(EXEC_UPGRADE_ENV);
}

/* A guest without its images must not go on */
static void reactivate(ExecUpgradePause *pause)
{
    Error *err = NULL;

    if (!exec_upgrade_block_reactivate(&err)) {
        error_report_err(err);
        pause->run_state = RUN_STATE_PAUSED;
    }
}

/* An upgrade, and where to leave the answer if it fails */
typedef struct ExecUpgradeAttempt {
    const ExecUpgradeRequest *req;
    ExecUpgradePhaseList *phases;
    Coroutine *co;
    int tries;
    Error *err;
    /* A dry run: its stand-in, and the version that this has told */
    ExecUpgradeStandIn stand_in;
    char *to;
    int64_t build_start;
    QEMUTimer *timer;
    ExecUpgradeResult *result;
} ExecUpgradeAttempt;

/* Whose stand-in is being built, while the guest runs */
static ExecUpgradeAttempt *building;

/* What there was is being taken down: nothing is begun any more */
static bool shutting_down;

static void handoff_fill(ExecUpgradeHandoff *h, const ExecUpgradeAttempt *a,
                         const ExecUpgradePause *pause)
{
    h->format = EXEC_UPGRADE_FORMAT;
    h->from = exec_upgrade_version();
    h->binary = g_strdup(a->req->path);
    h->count = exec_upgrade_count() + 1;
    h->pause_start = pause->start;
    h->run_state = pause->run_state;
}

/* Guest paused.  Returns only if it fails; then all is undone. */
static void save_and_exec(ExecUpgradeAttempt *a, ExecUpgradePause *pause)
{
    g_autoptr(ExecUpgradeHandoff) h = g_new0(ExecUpgradeHandoff, 1);
    int64_t start = pause->start;
    int handoff_fd;

    handoff_fill(h, a, pause);
    h->phases = g_steal_pointer(&a->phases);
    exec_upgrade_phase_end(&h->phases, "quiesce", &start);

    if (!save_stages(h, &a->err)) {
        return;
    }
    exec_upgrade_phase_end(&h->phases, "save", &start);

    if (!exec_upgrade_block_inactivate(&a->err)) {
        goto undo;
    }
    for (int i = 0; exec_upgrade_stages[i]; i++) {
        if (exec_upgrade_stages[i]->close) {
            exec_upgrade_stages[i]->close(h);
        }
    }
    exec_upgrade_phase_end(&h->phases, "inactivate", &start);

    h->exec_start = start;
    handoff_fd = exec_upgrade_handoff_write(h, &a->err);
    if (handoff_fd >= 0) {
        trace_exec_upgrade_exec(a->req->path);
        exec_binary(a->req->binary_fd, a->req->argv, handoff_fd, &a->err);
        close(handoff_fd);
    }
undo:
    reactivate(pause);
    undo_stages(stage_count());
}

/* The guest goes on in this process */
static void give_up(const ExecUpgradePause *pause)
{
    exec_upgrade_guest_resume(pause->run_state);
    exec_upgrade_monitor_quiet(false);
    exec_upgrade_exports_release();
}

/*
 * Dry run
 */

/* What a stand-in would share with us, and not leave as it is */
static const char *const shared_types[] = { "input-linux", "usb-host" };
static const struct {
    const char *option;
    const char *value;
} shared_options[] = {
    { "-audiodev", "wav" },
    { "-tpmdev", "" },
};

static int check_shared_type(Object *obj, void *opaque)
{
    for (int i = 0; i < ARRAY_SIZE(shared_types); i++) {
        if (object_dynamic_cast(obj, shared_types[i])) {
            g_autofree char *path = object_get_canonical_path(obj);

            exec_upgrade_add_blocker(opaque, "%s (%s) can't be opened a "
                                     "second time", path, shared_types[i]);
        }
    }
    return 0;
}

static bool check_stand_in(char **argv, Error **errp)
{
    strList *blockers = NULL;

    object_child_foreach_recursive(object_get_root(), check_shared_type,
                                   &blockers);
    for (int i = 1; argv[i] && argv[i + 1]; i++) {
        /* An option may begin with two dashes */
        const char *option = argv[i] + g_str_has_prefix(argv[i], "--");

        for (int j = 0; j < ARRAY_SIZE(shared_options); j++) {
            if (!strcmp(option, shared_options[j].option) &&
                strstr(argv[i + 1], shared_options[j].value)) {
                exec_upgrade_add_blocker(&blockers, "%s %s can't be opened a "
                                         "second time", option, argv[i + 1]);
            }
        }
    }
    return no_blockers(blockers, "dry-run: ", errp);
}

/* Waits for the message of @type, which the stand-in sends when it is done */
static bool wait_message(ExecUpgradeAttempt *a, ExecUpgradeMessageType type,
                         const char *when, int64_t deadline,
                         ExecUpgradeMessage *m)
{
    int fds[EXEC_UPGRADE_MESSAGE_FDS];

    if (!exec_upgrade_channel_receive(a->stand_in.sock, deadline, m, fds,
                                      &a->err)) {
        error_prepend(&a->err, "%s: ", when);
        return false;
    }
    if (m->type == type) {
        return true;
    }
    if (m->type == EXEC_UPGRADE_MESSAGE_END) {
        exec_upgrade_stand_in_error(&a->stand_in, when, &a->err);
        return false;
    }
    while (m->count) {
        close(fds[--m->count]);
    }
    error_setg(&a->err, "exec-upgrade: unexpected message %" PRIu32, m->type);
    return false;
}

/* Guest saved, in @h that @handoff_fd has */
static bool load_elsewhere(ExecUpgradeAttempt *a, const ExecUpgradeHandoff *h,
                           int handoff_fd, int64_t deadline)
{
    ExecUpgradeMessage m;

    if (g_get_monotonic_time() > deadline) {
        error_setg(&a->err, "exec-upgrade: the guest was not saved in time");
        return false;
    }
    return exec_upgrade_channel_send_state(a->stand_in.sock, handoff_fd,
                                           h->carried, &a->err) &&
           wait_message(a, EXEC_UPGRADE_MESSAGE_LOADED,
                        "while it loaded the guest", deadline, &m);
}

/* Guest paused.  Leaves everything as it was. */
static bool save_and_try(ExecUpgradeAttempt *a, const ExecUpgradePause *pause)
{
    g_autoptr(ExecUpgradeHandoff) h = g_new0(ExecUpgradeHandoff, 1);
    int64_t start = pause->start;
    bool ok = false;
    int handoff_fd;

    handoff_fill(h, a, pause);
    exec_upgrade_phase_end(&a->phases, "quiesce", &start);
    if (!save_stages(h, &a->err)) {
        return false;
    }
    handoff_fd = exec_upgrade_handoff_write(h, &a->err);
    exec_upgrade_phase_end(&a->phases, "save", &start);
    if (handoff_fd >= 0) {
        ok = load_elsewhere(a, h, handoff_fd,
                            pause->start + a->req->max_pause);
        close(handoff_fd);
        exec_upgrade_phase_end(&a->phases, "load", &start);
    }
    undo_stages(stage_count());
    return ok;
}

/* The guest runs again, and has since @end */
static void dry_run_result(ExecUpgradeAttempt *a,
                           const ExecUpgradePause *pause, int64_t end)
{
    ExecUpgradeResult *r = g_new0(ExecUpgradeResult, 1);

    r->from = exec_upgrade_version();
    r->to = g_steal_pointer(&a->to);
    r->binary = g_strdup(a->req->path);
    r->downtime = end - pause->start;
    exec_upgrade_phase_add(&r->pauses, "dry-run", r->downtime);
    r->phases = g_steal_pointer(&a->phases);
    a->result = r;
}

static void building_end(void)
{
    qemu_set_fd_handler(building->stand_in.sock, NULL, NULL, NULL);
    timer_free(building->timer);
    building = NULL;
}

static void building_fail(void)
{
    ExecUpgradeAttempt *a = building;

    building_end();
    exec_upgrade_stand_in_end(&a->stand_in);
    aio_co_wake(a->co);
}

static void building_timeout(void *opaque)
{
    error_setg(&building->err, "exec-upgrade: the new QEMU was not built in "
               "%" PRId64 " s", building->req->timeout / 1000);
    building_fail();
}

static bool check_shutdown(Error **errp)
{
    if (shutting_down) {
        error_setg(errp, "exec-upgrade: QEMU is shutting down");
    }
    return !shutting_down;
}

void exec_upgrade_shutdown(void)
{
    shutting_down = true;
    if (building) {
        check_shutdown(&building->err);
        building_fail();
    }
}

static void upgrade_bh(void *opaque);

static void building_ready(void *opaque)
{
    ExecUpgradeAttempt *a = building;
    ExecUpgradeMessage m;

    if (!wait_message(a, EXEC_UPGRADE_MESSAGE_READY, "while it was built", 0,
                      &m)) {
        building_fail();
        return;
    }
    a->to = g_strdup(m.text);
    exec_upgrade_phase_end(&a->phases, "build", &a->build_start);
    building_end();
    upgrade_bh(a);
}

/* Guest running.  Followed by building_ready(), unless it fails. */
static bool build_begin(ExecUpgradeAttempt *a)
{
    g_autoptr(ExecUpgradeHandoff) h = g_new0(ExecUpgradeHandoff, 1);
    ExecUpgradePause pause = {
        .run_state = exec_upgrade_runstate(),
        .start = g_get_monotonic_time(),
    };
    int64_t start = pause.start;
    bool ok = false;
    int plan_fd;

    handoff_fill(h, a, &pause);
    h->plan = true;
    if (!save_stages(h, &a->err)) {
        return false;
    }
    plan_fd = exec_upgrade_handoff_write(h, &a->err);
    if (plan_fd >= 0) {
        ok = exec_upgrade_stand_in_spawn(&a->stand_in, a->req, plan_fd,
                                         &a->err);
        close(plan_fd);
    }
    undo_stages(stage_count());
    if (!ok) {
        return false;
    }
    exec_upgrade_phase_end(&a->phases, "plan", &start);
    a->build_start = start;
    building = a;
    a->timer = timer_new_ms(QEMU_CLOCK_REALTIME, building_timeout, NULL);
    timer_mod(a->timer, qemu_clock_get_ms(QEMU_CLOCK_REALTIME) +
              a->req->timeout);
    qemu_set_fd_handler(a->stand_in.sock, building_ready, NULL, NULL);
    return true;
}

/* Guest paused; it goes on here in any case */
static void try_and_resume(ExecUpgradeAttempt *a, ExecUpgradePause *pause)
{
    bool ok = save_and_try(a, pause);
    int64_t end;

    give_up(pause);
    end = g_get_monotonic_time();
    if (ok) {
        dry_run_result(a, pause, end);
    }
}

/*
 * In the context that only the main loop itself polls: what another command
 * is doing, and polls the other one for, would be lost with its stack.
 */
static void upgrade_schedule(ExecUpgradeAttempt *a)
{
    aio_bh_schedule_oneshot(iohandler_get_aio_context(), upgrade_bh, a);
}

/* Outside of any coroutine */
static void upgrade_bh(void *opaque)
{
    ExecUpgradeAttempt *a = opaque;
    ExecUpgradePause pause;

    /* The monitors wait for their commands while QEMU ends */
    if (!check_shutdown(&a->err)) {
        goto out;
    }
    if (a->req->dry_run && !a->to) {
        if (!check_request(a->req, &a->err) ||
            !check_stand_in(a->req->argv, &a->err) || !build_begin(a)) {
            goto out;
        }
        return;
    }
    /* The guest ran since they were looked for */
    if (!check_request(a->req, &a->err) ||
        !exec_upgrade_exports_hold(&a->err)) {
        goto out;
    }
    exec_upgrade_monitor_quiet(a->req->dry_run);
    if (!pause_guest(&pause, &a->err)) {
        give_up(&pause);
        goto out;
    }
    if (exec_upgrade_runstate_request_pending()) {
        /* A reset, shutdown, …: it is the main loop's to act on */
        give_up(&pause);
        if (++a->tries < QUIESCE_TRIES) {
            upgrade_schedule(a);
            return;
        }
        error_setg(&a->err, "exec-upgrade: the guest keeps asking for a "
                   "reset, shutdown or stop");
        goto out;
    }
    if (a->req->dry_run) {
        try_and_resume(a, &pause);
    } else {
        save_and_exec(a, &pause);
        give_up(&pause);
    }
out:
    exec_upgrade_stand_in_end(&a->stand_in);
    g_free(a->to);
    if (a->co) {
        aio_co_wake(a->co);
    }
}

ExecUpgradeResult *exec_upgrade_execute(const ExecUpgradeRequest *req,
                                        Error **errp)
{
    ExecUpgradeAttempt a = {
        .req = req,
        .stand_in = { .pid = -1, .sock = -1, .stderr_fd = -1 },
    };
    int64_t start = req->start;

    if (!check_shutdown(&a.err) || !check_request(req, &a.err)) {
        goto out;
    }
    exec_upgrade_phase_end(&a.phases, "check", &start);

    if (exec_upgrade_block_prepare(&a.err)) {
        exec_upgrade_phase_end(&a.phases, "prepare", &start);
        if (qemu_in_coroutine()) {
            a.co = qemu_coroutine_self();
            upgrade_schedule(&a);
            qemu_coroutine_yield();
        } else {
            a.tries = QUIESCE_TRIES - 1;
            upgrade_bh(&a);
        }
    }
out:
    qapi_free_ExecUpgradePhaseList(a.phases);
    error_propagate(errp, a.err);
    return a.result;
}
