/*
 * Exec-upgrade: what the owners of a state offer
 *
 * In files beside QEMU's own, each of which is included by the file whose state
 * it knows.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef MIGRATION_EXEC_UPGRADE_OWNERS_H
#define MIGRATION_EXEC_UPGRADE_OWNERS_H

#include "qapi/qapi-types-exec-upgrade.h"
#include "qapi/qapi-types-run-state.h"
#include "qemu/typedefs.h"

/*
 * The stages of memory, in softmmu/physmem-exec-upgrade.c.inc, and of qtest, in
 * softmmu/qtest-exec-upgrade.c.inc
 */
extern const struct ExecUpgradeStage exec_upgrade_stage_ram;
extern const struct ExecUpgradeStage exec_upgrade_stage_qtest;

/*
 * The run state, in softmmu/runstate-exec-upgrade.c.inc
 */

/* exec_upgrade_runstate: what the guest is doing */
RunState exec_upgrade_runstate(void);

/**
 * exec_upgrade_runstate_request_pending: whether the main loop still has to
 * act on a reset, shutdown, suspend, wakeup, powerdown, stop or debug request
 */
bool exec_upgrade_runstate_request_pending(void);

/*
 * What may wake the guest up: set when it writes to the power management's
 * registers, and by no load of a device's state
 */
uint32_t exec_upgrade_wakeup_reasons(void);
void exec_upgrade_set_wakeup_reasons(uint32_t reasons);

/*
 * Device state, in migration/savevm-exec-upgrade.c.inc
 */

int exec_upgrade_device_state_save(QEMUFile *f);
int exec_upgrade_device_state_load(QEMUFile *f);
ExecUpgradeStateIdsList *exec_upgrade_state_ids_save(void);
void exec_upgrade_state_ids_load(const ExecUpgradeStateIdsList *list);
void exec_upgrade_device_state_check(strList **blockers);
bool exec_upgrade_device_state_has(Object *obj);

/*
 * Migration, in migration/migration-exec-upgrade.c.inc
 */

/* exec_upgrade_migration_check: append what it has to say against an upgrade */
void exec_upgrade_migration_check(strList **blockers);

/**
 * exec_upgrade_set_migration_capabilities: set capabilities without a check
 * @names: those that are on; all others are off
 *
 * They were valid in the previous process, and device state can only be
 * loaded with the same.
 */
void exec_upgrade_set_migration_capabilities(const strList *names);

#endif
