/*
 * Exec-upgrade: what commands have made, and what they have deleted
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef EXEC_UPGRADE_LEDGER_H
#define EXEC_UPGRADE_LEDGER_H

#include "migration/exec-upgrade/core/core.h"
#include "qemu/queue.h"

extern const ExecUpgradeStage exec_upgrade_stage_ledger;
extern const ExecUpgradeStage exec_upgrade_stage_configuration;
extern const ExecUpgradeStage exec_upgrade_stage_properties;

/*
 * exec_upgrade_ledger_left_out: what the next process does not make from its
 * command line, since it is deleted or made from the ledger
 */
ExecUpgradeLedgerNameList *exec_upgrade_ledger_left_out(void);

/* exec_upgrade_ledger_changes: what differs from the command line, in words */
strList *exec_upgrade_ledger_changes(void);

/*
 * exec_upgrade_configuration_query: the commands that would make what there is
 * now, in an order in which they can be executed
 */
ExecUpgradeCommandList *exec_upgrade_configuration_query(void);

/**
 * exec_upgrade_configuration_note: note the configuration as what the command
 * line builds, to find what changed since
 */
void exec_upgrade_configuration_note(void);

/*
 * exec_upgrade_ledger_init, exec_upgrade_properties_init: note from now on what
 * objects commands make, and what properties they set
 */
void exec_upgrade_ledger_init(void);
void exec_upgrade_properties_init(void);

/*
 * Entries
 */

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

/* exec_upgrade_ledger_has: whether it has @obj, or what it is a part of */
bool exec_upgrade_ledger_has(Object *obj);
bool exec_upgrade_ledger_has_netdev(const char *id);

/* Whether @list has a name, and to add one that it does not have */
bool exec_upgrade_ledger_names_have(const ExecUpgradeLedgerNameList *list,
                                    ExecUpgradeLedgerKind kind,
                                    const char *id);
void exec_upgrade_ledger_names_add(ExecUpgradeLedgerNameList **list,
                                   ExecUpgradeLedgerKind kind, const char *id);

/*
 * exec_upgrade_ledger_start_complete: what is made from now on is made by
 * commands, if the machine is complete
 */
void exec_upgrade_ledger_start_complete(void);

/*
 * exec_upgrade_ledger_set_building: from now on, or not any more, what is made
 * is what commands have made in the previous process
 */
void exec_upgrade_ledger_set_building(bool building);

/*
 * The new process builds it
 */

/* exec_upgrade_ledger_handoff: that of the previous process, or NULL */
const ExecUpgradeLedger *exec_upgrade_ledger_handoff(void);

/*
 * exec_upgrade_ledger_not_built: what the command line makes, and was left out
 * by this process
 */
const ExecUpgradeLedgerNameList *exec_upgrade_ledger_not_built(void);

/*
 * exec_upgrade_devices_build: machine complete: make the devices that commands
 * have added, as they are plugged
 */
bool exec_upgrade_devices_build(Error **errp);

/*
 * Places of devices
 */

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

/*
 * Configuration and properties
 */

/* exec_upgrade_configuration_removed: what of the command line is gone */
ExecUpgradeLedgerNameList *exec_upgrade_configuration_removed(void);

/* exec_upgrade_properties_find: what qom-set may have set, as it is now */
ExecUpgradePropertyList *exec_upgrade_properties_find(Error **errp);

#endif
