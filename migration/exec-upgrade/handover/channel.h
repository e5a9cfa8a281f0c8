/*
 * Exec-upgrade: messages between the process and its stand-in
 *
 *     source                         stand-in
 *                                    ready: built from the plan
 *     descriptors, …, state
 *                                    loaded
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef EXEC_UPGRADE_CHANNEL_H
#define EXEC_UPGRADE_CHANNEL_H

#include "qapi/qapi-builtin-types.h"

/* Descriptors in a message; the kernel takes 253, see unix(7) */
#define EXEC_UPGRADE_MESSAGE_FDS 200

/**
 * ExecUpgradeMessageType: what a message says
 *
 * @EXEC_UPGRADE_MESSAGE_END: nothing is sent: the other process has ended
 * @EXEC_UPGRADE_MESSAGE_READY: the machine is built; text has the version
 * @EXEC_UPGRADE_MESSAGE_DESCRIPTORS: some of those that the state names
 * @EXEC_UPGRADE_MESSAGE_STATE: all were sent; has the handoff's
 * @EXEC_UPGRADE_MESSAGE_LOADED: the state was loaded
 */
typedef enum ExecUpgradeMessageType {
    EXEC_UPGRADE_MESSAGE_END,
    EXEC_UPGRADE_MESSAGE_READY,
    EXEC_UPGRADE_MESSAGE_DESCRIPTORS,
    EXEC_UPGRADE_MESSAGE_STATE,
    EXEC_UPGRADE_MESSAGE_LOADED,
} ExecUpgradeMessageType;

/**
 * ExecUpgradeMessage: a message as it is sent
 *
 * @type: what it says
 * @count: how many descriptors come with it
 * @numbers: those that they have in the process that sends them
 * @text: NUL-terminated
 */
typedef struct ExecUpgradeMessage {
    uint32_t type;
    uint32_t count;
    int32_t numbers[EXEC_UPGRADE_MESSAGE_FDS];
    char text[256];
} ExecUpgradeMessage;

/* exec_upgrade_channel_send: send a message without descriptors */
bool exec_upgrade_channel_send(int sock, ExecUpgradeMessageType type,
                               const char *text, Error **errp);

/**
 * exec_upgrade_channel_send_state: send the state and what it names
 * @sock: the socket
 * @state_fd: descriptor of the handoff, which stays the caller's
 * @carried: the descriptors that it names
 * @errp: error
 */
bool exec_upgrade_channel_send_state(int sock, int state_fd,
                                     const intList *carried, Error **errp);

/**
 * exec_upgrade_channel_receive: wait for a message
 * @sock: the socket
 * @deadline: until when, in microseconds of CLOCK_MONOTONIC; 0 for ever
 * @m: gets the message
 * @fds: gets its @m->count descriptors, which become the caller's; has room
 *       for EXEC_UPGRADE_MESSAGE_FDS
 * @errp: error
 */
bool exec_upgrade_channel_receive(int sock, int64_t deadline,
                                  ExecUpgradeMessage *m, int *fds,
                                  Error **errp);

#endif
