/*
 * Exec-upgrade: configuration that was changed since the start
 *
 * The new process builds what the command line says, and what is in the
 * ledger; see ledger.c.  What else the user has added, removed or changed since
 * would be lost or come back, so that it is looked for and refused; settings
 * that a command can simply set again are carried.
 *
 * What is compared is a list of things, each with a kind, a name and a
 * description.  It is noted in each process when its start is complete.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "chardev/char.h"
#include "chardev/char-fe.h"
#include "hw/boards.h"
#include "hw/qdev-core.h"
#include "migration/exec-upgrade-owners.h"
#include "net/net.h"
#include "qapi/error.h"
#include "qapi/qapi-commands-migration.h"
#include "qapi/qapi-visit-migration.h"
#include "qapi/qmp/qdict.h"
#include "qapi/qmp/qjson.h"
#include "qapi/qobject-input-visitor.h"
#include "qapi/qobject-output-visitor.h"
#include "qemu/config-file.h"
#include "qemu/error-report.h"
#include "qemu/option.h"
#include "qemu/thread-context.h"
#include "qom/qom-qobject.h"
#include "sysemu/replay.h"
#include "sysemu/sysemu.h"
#include "../../chardev/chardev-internal.h"
#include "migration/exec-upgrade/ledger/ledger.h"

typedef enum Kind {
    KIND_DEVICE,
    KIND_OBJECT,
    KIND_THREAD_CONTEXT,
    KIND_CHARDEV,
    KIND_NETDEV,
} Kind;

static const struct {
    const char *name;
    bool may_vanish;
    /* For what has an option of its own, which can be left out */
    int ledger_kind;
} kinds[] = {
    [KIND_DEVICE]    = { "device",
                         .ledger_kind = EXEC_UPGRADE_LEDGER_KIND_DEVICE },
    [KIND_OBJECT]    = { "object",
                         .ledger_kind = EXEC_UPGRADE_LEDGER_KIND_OBJECT },
    /* The new process deletes it, too */
    [KIND_THREAD_CONTEXT] = { "thread context", .may_vanish = true },
    [KIND_CHARDEV]   = { "character device",
                         .ledger_kind = EXEC_UPGRADE_LEDGER_KIND_CHARDEV },
    [KIND_NETDEV]    = { "network backend",
                         .ledger_kind = EXEC_UPGRADE_LEDGER_KIND_NETDEV },
};

/*
 * @option: it is made by an option of its own, which the new process can leave
 *          out
 * @ledger: it is in the ledger
 */
typedef struct Thing {
    Kind kind;
    char *name;
    char *description;
    bool option;
    bool ledger;
} Thing;

/* Things in the order of kind and name; NULL before the start is complete */
static GPtrArray *at_start;

/* By set-numa-node */
static bool numa_changed;

static void thing_free(gpointer opaque)
{
    Thing *thing = opaque;

    g_free(thing->name);
    g_free(thing->description);
    g_free(thing);
}

/* Takes the ownership of @name and @description */
static Thing *add(GPtrArray *things, Kind kind, char *name, char *description)
{
    Thing *thing = g_new0(Thing, 1);

    thing->kind = kind;
    thing->name = name;
    thing->description = description;
    g_ptr_array_add(things, thing);
    return thing;
}

static int thing_compare(const Thing *a, const Thing *b)
{
    return a->kind == b->kind ? strcmp(a->name, b->name) : a->kind - b->kind;
}

static gint thing_sort(gconstpointer a, gconstpointer b)
{
    const Thing *x = *(const Thing **)a, *y = *(const Thing **)b;

    return thing_compare(x, y) ?: strcmp(x->description, y->description);
}

/*
 * What there is
 */

static char *device_name(DeviceState *dev)
{
    g_autofree char *name = exec_upgrade_device_name(dev);

    if (dev->id || dev->opts) {
        return g_steal_pointer(&name);
    }
    /* The machine has made it, and its path says little */
    return g_strdup_printf("%s (%s)", name, object_get_typename(OBJECT(dev)));
}

/*
 * A device in the machine.  What is below it, it has made by itself; what the
 * user plugs into it is not below it, but in /machine/peripheral.
 */
static int add_device(Object *obj, void *things)
{
    DeviceState *dev = (DeviceState *)object_dynamic_cast(obj, TYPE_DEVICE);
    Thing *thing;

    if (!dev) {
        return object_child_foreach(obj, add_device, things);
    }
    thing = add(things, KIND_DEVICE, device_name(dev),
                g_strdup(object_get_typename(obj)));
    thing->option = dev->opts;
    thing->ledger = exec_upgrade_ledger_has(obj);
    return 0;
}

