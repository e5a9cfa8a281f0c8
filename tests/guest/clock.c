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
 * burst=, most expirations at once; backwards=, of any clock; wall=, how far
 * wall clock moved against monotonic time; tsc=, cycles.
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
static int64_t first, last, max_gap, offset, wall;
static uint64_t ticks, reads, burst, backwards, first_tsc, last_tsc;

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
    wall = now_ns(CLOCK_REALTIME) - now - offset;
}

static void *clock_thread(void *arg)
{
    struct itimerspec its = { .it_interval.tv_nsec = PERIOD_NS,
                              .it_value.tv_nsec = PERIOD_NS };
    int fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC);
    uint64_t n;

    first = last = now_ns(CLOCK_MONOTONIC);
    first_tsc = last_tsc = __rdtsc();
    offset = now_ns(CLOCK_REALTIME) - first;
    timerfd_settime(fd, 0, &its, NULL);
    while (__atomic_load_n(&running, __ATOMIC_RELAXED) &&
           read(fd, &n, sizeof(n)) == sizeof(n)) {
        reads++;
        ticks += n;
        if (n > burst) {
            burst = n;
        }
        sample();
    }
    close(fd);
    return NULL;
}

int clock_command(const char *args, FILE *out)
{
    if (!strcmp(args, "start") && !running) {
        first = last = max_gap = wall = 0;
        first_tsc = last_tsc = 0;
        ticks = reads = burst = backwards = 0;
        running = true;
        pthread_create(&thread, NULL, clock_thread, NULL);
    } else if (!strcmp(args, "stop") && running) {
        __atomic_store_n(&running, false, __ATOMIC_RELAXED);
        pthread_join(thread, NULL);
    } else {
        return -1;
    }
    fprintf(out, "elapsed=%ld ticks=%lu reads=%lu max_gap=%ld burst=%lu "
            "backwards=%lu wall=%ld tsc=%lu", last - first, ticks, reads,
            max_gap, burst, backwards, wall, last_tsc - first_tsc);
    return 0;
}
