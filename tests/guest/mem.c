/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * mem: fills guest memory with a pattern and checks that it stays.
 *
 *     mem fill PERCENT [KEEP_MIB]   fills PERCENT of the guest's memory,
 *                        but leaves KEEP_MIB (default 16) available; what was
 *                        filled before is given up
 *     mem verify         reads everything
 *     mem run            goes over the memory without end in a thread: each
 *                        page is checked, then written with a new generation
 *     mem stop           ends that and reads everything
 *
 * All answer bytes=, generation=, errors=, sum=.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include "agent.h"

#define PAGE_WORDS 512

static uint64_t *memory;
static uint32_t *generation;    /* of each page */
static size_t pages;
static uint64_t errors, rounds, sum;
static bool running;
static pthread_t thread;

static void write_page(size_t page)
{
    uint64_t *p = memory + page * PAGE_WORDS;

    for (size_t i = 0; i < PAGE_WORDS; i++) {
        p[i] = mix(page * PAGE_WORDS + i, generation[page]);
    }
}

static void check_page(size_t page)
{
    uint64_t *p = memory + page * PAGE_WORDS;

    for (size_t i = 0; i < PAGE_WORDS; i++) {
        errors += p[i] != mix(page * PAGE_WORDS + i, generation[page]);
        sum += p[i];
    }
}

static void check_all(void)
{
    sum = 0;
    for (size_t page = 0; page < pages; page++) {
        check_page(page);
    }
}

static void *rewrite_thread(void *arg)
{
    while (__atomic_load_n(&running, __ATOMIC_RELAXED)) {
        for (size_t page = 0; page < pages; page++) {
            check_page(page);
            generation[page]++;
            write_page(page);
        }
        rounds++;
    }
    return NULL;
}

static uint64_t meminfo(const char *key)
{
    uint64_t kib = 0;
    char line[128];
    FILE *f = fopen("/proc/meminfo", "re");

    while (f && fgets(line, sizeof(line), f)) {
        if (!strncmp(line, key, strlen(key))) {
            kib = strtoull(line + strlen(key), NULL, 10);
        }
    }
    if (f) {
        fclose(f);
    }
    return kib * 1024;
}

static void give_up(void)
{
    munmap(memory, pages * 4096);
    free(generation);
    memory = NULL;
    generation = NULL;
    pages = 0;
}

static int fill(unsigned percent, uint64_t keep)
{
    uint64_t size = meminfo("MemTotal:") / 100 * percent;
    uint64_t available;

    if (memory) {
        give_up();
    }
    available = meminfo("MemAvailable:");
    if (available <= keep) {
        return -1;
    }
    if (size > available - keep) {
        size = available - keep;
    }
    pages = size / 4096;
    memory = mmap(NULL, pages * 4096, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    generation = calloc(pages, sizeof(*generation));
    if (memory == MAP_FAILED || !generation) {
        return -1;
    }
    for (size_t page = 0; page < pages; page++) {
        write_page(page);
    }
    return 0;
}

int mem_command(const char *args, FILE *out)
{
    char verb[16] = "";
    unsigned percent = 75, keep = 16;

    sscanf(args, "%15s %u %u", verb, &percent, &keep);
    if (!strcmp(verb, "fill") && !running) {
        if (fill(percent, (uint64_t)keep << 20)) {
            return -1;
        }
        check_all();
    } else if (!strcmp(verb, "verify") && !running) {
        check_all();
    } else if (!strcmp(verb, "run") && !running) {
        running = true;
        pthread_create(&thread, NULL, rewrite_thread, NULL);
    } else if (!strcmp(verb, "stop") && running) {
        __atomic_store_n(&running, false, __ATOMIC_RELAXED);
        pthread_join(thread, NULL);
        check_all();
    } else {
        return -1;
    }
    fprintf(out, "bytes=%lu generation=%lu errors=%lu sum=%lx",
            pages * 4096, rounds, errors, sum);
    return 0;
}
