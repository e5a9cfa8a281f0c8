/*
 * Exec-upgrade: drives
 *
 * A drive, a BlockBackend to the code, is made by -drive, which the machine
 * may look for, or by a device that shows a block node to the guest.  In
 * either case the new process has it show what it showed before.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "block/block_int.h"
#include "block/throttle-groups.h"
#include "hw/qdev-core.h"
#include "qapi/error.h"
#include "qapi/qmp/qdict.h"
#include "qemu/config-file.h"
#include "qemu/cutils.h"
#include "qemu/error-report.h"
#include "qemu/option.h"
#include "qemu/throttle.h"
#include "sysemu/block-backend.h"
#include "sysemu/blockdev.h"
#include "migration/exec-upgrade/block/block.h"

/* New process: those of the command line and of drive_add are made */
static bool drives_opened;

char *exec_upgrade_drive_name(BlockBackend *blk)
{
    char *name = blk_name(blk)[0] ? g_strdup(blk_name(blk))
                                  : blk_get_attached_dev_id(blk);

    if (!name[0]) {
        g_clear_pointer(&name, g_free);
    }
    return name;
}

/* Devices that make an empty drive for themselves */
static bool can_be_empty(DeviceState *dev)
{
    static const char *const types[] = { "floppy", "ide-cd", "scsi-cd" };

    for (int i = 0; i < ARRAY_SIZE(types); i++) {
        if (object_dynamic_cast(OBJECT(dev), types[i])) {
            return true;
        }
    }
    return false;
}

void exec_upgrade_drive_check(strList **blockers)
{
    for (BlockBackend *blk = blk_all_next(NULL); blk;
         blk = blk_all_next(blk)) {
        g_autofree char *name = exec_upgrade_drive_name(blk);

        if (blk_name(blk)[0] || !blk_get_attached_dev(blk)) {
            continue;
        }
        if (blk_legacy_dinfo(blk)) {
            exec_upgrade_add_blocker(blockers, "the drive of device '%s' was "
                                     "deleted (drive_del)", name);
        } else if (!blk_bs(blk) && !can_be_empty(blk_get_attached_dev(blk))) {
            exec_upgrade_add_blocker(blockers, "the drive of device '%s' is "
                                     "empty, with which it can't be made",
                                     name);
        }
    }
}

/*
 * Save
 */

/* As drive_new() takes them; what it would choose is in them */
static QObject *drive_options(BlockBackend *blk)
{
    DriveInfo *dinfo = blk_legacy_dinfo(blk);
    g_autofree char *bus = g_strdup_printf("%d", dinfo->bus);
    g_autofree char *unit = g_strdup_printf("%d", dinfo->unit);
    QDict *options = qemu_opts_to_qdict(dinfo->opts, NULL);

    qdict_put_str(options, "id", blk_name(blk));
    qdict_del(options, "index");
    qdict_put_str(options, "bus", bus);
    qdict_put_str(options, "unit", unit);
    return QOBJECT(options);
}

static ThrottleGroupMember *throttle_member(BlockBackend *blk)
{
    return &blk_get_public(blk)->throttle_group_member;
}

static ExecUpgradeDriveThrottle *throttle_save(BlockBackend *blk)
{
    ExecUpgradeDriveThrottle *throttle;
    ThrottleConfig cfg;

    if (!throttle_member(blk)->throttle_state) {
        return NULL;
    }
    throttle_group_get_config(throttle_member(blk), &cfg);
    throttle = g_new0(ExecUpgradeDriveThrottle, 1);
    throttle->group = g_strdup(throttle_group_get_name(throttle_member(blk)));
    throttle->limits = g_new0(ThrottleLimits, 1);
    throttle_config_to_limits(&cfg, throttle->limits);
    return throttle;
}

static ExecUpgradeDrive *drive_save(BlockBackend *blk, char *name)
{
    ExecUpgradeDrive *drive = g_new0(ExecUpgradeDrive, 1);
    BlockBackendRootState *state = blk_get_root_state(blk);

    drive->name = name;
    drive->named = blk_name(blk)[0];
    if (drive->named && blk_legacy_dinfo(blk)) {
        drive->has_options = true;
        drive->options = drive_options(blk);
    }
    if (blk_bs(blk)) {
        drive->has_root = true;
        drive->root = g_strdup(blk_bs(blk)->node_name);
    }
    blk_get_perm(blk, &drive->perm, &drive->shared_perm);
    if (blk_get_attached_dev(blk)) {
        /* It is for the device to ask for them, as on its first start */
        drive->perm = 0;
        drive->shared_perm = BLK_PERM_ALL;
    }
    drive->root_flags = state->open_flags;
    drive->root_detect_zeroes = state->detect_zeroes;
    drive->on_read_error = blk_get_on_error(blk, true);
    drive->on_write_error = blk_get_on_error(blk, false);
    drive->throttle = throttle_save(blk);
    drive->has_throttle = drive->throttle;
    drive->write_cache = blk_enable_write_cache(blk);
    drive->io_status = blk_iostatus(blk);
    drive->accounting = exec_upgrade_accounting_save(blk);
    return drive;
}

