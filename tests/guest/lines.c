/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Numbered lines on a tty or port, in both directions.
 *
 *     lines start DEVICE [MICROSECONDS]   prints them, pausing that long
 *                              after each (default: no pause)
 *     lines stop DEVICE        answers next=, the number not printed any more
 *     reader start DEVICE      checks that what comes in is such lines
 *     reader status DEVICE     answers lines=, errors=
 *
 * A line is its number in eight digits, a blank, and 40 letters that depend
 * on the number. The first has number 0.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include "agent.h"

struct stream {
    struct stream *next;
    char path[64];
    bool writes, running;
    int fd;
    long pause_us;
    uint64_t number, errors;
    pthread_t thread;
};

static struct stream *streams;

static size_t format_line(char *line, uint64_t number)
{
    size_t n = sprintf(line, "%08lu ", number);

    for (int i = 0; i < 40; i++) {
        line[n++] = 'a' + (number + i) % 26;
    }
    line[n++] = '\n';
    line[n] = 0;
    return n;
}

static void *writer_thread(void *arg)
{
    struct stream *s = arg;
    char line[64];

    while (__atomic_load_n(&s->running, __ATOMIC_RELAXED)) {
        size_t done = 0, len = format_line(line, s->number);

        while (done < len) {
            ssize_t n = write(s->fd, line + done, len - done);

            if (n > 0) {
                done += n;
            }
        }
        s->number++;
        if (s->pause_us) {
            usleep(s->pause_us);
        }
    }
    return NULL;
}

static void check_line(struct stream *s, const char *line)
{
    char expected[64];

    format_line(expected, s->number);
    if (strcmp(line, expected)) {
        s->errors++;
        s->number = strtoul(line, NULL, 10);
    }
    __atomic_add_fetch(&s->number, 1, __ATOMIC_RELAXED);
}

static void *reader_thread(void *arg)
{
    struct stream *s = arg;
    char buf[4096], line[64];
    size_t len = 0;

    for (;;) {
        ssize_t n = read(s->fd, buf, sizeof(buf));

        if (n <= 0) {
            usleep(1000);       /* a virtio port with nobody connected */
        }
        for (ssize_t i = 0; i < n; i++) {
            line[len++] = buf[i];
            if (buf[i] == '\n' || len == sizeof(line) - 1) {
                line[len] = 0;
                len = 0;
                check_line(s, line);
            }
        }
    }
    return NULL;
}

static struct stream *find(const char *path, bool writes)
{
    struct stream *s = streams;

    while (s && (strcmp(s->path, path) || s->writes != writes)) {
        s = s->next;
    }
    errno = s ? 0 : ENOENT;
    return s;
}

static struct stream *start(const char *path, bool writes, long pause_us)
{
    struct stream *s = find(path, writes);

    if (!s) {
        s = calloc(1, sizeof(*s));
        snprintf(s->path, sizeof(s->path), "%s", path);
        s->writes = writes;
        s->fd = open_port(path);
        if (s->fd < 0) {
            free(s);
            return NULL;
        }
        s->next = streams;
        streams = s;
    }
    if (!s->running) {
        s->running = true;
        s->pause_us = pause_us;
        pthread_create(&s->thread, NULL,
                       writes ? writer_thread : reader_thread, s);
    }
    return s;
}

int lines_command(const char *args, FILE *out)
{
    char verb[16] = "", path[64] = "";
    long pause_us = 0;
    struct stream *s;

    sscanf(args, "%15s %63s %ld", verb, path, &pause_us);
    s = strcmp(verb, "start") ? find(path, true) : start(path, true, pause_us);
    if (!s) {
        fprintf(out, "%s: %s", path, strerror(errno));
        return -1;
    }
    if (!strcmp(verb, "stop") && s->running) {
        __atomic_store_n(&s->running, false, __ATOMIC_RELAXED);
        pthread_join(s->thread, NULL);
    }
    fprintf(out, "next=%lu", s->number);
    return 0;
}

int reader_command(const char *args, FILE *out)
{
    char verb[16] = "", path[64] = "";
    struct stream *s;

    sscanf(args, "%15s %63s", verb, path);
    s = strcmp(verb, "start") ? find(path, false) : start(path, false, 0);
    if (!s) {
        fprintf(out, "%s: %s", path, strerror(errno));
        return -1;
    }
    fprintf(out, "lines=%lu errors=%lu",
            __atomic_load_n(&s->number, __ATOMIC_RELAXED), s->errors);
    return 0;
}
