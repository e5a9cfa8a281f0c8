/*
 * Exec-upgrade: character devices
 *
 * What each class of character devices tells about itself, so that its
 * devices can be carried across.  See docs/devel/exec-upgrade.rst.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef CHAR_EXEC_UPGRADE_H
#define CHAR_EXEC_UPGRADE_H

#include "chardev/char.h"
#include "qapi/qapi-types-exec-upgrade.h"

/**
 * ChardevExecUpgrade: how the devices of a class are carried across
 *
 * A class has it as its member exec_upgrade; those derived from it inherit it.
 * Any function may be NULL.  With none, a device is built as at every start.
 * Devices of a class without it are refused.
 *
 * @check: append to @blockers why @chr can't be carried
 * @save: put what @chr has into @record, and leave @chr as it is
 * @close: end a connection that can't be carried.  Returns what it was, for
 *         the caller to free, or NULL if there is none.
 * @open: in the place of ChardevClass's open: take over what @record names.
 *        @be_opened is true at first.  Returns false with an error.
 * @load: all front-ends are attached, nothing runs yet
 * @commit: the guest goes on; act on what is outside again
 */
typedef struct ChardevExecUpgrade {
    void (*check)(Chardev *chr, strList **blockers);
    bool (*save)(Chardev *chr, ExecUpgradeChardev *record, Error **errp);
    char *(*close)(Chardev *chr);
    bool (*open)(Chardev *chr, ChardevBackend *backend,
                 const ExecUpgradeChardev *record, bool *be_opened,
                 Error **errp);
    bool (*load)(Chardev *chr, const ExecUpgradeChardev *record,
                 Error **errp);
    void (*commit)(Chardev *chr, const ExecUpgradeChardev *record);
} ChardevExecUpgrade;

extern const ChardevExecUpgrade exec_upgrade_chardev_fd;
extern const ChardevExecUpgrade exec_upgrade_chardev_msmouse;
extern const ChardevExecUpgrade exec_upgrade_chardev_mux;
extern const ChardevExecUpgrade exec_upgrade_chardev_pty;
extern const ChardevExecUpgrade exec_upgrade_chardev_rebuild;
extern const ChardevExecUpgrade exec_upgrade_chardev_ringbuf;
extern const ChardevExecUpgrade exec_upgrade_chardev_socket;
extern const ChardevExecUpgrade exec_upgrade_chardev_stdio;
extern const ChardevExecUpgrade exec_upgrade_chardev_udp;

/**
 * exec_upgrade_chardev_open: open a character device that is carried
 * @chr: the device, with its label set
 * @backend: its options
 * @be_opened: set to whether the other side is connected
 * @errp: error
 *
 * Returns false if @chr is not carried, so that it is opened as usual.
 */
bool exec_upgrade_chardev_open(Chardev *chr, ChardevBackend *backend,
                               bool *be_opened, Error **errp);

/**
 * exec_upgrade_ledger_add_chardev: a character device is being made
 * @chr: the character device, which has its label
 * @backend: its options, or NULL
 */
void exec_upgrade_ledger_add_chardev(Chardev *chr,
                                     const ChardevBackend *backend);

/**
 * exec_upgrade_chardev_record: what the previous process wrote about a device
 * @chr: the device
 *
 * Returns NULL if @chr is not carried.
 */
const ExecUpgradeChardev *exec_upgrade_chardev_record(Chardev *chr);

/**
 * exec_upgrade_chardev_socket_adopt: take over listeners and connection
 * @chr: a socket, with its options set, but neither listening nor connected
 * @reconnect: seconds until a client connects again, 0 for never
 * @errp: error
 *
 * Returns false if @chr is not carried, so that it is opened as usual.
 */
bool exec_upgrade_chardev_socket_adopt(Chardev *chr, int64_t reconnect,
                                       Error **errp);

/**
 * exec_upgrade_fd_chr_save: what an FDChardev has
 */
bool exec_upgrade_fd_chr_save(Chardev *chr, ExecUpgradeChardev *record,
                              Error **errp);

/**
 * exec_upgrade_fd_chr_open: give an FDChardev what it had
 */
bool exec_upgrade_fd_chr_open(Chardev *chr, ChardevBackend *backend,
                              const ExecUpgradeChardev *record,
                              bool *be_opened, Error **errp);

#endif
