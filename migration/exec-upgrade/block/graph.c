/*
 * Exec-upgrade: the block graph
 *
 * The new process opens the nodes that there are, not those of the command
 * line: a snapshot has put an image on top, a job has taken one out, the user
 * has added others.  Each node is opened on its own, children first, with the
 * options that it has and with references to its children, so that neither a
 * backing file's name in an image's header nor an inherited option counts.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "block/block_int.h"
#include "block/write-threshold.h"
#include "qapi/error.h"
#include "qapi/qmp/qdict.h"
#include "qemu/cutils.h"
#include "qemu/error-report.h"
#include "sysemu/block-backend.h"
#include "migration/exec-upgrade/block/block.h"

/* Flags that come from the options, or from whoever opened the node */
#define NODE_FLAGS (BDRV_O_RDWR | BDRV_O_CACHE_MASK | BDRV_O_UNMAP | \
                    BDRV_O_AUTO_RDONLY | BDRV_O_COPY_ON_READ | \
                    BDRV_O_NATIVE_AIO | BDRV_O_IO_URING | BDRV_O_ALLOW_RDWR)

/* New process, until the machine is complete: a reference to each node */
static GPtrArray *opened;

/*
 * Children
 */

static bool has_child(const BlockDriverState *bs, const char *name)
{
    BdrvChild *child;

    QLIST_FOREACH(child, &bs->children, next) {
        if (!strcmp(child->name, name)) {
            return true;
        }
    }
    return false;
}

/* quorum counts its children from 0 when it is opened */
static bool has_gap(const BlockDriverState *bs)
{
    BdrvChild *child;
    int count = 0;

    if (strcmp(bs->drv->format_name, "quorum")) {
        return false;
    }
    QLIST_FOREACH(child, &bs->children, next) {
        count++;
    }
    for (int i = 0; i < count; i++) {
        g_autofree char *name = g_strdup_printf("children.%d", i);

        if (!has_child(bs, name)) {
            return true;
        }
    }
    return false;
}

void exec_upgrade_block_node_check(BlockDriverState *bs, strList **blockers)
{
    if (bs->implicit) {
        exec_upgrade_add_blocker(blockers, "block node '%s' (%s) belongs to "
                                 "a job", bs->node_name, bs->drv->format_name);
    }
    if (has_gap(bs)) {
        exec_upgrade_add_blocker(blockers, "block node '%s' (quorum) has lost "
                                 "a child that is not its last",
                                 bs->node_name);
    }
}

static void add_node(BlockDriverState *bs, void *seen)
{
    exec_upgrade_block_node_walk(bs, seen, NULL, NULL);
}

/*
 * Nodes that what is carried uses: if @placing, only those whose users may
 * give them an iothread
 */
static GHashTable *used_nodes(bool placing)
{
    GHashTable *seen = g_hash_table_new(NULL, NULL);

    exec_upgrade_exports_walk(add_node, seen);

    for (BlockBackend *blk = blk_all_next(NULL); blk;
         blk = blk_all_next(blk)) {
        if (blk_bs(blk) && (blk_get_attached_dev(blk) ||
                            (!placing && blk_name(blk)[0]))) {
            exec_upgrade_block_node_walk(blk_bs(blk), seen, NULL, NULL);
        }
    }
    for (BlockDriverState *bs = placing ? NULL : bdrv_next_monitor_owned(NULL);
         bs; bs = bdrv_next_monitor_owned(bs)) {
        exec_upgrade_block_node_walk(bs, seen, NULL, NULL);
    }
    return seen;
}

void exec_upgrade_block_graph_check(strList **blockers)
{
    g_autoptr(GHashTable) used = used_nodes(false);
    g_autoptr(GHashTable) placed = used_nodes(true);

    for (BlockDriverState *bs = bdrv_next_all_states(NULL); bs;
         bs = bdrv_next_all_states(bs)) {
        if (!g_hash_table_contains(used, bs)) {
            exec_upgrade_add_blocker(blockers, "block node '%s' is used by "
                                     "QEMU itself, which can't be carried",
                                     bs->node_name);
        } else if (!g_hash_table_contains(placed, bs) &&
                   bdrv_get_aio_context(bs) != qemu_get_aio_context()) {
            exec_upgrade_add_blocker(blockers, "block node '%s' was moved to "
                                     "an iothread that no device or export "
                                     "has given it", bs->node_name);
        }
    }
}

/*
 * Save
 */

static ExecUpgradeBlockChildList *children_save(BlockDriverState *bs)
{
    ExecUpgradeBlockChildList *list = NULL;
    BdrvChild *c;

    QLIST_FOREACH(c, &bs->children, next) {
        ExecUpgradeBlockChild *child = g_new0(ExecUpgradeBlockChild, 1);

        child->name = g_strdup(c->name);
        child->node = g_strdup(c->bs->node_name);
        QAPI_LIST_PREPEND(list, child);
    }
    return list;
}

