/*
 * Exec-upgrade: NICs whose network backend was deleted
 *
 * Such a NIC keeps its peer, which does nothing any more: what the NIC has
 * told the guest depends on what the peer could do.  The new process makes the
 * NIC with a backend that can do the same and carries nothing, and deletes
 * that as netdev_del would.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "hw/qdev-core.h"
#include "hw/qdev-properties.h"
#include "hw/qdev-properties-system.h"
#include "migration/exec-upgrade.h"
#include "net/net.h"
#include "qapi/error.h"
#include "qapi/qmp/qdict.h"
#include "migration/exec-upgrade/ledger/ledger.h"

/* A name that no user can give; there is never more than one at a time */
#define LOST_PEER_NAME "#lost-peer"

typedef struct LostPeer {
    NetClientState nc;
    bool vnet_hdr;
    bool ufo;
} LostPeer;

/* Of the device that is being made now */
static const ExecUpgradeLedgerLostPeer *making;

/*
 * The backend
 */

static ssize_t lost_receive(NetClientState *nc, const uint8_t *buf,
                            size_t size)
{
    return size;
}

static bool lost_has_ufo(NetClientState *nc)
{
    return container_of(nc, LostPeer, nc)->ufo;
}

static bool lost_has_vnet_hdr(NetClientState *nc)
{
    return container_of(nc, LostPeer, nc)->vnet_hdr;
}

static bool lost_has_vnet_hdr_len(NetClientState *nc, int len)
{
    return lost_has_vnet_hdr(nc);
}

static NetClientInfo lost_peer_info = {
    .type = NET_CLIENT_DRIVER_NONE,
    .size = sizeof(LostPeer),
    .receive = lost_receive,
    .has_ufo = lost_has_ufo,
    .has_vnet_hdr = lost_has_vnet_hdr,
    .has_vnet_hdr_len = lost_has_vnet_hdr_len,
};

/*
 * Which NIC has lost its peer
 */

static NICPeers *property_peers(Object *obj)
{
    for (ObjectClass *oc = object_get_class(obj);
         oc && object_class_dynamic_cast(oc, TYPE_DEVICE);
         oc = object_class_get_parent(oc)) {
        for (Property *prop = DEVICE_CLASS(oc)->props_; prop && prop->name;
             prop++) {
            if (prop->info == &qdev_prop_netdev) {
                return object_field_prop_ptr(obj, prop);
            }
        }
    }
    return NULL;
}

/* A NIC's peers if they were deleted, or NULL */
static NICPeers *lost_peers(Object *obj)
{
    NICPeers *peers = object_dynamic_cast(obj, TYPE_DEVICE)
                      ? property_peers(obj) : NULL;
    NetClientState *peer = peers ? peers->ncs[0] : NULL;

    return peer && peer->peer &&
           peer->peer->info->type == NET_CLIENT_DRIVER_NIC &&
           qemu_get_nic(peer->peer)->peer_deleted ? peers : NULL;
}

/* The device that the user has made with a NIC in it, or NULL */
static DeviceState *user_device(Object *obj)
{
    for (; obj; obj = obj->parent) {
        DeviceState *dev = (DeviceState *)object_dynamic_cast(obj, TYPE_DEVICE);

        if (dev && dev->opts && qdict_haskey(dev->opts, "netdev")) {
            return dev;
        }
    }
    return NULL;
}

static int add_lost_peer(Object *obj, void *opaque)
{
    ExecUpgradeLedgerLostPeerList **list = opaque;
    NICPeers *peers = lost_peers(obj);
    DeviceState *dev = user_device(obj);
    ExecUpgradeLedgerLostPeer *p;

    if (peers && dev) {
        p = g_new0(ExecUpgradeLedgerLostPeer, 1);
        p->device = exec_upgrade_device_name(dev);
        p->name = g_strdup(peers->ncs[0]->name);
        p->queues = peers->queues;
        p->vnet_hdr = qemu_has_vnet_hdr(peers->ncs[0]);
        p->ufo = qemu_has_ufo(peers->ncs[0]);
        QAPI_LIST_PREPEND(*list, p);
    }
    return 0;
}

