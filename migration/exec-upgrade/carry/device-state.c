/*
 * Exec-upgrade: carry the state of CPUs and devices
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "hw/boards.h"
#include "io/channel-file.h"
#include "migration/exec-upgrade-owners.h"
#include "migration/qemu-file.h"
#include "qapi/error.h"
#include "qemu/memfd-exec-upgrade.h"
#include "migration/exec-upgrade/carry/carry.h"

/* Open from save until undo; otherwise until execve(2) */
static int state_fd = -1;

bool exec_upgrade_saving_devices(void)
{
    return state_fd >= 0;
}

/*
 * Devices that claim to be migratable and are not.  am53c974 forgets which
 * disk it has selected, megasas where in its reply queue it is.  QEMU aborts
 * when it loads isa-cirrus-vga, and when it saves pci-serial-2x, which has
 * fewer ports than its state, or vmbus-bridge in a guest that does not use it.
 */
static const char *const broken[] = {
    "am53c974", "isa-cirrus-vga", "megasas-base", "pci-serial-2x",
    "vmbus-bridge",
};

static int check_broken(Object *obj, void *opaque)
{
    strList **blockers = opaque;

    for (int i = 0; i < ARRAY_SIZE(broken); i++) {
        if (object_dynamic_cast(obj, broken[i])) {
            g_autofree char *name = exec_upgrade_device_name(DEVICE(obj));

            exec_upgrade_add_blocker(blockers, "device '%s' (%s) can't be "
                                     "migrated", name,
                                     object_get_typename(obj));
        }
    }
    return 0;
}

static void device_state_check(strList **blockers)
{
    exec_upgrade_migration_check(blockers);
    exec_upgrade_device_state_check(blockers);
    object_child_foreach_recursive(qdev_get_machine(), check_broken, blockers);
}

/* qemu_fclose() closes the descriptor that it was given */
static QEMUFile *open_state(int fd, bool writable)
{
    int copy = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    g_autoptr(QIOChannelFile) ioc = qio_channel_file_new_fd(copy);

    return writable ? qemu_file_new_output(QIO_CHANNEL(ioc))
                    : qemu_file_new_input(QIO_CHANNEL(ioc));
}

static void device_state_undo(void)
{
    if (state_fd >= 0) {
        close(state_fd);
        state_fd = -1;
    }
}

static bool device_state_save(ExecUpgradeHandoff *h, Error **errp)
{
    QEMUFile *f;
    int ret;

    if (h->plan) {
        return true;
    }
    state_fd = exec_upgrade_memfd_create("exec-upgrade-state",
                                         MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (state_fd < 0) {
        error_setg_errno(errp, errno, "exec-upgrade: can't create memfd");
        return false;
    }
    f = open_state(state_fd, true);
    ret = exec_upgrade_device_state_save(f);
    qemu_fclose(f);
    if (ret < 0) {
        error_setg_errno(errp, -ret, "exec-upgrade: can't save device state");
        device_state_undo();
        return false;
    }
    if (!exec_upgrade_seal(state_fd, errp)) {
        device_state_undo();
        return false;
    }
    h->has_state = true;
    h->state = exec_upgrade_fd_carry(state_fd);
    return true;
}

static bool device_state_load(const ExecUpgradeHandoff *h, Error **errp)
{
    QEMUFile *f;
    int ret, fd;

    if (!h->has_state) {
        error_setg(errp, "exec-upgrade: there is no device state");
        return false;
    }
    fd = exec_upgrade_fd_adopt(h->state, "the device state", errp);
    if (fd < 0 || !exec_upgrade_check_sealed(fd, "the device state", errp)) {
        return false;
    }
    if (lseek(fd, 0, SEEK_SET) < 0) {
        error_setg_errno(errp, errno, "exec-upgrade: can't read device state");
        return false;
    }
    f = open_state(fd, false);
    close(fd);
    ret = exec_upgrade_device_state_load(f);
    qemu_fclose(f);
    if (ret < 0) {
        error_setg_errno(errp, -ret, "exec-upgrade: can't load device state");
        return false;
    }
    return true;
}

const ExecUpgradeStage exec_upgrade_stage_device_state = {
    .name = "device-state",
    .check = device_state_check,
    .save = device_state_save,
    .undo = device_state_undo,
    .load = device_state_load,
};
