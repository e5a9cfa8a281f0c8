/*
 * Exec-upgrade: under -sandbox spawn=deny
 *
 * A seccomp filter outlives execve(2) and can't be lifted, so that the filter
 * of spawn=deny has to let the execveat(2) of an upgrade through.  It can't
 * see what is executed; Landlock can, and comes first.  It allows the folder
 * of the running binary, if nothing but QEMU is in it, and the folder of the
 * dynamic loader: the loader itself is another file after an upgrade of the C
 * library, and it runs any file that can be read and would be executable.
 *
 * Where that is not possible the filter is that of any QEMU, and the process
 * can't be upgraded.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <linux/landlock.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include "qapi/clone-visitor.h"
#include "qapi/error.h"
#include "qapi/qapi-builtin-visit.h"
#include "qapi/qmp/qdict.h"
#include "qapi/util.h"
#include "qemu/config-file.h"
#include "qemu/cutils.h"
#include "qemu/option.h"
#include "qemu/rcu.h"
#include "qemu/thread.h"
#include "migration/exec-upgrade/carry/carry.h"

/* The first Landlock that can allow a rename to another folder */
#define LANDLOCK_ABI_MIN 2

typedef struct Place {
    char *path;
    struct stat st;
} Place;

static struct {
    /* What this process was told */
    bool spawn_denied;
    /* The filter lets an upgrade through, or will once it is there */
    bool open;
    /* Why an upgrade is not possible, NULL if it is */
    char *closed_reason;
    /* Hashes of what has been laid on this process, by whichever QEMU */
    strList *filters;
    strList *landlocks;
    /* Of the binary, and of its loader, without a path if it is static */
    Place folder;
    Place loader_folder;
    bool runas;
} sandbox;

bool exec_upgrade_sandbox_is_open(void)
{
    return sandbox.open;
}

bool exec_upgrade_sandbox_has_filter(const char *hash)
{
    return exec_upgrade_list_has(sandbox.filters, hash);
}

void exec_upgrade_sandbox_note_filter(const char *hash)
{
    QAPI_LIST_PREPEND(sandbox.filters, g_strdup(hash));
}

void exec_upgrade_sandbox_note_runas(void)
{
    sandbox.runas = true;
}

/*
 * What may be executed
 */

/* Whether the process's user could change the file or folder */
static bool is_writable(int dirfd, const char *name, const struct stat *st)
{
    if (sandbox.runas) {
        /* Not that user yet */
        return st->st_uid != 0 || (st->st_mode & (S_IWGRP | S_IWOTH));
    }
    return geteuid() != 0 &&
           (st->st_uid == geteuid() ||
            faccessat(dirfd, name, W_OK, AT_EACCESS) == 0);
}

