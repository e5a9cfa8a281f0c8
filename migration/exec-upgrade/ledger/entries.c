/*
 * Exec-upgrade: entries of the ledger
 *
 * Each object, character device, network backend and device that a command
 * makes leaves the options of its making here for as long as it exists.  What
 * the command line makes is noted in the same way, for query-exec-upgrade only.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "chardev/char-exec-upgrade.h"
#include "hw/qdev-core.h"
#include "net/exec-upgrade.h"
#include "net/net.h"
#include "qapi/error.h"
#include "qapi/qapi-visit-char.h"
#include "qapi/qapi-visit-net.h"
#include "qapi/qmp/qdict.h"
#include "qapi/qobject-output-visitor.h"
#include "qom/exec-upgrade.h"
#include "migration/exec-upgrade/ledger/ledger.h"
#include "migration/exec-upgrade/trace.h"

/* The property by which an object tells of its end */
#define ENTRY_PROPERTY "x-exec-upgrade-ledger"

/* In the order in which they were made */
static QTAILQ_HEAD(, LedgerEntry) ledger = QTAILQ_HEAD_INITIALIZER(ledger);

/* What the command line makes is made; that of the previous process is */
static bool start_complete, is_building;

static void entry_free(LedgerEntry *entry)
{
    QTAILQ_REMOVE(&ledger, entry, next);
    g_free(entry->id);
    qobject_unref(entry->options);
    g_free(entry);
}

static void entry_release(Object *obj, const char *name, void *entry)
{
    entry_free(entry);
}

/* Network backends are no objects that could tell of their end */
static void forget_gone_netdevs(void)
{
    LedgerEntry *entry, *next;

    QTAILQ_FOREACH_SAFE(entry, &ledger, next, next) {
        if (entry->kind == EXEC_UPGRADE_LEDGER_KIND_NETDEV &&
            !qemu_find_netdev(entry->id)) {
            entry_free(entry);
        }
    }
}

void exec_upgrade_ledger_start_complete(void)
{
    start_complete = true;
}

void exec_upgrade_ledger_set_building(bool building)
{
    is_building = building;
}

/* What start-up itself makes is in the command line, one way or another */
static bool is_command(void)
{
    return is_building || (start_complete &&
                           phase_check(PHASE_MACHINE_READY));
}

/* Takes the reference to @options */
static void entry_add(ExecUpgradeLedgerKind kind, const char *id, Object *obj,
                      QDict *options, bool typed)
{
    LedgerEntry *entry = g_new0(LedgerEntry, 1);

    entry->kind = kind;
    entry->early = !is_command();
    entry->id = g_strdup(id);
    entry->obj = obj;
    entry->options = options;
    entry->typed = typed;
    QTAILQ_INSERT_TAIL(&ledger, entry, next);
    if (obj) {
        object_property_add(obj, ENTRY_PROPERTY, "ledger", NULL, NULL,
                            entry_release, entry);
    }
    trace_exec_upgrade_ledger_add(ExecUpgradeLedgerKind_str(kind), id ?: "");
}

bool exec_upgrade_ledger_has(Object *obj)
{
    for (; obj; obj = obj->parent) {
        ObjectProperty *prop = object_property_find(obj, ENTRY_PROPERTY);

        if (prop && !((LedgerEntry *)prop->opaque)->early) {
            return true;
        }
    }
    return false;
}

static LedgerEntry *netdev_find(const char *id)
{
    LedgerEntry *entry;

    forget_gone_netdevs();
    QTAILQ_FOREACH(entry, &ledger, next) {
        if (entry->kind == EXEC_UPGRADE_LEDGER_KIND_NETDEV &&
            !strcmp(entry->id, id)) {
            return entry;
        }
    }
    return NULL;
}

bool exec_upgrade_ledger_has_netdev(const char *id)
{
    LedgerEntry *entry = netdev_find(id);

    return entry && !entry->early;
}

/* An object that somebody still has a reference to */
static bool is_gone(const LedgerEntry *entry)
{
    return entry->obj && !entry->obj->parent;
}

