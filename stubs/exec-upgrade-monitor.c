/*
 * Exec-upgrade: the monitor of programs that can't be upgraded
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "migration/exec-upgrade-monitor.h"

bool exec_upgrade_monitor_event(Monitor *mon, QEMUChrEvent event)
{
    return false;
}

void exec_upgrade_monitor_schedule(AioContext *ctx, QEMUBHFunc *cb,
                                   void *opaque)
{
    aio_bh_schedule_oneshot(ctx, cb, opaque);
}
