/*
 * Exec-upgrade: network backends
 *
 * What QEMU's network code calls, and what the parts that lie beside each
 * backend offer to migration/exec-upgrade/carry/net.c.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef NET_EXEC_UPGRADE_H
#define NET_EXEC_UPGRADE_H

#include "net/filter.h"
#include "net/net.h"
#include "qapi/qapi-types-exec-upgrade.h"

/*
 * Hooks
 */

typedef int ExecUpgradeNetInit(const Netdev *netdev, const char *name,
                               NetClientState *peer, Error **errp);

/**
 * exec_upgrade_net_init: create a network backend, or adopt it
 * @init: how it is created when there is nothing to adopt
 * @netdev: its options
 * @peer: net client to connect it to, or NULL
 * @errp: error
 *
 * Returns a negative number on failure.
 */
int exec_upgrade_net_init(ExecUpgradeNetInit *init, const Netdev *netdev,
                          NetClientState *peer, Error **errp);

/**
 * exec_upgrade_ledger_add_netdev: a network backend was made
 * @netdev: its options
 */
void exec_upgrade_ledger_add_netdev(const Netdev *netdev);

/**
 * exec_upgrade_netdev_removed: whether a network backend of the command line
 * was deleted since, so that it is not created
 * @id: its id
 */
bool exec_upgrade_netdev_removed(const char *id);

/**
 * exec_upgrade_netdevs_build: create the network backends that commands have
 * added
 *
 * After those of the command line, whose device state is numbered.  Exits if
 * that fails.
 */
void exec_upgrade_netdevs_build(void);

/**
 * exec_upgrade_net_complete_packets: the guest was stopped: complete what is
 * queued for a net client
 * @nc: the net client
 *
 * As qemu_flush_or_purge_queued_packets() does, except that a packet of which
 * a stream has sent a part is kept: without its rest, the other side would
 * take what follows for a part of it.
 */
void exec_upgrade_net_complete_packets(NetClientState *nc);

/**
 * exec_upgrade_filter_dump_setup: start a dump, or go on with it
 * @nf: the filter
 * @errp: error
 *
 * A file that is adopted keeps what has been written to it.
 */
void exec_upgrade_filter_dump_setup(NetFilterState *nf, Error **errp);

/*
 * Beside each backend
 */

/**
 * ExecUpgradeNetBackend: how one kind of net client is carried
 *
 * @type: the kind
 * @check: append to @blockers why it can't be carried now
 * @save: put what is carried into @c
 * @drop: connections that can't be carried: name them in @h
 * @adopt: create the client from what @c says.  Must neither change the state
 *         of a carried descriptor, nor read from it.
 * @commit: the guest goes on in this process
 * @partly_sent: whether a part of the first packet that is queued for this
 *               client has been sent
 */
typedef struct ExecUpgradeNetBackend {
    NetClientDriver type;
    void (*check)(NetClientState *nc, strList **blockers);
    bool (*save)(NetClientState *nc, ExecUpgradeNetClient *c, Error **errp);
    void (*drop)(NetClientState *nc, ExecUpgradeHandoff *h);
    bool (*adopt)(const ExecUpgradeNetClient *c, const Netdev *netdev,
                  NetClientState *peer, Error **errp);
    void (*commit)(NetClientState *nc, const ExecUpgradeNetClient *c);
    bool (*partly_sent)(NetClientState *nc);
} ExecUpgradeNetBackend;

extern const ExecUpgradeNetBackend exec_upgrade_net_tap;
extern const ExecUpgradeNetBackend exec_upgrade_net_socket;
extern const ExecUpgradeNetBackend exec_upgrade_net_stream;
extern const ExecUpgradeNetBackend exec_upgrade_net_dgram;
extern const ExecUpgradeNetBackend exec_upgrade_net_user;
extern const ExecUpgradeNetBackend exec_upgrade_net_l2tpv3;

/**
 * exec_upgrade_net_receive_save: note what was received of a packet that is
 * not complete
 * @rs: where it is received
 *
 * Returns what exec_upgrade_net_receive_load() takes.
 */
ExecUpgradeNetReceive *exec_upgrade_net_receive_save(const SocketReadState *rs);

/**
 * exec_upgrade_net_receive_load: go on receiving a packet
 * @rs: where it is received, initialized
 * @r: what exec_upgrade_net_receive_save() returned
 * @errp: error
 */
bool exec_upgrade_net_receive_load(SocketReadState *rs,
                                   const ExecUpgradeNetReceive *r,
                                   Error **errp);

/**
 * exec_upgrade_net_queue_save: list the packets that a queue holds
 * @queue: the queue
 *
 * Their senders are told that they are sent, so that no device has one in
 * flight when its state is saved.  The packets stay in the queue.
 */
ExecUpgradeNetPacketList *exec_upgrade_net_queue_save(NetQueue *queue);

/**
 * exec_upgrade_net_queue_release_first: tell the sender of the first packet
 * that it is sent, and keep it
 * @queue: the queue
 */
void exec_upgrade_net_queue_release_first(NetQueue *queue);

/**
 * exec_upgrade_filter_dump_save: note where a filter dumps packets to
 * @nf: a filter of type filter-dump
 */
ExecUpgradeNetDump *exec_upgrade_filter_dump_save(NetFilterState *nf);

#endif
