/*
 * Exec-upgrade: the commands
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef EXEC_UPGRADE_COMMAND_H
#define EXEC_UPGRADE_COMMAND_H

#include "migration/exec-upgrade/core/core.h"

/**
 * exec_upgrade_binary_open: open a QEMU binary, and check that it can take
 * over this guest
 * @path: its path
 * @errp: error
 *
 * Returns a descriptor for execveat(2), with FD_CLOEXEC, or -1.
 */
int exec_upgrade_binary_open(const char *path, Error **errp);

/**
 * exec_upgrade_arguments_check: check that a command line makes what there is
 * @argv: the command line, NULL-terminated
 * @blockers: appended to is why it would not
 * @errp: error, if it can't be parsed
 */
bool exec_upgrade_arguments_check(char **argv, strList **blockers,
                                  Error **errp);

#endif
