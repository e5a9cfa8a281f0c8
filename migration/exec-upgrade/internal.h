/*
 * Exec-upgrade: what its own files share
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef EXEC_UPGRADE_INTERNAL_H
#define EXEC_UPGRADE_INTERNAL_H

#include "migration/exec-upgrade.h"
#include "qapi/qapi-types-exec-upgrade.h"

/* Format of the handoff that this QEMU writes, and the oldest that it reads */
#define EXEC_UPGRADE_FORMAT     5
#define EXEC_UPGRADE_FORMAT_MIN 5

/* Environment variable with the number of the handoff's descriptor */
#define EXEC_UPGRADE_ENV "QEMU_EXEC_UPGRADE_HANDOFF"

/**
 * ExecUpgradeStage: one thing that is carried across
 *
 * Any function may be NULL.  A table of these is walked forwards for check,
 * save and load, and backwards for undo.
 *
 * @name: for traces and messages
 * @check: guest running: append to @blockers why an upgrade is not possible.
 *         Changes nothing.
 * @save: guest paused: put what is carried into @h, whose members @h owns.
 *        May prepare the thing for execve(2), if @undo takes it back.
 * @undo: guest paused, the upgrade is given up: the reverse of @save.  Called
 *        only if @save succeeded.
 * @close: nothing more can fail but execve(2) itself: end connections that
 *         can't be carried, and name them in @h->dropped.
 * @load: new process, machine complete, nothing runs yet: bring the thing
 *        into the state that @h describes.
 * @commit: new process, everything is loaded and the images are active, the
 *          guest runs: read from connections again.  Can't fail.
 */
typedef struct ExecUpgradeStage {
    const char *name;
    void (*check)(strList **blockers);
    bool (*save)(ExecUpgradeHandoff *h, Error **errp);
    void (*undo)(void);
    void (*close)(ExecUpgradeHandoff *h);
    bool (*load)(const ExecUpgradeHandoff *h, Error **errp);
    void (*commit)(const ExecUpgradeHandoff *h);
} ExecUpgradeStage;

extern const ExecUpgradeStage *const exec_upgrade_stages[];

/* One for each thing, each in a file of its own */
extern const ExecUpgradeStage exec_upgrade_stage_process;
extern const ExecUpgradeStage exec_upgrade_stage_sandbox;
extern const ExecUpgradeStage exec_upgrade_stage_scsi;
extern const ExecUpgradeStage exec_upgrade_stage_thread_context;
extern const ExecUpgradeStage exec_upgrade_stage_ledger;
extern const ExecUpgradeStage exec_upgrade_stage_device_state;
extern const ExecUpgradeStage exec_upgrade_stage_block;
extern const ExecUpgradeStage exec_upgrade_stage_block_export;
extern const ExecUpgradeStage exec_upgrade_stage_configuration;
extern const ExecUpgradeStage exec_upgrade_stage_properties;
extern const ExecUpgradeStage exec_upgrade_stage_vmgenid;
extern const ExecUpgradeStage exec_upgrade_stage_balloon;
extern const ExecUpgradeStage exec_upgrade_stage_dbus_vmstate;
extern const ExecUpgradeStage exec_upgrade_stage_monitor_thread;
extern const ExecUpgradeStage exec_upgrade_stage_monitor;
extern const ExecUpgradeStage exec_upgrade_stage_chardev;
extern const ExecUpgradeStage exec_upgrade_stage_qtest;
extern const ExecUpgradeStage exec_upgrade_stage_net;
extern const ExecUpgradeStage exec_upgrade_stage_vhost;
extern const ExecUpgradeStage exec_upgrade_stage_vnc;
extern const ExecUpgradeStage exec_upgrade_stage_spice;

/* SPICE's part, set when its code is there */
extern const ExecUpgradeStage *exec_upgrade_spice;

/**
 * exec_upgrade_drop: name a connection that is not carried
 * @h: the handoff
 * @fmt: printf format of what it is
 */