static bool check_entry(int dirfd, const char *folder, const char *name,
                        Error **errp)
{
    struct stat st;
    bool is_qemu;
    int fd;

    if (fstatat(dirfd, name, &st, AT_SYMLINK_NOFOLLOW) < 0) {
        /* Gone meanwhile, as a package manager's temporary file */
        return true;
    }
    if (S_ISDIR(st.st_mode)) {
        error_setg(errp, "%s has the folder '%s' in it, expected only QEMU "
                   "binaries", folder, name);
        return false;
    }
    /* A link is as good as what it leads to: no reason to look there */
    if (!S_ISREG(st.st_mode) ||
        !(st.st_mode & (S_IXUSR | S_IXGRP | S_IXOTH))) {
        return true;
    }
    fd = openat(dirfd, name, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    is_qemu = fd >= 0 && exec_upgrade_binary_has_note(fd);
    if (fd >= 0) {
        close(fd);
    }
    if (!is_qemu) {
        error_setg(errp, "%s has the program '%s' in it, expected only QEMU "
                   "binaries that support exec-upgrade", folder, name);
        return false;
    }
    if (is_writable(dirfd, name, &st)) {
        error_setg(errp, "QEMU's user may write to %s/%s", folder, name);
        return false;
    }
    return true;
}

/* Whether nothing but QEMU can be executed from the folder */
static bool check_folder(const char *path, Error **errp)
{
    g_autoptr(GError) gerr = NULL;
    g_autoptr(GDir) dir = NULL;
    const char *name;
    struct stat st;
    bool ok = true;
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

    if (fd < 0 || fstat(fd, &st) < 0) {
        error_setg_errno(errp, errno, "can't open the folder %s", path);
        ok = false;
    } else if (is_writable(fd, ".", &st)) {
        error_setg(errp, "QEMU's user may write to %s", path);
        ok = false;
    } else {
        dir = g_dir_open(path, 0, &gerr);
        if (!dir) {
            error_setg(errp, "can't read the folder: %s", gerr->message);
            ok = false;
        }
    }
    while (ok && (name = g_dir_read_name(dir))) {
        ok = check_entry(fd, path, name, errp);
    }
    if (fd >= 0) {
        close(fd);
    }
    return ok;
}

static bool place_find(Place *place, char *path, Error **errp)
{
    place->path = path;
    if (stat(path, &place->st) < 0) {
        error_setg_errno(errp, errno, "can't find %s", path);
        return false;
    }
    return true;
}

static bool place_is(const Place *place, const struct stat *st)
{
    return st->st_dev == place->st.st_dev && st->st_ino == place->st.st_ino;
}

/* Where the running binary lies, and what loads it */
static bool find_places(Error **errp)
{
    g_autofree char *binary = exec_upgrade_binary_path(errp);
    g_autofree char *loader = NULL;
    g_autofree char *real_loader = NULL;
    int fd;

    if (!binary ||
        !place_find(&sandbox.folder, g_path_get_dirname(binary), errp)) {
        return false;
    }
    fd = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        error_setg_errno(errp, errno, "can't read the running binary");
        return false;
    }
    loader = exec_upgrade_binary_loader(fd);
    close(fd);
    if (!loader) {
        return true;
    }
    real_loader = realpath(loader, NULL);
    return place_find(&sandbox.loader_folder,
                      g_path_get_dirname(real_loader ?: loader), errp);
}

/*
 * Landlock
 */

static bool landlock_check_kernel(Error **errp)
{
    long abi = syscall(SYS_landlock_create_ruleset, NULL, 0,
                       LANDLOCK_CREATE_RULESET_VERSION);

    if (abi < 0) {
        error_setg_errno(errp, errno, "this kernel has no Landlock%s",
                         errno == EOPNOTSUPP ? " (add landlock to its lsm= "
                                               "parameter)" : "");
        return false;
    }
    if (abi < LANDLOCK_ABI_MIN) {
        error_setg(errp, "this kernel has version %ld of Landlock, expected "
                   "%d or newer (Linux 5.19)", abi, LANDLOCK_ABI_MIN);
        return false;
    }
    return true;
}

static bool landlock_allow(int ruleset, const char *path, uint64_t access,
                           Error **errp)
{
    struct landlock_path_beneath_attr rule = {
        .allowed_access = access,
        .parent_fd = open(path, O_PATH | O_CLOEXEC),
    };
    long ret = rule.parent_fd < 0 ? -1 :
               syscall(SYS_landlock_add_rule, ruleset,
                       LANDLOCK_RULE_PATH_BENEATH, &rule, 0);

    if (ret < 0) {
        error_setg_errno(errp, errno, "can't allow %s with Landlock", path);
    }
    if (rule.parent_fd >= 0) {
        close(rule.parent_fd);
    }
    return ret == 0;
}

