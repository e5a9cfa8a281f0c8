/*
 * Exec-upgrade: the handoff
 *
 * It is one JSON document of type ExecUpgradeHandoff in a sealed memfd.  Its
 * descriptor's number is in an environment variable.
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
#include "qemu/units.h"
#include "qemu-version.h"
#include "migration/exec-upgrade/core/core.h"

/* A handoff has some hundred bytes for each device; more is no handoff */
#define HANDOFF_SIZE_MAX (64 * MiB)

/* New process, until the guest can go on: what the old one left */
static const ExecUpgradeHandoff *handoff;

char *exec_upgrade_version(void)
{
    return g_strdup(QEMU_FULL_VERSION);
}

const ExecUpgradeHandoff *exec_upgrade_handoff(void)
{
    return handoff;
}

void exec_upgrade_handoff_set(const ExecUpgradeHandoff *h)
{
    handoff = h;
    exec_upgrade_set_adopting(h);
}

int exec_upgrade_handoff_write(ExecUpgradeHandoff *h, Error **errp)
{
    g_autoptr(GString) json = NULL;
    QObject *obj = NULL;
    Visitor *v = qobject_output_visitor_new(&obj);
    int fd;

    h->carried = exec_upgrade_fds_carried();
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
