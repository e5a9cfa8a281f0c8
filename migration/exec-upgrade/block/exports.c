/*
 * Exec-upgrade: block exports
 *
 * Listening sockets stay; the exports are made again as soon as the guest goes
 * on.  Connections end: what a client has negotiated, and for a vhost-user
 * client its memory and queues, is not carried.  A client that connects again
 * finds the export.
 *
 * Until execve(2) a client is only kept waiting, so that it does not notice an
 * upgrade that fails.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "block/block_int.h"
#include "block/dirty-bitmap.h"
#include "block/exec-upgrade.h"
#include "block/nbd.h"
#include "qapi/clone-visitor.h"
#include "qapi/error.h"
#include "qapi/qapi-commands-block-export.h"
#include "qapi/qapi-visit-block-export.h"
#include "qapi/qapi-visit-sockets.h"
#include "qapi/qmp/qdict.h"
#include "qapi/qobject-output-visitor.h"
#include "qemu/error-report.h"
#include "sysemu/block-backend.h"
#include "migration/exec-upgrade/block/block.h"

/* For a client to read the replies to what it has requested */
#define HOLD_TIMEOUT_MS 1000

/* By id: BlockExportOptions; may have ids that are gone */
static GHashTable *all_options;

/* A dirty bitmap that is unloaded with its image */
typedef struct HeldBitmap {
    BdrvDirtyBitmap **slot;
    BlockDriverState *bs;
    char *name;
} HeldBitmap;

/* While they are held: BlockExport, HeldBitmap */
static GPtrArray *held;
static GArray *held_bitmaps;

/* New process: nodes that may have no other user */
static GPtrArray *kept;

/*
 * What there is
 */

void exec_upgrade_export_added(const BlockExportOptions *options)
{
    GHashTableIter iter;
    gpointer id;

    if (!all_options) {
        all_options = g_hash_table_new_full(
            g_str_hash, g_str_equal, g_free,
            (GDestroyNotify)qapi_free_BlockExportOptions);
    }
    g_hash_table_iter_init(&iter, all_options);
    while (g_hash_table_iter_next(&iter, &id, NULL)) {
        if (!blk_exp_find(id)) {
            g_hash_table_iter_remove(&iter);
        }
    }
    g_hash_table_insert(all_options, g_strdup(options->id),
                        QAPI_CLONE(BlockExportOptions, options));
}

/* Calls @func for each export, the first one first */
static void walk(void (*func)(BlockExport *exp, void *opaque), void *opaque)
{
    BlockExportInfoList *list = qmp_query_block_exports(&error_abort);
    g_autoptr(GPtrArray) exports = g_ptr_array_new();

    for (BlockExportInfoList *e = list; e; e = e->next) {
        g_ptr_array_add(exports, blk_exp_find(e->value->id));
    }
    qapi_free_BlockExportInfoList(list);
    for (int i = exports->len - 1; i >= 0; i--) {
        func(exports->pdata[i], opaque);
    }
}

/* As it could be made now: a snapshot may have taken the place of its node */
static BlockExportOptions *export_options(BlockExport *exp)
{
    BlockExportOptions *options =
        QAPI_CLONE(BlockExportOptions,
                   g_hash_table_lookup(all_options, exp->id));

    g_free(options->node_name);
    options->node_name = g_strdup(bdrv_get_node_name(blk_bs(exp->blk)));
    return options;
}

typedef struct NodeWalk {
    void (*func)(BlockDriverState *bs, void *opaque);
    void *opaque;
} NodeWalk;

static void walk_node(BlockExport *exp, void *opaque)
{
    NodeWalk *w = opaque;

    w->func(blk_bs(exp->blk), w->opaque);
}

void exec_upgrade_exports_walk(void (*func)(BlockDriverState *bs,
                                            void *opaque), void *opaque)
{
    NodeWalk w = { func, opaque };

    walk(walk_node, &w);
}

/* The server of a vhost-user-blk export; NULL if it is another one */
static VuServer *vhost_user_server(BlockExport *exp)
{
#ifdef CONFIG_VHOST_USER_BLK_SERVER
    if (exp->drv->type == BLOCK_EXPORT_TYPE_VHOST_USER_BLK) {
        return exec_upgrade_vhost_user_blk_server(exp);
    }
#endif
    return NULL;
}

/* exec_upgrade_nbd_export_bitmaps() of any export */
static BdrvDirtyBitmap **export_bitmaps(BlockExport *exp, size_t *count)
{
    *count = 0;
    return exp->drv->type == BLOCK_EXPORT_TYPE_NBD
        ? exec_upgrade_nbd_export_bitmaps(exp, count) : NULL;
}

