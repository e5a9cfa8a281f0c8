/*
 * Exec-upgrade: how this process was started
 *
 * The machine property, the command line, and the folder in which it was given.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "hw/boards.h"
#include "migration/exec-upgrade/core/core.h"

static struct {
    bool enabled;
    char **argv;
    int cwd_fd;
} launch = {
    .enabled = true,
    .cwd_fd = -1,
};

bool exec_upgrade_enabled(void)
{
    return launch.enabled;
}

static bool get_enabled(Object *obj, Error **errp)
{
    return launch.enabled;
}

static void set_enabled(Object *obj, bool value, Error **errp)
{
    launch.enabled = value;
}

void exec_upgrade_machine_class_init(ObjectClass *oc)
{
    object_class_property_add_bool(oc, "exec-upgrade", get_enabled,
                                   set_enabled);
    object_class_property_set_description(oc, "exec-upgrade",
        "Set to off to allocate guest memory so that the running QEMU can't "
        "be replaced by exec-upgrade");
}

void exec_upgrade_launch_note(char **argv)
{
    launch.argv = g_strdupv(argv);
    launch.cwd_fd = open(".", O_PATH | O_DIRECTORY | O_CLOEXEC);
}

char **exec_upgrade_argv(void)
{
    return launch.argv;
}

int exec_upgrade_cwd(void)
{
    return launch.cwd_fd;
}

void exec_upgrade_cwd_set(int fd)
{
    close(launch.cwd_fd);
    launch.cwd_fd = fd;
}