static ExecUpgradeBlockNode *node_save(BlockDriverState *bs)
{
    ExecUpgradeBlockNode *node = g_new0(ExecUpgradeBlockNode, 1);

    node->name = g_strdup(bs->node_name);
    node->driver = g_strdup(bs->drv->format_name);
    node->options = QOBJECT(qdict_clone_shallow(bs->options));
    node->explicit_options = QOBJECT(qdict_clone_shallow(bs->explicit_options));
    node->children = children_save(bs);
    if (bs->inherits_from) {
        node->has_inherits_from = true;
        node->inherits_from = g_strdup(bs->inherits_from->node_name);
    }
    node->flags = bs->open_flags & NODE_FLAGS;
    node->detect_zeroes = bs->detect_zeroes;
    node->probed = bs->probed;
    node->auto_backing_file = g_strdup(bs->auto_backing_file);
    node->write_threshold = bdrv_write_threshold_get(bs);
    node->highest_write = stat64_get(&bs->wr_highest_offset);
    node->size = bdrv_getlength(bs);
    return node;
}

static void node_append(BlockDriverState *bs, void *opaque)
{
    ExecUpgradeBlockNodeList ***tail = opaque;

    QAPI_LIST_APPEND(*tail, node_save(bs));
}

void exec_upgrade_block_graph_save(ExecUpgradeHandoff *h)
{
    ExecUpgradeBlockNodeList **nodes = &h->block_nodes;
    strList **owned = &h->monitor_nodes;

    exec_upgrade_block_nodes_walk(node_append, &nodes);
    for (BlockDriverState *bs = bdrv_next_monitor_owned(NULL); bs;
         bs = bdrv_next_monitor_owned(bs)) {
        QAPI_LIST_APPEND(owned, g_strdup(bs->node_name));
    }
}

/*
 * Open
 */

/* Options of ours, for the block layer to take apart */
static QDict *open_options(const ExecUpgradeBlockNode *node)
{
    QDict *options = qdict_clone_shallow(qobject_to(QDict, node->options));
    BlockDriver *drv = bdrv_find_format(node->driver);

    qdict_put_str(options, "driver", node->driver);
    qdict_put_str(options, "node-name", node->name);
    if (drv && drv->supports_backing) {
        qdict_put_null(options, "backing");
    }
    if (node->children) {
        /* Another way to name the child of blkdebug and blkverify */
        qdict_del(options, "x-image");
        qdict_del(options, "x-raw");
    }
    for (ExecUpgradeBlockChildList *e = node->children; e; e = e->next) {
        qdict_put_str(options, e->value->name, e->value->node);
    }
    return options;
}

QDict *exec_upgrade_block_node_options(BlockDriverState *bs)
{
    ExecUpgradeBlockNode *node = node_save(bs);
    QDict *options = open_options(node);

    qapi_free_ExecUpgradeBlockNode(node);
    return options;
}

/* What opening it with all its options does not bring back */
static bool node_restore(BlockDriverState *bs,
                         const ExecUpgradeBlockNode *node, Error **errp)
{
    ERRP_GUARD();

    qobject_unref(bs->options);
    qobject_unref(bs->explicit_options);
    bs->options = qdict_clone_shallow(qobject_to(QDict, node->options));
    bs->explicit_options =
        qdict_clone_shallow(qobject_to(QDict, node->explicit_options));
    bs->detect_zeroes = node->detect_zeroes;
    pstrcpy(bs->auto_backing_file, sizeof(bs->auto_backing_file),
            node->auto_backing_file);
    bdrv_write_threshold_set(bs, node->write_threshold);
    stat64_max(&bs->wr_highest_offset, node->highest_write);
    if (node->probed) {
        bs->probed = true;
        bdrv_refresh_limits(bs, NULL, errp);
    }
    return !*errp;
}

static bool node_open(const ExecUpgradeBlockNode *node, Error **errp)
{
    BlockDriverState *bs;

    if (!qobject_to(QDict, node->options) ||
        !qobject_to(QDict, node->explicit_options)) {
        error_setg(errp, "its options are not an object");
        return false;
    }
    bs = bdrv_open(NULL, NULL, open_options(node),
                   (node->flags & NODE_FLAGS) | BDRV_O_INACTIVE, errp);
    if (!bs) {
        return false;
    }
    g_ptr_array_add(opened, bs);
    return node_restore(bs, node, errp);
}

static const ExecUpgradeBlockNode *find_node(const ExecUpgradeHandoff *h,
                                             const char *name)
{
    for (ExecUpgradeBlockNodeList *e = h->block_nodes; e; e = e->next) {
        if (!strcmp(e->value->name, name)) {
            return e->value;
        }
    }
    return NULL;
}

