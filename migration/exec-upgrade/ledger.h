/*
 * Exec-upgrade: what the ledger's own files share
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef EXEC_UPGRADE_LEDGER_H
#define EXEC_UPGRADE_LEDGER_H

#include "internal.h"
#include "qemu/queue.h"

/**
 * LedgerEntry: something that a command, or the command line, has made
 * @kind: what it is
 * @id: its id; NULL for a device that has none
 * @obj: it itself; NULL for a network backend
 * @options: what it was made from
 * @typed: values in @options have their JSON types, else all are strings
 * @early: the command line has made it, and the next process's does
 */
typedef struct LedgerEntry {
    ExecUpgradeLedgerKind kind;
    char *id;
    Object *obj;
    QDict *options;
    bool typed;
    bool early;
    QTAILQ_ENTRY(LedgerEntry) next;
} LedgerEntry;

/* The next one of all that exist, in the order of their making; NULL: first */
const LedgerEntry *exec_upgrade_ledger_next(const LedgerEntry *entry);

/**
 * exec_upgrade_device_place: what a device has to be told of its place, if it
 * is not to take the next one that is free
 * @dev: the device
 * @options: what it was made from; what it says is not looked for
 * @errp: error, which names the device
 *
 * Returns properties with their JSON types, which the caller frees, or NULL.
 */
QDict *exec_upgrade_device_place(DeviceState *dev, const QDict *options,
                                 Error **errp);

/**
 * exec_upgrade_device_options: what a device would have to be made from now
 * @dev: the device
 * @options: what it was made from
 * @typed: values in @options have their JSON types, else all are strings
 * @errp: error, which names the device
 *
 * Returns options, which the caller frees, or NULL.
 */
QDict *exec_upgrade_device_options(DeviceState *dev, const QDict *options,
                                   bool typed, Error **errp);

/**
 * exec_upgrade_device_options_merge: give a device its place
 * @options: what it is made from
 * @place: as exec_upgrade_device_place() returns it
 * @typed: values in @options have their JSON types, else all are strings
 */
void exec_upgrade_device_options_merge(QDict *options, const QDict *place,
                                       bool typed);

/* Number of a device without an id among those, or -1 */
int exec_upgrade_device_number(DeviceState *dev);

/* Numbers of a device's buses that have no id to be named by */
ExecUpgradeLedgerBusList *exec_upgrade_device_buses(DeviceState *dev);

/*
 * Have the next bus of each type get its number: never a lower one, since
 * devices are made in the order in which they were
 */
void exec_upgrade_device_buses_next(const ExecUpgradeLedgerBusList *list);

/*
 * Failover pairs
 */

/* Whether a device with those options is a primary device */
bool exec_upgrade_failover_is_primary(const QDict *options);

/* Whether it is one of the command line that had to wait for the guest */
bool exec_upgrade_failover_is_option(const QDict *options);

/* exec_upgrade_failover_add_option: note that it is one */
void exec_upgrade_failover_add_option(const char *id);

/* exec_upgrade_failover_left_out: the previous process noted that it is one */
bool exec_upgrade_failover_left_out(const ExecUpgradeLedger *before,
                                    const QDict *options);

void exec_upgrade_failover_check(strList **blockers);
void exec_upgrade_failover_save(ExecUpgradeLedger *l);

/**
 * exec_upgrade_failover_load: have the standby devices that there are know what
 * they knew
 * @before: the ledger of the previous process
 *
 * Before their primary devices are made, which need not wait then.
 */
void exec_upgrade_failover_load(const ExecUpgradeLedger *before);

/* exec_upgrade_failover_loaded: whether there are all of them */
bool exec_upgrade_failover_loaded(const ExecUpgradeLedger *before,
                                  Error **errp);

/* What differs from the command line, in words */
strList *exec_upgrade_failover_changes(void);

/* Call @func with the options of each primary device that waits */
void exec_upgrade_failover_foreach_waiting(void (*func)(QDict *options,
                                                        void *opaque),
                                           void *opaque);

/*
 * NICs whose network backend was deleted
 */

void exec_upgrade_lost_peers_check(strList **blockers);
ExecUpgradeLedgerLostPeerList *exec_upgrade_lost_peers_save(void);

/* exec_upgrade_lost_peer_has: whether the backend of the NIC @dev is gone */
bool exec_upgrade_lost_peer_has(DeviceState *dev);

/**
 * exec_upgrade_lost_peer_make: if a device has lost its network backend, have
 * its property "netdev" find one
 * @before: the ledger of the previous process, or NULL
 * @name: name of the device, which is made next
 * @errp: error
 */
bool exec_upgrade_lost_peer_make(const ExecUpgradeLedger *before,
                                 const char *name, Error **errp);

/* exec_upgrade_lost_peer_delete: the device was made: delete that backend */
void exec_upgrade_lost_peer_delete(void);

#endif
