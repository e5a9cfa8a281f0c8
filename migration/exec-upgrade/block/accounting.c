/*
 * Exec-upgrade: block accounting
 *
 * Managers compute rates from counters that only ever grow while QEMU runs;
 * one that starts again at 0 shows as a peak, or as a loss.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "block/accounting.h"
#include "block/block_int.h"
#include "qemu/lockable.h"
#include "sysemu/block-backend.h"
#include "migration/exec-upgrade/block/block.h"

static ExecUpgradeHistogram *histogram_save(const BlockLatencyHistogram *hist)
{
    ExecUpgradeHistogram *h = g_new0(ExecUpgradeHistogram, 1);
    uint64List **boundaries = &h->boundaries, **bins = &h->bins;

    for (int i = 0; i < hist->nbins; i++) {
        QAPI_LIST_APPEND(bins, hist->bins[i]);
        if (i < hist->nbins - 1) {
            QAPI_LIST_APPEND(boundaries, hist->boundaries[i]);
        }
    }
    return h;
}

static void histogram_load(const ExecUpgradeHistogram *h,
                           BlockAcctStats *stats, enum BlockAcctType type)
{
    BlockLatencyHistogram *hist = &stats->latency_histogram[type];
    const uint64List *bin = h->bins;

    if (block_latency_histogram_set(stats, type, h->boundaries) < 0) {
        return;
    }
    for (int i = 0; i < hist->nbins && bin; i++, bin = bin->next) {
        hist->bins[i] = bin->value;
    }
}

static uint32List *intervals_save(BlockAcctStats *stats)
{
    BlockAcctTimedStats *s = NULL;
    uint32List *list = NULL;

    /* Their list begins with the newest, as this one will end with it */
    while ((s = block_acct_interval_next(stats, s))) {
        QAPI_LIST_PREPEND(list, s->interval_length);
    }
    return list;
}

ExecUpgradeAccounting *exec_upgrade_accounting_save(BlockBackend *blk)
{
    BlockAcctStats *stats = blk_get_stats(blk);
    ExecUpgradeAccounting *a = g_new0(ExecUpgradeAccounting, 1);
    ExecUpgradeRequestsList **tail = &a->requests;

    a->invalid = stats->account_invalid;
    a->failed = stats->account_failed;
    a->intervals = intervals_save(stats);
    QEMU_LOCK_GUARD(&stats->lock);
    a->last_access = stats->last_access_time_ns;
    for (int type = BLOCK_ACCT_READ; type < BLOCK_MAX_IOTYPE; type++) {
        ExecUpgradeRequests *r = g_new0(ExecUpgradeRequests, 1);

        r->bytes = stats->nr_bytes[type];
        r->operations = stats->nr_ops[type];
        r->invalid = stats->invalid_ops[type];
        r->failed = stats->failed_ops[type];
        r->time = stats->total_time_ns[type];
        r->merged = stats->merged[type];
        if (stats->latency_histogram[type].nbins) {
            r->has_histogram = true;
            r->histogram = histogram_save(&stats->latency_histogram[type]);
        }
        QAPI_LIST_APPEND(tail, r);
    }
    return a;
}

void exec_upgrade_accounting_load(const ExecUpgradeAccounting *a,
                                  BlockBackend *blk)
{
    BlockAcctStats *stats = blk_get_stats(blk);
    const ExecUpgradeRequestsList *e = a->requests;

    stats->account_invalid = a->invalid;
    stats->account_failed = a->failed;
    for (uint32List *i = a->intervals; i; i = i->next) {
        block_acct_add_interval(stats, i->value);
    }
    QEMU_LOCK_GUARD(&stats->lock);
    /* QEMU_CLOCK_REALTIME, which goes on across execve(2) */
    stats->last_access_time_ns = a->last_access;
    for (int type = BLOCK_ACCT_READ; e && type < BLOCK_MAX_IOTYPE;
         type++, e = e->next) {
        const ExecUpgradeRequests *r = e->value;

        stats->nr_bytes[type] = r->bytes;
        stats->nr_ops[type] = r->operations;
        stats->invalid_ops[type] = r->invalid;
        stats->failed_ops[type] = r->failed;
        stats->total_time_ns[type] = r->time;
        stats->merged[type] = r->merged;
        if (r->has_histogram) {
            histogram_load(r->histogram, stats, type);
        }
    }
}