/* Returns a descriptor of a ruleset, or -1 */
static int landlock_build(Error **errp)
{
    const struct landlock_ruleset_attr attr = {
        .handled_access_fs = LANDLOCK_ACCESS_FS_EXECUTE |
                             LANDLOCK_ACCESS_FS_REFER,
    };
    int ruleset = syscall(SYS_landlock_create_ruleset, &attr, sizeof(attr), 0);

    if (ruleset < 0) {
        error_setg_errno(errp, errno, "can't use Landlock");
        return -1;
    }
    /* Without REFER on / no file could be moved to another folder any more */
    if (!landlock_allow(ruleset, "/", LANDLOCK_ACCESS_FS_REFER, errp) ||
        !landlock_allow(ruleset, sandbox.folder.path,
                        LANDLOCK_ACCESS_FS_EXECUTE, errp) ||
        (sandbox.loader_folder.path &&
         !landlock_allow(ruleset, sandbox.loader_folder.path,
                         LANDLOCK_ACCESS_FS_EXECUTE, errp))) {
        close(ruleset);
        return -1;
    }
    return ruleset;
}

/* Of what landlock_build() allows */
static char *landlock_hash(void)
{
    g_autofree char *rules =
        g_strdup_printf("execute %ju:%ju %ju:%ju, refer /",
                        (uintmax_t)sandbox.folder.st.st_dev,
                        (uintmax_t)sandbox.folder.st.st_ino,
                        (uintmax_t)sandbox.loader_folder.st.st_dev,
                        (uintmax_t)sandbox.loader_folder.st.st_ino);

    return g_compute_checksum_for_string(G_CHECKSUM_SHA256, rules, -1);
}

/* For the calling thread, and those that it will create */
static bool restrict_thread(int ruleset, Error **errp)
{
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 ||
        syscall(SYS_landlock_restrict_self, ruleset, 0) < 0) {
        error_setg_errno(errp, errno, "can't apply Landlock");
        return false;
    }
    return true;
}

typedef struct RcuRestriction {
    struct rcu_head rcu;
    int ruleset;
    Error *err;
} RcuRestriction;

/* There must be no thread but the main one and this one, RCU's */
static bool check_threads(Error **errp)
{
    g_autoptr(GDir) dir = g_dir_open("/proc/self/task", 0, NULL);
    const char *name;

    if (!dir) {
        error_setg(errp, "can't read /proc/self/task");
        return false;
    }
    while ((name = g_dir_read_name(dir))) {
        int tid = atoi(name);

        if (tid != getpid() && tid != qemu_get_thread_id()) {
            error_setg(errp, "thread %d is there too early to be sandboxed",
                       tid);
            return false;
        }
    }
    return true;
}

static void restrict_rcu_thread(struct rcu_head *head)
{
    RcuRestriction *r = container_of(head, RcuRestriction, rcu);

    if (check_threads(&r->err)) {
        restrict_thread(r->ruleset, &r->err);
    }
}

/*
 * Landlock is a thread's own.  RCU's runs since before main(), and all others
 * are created after this.
 */
static bool restrict_process(Error **errp)
{
    g_autofree char *hash = landlock_hash();
    RcuRestriction r = { .ruleset = -1 };
    bool ok;

    if (exec_upgrade_list_has(sandbox.landlocks, hash)) {
        return true;
    }
    r.ruleset = landlock_build(errp);
    if (r.ruleset < 0) {
        return false;
    }
    call_rcu1(&r.rcu, restrict_rcu_thread);
    drain_call_rcu();
    error_propagate(errp, r.err);
    ok = !r.err && restrict_thread(r.ruleset, errp);
    close(r.ruleset);
    if (ok) {
        QAPI_LIST_PREPEND(sandbox.landlocks, g_steal_pointer(&hash));
    }
    return ok;
}

/*
 * The command line
 */

static int denies_spawn(void *opaque, QemuOpts *opts, Error **errp)
{
    return qemu_opt_get_bool(opts, "enable", false) &&
           !g_strcmp0(qemu_opt_get(opts, "spawn"), "deny");
}

static bool is_spawn_denied(void)
{
    QemuOptsList *list = qemu_find_opts_err("sandbox", NULL);

    return list && qemu_opts_foreach(list, denies_spawn, NULL, NULL);
}

