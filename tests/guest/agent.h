/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The program that runs as init in the test guest.
 *
 * A test drives it with lines of text over one port, by default the second
 * serial line:
 *
 *     host:  ID COMMAND ARGUMENTS
 *     guest: ID ok TEXT        or        ID fail TEXT
 *
 * TEXT is one line; a newline in it is written as \n, a backslash as \\.
 * After each boot the guest says "ready BOOT_ID" once, by itself.
 */
#ifndef AGENT_H
#define AGENT_H

#include <stdint.h>
#include <stdio.h>

/*
 * A command: @args is the rest of the line, @out takes the TEXT.
 * Returns 0 for ok, anything else for fail.
 */
typedef int command_fn(const char *args, FILE *out);

command_fn mem_command;         /* mem.c */
command_fn disk_command;        /* disk.c */
command_fn lines_command;       /* lines.c */
command_fn reader_command;
command_fn clock_command;       /* clock.c */

/* Nanoseconds of CLOCK_MONOTONIC or CLOCK_REALTIME. */
int64_t now_ns(int clock);

/* open() for the node of a device that may be new; -1 with errno set. */
int open_device(const char *path, int flags);

/* Opens a tty or port for raw bytes; -1 with errno set if it can't. */
int open_port(const char *path);

/* A word that depends on everything that must not get lost or swapped. */
static inline uint64_t mix(uint64_t position, uint64_t generation)
{
    uint64_t x = (position + 1) * 0x9e3779b97f4a7c15ull ^
                 (generation + 1) * 0xd1b54a32d192ed03ull;

    return x ^ (x >> 29);
}

#endif
