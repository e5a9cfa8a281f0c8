/*
 * Exec-upgrade: the QMP commands
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/clone-visitor.h"
#include "qapi/error.h"
#include "qapi/qapi-commands-exec-upgrade.h"
#include "qapi/qapi-events-exec-upgrade.h"
#include "qapi/qapi-visit-exec-upgrade.h"
#include "migration/exec-upgrade/command/command.h"
#include "migration/exec-upgrade/handover/handover.h"
#include "migration/exec-upgrade/ledger/ledger.h"

static struct {
    bool in_progress;
    char *last_error;
} upgrade;

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

/* Returns only if it fails */
static void upgrade_or_fail(const char *binary, bool has_arguments,
                            strList *arguments, Error **errp)
{
    ExecUpgradeRequest req = {
        .binary_fd = -1,
        .check_argv = has_arguments ? exec_upgrade_arguments_check : NULL,
        .start = g_get_monotonic_time(),
    };
    g_autofree char *path = NULL;

    path = binary ? g_strdup(binary) : exec_upgrade_binary_path(errp);
    if (!path || !check_arguments(has_arguments, arguments, errp)) {
        return;
    }
    req.path = path;
    req.binary_fd = exec_upgrade_binary_open(path, errp);
    if (req.binary_fd < 0) {
        return;
    }
    req.argv = build_argv(has_arguments, arguments);
    exec_upgrade_execute(&req, errp);
    g_strfreev(req.argv);
    close(req.binary_fd);
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
    upgrade_or_fail(has_binary ? binary : NULL, has_arguments, arguments,
                    &err);
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
    const ExecUpgradeResult *last = exec_upgrade_last_result();

    info->enabled = exec_upgrade_enabled();
    info->blockers = exec_upgrade_find_blockers();
    if (upgrade.in_progress) {
        exec_upgrade_add_blocker(&info->blockers,
                                 "an exec-upgrade is already running");
    }
    info->count = exec_upgrade_count();
    info->changes = exec_upgrade_ledger_changes();
    info->configuration = exec_upgrade_configuration_query();
    if (last) {
        info->has_last = true;
        info->last = QAPI_CLONE(ExecUpgradeResult, last);
    }
    if (upgrade.last_error) {
        info->has_last_error = true;
        info->last_error = g_strdup(upgrade.last_error);
    }
    return info;
}
