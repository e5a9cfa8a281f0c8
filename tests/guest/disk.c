/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * disk: writes numbered blocks to block devices and checks them.
 *
 *     disk start DEVICE THREADS MIB   each thread writes random blocks of its
 *                      own part of the first MIB of the device without
 *                      pause, past the page cache; now and then it reads one
 *                      back, and flushes
 *     disk stop DEVICE                ends that, flushes, reads everything
 *     disk status DEVICE
 *
 * All answer writes=, flushes=, checked=, errors= (wrong content), failed=
 * (requests with an I/O error).
 * A block that was written must hold exactly what was written last; one that
 * was not must be empty, or be a block of an earlier run in its own place.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "agent.h"

#define BLOCK 4096
#define WORDS (BLOCK / 8)
#define MAX_THREADS 16

struct worker {
    struct disk *disk;
    pthread_t thread;
    uint32_t first, count;      /* blocks */
    uint64_t writes, flushes, checked, errors, failed;
};

struct disk {
    struct disk *next;
    char path[64];
    int fd;
    bool running;
    uint32_t *sequence;         /* last one written to each block, 0: none */
    int threads;
    struct worker worker[MAX_THREADS];
};

static struct disk *disks;

static void fill(uint64_t *buf, uint32_t block, uint32_t sequence)
{
    buf[0] = block;
    buf[1] = sequence;
    for (int i = 2; i < WORDS; i++) {
        buf[i] = mix((uint64_t)block * WORDS + i, sequence);
    }
}

static void check(struct worker *w, uint64_t *buf, uint32_t block)
{
    uint64_t expected[WORDS];
    uint32_t sequence = w->disk->sequence[block];

    w->checked++;
    if (!sequence && !buf[0] && !memcmp(buf, buf + 1, BLOCK - 8)) {
        return;
    }
    fill(expected, block, sequence ?: buf[1]);
    w->errors += memcmp(buf, expected, BLOCK) != 0;
}

static void read_and_check(struct worker *w, uint64_t *buf, uint32_t block)
{
    if (pread(w->disk->fd, buf, BLOCK, (off_t)block * BLOCK) == BLOCK) {
        check(w, buf, block);
    } else {
        w->failed++;
    }
}

static void *worker_thread(void *arg)
{
    struct worker *w = arg;
    struct disk *d = w->disk;
    unsigned seed = w->first;
    uint64_t *buf = aligned_alloc(BLOCK, BLOCK);

    while (__atomic_load_n(&d->running, __ATOMIC_RELAXED)) {
        uint32_t block = w->first + rand_r(&seed) % w->count;

        fill(buf, block, d->sequence[block] + 1);
        if (pwrite(d->fd, buf, BLOCK, (off_t)block * BLOCK) == BLOCK) {
            d->sequence[block]++;
            __atomic_add_fetch(&w->writes, 1, __ATOMIC_RELAXED);
        } else {
            w->failed++;
        }
        if (w->writes % 8 == 0) {
            read_and_check(w, buf, w->first + rand_r(&seed) % w->count);
        }
        if (w->writes % 64 == 0) {
            w->failed += fdatasync(d->fd) != 0;
            w->flushes++;
        }
    }
    free(buf);
    return NULL;
}

static struct disk *find(const char *path)
{
    struct disk *d = disks;

    while (d && strcmp(d->path, path)) {
        d = d->next;
    }
    return d;
}

static int start(const char *path, int threads, unsigned mib, FILE *out)
{
    struct disk *d = find(path);
    uint32_t blocks = mib * (1048576 / BLOCK);
    off_t end;

    if (threads < 1 || threads > MAX_THREADS || (d && d->running)) {
        return -1;
    }
    if (!d) {
        d = calloc(1, sizeof(*d));
        snprintf(d->path, sizeof(d->path), "%s", path);
        d->sequence = calloc(blocks, sizeof(*d->sequence));
        d->next = disks;
        disks = d;
    }
    d->fd = open_device(path, O_RDWR | O_DIRECT);
    if (d->fd < 0) {
        fprintf(out, "%s", strerror(errno));
        return -1;
    }
    end = lseek(d->fd, 0, SEEK_END);
    if (end < (off_t)blocks * BLOCK) {
        fprintf(out, "%ld bytes are too few", (long)end);
        close(d->fd);
        return -1;
    }
    d->running = true;
    d->threads = threads;
    for (int i = 0; i < threads; i++) {
        struct worker *w = &d->worker[i];

        w->disk = d;
        w->first = blocks / threads * i;
        w->count = blocks / threads;
        pthread_create(&w->thread, NULL, worker_thread, w);
    }
    return 0;
}

static void stop(struct disk *d)
{
    uint64_t *buf = aligned_alloc(BLOCK, BLOCK);

    __atomic_store_n(&d->running, false, __ATOMIC_RELAXED);
    for (int i = 0; i < d->threads; i++) {
        pthread_join(d->worker[i].thread, NULL);
    }
    d->worker[0].failed += fdatasync(d->fd) != 0;
    for (int i = 0; i < d->threads; i++) {
        struct worker *w = &d->worker[i];

        for (uint32_t b = w->first; b < w->first + w->count; b++) {
            read_and_check(w, buf, b);
        }
    }
    free(buf);
    close(d->fd);
}

int disk_command(const char *args, FILE *out)
{
    char verb[16] = "", path[64] = "";
    int threads = 4;
    unsigned mib = 8;
    struct disk *d;
    struct worker total = { 0 };

    sscanf(args, "%15s %63s %d %u", verb, path, &threads, &mib);
    if (!strcmp(verb, "start") && start(path, threads, mib, out)) {
        return -1;
    }
    d = find(path);
    if (!d) {
        return -1;
    }
    if (!strcmp(verb, "stop")) {
        if (!d->running) {
            return -1;
        }
        stop(d);
    }
    for (int i = 0; i < d->threads; i++) {
        total.writes += d->worker[i].writes;
        total.flushes += d->worker[i].flushes;
        total.checked += d->worker[i].checked;
        total.errors += d->worker[i].errors;
        total.failed += d->worker[i].failed;
    }
    fprintf(out, "writes=%lu flushes=%lu checked=%lu errors=%lu failed=%lu",
            total.writes, total.flushes, total.checked, total.errors,
            total.failed);
    return 0;
}
