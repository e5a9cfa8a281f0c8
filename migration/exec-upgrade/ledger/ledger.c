/*
 * Exec-upgrade: the ledger of what commands have made
 *
 * The new process builds what its command line says, but for what was deleted
 * since, and what commands have added.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "hw/qdev-core.h"
#include "migration/exec-upgrade-owners.h"
#include "qapi/error.h"
#include "qapi/qmp/qdict.h"
#include "migration/exec-upgrade/block/block.h"
#include "migration/exec-upgrade/ledger/ledger.h"

/* The previous process gave devices their places, and the next one has to */
static bool placed;

/*
 * The old process
 */

static void check_device(const LedgerEntry *entry, Error **errp)
{
    qobject_unref(exec_upgrade_device_options(DEVICE(entry->obj),
                                              entry->options, entry->typed,
                                              errp));
}

/* Whatever has made them: a device's other end is in another process */
static void check_object(const LedgerEntry *entry, Error **errp)
{
    static const char *const types[] = {
        "x-remote-object", "x-vfio-user-server",
    };

    for (int i = 0; i < ARRAY_SIZE(types); i++) {
        if (object_dynamic_cast(entry->obj, types[i])) {
            error_setg(errp, "object '%s' (%s) serves a device to another "
                       "process, which can't be carried", entry->id,
                       types[i]);
        }
    }
}

/* Those that commands have made */
static const LedgerEntry *next_added(const LedgerEntry *entry)
{
    do {
        entry = exec_upgrade_ledger_next(entry);
    } while (entry && entry->early);
    return entry;
}

static void check_entries(strList **blockers)
{
    const LedgerEntry *entry = NULL;

    while ((entry = exec_upgrade_ledger_next(entry))) {
        Error *err = NULL;

        if (entry->kind == EXEC_UPGRADE_LEDGER_KIND_DEVICE && !entry->early) {
            check_device(entry, &err);
        } else if (entry->kind == EXEC_UPGRADE_LEDGER_KIND_OBJECT) {
            check_object(entry, &err);
        }
        if (err) {
            exec_upgrade_add_blocker(blockers, "%s", error_get_pretty(err));
            error_free(err);
        }
    }
}

/* Without all devices of the first process, the next free places are others */
static bool needs_places(const ExecUpgradeLedgerNameList *list)
{
    if (placed) {
        return true;
    }
    for (; list; list = list->next) {
        if (list->value->kind == EXEC_UPGRADE_LEDGER_KIND_DEVICE) {
            return true;
        }
    }
    return false;
}

/* A device that the command line has made, and that is still there */
static bool is_early(DeviceState *dev)
{
    return dev && dev->opts && !exec_upgrade_ledger_has(OBJECT(dev));
}

typedef struct PlaceSearch {
    ExecUpgradeLedgerPlaceList *list;
    Error *err;
} PlaceSearch;

static int add_place(Object *obj, void *opaque)
{
    DeviceState *dev = (DeviceState *)object_dynamic_cast(obj, TYPE_DEVICE);
    ExecUpgradeLedgerPlace *place;
    PlaceSearch *search = opaque;
    QDict *options;

    if (!is_early(dev)) {
        return 0;
    }
    options = exec_upgrade_device_place(dev, dev->opts, &search->err);
    if (!options) {
        return 1;
    }
    place = g_new0(ExecUpgradeLedgerPlace, 1);
    place->id = exec_upgrade_device_name(dev);
    place->options = QOBJECT(options);
    place->buses = exec_upgrade_device_buses(dev);
    QAPI_LIST_PREPEND(search->list, place);
    return 0;
}

/* Places of what the command line has made */
static ExecUpgradeLedgerPlaceList *find_places(Error **errp)
{
    PlaceSearch search = { NULL };

    if (object_child_foreach_recursive(qdev_get_machine(), add_place,
                                       &search)) {
        error_propagate(errp, search.err);
        qapi_free_ExecUpgradeLedgerPlaceList(search.list);
        return NULL;
    }
    return search.list;
}

static ExecUpgradeLedgerNameList *find_removed(void)
{
    ExecUpgradeLedgerNameList *all = exec_upgrade_configuration_removed();
    const ExecUpgradeLedgerNameList *l;

    for (l = exec_upgrade_ledger_not_built(); l; l = l->next) {
        exec_upgrade_ledger_names_add(&all, l->value->kind, l->value->id);
    }
    return all;
}

ExecUpgradeLedgerNameList *exec_upgrade_ledger_left_out(void)
{
    ExecUpgradeLedgerNameList *all = find_removed();
    const LedgerEntry *entry = NULL;

    while ((entry = next_added(entry))) {
        if (entry->id) {
            exec_upgrade_ledger_names_add(&all, entry->kind, entry->id);
        }
    }
    return all;
}

static void check_places(strList **blockers)
{
    ExecUpgradeLedgerNameList *all = find_removed();
    Error *err = NULL;

    if (needs_places(all)) {
        qapi_free_ExecUpgradeLedgerPlaceList(find_places(&err));
    }
    if (err) {
        exec_upgrade_add_blocker(blockers, "%s, which would not be its place "
                                 "without the device that was removed after "
                                 "start", error_get_pretty(err));
        error_free(err);
    }
    qapi_free_ExecUpgradeLedgerNameList(all);
}

static void ledger_check(strList **blockers)
{
    check_entries(blockers);
    exec_upgrade_failover_check(blockers);
    exec_upgrade_lost_peers_check(blockers);
    check_places(blockers);
}

