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

/* Defaults of a dry run, in milliseconds and seconds */
#define MAX_PAUSE_MS 1000
#define TIMEOUT_S    60

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

/* Returns only if it fails, or the result of a dry run */
static ExecUpgradeResult *execute(const char *binary, bool has_arguments,
                                  strList *arguments, bool dry_run,
                                  uint32_t max_pause, uint32_t timeout,
                                  Error **errp)
{
    ExecUpgradeRequest req = {
        .binary_fd = -1,
        .check_argv = has_arguments ? exec_upgrade_arguments_check : NULL,
        .dry_run = dry_run,
        .max_pause = max_pause * INT64_C(1000),
        .timeout = timeout * INT64_C(1000),
        .start = g_get_monotonic_time(),
    };
    ExecUpgradeResult *result;
    g_autofree char *path = NULL;

    path = binary ? g_strdup(binary) : exec_upgrade_binary_path(errp);
    if (!path || !check_arguments(has_arguments, arguments, errp)) {
        return NULL;
    }
    req.path = path;
    req.binary_fd = exec_upgrade_binary_open(path, errp);
    if (req.binary_fd < 0) {
        return NULL;
    }
    req.argv = build_argv(has_arguments, arguments);
    result = exec_upgrade_execute(&req, errp);
    g_strfreev(req.argv);
    close(req.binary_fd);
    return result;
}

static bool check_limits(bool dry_run, bool has_max_pause, uint32_t max_pause,
                         bool has_timeout, uint32_t timeout, Error **errp)
{
    if (!dry_run && (has_max_pause || has_timeout)) {
        error_setg(errp, "exec-upgrade: '%s' needs 'dry-run'",
                   has_max_pause ? "max-pause" : "timeout");
        return false;
    }
    if ((has_max_pause && !max_pause) || (has_timeout && !timeout)) {
        error_setg(errp, "exec-upgrade: '%s' must be at least 1",
                   has_max_pause && !max_pause ? "max-pause" : "timeout");
        return false;
    }
    return true;
}

ExecUpgradeResult *qmp_exec_upgrade(bool has_binary, const char *binary,
                                    bool has_arguments, strList *arguments,
                                    bool has_dry_run, bool dry_run,
                                    bool has_max_pause, uint32_t max_pause,
                                    bool has_timeout, uint32_t timeout,
                                    Error **errp)
{
    ExecUpgradeResult *result;
    Error *err = NULL;

    dry_run = has_dry_run && dry_run;
    if (!check_limits(dry_run, has_max_pause, max_pause, has_timeout, timeout,
                      errp)) {
        return NULL;
    }

    if (upgrade.in_progress) {
        error_setg(errp, "exec-upgrade: another one is already running");
        return NULL;
    }
    upgrade.in_progress = true;
    result = execute(has_binary ? binary : NULL, has_arguments, arguments,
                     dry_run, has_max_pause ? max_pause : MAX_PAUSE_MS,
                     has_timeout ? timeout : TIMEOUT_S, &err);
    upgrade.in_progress = false;
    if (dry_run) {
        /* Nothing was to change, so that nobody else is told */
        error_propagate(errp, err);
        return result;
    }

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
