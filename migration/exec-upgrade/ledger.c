/*
 * Exec-upgrade: the ledger of what commands have made
 *
 * The new process builds what its command line says, but for what was deleted
 * since, and what commands have added.  Each object, character device, network
 * backend and device that a command makes leaves the options of its making
 * here for as long as it exists.  The new process makes it from them, by the
 * function that the command used.  What the command line makes is noted in the
 * same way, for query-exec-upgrade only.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "chardev/char.h"
#include "hw/qdev-core.h"
#include "monitor/qdev.h"
#include "net/exec-upgrade.h"
#include "net/net.h"
#include "qapi/error.h"
#include "qapi/qapi-commands-net.h"
#include "qapi/qapi-visit-char.h"
#include "qapi/qapi-visit-exec-upgrade.h"
#include "qapi/qapi-visit-net.h"
#include "qapi/qapi-visit-qom.h"
#include "qapi/qmp/qdict.h"
#include "qapi/qobject-input-visitor.h"
#include "qapi/qobject-output-visitor.h"
#include "qemu/config-file.h"
#include "qemu/error-report.h"
#include "qemu/option.h"
#include "qom/object_interfaces.h"
#include "qom/qom-qobject.h"
#include "../../chardev/chardev-internal.h"
#include "ledger.h"
#include "trace.h"

/* The property by which an object tells of its end */
#define ENTRY_PROPERTY "x-exec-upgrade-ledger"

/* In the order in which they were made */
static QTAILQ_HEAD(, LedgerEntry) ledger = QTAILQ_HEAD_INITIALIZER(ledger);

/* What the command line makes, and was found deleted, or is in the ledger */
static ExecUpgradeLedgerNameList *removed;

/* Devices of the command line that have no id, up to now */
static int options_without_id;

/* The previous process gave devices their places, and the next one has to */
static bool placed;

/* The entry of the previous process that is being made again */
static const ExecUpgradeLedgerEntry *building;

static const ExecUpgradeLedger *handoff_ledger(void)
{
    const ExecUpgradeHandoff *h = exec_upgrade_handoff();

    return h && h->has_ledger ? h->ledger : NULL;
}

/*
 * Entries
 */

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

