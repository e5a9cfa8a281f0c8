/*
 * Exec-upgrade: the ELF note by which a QEMU binary says that it can adopt a
 * running guest
 *
 * Read by the old process from the file, before it touches the guest.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "note.h"

const char exec_upgrade_target[] = TARGET_NAME;

__attribute__((section(".note.qemu.exec-upgrade"), used, aligned(4)))
static const ExecUpgradeNote exec_upgrade_note = {
    .namesz = sizeof(EXEC_UPGRADE_NOTE_NAME),
    .descsz = sizeof(ExecUpgradeNoteDesc),
    .type = EXEC_UPGRADE_NOTE_TYPE,
    .name = EXEC_UPGRADE_NOTE_NAME,
    .desc = {
        .format_min = EXEC_UPGRADE_FORMAT_MIN,
        .format_max = EXEC_UPGRADE_FORMAT,
        .target = TARGET_NAME,
    },
};