static void find_bitmap(BlockExport *exp, void *opaque)
{
    const BdrvDirtyBitmap **bitmap = opaque;
    BdrvDirtyBitmap **bitmaps;
    size_t count;

    bitmaps = export_bitmaps(exp, &count);
    for (size_t i = 0; i < count; i++) {
        if (bitmaps[i] == *bitmap) {
            *bitmap = NULL;
        }
    }
}

bool exec_upgrade_export_has_bitmap(const BdrvDirtyBitmap *bitmap)
{
    walk(find_bitmap, &bitmap);
    return !bitmap;
}

/*
 * Check
 */

static void export_check(BlockExport *exp, void *opaque)
{
    strList **blockers = opaque;

    if (!exp->user_owned) {
        exec_upgrade_add_blocker(blockers, "block export '%s' is shutting "
                                 "down", exp->id);
    } else if (exp->drv->type != BLOCK_EXPORT_TYPE_NBD &&
               !vhost_user_server(exp)) {
        exec_upgrade_add_blocker(blockers, "block node '%s' is exported as "
                                 "'%s' (%s)",
                                 bdrv_get_node_name(blk_bs(exp->blk)), exp->id,
                                 BlockExportType_str(exp->drv->type));
    }
}

static void exports_check(strList **blockers)
{
    ExecUpgradeNbdServerState server;

    walk(export_check, blockers);
    if (exec_upgrade_nbd_server(&server) && server.tls_creds &&
        !OBJECT(server.tls_creds)->parent) {
        exec_upgrade_add_blocker(blockers, "the TLS credentials of the NBD "
                                 "server were deleted");
    }
}

/*
 * Hold
 */

static void hold_timeout(void *opaque)
{
    /* Only its end is asked for */
}

static bool wait_until_idle(BlockExport *exp)
{
    QEMUTimer *timer = aio_timer_new(qemu_get_aio_context(),
                                     QEMU_CLOCK_REALTIME, SCALE_MS,
                                     hold_timeout, NULL);
    bool busy;

    timer_mod(timer, qemu_clock_get_ms(QEMU_CLOCK_REALTIME) + HOLD_TIMEOUT_MS);
    AIO_WAIT_WHILE(exp->ctx,
                   (busy = exec_upgrade_block_backend_held_busy(exp->blk)) &&
                   timer_pending(timer));
    timer_free(timer);
    return !busy;
}

static void hold(BlockExport *exp, void *opaque)
{
    bool *idle = opaque;

    if (!*idle) {
        return;
    }
    aio_context_acquire(exp->ctx);
    blk_exp_ref(exp);
    g_ptr_array_add(held, exp);
    exec_upgrade_block_backend_hold(exp->blk);
    *idle = wait_until_idle(exp);
    aio_context_release(exp->ctx);
}

/*
 * Storing a bitmap in its image frees it, which must not be in use then, and
 * another is loaded should the upgrade fail
 */
static void hold_bitmaps(BlockExport *exp, void *opaque)
{
    BdrvDirtyBitmap **bitmaps, *bitmap;
    size_t count;

    bitmaps = export_bitmaps(exp, &count);
    for (BlockDriverState *bs = bdrv_next_all_states(NULL); count && bs;
         bs = bdrv_next_all_states(bs)) {
        FOR_EACH_DIRTY_BITMAP(bs, bitmap) {
            for (size_t i = 0; i < count; i++) {
                if (bitmaps[i] == bitmap) {
                    HeldBitmap h = { &bitmaps[i], bs,
                                     g_strdup(bdrv_dirty_bitmap_name(bitmap))};

                    bdrv_dirty_bitmap_set_busy(bitmap, false);
                    g_array_append_val(held_bitmaps, h);
                }
            }
        }
    }
}

bool exec_upgrade_exports_hold(Error **errp)
{
    bool idle = true;

    held = g_ptr_array_new();
    held_bitmaps = g_array_new(false, false, sizeof(HeldBitmap));
    /* One that comes now would not be held, and might never come to rest */
    exec_upgrade_nbd_hold(true);
    walk(hold, &idle);
    if (!idle) {
        BlockExport *last = held->pdata[held->len - 1];

        error_setg(errp, "exec-upgrade: a client of block export '%s' does "
                   "not read its replies, or does not send the rest of a "
                   "request",
                   last->id);
        exec_upgrade_exports_release();
        return false;
    }
    walk(hold_bitmaps, NULL);
    return true;
}

static void release_bitmap(HeldBitmap *h)
{
    BdrvDirtyBitmap *bitmap = bdrv_find_dirty_bitmap(h->bs, h->name);

    if (!bitmap) {
        /* The image could not be activated, and is not read either */
        bitmap = bdrv_create_dirty_bitmap(h->bs, BDRV_SECTOR_SIZE, NULL,
                                          &error_abort);
    }
    bdrv_dirty_bitmap_set_busy(bitmap, true);
    *h->slot = bitmap;
    g_free(h->name);
}