ExecUpgradeLedgerLostPeerList *exec_upgrade_lost_peers_save(void)
{
    ExecUpgradeLedgerLostPeerList *list = NULL;

    object_child_foreach_recursive(qdev_get_machine(), add_lost_peer, &list);
    return list;
}

static int find_lost_peer(Object *obj, void *opaque)
{
    return lost_peers(obj) != NULL;
}

bool exec_upgrade_lost_peer_has(DeviceState *dev)
{
    return lost_peers(OBJECT(dev)) ||
           object_child_foreach_recursive(OBJECT(dev), find_lost_peer, NULL);
}

/* Whether a device has those peers, and the user has made it */
static int is_users(Object *obj, void *peers)
{
    return lost_peers(obj) == peers && user_device(obj);
}

void exec_upgrade_lost_peers_check(strList **blockers)
{
    int count = qemu_find_net_clients_except(NULL, NULL,
                                             NET_CLIENT_DRIVER__MAX, 0);
    g_autofree NetClientState **clients = g_new0(NetClientState *, count);

    qemu_find_net_clients_except(NULL, clients, NET_CLIENT_DRIVER__MAX, count);
    for (int i = 0; i < count; i++) {
        NICState *nic = clients[i]->info->type == NET_CLIENT_DRIVER_NIC
                        ? qemu_get_nic(clients[i]) : NULL;

        if (!nic || clients[i]->queue_index || !nic->peer_deleted) {
            continue;
        }
        if (!object_child_foreach_recursive(qdev_get_machine(), is_users,
                                            &nic->conf->peers)) {
            exec_upgrade_add_blocker(blockers, "the network backend of '%s' "
                                     "was removed after start, and no -device "
                                     "or device_add has made that NIC",
                                     clients[i]->name);
        }
    }
}

/*
 * The new process
 */

bool exec_upgrade_lost_peer_make(const ExecUpgradeLedger *before,
                                 const char *name, Error **errp)
{
    const ExecUpgradeLedgerLostPeerList *l = before ? before->lost_peers
                                                    : NULL;

    while (l && strcmp(l->value->device, name)) {
        l = l->next;
    }
    if (!l) {
        return true;
    }
    if (!l->value->queues || l->value->queues > MAX_QUEUE_NUM) {
        error_setg(errp, "exec-upgrade: device '%s' has lost a network backend "
                   "of %" PRIu32 " queues, expected 1 to %d", name,
                   l->value->queues, MAX_QUEUE_NUM);
        return false;
    }
    making = l->value;
    for (uint32_t i = 0; i < making->queues; i++) {
        NetClientState *nc = qemu_new_net_client(&lost_peer_info, NULL, "lost",
                                                 LOST_PEER_NAME);
        LostPeer *peer = container_of(nc, LostPeer, nc);

        peer->vnet_hdr = making->vnet_hdr;
        peer->ufo = making->ufo;
    }
    return true;
}

void exec_upgrade_netdev_resolve(char **name)
{
    if (making) {
        g_free(*name);
        *name = g_strdup(LOST_PEER_NAME);
    }
}

void exec_upgrade_lost_peer_delete(void)
{
    NetClientState *peers[MAX_QUEUE_NUM];
    bool made;
    int queues;

    if (!making) {
        return;
    }
    queues = qemu_find_net_clients_except(LOST_PEER_NAME, peers,
                                          NET_CLIENT_DRIVER_NIC, MAX_QUEUE_NUM);
    made = peers[0]->peer;
    qemu_del_net_client(peers[0]);
    /* The NIC has them still */
    for (int i = 0; i < queues && made; i++) {
        g_free(peers[i]->name);
        peers[i]->name = g_strdup(making->name);
    }
    making = NULL;
}
