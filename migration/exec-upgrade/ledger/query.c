/*
 * Exec-upgrade: what there is, as the commands that would make it
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "block/block_int.h"
#include "hw/qdev-core.h"
#include "qapi/error.h"
#include "qapi/qmp/qdict.h"
#include "sysemu/block-backend.h"
#include "migration/exec-upgrade/block/block.h"
#include "migration/exec-upgrade/ledger/ledger.h"

#define SECRET_MASK "(secret)"

static bool is_secret(Object *obj, const char *property)
{
    return object_dynamic_cast(obj, "secret_common") &&
           !strcmp(property, "data");
}

static QDict *object_arguments(const LedgerEntry *entry)
{
    QDict *arguments = qdict_clone_shallow(entry->options);

    if (qdict_haskey(arguments, "data") && is_secret(entry->obj, "data")) {
        qdict_put_str(arguments, "data", SECRET_MASK);
    }
    return arguments;
}

static QDict *chardev_arguments(const LedgerEntry *entry)
{
    QDict *arguments = qdict_clone_shallow(entry->options);

    qdict_put_str(arguments, "id", entry->id);
    return arguments;
}

static BlockBackend *find_drive(DeviceState *dev)
{
    for (BlockBackend *blk = blk_all_next(NULL); blk;
         blk = blk_all_next(blk)) {
        Object *obj = OBJECT(blk_get_attached_dev(blk));

        /* A part of some devices has their drive */
        while (obj && obj != OBJECT(dev)) {
            obj = obj->parent;
        }
        if (obj) {
            return blk;
        }
    }
    return NULL;
}

/* The node that its drive shows now, which may not be the one it began with */
static void put_drive(QDict *arguments, DeviceState *dev)
{
    BlockBackend *blk = qdict_haskey(arguments, "drive") ? find_drive(dev)
                                                         : NULL;

    if (!blk) {
        return;
    }
    if (blk_bs(blk)) {
        g_autofree char *node = exec_upgrade_node_name_public(blk_bs(blk));

        qdict_put_str(arguments, "drive", node);
    } else {
        qdict_del(arguments, "drive");
    }
}

static QDict *device_arguments(const LedgerEntry *entry)
{
    DeviceState *dev = DEVICE(entry->obj);
    QDict *arguments = qdict_clone_shallow(entry->options);
    QDict *place = exec_upgrade_device_place(dev, entry->options, NULL);

    if (place) {
        exec_upgrade_device_options_merge(arguments, place, entry->typed);
        qobject_unref(place);
    }
    put_drive(arguments, dev);
    if (exec_upgrade_lost_peer_has(dev)) {
        qdict_del(arguments, "netdev");
    }
    return arguments;
}

static void append_primary(QDict *options, void *tail)
{
    exec_upgrade_command_append(tail, "device_add",
                                qdict_clone_shallow(options));
}

static void append_kind(ExecUpgradeCommandList ***tail,
                        ExecUpgradeLedgerKind kind, const char *execute,
                        QDict *(*arguments)(const LedgerEntry *entry))
{
    const LedgerEntry *entry = NULL;

    while ((entry = exec_upgrade_ledger_next(entry))) {
        if (entry->kind == kind) {
            exec_upgrade_command_append(tail, execute, arguments(entry));
        }
    }
}

static QDict *netdev_arguments(const LedgerEntry *entry)
{
    return qdict_clone_shallow(entry->options);
}

static void append_properties(ExecUpgradeCommandList ***tail)
{
    ExecUpgradePropertyList *list, *e;
    Error *err = NULL;

    list = exec_upgrade_properties_find(&err);
    /* One that can't be read is among the blockers */
    error_free(err);
    for (e = list; e; e = e->next) {
        const ExecUpgradeProperty *p = e->value;
        QDict *arguments = qdict_new();

        qdict_put_str(arguments, "path", p->path);
        qdict_put_str(arguments, "property", p->name);
        if (is_secret(object_resolve_path(p->path, NULL), p->name)) {
            qdict_put_str(arguments, "value", SECRET_MASK);
        } else {
            qdict_put_obj(arguments, "value", qobject_ref(p->value));
        }
        exec_upgrade_command_append(tail, "qom-set", arguments);
    }
    qapi_free_ExecUpgradePropertyList(list);
}

ExecUpgradeCommandList *exec_upgrade_configuration_query(void)
{
    ExecUpgradeCommandList *list = NULL, **tail = &list;

    append_kind(&tail, EXEC_UPGRADE_LEDGER_KIND_OBJECT, "object-add",
                object_arguments);
    append_kind(&tail, EXEC_UPGRADE_LEDGER_KIND_CHARDEV, "chardev-add",
                chardev_arguments);
    append_kind(&tail, EXEC_UPGRADE_LEDGER_KIND_NETDEV, "netdev_add",
                netdev_arguments);
    exec_upgrade_block_configuration(&tail);
    append_kind(&tail, EXEC_UPGRADE_LEDGER_KIND_DEVICE, "device_add",
                device_arguments);
    exec_upgrade_failover_foreach_waiting(append_primary, &tail);
    append_properties(&tail);
    exec_upgrade_exports_configuration(&tail);
    return list;
}
