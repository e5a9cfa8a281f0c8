/*
 * Exec-upgrade: character devices of programs that can't be upgraded
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "chardev/char-exec-upgrade.h"
#include "migration/exec-upgrade/core/core.h"

bool exec_upgrade_chardev_open(Chardev *chr, ChardevBackend *backend,
                               bool *be_opened, Error **errp)
{
    return false;
}

void exec_upgrade_ledger_add_chardev(Chardev *chr,
                                     const ChardevBackend *backend)
{
}

const ExecUpgradeChardev *exec_upgrade_chardev_record(Chardev *chr)
{
    return NULL;
}

/* Never called: nothing is carried */

void exec_upgrade_add_blocker(strList **blockers, const char *fmt, ...)
{
    g_assert_not_reached();
}

ExecUpgradeFd *exec_upgrade_fd_carry(int fd)
{
    g_assert_not_reached();
}

int exec_upgrade_fd_adopt(const ExecUpgradeFd *efd, const char *what,
                          Error **errp)
{
    g_assert_not_reached();
}

ExecUpgradeFdList *exec_upgrade_listener_save(struct QIONetListener *listener)
{
    g_assert_not_reached();
}

bool exec_upgrade_listener_adopt(struct QIONetListener *listener,
                                 const ExecUpgradeFdList *fds,
                                 const char *what, Error **errp)
{
    g_assert_not_reached();
}

void exec_upgrade_listener_own(struct QIONetListener *listener)
{
    g_assert_not_reached();
}
