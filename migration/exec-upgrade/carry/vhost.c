/*
 * Exec-upgrade: devices whose queues the kernel or another process serves
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "migration/exec-upgrade/carry/carry.h"
#include "hw/qdev-core.h"

static int check_object(Object *obj, void *opaque)
{
    const char *type = object_get_typename(obj);
    DeviceState *dev;

    if (g_str_has_prefix(type, "cryptodev-vhost")) {
        exec_upgrade_add_blocker(opaque, "object '%s' (%s) can't be carried",
                                 object_get_canonical_path_component(obj),
                                 type);
        return 0;
    }
    dev = (DeviceState *)object_dynamic_cast(obj, TYPE_DEVICE);
    if (dev && dev->realized && g_str_has_prefix(type, "vhost-") &&
        object_dynamic_cast(obj, "virtio-device")) {
        g_autofree char *path = object_get_canonical_path(obj);
        Object *parent = obj->parent;
        DeviceState *proxy =
            (DeviceState *)object_dynamic_cast(parent, TYPE_DEVICE);

        /* The user's name is that of the proxy, which has the device in it */
        exec_upgrade_add_blocker(opaque, "device '%s' (%s) can't be carried",
                                 proxy && proxy->id ? proxy->id :
                                 dev->id ? dev->id : path, type);
    }
    return 0;
}

static void vhost_check(strList **blockers)
{
    object_child_foreach_recursive(object_get_root(), check_object, blockers);
}

const ExecUpgradeStage exec_upgrade_stage_vhost = {
    .name = "vhost",
    .check = vhost_check,
};
