/*
 * Exec-upgrade: what both processes do
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/util.h"
#include "sysemu/cpus.h"
#include "sysemu/cpu-timers.h"
#include "sysemu/runstate.h"
#include "migration/exec-upgrade/handover/handover.h"
#include "migration/exec-upgrade/trace.h"

void exec_upgrade_phase_add(ExecUpgradePhaseList **phases, const char *name,
                            int64_t duration)
{
    ExecUpgradePhase *phase = g_new0(ExecUpgradePhase, 1);

    phase->name = g_strdup(name);
    phase->duration = duration;
    while (*phases) {
        phases = &(*phases)->next;
    }
    QAPI_LIST_PREPEND(*phases, phase);
    trace_exec_upgrade_phase(name, duration);
}

void exec_upgrade_phase_end(ExecUpgradePhaseList **phases, const char *name,
                            int64_t *start)
{
    int64_t now = g_get_monotonic_time();

    exec_upgrade_phase_add(phases, name, now - *start);
    *start = now;
}

void exec_upgrade_guest_resume(RunState run_state)
{
    switch (run_state) {
    case RUN_STATE_RUNNING:
        vm_start();
        break;
    case RUN_STATE_SUSPENDED:
        cpu_enable_ticks();
        vm_state_notify(true, RUN_STATE_RUNNING);
        break;
    default:
        break;
    }
}