void exec_upgrade_exports_release(void)
{
    for (int i = 0; i < held_bitmaps->len; i++) {
        release_bitmap(&g_array_index(held_bitmaps, HeldBitmap, i));
    }
    g_clear_pointer(&held_bitmaps, g_array_unref);
    exec_upgrade_nbd_hold(false);
    for (int i = 0; i < held->len; i++) {
        BlockExport *exp = held->pdata[i];
        AioContext *ctx = exp->ctx;

        aio_context_acquire(ctx);
        exec_upgrade_block_backend_release(exp->blk);
        blk_exp_unref(exp);
        aio_context_release(ctx);
    }
    g_clear_pointer(&held, g_ptr_array_unref);
}

/*
 * Save
 */

static ExecUpgradeNbdServer *nbd_server_save(void)
{
    ExecUpgradeNbdServerState state;
    ExecUpgradeNbdServer *server;

    if (!exec_upgrade_nbd_server(&state)) {
        return NULL;
    }
    server = g_new0(ExecUpgradeNbdServer, 1);
    server->listeners = exec_upgrade_listener_save(state.listener);
    if (state.tls_creds) {
        server->has_tls_creds = true;
        server->tls_creds = g_strdup(object_get_canonical_path_component(
                                         OBJECT(state.tls_creds)));
    }
    server->has_tls_authz = state.tls_authz;
    server->tls_authz = g_strdup(state.tls_authz);
    server->max_connections = state.max_connections;
    return server;
}

static void export_save(BlockExport *exp, void *opaque)
{
    ExecUpgradeBlockExport *e = g_new0(ExecUpgradeBlockExport, 1);
    ExecUpgradeBlockExportList ***tail = opaque;

    e->options = export_options(exp);
    if (exp->drv->type == BLOCK_EXPORT_TYPE_NBD) {
        e->drive = g_strdup(exec_upgrade_nbd_export_drive(exp));
        e->has_drive = e->drive;
    } else {
        e->listeners =
            exec_upgrade_listener_save(vhost_user_server(exp)->listener);
    }
    QAPI_LIST_APPEND(*tail, e);
}

static bool exports_save(ExecUpgradeHandoff *h, Error **errp)
{
    ExecUpgradeBlockExportList **tail = &h->exports;

    h->nbd_server = nbd_server_save();
    h->has_nbd_server = h->nbd_server;
    walk(export_save, &tail);
    return true;
}

static char *client_address(QIOChannelSocket *sioc)
{
    SocketAddress *addr = qio_channel_socket_get_remote_address(sioc, NULL);
    char *uri = addr ? socket_uri(addr) : g_strdup("unknown");

    qapi_free_SocketAddress(addr);
    return uri;
}

typedef struct ClientDrop {
    ExecUpgradeHandoff *h;
    BlockExport *exp;
    int count;
} ClientDrop;

static void nbd_client_drop(QIOChannelSocket *sioc, void *opaque)
{
    ClientDrop *drop = opaque;
    g_autofree char *client = client_address(sioc);

    drop->count++;
    exec_upgrade_drop(drop->h, "nbd client %s of block export '%s'", client,
                      drop->exp->id);
}

static void export_clients_drop(BlockExport *exp, void *opaque)
{
    VuServer *server = vhost_user_server(exp);
    ClientDrop *drop = opaque;

    drop->exp = exp;
    if (!server) {
        exec_upgrade_nbd_export_clients(exp, nbd_client_drop, drop);
    } else if (server->sioc) {
        g_autofree char *client = client_address(server->sioc);

        exec_upgrade_drop(drop->h, "vhost-user client %s of block export "
                          "'%s'", client, exp->id);
    }
}

/* execve(2) closes their sockets */
static void exports_close(ExecUpgradeHandoff *h)
{
    ExecUpgradeNbdServerState server;
    ClientDrop drop = { .h = h };

    walk(export_clients_drop, &drop);
    if (exec_upgrade_nbd_server(&server)) {
        while (drop.count++ < server.connections) {
            exec_upgrade_drop(h, "nbd client that has not chosen a block "
                              "export");
        }
    }
}

/*
 * The new process
 */

void exec_upgrade_exports_keep(const ExecUpgradeHandoff *h)
{
    kept = g_ptr_array_new_with_free_func((GDestroyNotify)bdrv_unref);
    for (ExecUpgradeBlockExportList *e = h->exports; e; e = e->next) {
        BlockDriverState *bs = bdrv_find_node(e->value->options->node_name);

        if (bs) {
            bdrv_ref(bs);
            g_ptr_array_add(kept, bs);
        }
    }
}