static int add_object(Object *obj, void *things)
{
    MachineClass *mc = MACHINE_GET_CLASS(qdev_get_machine());
    const char *name = object_get_canonical_path_component(obj);
    Thing *thing;

    thing = add(things, object_dynamic_cast(obj, TYPE_THREAD_CONTEXT)
                        ? KIND_THREAD_CONTEXT : KIND_OBJECT,
                g_strdup(name), g_strdup(object_get_typename(obj)));
    thing->option = g_strcmp0(name, mc->default_ram_id);
    thing->ledger = exec_upgrade_ledger_has(obj);
    return 0;
}

static char *qobject_text(QObject *value)
{
    GString *json = value ? qobject_to_json(value) : g_string_new("");

    qobject_unref(value);
    return g_string_free(json, false);
}

static int add_chardev(Object *obj, void *things)
{
    const char *type = object_get_typename(obj);
    Chardev *chr = CHARDEV(obj);
    g_autofree char *where = NULL;
    Thing *thing;

    /* A socket's file name tells of its connection, too */
    if (object_property_find(obj, "addr")) {
        where = qobject_text(object_property_get_qobject(obj, "addr", NULL));
    } else {
        where = g_strdup(chr->filename);
    }
    thing = add(things, KIND_CHARDEV, g_strdup(chr->label),
                g_strdup_printf("%s %s", type, where ?: ""));
    /* A multiplexer's option makes what it is on, too, with another name */
    thing->option = qemu_opts_find(qemu_find_opts("chardev"), chr->label) &&
                    !CHARDEV_IS_MUX(chr);
    thing->ledger = exec_upgrade_ledger_has(obj);
    return 0;
}

static void add_netdevs(GPtrArray *things)
{
    int count = qemu_find_net_clients_except(NULL, NULL,
                                             NET_CLIENT_DRIVER__MAX, 0);
    g_autofree NetClientState **clients = g_new0(NetClientState *, count);

    qemu_find_net_clients_except(NULL, clients, NET_CLIENT_DRIVER__MAX, count);
    for (int i = 0; i < count; i++) {
        NetClientState *nc = clients[i];
        Thing *thing;

        /* A NIC's is its device */
        if (nc->info->type != NET_CLIENT_DRIVER_NIC && !nc->queue_index) {
            thing = add(things, KIND_NETDEV, g_strdup(nc->name),
                        g_strdup(NetClientDriver_str(nc->info->type)));
            thing->option = nc->is_netdev;
            thing->ledger = exec_upgrade_ledger_has_netdev(nc->name);
        }
    }
}

static GPtrArray *find_things(void)
{
    GPtrArray *things = g_ptr_array_new_with_free_func(thing_free);

    object_child_foreach(qdev_get_machine(), add_device, things);
    object_child_foreach(object_get_objects_root(), add_object, things);
    object_child_foreach(get_chardevs_root(), add_chardev, things);
    add_netdevs(things);
    g_ptr_array_sort(things, thing_sort);
    return things;
}

static const Thing *thing_find(GPtrArray *things, const Thing *thing)
{
    for (int i = 0; i < things->len; i++) {
        if (!thing_compare(things->pdata[i], thing)) {
            return things->pdata[i];
        }
    }
    return NULL;
}

/* What commands have made before x-exit-preconfig is not the command line's */
static bool is_from_preconfig(GPtrArray *before, const Thing *thing)
{
    MachineClass *mc = MACHINE_GET_CLASS(qdev_get_machine());

    switch (thing->kind) {
    case KIND_OBJECT:
        /* The machine's own memory is made only now */
        return g_strcmp0(thing->name, mc->default_ram_id) &&
               !thing_find(before, thing);
    case KIND_NETDEV:
        return !thing_find(before, thing);
    default:
        return false;
    }
}

static void note_after_preconfig(Notifier *notifier, void *data)
{
    GPtrArray *before = at_start;

    at_start = find_things();
    for (int i = at_start->len - 1; i >= 0; i--) {
        if (is_from_preconfig(before, at_start->pdata[i])) {
            g_ptr_array_remove_index(at_start, i);
        }
    }
    g_ptr_array_unref(before);
}

void exec_upgrade_configuration_note(void)
{
    static Notifier machine_done = { .notify = note_after_preconfig };

    if (at_start) {
        g_ptr_array_unref(at_start);
    }
    at_start = find_things();
    for (int i = at_start->len - 1; i >= 0; i--) {
        const Thing *thing = at_start->pdata[i];

        if (thing->ledger) {
            g_ptr_array_remove_index(at_start, i);
        }
    }
    if (!phase_check(PHASE_MACHINE_READY)) {
        qemu_add_machine_init_done_notifier(&machine_done);
    }
    exec_upgrade_ledger_start_complete();
}