void exec_upgrade_drop(ExecUpgradeHandoff *h, const char *fmt, ...)
    G_GNUC_PRINTF(2, 3);

/**
 * exec_upgrade_add_blocker: append a reason to a list of blockers
 * @blockers: the list
 * @fmt: printf format of one sentence without a full stop
 */
void exec_upgrade_add_blocker(strList **blockers, const char *fmt, ...)
    G_GNUC_PRINTF(2, 3);

/* exec_upgrade_list_has: whether a list of strings has one that is @value */
bool exec_upgrade_list_has(const strList *list, const char *value);

/**
 * exec_upgrade_handoff: what the previous process left
 *
 * Returns the handoff while this process is adopting it, NULL otherwise.
 */
const ExecUpgradeHandoff *exec_upgrade_handoff(void);

/**
 * exec_upgrade_handoff_read: read the handoff that a descriptor holds
 * @fd: the descriptor; closed in any case
 * @errp: error
 *
 * Returns the handoff, owned by the caller, or NULL.
 */
ExecUpgradeHandoff *exec_upgrade_handoff_read(int fd, Error **errp);

/**
 * exec_upgrade_handoff_write: write the handoff into a sealed memfd
 * @h: the handoff
 * @errp: error
 *
 * Returns the descriptor, without FD_CLOEXEC, owned by the caller, or -1.
 */
int exec_upgrade_handoff_write(ExecUpgradeHandoff *h, Error **errp);

/**
 * exec_upgrade_fd_carry: have a descriptor stay open across execve(2)
 * @fd: the descriptor, which stays the caller's and must stay open
 *
 * FD_CLOEXEC is cleared just before execve(2), and set again should that
 * fail.  Returns what to put into the handoff.
 */
ExecUpgradeFd *exec_upgrade_fd_carry(int fd);

/**
 * exec_upgrade_fd_adopt: take over a descriptor
 * @efd: what the previous process wrote
 * @what: what it is, for the error
 * @errp: error
 *
 * Checks that the descriptor is the file that the previous process had, and
 * gives it its FD_CLOEXEC back.  Returns the number, owned by the caller, or
 * -1.
 */
int exec_upgrade_fd_adopt(const ExecUpgradeFd *efd, const char *what,
                          Error **errp);

/*
 * Listening sockets
 */

struct QIONetListener;

/* exec_upgrade_listener_save: carry those of @listener, which may be NULL */
ExecUpgradeFdList *exec_upgrade_listener_save(struct QIONetListener *listener);

/**
 * exec_upgrade_listener_adopt: give a listener the sockets that it had
 * @listener: the listener
 * @fds: what exec_upgrade_listener_save() returned in the previous process
 * @what: what they are, for the error
 * @errp: error
 *
 * Followed by exec_upgrade_listener_own(), from which on the path of a socket
 * is removed when it is closed.
 */
bool exec_upgrade_listener_adopt(struct QIONetListener *listener,
                                 const ExecUpgradeFdList *fds,
                                 const char *what, Error **errp);

void exec_upgrade_listener_own(struct QIONetListener *listener);

/*
 * exec_upgrade_listener_carried: have exec_upgrade_listener_open() take over
 * @fds from now on, or none if NULL
 */
void exec_upgrade_listener_carried(const ExecUpgradeFdList *fds);

/**
 * exec_upgrade_fds_close_rest: close what was carried and not adopted
 * @h: the handoff
 *
 * With other arguments than before, something may have no owner any more.
 * What the launcher left open for us stays, as in any start.
 */
void exec_upgrade_fds_close_rest(const ExecUpgradeHandoff *h);

/* For the sequence only: clear or restore FD_CLOEXEC on all that is carried */
bool exec_upgrade_fds_inherit(Error **errp);
void exec_upgrade_fds_restore(void);

/**
 * exec_upgrade_seal: forbid any change of a memfd
 * @fd: the memfd
 * @errp: error
 */
bool exec_upgrade_seal(int fd, Error **errp);

/**
 * exec_upgrade_check_sealed: check that nobody can change a memfd any more
 */
