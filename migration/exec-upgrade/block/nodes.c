/*
 * Exec-upgrade: names of block nodes, and a way through them
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "block/block_int.h"
#include "migration/exec-upgrade/block/block.h"

char *exec_upgrade_node_name_public(const BlockDriverState *bs)
{
    /* A generated name begins with what a user's can't */
    return g_strdup(bs->node_name + (bs->node_name[0] == '#'));
}

void exec_upgrade_block_node_walk(BlockDriverState *bs, GHashTable *seen,
                                  void (*func)(BlockDriverState *bs,
                                               void *opaque), void *opaque)
{
    BdrvChild *child;

    if (!g_hash_table_add(seen, bs)) {
        return;
    }
    QLIST_FOREACH(child, &bs->children, next) {
        exec_upgrade_block_node_walk(child->bs, seen, func, opaque);
    }
    if (func) {
        func(bs, opaque);
    }
}

void exec_upgrade_block_nodes_walk(void (*func)(BlockDriverState *bs,
                                                void *opaque), void *opaque)
{
    g_autoptr(GHashTable) seen = g_hash_table_new(NULL, NULL);

    for (BlockDriverState *bs = bdrv_next_all_states(NULL); bs;
         bs = bdrv_next_all_states(bs)) {
        exec_upgrade_block_node_walk(bs, seen, func, opaque);
    }
}
