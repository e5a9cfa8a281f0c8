/*
 * Exec-upgrade: HMP commands
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "migration/exec-upgrade-monitor.h"
#include "monitor/hmp.h"
#include "monitor/monitor.h"
#include "qapi/qapi-commands-exec-upgrade.h"
#include "qapi/qmp/qdict.h"
#include "migration/exec-upgrade/carry/carry.h"

void hmp_exec_upgrade(Monitor *mon, const QDict *qdict)
{
    const char *binary = qdict_get_try_str(qdict, "binary");
    Error *err = NULL;

    /* If it works, the new process answers: exec_upgrade_monitor_reply() */
    exec_upgrade_monitor_ask(mon);
    qmp_exec_upgrade(binary != NULL, binary, false, NULL, false, false,
                     false, 0, false, 0, &err);
    exec_upgrade_monitor_ask_done(mon);
    hmp_handle_error(mon, err);
}

static void print_result(Monitor *mon, const ExecUpgradeResult *result)
{
    g_autofree char *text = exec_upgrade_monitor_result_text(result);
    ExecUpgradePhaseList *e;

    monitor_printf(mon, "%s", text);
    monitor_printf(mon, "Binary: %s\n", result->binary);
    for (e = result->phases; e; e = e->next) {
        monitor_printf(mon, "  %s: %" PRId64 " us\n", e->value->name,
                       e->value->duration);
    }
}

void hmp_info_exec_upgrade(Monitor *mon, const QDict *qdict)
{
    Error *err = NULL;
    g_autoptr(ExecUpgradeInfo) info = qmp_query_exec_upgrade(&err);
    strList *e;

    if (hmp_handle_error(mon, err)) {
        return;
    }
    monitor_printf(mon, "exec-upgrade: %s\n", info->enabled ? "on" : "off");
    monitor_printf(mon, "Upgrades so far: %" PRId64 "\n", info->count);
    for (e = info->changes; e; e = e->next) {
        monitor_printf(mon, "Changed: %s\n", e->value);
    }
    for (e = info->blockers; e; e = e->next) {
        monitor_printf(mon, "Blocked: %s\n", e->value);
    }
    if (info->has_last_error) {
        monitor_printf(mon, "Last error: %s\n", info->last_error);
    }
    if (info->has_last) {
        print_result(mon, info->last);
    }
}