void exec_upgrade_drives_save(ExecUpgradeHandoff *h)
{
    ExecUpgradeDriveList **tail = &h->drives;

    for (BlockBackend *blk = blk_all_next(NULL); blk;
         blk = blk_all_next(blk)) {
        char *name = exec_upgrade_drive_name(blk);

        if (name) {
            QAPI_LIST_APPEND(tail, drive_save(blk, name));
        }
    }
}

/*
 * Open
 */

static const ExecUpgradeDrive *find_drive(const char *name, bool named)
{
    const ExecUpgradeHandoff *h = exec_upgrade_handoff();

    for (ExecUpgradeDriveList *e = h->drives; e; e = e->next) {
        if (e->value->named == named && !strcmp(e->value->name, name)) {
            return e->value;
        }
    }
    return NULL;
}

bool exec_upgrade_drive_is_made_later(BlockInterfaceType type)
{
    if (!exec_upgrade_adopting() || drives_opened) {
        return false;
    }
    /* The others have a place in the machine, or count for those behind them */
    return type == IF_NONE;
}

/*
 * The drive without a name that @dev had, or that is now the one of a device
 * which @dev makes: usb-storage
 */
static const ExecUpgradeDrive *find_drive_of(DeviceState *dev)
{
    g_autofree char *path = object_get_canonical_path(OBJECT(dev));
    const ExecUpgradeDriveList *e = exec_upgrade_handoff()->drives;
    const char *rest;

    if (!path) {
        return NULL;
    }
    for (; e; e = e->next) {
        if (!e->value->named && (!g_strcmp0(e->value->name, dev->id) ||
                                 (strstart(e->value->name, path, &rest) &&
                                  (!*rest || *rest == '/')))) {
            return e->value;
        }
    }
    return NULL;
}

void exec_upgrade_drive_resolve(DeviceState *dev, char **value)
{
    const ExecUpgradeDrive *drive;

    if (!exec_upgrade_adopting() || blk_by_name(*value)) {
        return;
    }
    drive = find_drive_of(dev);
    if (drive) {
        g_free(*value);
        *value = g_strdup(drive->has_root ? drive->root : "");
    }
}

void exec_upgrade_drive_attached(BlockBackend *blk, DeviceState *dev)
{
    const ExecUpgradeDrive *drive;
    BlockDriverState *bs;
    Error *err = NULL;

    if (!exec_upgrade_adopting() || blk_name(blk)[0] || blk_bs(blk)) {
        return;
    }
    drive = find_drive_of(dev);
    if (!drive || !drive->has_root) {
        return;
    }
    bs = bdrv_lookup_bs(NULL, drive->root, &err);
    if (!bs || blk_insert_bs(blk, bs, &err) < 0) {
        /* What it shows is compared later */
        warn_report_err(err);
    }
}

/*
 * One that no machine looks for: the command line, or drive_add, which may
 * have given it another's name
 */
static BlockBackend *drive_make(const ExecUpgradeDrive *drive, Error **errp)
{
    QDict *options = qobject_to(QDict, drive->options);
    QemuOpts *opts;
    DriveInfo *dinfo;

    if (!options) {
        error_setg(errp, "the command line does not make it any more");
        return NULL;
    }
    opts = qemu_opts_from_qdict(qemu_find_opts("drive"), options, errp);
    if (!opts) {
        return NULL;
    }
    dinfo = drive_new(opts, IF_NONE, errp);
    return dinfo ? blk_by_legacy_dinfo(dinfo) : NULL;
}

static bool drive_open(const ExecUpgradeDrive *drive, Error **errp)
{
    BlockBackend *blk = blk_by_name(drive->name) ?:
                        drive_make(drive, errp);
    BlockDriverState *bs;

    if (!blk || blk_set_perm(blk, drive->perm, drive->shared_perm, errp) < 0) {
        return false;
    }
    if (!drive->has_root) {
        return true;
    }
    bs = bdrv_lookup_bs(NULL, drive->root, errp);
    return bs && blk_insert_bs(blk, bs, errp) == 0;
}

