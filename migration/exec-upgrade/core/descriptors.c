/*
 * Exec-upgrade: descriptors that stay open across execve(2)
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qemu/cutils.h"
#include "migration/exec-upgrade/core/core.h"
#include "migration/exec-upgrade/trace.h"

/* Seals that a finished memfd has: nobody can change it any more */
#define ALL_SEALS (F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE)

/* Descriptors that the old process keeps open across execve(2): int */
static GArray *carried;

/* Numbers of those that the new process has taken over */
static GHashTable *adopted;

/* What came in a message: its number in the sender to that here */
static GHashTable *received;

/* Whom exec_upgrade_fds_on_adopt() has named */
static void (*on_adopt)(int fd);

bool exec_upgrade_seal(int fd, Error **errp)
{
    if (fcntl(fd, F_ADD_SEALS, ALL_SEALS) < 0) {
        error_setg_errno(errp, errno, "exec-upgrade: can't seal memfd");
        return false;
    }
    return true;
}

bool exec_upgrade_check_sealed(int fd, const char *what, Error **errp)
{
    int seals = fcntl(fd, F_GET_SEALS);

    if (seals < 0 || (seals & ALL_SEALS) != ALL_SEALS) {
        error_setg(errp, "exec-upgrade: descriptor %d is not a sealed memfd, "
                   "expected %s", fd, what);
        return false;
    }
    return true;
}

ExecUpgradeFd *exec_upgrade_fd_carry(int fd)
{
    ExecUpgradeFd *efd = g_new0(ExecUpgradeFd, 1);
    struct stat st;
    int flags = fcntl(fd, F_GETFD);

    /* The caller has it open: these can't fail */
    if (flags < 0 || fstat(fd, &st) < 0) {
        g_assert_not_reached();
    }
    *efd = (ExecUpgradeFd) {
        .number = fd,
        .device = st.st_dev,
        .inode = st.st_ino,
        .mode = st.st_mode,
        .cloexec = flags & FD_CLOEXEC,
    };
    if (efd->cloexec) {
        if (!carried) {
            carried = g_array_new(false, false, sizeof(int));
        }
        g_array_append_val(carried, fd);
    }
    return efd;
}

intList *exec_upgrade_fds_carried(void)
{
    intList *list = NULL;

    for (guint i = 0; carried && i < carried->len; i++) {
        QAPI_LIST_PREPEND(list, g_array_index(carried, int, i));
    }
    return list;
}

bool exec_upgrade_fds_inherit(Error **errp)
{
    for (guint i = 0; carried && i < carried->len; i++) {
        int fd = g_array_index(carried, int, i);

        if (fcntl(fd, F_SETFD, 0) < 0) {
            error_setg_errno(errp, errno,
                             "exec-upgrade: can't keep descriptor %d", fd);
            return false;
        }
    }
    return true;
}

void exec_upgrade_fds_restore(void)
{
    for (guint i = 0; carried && i < carried->len; i++) {
        qemu_set_cloexec(g_array_index(carried, int, i));
    }
    g_clear_pointer(&carried, g_array_unref);
}

void exec_upgrade_fds_on_adopt(void (*func)(int fd))
{
    on_adopt = func;
}

void exec_upgrade_fds_received(const int *numbers, const int *fds, int n)
{
    if (!received) {
        received = g_hash_table_new(NULL, NULL);
    }
    while (n--) {
        g_hash_table_insert(received, GINT_TO_POINTER(numbers[n]),
                            GINT_TO_POINTER(fds[n]));
    }
}

/* Where we have what the other process has under @number */
static int64_t own_number(int64_t number)
{
    gpointer fd;

    return received && number >= 0 && number <= INT_MAX &&
           g_hash_table_lookup_extended(received, GINT_TO_POINTER(number),
                                        NULL, &fd)
           ? GPOINTER_TO_INT(fd) : number;
}

int exec_upgrade_fd_adopt(const ExecUpgradeFd *efd, const char *what,
                          Error **errp)
{
    int64_t number = own_number(efd->number);
    struct stat st;

    if (number < 0 || number > INT_MAX || fstat(number, &st) < 0) {
        error_setg(errp, "exec-upgrade: descriptor %" PRId64 " of %s is not "
                   "open", efd->number, what);
        return -1;
    }
    if (st.st_dev != efd->device || st.st_ino != efd->inode ||
        (st.st_mode & S_IFMT) != (efd->mode & S_IFMT)) {
        error_setg(errp, "exec-upgrade: descriptor %" PRId64 " is another "
                   "file than the one that %s had", efd->number, what);
        return -1;
    }
    if (efd->cloexec) {
        qemu_set_cloexec(number);
    }
    if (!adopted) {
        adopted = g_hash_table_new(NULL, NULL);
    }
    g_hash_table_add(adopted, GINT_TO_POINTER(number));
    if (on_adopt) {
        on_adopt(number);
    }
    return number;
}

static bool is_inherited(const ExecUpgradeHandoff *h, int fd)
{
    intList *e;

    for (e = h->process->inherited; e; e = e->next) {
        if (e->value == fd) {
            return true;
        }
    }
    return false;
}

void exec_upgrade_fds_close_rest(const ExecUpgradeHandoff *h)
{
    intList *e;

    for (e = h->carried; e; e = e->next) {
        int fd = e->value;

        if (!g_hash_table_contains(adopted, GINT_TO_POINTER(fd)) &&
            !is_inherited(h, fd)) {
            trace_exec_upgrade_fd_close(fd);
            close(fd);
        }
    }
    g_clear_pointer(&adopted, g_hash_table_unref);
}
