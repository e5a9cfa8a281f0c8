/*
 * Exec-upgrade: dirty bitmaps
 *
 * A persistent bitmap is stored in its image when that is inactivated, and
 * loaded when it is activated.  The bits of any other one are in a memfd.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "block/block_int.h"
#include "block/dirty-bitmap.h"
#include "qapi/error.h"
#include "qemu/cutils.h"
#include "qemu/memfd-exec-upgrade.h"
#include "qemu/units.h"
#include "migration/exec-upgrade/block/block.h"

/* More would be seen as a longer pause: 4 TiB at the default granularity */
#define BITMAP_SIZE_MAX (8 * MiB)

/* memfds of this process's save: int */
static GArray *memfds;

static uint64_t data_size(const BdrvDirtyBitmap *bitmap)
{
    int64_t size = bdrv_dirty_bitmap_size(bitmap);

    return size ? bdrv_dirty_bitmap_serialization_size(bitmap, 0, size) : 0;
}

/* Anonymous ones belong to jobs, which are not carried */
static bool is_carried(BdrvDirtyBitmap *bitmap)
{
    return bdrv_dirty_bitmap_name(bitmap) &&
           !bdrv_dirty_bitmap_get_persistence(bitmap);
}

void exec_upgrade_bitmap_check(BlockDriverState *bs, strList **blockers)
{
    BdrvDirtyBitmap *bitmap;

    FOR_EACH_DIRTY_BITMAP(bs, bitmap) {
        const char *name = bdrv_dirty_bitmap_name(bitmap);

        if (name && bdrv_dirty_bitmap_check(bitmap, BDRV_BITMAP_BUSY, NULL) &&
            !exec_upgrade_export_has_bitmap(bitmap)) {
            exec_upgrade_add_blocker(blockers, "dirty bitmap '%s' of block "
                                     "node '%s' is in use", name,
                                     bs->node_name);
        }
        if (is_carried(bitmap) && data_size(bitmap) > BITMAP_SIZE_MAX) {
            exec_upgrade_add_blocker(blockers, "dirty bitmap '%s' of block "
                                     "node '%s' is not persistent and has "
                                     "%" PRIu64 " bytes, more than %" PRIu64,
                                     name, bs->node_name, data_size(bitmap),
                                     (uint64_t)BITMAP_SIZE_MAX);
        }
    }
}

void exec_upgrade_bitmaps_undo(void)
{
    for (int i = 0; memfds && i < memfds->len; i++) {
        close(g_array_index(memfds, int, i));
    }
    g_clear_pointer(&memfds, g_array_unref);
}

static ExecUpgradeFd *data_save(BdrvDirtyBitmap *bitmap, Error **errp)
{
    size_t size = data_size(bitmap);
    g_autofree uint8_t *data = g_malloc(size);
    int fd = exec_upgrade_memfd_create("exec-upgrade-bitmap",
                                       MFD_CLOEXEC | MFD_ALLOW_SEALING);

    if (fd < 0) {
        error_setg_errno(errp, errno, "can't create memfd");
        return NULL;
    }
    g_array_append_val(memfds, fd);
    if (size) {
        bdrv_dirty_bitmap_serialize_part(bitmap, data, 0,
                                         bdrv_dirty_bitmap_size(bitmap));
    }
    if (qemu_write_full(fd, data, size) != size) {
        error_setg_errno(errp, errno, "can't write %zu bytes", size);
        return NULL;
    }
    return exec_upgrade_seal(fd, errp) ? exec_upgrade_fd_carry(fd) : NULL;
}

static bool bitmap_save(ExecUpgradeHandoff *h, BdrvDirtyBitmap *bitmap,
                        const char *node, Error **errp)
{
    ExecUpgradeFd *data = data_save(bitmap, errp);
    ExecUpgradeBitmap *b;

    if (!data) {
        error_prepend(errp, "exec-upgrade: dirty bitmap '%s' of block node "
                      "'%s': ", bdrv_dirty_bitmap_name(bitmap), node);
        return false;
    }
    b = g_new0(ExecUpgradeBitmap, 1);
    b->node = g_strdup(node);
    b->name = g_strdup(bdrv_dirty_bitmap_name(bitmap));
    b->granularity = bdrv_dirty_bitmap_granularity(bitmap);
    b->enabled = bdrv_dirty_bitmap_enabled(bitmap);
    b->data = data;
    /* The node's list begins with the newest, as the new one will again */
    QAPI_LIST_PREPEND(h->bitmaps, b);
    return true;
}

bool exec_upgrade_bitmaps_save(ExecUpgradeHandoff *h, Error **errp)
{
    memfds = g_array_new(false, false, sizeof(int));
    for (BlockDriverState *bs = bdrv_next_all_states(NULL); bs;
         bs = bdrv_next_all_states(bs)) {
        BdrvDirtyBitmap *bitmap;

        FOR_EACH_DIRTY_BITMAP(bs, bitmap) {
            if (is_carried(bitmap) &&
                !bitmap_save(h, bitmap, bs->node_name, errp)) {
                exec_upgrade_bitmaps_undo();
                return false;
            }
        }
    }
    return true;
}

static bool data_load(BdrvDirtyBitmap *bitmap, int fd, Error **errp)
{
    size_t size = data_size(bitmap);
    g_autofree uint8_t *data = g_malloc(size);
    struct stat st;

    if (!exec_upgrade_check_sealed(fd, "a dirty bitmap", errp)) {
        return false;
    }
    if (fstat(fd, &st) < 0 || st.st_size != size) {
        error_setg(errp, "it has %" PRId64 " bytes, expected %zu",
                   (int64_t)st.st_size, size);
        return false;
    }
    if (pread(fd, data, size, 0) != size) {
        error_setg(errp, "it can't be read");
        return false;
    }
    if (size) {
        bdrv_dirty_bitmap_deserialize_part(bitmap, data, 0,
                                           bdrv_dirty_bitmap_size(bitmap),
                                           true);
    }
    return true;
}

static bool bitmap_load(const ExecUpgradeBitmap *b, Error **errp)
{
    BlockDriverState *bs = bdrv_lookup_bs(NULL, b->node, errp);
    BdrvDirtyBitmap *bitmap;
    bool ok;
    int fd;

    if (!bs) {
        return false;
    }
    if (!is_power_of_2(b->granularity) || b->granularity < BDRV_SECTOR_SIZE) {
        error_setg(errp, "its granularity is %u", b->granularity);
        return false;
    }
    fd = exec_upgrade_fd_adopt(b->data, "a dirty bitmap", errp);
    if (fd < 0) {
        return false;
    }
    bitmap = bdrv_create_dirty_bitmap(bs, b->granularity, b->name, errp);
    ok = bitmap && data_load(bitmap, fd, errp);
    close(fd);
    if (ok && !b->enabled) {
        bdrv_disable_dirty_bitmap(bitmap);
    }
    return ok;
}

bool exec_upgrade_bitmaps_load(const ExecUpgradeHandoff *h, Error **errp)
{
    for (ExecUpgradeBitmapList *e = h->bitmaps; e; e = e->next) {
        if (!bitmap_load(e->value, errp)) {
            error_prepend(errp, "exec-upgrade: dirty bitmap '%s' of block "
                          "node '%s': ", e->value->name, e->value->node);
            return false;
        }
    }
    return true;
}
