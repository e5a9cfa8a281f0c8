/*
 * Exec-upgrade: what commands do to objects
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qom/exec-upgrade.h"

void (*exec_upgrade_on_object_added)(Object *obj, const char *type,
                                     const char *id, const QDict *properties);
void (*exec_upgrade_on_property_set)(Object *obj, const char *name, bool done);

void exec_upgrade_object_added(Object *obj, const char *type, const char *id,
                               const QDict *properties)
{
    if (exec_upgrade_on_object_added) {
        exec_upgrade_on_object_added(obj, type, id, properties);
    }
}

void exec_upgrade_property_set(Object *obj, const char *name, bool done)
{
    if (exec_upgrade_on_property_set) {
        exec_upgrade_on_property_set(obj, name, done);
    }
}
