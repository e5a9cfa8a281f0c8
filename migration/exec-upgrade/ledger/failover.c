/*
 * Exec-upgrade: failover pairs
 *
 * A virtio-net device is the standby of a primary device, which is made only
 * when the guest has said that it can take it.  Until then the standby has the
 * options of its making.  A primary that was made is in the ledger, even if it
 * is the command line that gives it: the new process makes it when it has the
 * standby, as if the guest had just spoken, and leaves the option out.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "hw/pci/pci.h"
#include "hw/virtio/virtio-net.h"
#include "migration/exec-upgrade-owners.h"
#include "qapi/clone-visitor.h"
#include "qapi/error.h"
#include "qapi/qapi-builtin-visit.h"
#include "qapi/qmp/qdict.h"
#include "migration/exec-upgrade/ledger/ledger.h"

/* Those of the command line that had to wait for the guest */
static strList *primaries;

/* The standby device that @obj is, or NULL */
static VirtIONet *standby_cast(Object *obj)
{
    VirtIONet *n = (VirtIONet *)object_dynamic_cast(obj, TYPE_VIRTIO_NET);

    return n && n->failover ? n : NULL;
}

bool exec_upgrade_failover_is_primary(const QDict *options)
{
    return qdict_haskey(options, "failover_pair_id");
}

/*
 * The old process
 */

static int check_state(Object *obj, void *opaque)
{
    return exec_upgrade_device_state_has(obj);
}

static int check_primary(Object *obj, void *blockers)
{
    PCIDevice *pdev = (PCIDevice *)object_dynamic_cast(obj, TYPE_PCI_DEVICE);
    g_autofree char *name = NULL;

    if (!pdev || !pdev->failover_pair_id) {
        return 0;
    }
    name = exec_upgrade_device_name(DEVICE(pdev));
    if (pdev->partially_hotplugged) {
        exec_upgrade_add_blocker(blockers, "device '%s' is the primary of a "
                                 "failover pair, and a migration has unplugged "
                                 "it", name);
    } else if (!check_state(obj, NULL) &&
               !object_child_foreach_recursive(obj, check_state, NULL)) {
        /* A host's device, or what a migration that failed has given back */
        exec_upgrade_add_blocker(blockers, "device '%s' is the primary of a "
                                 "failover pair, and has no state that could "
                                 "be carried", name);
    }
    return 0;
}

void exec_upgrade_failover_check(strList **blockers)
{
    object_child_foreach_recursive(qdev_get_machine(), check_primary,
                                   blockers);
}

static int add_standby(Object *obj, void *opaque)
{
    VirtIONet *n = standby_cast(obj);
    ExecUpgradeLedgerStandbyList **list = opaque;
    ExecUpgradeLedgerStandby *s;

    if (!n) {
        return 0;
    }
    s = g_new0(ExecUpgradeLedgerStandby, 1);
    s->device = object_get_canonical_path(obj);
    s->hidden = qatomic_read(&n->failover_primary_hidden);
    if (n->primary_opts) {
        s->has_primary = true;
        s->primary = QOBJECT(qdict_clone_shallow(n->primary_opts));
        s->typed = n->primary_opts_from_json;
    }
    QAPI_LIST_PREPEND(*list, s);
    return 0;
}

static ExecUpgradeLedgerStandbyList *find_standbys(void)
{
    ExecUpgradeLedgerStandbyList *list = NULL;

    object_child_foreach_recursive(qdev_get_machine(), add_standby, &list);
    return list;
}

void exec_upgrade_failover_save(ExecUpgradeLedger *l)
{
    l->standbys = find_standbys();
    l->primaries = QAPI_CLONE(strList, primaries);
}

/*
 * What the user is told
 */

/* Options of a primary device that waits for the guest, or NULL */
static QDict *waiting_primary(const ExecUpgradeLedgerStandby *s)
{
    return s->hidden && s->has_primary ? qobject_to(QDict, s->primary) : NULL;
}