void exec_upgrade_numa_changed(void)
{
    numa_changed = true;
}

/*
 * What is different
 */

static void thing_blocker(strList **blockers, const Thing *thing,
                          const char *what)
{
    exec_upgrade_add_blocker(blockers, "%s '%s' was %s after start",
                             kinds[thing->kind].name, thing->name, what);
}

static void thing_removed(const Thing *thing, strList **blockers,
                          ExecUpgradeLedgerNameList **removed)
{
    if (kinds[thing->kind].may_vanish) {
        return;
    }
    if (!thing->option) {
        thing_blocker(blockers, thing, "removed");
        return;
    }
    exec_upgrade_ledger_names_add(removed, kinds[thing->kind].ledger_kind,
                                  thing->name);
}

/* @blockers and @removed are added to */
static void compare_things(GPtrArray *before, GPtrArray *now,
                           strList **blockers,
                           ExecUpgradeLedgerNameList **removed)
{
    int i = 0, j = 0;

    while (i < before->len || j < now->len) {
        const Thing *old = i < before->len ? before->pdata[i] : NULL;
        const Thing *new = j < now->len ? now->pdata[j] : NULL;
        int order = !old ? 1 : !new ? -1 : thing_compare(old, new);

        if (new && new->ledger) {
            j++;
        } else if (order < 0) {
            thing_removed(old, blockers, removed);
            i++;
        } else if (order > 0) {
            thing_blocker(blockers, new, "added");
            j++;
        } else {
            if (strcmp(old->description, new->description)) {
                thing_blocker(blockers, new, "changed");
            }
            i++;
            j++;
        }
    }
}

ExecUpgradeLedgerNameList *exec_upgrade_configuration_removed(void)
{
    g_autoptr(GPtrArray) now = find_things();
    ExecUpgradeLedgerNameList *removed = NULL;
    strList *blockers = NULL;

    if (at_start) {
        compare_things(at_start, now, &blockers, &removed);
    }
    qapi_free_strList(blockers);
    return removed;
}

/* Whether @text has @id as a word, behind @before */
static bool has_word(const char *text, const char *before, const char *id)
{
    static const char word[] = "-._" "0123456789" "abcdefghijklmnopqrstuvwxyz"
                               "ABCDEFGHIJKLMNOPQRSTUVWXYZ";
    size_t len = strlen(id), before_len = strlen(before);

    for (const char *p = text; (p = strstr(p, id)); p++) {
        bool starts = p == text || !strchr(word, p[-1]);
        bool ends = !p[len] || !strchr(word, p[len]);

        if (starts && ends && p - text >= before_len &&
            !strncmp(p - before_len, before, before_len)) {
            return true;
        }
    }
    return false;
}

/* Whether an argument makes something that was deleted */
static bool is_left_out(const char *argument,
                        const ExecUpgradeLedgerNameList *removed)
{
    for (; removed; removed = removed->next) {
        const char *id = removed->value->id;

        if (has_word(argument, "id=", id) ||
            has_word(argument, "\"id\":\"", id) ||
            has_word(argument, "\"id\": \"", id)) {
            return true;
        }
    }
    return false;
}

/*
 * Objects can be deleted while something that goes on has what it took from
 * them, a secret or a certificate.  The new process would look for them.
 */
static void check_removed_object(const char *id,
                                 const ExecUpgradeLedgerNameList *removed,
                                 strList **blockers)
{
    char **argv = exec_upgrade_argv();

    for (int i = 1; argv[i]; i++) {
        if (strstr(argv[i], "-readconfig") ||
            (has_word(argv[i], "", id) && !is_left_out(argv[i], removed))) {
            exec_upgrade_add_blocker(blockers, "object '%s' was removed after "
                                     "start, but '%s' of the command line may "
                                     "still need it", id, argv[i]);
            return;
        }
    }
}

static void check_removed(const ExecUpgradeLedgerNameList *removed,
                          strList **blockers)
{
    for (const ExecUpgradeLedgerNameList *l = removed; l; l = l->next) {
        if (l->value->kind == EXEC_UPGRADE_LEDGER_KIND_OBJECT) {
            check_removed_object(l->value->id, removed, blockers);
        }
    }
}

/*
 * What else the new process could not build again
 */

static void file_blocker(strList **blockers, const char *path,
                         const char *what)
{
    if (path && path[0] && faccessat(exec_upgrade_cwd(), path, R_OK,
                                     AT_EACCESS) < 0) {
        exec_upgrade_add_blocker(blockers, "%s '%s' can't be read any more: "
                                 "%s", what, path, strerror(errno));
    }
}

