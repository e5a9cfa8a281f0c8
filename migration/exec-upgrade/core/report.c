/*
 * Exec-upgrade: what the user is told, and the names in it
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "hw/qdev-core.h"
#include "qapi/qmp/qdict.h"
#include "migration/exec-upgrade/core/core.h"

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

void exec_upgrade_drop(ExecUpgradeHandoff *h, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    QAPI_LIST_PREPEND(h->dropped, g_strdup_vprintf(fmt, ap));
    va_end(ap);
}

void exec_upgrade_command_append(ExecUpgradeCommandList ***tail,
                                 const char *execute, QDict *arguments)
{
    ExecUpgradeCommand *command = g_new0(ExecUpgradeCommand, 1);

    command->execute = g_strdup(execute);
    command->arguments = QOBJECT(arguments);
    QAPI_LIST_APPEND(*tail, command);
}

char *exec_upgrade_device_name(DeviceState *dev)
{
    return dev->id ? g_strdup(dev->id)
                   : object_get_canonical_path(OBJECT(dev));
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
