/*
 * Exec-upgrade: thread-context objects, whose threads preallocate memory
 *
 * libvirt deletes those on its command line before the guest runs.  The new
 * process makes them again, since memory backends name them, and deletes them
 * as the user has done.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <sys/syscall.h>
#include "qapi/error.h"
#include "qemu/bitmap.h"
#include "qemu/thread-context.h"
#include "qom/object_interfaces.h"
#include "migration/exec-upgrade/carry/carry.h"

/* Calls @func with each thread-context object */
static void foreach_context(int (*func)(Object *obj, void *opaque),
                            void *opaque)
{
    object_child_foreach(object_get_objects_root(), func, opaque);
}

static bool is_context(Object *obj)
{
    return object_dynamic_cast(obj, TYPE_THREAD_CONTEXT);
}

/* The filter looks at no pointer; the kernel does */
static bool is_affinity_denied(void)
{
    return syscall(SYS_sched_setaffinity, 0, sizeof(cpu_set_t), NULL) < 0 &&
           errno == EPERM;
}

/* Runs in the main thread, from which all threads of the next process come */
static bool has_own_affinity(ThreadContext *tc)
{
    g_autofree unsigned long *own = NULL, *main_thread = NULL;
    unsigned long own_nbits, nbits;
    QemuThread self;

    qemu_thread_get_self(&self);
    return qemu_thread_get_affinity(&tc->thread, &own, &own_nbits) ||
           qemu_thread_get_affinity(&self, &main_thread, &nbits) ||
           nbits != own_nbits || !bitmap_equal(own, main_thread, nbits);
}

static int context_check(Object *obj, void *blockers)
{
    if (is_context(obj) && has_own_affinity(THREAD_CONTEXT(obj))) {
        exec_upgrade_add_blocker(blockers, "-sandbox resourcecontrol=deny: "
            "the affinity of thread context '%s' can't be set again; delete "
            "it with object-del if all memory is preallocated",
            object_get_canonical_path_component(obj));
    }
    return 0;
}

static void thread_context_check(strList **blockers)
{
    if (is_affinity_denied()) {
        foreach_context(context_check, blockers);
    }
}

static int context_save(Object *obj, void *names)
{
    if (is_context(obj)) {
        QAPI_LIST_PREPEND(*(strList **)names, g_strdup(
                              object_get_canonical_path_component(obj)));
    }
    return 0;
}

static bool thread_context_save(ExecUpgradeHandoff *h, Error **errp)
{
    foreach_context(context_save, &h->thread_contexts);
    return true;
}

static bool thread_context_build(const ExecUpgradeHandoff *h, Error **errp)
{
    strList *names = NULL;
    bool ok = true;

    foreach_context(context_save, &names);
    for (strList *e = names; ok && e; e = e->next) {
        ok = exec_upgrade_list_has(h->thread_contexts, e->value) ||
             user_creatable_del(e->value, errp);
    }
    qapi_free_strList(names);
    return ok;
}

const ExecUpgradeStage exec_upgrade_stage_thread_context = {
    .name = "thread-context",
    .check = thread_context_check,
    .save = thread_context_save,
    .build = thread_context_build,
};
