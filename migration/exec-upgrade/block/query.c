/*
 * Exec-upgrade: what the user is told of the block graph
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "block/block_int.h"
#include "block/qdict.h"
#include "qapi/clone-visitor.h"
#include "qapi/error.h"
#include "qapi/qapi-visit-block-core.h"
#include "qapi/qapi-visit-exec-upgrade.h"
#include "qapi/qmp/qdict.h"
#include "qapi/qobject-output-visitor.h"
#include "sysemu/block-backend.h"
#include "migration/exec-upgrade/block/block.h"

/* As the first process's command line had it */
static ExecUpgradeBlockStart *at_start;

static ExecUpgradeBlockStart *find_all(void)
{
    ExecUpgradeBlockStart *all = g_new0(ExecUpgradeBlockStart, 1);

    for (BlockDriverState *bs = bdrv_next_all_states(NULL); bs;
         bs = bdrv_next_all_states(bs)) {
        QAPI_LIST_PREPEND(all->nodes, g_strdup(bs->node_name));
    }
    for (BlockBackend *blk = blk_all_next(NULL); blk;
         blk = blk_all_next(blk)) {
        char *name = exec_upgrade_drive_name(blk);

        if (name) {
            ExecUpgradeBlockChild *drive = g_new0(ExecUpgradeBlockChild, 1);

            drive->name = name;
            drive->node = g_strdup(blk_bs(blk) ? blk_bs(blk)->node_name : "");
            QAPI_LIST_PREPEND(all->drives, drive);
        }
    }
    return all;
}

void exec_upgrade_block_note(void)
{
    const ExecUpgradeHandoff *h = exec_upgrade_handoff();

    qapi_free_ExecUpgradeBlockStart(at_start);
    at_start = h ? QAPI_CLONE(ExecUpgradeBlockStart, h->block_start)
                 : find_all();
}

void exec_upgrade_block_note_save(ExecUpgradeHandoff *h)
{
    h->block_start = QAPI_CLONE(ExecUpgradeBlockStart, at_start);
}

static const char *node_shown(const ExecUpgradeBlockChildList *drives,
                              const char *name)
{
    for (; drives; drives = drives->next) {
        if (!strcmp(drives->value->name, name)) {
            return drives->value->node;
        }
    }
    return NULL;
}

/* One that is new or gone came or went with its device or node */
static void compare_drives(const ExecUpgradeBlockStart *now, strList ***tail)
{
    for (ExecUpgradeBlockChildList *e = now->drives; e; e = e->next) {
        const char *node = node_shown(at_start->drives, e->value->name);

        if (!node || !strcmp(node, e->value->node)) {
            continue;
        }
        QAPI_LIST_APPEND(*tail, *e->value->node ?
            g_strdup_printf("drive '%s' shows block node '%s'",
                            e->value->name, e->value->node) :
            g_strdup_printf("drive '%s' has no medium", e->value->name));
    }
}

static void compare_nodes(const strList *these, const strList *others,
                          const char *what, strList ***tail)
{
    for (; these; these = these->next) {
        if (!exec_upgrade_list_has(others, these->value)) {
            QAPI_LIST_APPEND(*tail, g_strdup_printf("block node '%s' was %s",
                                                    these->value, what));
        }
    }
}

strList *exec_upgrade_block_changes(void)
{
    strList *changes = NULL, **tail = &changes;
    ExecUpgradeBlockStart *now;

    if (!at_start) {
        return NULL;
    }
    now = find_all();
    compare_nodes(at_start->nodes, now->nodes, "removed", &tail);
    compare_nodes(now->nodes, at_start->nodes, "added", &tail);
    compare_drives(now, &tail);
    qapi_free_ExecUpgradeBlockStart(now);
    exec_upgrade_exports_changes(&tail);
    return changes;
}

/*
 * As commands
 */

/* -drive leaves strings where QMP has numbers and booleans */
static QObject *typed_options(QDict *flat)
{
    BlockdevOptions *options = NULL;
    QObject *typed = NULL;
    Visitor *v;

    v = qobject_input_visitor_new_flat_confused(flat, NULL);
    if (v) {
        visit_type_BlockdevOptions(v, NULL, &options, NULL);
        visit_free(v);
    }
    if (!options) {
        /* Some options are known to their driver only */
        return qdict_crumple(flat, NULL);
    }
    v = qobject_output_visitor_new(&typed);
    visit_type_BlockdevOptions(v, NULL, &options, &error_abort);
    visit_complete(v, &typed);
    visit_free(v);
    qapi_free_BlockdevOptions(options);
    return typed;
}

static void append_node(BlockDriverState *bs, void *opaque)
{
    QDict *options = exec_upgrade_block_node_options(bs);
    g_autofree char *name = exec_upgrade_node_name_public(bs);
    ExecUpgradeCommandList ***tail = opaque;
    BdrvChild *child;
    QObject *typed;

    qdict_put_str(options, "node-name", name);
    QLIST_FOREACH(child, &bs->children, next) {
        g_autofree char *node = exec_upgrade_node_name_public(child->bs);

        qdict_put_str(options, child->name, node);
    }
    typed = typed_options(options);
    qobject_unref(options);
    if (typed) {
        exec_upgrade_command_append(tail, "blockdev-add",
                                    qobject_to(QDict, typed));
    }
}

void exec_upgrade_block_configuration(ExecUpgradeCommandList ***tail)
{
    exec_upgrade_block_nodes_walk(append_node, tail);
}
