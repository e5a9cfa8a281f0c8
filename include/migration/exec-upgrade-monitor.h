/*
 * Exec-upgrade: what the monitor's own files call and offer
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef MIGRATION_EXEC_UPGRADE_MONITOR_H
#define MIGRATION_EXEC_UPGRADE_MONITOR_H

#include "block/aio.h"
#include "chardev/char.h"
#include "qapi/qapi-emit-events.h"
#include "qapi/qapi-types-exec-upgrade.h"
#include "qapi/qmp/qdict.h"
#include "qemu/typedefs.h"

struct QMPRequest;

/*
 * In migration/exec-upgrade/carry/monitor.c
 */

/**
 * exec_upgrade_monitor_event: whether a monitor must not see an event of its
 * character device
 * @mon: a QMP or HMP monitor
 * @event: the event
 *
 * True while this process is adopting and @mon's session is carried: the
 * session goes on where it was, so it is neither reset nor greeted again.
 */
bool exec_upgrade_monitor_event(Monitor *mon, QEMUChrEvent event);

/**
 * exec_upgrade_monitor_schedule: run a function once in the monitor's thread
 * @ctx: that thread's context
 * @cb: the function
 * @opaque: its argument
 *
 * Usually just aio_bh_schedule_oneshot().  While this process is adopting,
 * the thread is stopped instead, so that it can't read from any connection,
 * and the main thread calls @cb when the machine is complete.
 */
void exec_upgrade_monitor_schedule(AioContext *ctx, QEMUBHFunc *cb,
                                   void *opaque);

/*
 * In migration/exec-upgrade/command/hmp.c
 */

/**
 * hmp_exec_upgrade: "exec_upgrade [binary]"
 * @mon: monitor that asks
 * @qdict: the arguments
 */
void hmp_exec_upgrade(Monitor *mon, const QDict *qdict);

/**
 * hmp_info_exec_upgrade: "info exec-upgrade"
 * @mon: monitor that asks
 * @qdict: empty
 */
void hmp_info_exec_upgrade(Monitor *mon, const QDict *qdict);

/*
 * In monitor/qmp-exec-upgrade.c.inc
 */

/**
 * exec_upgrade_qmp_dispatch: note which request the dispatcher works on
 * @req: the request, or NULL if there is none left
 */
void exec_upgrade_qmp_dispatch(struct QMPRequest *req);

/**
 * exec_upgrade_qmp_dispatching: get the request that the dispatcher works on
 * @mon: gets its monitor
 * @req: gets the request, owned by the dispatcher; NULL if it could not be
 *       parsed
 *
 * Returns false if there is none.  Main thread only.
 */
bool exec_upgrade_qmp_dispatching(Monitor **mon, QObject **req);

/**
 * exec_upgrade_qmp_save: describe a QMP session
 * @mon: a QMP monitor whose thread is stopped
 *
 * Returns what the caller frees.  Changes nothing.
 */
ExecUpgradeQmpSession *exec_upgrade_qmp_save(Monitor *mon);

/**
 * exec_upgrade_qmp_load: bring a QMP monitor into a saved session's state
 * @mon: a QMP monitor that has not read anything yet
 * @s: what exec_upgrade_qmp_save() returned
 * @errp: error
 */
bool exec_upgrade_qmp_load(Monitor *mon, const ExecUpgradeQmpSession *s,
                           Error **errp);

/**
 * exec_upgrade_qmp_suspended_in_dispatch: whether a monitor reads nothing
 * while one of its requests is executed
 * @mon: a QMP monitor
 */
bool exec_upgrade_qmp_suspended_in_dispatch(Monitor *mon);

/**
 * exec_upgrade_qmp_reply: answer the request that was being executed
 * @mon: its QMP monitor, suspended if it
 *       exec_upgrade_qmp_suspended_in_dispatch()
 * @rsp: the response
 */
void exec_upgrade_qmp_reply(Monitor *mon, QDict *rsp);

/*
 * In monitor/monitor-exec-upgrade.c.inc
 */

/**
 * exec_upgrade_monitor_busy: find a user's HMP monitor that executes a command
 * @except: a monitor that does not count, or NULL
 *
 * QMP commands and human-monitor-command don't count either.
 */
Monitor *exec_upgrade_monitor_busy(Monitor *except);

/**
 * exec_upgrade_event_is_hidden: whether no client is to be told of an event
 * @event: the event
 */
bool exec_upgrade_event_is_hidden(QAPIEvent event);

/**
 * exec_upgrade_monitor_quiet: have clients notice nothing of a pause, or end
 * that
 * @on: whether it begins
 *
 * STOP and RESUME are not sent: who manages leases for a guest's images takes
 * them as the user's.  Events that are held back are held back further.
 */
void exec_upgrade_monitor_quiet(bool on);

/**
 * exec_upgrade_monitor_events_flush: send events that are held back to limit
 * their rate
 */
void exec_upgrade_monitor_events_flush(void);

/*
 * In monitor/misc-exec-upgrade.c.inc
 */

/**
 * exec_upgrade_monitor_fds_save: describe the descriptors that a client named
 * with getfd
 * @mon: the monitor
 *
 * They are carried.  Returns what the caller frees.
 */
ExecUpgradeNamedFdList *exec_upgrade_monitor_fds_save(Monitor *mon);

/**
 * exec_upgrade_monitor_fds_load: adopt named descriptors
 * @mon: a monitor that has none yet
 * @list: what exec_upgrade_monitor_fds_save() returned
 * @errp: error
 */
bool exec_upgrade_monitor_fds_load(Monitor *mon,
                                   const ExecUpgradeNamedFdList *list,
                                   Error **errp);

/* Descriptor sets, likewise; the first to be adopted in a new process */
ExecUpgradeFdsetList *exec_upgrade_fdsets_save(void);
bool exec_upgrade_fdsets_load(const ExecUpgradeFdsetList *list, Error **errp);

/**
 * exec_upgrade_fdset_can_open: whether a descriptor set has a descriptor for
 * an access mode
 * @id: the set
 * @mode: O_RDONLY, O_WRONLY or O_RDWR
 */
bool exec_upgrade_fdset_can_open(int64_t id, int mode);

#endif
