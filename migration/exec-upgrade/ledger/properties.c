/*
 * Exec-upgrade: properties that commands have set, and trace events
 *
 * What qom-set may have changed is known only to a property's setter, so that
 * the properties are noted, not the values: the new process gets what they
 * hold at the end.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qapi/qmp/qnull.h"
#include "qemu/error-report.h"
#include "qom/exec-upgrade.h"
#include "qom/object.h"
#include "qom/qom-qobject.h"
#include "sysemu/dirtylimit.h"
#include "trace/control.h"
#include "migration/exec-upgrade/ledger/ledger.h"

typedef struct SetProperty {
    char *path;
    char *name;
} SetProperty;

/* In the order in which they were set first */
static GPtrArray *properties;

static void set_property_free(gpointer opaque)
{
    SetProperty *set = opaque;

    g_free(set->path);
    g_free(set->name);
    g_free(set);
}

static Object *find_object(const char *path)
{
    return object_resolve_path_type(path, TYPE_OBJECT, NULL);
}

/* Those of objects that are gone */
static void forget_gone(void)
{
    for (int i = properties ? properties->len : 0; i-- > 0;) {
        const SetProperty *set = properties->pdata[i];

        if (!find_object(set->path)) {
            g_ptr_array_remove_index(properties, i);
        }
    }
}

static bool is_noted(const char *path, const char *name)
{
    for (int i = 0; i < properties->len; i++) {
        const SetProperty *set = properties->pdata[i];

        if (!strcmp(set->path, path) && !strcmp(set->name, name)) {
            return true;
        }
    }
    return false;
}

static void note(char *path, const char *name)
{
    SetProperty *set;

    if (!properties) {
        properties = g_ptr_array_new_with_free_func(set_property_free);
    }
    forget_gone();
    if (is_noted(path, name)) {
        g_free(path);
        return;
    }
    set = g_new(SetProperty, 1);
    set->path = path;
    set->name = g_strdup(name);
    g_ptr_array_add(properties, set);
}

static void note_set(Object *obj, const char *name, bool done)
{
    char *path = done ? object_get_canonical_path(obj) : NULL;

    if (path) {
        note(path, name);
    }
}

void exec_upgrade_properties_init(void)
{
    exec_upgrade_on_property_set = note_set;
}

static bool is_readable(const SetProperty *set)
{
    Object *obj = find_object(set->path);
    ObjectProperty *prop = object_property_find(obj, set->name);

    return prop && prop->get;
}

static void properties_check(strList **blockers)
{
    forget_gone();
    for (int i = 0; i < (properties ? properties->len : 0); i++) {
        const SetProperty *set = properties->pdata[i];

        if (!is_readable(set)) {
            exec_upgrade_add_blocker(blockers, "property '%s' of '%s' was set "
                                     "after start and can't be read",
                                     set->name, set->path);
        }
    }
    if (dirtylimit_in_service()) {
        exec_upgrade_add_blocker(blockers, "vCPUs have a limit for dirty "
                                 "pages (set-vcpu-dirty-limit)");
    }
}

/*
 * Save
 */

static ExecUpgradeProperty *property_save(const SetProperty *set, Error **errp)
{
    Object *obj = find_object(set->path);
    ExecUpgradeProperty *p;
    QObject *value;

    value = object_property_get_qobject(obj, set->name, errp);
    if (!value) {
        error_prepend(errp, "exec-upgrade: property '%s' of '%s': ",
                      set->name, set->path);
        return NULL;
    }
    p = g_new0(ExecUpgradeProperty, 1);
    p->path = g_strdup(set->path);
    p->type = g_strdup(object_get_typename(obj));
    p->name = g_strdup(set->name);
    p->value = value;
    return p;
}

static strList *enabled_trace_events(void)
{
    strList *names = NULL;
    TraceEventIter iter;
    TraceEvent *ev;

    trace_event_iter_init_all(&iter);
    while ((ev = trace_event_iter_next(&iter))) {
        if (trace_event_get_state_static(ev) &&
            trace_event_get_state_dynamic(ev)) {
            QAPI_LIST_PREPEND(names, g_strdup(trace_event_get_name(ev)));
        }
    }
    return names;
}

ExecUpgradePropertyList *exec_upgrade_properties_find(Error **errp)
{
    ExecUpgradePropertyList *list = NULL, **tail = &list;

    forget_gone();
    for (int i = 0; i < (properties ? properties->len : 0); i++) {
        ExecUpgradeProperty *p = property_save(properties->pdata[i], errp);

        if (!p) {
            qapi_free_ExecUpgradePropertyList(list);
            return NULL;
        }
        QAPI_LIST_APPEND(tail, p);
    }
    return list;
}

static bool properties_save(ExecUpgradeHandoff *h, Error **errp)
{
    ERRP_GUARD();

    h->properties = exec_upgrade_properties_find(errp);
    h->trace_events = enabled_trace_events();
    return !*errp;
}

/*
 * Load
 */

/* One that is as it was is left alone, whether it may be set now or not */
static void property_set(Object *obj, const ExecUpgradeProperty *p,
                         Error **errp)
{
    QObject *now = object_property_get_qobject(obj, p->name, errp);

    if (now && !qobject_is_equal(now, p->value)) {
        object_property_set_qobject(obj, p->name, p->value, errp);
    }
    qobject_unref(now);
}

static void property_load(const ExecUpgradeProperty *p)
{
    Object *obj = find_object(p->path);
    Error *err = NULL;

    if (!obj || strcmp(object_get_typename(obj), p->type)) {
        error_setg(&err, "it is no %s any more", p->type);
    } else {
        property_set(obj, p, &err);
    }
    if (err) {
        error_prepend(&err, "exec-upgrade: property '%s' of '%s' is not what "
                      "it was: ", p->name, p->path);
        warn_report_err(err);
    } else {
        note(g_strdup(p->path), p->name);
    }
}

static void trace_events_load(const strList *enabled)
{
    TraceEventIter iter;
    TraceEvent *ev;

    trace_event_iter_init_all(&iter);
    while ((ev = trace_event_iter_next(&iter))) {
        if (trace_event_get_state_static(ev)) {
            trace_event_set_state_dynamic(
                ev, exec_upgrade_list_has(enabled, trace_event_get_name(ev)));
        }
    }
}

/* Before devices: what device state has of them is later than the values */
static bool properties_load(const ExecUpgradeHandoff *h, Error **errp)
{
    for (ExecUpgradePropertyList *e = h->properties; e; e = e->next) {
        property_load(e->value);
    }
    trace_events_load(h->trace_events);
    return true;
}

const ExecUpgradeStage exec_upgrade_stage_properties = {
    .name = "properties",
    .check = properties_check,
    .save = properties_save,
    .load = properties_load,
};
