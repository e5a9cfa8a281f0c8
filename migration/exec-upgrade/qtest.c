/*
 * Exec-upgrade: qtest server
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "migration/exec-upgrade/internal.h"

const ExecUpgradeStage exec_upgrade_stage_qtest = {
    .name = "qtest",
    .check = exec_upgrade_qtest_check,
    .save = exec_upgrade_qtest_save,
    .load = exec_upgrade_qtest_load,
};
