/*
 * Exec-upgrade: what belongs to the process: its working folder, signal mask,
 * descriptors, pidfile
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <sys/prctl.h>
#include "migration/exec-upgrade-monitor.h"
#include "migration/exec-upgrade-owners.h"
#include "qapi/error.h"
#include "qapi/qapi-commands-run-state.h"
#include "qemu/error-report.h"
#include "qemu/config-file.h"
#include "qemu/option.h"
#include "qemu/qemu-options.h"
#include "qemu/thread.h"
#include "sysemu/kvm.h"
#include "sysemu/os-posix.h"
#include "sysemu/runstate-action.h"
#include "sysemu/sysemu.h"
#include "sysemu/watchdog.h"
#include "migration/exec-upgrade/carry/carry.h"

static struct {
    /* Set of descriptors that the launcher left open for us */
    GHashTable *inherited;
    /* Of -add-fd, until it is known whether exec-upgrade is on */
    GArray *add_fds;
    /* Those that got FD_CLOEXEC in save, see process_save() */
    GArray *closed_on_exec;
    char *pidfile;
    int pidfile_fd;
    bool daemonize;
    bool chroot;
    bool snapshot;
    bool plugin;
    bool mlock;
} process = {
    .pidfile_fd = -1,
};

/* Calls @func for each open descriptor without FD_CLOEXEC */
static void foreach_inheritable(void (*func)(int fd))
{
    g_autoptr(GDir) dir = g_dir_open("/proc/self/fd", 0, NULL);
    const char *name;

    while (dir && (name = g_dir_read_name(dir))) {
        int fd = atoi(name);
        int flags = fcntl(fd, F_GETFD);

        if (flags >= 0 && !(flags & FD_CLOEXEC)) {
            func(fd);
        }
    }
}

static void note_inherited(int fd)
{
    g_hash_table_add(process.inherited, GINT_TO_POINTER(fd));
}

static void close_on_exec(int fd)
{
    if (!g_hash_table_contains(process.inherited, GINT_TO_POINTER(fd))) {
        qemu_set_cloexec(fd);
        g_array_append_val(process.closed_on_exec, fd);
    }
}

/*
 * A detached process is in /.  Images that were named by a relative path are
 * opened again by it when they are inactivated, and when they are activated.
 */
static void leave_cwd(void)
{
    if (chdir("/") < 0) {
        warn_report("exec-upgrade: can't change to /: %s", strerror(errno));
    }
}

static void process_undo(void)
{
    if (is_daemonized()) {
        leave_cwd();
    }
    for (guint i = 0; i < process.closed_on_exec->len; i++) {
        fcntl(g_array_index(process.closed_on_exec, int, i), F_SETFD, 0);
    }
    g_clear_pointer(&process.closed_on_exec, g_array_unref);
}

void exec_upgrade_process_init(void)
{
    process.inherited = g_hash_table_new(NULL, NULL);
    foreach_inheritable(note_inherited);
}

bool exec_upgrade_skip_option(int index)
{
    switch (index) {
    case QEMU_OPTION_chroot:
        process.chroot = true;
        return false;
    case QEMU_OPTION_snapshot:
        process.snapshot = true;
        return false;
    case QEMU_OPTION_plugin:
        process.plugin = true;
        return false;
    case QEMU_OPTION_daemonize:
        process.daemonize = true;
        return exec_upgrade_adopting();
    case QEMU_OPTION_runas:
        exec_upgrade_sandbox_note_runas();
        return exec_upgrade_adopting();
    case QEMU_OPTION_blockdev:
    case QEMU_OPTION_incoming:
    case QEMU_OPTION_loadvm:
    case QEMU_OPTION_S:
    case QEMU_OPTION_preconfig:
        return exec_upgrade_adopting();
    case QEMU_OPTION_D:
    case QEMU_OPTION_d:
    case QEMU_OPTION_gdb:
    case QEMU_OPTION_s:
    case QEMU_OPTION_trace:
        /* Their files and sockets are in use */
        return exec_upgrade_is_stand_in();
    default:
        return false;
    }
}

static void process_check(strList **blockers)
{
    if (process.chroot) {
        exec_upgrade_add_blocker(blockers, "-chroot: the new binary and the "
                                 "images can't be reached");
    }
    if (process.snapshot) {
        exec_upgrade_add_blocker(blockers, "-snapshot: what the guest wrote "
                                 "would be lost");
    }
    if (process.plugin) {
        exec_upgrade_add_blocker(blockers, "-plugin: what a plugin knows "
                                 "can't be carried");
    }
    if (kvm_enabled() && access("/dev/kvm", R_OK | W_OK) < 0) {
        exec_upgrade_add_blocker(blockers, "/dev/kvm can't be opened again: "
                                 "%s", strerror(errno));
    }
    if (exec_upgrade_cwd() < 0) {
        exec_upgrade_add_blocker(blockers, "the working folder in which QEMU "
                                 "was started can't be read");
    }
}

/*
 * qemu_write_pidfile() keeps the descriptor to itself.  It must not be opened
 * a second time: closing that would release the lock.
 */
static int find_pidfile_fd(const char *path)
{
    g_autoptr(GDir) dir = g_dir_open("/proc/self/fd", 0, NULL);
    const char *name;
    struct stat want, st;

    if (!dir || stat(path, &want) < 0) {
        return -1;
    }
    while ((name = g_dir_read_name(dir))) {
        int fd = atoi(name);

        if (fstat(fd, &st) == 0 && st.st_dev == want.st_dev &&
            st.st_ino == want.st_ino) {
            return fd;
        }
    }
    return -1;
}

