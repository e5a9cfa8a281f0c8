/*
 * Exec-upgrade: layout of the ELF note of a binary that has it
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef EXEC_UPGRADE_NOTE_H
#define EXEC_UPGRADE_NOTE_H

#include "migration/exec-upgrade/core/core.h"

/* With its NUL a multiple of four bytes, as elf(5) wants a name padded */
#define EXEC_UPGRADE_NOTE_NAME "QEMU-EU"
#define EXEC_UPGRADE_NOTE_TYPE 0x45585550

/**
 * ExecUpgradeNoteDesc: what a binary says of itself
 *
 * @format_min: oldest format of the handoff that it reads
 * @format_max: newest one
 * @target: emulation target, NUL-padded
 */
typedef struct ExecUpgradeNoteDesc {
    uint32_t format_min;
    uint32_t format_max;
    char target[32];
} ExecUpgradeNoteDesc;

/* An elf(5) note: Elf64_Nhdr, name, descriptor */
typedef struct ExecUpgradeNote {
    uint32_t namesz;
    uint32_t descsz;
    uint32_t type;
    char name[8];
    ExecUpgradeNoteDesc desc;
} ExecUpgradeNote;

QEMU_BUILD_BUG_ON(sizeof(EXEC_UPGRADE_NOTE_NAME) != 8);

#endif
