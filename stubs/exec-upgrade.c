/*
 * Exec-upgrade: for programs that can't be upgraded
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "migration/exec-upgrade.h"

bool exec_upgrade_adopting(void)
{
    return false;
}

void exec_upgrade_property_set(Object *obj, const char *name, bool done)
{
}

bool exec_upgrade_thread_retry(const char *name, int err)
{
    return false;
}

void exec_upgrade_ledger_add_object(Object *obj, const char *type,
                                    const char *id, const QDict *properties)
{
}
