/*
 * Exec-upgrade: what all that is carried stands on
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef EXEC_UPGRADE_CORE_H
#define EXEC_UPGRADE_CORE_H

#include "migration/exec-upgrade.h"
#include "qapi/qapi-types-exec-upgrade.h"

/* Format of the handoff that this QEMU writes, and the oldest that it reads */
#define EXEC_UPGRADE_FORMAT     6
#define EXEC_UPGRADE_FORMAT_MIN 6

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
 *        With @h->plan, the guest runs, and what changes while it does may be
 *        left out: a stand-in is built from it.
 * @undo: guest paused, the upgrade is given up: the reverse of @save.  Called
 *        only if @save succeeded.
 * @close: nothing more can fail but execve(2) itself: end connections that
 *         can't be carried, and name them in @h->dropped.
 * @build: new process, machine complete, nothing runs yet: make what @h has
 *         and the command line does not.
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
    bool (*build)(const ExecUpgradeHandoff *h, Error **errp);
    bool (*load)(const ExecUpgradeHandoff *h, Error **errp);
    void (*commit)(const ExecUpgradeHandoff *h);
} ExecUpgradeStage;

/*
 * What the user is told
 */

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

/*
 * exec_upgrade_device_name: a device's id, or its QOM path if it has none; the
 * caller frees it
 */
char *exec_upgrade_device_name(DeviceState *dev);

/* Takes the ownership of @arguments */
void exec_upgrade_command_append(ExecUpgradeCommandList ***tail,
                                 const char *execute, QDict *arguments);

/*
 * The handoff
 */

/**
 * exec_upgrade_handoff: what the previous process left
 *
 * Returns the handoff while this process is adopting it, NULL otherwise.
 */
const ExecUpgradeHandoff *exec_upgrade_handoff(void);

/*
 * exec_upgrade_handoff_set: what that returns from now on: what the previous
 * process left, or NULL when the guest can go on
 */
void exec_upgrade_handoff_set(const ExecUpgradeHandoff *h);

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

/* This QEMU's version as ExecUpgradeResult shows it; the caller frees it */
char *exec_upgrade_version(void);

/*
 * Descriptors
 */

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

/**
 * exec_upgrade_fds_received: descriptors came from the other process
 * @numbers: those that they have there, and that documents name
 * @fds: those that they have here
 * @n: how many
 *
 * exec_upgrade_fd_adopt() takes these from now on.
 */
void exec_upgrade_fds_received(const int *numbers, const int *fds, int n);

/**
 * exec_upgrade_fds_on_adopt: learn of each descriptor that is taken over
 * @func: called with its number
 */
void exec_upgrade_fds_on_adopt(void (*func)(int fd));

/**
 * exec_upgrade_fds_close_rest: close what was carried and not adopted
 * @h: the handoff
 *
 * With other arguments than before, something may have no owner any more.
 * What the launcher left open for us stays, as in any start.
 */
void exec_upgrade_fds_close_rest(const ExecUpgradeHandoff *h);

/* exec_upgrade_fds_carried: what exec_upgrade_fds_inherit() is to clear */
intList *exec_upgrade_fds_carried(void);

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
 * exec_upgrade_listener_carried: have qio_net_listener_open_sync() take over
 * @fds from now on, or listen if NULL
 */
void exec_upgrade_listener_carried(const ExecUpgradeFdList *fds);

/*
 * How this process was started
 */

/**
 * exec_upgrade_launch_note: note the command line and working folder
 * @argv: the command line, NULL-terminated
 */
void exec_upgrade_launch_note(char **argv);

/* The arguments that this process was started with, NULL-terminated */
char **exec_upgrade_argv(void);

/**
 * exec_upgrade_cwd: the folder in which the command line was given,
 * as a descriptor for openat(2) that stays the core's
 */
int exec_upgrade_cwd(void);

/* exec_upgrade_cwd_set: it is another one; @fd becomes the core's */
void exec_upgrade_cwd_set(int fd);

/*
 * Binaries
 */

/**
 * exec_upgrade_binary_path: path of the file that this process was started
 * from, or what now has its place
 *
 * Returns a string that the caller frees, or NULL with an error.
 */
char *exec_upgrade_binary_path(Error **errp);

/**
 * exec_upgrade_binary_check: check that a file is a QEMU that can take over
 * this guest
 * @fd: the file, open for reading
 * @path: its path
 * @errp: error
 */
bool exec_upgrade_binary_check(int fd, const char *path, Error **errp);

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

/* Name of the emulation target, "x86_64"; as found in the handoff note */
extern const char exec_upgrade_target[];

#endif
