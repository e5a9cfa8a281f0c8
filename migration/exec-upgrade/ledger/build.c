/*
 * Exec-upgrade: the new process builds what the ledger says
 *
 * What its command line says, but for what was deleted since, and what commands
 * have added, each by the function that the command used.
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
#include "qapi/qapi-visit-net.h"
#include "qapi/qapi-visit-qom.h"
#include "qapi/qmp/qdict.h"
#include "qapi/qobject-input-visitor.h"
#include "qemu/config-file.h"
#include "qemu/option.h"
#include "qom/object_interfaces.h"
#include "migration/exec-upgrade/ledger/ledger.h"

/* What the command line makes, and was found deleted, or is in the ledger */
static ExecUpgradeLedgerNameList *removed;

/* Devices of the command line that have no id, up to now */
static int options_without_id;

/* The entry of the previous process that is being made again */
static const ExecUpgradeLedgerEntry *building;

const ExecUpgradeLedger *exec_upgrade_ledger_handoff(void)
{
    const ExecUpgradeHandoff *h = exec_upgrade_handoff();

    return h && h->has_ledger ? h->ledger : NULL;
}

const ExecUpgradeLedgerNameList *exec_upgrade_ledger_not_built(void)
{
    return removed;
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
 * What is left out
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
    const ExecUpgradeLedger *l = exec_upgrade_ledger_handoff();

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
    const ExecUpgradeLedger *before = exec_upgrade_ledger_handoff();
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

    if (!exec_upgrade_lost_peer_make(exec_upgrade_ledger_handoff(), name,
                                     errp)) {
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
    const ExecUpgradeLedger *before = exec_upgrade_ledger_handoff();
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
 * What is added
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
        exec_upgrade_failover_load(exec_upgrade_ledger_handoff());
    } else if (!*errp) {
        error_setg(errp, "its standby device keeps it waiting");
    }
}

static bool build(const ExecUpgradeLedgerEntry *e, BuildFunc *func,
                  Error **errp)
{
    ERRP_GUARD();

    building = e;
    exec_upgrade_ledger_set_building(true);
    func(e, errp);
    exec_upgrade_ledger_set_building(false);
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
    const ExecUpgradeLedger *l = exec_upgrade_ledger_handoff();

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

bool exec_upgrade_devices_build(Error **errp)
{
    const ExecUpgradeLedgerEntryList *l;

    for (l = handoff_entries(); l; l = l->next) {
        if (l->value->kind == EXEC_UPGRADE_LEDGER_KIND_DEVICE &&
            !build(l->value, build_device, errp)) {
            return false;
        }
    }
    return true;
}
