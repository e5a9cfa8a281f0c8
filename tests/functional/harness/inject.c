/*
 * Has a thread of another process make a system call, and tells what came of
 * it: a seccomp filter can only be asked by those that it holds.
 *
 * Usage: inject TID NUMBER [ARGUMENT]...
 * An ARGUMENT is a number, or =BYTES (with \xNN escapes) for their address.
 *
 * Prints "returned N", "killed N" (by a signal), or "exited N".
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#define _GNU_SOURCE
#include <elf.h>
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

/* What the x86-64 ABI leaves to a function below its stack pointer, and room */
#define RED_ZONE 128
#define ROOM 4096

static pid_t tid;

/* Where the process started: no thread comes there again */
static unsigned long entry_point(void)
{
    char path[64];
    Elf64_auxv_t aux;
    int fd;

    snprintf(path, sizeof(path), "/proc/%d/auxv", tid);
    fd = open(path, O_RDONLY);
    if (fd < 0) {
        err(1, "%s", path);
    }
    while (read(fd, &aux, sizeof(aux)) == sizeof(aux)) {
        if (aux.a_type == AT_ENTRY) {
            close(fd);
            return aux.a_un.a_val;
        }
    }
    errx(1, "%s has no AT_ENTRY", path);
}

static void poke(unsigned long address, const void *data, size_t size)
{
    for (size_t i = 0; i < size; i += sizeof(long)) {
        size_t part = size - i < sizeof(long) ? size - i : sizeof(long);
        long word;

        errno = 0;
        word = ptrace(PTRACE_PEEKTEXT, tid, address + i, 0);
        if (errno) {
            err(1, "PTRACE_PEEKTEXT");
        }
        memcpy(&word, (const char *)data + i, part);
        if (ptrace(PTRACE_POKETEXT, tid, address + i, word) < 0) {
            err(1, "PTRACE_POKETEXT");
        }
    }
}

/* Returns the bytes' number */
static size_t unescape(const char *text, unsigned char *bytes)
{
    size_t n = 0;

    for (; *text; n++) {
        if (strncmp(text, "\\x", 2) == 0) {
            char hex[3] = { text[2], text[2] ? text[3] : 0, 0 };

            bytes[n] = strtoul(hex, NULL, 16);
            text += 2 + strlen(hex);
        } else {
            bytes[n] = *text++;
        }
    }
    bytes[n++] = 0;
    return n;
}

/*
 * Returns the signal that the thread has stopped for, or ends if the thread
 * does: a main thread can't be waited for while there are others, so that its
 * end has to be an event.
 */
static int wait_for_stop(void)
{
    unsigned long message;
    int status, end;

    if (waitpid(tid, &status, __WALL) < 0) {
        err(1, "waitpid");
    }
    if (!WIFSTOPPED(status)) {
        message = status;
    } else if (status >> 16 != PTRACE_EVENT_EXIT) {
        return WSTOPSIG(status);
    } else if (ptrace(PTRACE_GETEVENTMSG, tid, 0, &message) < 0) {
        err(1, "PTRACE_GETEVENTMSG");
    }
    end = message;
    if (WIFSIGNALED(end)) {
        printf("killed %d\n", WTERMSIG(end));
    } else {
        printf("exited %d\n", WEXITSTATUS(end));
    }
    exit(0);
}

/* Signals that others send to the thread go on to it */
static void wait_for_trap(void)
{
    int sig;

    while ((sig = wait_for_stop()) != SIGTRAP) {
        ptrace(PTRACE_CONT, tid, 0, sig);
    }
}

int main(int argc, char **argv)
{
    static const unsigned char code[] = { 0x0f, 0x05, 0xcc };
    struct user_regs_struct saved, regs;
    unsigned long long *const args[] = {
        &regs.rdi, &regs.rsi, &regs.rdx, &regs.r10, &regs.r8, &regs.r9
    };
    unsigned long entry, stack;
    long original;

    if (argc < 3 || argc > 9) {
        errx(2, "usage: inject TID NUMBER [ARGUMENT]...");
    }
    tid = atoi(argv[1]);
    entry = entry_point();
    if (ptrace(PTRACE_SEIZE, tid, 0, PTRACE_O_TRACEEXIT) < 0 ||
        ptrace(PTRACE_INTERRUPT, tid, 0, 0) < 0) {
        err(1, "can't stop thread %d", tid);
    }
    wait_for_trap();
    if (ptrace(PTRACE_GETREGS, tid, 0, &saved) < 0) {
        err(1, "PTRACE_GETREGS");
    }
    original = ptrace(PTRACE_PEEKTEXT, tid, entry, 0);
    poke(entry, code, sizeof(code));

    regs = saved;
    regs.rip = entry;
    regs.rax = strtoul(argv[2], NULL, 0);
    /* Not in a system call that the kernel would start again */
    regs.orig_rax = -1;
    stack = saved.rsp - RED_ZONE;
    for (int i = 0; i < 6; i++) {
        const char *arg = i + 3 < argc ? argv[i + 3] : "0";

        if (*arg == '=') {
            unsigned char bytes[ROOM];
            size_t size = unescape(arg + 1, bytes);

            stack = (stack - size) & ~15UL;
            poke(stack, bytes, size);
            *args[i] = stack;
        } else {
            *args[i] = strtoul(arg, NULL, 0);
        }
    }
    regs.rsp = (stack - ROOM) & ~15UL;
    if (ptrace(PTRACE_SETREGS, tid, 0, &regs) < 0 ||
        ptrace(PTRACE_CONT, tid, 0, 0) < 0) {
        err(1, "can't make the call");
    }
    wait_for_trap();
    ptrace(PTRACE_GETREGS, tid, 0, &regs);
    printf("returned %lld\n", (long long)regs.rax);
    ptrace(PTRACE_POKETEXT, tid, entry, original);
    ptrace(PTRACE_SETREGS, tid, 0, &saved);
    ptrace(PTRACE_DETACH, tid, 0, 0);
    return 0;
}
