/*
 * Exec-upgrade: what commands do to objects
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef QOM_EXEC_UPGRADE_H
#define QOM_EXEC_UPGRADE_H

#include "qom/object.h"

/*
 * exec_upgrade_on_object_added, exec_upgrade_on_property_set: called by the
 * functions below; NULL in a program that can't be upgraded
 */
extern void (*exec_upgrade_on_object_added)(Object *obj, const char *type,
                                            const char *id,
                                            const QDict *properties);
extern void (*exec_upgrade_on_property_set)(Object *obj, const char *name,
                                            bool done);

/**
 * exec_upgrade_object_added: an object was made
 * @obj: the object, or NULL if it could not be made after all
 * @type: its type
 * @id: its id
 * @properties: its properties, as for object-add
 */
void exec_upgrade_object_added(Object *obj, const char *type,
                               const char *id, const QDict *properties);

/**
 * exec_upgrade_property_set: a command has set a property
 * @obj: its object
 * @name: the property
 * @done: false if that was refused
 */
void exec_upgrade_property_set(Object *obj, const char *name, bool done);

#endif