static ExecUpgradeLedgerEntry *entry_save(const LedgerEntry *entry)
{
    ExecUpgradeLedgerEntry *e = g_new0(ExecUpgradeLedgerEntry, 1);

    e->kind = entry->kind;
    e->has_id = entry->id;
    e->id = g_strdup(entry->id);
    e->typed = entry->typed;
    if (entry->kind == EXEC_UPGRADE_LEDGER_KIND_DEVICE) {
        DeviceState *dev = DEVICE(entry->obj);

        e->options = QOBJECT(exec_upgrade_device_options(dev, entry->options,
                                                         entry->typed,
                                                         &error_abort));
        e->has_number = !entry->id;
        e->number = exec_upgrade_device_number(dev);
        e->buses = exec_upgrade_device_buses(dev);
    } else {
        e->options = QOBJECT(qdict_clone_shallow(entry->options));
    }
    return e;
}

static int unplug_save(Object *obj, void *opaque)
{
    DeviceState *dev = (DeviceState *)object_dynamic_cast(obj, TYPE_DEVICE);
    ExecUpgradeLedgerUnplugList **list = opaque;
    ExecUpgradeLedgerUnplug *u;

    if (dev && dev->pending_deleted_event) {
        u = g_new0(ExecUpgradeLedgerUnplug, 1);
        u->device = object_get_canonical_path(obj);
        u->expires = dev->pending_deleted_expires_ms;
        QAPI_LIST_PREPEND(*list, u);
    }
    return 0;
}

static bool ledger_save(ExecUpgradeHandoff *h, Error **errp)
{
    ExecUpgradeLedger *l = g_new0(ExecUpgradeLedger, 1);
    ExecUpgradeLedgerEntryList **tail = &l->entries;
    const LedgerEntry *entry = NULL;

    while ((entry = next_added(entry))) {
        QAPI_LIST_APPEND(tail, entry_save(entry));
    }
    l->removed = find_removed();
    if (needs_places(l->removed)) {
        l->places = find_places(&error_abort);
    }
    object_child_foreach_recursive(object_get_root(), unplug_save,
                                   &l->unplugs);
    exec_upgrade_failover_save(l);
    l->lost_peers = exec_upgrade_lost_peers_save();
    l->state_ids = exec_upgrade_state_ids_save();
    h->has_ledger = true;
    h->ledger = l;
    return true;
}

/*
 * What the user is told
 */

static const char *const kind_names[] = {
    [EXEC_UPGRADE_LEDGER_KIND_OBJECT] = "object",
    [EXEC_UPGRADE_LEDGER_KIND_CHARDEV] = "character device",
    [EXEC_UPGRADE_LEDGER_KIND_NETDEV] = "network backend",
    [EXEC_UPGRADE_LEDGER_KIND_DEVICE] = "device",
};

/* The command line has it, and the guest decides when it is made */
static bool is_primary_option(const LedgerEntry *entry)
{
    return entry->kind == EXEC_UPGRADE_LEDGER_KIND_DEVICE &&
           exec_upgrade_failover_is_option(entry->options);
}

strList *exec_upgrade_ledger_changes(void)
{
    ExecUpgradeLedgerNameList *all = find_removed(), *l;
    strList *changes = NULL, **tail = &changes;
    const LedgerEntry *entry = NULL;

    for (l = all; l; l = l->next) {
        QAPI_LIST_APPEND(tail, g_strdup_printf("%s '%s' was removed",
                                               kind_names[l->value->kind],
                                               l->value->id));
    }
    qapi_free_ExecUpgradeLedgerNameList(all);

    while ((entry = next_added(entry))) {
        g_autofree char *path = NULL;

        if (!entry->id) {
            path = object_get_canonical_path(entry->obj);
        }
        if (!is_primary_option(entry)) {
            QAPI_LIST_APPEND(tail, g_strdup_printf("%s '%s' was added",
                                                   kind_names[entry->kind],
                                                   entry->id ?: path));
        }
    }
    *tail = exec_upgrade_failover_changes();
    while (*tail) {
        tail = &(*tail)->next;
    }
    *tail = exec_upgrade_block_changes();
    return changes;
}

/*
 * The new process
 */

static void unplug_load(const ExecUpgradeLedgerUnplug *u)
{
    Object *obj = object_resolve_path(u->device, NULL);
    DeviceState *dev = (DeviceState *)object_dynamic_cast(obj, TYPE_DEVICE);

    if (dev) {
        dev->pending_deleted_event = true;
        dev->pending_deleted_expires_ms = u->expires;
    }
}

/* The machine is complete, so that devices are plugged as they were then */
static bool ledger_build(const ExecUpgradeHandoff *h, Error **errp)
{
    if (!h->has_ledger) {
        return true;
    }
    exec_upgrade_failover_load(h->ledger);
    return exec_upgrade_devices_build(errp) &&
           exec_upgrade_failover_loaded(h->ledger, errp);
}

static bool ledger_load(const ExecUpgradeHandoff *h, Error **errp)
{
    if (!h->has_ledger) {
        return true;
    }
    for (ExecUpgradeLedgerUnplugList *u = h->ledger->unplugs; u; u = u->next) {
        unplug_load(u->value);
    }
    exec_upgrade_state_ids_load(h->ledger->state_ids);
    placed = h->ledger->places;
    return true;
}

const ExecUpgradeStage exec_upgrade_stage_ledger = {
    .name = "ledger",
    .check = ledger_check,
    .save = ledger_save,
    .build = ledger_build,
    .load = ledger_load,
};