bool exec_upgrade_check_sealed(int fd, const char *what, Error **errp);

/**
 * exec_upgrade_binary_path: path of the file that this process was started
 * from, or what now has its place
 *
 * Returns a string that the caller frees, or NULL with an error.
 */
char *exec_upgrade_binary_path(Error **errp);

/**
 * exec_upgrade_binary_open: open a QEMU binary, and check that it can take
 * over this guest
 * @path: its path
 * @errp: error
 *
 * Returns a descriptor for execveat(2), with FD_CLOEXEC, or -1.
 */
int exec_upgrade_binary_open(const char *path, Error **errp);

/**
 * exec_upgrade_binary_has_note: whether a file is a QEMU with exec-upgrade
 * @fd: the file, open for reading
 */
bool exec_upgrade_binary_has_note(int fd);

/**
 * exec_upgrade_binary_loader: path of the dynamic loader that a binary names
 * @fd: the binary, open for reading
 *
 * Returns a string that the caller frees, or NULL if it is static.
 */
char *exec_upgrade_binary_loader(int fd);

/*
 * Sandbox
 */

/**
 * exec_upgrade_sandbox_is_open: whether the filter of spawn=deny is to let an
 * upgrade through
 *
 * If so, Landlock already limits what can be executed.
 */
bool exec_upgrade_sandbox_is_open(void);

/**
 * exec_upgrade_sandbox_has_filter: whether this process has a filter, from
 * whichever QEMU it was before
 * @hash: SHA-256 of the filter
 */
bool exec_upgrade_sandbox_has_filter(const char *hash);
void exec_upgrade_sandbox_note_filter(const char *hash);

/* exec_upgrade_sandbox_note_runas: the process will be another user's */
void exec_upgrade_sandbox_note_runas(void);

/**
 * exec_upgrade_sandbox_check_binary: check that Landlock lets this process
 * execute a file
 * @path: its path
 * @errp: error
 */
bool exec_upgrade_sandbox_check_binary(const char *path, Error **errp);

/* Name of the emulation target, "x86_64"; as found in the handoff note */
extern const char exec_upgrade_target[];

/**
 * exec_upgrade_process_init: note the command line and working folder
 * @argv: the command line, NULL-terminated
 */
void exec_upgrade_process_init(char **argv);

/**
 * exec_upgrade_process_ready: the machine is complete, and so is what decides
 * whether exec-upgrade is on
 */
void exec_upgrade_process_ready(void);

/**
 * exec_upgrade_process_adopt: take over what start-up needs first: working
 * folder, pidfile, process name
 * @h: the handoff
 * @errp: error
 */
bool exec_upgrade_process_adopt(const ExecUpgradeHandoff *h, Error **errp);

/* exec_upgrade_runstate: what the guest is doing */
RunState exec_upgrade_runstate(void);

/**
 * exec_upgrade_process_cwd: the folder in which the command line was given,
 * as a descriptor for openat(2) that stays the core's
 */
int exec_upgrade_process_cwd(void);

/*
 * What may wake the guest up: set when it writes to the power management's
 * registers, and by no load of a device's state
 */
uint32_t exec_upgrade_wakeup_reasons(void);
void exec_upgrade_set_wakeup_reasons(uint32_t reasons);

/**
 * exec_upgrade_set_migration_capabilities: set capabilities without a check
 * @names: those that are on; all others are off
 *
 * They were valid in the previous process, and device state can only be
 * loaded with the same.
 */
void exec_upgrade_set_migration_capabilities(const strList *names);

/**
 * exec_upgrade_runstate_request_pending: whether the main loop still has to
 * act on a reset, shutdown, suspend, wakeup, powerdown, stop or debug request
 */
bool exec_upgrade_runstate_request_pending(void);

/*
 * Descriptor sets, in monitor/misc-exec-upgrade.c.inc
 */
ExecUpgradeFdsetList *exec_upgrade_fdsets_save(void);
bool exec_upgrade_fdsets_load(const ExecUpgradeFdsetList *list, Error **errp);

