/*
 * Exec-upgrade: the command, and its sequence in the old and new process
 *
 *     old: check, prepare, quiesce, save, inactivate, exec
 *     new: adopt, load, commit, resume
 *
 * Whatever fails before exec is undone, and the guest goes on here.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <sys/syscall.h>
#include "block/aio.h"
#include "qapi/clone-visitor.h"
#include "qapi/error.h"
#include "qapi/qapi-commands-exec-upgrade.h"
#include "qapi/qapi-events-exec-upgrade.h"
#include "qapi/qapi-visit-exec-upgrade.h"
#include "qemu/coroutine.h"
#include "qemu/cutils.h"
#include "qemu/error-report.h"
#include "qemu/main-loop.h"
#include "qemu/timer.h"
#include "qemu-version.h"
#include "sysemu/cpus.h"
#include "sysemu/cpu-timers.h"
#include "sysemu/runstate.h"
#include "internal.h"
#include "trace.h"

/* How often the main loop may get in between, before we give up */
#define QUIESCE_TRIES 20

static struct {
    bool in_progress;
    int64_t count;
    ExecUpgradeResult *last;
    char *last_error;
    /* New process, until commit: what the old one left */
    ExecUpgradeHandoff *handoff;
    int64_t adopt_start;
} upgrade;

/* Microseconds of CLOCK_MONOTONIC, which goes on across execve(2) */
static int64_t now_us(void)
{
    return g_get_monotonic_time();
}

char *exec_upgrade_version(void)
{
    return g_strdup(QEMU_FULL_VERSION);
}

bool exec_upgrade_adopting(void)
{
    return upgrade.handoff;
}

const ExecUpgradeHandoff *exec_upgrade_handoff(void)
{
    return upgrade.handoff;
}

void exec_upgrade_add_blocker(strList **blockers, const char *fmt, ...)
{
    va_list ap;

    while (*blockers) {
        blockers = &(*blockers)->next;
    }
    va_start(ap, fmt);
    QAPI_LIST_PREPEND(*blockers, g_strdup_vprintf(fmt, ap));
    va_end(ap);
}

bool exec_upgrade_list_has(const strList *list, const char *value)
{
    for (; list; list = list->next) {
        if (!strcmp(list->value, value)) {
            return true;
        }
    }
    return false;
}

static void phase_add(ExecUpgradePhaseList **phases, const char *name,
                      int64_t duration)
{
    ExecUpgradePhase *phase = g_new0(ExecUpgradePhase, 1);

    phase->name = g_strdup(name);
    phase->duration = duration;
    while (*phases) {
        phases = &(*phases)->next;
    }
    QAPI_LIST_PREPEND(*phases, phase);
    trace_exec_upgrade_phase(name, duration);
}

/* Ends the phase that began at *@start; the next one begins */
static void phase_end(ExecUpgradePhaseList **phases, const char *name,
                      int64_t *start)
{
    int64_t now = now_us();

    phase_add(phases, name, now - *start);
    *start = now;
}

/*
 * Check
 */

static strList *find_blockers(void)
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
    pause->start = now_us();

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

