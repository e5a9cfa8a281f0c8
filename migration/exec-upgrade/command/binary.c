/*
 * Exec-upgrade: which file to execute
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "migration/exec-upgrade/carry/carry.h"
#include "migration/exec-upgrade/command/command.h"

int exec_upgrade_binary_open(const char *path, Error **errp)
{
    int fd;

    if (!*path) {
        error_setg(errp, "exec-upgrade: 'binary' is empty");
        return -1;
    }
    /* QEMU's JSON parser turns \u0000 into this */
    if (strstr(path, "\xC0\x80")) {
        error_setg(errp, "exec-upgrade: 'binary' contains a NUL");
        return -1;
    }
    /* O_NONBLOCK: it may be a FIFO */
    fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (fd < 0) {
        error_setg_errno(errp, errno, "exec-upgrade: can't open %s", path);
        return -1;
    }
    if (!exec_upgrade_binary_check(fd, path, errp) ||
        !exec_upgrade_sandbox_check_binary(path, errp)) {
        close(fd);
        return -1;
    }
    return fd;
}