bool exec_upgrade_exports_activate(Error **errp)
{
    for (int i = 0; kept && i < kept->len; i++) {
        if (bdrv_activate(kept->pdata[i], errp) < 0) {
            return false;
        }
    }
    return true;
}

static void nbd_server_load(const ExecUpgradeNbdServer *server)
{
    SocketAddress unused = { .type = SOCKET_ADDRESS_TYPE_UNIX };
    Error *err = NULL;

    exec_upgrade_listener_carried(server->listeners);
    nbd_server_start(&unused, server->tls_creds, server->tls_authz,
                     server->max_connections, &err);
    exec_upgrade_listener_carried(NULL);
    if (err) {
        error_prepend(&err, "exec-upgrade: can't start the NBD server: ");
        warn_report_err(err);
    }
}

static void export_load(const ExecUpgradeBlockExport *e)
{
    BlockBackend *drive = e->has_drive ? blk_by_name(e->drive) : NULL;
    Error *err = NULL;
    BlockExport *exp;

    exec_upgrade_listener_carried(e->listeners);
    exp = blk_exp_add(e->options, &err);
    exec_upgrade_listener_carried(NULL);
    if (!exp) {
        error_prepend(&err, "exec-upgrade: can't make block export '%s': ",
                      e->options->id);
        warn_report_err(err);
    } else if (drive) {
        nbd_export_set_on_eject_blk(exp, drive);
    }
}

static void exports_commit(const ExecUpgradeHandoff *h)
{
    if (h->has_nbd_server) {
        nbd_server_load(h->nbd_server);
    }
    for (ExecUpgradeBlockExportList *e = h->exports; e; e = e->next) {
        export_load(e->value);
    }
    g_clear_pointer(&kept, g_ptr_array_unref);
}

const ExecUpgradeStage exec_upgrade_stage_block_export = {
    .name = "block export",
    .check = exports_check,
    .save = exports_save,
    .close = exports_close,
    .commit = exports_commit,
};

/*
 * What the user is told
 */

static void append_change(BlockExport *exp, void *opaque)
{
    strList ***tail = opaque;

    QAPI_LIST_APPEND(*tail, g_strdup_printf("block export '%s' was added",
                                            exp->id));
}

void exec_upgrade_exports_changes(strList ***tail)
{
    ExecUpgradeNbdServerState state;

    if (exec_upgrade_nbd_server(&state)) {
        QAPI_LIST_APPEND(*tail, g_strdup("the NBD server was started"));
    }
    walk(append_change, tail);
}

static void append_export(BlockExport *exp, void *opaque)
{
    g_autofree char *node = exec_upgrade_node_name_public(blk_bs(exp->blk));
    BlockExportOptions *options = export_options(exp);
    QObject *arguments;
    Visitor *v = qobject_output_visitor_new(&arguments);

    visit_type_BlockExportOptions(v, NULL, &options, &error_abort);
    visit_complete(v, &arguments);
    visit_free(v);
    qapi_free_BlockExportOptions(options);
    qdict_put_str(qobject_to(QDict, arguments), "node-name", node);
    exec_upgrade_command_append(opaque, "block-export-add",
                                qobject_to(QDict, arguments));
}

/* As nbd-server-start has it: the type beside the rest */
static QDict *nested_address(QIONetListener *listener)
{
    QDict *addr = qdict_new(), *data;
    SocketAddress *flat;
    QObject *obj;
    Visitor *v;

    flat = qio_channel_socket_get_local_address(listener->sioc[0],
                                                &error_abort);
    v = qobject_output_visitor_new(&obj);
    visit_type_SocketAddress(v, NULL, &flat, &error_abort);
    visit_complete(v, &obj);
    visit_free(v);
    qapi_free_SocketAddress(flat);

    data = qobject_to(QDict, obj);
    qdict_put_str(addr, "type", qdict_get_str(data, "type"));
    qdict_del(data, "type");
    qdict_put(addr, "data", data);
    return addr;
}

void exec_upgrade_exports_configuration(ExecUpgradeCommandList ***tail)
{
    ExecUpgradeNbdServerState state;

    if (exec_upgrade_nbd_server(&state)) {
        QDict *arguments = qdict_new();

        qdict_put(arguments, "addr", nested_address(state.listener));
        if (state.tls_creds) {
            const char *id = object_get_canonical_path_component(
                                 OBJECT(state.tls_creds));

            qdict_put_str(arguments, "tls-creds", id ?: "");
        }
        if (state.tls_authz) {
            qdict_put_str(arguments, "tls-authz", state.tls_authz);
        }
        qdict_put_int(arguments, "max-connections", state.max_connections);
        exec_upgrade_command_append(tail, "nbd-server-start", arguments);
    }
    walk(append_export, tail);
}