/**
 * exec_upgrade_fdset_adopt_dup: a descriptor is taken over
 * @fd: the descriptor
 *
 * If it was made of a member of a set, it keeps the set until it is closed by
 * qemu_close(), as it did.
 */
void exec_upgrade_fdset_adopt_dup(int fd);

/**
 * exec_upgrade_fdset_can_open: whether a descriptor set has a descriptor for
 * an access mode
 * @id: the set
 * @mode: O_RDONLY, O_WRONLY or O_RDWR
 */
bool exec_upgrade_fdset_can_open(int64_t id, int mode);

/*
 * Block nodes
 */

/**
 * exec_upgrade_block_prepare: write caches out, so that the pause has little
 * to flush
 * @errp: error
 *
 * Guest running; lets it run if called from a coroutine.
 */
bool exec_upgrade_block_prepare(Error **errp);

/**
 * exec_upgrade_block_quiesce: wait until no request or bottom half is left
 * @errp: error
 */
bool exec_upgrade_block_quiesce(Error **errp);

/**
 * exec_upgrade_block_inactivate: write metadata, give up images and locks
 * @errp: error
 */
bool exec_upgrade_block_inactivate(Error **errp);

/**
 * exec_upgrade_block_reactivate: undo exec_upgrade_block_inactivate(), also
 * one that failed half-way
 * @errp: error
 *
 * If it fails, the guest must not run.
 */
bool exec_upgrade_block_reactivate(Error **errp);

/**
 * exec_upgrade_block_activate: new process: take all images over
 * @errp: error
 *
 * Fails unless every image has been opened with the permissions and locks
 * that its users need.
 */
bool exec_upgrade_block_activate(Error **errp);

/*
 * Block exports
 */

/**
 * exec_upgrade_exports_hold: take no request from any client of an export
 * @errp: error
 *
 * Guest running.  Waits for the replies to what has been requested, but not
 * for ever: a client may not read them.  If it succeeds,
 * exec_upgrade_exports_release() undoes it; the clients don't notice.
 */
bool exec_upgrade_exports_hold(Error **errp);
void exec_upgrade_exports_release(void);

/* Whether an export offers @bitmap to its clients, and so keeps it in use */
bool exec_upgrade_export_has_bitmap(const BdrvDirtyBitmap *bitmap);

/* Calls @func for each node that is exported */
void exec_upgrade_exports_walk(void (*func)(BlockDriverState *bs,
                                            void *opaque), void *opaque);

/*
 * exec_upgrade_exports_keep: machine complete: keep the nodes of @h's exports
 * until these have been made
 * exec_upgrade_exports_activate: activate them, who may have no other user
 */
void exec_upgrade_exports_keep(const ExecUpgradeHandoff *h);
bool exec_upgrade_exports_activate(Error **errp);

/* exec_upgrade_exports_changes: what commands have added, in words, appended */
void exec_upgrade_exports_changes(strList ***tail);

/* exec_upgrade_exports_configuration: the commands for it, appended */
void exec_upgrade_exports_configuration(ExecUpgradeCommandList ***tail);

/* Block accounting: what a drive has counted, and how */
ExecUpgradeAccounting *exec_upgrade_accounting_save(BlockBackend *blk);
void exec_upgrade_accounting_load(const ExecUpgradeAccounting *a,
                                  BlockBackend *blk);

/**
 * exec_upgrade_block_node_check: append why a block node can't be opened again
 * @bs: the node, with a driver
 * @blockers: the list
 */
void exec_upgrade_block_node_check(BlockDriverState *bs, strList **blockers);

/**
 * exec_upgrade_block_graph_check: append which block nodes would not find who
 * uses them, or where
 * @blockers: the list
 */
void exec_upgrade_block_graph_check(strList **blockers);

/**
 * exec_upgrade_block_graph_save: put all block nodes into the handoff
 * @h: the handoff
 */
void exec_upgrade_block_graph_save(ExecUpgradeHandoff *h);

