/*
 * Run a program on a kernel that seems to have no Landlock.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include <err.h>
#include <errno.h>
#include <seccomp.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    scmp_filter_ctx ctx = seccomp_init(SCMP_ACT_ALLOW);

    if (argc < 2) {
        errx(2, "usage: without-landlock PROGRAM [ARGUMENT]...");
    }
    if (!ctx ||
        seccomp_rule_add(ctx, SCMP_ACT_ERRNO(ENOSYS),
                         SCMP_SYS(landlock_create_ruleset), 0) < 0 ||
        seccomp_load(ctx) < 0) {
        errx(1, "can't make a filter");
    }
    execv(argv[1], argv + 1);
    err(1, "%s", argv[1]);
}
