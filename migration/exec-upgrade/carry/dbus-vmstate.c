/*
 * Exec-upgrade: helpers that dbus-vmstate migrates the state of
 *
 * They live on with their state, which is neither saved nor loaded, see
 * migration/savevm-exec-upgrade.c.inc.  The new process connects to the bus
 * again, and could not start without it.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <gio/gio.h>
#include "qom/object_interfaces.h"
#include "migration/exec-upgrade/carry/carry.h"

/* How long the main loop waits for a bus that does not answer, in seconds */
#define BUS_WAIT 5

typedef struct BusAttempt {
    GMainLoop *loop;
    GError *err;
} BusAttempt;

static void connection_made(GObject *source, GAsyncResult *result,
                            gpointer opaque)
{
    BusAttempt *attempt = opaque;
    g_autoptr(GDBusConnection) bus =
        g_dbus_connection_new_for_address_finish(result, &attempt->err);

    g_main_loop_quit(attempt->loop);
}

static gboolean give_up(gpointer cancellable)
{
    g_cancellable_cancel(cancellable);
    return G_SOURCE_REMOVE;
}

/* Returns NULL if a connection can be made */
static GError *bus_try(const char *addr)
{
    g_autoptr(GMainContext) context = g_main_context_new();
    g_autoptr(GMainLoop) loop = g_main_loop_new(context, false);
    g_autoptr(GCancellable) cancellable = g_cancellable_new();
    g_autoptr(GSource) timeout = g_timeout_source_new_seconds(BUS_WAIT);
    BusAttempt attempt = { .loop = loop };

    g_source_set_callback(timeout, give_up, cancellable, NULL);
    g_source_attach(timeout, context);
    g_main_context_push_thread_default(context);
    g_dbus_connection_new_for_address(
        addr, G_DBUS_CONNECTION_FLAGS_AUTHENTICATION_CLIENT |
              G_DBUS_CONNECTION_FLAGS_MESSAGE_BUS_CONNECTION,
        NULL, cancellable, connection_made, &attempt);
    g_main_loop_run(loop);
    g_main_context_pop_thread_default(context);
    g_source_destroy(timeout);
    return attempt.err;
}

static int check_object(Object *obj, void *blockers)
{
    g_autofree char *addr = NULL;
    g_autoptr(GError) err = NULL;

    if (!object_dynamic_cast(obj, "dbus-vmstate")) {
        return 0;
    }
    addr = object_property_get_str(obj, "addr", NULL);
    err = bus_try(addr);
    if (err) {
        exec_upgrade_add_blocker(blockers, "object '%s' (dbus-vmstate) could "
                                 "not connect to '%s' again: %s",
                                 object_get_canonical_path_component(obj),
                                 addr, err->message);
    }
    return 0;
}

static void dbus_vmstate_check(strList **blockers)
{
    object_child_foreach(object_get_objects_root(), check_object, blockers);
}

const ExecUpgradeStage exec_upgrade_stage_dbus_vmstate = {
    .name = "dbus-vmstate",
    .check = dbus_vmstate_check,
};
