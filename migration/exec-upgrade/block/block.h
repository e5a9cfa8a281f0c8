/*
 * Exec-upgrade: block nodes, drives, and exports
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef EXEC_UPGRADE_BLOCK_H
#define EXEC_UPGRADE_BLOCK_H

#include "migration/exec-upgrade/core/core.h"

extern const ExecUpgradeStage exec_upgrade_stage_block;
extern const ExecUpgradeStage exec_upgrade_stage_block_export;

/*
 * The sequence
 */

/**
 * exec_upgrade_block_prepare: write caches out, so that the pause has little
 * to flush
 * @errp: error
 *
 * Guest running; lets it run if called from a coroutine.
 */
bool exec_upgrade_block_prepare(Error **errp);

/**
 * exec_upgrade_block_quiesce: wait until no request or bottom half is left
 * @errp: error
 */
bool exec_upgrade_block_quiesce(Error **errp);

/**
 * exec_upgrade_block_inactivate: write metadata, give up images and locks
 * @errp: error
 */
bool exec_upgrade_block_inactivate(Error **errp);

/**
 * exec_upgrade_block_reactivate: undo exec_upgrade_block_inactivate(), also
 * one that failed half-way
 * @errp: error
 *
 * If it fails, the guest must not run.
 */
bool exec_upgrade_block_reactivate(Error **errp);

/**
 * exec_upgrade_block_activate: new process: take all images over
 * @errp: error
 *
 * Fails unless every image has been opened with the permissions and locks
 * that its users need.
 */
bool exec_upgrade_block_activate(Error **errp);

/*
 * Nodes
 */

/*
 * exec_upgrade_block_node_walk: call @func, which may be NULL, for @bs and each
 * node below it that is not in the set @seen, children first; add them to it
 */
void exec_upgrade_block_node_walk(BlockDriverState *bs, GHashTable *seen,
                                  void (*func)(BlockDriverState *bs,
                                               void *opaque), void *opaque);

/* Calls @func for each block node, children first */
void exec_upgrade_block_nodes_walk(void (*func)(BlockDriverState *bs,
                                                void *opaque), void *opaque);

/* The name of a node as a user could give it; the caller frees it */
char *exec_upgrade_node_name_public(const BlockDriverState *bs);

/*
 * Images
 */

/**
 * exec_upgrade_image_blockers: append why the image of a block node can't be
 * opened again, if it has one
 * @bs: the node
 * @blockers: the list
 */
void exec_upgrade_image_blockers(BlockDriverState *bs, strList **blockers);

/**
 * exec_upgrade_image_save: put the image of a block node, if it has one, into
 * the handoff
 * @h: the handoff
 * @bs: the node
 * @errp: error, if it can't be opened again
 */
bool exec_upgrade_image_save(ExecUpgradeHandoff *h, BlockDriverState *bs,
                             Error **errp);

/*
 * The graph
 */

/**
 * exec_upgrade_block_node_check: append why a block node can't be opened again
 * @bs: the node, with a driver
 * @blockers: the list
 */
void exec_upgrade_block_node_check(BlockDriverState *bs, strList **blockers);

/**
 * exec_upgrade_block_graph_check: append which block nodes would not find who
 * uses them, or where
 * @blockers: the list
 */
void exec_upgrade_block_graph_check(strList **blockers);

/**
 * exec_upgrade_block_graph_save: put all block nodes into the handoff
 * @h: the handoff
 */
void exec_upgrade_block_graph_save(ExecUpgradeHandoff *h);

/**
 * exec_upgrade_block_graph_load: machine complete: check that there are
 * exactly the block nodes that there were
 * @h: the handoff
 * @errp: error, which names the first difference
 */
bool exec_upgrade_block_graph_load(const ExecUpgradeHandoff *h, Error **errp);

/* What a node would have to be opened with now; the caller frees it */
QDict *exec_upgrade_block_node_options(BlockDriverState *bs);

/*
 * Exports
 */

/**
 * exec_upgrade_exports_hold: take no request from any client of an export
 * @errp: error
 *
 * Guest running.  Waits for the replies to what has been requested, but not
 * for ever: a client may not read them.  If it succeeds,
 * exec_upgrade_exports_release() undoes it; the clients don't notice.
 */
bool exec_upgrade_exports_hold(Error **errp);
void exec_upgrade_exports_release(void);

/* Whether an export offers @bitmap to its clients, and so keeps it in use */
bool exec_upgrade_export_has_bitmap(const BdrvDirtyBitmap *bitmap);

/* Calls @func for each node that is exported */
void exec_upgrade_exports_walk(void (*func)(BlockDriverState *bs,
                                            void *opaque), void *opaque);

/*
 * exec_upgrade_exports_keep: machine complete: keep the nodes of @h's exports
 * until these have been made
 * exec_upgrade_exports_activate: activate them, who may have no other user
 */
void exec_upgrade_exports_keep(const ExecUpgradeHandoff *h);
bool exec_upgrade_exports_activate(Error **errp);

/* exec_upgrade_exports_changes: what commands have added, in words, appended */
void exec_upgrade_exports_changes(strList ***tail);

/* exec_upgrade_exports_configuration: the commands for it, appended */
void exec_upgrade_exports_configuration(ExecUpgradeCommandList ***tail);

/*
 * Drives and dirty bitmaps
 */

/* Block accounting: what a drive has counted, and how */
ExecUpgradeAccounting *exec_upgrade_accounting_save(BlockBackend *blk);
void exec_upgrade_accounting_load(const ExecUpgradeAccounting *a,
                                  BlockBackend *blk);

/*
 * Name of a drive or its device, which the caller frees; NULL for a drive that
 * belongs to neither a device nor the user
 */
char *exec_upgrade_drive_name(BlockBackend *blk);

/* Drives, likewise; exec_upgrade_drives_load() can't fail */
void exec_upgrade_drive_check(strList **blockers);
void exec_upgrade_drives_save(ExecUpgradeHandoff *h);
bool exec_upgrade_drives_compare(const ExecUpgradeHandoff *h, Error **errp);
void exec_upgrade_drives_load(const ExecUpgradeHandoff *h);

/**
 * exec_upgrade_bitmap_check: append which dirty bitmaps can't be carried
 * @bs: the block node that has them
 * @blockers: the list
 */
void exec_upgrade_bitmap_check(BlockDriverState *bs, strList **blockers);

/* Dirty bitmaps that are not persistent, for the block stage */
bool exec_upgrade_bitmaps_save(ExecUpgradeHandoff *h, Error **errp);
void exec_upgrade_bitmaps_undo(void);
bool exec_upgrade_bitmaps_load(const ExecUpgradeHandoff *h, Error **errp);

/*
 * What the user is told
 */

/*
 * exec_upgrade_block_note: note nodes and drives as what the command line
 * makes, or take over what an earlier process has noted
 * exec_upgrade_block_note_save: hand that to the next process
 * exec_upgrade_block_changes: what differs from it, in words
 */
void exec_upgrade_block_note(void);
void exec_upgrade_block_note_save(ExecUpgradeHandoff *h);
strList *exec_upgrade_block_changes(void);

/* exec_upgrade_block_configuration: blockdev-add for each node, appended */
void exec_upgrade_block_configuration(ExecUpgradeCommandList ***tail);

#endif
