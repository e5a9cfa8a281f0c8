/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * clock: watches the guest's clocks with a timer of 10 ms.
 *
 *     clock start
 *     clock stop
 *
 * Both answer, all times in nanoseconds: elapsed=, of monotonic time;
 * ticks=, expirations of the timer; reads=, how often it was read, so that
 * reads well above elapsed / 10 ms are a storm; max_gap=, between two reads;
 * surplus=, expirations that came sooner than 10 ms after one another;
 * backwards=, of any clock; wall=, how far wall clock moved against monotonic
 * time; tsc=, cycles.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdbool.h>
#include <string.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>
#include <x86intrin.h>
#include "agent.h"

#define PERIOD_NS 10000000

static bool running;
static pthread_t thread;
static int64_t first, last, max_gap, offset, wall, surplus;
static uint64_t ticks, reads, backwards, first_tsc, last_tsc;

/* Wall clock minus monotonic time. The thread may lose its CPU between two
 * readings, so of several the closest counts. */
static int64_t wall_offset(void)
{
    int64_t best = INT64_MAX, result = 0;

    for (int i = 0; i < 5; i++) {
        int64_t before = now_ns(CLOCK_MONOTONIC);
        int64_t real = now_ns(CLOCK_REALTIME);
        int64_t took = now_ns(CLOCK_MONOTONIC) - before;

        if (took < best) {
            best = took;
            result = real - before;
        }
    }
    return result;
}

static void sample(void)
{
    int64_t now = now_ns(CLOCK_MONOTONIC);
    uint64_t tsc = __rdtsc();

    backwards += now < last || tsc < last_tsc;
    if (now - last > max_gap) {
        max_gap = now - last;
    }
    last = now;
    last_tsc = tsc;
}

static void *clock_thread(void *arg)
{
    struct itimerspec its = { .it_interval.tv_nsec = PERIOD_NS,
                              .it_value.tv_nsec = PERIOD_NS };
    int fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC);
    int64_t asked, asked_before;
    uint64_t n;

    offset = wall_offset();
    asked = first = last = now_ns(CLOCK_MONOTONIC);
    first_tsc = last_tsc = __rdtsc();
    timerfd_settime(fd, 0, &its, NULL);
    while (__atomic_load_n(&running, __ATOMIC_RELAXED)) {
        asked_before = asked;
        asked = now_ns(CLOCK_MONOTONIC);
        if (read(fd, &n, sizeof(n)) != sizeof(n)) {
            break;
        }
        reads++;
        ticks += n;
        sample();
        /* All n came after the read before this one began */
        int64_t most = (last - asked_before) / PERIOD_NS + 1;
        if ((int64_t)n > most) {
            surplus += n - most;
        }
    }
    wall = wall_offset() - offset;
    close(fd);
    return NULL;
}

int clock_command(const char *args, FILE *out)
{
    if (!strcmp(args, "start") && !running) {
        first = last = max_gap = wall = 0;
        first_tsc = last_tsc = 0;
        ticks = reads = surplus = backwards = 0;
        running = true;
        pthread_create(&thread, NULL, clock_thread, NULL);
    } else if (!strcmp(args, "stop") && running) {
        __atomic_store_n(&running, false, __ATOMIC_RELAXED);
        pthread_join(thread, NULL);
    } else {
        return -1;
    }
    fprintf(out, "elapsed=%ld ticks=%lu reads=%lu max_gap=%ld surplus=%ld "
            "backwards=%lu wall=%ld tsc=%lu", last - first, ticks, reads,
            max_gap, surplus, backwards, wall, last_tsc - first_tsc);
    return 0;
}