bool exec_upgrade_pidfile_adopt(const char *path)
{
    const ExecUpgradeHandoff *h = exec_upgrade_handoff();

    process.pidfile = g_strdup(path);
    /* Adopted early: another process may wait for the lock */
    return exec_upgrade_is_stand_in() || (h && h->process->has_pidfile);
}

/* Bit n-1 for signal n */
static uint64_t signals_from_set(const sigset_t *set)
{
    uint64_t signals = 0;

    for (int sig = 1; sig <= 64; sig++) {
        if (sigismember(set, sig) == 1) {
            signals |= 1ULL << (sig - 1);
        }
    }
    return signals;
}

static void signals_to_set(uint64_t signals, sigset_t *set)
{
    sigemptyset(set);
    for (int sig = 1; sig <= 64; sig++) {
        if (signals & (1ULL << (sig - 1))) {
            sigaddset(set, sig);
        }
    }
}

static bool process_save(ExecUpgradeHandoff *h, Error **errp)
{
    ExecUpgradeProcess *p = g_new0(ExecUpgradeProcess, 1);
    GHashTableIter iter;
    gpointer fd;
    sigset_t set;

    h->process = p;
    p->daemonized = is_daemonized();
    if (p->daemonized && fchdir(exec_upgrade_cwd()) < 0) {
        error_setg_errno(errp, errno, "exec-upgrade: can't change to the "
                         "working folder");
        return false;
    }
    p->cwd = exec_upgrade_fd_carry(exec_upgrade_cwd());
    p->fdsets = exec_upgrade_fdsets_save();
    pthread_sigmask(SIG_BLOCK, NULL, &set);
    p->signals = signals_from_set(&set);
    g_hash_table_iter_init(&iter, process.inherited);
    while (g_hash_table_iter_next(&iter, &fd, NULL)) {
        QAPI_LIST_PREPEND(p->inherited, GPOINTER_TO_INT(fd));
    }
    /*
     * Not all of QEMU and its libraries open files with O_CLOEXEC: one more
     * would stay open after each upgrade.
     */
    process.closed_on_exec = g_array_new(false, false, sizeof(int));
    foreach_inheritable(close_on_exec);
    if (process.pidfile) {
        int pidfile_fd = find_pidfile_fd(process.pidfile);

        if (pidfile_fd >= 0) {
            p->has_pidfile = true;
            p->pidfile = exec_upgrade_fd_carry(pidfile_fd);
        }
    }
    p->reboot = reboot_action;
    p->shutdown = shutdown_action;
    p->panic = panic_action;
    p->watchdog = get_watchdog_action();
    p->wakeup_reasons = exec_upgrade_wakeup_reasons();
    return true;
}

bool exec_upgrade_process_adopt(const ExecUpgradeHandoff *h, Error **errp)
{
    const ExecUpgradeProcess *p = h->process;
    g_autofree char *name = g_path_get_basename(exec_upgrade_argv()[0]);
    int cwd = exec_upgrade_fd_adopt(p->cwd, "the working folder", errp);
    intList *e;

    g_hash_table_remove_all(process.inherited);
    for (e = p->inherited; e; e = e->next) {
        note_inherited(e->value);
    }

    if (cwd < 0) {
        return false;
    }
    exec_upgrade_cwd_set(cwd);
    if (fchdir(cwd) < 0) {
        error_setg_errno(errp, errno, "exec-upgrade: can't change to the "
                         "working folder");
        return false;
    }
    if (!exec_upgrade_fdsets_load(p->fdsets, errp)) {
        return false;
    }
    if (p->has_pidfile &&
        exec_upgrade_fd_adopt(p->pidfile, "the pidfile", errp) < 0) {
        return false;
    }
    /* execveat(2) has named the process after the descriptor's number */
    prctl(PR_SET_NAME, name);
    return true;
}

static bool process_load(const ExecUpgradeHandoff *h, Error **errp)
{
    const ExecUpgradeProcess *p = h->process;
    sigset_t set;

    reboot_action = p->reboot;
    shutdown_action = p->shutdown;
    panic_action = p->panic;
    qmp_watchdog_set_action(p->watchdog, &error_abort);
    exec_upgrade_set_wakeup_reasons(p->wakeup_reasons);

    if (exec_upgrade_is_stand_in()) {
        /* All are blocked: they are the other process's to act on */
        return true;
    }
    signals_to_set(p->signals, &set);
    pthread_sigmask(SIG_SETMASK, &set, NULL);
    return true;
}

void exec_upgrade_keep_add_fd(int fd)
{
    if (!process.add_fds) {
        process.add_fds = g_array_new(false, false, sizeof(int));
    }
    g_array_append_val(process.add_fds, fd);
}

void exec_upgrade_process_ready(void)
{
    /* As in a QEMU without exec-upgrade, which has made a copy */
    for (guint i = 0; !exec_upgrade_enabled() && process.add_fds &&
         i < process.add_fds->len; i++) {
        close(g_array_index(process.add_fds, int, i));
    }
    g_clear_pointer(&process.add_fds, g_array_unref);
}

bool exec_upgrade_defer_mlock(void)
{
    process.mlock = exec_upgrade_adopting();
    return process.mlock;
}

static void *mlock_thread(void *opaque)
{
    os_mlock();
    return NULL;
}

static void process_commit(const ExecUpgradeHandoff *h)
{
    QemuThread thread;

    if (h->process->daemonized) {
        os_set_daemonize(true);
        leave_cwd();
    }
    if (process.mlock) {
        /* Takes long, but takes turns with the guest's page faults */
        qemu_thread_create(&thread, "mlock", mlock_thread, NULL,
                           QEMU_THREAD_DETACHED);
    }
}

const ExecUpgradeStage exec_upgrade_stage_process = {
    .name = "process",
    .check = process_check,
    .save = process_save,
    .undo = process_undo,
    .load = process_load,
    .commit = process_commit,
};
