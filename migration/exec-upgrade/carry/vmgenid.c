/*
 * Exec-upgrade: the guest stays the same generation
 *
 * After a migration the guest is told that it may be a copy.  An upgraded
 * guest is not, so that it keeps its GUID, also one that was made by
 * guid=auto, and gets no event.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "hw/acpi/vmgenid.h"
#include "migration/exec-upgrade/carry/carry.h"

bool exec_upgrade_vmgenid_adopt(struct VmGenIdState *vms)
{
    const ExecUpgradeHandoff *h = exec_upgrade_handoff();

    if (!h) {
        return false;
    }
    if (h->has_vmgenid) {
        qemu_uuid_parse(h->vmgenid, &vms->guid);
    }
    return true;
}

static bool vmgenid_save(ExecUpgradeHandoff *h, Error **errp)
{
    Object *obj = find_vmgenid_dev();

    if (obj) {
        h->has_vmgenid = true;
        h->vmgenid = qemu_uuid_unparse_strdup(&VMGENID(obj)->guid);
    }
    return true;
}

const ExecUpgradeStage exec_upgrade_stage_vmgenid = {
    .name = "vmgenid",
    .save = vmgenid_save,
};
