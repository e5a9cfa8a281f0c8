/*
 * Exec-upgrade: statistics of the balloon
 *
 * A migration leaves them to the manager of the destination, which is a new
 * one.  Here it is the same, and goes on asking for what it set up.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "hw/virtio/virtio-balloon.h"
#include "qapi/error.h"
#include "migration/exec-upgrade/carry/carry.h"

/* There is at most one, see qemu_add_balloon_handler() */
static VirtIOBalloon *balloon_find(void)
{
    return (VirtIOBalloon *)object_resolve_path_type("", TYPE_VIRTIO_BALLOON,
                                                     NULL);
}

static bool balloon_save(ExecUpgradeHandoff *h, Error **errp)
{
    VirtIOBalloon *dev = balloon_find();
    ExecUpgradeBalloon *b;
    uint64List **tail;

    if (!dev) {
        return true;
    }
    b = g_new0(ExecUpgradeBalloon, 1);
    b->interval = dev->stats_poll_interval;
    b->last_update = dev->stats_last_update;
    tail = &b->statistics;
    for (int i = 0; i < VIRTIO_BALLOON_S_NR; i++) {
        QAPI_LIST_APPEND(tail, dev->stats[i]);
    }
    h->has_balloon = true;
    h->balloon = b;
    return true;
}

static bool balloon_load(const ExecUpgradeHandoff *h, Error **errp)
{
    VirtIOBalloon *dev = balloon_find();
    const uint64List *e;

    if (!h->has_balloon || !dev) {
        return true;
    }
    if (h->balloon->interval != dev->stats_poll_interval &&
        !object_property_set_int(OBJECT(dev), "guest-stats-polling-interval",
                                 h->balloon->interval, errp)) {
        return false;
    }
    dev->stats_last_update = h->balloon->last_update;
    e = h->balloon->statistics;
    for (int i = 0; i < VIRTIO_BALLOON_S_NR && e; i++, e = e->next) {
        dev->stats[i] = e->value;
    }
    return true;
}

const ExecUpgradeStage exec_upgrade_stage_balloon = {
    .name = "balloon",
    .save = balloon_save,
    .load = balloon_load,
};