/* A value that is not a boolean is an error, later */
static bool is_turned_off(const QDict *machine_opts)
{
    const char *value = qdict_get_try_str(machine_opts, "exec-upgrade");
    bool on;

    return value && qapi_bool_parse("exec-upgrade", value, &on, NULL) && !on;
}

static bool prepare(Error **errp)
{
    if (!find_places(errp)) {
        return false;
    }
    return !sandbox.spawn_denied ||
           (check_folder(sandbox.folder.path, errp) &&
            landlock_check_kernel(errp) && restrict_process(errp));
}

void exec_upgrade_sandbox_init(const QDict *machine_opts)
{
    const ExecUpgradeHandoff *h = exec_upgrade_handoff();
    Error *err = NULL;

    if (h && h->has_sandbox) {
        sandbox.filters = QAPI_CLONE(strList, h->sandbox->filters);
        sandbox.landlocks = QAPI_CLONE(strList, h->sandbox->landlocks);
    }
    sandbox.spawn_denied = is_spawn_denied();
    if (!sandbox.spawn_denied && !sandbox.landlocks) {
        return;
    }
    if (is_turned_off(machine_opts)) {
        return;
    }
    if (!prepare(&err)) {
        sandbox.closed_reason = g_strdup(error_get_pretty(err));
        error_free(err);
        return;
    }
    sandbox.open = sandbox.spawn_denied;
}

/*
 * The upgrade
 */

bool exec_upgrade_sandbox_check_binary(const char *path, Error **errp)
{
    g_autofree char *real = NULL;
    g_autofree char *folder = NULL;
    struct stat st;

    /* No folder is known with exec-upgrade=off, which is refused anyway */
    if (!sandbox.landlocks || sandbox.closed_reason || !sandbox.folder.path) {
        return true;
    }
    real = realpath(path, NULL);
    folder = g_path_get_dirname(real ?: path);
    if (stat(folder, &st) < 0 || !place_is(&sandbox.folder, &st)) {
        error_setg(errp, "exec-upgrade: %s is not in %s, the only folder from "
                   "which a process under -sandbox spawn=deny may execute; "
                   "install it there", path, sandbox.folder.path);
        return false;
    }
    return true;
}

/* Landlock knows the very folders that it was shown */
static bool check_same(const Place *place, Error **errp)
{
    struct stat st;

    if (place->path && (stat(place->path, &st) < 0 || !place_is(place, &st))) {
        error_setg(errp, "the folder %s was replaced since the guest was "
                   "started, and only the former one may be used",
                   place->path);
        return false;
    }
    return true;
}

static void sandbox_check(strList **blockers)
{
    Error *err = NULL;

    if (sandbox.closed_reason) {
        exec_upgrade_add_blocker(blockers, "-sandbox spawn=deny: %s; have "
            "QEMU in a folder of its own, such as /usr/libexec/qemu-system, "
            "with a link to it from where it is started, on Linux 5.19 or "
            "newer with Landlock, or use -sandbox spawn=allow; then start the "
            "guest anew", sandbox.closed_reason);
        return;
    }
    if (!sandbox.landlocks) {
        return;
    }
    if (!check_same(&sandbox.folder, &err) ||
        !check_same(&sandbox.loader_folder, &err) ||
        !check_folder(sandbox.folder.path, &err)) {
        exec_upgrade_add_blocker(blockers, "-sandbox spawn=deny: %s",
                                 error_get_pretty(err));
        error_free(err);
    }
}

static bool sandbox_save(ExecUpgradeHandoff *h, Error **errp)
{
    if (sandbox.filters || sandbox.landlocks) {
        h->has_sandbox = true;
        h->sandbox = g_new0(ExecUpgradeSandbox, 1);
        h->sandbox->filters = QAPI_CLONE(strList, sandbox.filters);
        h->sandbox->landlocks = QAPI_CLONE(strList, sandbox.landlocks);
    }
    return true;
}

const ExecUpgradeStage exec_upgrade_stage_sandbox = {
    .name = "sandbox",
    .check = sandbox_check,
    .save = sandbox_save,
};
