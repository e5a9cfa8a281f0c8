/*
 * Exec-upgrade: programs other than QEMU itself adopt nothing
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "migration/exec-upgrade.h"

bool exec_upgrade_image_check(const char *path, const struct stat *st,
                              Error **errp)
{
    return true;
}

bool exec_upgrade_drive_is_made_later(BlockInterfaceType type)
{
    return false;
}

void exec_upgrade_drive_attached(BlockBackend *blk, DeviceState *dev)
{
}
