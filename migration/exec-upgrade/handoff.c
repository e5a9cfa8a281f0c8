/*
 * Exec-upgrade: the handoff, and the descriptors that it names
 *
 * The handoff is one JSON document of type ExecUpgradeHandoff in a sealed
 * memfd.  Its descriptor's number is in an environment variable.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qapi/qapi-visit-exec-upgrade.h"
#include "qapi/qmp/qjson.h"
#include "qapi/qmp/qobject.h"
#include "qapi/qobject-input-visitor.h"
#include "qapi/qobject-output-visitor.h"
#include "qemu/memfd.h"
#include "qemu/memfd-exec-upgrade.h"
#include "qemu/cutils.h"
#include "qemu/units.h"
#include "internal.h"
#include "trace.h"

/* A handoff has some hundred bytes for each device; more is no handoff */
#define HANDOFF_SIZE_MAX (64 * MiB)

/* Seals that a finished memfd has: nobody can change it any more */
#define HANDOFF_SEALS (F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE)

/* Descriptors that the old process keeps open across execve(2): int */
static GArray *carried;

/* Numbers of those that the new process has taken over */
static GHashTable *adopted;

bool exec_upgrade_seal(int fd, Error **errp)
{
    if (fcntl(fd, F_ADD_SEALS, HANDOFF_SEALS) < 0) {
        error_setg_errno(errp, errno, "exec-upgrade: can't seal memfd");
        return false;
    }
    return true;
}

bool exec_upgrade_check_sealed(int fd, const char *what, Error **errp)
{
    int seals = fcntl(fd, F_GET_SEALS);

    if (seals < 0 || (seals & HANDOFF_SEALS) != HANDOFF_SEALS) {
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

int exec_upgrade_fd_adopt(const ExecUpgradeFd *efd, const char *what,
                          Error **errp)
{
    struct stat st;

    if (efd->number < 0 || efd->number > INT_MAX ||
        fstat(efd->number, &st) < 0) {
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
        qemu_set_cloexec(efd->number);
    }
    if (!adopted) {
        adopted = g_hash_table_new(NULL, NULL);
    }
    g_hash_table_add(adopted, GINT_TO_POINTER(efd->number));
    exec_upgrade_fdset_adopt_dup(efd->number);
    return efd->number;
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

void exec_upgrade_drop(ExecUpgradeHandoff *h, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    QAPI_LIST_PREPEND(h->dropped, g_strdup_vprintf(fmt, ap));
    va_end(ap);
}

int exec_upgrade_handoff_write(ExecUpgradeHandoff *h, Error **errp)
{
    g_autoptr(GString) json = NULL;
    QObject *obj = NULL;
    Visitor *v = qobject_output_visitor_new(&obj);
    int fd;

    for (guint i = 0; carried && i < carried->len; i++) {
        QAPI_LIST_PREPEND(h->carried, g_array_index(carried, int, i));
    }
    visit_type_ExecUpgradeHandoff(v, NULL, &h, &error_abort);
    visit_complete(v, &obj);
    visit_free(v);
    json = qobject_to_json(obj);
    qobject_unref(obj);

    if (json->len > HANDOFF_SIZE_MAX) {
        error_setg(errp, "exec-upgrade: the handoff has %zu bytes, more than "
                   "%" PRIu64, (size_t)json->len, (uint64_t)HANDOFF_SIZE_MAX);
        return -1;
    }
    fd = exec_upgrade_memfd_create("exec-upgrade-handoff", MFD_ALLOW_SEALING);
    if (fd < 0) {
        error_setg_errno(errp, errno, "exec-upgrade: can't create memfd");
        return -1;
    }
    if (qemu_write_full(fd, json->str, json->len) != json->len) {
        error_setg_errno(errp, errno, "exec-upgrade: can't write the handoff");
        close(fd);
        return -1;
    }
    if (!exec_upgrade_seal(fd, errp)) {
        close(fd);
        return -1;
    }
    return fd;
}

ExecUpgradeHandoff *exec_upgrade_handoff_read(int fd, Error **errp)
{
    g_autofree char *json = NULL;
    ExecUpgradeHandoff *h = NULL;
    QObject *obj = NULL;
    Visitor *v;
    struct stat st;

    if (!exec_upgrade_check_sealed(fd, "the handoff", errp)) {
        goto out;
    }
    if (fstat(fd, &st) < 0 || st.st_size > HANDOFF_SIZE_MAX) {
        error_setg(errp, "exec-upgrade: the handoff is too large");
        goto out;
    }
    json = g_malloc(st.st_size + 1);
    if (pread(fd, json, st.st_size, 0) != st.st_size) {
        error_setg(errp, "exec-upgrade: can't read the handoff");
        goto out;
    }
    json[st.st_size] = '\0';

    obj = qobject_from_json(json, errp);
    if (!obj) {
        goto out;
    }
    v = qobject_input_visitor_new(obj);
    visit_type_ExecUpgradeHandoff(v, NULL, &h, errp);
    visit_free(v);
    if (h && (h->format < EXEC_UPGRADE_FORMAT_MIN ||
              h->format > EXEC_UPGRADE_FORMAT)) {
        error_setg(errp, "exec-upgrade: the handoff has format %" PRId64
                   ", expected %d to %d", h->format, EXEC_UPGRADE_FORMAT_MIN,
                   EXEC_UPGRADE_FORMAT);
        qapi_free_ExecUpgradeHandoff(h);
        h = NULL;
    }
out:
    qobject_unref(obj);
    close(fd);
    return h;
}
