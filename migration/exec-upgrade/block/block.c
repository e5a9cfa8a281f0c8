/*
 * Exec-upgrade: block nodes as a stage, and in the sequence
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "block/block_int.h"
#include "qapi/error.h"
#include "qemu/job.h"
#include "qemu/main-loop.h"
#include "qemu/timer.h"
#include "sysemu/runstate.h"
#include "migration/exec-upgrade/block/block.h"

/*
 * Check
 */

static void node_blockers(BlockDriverState *bs, strList **blockers)
{
    if (!bs->drv) {
        /* qcow2 closes itself so when it finds its metadata corrupt */
        exec_upgrade_add_blocker(blockers, "block node '%s' has no driver any "
                                 "more", bs->node_name);
        return;
    }
    if (bs->open_flags & (BDRV_O_TEMPORARY | BDRV_O_SNAPSHOT)) {
        exec_upgrade_add_blocker(blockers, "block node '%s' is a temporary "
                                 "snapshot (snapshot=on or -snapshot), which "
                                 "can't be opened again",
                                 bdrv_get_device_or_node_name(bs));
    } else if (!bs->drv->reopens_fully) {
        exec_upgrade_add_blocker(blockers, "block node '%s' has the driver "
                                 "'%s', whose state can't be carried",
                                 bs->node_name, bs->drv->format_name);
    }
    if (bs->open_flags & BDRV_O_INACTIVE) {
        exec_upgrade_add_blocker(blockers, "block node '%s' is inactive, as "
                                 "after or before a migration",
                                 bs->node_name);
    }
    exec_upgrade_block_node_check(bs, blockers);
    exec_upgrade_bitmap_check(bs, blockers);
    exec_upgrade_image_blockers(bs, blockers);
}

static void job_blockers(strList **blockers)
{
    JOB_LOCK_GUARD();

    for (Job *job = job_next_locked(NULL); job; job = job_next_locked(job)) {
        if (job->id) {
            exec_upgrade_add_blocker(blockers, "job '%s' (%s) is %s", job->id,
                                     job_type_str(job),
                                     JobStatus_str(job->status));
        } else {
            exec_upgrade_add_blocker(blockers, "a job (%s) of QEMU's own is "
                                     "running", job_type_str(job));
        }
    }
}

static void block_check(strList **blockers)
{
    for (BlockDriverState *bs = bdrv_next_all_states(NULL); bs;
         bs = bdrv_next_all_states(bs)) {
        node_blockers(bs, blockers);
    }
    exec_upgrade_drive_check(blockers);
    job_blockers(blockers);
    if (!*blockers) {
        /* A job's nodes would be found, too */
        exec_upgrade_block_graph_check(blockers);
    }
    if (qemu_system_dump_in_progress()) {
        exec_upgrade_add_blocker(blockers, "a dump of guest memory is "
                                 "running");
    }
}

/*
 * Save and load
 */

static bool block_save(ExecUpgradeHandoff *h, Error **errp)
{
    for (BlockDriverState *bs = bdrv_next_all_states(NULL); bs;
         bs = bdrv_next_all_states(bs)) {
        if (!exec_upgrade_image_save(h, bs, errp)) {
            return false;
        }
    }
    exec_upgrade_block_note_save(h);
    exec_upgrade_block_graph_save(h);
    exec_upgrade_drives_save(h);
    return h->plan || exec_upgrade_bitmaps_save(h, errp);
}

static bool block_load(const ExecUpgradeHandoff *h, Error **errp)
{
    exec_upgrade_block_note();
    return exec_upgrade_block_graph_load(h, errp) &&
           exec_upgrade_drives_compare(h, errp) &&
           exec_upgrade_bitmaps_load(h, errp);
}

/*
 * The sequence
 */

static bool coroutine_fn flush_nodes(Error **errp)
{
    g_autoptr(GPtrArray) nodes = g_ptr_array_new();
    BdrvNextIterator it;
    BlockDriverState *bs;
    bool ok = true;

    /* The graph may change whenever this coroutine yields */
    for (bs = bdrv_first(&it); bs; bs = bdrv_next(&it)) {
        bdrv_ref(bs);
        g_ptr_array_add(nodes, bs);
    }
    for (int i = 0; i < nodes->len; i++) {
        AioContext *old_ctx;
        int ret;

        bs = nodes->pdata[i];
        if (ok && bdrv_is_inserted(bs)) {
            old_ctx = bdrv_co_enter(bs);
            ret = bdrv_co_flush(bs);
            bdrv_co_leave(bs, old_ctx);
            if (ret < 0) {
                error_setg_errno(errp, -ret, "exec-upgrade: can't flush block "
                                 "node '%s'", bs->node_name);
                ok = false;
            }
        }
        bdrv_co_lock(bs);
        bdrv_unref(bs);
        bdrv_co_unlock(bs);
    }
    return ok;
}

bool exec_upgrade_block_prepare(Error **errp)
{
    int ret;

    if (qemu_in_coroutine()) {
        return flush_nodes(errp);
    }
    ret = bdrv_flush_all();
    if (ret < 0) {
        error_setg_errno(errp, -ret, "exec-upgrade: can't flush the images");
        return false;
    }
    return true;
}

bool exec_upgrade_block_quiesce(Error **errp)
{
    /* A bottom half that schedules itself for ever must not hang the guest */
    int64_t deadline = g_get_monotonic_time() + 2 * G_USEC_PER_SEC;

    /*
     * A device's bottom half is not part of its state: what it was going to
     * do would never be done.  It may in turn start requests.
     */
    bdrv_drain_all();
    while (aio_poll(qemu_get_aio_context(), false) ||
           exec_upgrade_block_backends_busy()) {
        if (g_get_monotonic_time() > deadline) {
            error_setg(errp, "exec-upgrade: the devices do not come to rest");
            return false;
        }
        if (exec_upgrade_block_backends_busy()) {
            bdrv_drain_all();
        }
    }
    return true;
}

bool exec_upgrade_block_inactivate(Error **errp)
{
    int ret = bdrv_inactivate_all();

    if (ret < 0) {
        error_setg_errno(errp, -ret, "exec-upgrade: can't inactivate the "
                         "images");
        return false;
    }
    return true;
}

static bool activate_nodes(Error **errp)
{
    ERRP_GUARD();
    BlockDriverState *bs;

    bdrv_activate_all(errp);
    if (*errp || !exec_upgrade_exports_activate(errp)) {
        return false;
    }
    for (bs = bdrv_next_all_states(NULL); bs; bs = bdrv_next_all_states(bs)) {
        if (bs->open_flags & BDRV_O_INACTIVE) {
            error_setg(errp, "block node '%s' is still inactive",
                       bs->node_name);
            return false;
        }
    }
    return exec_upgrade_block_backends_check(errp);
}

bool exec_upgrade_block_reactivate(Error **errp)
{
    if (!activate_nodes(errp)) {
        error_prepend(errp, "exec-upgrade: can't take back the images: ");
        return false;
    }
    return true;
}

bool exec_upgrade_block_activate(Error **errp)
{
    /* Now, since devices set it, too, when they are loaded */
    exec_upgrade_drives_load(exec_upgrade_handoff());
    exec_upgrade_block_backends_enable();
    if (!activate_nodes(errp)) {
        error_prepend(errp, "exec-upgrade: can't take over the images: ");
        return false;
    }
    return true;
}

const ExecUpgradeStage exec_upgrade_stage_block = {
    .name = "block",
    .check = block_check,
    .save = block_save,
    .undo = exec_upgrade_bitmaps_undo,
    .load = block_load,
};
