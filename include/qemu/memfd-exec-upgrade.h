/*
 * Memory files that can't be executed
 *
 * A process that exec-upgrade's sandbox holds must not make a program of a
 * memory file, so that all of QEMU's say that they are none.  Needs nothing
 * but the C library: libvhost-user uses it, too.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef QEMU_MEMFD_EXEC_UPGRADE_H
#define QEMU_MEMFD_EXEC_UPGRADE_H

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>

/* <linux/memfd.h> of Linux 6.3 */
#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 0x0008U
#endif

/**
 * exec_upgrade_memfd_create: memfd_create(2) with MFD_NOEXEC_SEAL, where the
 * kernel has it
 * @name: as for memfd_create(2)
 * @flags: as for memfd_create(2)
 *
 * MFD_NOEXEC_SEAL also allows seals; they stay forbidden unless @flags allow
 * them.  Returns a descriptor, or -1 with errno set.
 */
static inline int exec_upgrade_memfd_create(const char *name,
                                            unsigned int flags)
{
    int fd = memfd_create(name, flags | MFD_NOEXEC_SEAL);

    if (fd < 0 && errno == EINVAL) {
        return memfd_create(name, flags);
    }
    if (fd >= 0 && !(flags & MFD_ALLOW_SEALING)) {
        fcntl(fd, F_ADD_SEALS, F_SEAL_SEAL);
    }
    return fd;
}

#endif