/*
 * exec_upgrade_block_note: note nodes and drives as what the command line
 * makes, or take over what an earlier process has noted
 * exec_upgrade_block_note_save: hand that to the next process
 * exec_upgrade_block_changes: what differs from it, in words
 */
void exec_upgrade_block_note(void);
void exec_upgrade_block_note_save(ExecUpgradeHandoff *h);
strList *exec_upgrade_block_changes(void);

/* Calls @func for each block node, children first */
void exec_upgrade_block_nodes_walk(void (*func)(BlockDriverState *bs,
                                                void *opaque), void *opaque);

/* What a node would have to be opened with now; the caller frees it */
QDict *exec_upgrade_block_node_options(BlockDriverState *bs);

/*
 * Name of a drive or its device, which the caller frees; NULL for a drive that
 * belongs to neither a device nor the user
 */
char *exec_upgrade_drive_name(BlockBackend *blk);

/* exec_upgrade_block_configuration: blockdev-add for each node, appended */
void exec_upgrade_block_configuration(ExecUpgradeCommandList ***tail);

/* The name of a node as a user could give it; the caller frees it */
char *exec_upgrade_node_name_public(const BlockDriverState *bs);

/**
 * exec_upgrade_block_graph_load: machine complete: check that there are
 * exactly the block nodes that there were
 * @h: the handoff
 * @errp: error, which names the first difference
 */
bool exec_upgrade_block_graph_load(const ExecUpgradeHandoff *h, Error **errp);

/**
 * exec_upgrade_bitmap_check: append which dirty bitmaps can't be carried
 * @bs: the block node that has them
 * @blockers: the list
 */
void exec_upgrade_bitmap_check(BlockDriverState *bs, strList **blockers);

/* Dirty bitmaps that are not persistent, for the block stage */
bool exec_upgrade_bitmaps_save(ExecUpgradeHandoff *h, Error **errp);
void exec_upgrade_bitmaps_undo(void);
bool exec_upgrade_bitmaps_load(const ExecUpgradeHandoff *h, Error **errp);

/* Drives, likewise; exec_upgrade_drives_load() can't fail */
void exec_upgrade_drive_check(strList **blockers);
void exec_upgrade_drives_save(ExecUpgradeHandoff *h);
bool exec_upgrade_drives_compare(const ExecUpgradeHandoff *h, Error **errp);
void exec_upgrade_drives_load(const ExecUpgradeHandoff *h);

/**
 * exec_upgrade_configuration_note: note the configuration as what the command
 * line builds, to find what changed since
 */
void exec_upgrade_configuration_note(void);

/* exec_upgrade_configuration_noted: whether that was done */
bool exec_upgrade_configuration_noted(void);

/* exec_upgrade_configuration_removed: what of the command line is gone */
ExecUpgradeLedgerNameList *exec_upgrade_configuration_removed(void);

/*
 * The ledger of what commands have made
 */

/*
 * exec_upgrade_device_name: a device's id, or its QOM path if it has none; the
 * caller frees it
 */
char *exec_upgrade_device_name(DeviceState *dev);

/* Whether @list has a name, and to add one that it does not have */
bool exec_upgrade_ledger_names_have(const ExecUpgradeLedgerNameList *list,
                                    ExecUpgradeLedgerKind kind,
                                    const char *id);
void exec_upgrade_ledger_names_add(ExecUpgradeLedgerNameList **list,
                                   ExecUpgradeLedgerKind kind, const char *id);

/* exec_upgrade_ledger_has: whether it has @obj, or what it is a part of */
bool exec_upgrade_ledger_has(Object *obj);
bool exec_upgrade_ledger_has_netdev(const char *id);

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

/* Takes the ownership of @arguments */
void exec_upgrade_command_append(ExecUpgradeCommandList ***tail,
                                 const char *execute, QDict *arguments);

/* exec_upgrade_properties_find: what qom-set may have set, as it is now */
ExecUpgradePropertyList *exec_upgrade_properties_find(Error **errp);

