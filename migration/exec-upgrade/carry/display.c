/*
 * Exec-upgrade: SPICE, which may be a module
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "ui/exec-upgrade.h"
#include "migration/exec-upgrade/carry/carry.h"

const ExecUpgradeStage *exec_upgrade_spice;

static bool spice_save(ExecUpgradeHandoff *h, Error **errp)
{
    return !exec_upgrade_spice || exec_upgrade_spice->save(h, errp);
}

static void spice_close(ExecUpgradeHandoff *h)
{
    if (exec_upgrade_spice) {
        exec_upgrade_spice->close(h);
    }
}

static bool spice_load(const ExecUpgradeHandoff *h, Error **errp)
{
    return !exec_upgrade_spice || exec_upgrade_spice->load(h, errp);
}

static void spice_commit(const ExecUpgradeHandoff *h)
{
    if (exec_upgrade_spice) {
        exec_upgrade_spice->commit(h);
    }
}

const ExecUpgradeStage exec_upgrade_stage_spice = {
    .name = "spice",
    .save = spice_save,
    .close = spice_close,
    .load = spice_load,
    .commit = spice_commit,
};
