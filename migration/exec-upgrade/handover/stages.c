/*
 * Exec-upgrade: the stage table
 *
 * To carry one more thing, add a row.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "migration/exec-upgrade-owners.h"
#include "migration/exec-upgrade/block/block.h"
#include "migration/exec-upgrade/carry/carry.h"
#include "migration/exec-upgrade/handover/handover.h"
#include "migration/exec-upgrade/ledger/ledger.h"
#include "ui/exec-upgrade.h"

const ExecUpgradeStage *const exec_upgrade_stages[] = {
    /* First: nothing moves while the others look */
    &exec_upgrade_stage_monitor_thread,
    &exec_upgrade_stage_process,
    &exec_upgrade_stage_sandbox,
    &exec_upgrade_stage_thread_context,
    /* What there is, before what it is like */
    &exec_upgrade_stage_ledger,
    /* Guest memory has to be in place before devices are loaded */
    &exec_upgrade_stage_ram,
    &exec_upgrade_stage_block,
    &exec_upgrade_stage_block_export,
    &exec_upgrade_stage_configuration,
    &exec_upgrade_stage_properties,
    &exec_upgrade_stage_vmgenid,
    /* Before devices: qtest's clock is theirs */
    &exec_upgrade_stage_qtest,
    &exec_upgrade_stage_chardev,
    /* Before devices: completes what they sent */
    &exec_upgrade_stage_net,
    &exec_upgrade_stage_vhost,
    &exec_upgrade_stage_scsi,
    &exec_upgrade_stage_device_state,
    &exec_upgrade_stage_balloon,
#ifdef CONFIG_GIO
    &exec_upgrade_stage_dbus_vmstate,
#endif
#ifdef CONFIG_VNC
    &exec_upgrade_stage_vnc,
#endif
    &exec_upgrade_stage_spice,
    /* Last: what the others say is still heard */
    &exec_upgrade_stage_monitor,
    NULL
};