/**
 * exec_upgrade_ledger_add_netdev: a network backend was made
 * @netdev: its options
 */
void exec_upgrade_ledger_add_netdev(const Netdev *netdev);

/**
 * exec_upgrade_ledger_add_chardev: a character device is being made
 * @chr: the character device, which has its label
 * @backend: its options, or NULL
 */
struct ChardevBackend;
void exec_upgrade_ledger_add_chardev(Chardev *chr,
                                     const struct ChardevBackend *backend);

/* The arguments that this process was started with, NULL-terminated */
char **exec_upgrade_argv(void);

/**
 * exec_upgrade_arguments_check: check that a command line makes what there is
 * @argv: the command line, NULL-terminated
 * @blockers: appended to is why it would not
 * @errp: error, if it can't be parsed
 */
bool exec_upgrade_arguments_check(char **argv, strList **blockers,
                                  Error **errp);

/* This QEMU's version as ExecUpgradeResult shows it; the caller frees it */
char *exec_upgrade_version(void);

/*
 * Monitors
 */

/**
 * exec_upgrade_monitor_hold: stop the thread that serves QMP monitors
 *
 * Until as many exec_upgrade_monitor_release(), nothing is read from or
 * written to their connections but by the main thread.
 */
void exec_upgrade_monitor_hold(void);
void exec_upgrade_monitor_release(void);

/**
 * exec_upgrade_monitor_ask: an HMP monitor's user asks for an upgrade
 * @mon: the monitor, in one of its commands
 *
 * Returns when no QMP command is being executed, except one that @mon is a
 * part of; or after a second, for the check to refuse.  Followed by
 * exec_upgrade_monitor_ask_done() if the upgrade fails.
 */
void exec_upgrade_monitor_ask(Monitor *mon);
void exec_upgrade_monitor_ask_done(Monitor *mon);

/**
 * exec_upgrade_monitor_reply: answer the client that asked for the upgrade
 * @h: the handoff
 * @result: what was done
 *
 * Once, in the new process, when the guest goes on.  Answers nobody if the
 * client has gone.
 */
void exec_upgrade_monitor_reply(const ExecUpgradeHandoff *h,
                                ExecUpgradeResult *result);

/**
 * exec_upgrade_monitor_go_on: let the monitors' thread go on
 *
 * Not before everything is said that the clients there were are to hear: if
 * one of them is gone, the thread accepts the next one in its place, who must
 * get neither the reply nor, before a greeting, the event.
 */
void exec_upgrade_monitor_go_on(void);

/**
 * exec_upgrade_monitor_result_text: describe a result to a human
 * @result: the result
 *
 * Returns lines of text, which the caller frees.
 */
char *exec_upgrade_monitor_result_text(const ExecUpgradeResult *result);

/*
 * RAM, in softmmu/physmem-exec-upgrade.c.inc
 */
void exec_upgrade_ram_check(strList **blockers);
bool exec_upgrade_ram_save(ExecUpgradeHandoff *h, Error **errp);
bool exec_upgrade_ram_load(const ExecUpgradeHandoff *h, Error **errp);

/*
 * Device state, in migration/savevm-exec-upgrade.c.inc and
 * migration/migration-exec-upgrade.c.inc
 */
int exec_upgrade_device_state_save(QEMUFile *f);
int exec_upgrade_device_state_load(QEMUFile *f);
ExecUpgradeStateIdsList *exec_upgrade_state_ids_save(void);
void exec_upgrade_state_ids_load(const ExecUpgradeStateIdsList *list);
void exec_upgrade_device_state_check(strList **blockers);
bool exec_upgrade_device_state_has(Object *obj);
void exec_upgrade_migration_check(strList **blockers);

/*
 * qtest, in softmmu/qtest-exec-upgrade.c.inc
 */
void exec_upgrade_qtest_check(strList **blockers);
bool exec_upgrade_qtest_save(ExecUpgradeHandoff *h, Error **errp);
bool exec_upgrade_qtest_load(const ExecUpgradeHandoff *h, Error **errp);

#endif