static int secret_blocker(Object *obj, void *blockers)
{
    if (object_dynamic_cast(obj, "secret")) {
        g_autofree char *path = object_property_get_str(obj, "file", NULL);
        g_autofree char *what = g_strdup_printf("the file of secret '%s'",
            object_get_canonical_path_component(obj));

        file_blocker(blockers, path, what);
    }
    return 0;
}

static void configuration_check(strList **blockers)
{
    g_autoptr(GPtrArray) now = find_things();
    MachineState *machine = MACHINE(qdev_get_machine());
    ExecUpgradeLedgerNameList *removed = NULL;
    Object *gdb;

    if (!at_start) {
        exec_upgrade_add_blocker(blockers, "the machine is not complete yet");
        return;
    }
    compare_things(at_start, now, blockers, &removed);
    check_removed(removed, blockers);
    qapi_free_ExecUpgradeLedgerNameList(removed);

    file_blocker(blockers, machine->kernel_filename, "the kernel");
    file_blocker(blockers, machine->initrd_filename, "the initrd");
    file_blocker(blockers, machine->dtb, "the device tree");
    object_child_foreach(object_get_objects_root(), secret_blocker, blockers);

    if (numa_changed) {
        exec_upgrade_add_blocker(blockers, "NUMA nodes were set by "
                                 "set-numa-node");
    }
    if (replay_mode != REPLAY_MODE_NONE) {
        exec_upgrade_add_blocker(blockers, "record/replay is on");
    }
    gdb = object_resolve_path_component(get_chardevs_root(), "gdb");
    if (gdb && CHARDEV(gdb)->be_open) {
        exec_upgrade_add_blocker(blockers, "a debugger is connected to the "
                                 "gdb stub");
    }
}

/*
 * What commands have set, and commands can set again
 */

static strList *enabled_capabilities(void)
{
    MigrationCapabilityStatusList *caps =
        qmp_query_migrate_capabilities(&error_abort);
    strList *names = NULL;

    for (MigrationCapabilityStatusList *e = caps; e; e = e->next) {
        if (e->value->state) {
            QAPI_LIST_PREPEND(names, g_strdup(MigrationCapability_str(
                                                  e->value->capability)));
        }
    }
    qapi_free_MigrationCapabilityStatusList(caps);
    return names;
}

static QObject *migration_parameters(void)
{
    MigrationParameters *params = qmp_query_migrate_parameters(&error_abort);
    QObject *obj = NULL;
    Visitor *v = qobject_output_visitor_new(&obj);

    visit_type_MigrationParameters(v, NULL, &params, &error_abort);
    visit_complete(v, &obj);
    visit_free(v);
    qapi_free_MigrationParameters(params);
    return obj;
}

static bool configuration_save(ExecUpgradeHandoff *h, Error **errp)
{
    ExecUpgradeSettings *s = g_new0(ExecUpgradeSettings, 1);

    s->migration_capabilities = enabled_capabilities();
    s->migration_parameters = migration_parameters();
    h->settings = s;
    return true;
}

/* Parameters that are as they were are left alone, whether valid or not */
static void set_parameters(QObject *want, Error **errp)
{
    QDict *is = qobject_to(QDict, migration_parameters());
    QDict *set = qdict_clone_shallow(qobject_to(QDict, want));
    MigrateSetParameters *params = NULL;
    Visitor *v;

    for (const QDictEntry *e = qdict_first(is); e; e = qdict_next(is, e)) {
        if (qobject_is_equal(qdict_get(set, qdict_entry_key(e)),
                             qdict_entry_value(e))) {
            qdict_del(set, qdict_entry_key(e));
        }
    }
    v = qobject_input_visitor_new(QOBJECT(set));
    if (visit_type_MigrateSetParameters(v, NULL, &params, errp)) {
        qmp_migrate_set_parameters(params, errp);
    }
    visit_free(v);
    qapi_free_MigrateSetParameters(params);
    qobject_unref(set);
    qobject_unref(is);
}

static bool configuration_load(const ExecUpgradeHandoff *h, Error **errp)
{
    exec_upgrade_set_migration_capabilities(
        h->settings->migration_capabilities);
    return true;
}

/* Not in load: while incoming, some are checked against this host */
static void configuration_commit(const ExecUpgradeHandoff *h)
{
    Error *err = NULL;

    set_parameters(h->settings->migration_parameters, &err);
    if (err) {
        warn_report_err(err);
    }
}

const ExecUpgradeStage exec_upgrade_stage_configuration = {
    .name = "configuration",
    .check = configuration_check,
    .save = configuration_save,
    .load = configuration_load,
    .commit = configuration_commit,
};
