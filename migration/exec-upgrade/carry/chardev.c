/*
 * Exec-upgrade: character devices
 *
 * A device is known by its label.  The new process opens it where it is
 * created, as early as any user of it may ask for it, with the descriptors
 * that the previous process had.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "chardev/char-exec-upgrade.h"
#include "migration/exec-upgrade/carry/carry.h"
#include "qapi/error.h"

/*
 * Front-ends that have a conversation with the other side as soon as they
 * are realized, which the one that they had can't be continued by.
 */
static const char *const exec_upgrade_chardev_talkers[] = {
    "ccid-card-passthru",
    "ipmi-bmc-extern",
    "ivshmem-doorbell",
    "usb-redir",
};

/* NULL: a device of this type is refused */
static const ChardevExecUpgrade *exec_upgrade_chardev_ops(Chardev *chr)
{
    return CHARDEV_GET_CLASS(chr)->exec_upgrade;
}

/* QEMU's own ones, such as gdbstub's, are a part of their only user */
static bool exec_upgrade_chardev_internal(Chardev *chr)
{
    return CHARDEV_GET_CLASS(chr)->internal;
}

static Object *exec_upgrade_chardev_root(void)
{
    return container_get(object_get_root(), "/chardevs");
}

const ExecUpgradeChardev *exec_upgrade_chardev_record(Chardev *chr)
{
    const ExecUpgradeHandoff *h = exec_upgrade_handoff();
    const ExecUpgradeChardevList *item = h ? h->chardevs : NULL;

    while (item && !g_str_equal(item->value->label, chr->label)) {
        item = item->next;
    }
    return item ? item->value : NULL;
}

bool exec_upgrade_chardev_open(Chardev *chr, ChardevBackend *backend,
                               bool *be_opened, Error **errp)
{
    const ExecUpgradeChardev *record = exec_upgrade_chardev_record(chr);
    const char *type = object_get_typename(OBJECT(chr));
    const ChardevExecUpgrade *ops = exec_upgrade_chardev_ops(chr);
    ChardevClass *cc = CHARDEV_GET_CLASS(chr);

    if (!record) {
        return false;
    }
    if (!ops || !g_str_equal(record->type, type)) {
        error_setg(errp, "exec-upgrade: chardev '%s' is a '%s', but was a "
                   "'%s' in the process before", chr->label, type,
                   record->type);
        return true;
    }
    if (record->has_log) {
        chr->logfd = exec_upgrade_fd_adopt(record->log, chr->label, errp);
        if (chr->logfd < 0) {
            return true;
        }
    }
    if (ops->open) {
        ops->open(chr, backend, record, be_opened, errp);
    } else if (cc->open) {
        cc->open(chr, backend, be_opened, errp);
    }
    return true;
}

static int exec_upgrade_chardev_check_one(Object *obj, void *opaque)
{
    strList **blockers = opaque;
    Chardev *chr = CHARDEV(obj);
    const ChardevExecUpgrade *ops = exec_upgrade_chardev_ops(chr);

    if (exec_upgrade_chardev_internal(chr)) {
        return 0;
    }
    if (!ops) {
        exec_upgrade_add_blocker(blockers, "chardev '%s' is a '%s', which "
                                 "can't be carried", chr->label,
                                 object_get_typename(obj));
    } else if (ops->check) {
        ops->check(chr, blockers);
    }
    return 0;
}

static int exec_upgrade_chardev_check_talker(Object *obj, void *opaque)
{
    strList **blockers = opaque;
    int i;

    for (i = 0; i < ARRAY_SIZE(exec_upgrade_chardev_talkers); i++) {
        if (object_dynamic_cast(obj, exec_upgrade_chardev_talkers[i])) {
            g_autofree char *path = object_get_canonical_path(obj);

            exec_upgrade_add_blocker(blockers, "the conversation of %s (%s) "
                                     "can't be carried", path,
                                     exec_upgrade_chardev_talkers[i]);
        }
    }
    return 0;
}