/* What start-up itself makes is in the command line, one way or another */
static bool is_command(void)
{
    return building || (exec_upgrade_configuration_noted() &&
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

/*
 * What the hooks call
 */

void exec_upgrade_ledger_add_device(DeviceState *dev, const QDict *options,
                                    bool typed)
{
    entry_add(EXEC_UPGRADE_LEDGER_KIND_DEVICE, dev->id, OBJECT(dev),
              qdict_clone_shallow(options), typed);
}

void exec_upgrade_ledger_add_object(Object *obj, const char *type,
                                    const char *id, const QDict *properties)
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

int exec_upgrade_ledger_anon_number(int *next)
{
    if (building) {
        *next = building->number;
    } else if (phase_check(PHASE_MACHINE_READY)) {
        *next = MAX(*next, options_without_id);
    } else {
        /* Others before it may have been left out */
        *next = options_without_id - 1;
    }
    return (*next)++;
}

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

static ExecUpgradeLedgerNameList *find_removed(void)
{
    ExecUpgradeLedgerNameList *all, *l;

    all = exec_upgrade_configuration_removed();
    for (l = removed; l; l = l->next) {
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
 * The new process: what is left out
 */

static bool entries_have(const ExecUpgradeLedgerEntryList *list,
                         ExecUpgradeLedgerKind kind, const char *id)
{
    for (; list; list = list->next) {
        if (list->value->kind == kind && !g_strcmp0(list->value->id, id)) {
            return true;
        }
    }
    return false;
}

/*
 * With other arguments than before, the command line may no longer make what
 * was deleted, or make what the ledger does.
 */
static bool is_removed(ExecUpgradeLedgerKind kind, const char *id)
{
    const ExecUpgradeLedger *l = handoff_ledger();

    if (!l || !id || building || phase_check(PHASE_MACHINE_READY) ||
        (!exec_upgrade_ledger_names_have(l->removed, kind, id) &&
         !entries_have(l->entries, kind, id))) {
        return false;
    }
    exec_upgrade_ledger_names_add(&removed, kind, id);
    return true;
}

void exec_upgrade_object_option(ObjectOptions *options, Error **errp)
{
    if (!is_removed(EXEC_UPGRADE_LEDGER_KIND_OBJECT, options->id)) {
        user_creatable_add_qapi(options, errp);
    }
}

bool exec_upgrade_chardev_removed(const char *id)
{
    return is_removed(EXEC_UPGRADE_LEDGER_KIND_CHARDEV, id);
}

bool exec_upgrade_netdev_removed(const char *id)
{
    return is_removed(EXEC_UPGRADE_LEDGER_KIND_NETDEV, id);
}

static char *anonymous_name(int number)
{
    return g_strdup_printf("/machine/peripheral-anon/device[%d]", number);
}

/* The name that the command line's next device will have */
static char *option_name(const QDict *options)
{
    const char *id = qdict_get_try_str(options, "id");

    return id ? g_strdup(id) : anonymous_name(options_without_id++);
}

static const ExecUpgradeLedgerPlace *place_find(const char *name)
{
    const ExecUpgradeLedger *before = handoff_ledger();
    ExecUpgradeLedgerPlaceList *l;

    for (l = before ? before->places : NULL; l; l = l->next) {
        if (!strcmp(l->value->id, name)) {
            return l->value;
        }
    }
    return NULL;
}

static DeviceState *make_device(const char *name, const QDict *options,
                                bool typed, Error **errp)
{
    DeviceState *dev;

    if (!exec_upgrade_lost_peer_make(handoff_ledger(), name, errp)) {
        return NULL;
    }
    dev = qdev_device_add_from_qdict(options, typed, errp);
    exec_upgrade_lost_peer_delete();
    return dev;
}

/* @gone is set if commands have deleted it, or made another of its name */
static DeviceState *device_option(const QDict *options, bool typed, bool *gone,
                                  Error **errp)
{
    ERRP_GUARD();
    const ExecUpgradeLedger *before = handoff_ledger();
    g_autofree char *name = option_name(options);
    const ExecUpgradeLedgerPlace *place = place_find(name);
    QDict *all;
    DeviceState *dev;

    /* First: a primary that the guest has taken is in the ledger, too */
    if (before && exec_upgrade_failover_left_out(before, options)) {
        exec_upgrade_failover_add_option(name);
        return NULL;
    }
    *gone = is_removed(EXEC_UPGRADE_LEDGER_KIND_DEVICE, name);
    if (*gone) {
        return NULL;
    }
    all = qdict_clone_shallow(options);
    if (place) {
        exec_upgrade_device_buses_next(place->buses);
        exec_upgrade_device_options_merge(all,
                                          qobject_to(QDict, place->options),
                                          typed);
    }
    dev = make_device(name, all, typed, errp);
    if (!dev && !*errp && exec_upgrade_failover_is_primary(options)) {
        exec_upgrade_failover_add_option(name);
    }
    qobject_unref(all);
    return dev;
}

DeviceState *exec_upgrade_device_option_json(const QDict *options, bool typed,
                                             Error **errp)
{
    bool gone = false;

    return device_option(options, typed, &gone, errp);
}

DeviceState *exec_upgrade_device_option(QemuOpts *opts, Error **errp)
{
    QDict *options = qemu_opts_to_qdict(opts, NULL);
    bool gone = false;
    DeviceState *dev;

    dev = device_option(options, false, &gone, errp);
    if (dev || gone) {
        /* As qdev_device_add() does: the id may be used again */
        qemu_opts_del(opts);
    }
    qobject_unref(options);
    return dev;
}

/*
 * The new process: what is added
 */

typedef void BuildFunc(const ExecUpgradeLedgerEntry *e, Error **errp);

static void build_object(const ExecUpgradeLedgerEntry *e, Error **errp)
{
    ObjectOptions *options = NULL;
    Visitor *v = qobject_input_visitor_new(e->options);

    if (visit_type_ObjectOptions(v, NULL, &options, errp)) {
        user_creatable_add_qapi(options, errp);
    }
    visit_free(v);
    qapi_free_ObjectOptions(options);
}

static void build_chardev(const ExecUpgradeLedgerEntry *e, Error **errp)
{
    QDict *options = qobject_to(QDict, e->options);
    ChardevBackend *backend = NULL;
    Visitor *v = qobject_input_visitor_new(qdict_get(options, "backend"));

    if (visit_type_ChardevBackend(v, NULL, &backend, errp)) {
        g_autofree char *type = g_strdup_printf(
            "chardev-%s", ChardevBackendKind_str(backend->type));

        qemu_chardev_new(e->id, type, backend, NULL, errp);
    }
    visit_free(v);
    qapi_free_ChardevBackend(backend);
}

static void build_netdev(const ExecUpgradeLedgerEntry *e, Error **errp)
{
    Netdev *netdev = NULL;
    Visitor *v = qobject_input_visitor_new(e->options);

    if (visit_type_Netdev(v, NULL, &netdev, errp)) {
        qmp_netdev_add(netdev, errp);
    }
    visit_free(v);
    qapi_free_Netdev(netdev);
}

static void build_device(const ExecUpgradeLedgerEntry *e, Error **errp)
{
    ERRP_GUARD();
    QDict *options = qobject_to(QDict, e->options);
    g_autofree char *name = e->has_id ? g_strdup(e->id)
                                      : anonymous_name(e->number);
    DeviceState *dev;

    exec_upgrade_device_buses_next(e->buses);
    dev = make_device(name, options, e->typed, errp);
    if (dev) {
        object_unref(OBJECT(dev));
        /* It may be a standby, whose primary comes later */
        exec_upgrade_failover_load(handoff_ledger());
    } else if (!*errp) {
        error_setg(errp, "its standby device keeps it waiting");
    }
}

static bool build(const ExecUpgradeLedgerEntry *e, BuildFunc *func,
                  Error **errp)
{
    ERRP_GUARD();

    building = e;
    func(e, errp);
    building = NULL;
    if (*errp) {
        error_prepend(errp, "exec-upgrade: %s '%s', which a command has "
                      "added, can't be made again: ",
                      ExecUpgradeLedgerKind_str(e->kind), e->id ?: "");
        return false;
    }
    return true;
}

static const ExecUpgradeLedgerEntryList *handoff_entries(void)
{
    const ExecUpgradeLedger *l = handoff_ledger();

    return l ? l->entries : NULL;
}

void exec_upgrade_objects_build(bool (*is_wanted)(const char *type))
{
    const ExecUpgradeLedgerEntryList *l;

    for (l = handoff_entries(); l; l = l->next) {
        if (l->value->kind == EXEC_UPGRADE_LEDGER_KIND_OBJECT &&
            is_wanted(qdict_get_str(qobject_to(QDict, l->value->options),
                                    "qom-type"))) {
            build(l->value, build_object, &error_fatal);
        }
    }
}

static void build_all(ExecUpgradeLedgerKind kind, BuildFunc *func)
{
    const ExecUpgradeLedgerEntryList *l;

    for (l = handoff_entries(); l; l = l->next) {
        if (l->value->kind == kind) {
            build(l->value, func, &error_fatal);
        }
    }
}

void exec_upgrade_chardevs_build(void)
{
    build_all(EXEC_UPGRADE_LEDGER_KIND_CHARDEV, build_chardev);
}

void exec_upgrade_netdevs_build(void)
{
    const ExecUpgradeLedgerNameList *l;

    /* As qmp_netdev_del() does: the id may be used again */
    for (l = removed; l; l = l->next) {
        if (l->value->kind == EXEC_UPGRADE_LEDGER_KIND_NETDEV) {
            qemu_opts_del(qemu_opts_find(qemu_find_opts("netdev"),
                                         l->value->id));
        }
    }
    build_all(EXEC_UPGRADE_LEDGER_KIND_NETDEV, build_netdev);
}

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
static bool ledger_load(const ExecUpgradeHandoff *h, Error **errp)
{
    const ExecUpgradeLedgerEntryList *e;

    if (!h->has_ledger) {
        return true;
    }
    exec_upgrade_failover_load(h->ledger);
    for (e = h->ledger->entries; e; e = e->next) {
        if (e->value->kind == EXEC_UPGRADE_LEDGER_KIND_DEVICE &&
            !build(e->value, build_device, errp)) {
            return false;
        }
    }
    if (!exec_upgrade_failover_loaded(h->ledger, errp)) {
        return false;
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
    .load = ledger_load,
};