static bool primary_exists(const char *id,
                           const ExecUpgradeLedgerStandbyList *standbys)
{
    const LedgerEntry *entry = NULL;

    for (; standbys; standbys = standbys->next) {
        QDict *options = waiting_primary(standbys->value);

        if (options && !strcmp(qdict_get_str(options, "id"), id)) {
            return true;
        }
    }
    while ((entry = exec_upgrade_ledger_next(entry))) {
        if (exec_upgrade_failover_is_primary(entry->options) &&
            !g_strcmp0(entry->id, id)) {
            return true;
        }
    }
    return false;
}

bool exec_upgrade_failover_is_option(const QDict *options)
{
    const char *id = qdict_get_try_str(options, "id");

    return id && exec_upgrade_failover_is_primary(options) &&
           exec_upgrade_list_has(primaries, id);
}

strList *exec_upgrade_failover_changes(void)
{
    ExecUpgradeLedgerStandbyList *standbys = find_standbys(), *s;
    strList *changes = NULL;

    for (const strList *id = primaries; id; id = id->next) {
        if (!primary_exists(id->value, standbys)) {
            QAPI_LIST_PREPEND(changes, g_strdup_printf(
                                  "device '%s' was removed", id->value));
        }
    }
    for (s = standbys; s; s = s->next) {
        QDict *options = waiting_primary(s->value);

        if (options && !exec_upgrade_failover_is_option(options)) {
            QAPI_LIST_PREPEND(changes, g_strdup_printf(
                                  "device '%s' was added",
                                  qdict_get_str(options, "id")));
        }
    }
    qapi_free_ExecUpgradeLedgerStandbyList(standbys);
    return changes;
}

void exec_upgrade_failover_foreach_waiting(void (*func)(QDict *options,
                                                        void *opaque),
                                           void *opaque)
{
    ExecUpgradeLedgerStandbyList *standbys = find_standbys(), *s;

    for (s = standbys; s; s = s->next) {
        QDict *options = waiting_primary(s->value);

        if (options) {
            func(options, opaque);
        }
    }
    qapi_free_ExecUpgradeLedgerStandbyList(standbys);
}

/*
 * The new process
 */

void exec_upgrade_failover_add_option(const char *id)
{
    QAPI_LIST_PREPEND(primaries, g_strdup(id));
}

bool exec_upgrade_failover_left_out(const ExecUpgradeLedger *before,
                                    const QDict *options)
{
    const char *id = qdict_get_try_str(options, "id");

    return id && exec_upgrade_failover_is_primary(options) &&
           exec_upgrade_list_has(before->primaries, id);
}

static VirtIONet *standby_find(const ExecUpgradeLedgerStandby *s)
{
    return standby_cast(object_resolve_path(s->device, NULL));
}

static void standby_load(VirtIONet *n, const ExecUpgradeLedgerStandby *s)
{
    qobject_unref(n->primary_opts);
    n->primary_opts = s->has_primary ?
        qdict_clone_shallow(qobject_to(QDict, s->primary)) : NULL;
    n->primary_opts_from_json = s->typed;
    qatomic_set(&n->failover_primary_hidden, s->hidden);
}

void exec_upgrade_failover_load(const ExecUpgradeLedger *before)
{
    for (const ExecUpgradeLedgerStandbyList *l = before->standbys; l;
         l = l->next) {
        VirtIONet *n = standby_find(l->value);

        if (n) {
            standby_load(n, l->value);
        }
    }
}

bool exec_upgrade_failover_loaded(const ExecUpgradeLedger *before,
                                  Error **errp)
{
    for (const ExecUpgradeLedgerStandbyList *l = before->standbys; l;
         l = l->next) {
        if (!standby_find(l->value)) {
            error_setg(errp, "exec-upgrade: there is no standby device of a "
                       "failover pair at '%s'", l->value->device);
            return false;
        }
    }
    return true;
}