/* An unused drive that the machine has a place for, and that was deleted */
static void remove_deleted(void)
{
    BlockBackend *next;

    for (BlockBackend *blk = blk_next(NULL); blk; blk = next) {
        next = blk_next(blk);
        if (!find_drive(blk_name(blk), true)) {
            monitor_remove_blk(blk);
            blk_unref(blk);
        }
    }
}

/* The user may give a deleted drive's name to another one */
static int remove_unused_options(void *opaque, QemuOpts *opts, Error **errp)
{
    for (BlockBackend *blk = blk_next(NULL); blk; blk = blk_next(blk)) {
        if (blk_legacy_dinfo(blk) && blk_legacy_dinfo(blk)->opts == opts) {
            return 0;
        }
    }
    qemu_opts_del(opts);
    return 0;
}

void exec_upgrade_drives_open(void)
{
    const ExecUpgradeHandoff *h = exec_upgrade_handoff();
    Error *err = NULL;

    if (!h) {
        return;
    }
    drives_opened = true;
    remove_deleted();
    qemu_opts_foreach(qemu_find_opts("drive"), remove_unused_options, NULL,
                      NULL);
    for (ExecUpgradeDriveList *e = h->drives; e; e = e->next) {
        if (e->value->named && !drive_open(e->value, &err)) {
            error_prepend(&err, "exec-upgrade: drive '%s': ", e->value->name);
            error_report_err(err);
            exit(1);
        }
    }
}

/*
 * Load
 */

static void throttle_load(const ExecUpgradeDriveThrottle *throttle,
                          BlockBackend *blk)
{
    ThrottleConfig cfg;

    if (throttle) {
        if (throttle_member(blk)->throttle_state) {
            blk_io_limits_update_group(blk, throttle->group);
        } else {
            blk_io_limits_enable(blk, throttle->group);
        }
        throttle_config_init(&cfg);
        throttle_limits_to_config(throttle->limits, &cfg, &error_abort);
        blk_set_io_limits(blk, &cfg);
    } else if (throttle_member(blk)->throttle_state) {
        blk_io_limits_disable(blk);
    }
}

static void drive_load(const ExecUpgradeDrive *drive, BlockBackend *blk)
{
    AioContext *ctx = blk_get_aio_context(blk);
    BlockBackendRootState *state = blk_get_root_state(blk);

    aio_context_acquire(ctx);
    state->open_flags = drive->root_flags;
    state->detect_zeroes = drive->root_detect_zeroes;
    blk_set_on_error(blk, drive->on_read_error, drive->on_write_error);
    throttle_load(drive->throttle, blk);
    exec_upgrade_accounting_load(drive->accounting, blk);
    /* The guest flushes only if it knows of a cache */
    blk_set_enable_write_cache(blk, drive->write_cache);
    if (drive->io_status != BLOCK_DEVICE_IO_STATUS_OK &&
        blk_iostatus_is_enabled(blk)) {
        blk_iostatus_set_err(blk, drive->io_status ==
                             BLOCK_DEVICE_IO_STATUS_NOSPACE ? ENOSPC : EIO);
    }
    aio_context_release(ctx);
}

static const char *root_name(BlockBackend *blk)
{
    return blk_bs(blk) ? blk_bs(blk)->node_name : "";
}

static BlockBackend *find_blk(const ExecUpgradeDrive *drive)
{
    for (BlockBackend *blk = blk_all_next(NULL); blk;
         blk = blk_all_next(blk)) {
        g_autofree char *name = exec_upgrade_drive_name(blk);

        if (!g_strcmp0(name, drive->name) &&
            drive->named == !!blk_name(blk)[0]) {
            return blk;
        }
    }
    return NULL;
}

bool exec_upgrade_drives_compare(const ExecUpgradeHandoff *h, Error **errp)
{
    for (ExecUpgradeDriveList *e = h->drives; e; e = e->next) {
        const char *wanted = e->value->has_root ? e->value->root : "";
        BlockBackend *blk = find_blk(e->value);

        if (!blk) {
            error_setg(errp, "exec-upgrade: drive '%s' is missing",
                       e->value->name);
            return false;
        }
        if (strcmp(root_name(blk), wanted)) {
            error_setg(errp, "exec-upgrade: drive '%s' shows block node '%s', "
                       "expected '%s'", e->value->name, root_name(blk),
                       wanted);
            return false;
        }
    }
    return true;
}

void exec_upgrade_drives_load(const ExecUpgradeHandoff *h)
{
    for (ExecUpgradeDriveList *e = h->drives; e; e = e->next) {
        BlockBackend *blk = find_blk(e->value);

        if (blk) {
            drive_load(e->value, blk);
        }
    }
}
