/*
 * Exec-upgrade: whether a process is adopting a guest, and its patience then
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/exec-upgrade.h"

/* How long, and how often, a new process tries to create its threads */
#define THREAD_PATIENCE_US (10 * G_USEC_PER_SEC)
#define THREAD_SILENCE_US  (100 * 1000)
#define THREAD_RETRY_US    (10 * 1000)

static bool is_adopting;
static bool is_stand_in;

bool exec_upgrade_adopting(void)
{
    return is_adopting;
}

void exec_upgrade_set_adopting(bool adopting)
{
    is_adopting = adopting;
}

bool exec_upgrade_is_stand_in(void)
{
    return is_stand_in;
}

void exec_upgrade_set_stand_in(void)
{
    is_stand_in = true;
}

bool exec_upgrade_thread_retry(const char *name, int err)
{
    static int64_t start;
    static bool told;
    int64_t waited;

    /* The first thread is created before main(), and error_report() works */
    if (err != EAGAIN ||
        (!exec_upgrade_adopting() && !getenv(EXEC_UPGRADE_ENV))) {
        return false;
    }
    if (!start) {
        start = g_get_monotonic_time();
    }
    waited = g_get_monotonic_time() - start;
    if (waited > THREAD_SILENCE_US && !told) {
        told = true;
        fprintf(stderr, "qemu: exec-upgrade: can't create thread '%s': %s; "
                "trying again\n", name, strerror(err));
    }
    g_usleep(THREAD_RETRY_US);
    return waited < THREAD_PATIENCE_US;
}