/* Names that contain those of other nodes, and what other nodes decide */
static void graph_restore(const ExecUpgradeHandoff *h)
{
    for (ExecUpgradeBlockNodeList *e = h->block_nodes; e; e = e->next) {
        BlockDriverState *bs = bdrv_find_node(e->value->name);

        if (bs) {
            bs->inherits_from = e->value->has_inherits_from ?
                bdrv_find_node(e->value->inherits_from) : NULL;
            bdrv_refresh_filename(bs);
        }
    }
    for (strList *e = h->monitor_nodes; e; e = e->next) {
        BlockDriverState *bs = bdrv_find_node(e->value);

        if (bs) {
            bdrv_ref(bs);
            bdrv_set_monitor_owned(bs);
        }
    }
}

void exec_upgrade_block_graph_open(void)
{
    const ExecUpgradeHandoff *h = exec_upgrade_handoff();
    Error *err = NULL;

    if (!h) {
        return;
    }
    opened = g_ptr_array_new();
    for (ExecUpgradeBlockNodeList *e = h->block_nodes; e; e = e->next) {
        if (!node_open(e->value, &err)) {
            error_prepend(&err, "exec-upgrade: can't open block node '%s': ",
                          e->value->name);
            error_report_err(err);
            exit(1);
        }
    }
    graph_restore(h);
}

/*
 * Compare
 */

/* In any order */
static char *children_text(const ExecUpgradeBlockChildList *children)
{
    g_autoptr(GPtrArray) words = g_ptr_array_new_with_free_func(g_free);

    for (; children; children = children->next) {
        g_ptr_array_add(words, g_strdup_printf("%s=%s", children->value->name,
                                               children->value->node));
    }
    g_ptr_array_sort(words, (GCompareFunc)qemu_pstrcmp0);
    g_ptr_array_add(words, NULL);
    return g_strjoinv(" ", (char **)words->pdata);
}

static bool children_compare(const ExecUpgradeBlockNode *node,
                             BlockDriverState *bs, Error **errp)
{
    ExecUpgradeBlockChildList *now = children_save(bs);
    g_autofree char *text = children_text(now);
    g_autofree char *wanted = children_text(node->children);

    qapi_free_ExecUpgradeBlockChildList(now);
    if (strcmp(text, wanted)) {
        error_setg(errp, "its children are '%s', expected '%s'", text, wanted);
        return false;
    }
    return true;
}

/* A drive shows it, maybe through filters */
static bool is_shown(BlockDriverState *bs)
{
    for (BlockBackend *blk = blk_all_next(NULL); blk;
         blk = blk_all_next(blk)) {
        for (BlockDriverState *top = blk_bs(blk); top;
             top = bdrv_filter_bs(top)) {
            if (top == bs) {
                return true;
            }
        }
    }
    return false;
}

static bool node_compare(const ExecUpgradeBlockNode *node, Error **errp)
{
    BlockDriverState *bs = bdrv_find_node(node->name);
    int64_t size;

    if (!bs || !bs->drv) {
        error_setg(errp, "it is missing");
        return false;
    }
    if (strcmp(bs->drv->format_name, node->driver)) {
        error_setg(errp, "its driver is '%s', expected '%s'",
                   bs->drv->format_name, node->driver);
        return false;
    }
    if (!children_compare(node, bs, errp)) {
        return false;
    }
    if ((bs->open_flags & NODE_FLAGS) != node->flags) {
        error_setg(errp, "its flags are 0x%x, expected 0x%x",
                   bs->open_flags & NODE_FLAGS, node->flags);
        return false;
    }
    /*
     * A host's removable medium comes and goes.  What the guest sees keeps its
     * size, but a file below grows when bitmaps are stored in it.
     */
    if (exec_upgrade_is_stand_in()) {
        /* The guest went on writing since the node was opened */
        AioContext *ctx = bdrv_get_aio_context(bs);

        aio_context_acquire(ctx);
        refresh_total_sectors(bs, bs->total_sectors);
        aio_context_release(ctx);
    }
    size = bdrv_getlength(bs);
    if (!bs->drv->has_variable_length &&
        (size < node->size || (is_shown(bs) && size != node->size))) {
        error_setg(errp, "its size is %" PRId64 ", expected %" PRId64, size,
                   node->size);
        return false;
    }
    return true;
}

bool exec_upgrade_block_graph_load(const ExecUpgradeHandoff *h, Error **errp)
{
    exec_upgrade_exports_keep(h);
    /* What is used by somebody stays: a device, a parent, the monitor */
    for (int i = 0; i < opened->len; i++) {
        bdrv_unref(opened->pdata[i]);
    }
    g_clear_pointer(&opened, g_ptr_array_unref);

    for (ExecUpgradeBlockNodeList *e = h->block_nodes; e; e = e->next) {
        if (!node_compare(e->value, errp)) {
            error_prepend(errp, "exec-upgrade: block node '%s': ",
                          e->value->name);
            return false;
        }
    }
    for (BlockDriverState *bs = bdrv_next_all_states(NULL); bs;
         bs = bdrv_next_all_states(bs)) {
        if (!find_node(h, bs->node_name)) {
            error_setg(errp, "exec-upgrade: block node '%s' was not there "
                       "before", bs->node_name);
            return false;
        }
    }
    return true;
}