const LedgerEntry *exec_upgrade_ledger_next(const LedgerEntry *entry)
{
    if (!entry) {
        forget_gone_netdevs();
        entry = QTAILQ_FIRST(&ledger);
    } else {
        entry = QTAILQ_NEXT(entry, next);
    }
    while (entry && is_gone(entry)) {
        entry = QTAILQ_NEXT(entry, next);
    }
    return entry;
}

bool exec_upgrade_ledger_names_have(const ExecUpgradeLedgerNameList *list,
                                    ExecUpgradeLedgerKind kind, const char *id)
{
    for (; list; list = list->next) {
        if (list->value->kind == kind && !strcmp(list->value->id, id)) {
            return true;
        }
    }
    return false;
}

void exec_upgrade_ledger_names_add(ExecUpgradeLedgerNameList **list,
                                   ExecUpgradeLedgerKind kind, const char *id)
{
    ExecUpgradeLedgerName *name;

    if (!exec_upgrade_ledger_names_have(*list, kind, id)) {
        name = g_new0(ExecUpgradeLedgerName, 1);
        name->kind = kind;
        name->id = g_strdup(id);
        QAPI_LIST_PREPEND(*list, name);
    }
}

/*
 * What the hooks call
 */

void exec_upgrade_ledger_add_device(DeviceState *dev, const QDict *options,
                                    bool typed)
{
    entry_add(EXEC_UPGRADE_LEDGER_KIND_DEVICE, dev->id, OBJECT(dev),
              qdict_clone_shallow(options), typed);
}

static void add_object(Object *obj, const char *type, const char *id,
                       const QDict *properties)
{
    QDict *options;

    if (!obj) {
        return;
    }
    options = qdict_clone_shallow(properties);
    qdict_put_str(options, "qom-type", type);
    qdict_put_str(options, "id", id);
    entry_add(EXEC_UPGRADE_LEDGER_KIND_OBJECT, id, obj, options, true);
}

void exec_upgrade_ledger_init(void)
{
    exec_upgrade_on_object_added = add_object;
}

void exec_upgrade_ledger_add_netdev(const Netdev *netdev)
{
    QObject *options = NULL;
    LedgerEntry *entry;
    Visitor *v;

    /* One of the same name has been deleted, else this could not be made */
    entry = netdev_find(netdev->id);
    if (entry) {
        entry_free(entry);
    }
    v = qobject_output_visitor_new(&options);
    visit_type_Netdev(v, NULL, (Netdev **)&netdev, &error_abort);
    visit_complete(v, &options);
    visit_free(v);
    entry_add(EXEC_UPGRADE_LEDGER_KIND_NETDEV, netdev->id, NULL,
              qobject_to(QDict, options), true);
}

void exec_upgrade_ledger_add_chardev(Chardev *chr,
                                     const ChardevBackend *backend)
{
    const char *type = object_get_typename(OBJECT(chr));
    ChardevBackend *typed;
    QObject *value = NULL;
    QDict *options;
    Visitor *v;
    int kind;

    /* HMP gdbserver makes one for itself */
    if (!backend || CHARDEV_GET_CLASS(chr)->internal ||
        !strcmp(chr->label, "gdb")) {
        return;
    }
    kind = qapi_enum_parse(&ChardevBackendKind_lookup,
                           type + strlen("chardev-"), -1, NULL);
    if (kind < 0) {
        return;
    }
    /* HMP leaves the kind out where only common options count */
    typed = g_memdup2(backend, sizeof(*backend));
    typed->type = kind;
    v = qobject_output_visitor_new(&value);
    visit_type_ChardevBackend(v, NULL, &typed, &error_abort);
    visit_complete(v, &value);
    visit_free(v);
    g_free(typed);

    options = qdict_new();
    qdict_put_obj(options, "backend", value);
    entry_add(EXEC_UPGRADE_LEDGER_KIND_CHARDEV, chr->label, OBJECT(chr),
              options, true);
}
