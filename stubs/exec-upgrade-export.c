/*
 * Exec-upgrade: block exports of programs that can't be upgraded
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "block/exec-upgrade.h"

void exec_upgrade_export_added(const BlockExportOptions *options)
{
}