static void resume_guest(RunState run_state)
{
    switch (run_state) {
    case RUN_STATE_RUNNING:
        vm_start();
        break;
    case RUN_STATE_SUSPENDED:
        cpu_enable_ticks();
        vm_state_notify(true, RUN_STATE_RUNNING);
        break;
    default:
        break;
    }
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

/* What to execute, and where to leave the answer if that fails */
typedef struct ExecUpgradeRequest {
    const char *path;
    int binary_fd;
    char **argv;
    bool has_arguments;
    ExecUpgradePhaseList *phases;
    Coroutine *co;
    int tries;
    Error *err;
} ExecUpgradeRequest;

static bool check_request(const ExecUpgradeRequest *req, Error **errp)
{
    strList *blockers = NULL;

    if (!no_blockers(find_blockers(), "", errp)) {
        return false;
    }
    if (!req->has_arguments) {
        return true;
    }
    return exec_upgrade_arguments_check(req->argv, &blockers, errp) &&
           no_blockers(blockers, "arguments: ", errp);
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

/* Guest paused.  Returns only if it fails; then all is undone. */
static void save_and_exec(ExecUpgradeRequest *req, ExecUpgradePause *pause)
{
    g_autoptr(ExecUpgradeHandoff) h = g_new0(ExecUpgradeHandoff, 1);
    int64_t start = pause->start;
    int handoff_fd;

    h->format = EXEC_UPGRADE_FORMAT;
    h->from = exec_upgrade_version();
    h->binary = g_strdup(req->path);
    h->count = upgrade.count + 1;
    h->pause_start = pause->start;
    h->run_state = pause->run_state;
    h->phases = g_steal_pointer(&req->phases);
    phase_end(&h->phases, "quiesce", &start);

    if (!save_stages(h, &req->err)) {
        exec_upgrade_fds_restore();
        return;
    }
    phase_end(&h->phases, "save", &start);

    if (!exec_upgrade_block_inactivate(&req->err)) {
        goto undo;
    }
    for (int i = 0; exec_upgrade_stages[i]; i++) {
        if (exec_upgrade_stages[i]->close) {
            exec_upgrade_stages[i]->close(h);
        }
    }
    phase_end(&h->phases, "inactivate", &start);

    h->exec_start = start;
    handoff_fd = exec_upgrade_handoff_write(h, &req->err);
    if (handoff_fd >= 0) {
        trace_exec_upgrade_exec(req->path);
        exec_binary(req->binary_fd, req->argv, handoff_fd, &req->err);
        close(handoff_fd);
    }
undo:
    reactivate(pause);
    undo_stages(stage_count());
    exec_upgrade_fds_restore();
}

/* The guest goes on in this process */
static void give_up(const ExecUpgradePause *pause)
{
    resume_guest(pause->run_state);
    exec_upgrade_exports_release();
}

static void upgrade_bh(void *opaque);

/*
 * In the context that only the main loop itself polls: what another command
 * is doing, and polls the other one for, would be lost with its stack.
 */
static void upgrade_schedule(ExecUpgradeRequest *req)
{
    aio_bh_schedule_oneshot(iohandler_get_aio_context(), upgrade_bh, req);
}

/* Outside of any coroutine */
static void upgrade_bh(void *opaque)
{
    ExecUpgradeRequest *req = opaque;
    ExecUpgradePause pause;

    /* The guest ran since they were looked for */
    if (!check_request(req, &req->err) ||
        !exec_upgrade_exports_hold(&req->err)) {
        goto out;
    }
    if (!pause_guest(&pause, &req->err)) {
        give_up(&pause);
        goto out;
    }
    if (exec_upgrade_runstate_request_pending()) {
        /* A reset, shutdown, …: it is the main loop's to act on */
        give_up(&pause);
        if (++req->tries < QUIESCE_TRIES) {
            upgrade_schedule(req);
            return;
        }
        error_setg(&req->err, "exec-upgrade: the guest keeps asking for a "
                   "reset, shutdown or stop");
        goto out;
    }
    save_and_exec(req, &pause);
    give_up(&pause);
out:
    if (req->co) {
        aio_co_wake(req->co);
    }
}

static bool check_arguments(bool has_arguments, strList *arguments,
                            Error **errp)
{
    if (has_arguments && !arguments) {
        error_setg(errp, "exec-upgrade: 'arguments' is empty");
        return false;
    }
    for (strList *e = has_arguments ? arguments : NULL; e; e = e->next) {
        /* QEMU's JSON parser turns \u0000 into this */
        if (strstr(e->value, "\xC0\x80")) {
            error_setg(errp, "exec-upgrade: 'arguments' contains a NUL");
            return false;
        }
    }
    return true;
}

static char **build_argv(bool has_arguments, strList *arguments)
{
    char **own = exec_upgrade_argv();
    g_autoptr(GPtrArray) argv = g_ptr_array_new();

    if (!has_arguments) {
        return g_strdupv(own);
    }
    g_ptr_array_add(argv, g_strdup(own[0]));
    for (strList *e = arguments; e; e = e->next) {
        g_ptr_array_add(argv, g_strdup(e->value));
    }
    g_ptr_array_add(argv, NULL);
    return (char **)g_ptr_array_free(g_steal_pointer(&argv), false);
}

/* Returns only if it fails, with req.err set */
static void upgrade_or_fail(const char *binary, bool has_arguments,
                                    strList *arguments, Error **errp)
{
    ExecUpgradeRequest req = { .binary_fd = -1 };
    g_autofree char *path = NULL;
    int64_t start = now_us();

    path = binary ? g_strdup(binary) : exec_upgrade_binary_path(errp);
    if (!path || !check_arguments(has_arguments, arguments, errp)) {
        return;
    }
    req.path = path;
    req.binary_fd = exec_upgrade_binary_open(path, errp);
    if (req.binary_fd < 0) {
        return;
    }
    req.has_arguments = has_arguments;
    req.argv = build_argv(has_arguments, arguments);
    if (!check_request(&req, &req.err)) {
        goto out;
    }
    phase_end(&req.phases, "check", &start);

    if (exec_upgrade_block_prepare(&req.err)) {
        phase_end(&req.phases, "prepare", &start);
        if (qemu_in_coroutine()) {
            req.co = qemu_coroutine_self();
            upgrade_schedule(&req);
            qemu_coroutine_yield();
        } else {
            req.tries = QUIESCE_TRIES - 1;
            upgrade_bh(&req);
        }
    }
out:
    qapi_free_ExecUpgradePhaseList(req.phases);
    g_strfreev(req.argv);
    close(req.binary_fd);
    error_propagate(errp, req.err);
}

ExecUpgradeResult *qmp_exec_upgrade(bool has_binary, const char *binary,
                                    bool has_arguments, strList *arguments,
                                    bool has_rehearse, bool rehearse,
                                    Error **errp)
{
    Error *err = NULL;

    if (upgrade.in_progress) {
        error_setg(errp, "exec-upgrade: another one is already running");
        return NULL;
    }
    upgrade.in_progress = true;
    upgrade_or_fail(has_binary ? binary : NULL, has_arguments,
                            arguments, &err);
    upgrade.in_progress = false;

    g_free(upgrade.last_error);
    upgrade.last_error = g_strdup(error_get_pretty(err));
    qapi_event_send_exec_upgrade(EXEC_UPGRADE_STATUS_FAILED, false, NULL, true,
                                 upgrade.last_error);
    error_propagate(errp, err);
    return NULL;
}

ExecUpgradeInfo *qmp_query_exec_upgrade(Error **errp)
{
    ExecUpgradeInfo *info = g_new0(ExecUpgradeInfo, 1);

    info->enabled = exec_upgrade_enabled();
    info->blockers = find_blockers();
    if (upgrade.in_progress) {
        exec_upgrade_add_blocker(&info->blockers,
                                 "an exec-upgrade is already running");
    }
    info->count = upgrade.count;
    info->changes = exec_upgrade_ledger_changes();
    info->configuration = exec_upgrade_configuration_query();
    if (upgrade.last) {
        info->has_last = true;
        info->last = QAPI_CLONE(ExecUpgradeResult, upgrade.last);
    }
    if (upgrade.last_error) {
        info->has_last_error = true;
        info->last_error = g_strdup(upgrade.last_error);
    }
    return info;
}

/*
 * The new process
 */

void exec_upgrade_init(char **argv)
{
    const char *env = getenv(EXEC_UPGRADE_ENV);
    Error *err = NULL;
    int fd;

    exec_upgrade_process_init(argv);
    if (!env) {
        return;
    }
    upgrade.adopt_start = now_us();
    if (qemu_strtoi(env, NULL, 10, &fd) < 0 || fd < 0) {
        error_report("%s: not a descriptor's number: %s", EXEC_UPGRADE_ENV,
                     env);
        exit(1);
    }
    unsetenv(EXEC_UPGRADE_ENV);
    upgrade.handoff = exec_upgrade_handoff_read(fd, &err);
    if (!upgrade.handoff ||
        !exec_upgrade_process_adopt(upgrade.handoff, &err)) {
        error_report_err(err);
        exit(1);
    }
    upgrade.count = upgrade.handoff->count;
    runstate_set(RUN_STATE_INMIGRATE);
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

void exec_upgrade_machine_ready(void)
{
    ExecUpgradeHandoff *h = upgrade.handoff;
    ExecUpgradeResult *result;
    int64_t start = now_us();
    Error *err = NULL;

    exec_upgrade_process_ready();
    if (!h) {
        exec_upgrade_configuration_note();
        exec_upgrade_block_note();
        return;
    }
    phase_add(&h->phases, "exec", upgrade.adopt_start - h->exec_start);
    phase_add(&h->phases, "adopt", start - upgrade.adopt_start);

    if (!load_stages(h, &err)) {
        error_report_err(err);
        exit(1);
    }
    phase_end(&h->phases, "load", &start);

    /* Out of INMIGRATE first: in it, activation puts off its permissions */
    runstate_set(h->run_state == RUN_STATE_RUNNING ? RUN_STATE_PAUSED
                                                   : h->run_state);
    if (!exec_upgrade_block_activate(&err)) {
        error_report_err(err);
        exit(1);
    }
    phase_end(&h->phases, "commit", &start);

    upgrade.handoff = NULL;
    resume_guest(h->run_state);
    phase_end(&h->phases, "resume", &start);

    result = g_new0(ExecUpgradeResult, 1);
    result->from = g_steal_pointer(&h->from);
    result->to = exec_upgrade_version();
    result->binary = g_steal_pointer(&h->binary);
    result->downtime = start - h->pause_start;
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