static void exec_upgrade_chardev_check(strList **blockers)
{
    object_child_foreach(exec_upgrade_chardev_root(),
                         exec_upgrade_chardev_check_one, blockers);
    object_child_foreach_recursive(object_get_root(),
                                   exec_upgrade_chardev_check_talker,
                                   blockers);
    if (exec_upgrade_gdb_attached()) {
        exec_upgrade_add_blocker(blockers, "a debugger is connected");
    }
}

typedef struct ExecUpgradeChardevSave {
    ExecUpgradeHandoff *h;
    Error *err;
} ExecUpgradeChardevSave;

static int exec_upgrade_chardev_save_one(Object *obj, void *opaque)
{
    ExecUpgradeChardevSave *save = opaque;
    Chardev *chr = CHARDEV(obj);
    const ChardevExecUpgrade *ops = exec_upgrade_chardev_ops(chr);
    ExecUpgradeChardev *record;

    if (exec_upgrade_chardev_internal(chr)) {
        return 0;
    }
    record = g_new0(ExecUpgradeChardev, 1);
    QAPI_LIST_PREPEND(save->h->chardevs, record);
    record->label = g_strdup(chr->label);
    record->type = g_strdup(object_get_typename(obj));
    record->filename = g_strdup(chr->filename ?: "");
    record->open = chr->be_open;
    if (chr->logfd >= 0) {
        record->has_log = true;
        record->log = exec_upgrade_fd_carry(chr->logfd);
    }
    return ops->save && !ops->save(chr, record, &save->err);
}

static bool exec_upgrade_chardev_save(ExecUpgradeHandoff *h, Error **errp)
{
    ExecUpgradeChardevSave save = { .h = h };

    object_child_foreach(exec_upgrade_chardev_root(),
                         exec_upgrade_chardev_save_one, &save);
    if (save.err) {
        error_propagate(errp, save.err);
        return false;
    }
    return true;
}

static int exec_upgrade_chardev_close_one(Object *obj, void *opaque)
{
    ExecUpgradeHandoff *h = opaque;
    Chardev *chr = CHARDEV(obj);
    const ChardevExecUpgrade *ops = exec_upgrade_chardev_ops(chr);
    char *dropped = ops && ops->close ? ops->close(chr) : NULL;

    if (dropped) {
        QAPI_LIST_PREPEND(h->dropped, dropped);
    }
    return 0;
}

static void exec_upgrade_chardev_close(ExecUpgradeHandoff *h)
{
    object_child_foreach(exec_upgrade_chardev_root(),
                         exec_upgrade_chardev_close_one, h);
}

static bool exec_upgrade_chardev_load(const ExecUpgradeHandoff *h,
                                      Error **errp)
{
    const ExecUpgradeChardevList *item;

    for (item = h->chardevs; item; item = item->next) {
        Chardev *chr = qemu_chr_find(item->value->label);
        const ChardevExecUpgrade *ops;

        if (!chr) {
            error_setg(errp, "exec-upgrade: nothing in the command line "
                       "creates chardev '%s'", item->value->label);
            return false;
        }
        ops = exec_upgrade_chardev_ops(chr);
        if (ops->load && !ops->load(chr, item->value, errp)) {
            return false;
        }
    }
    return true;
}

static void exec_upgrade_chardev_commit(const ExecUpgradeHandoff *h)
{
    const ExecUpgradeChardevList *item;

    for (item = h->chardevs; item; item = item->next) {
        Chardev *chr = qemu_chr_find(item->value->label);
        const ChardevExecUpgrade *ops = exec_upgrade_chardev_ops(chr);

        if (ops->commit) {
            ops->commit(chr, item->value);
        }
    }
}

const ExecUpgradeStage exec_upgrade_stage_chardev = {
    .name = "chardev",
    .check = exec_upgrade_chardev_check,
    .save = exec_upgrade_chardev_save,
    .close = exec_upgrade_chardev_close,
    .load = exec_upgrade_chardev_load,
    .commit = exec_upgrade_chardev_commit,
};
