/*
 * Exec-upgrade: SCSI commands that are under way
 *
 * All I/O to images is at rest.  A command can still be under way: the guest
 * has not fetched its data, or it failed and is repeated when the guest goes
 * on.  The device saves a part of it, and its controller another.  Some
 * controllers save nothing (lsi53c895a, pvscsi): QEMU would abort, or the
 * command be lost.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "hw/scsi/scsi.h"
#include "hw/sysbus.h"
#include "hw/usb/msd.h"
#include "qapi/error.h"
#include "sysemu/runstate.h"
#include "migration/exec-upgrade/carry/carry.h"

static bool usb_carries(const MSDState *s, SCSIRequest *req)
{
    /* The guest's transfer is begun again, the command is not */
    if (s->packet && s->packet->actual_length) {
        return false;
    }
    if (req->cmd.mode == SCSI_XFER_NONE || req->retry) {
        return true;
    }
    /* Of a host's device, what was read is not saved */
    return req->ops->save_request &&
           !(req->cmd.mode == SCSI_XFER_FROM_DEV &&
             (object_dynamic_cast(OBJECT(req->dev), "scsi-generic") ||
              object_dynamic_cast(OBJECT(req->dev), "scsi-block")));
}

static bool controller_carries(SCSIRequest *req)
{
    Object *controller = OBJECT(req->bus->qbus.parent);

    return object_dynamic_cast(controller, TYPE_USB_STORAGE)
           ? usb_carries(USB_STORAGE_DEV(controller), req)
           : req->bus->info->load_request != NULL;
}

static int find_uncarried(DeviceState *dev, void *opaque)
{
    SCSIDevice **found = opaque, *sdev;
    SCSIRequest *req;

    if (!dev->realized || !object_dynamic_cast(OBJECT(dev), TYPE_SCSI_DEVICE)) {
        return 0;
    }
    sdev = SCSI_DEVICE(dev);
    QTAILQ_FOREACH(req, &sdev->requests, next) {
        if (!controller_carries(req)) {
            *found = sdev;
            return -1;
        }
    }
    return 0;
}

/* NULL, or what device is in the way, in words for an error */
static char *uncarried(void)
{
    SCSIDevice *dev = NULL;
    g_autofree char *name = NULL;

    /* By bus, and not by the many objects of a machine: the guest is paused */
    qbus_walk_children(sysbus_get_default(), find_uncarried, NULL, NULL, NULL,
                       &dev);
    if (!dev) {
        return NULL;
    }
    name = exec_upgrade_device_name(&dev->qdev);
    return g_strdup_printf("device '%s' is in the middle of a SCSI command, "
                           "of which its controller (%s) saves too little",
                           name, object_get_typename(
                               OBJECT(dev->qdev.parent_bus->parent)));
}

static void scsi_check(strList **blockers)
{
    /* In a guest that runs it has ended before this could be read */
    g_autofree char *why = runstate_is_running() ? NULL : uncarried();

    if (why) {
        exec_upgrade_add_blocker(blockers, "%s", why);
    }
}

static bool scsi_save(ExecUpgradeHandoff *h, Error **errp)
{
    g_autofree char *why = h->plan ? NULL : uncarried();

    if (why) {
        error_setg(errp, "exec-upgrade: %s: try again", why);
    }
    return !why;
}

const ExecUpgradeStage exec_upgrade_stage_scsi = {
    .name = "scsi",
    .check = scsi_check,
    .save = scsi_save,
};
