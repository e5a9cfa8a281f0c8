/*
 * Exec-upgrade: network backends
 *
 * Descriptors stay open, with what lies between the guest and them: queues
 * that are attached, headers, packets of which a part has gone.  The code for
 * each backend is beside it, in net/.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "migration/exec-upgrade/carry/carry.h"
#include "net/exec-upgrade.h"
#include "net/filter.h"
#include "net/net.h"
#include "net/vhost_net.h"
#include "qapi/error.h"
#include "qom/object_interfaces.h"
#include "migration/exec-upgrade/trace.h"

static const ExecUpgradeNetBackend *const backends[] = {
    &exec_upgrade_net_tap,
    &exec_upgrade_net_socket,
    &exec_upgrade_net_stream,
    &exec_upgrade_net_dgram,
#ifdef CONFIG_SLIRP
    &exec_upgrade_net_user,
#endif
#ifdef CONFIG_L2TPV3
    &exec_upgrade_net_l2tpv3,
#endif
};

/* Filters that hold no packet and no half of one */
static const char *const stateless_filters[] = {
    "filter-dump",
    "filter-mirror",
};

static const ExecUpgradeNetBackend *backend_find(NetClientDriver type)
{
    for (int i = 0; i < ARRAY_SIZE(backends); i++) {
        if (backends[i]->type == type) {
            return backends[i];
        }
    }
    return NULL;
}

/* All net clients in the order of their creation; elements are not owned */
static GPtrArray *net_clients_list(void)
{
    int n = qemu_find_net_clients_except(NULL, NULL, NET_CLIENT_DRIVER__MAX, 0);
    GPtrArray *list = g_ptr_array_sized_new(n);

    g_ptr_array_set_size(list, n);
    qemu_find_net_clients_except(NULL, (NetClientState **)list->pdata,
                                 NET_CLIENT_DRIVER__MAX, n);
    return list;
}

static bool name_equal(const char *a, const char *b)
{
    size_t len = strlen(a);

    if (a[0] == '#' && len > 3) {
        /* id_generate() lets it end in two random digits */
        return strlen(b) == len && !strncmp(a, b, len - 2);
    }
    return !strcmp(a, b);
}

/* How many of the clients before @list[@i] are queues of the same */
static uint32_t queue_number(GPtrArray *list, int i)
{
    NetClientState *nc = g_ptr_array_index(list, i);
    uint32_t queue = 0;

    while (i--) {
        NetClientState *other = g_ptr_array_index(list, i);

        queue += other->info->type == nc->info->type &&
                 !strcmp(other->name, nc->name);
    }
    return queue;
}

static const ExecUpgradeNetClient *client_find(const ExecUpgradeNet *net,
                                               NetClientDriver type,
                                               const char *name,
                                               uint32_t queue)
{
    for (ExecUpgradeNetClientList *l = net->clients; l; l = l->next) {
        const ExecUpgradeNetClient *c = l->value;

        if (c->type == type && c->queue == queue &&
            name_equal(c->name, name)) {
            return c;
        }
    }
    return NULL;
}

static const ExecUpgradeNetClient *client_of(const ExecUpgradeNet *net,
                                             GPtrArray *list, int i)
{
    NetClientState *nc = g_ptr_array_index(list, i);

    return client_find(net, nc->info->type, nc->name, queue_number(list, i));
}

static void check_filter(Object *obj, strList **blockers)
{
    const char *type = object_get_typename(obj);

    for (int i = 0; i < ARRAY_SIZE(stateless_filters); i++) {
        if (!strcmp(type, stateless_filters[i])) {
            return;
        }
    }
    exec_upgrade_add_blocker(blockers, "%s '%s' can't be carried", type,
                             object_get_canonical_path_component(obj));
}

static int check_object(Object *obj, void *opaque)
{
    if (object_dynamic_cast(obj, "colo-compare")) {
        check_filter(obj, opaque);
    }
    return 0;
}

static void net_check(strList **blockers)
{
    g_autoptr(GPtrArray) list = net_clients_list();

    for (int i = 0; i < list->len; i++) {
        NetClientState *nc = g_ptr_array_index(list, i);
        const ExecUpgradeNetBackend *b = backend_find(nc->info->type);
        const char *type = NetClientDriver_str(nc->info->type);
        NetFilterState *nf;

        QTAILQ_FOREACH(nf, &nc->filters, next) {
            check_filter(OBJECT(nf), blockers);
        }
        if (queue_number(list, i)) {
            continue;
        }
        switch (nc->info->type) {
        case NET_CLIENT_DRIVER_NIC:
        case NET_CLIENT_DRIVER_HUBPORT:
            break;
        default:
            if (get_vhost_net(nc)) {
                exec_upgrade_add_blocker(blockers, "netdev '%s' (%s) uses "
                                         "vhost, which can't be carried",
                                         nc->name, type);
            } else if (!b) {
                exec_upgrade_add_blocker(blockers, "netdev '%s' (%s) can't be "
                                         "carried", nc->name, type);
            } else if (b->check) {
                b->check(nc, blockers);
            }
        }
    }
    object_child_foreach(object_get_objects_root(), check_object, blockers);
}

ExecUpgradeNetReceive *exec_upgrade_net_receive_save(const SocketReadState *rs)
{
    ExecUpgradeNetReceive *r = g_new0(ExecUpgradeNetReceive, 1);

    r->state = rs->state;
    r->length = rs->packet_len;
    r->data = g_base64_encode(rs->buf, rs->index);
    return r;
}

bool exec_upgrade_net_receive_load(SocketReadState *rs,
                                   const ExecUpgradeNetReceive *r,
                                   Error **errp)
{
    gsize len;
    g_autofree guchar *data = g_base64_decode(r->data, &len);
    /* The length has four bytes, and a part is never complete */
    size_t max = r->state ? MIN(r->length, sizeof(rs->buf)) : 4;

    if ((r->state != 0 && r->state != 2) || (len && len >= max)) {
        error_setg(errp, "exec-upgrade: expected a part of a packet, found "
                   "%zu bytes in state %" PRIu32, len, r->state);
        return false;
    }
    rs->state = r->state;
    rs->packet_len = r->length;
    rs->index = len;
    memcpy(rs->buf, data, len);
    return true;
}

void exec_upgrade_net_complete_packets(NetClientState *nc)
{
    const ExecUpgradeNetBackend *b = backend_find(nc->info->type);

    if (b && b->partly_sent && b->partly_sent(nc)) {
        exec_upgrade_net_queue_release_first(nc->incoming_queue);
    } else {
        qemu_flush_or_purge_queued_packets(nc, true);
    }
}

static bool net_save(ExecUpgradeHandoff *h, Error **errp)
{
    g_autoptr(GPtrArray) list = net_clients_list();
    ExecUpgradeNetClientList **tail;
    ExecUpgradeNetDumpList **dumps;

    h->net = g_new0(ExecUpgradeNet, 1);
    h->has_net = true;
    tail = &h->net->clients;
    dumps = &h->net->dumps;

    for (int i = 0; i < list->len; i++) {
        NetClientState *nc = g_ptr_array_index(list, i);
        const ExecUpgradeNetBackend *b = backend_find(nc->info->type);
        ExecUpgradeNetClient *c = g_new0(ExecUpgradeNetClient, 1);
        NetFilterState *nf;

        QAPI_LIST_APPEND(tail, c);
        c->name = g_strdup(nc->name);
        c->type = nc->info->type;
        c->queue = queue_number(list, i);
        c->info = g_strdup(nc->info_str);
        c->link_down = nc->link_down;
        c->rx_filter_notify = nc->rxfilter_notify_enabled;
        c->packets = exec_upgrade_net_queue_save(nc->incoming_queue);
        if (b && !b->save(nc, c, errp)) {
            return false;
        }
        QTAILQ_FOREACH(nf, &nc->filters, next) {
            if (object_dynamic_cast(OBJECT(nf), "filter-dump")) {
                QAPI_LIST_APPEND(dumps, exec_upgrade_filter_dump_save(nf));
            }
        }
        trace_exec_upgrade_net_save(c->name, c->queue,
                                    NetClientDriver_str(c->type));
    }
    return true;
}

static void net_close(ExecUpgradeHandoff *h)
{
    g_autoptr(GPtrArray) list = net_clients_list();

    for (int i = 0; i < list->len; i++) {
        NetClientState *nc = g_ptr_array_index(list, i);
        const ExecUpgradeNetBackend *b = backend_find(nc->info->type);

        if (b && b->drop) {
            b->drop(nc, h);
        }
    }
}

/* Each queue of a backend has a client of its own, created in this order */
static int net_adopt(const ExecUpgradeNet *net, const Netdev *netdev,
                     NetClientDriver type, NetClientState *peer, Error **errp)
{
    const ExecUpgradeNetBackend *b = backend_find(type);
    const ExecUpgradeNetClient *c;
    g_autoptr(GPtrArray) list = NULL;

    for (uint32_t queue = 0;
         (c = client_find(net, type, netdev->id, queue)); queue++) {
        if (!b->adopt(c, netdev, peer, errp)) {
            return -1;
        }
        trace_exec_upgrade_net_adopt(c->name, c->queue,
                                     NetClientDriver_str(c->type));
    }

    list = net_clients_list();
    for (int i = 0; i < list->len; i++) {
        NetClientState *nc = g_ptr_array_index(list, i);

        if (nc->info->type == type && !strcmp(nc->name, netdev->id)) {
            c = client_of(net, list, i);
            nc->link_down = c->link_down;
            qemu_set_info_str(nc, "%s", c->info);
        }
    }
    return 0;
}

int exec_upgrade_net_init(ExecUpgradeNetInit *init, const Netdev *netdev,
                          NetClientState *peer, Error **errp)
{
    const ExecUpgradeHandoff *h = exec_upgrade_handoff();
    NetClientDriver type = netdev->type;

    if (type == NET_CLIENT_DRIVER_BRIDGE) {
        /* A tap that another program opens */
        type = NET_CLIENT_DRIVER_TAP;
    }
    if (h && h->has_net && backend_find(type) &&
        client_find(h->net, type, netdev->id, 0)) {
        return net_adopt(h->net, netdev, type, peer, errp);
    }
    return init(netdev, netdev->id, peer, errp);
}

static bool net_load(const ExecUpgradeHandoff *h, Error **errp)
{
    g_autoptr(GPtrArray) list = net_clients_list();

    for (int i = 0; h->has_net && i < list->len; i++) {
        NetClientState *nc = g_ptr_array_index(list, i);
        const ExecUpgradeNetClient *c = client_of(h->net, list, i);

        if (!c) {
            continue;
        }
        nc->link_down = c->link_down;
        nc->rxfilter_notify_enabled = c->rx_filter_notify;
    }
    return true;
}

static void packets_load(NetClientState *nc, const ExecUpgradeNetClient *c)
{
    for (ExecUpgradeNetPacketList *l = c->packets; l; l = l->next) {
        gsize len;
        g_autofree guchar *data = g_base64_decode(l->value->data, &len);
        struct iovec iov = { .iov_base = data, .iov_len = len };

        qemu_net_queue_append_iov(nc->incoming_queue, nc->peer,
                                  l->value->raw ? QEMU_NET_PACKET_FLAG_RAW
                                                : QEMU_NET_PACKET_FLAG_NONE,
                                  &iov, 1, NULL);
    }
}

static void net_commit(const ExecUpgradeHandoff *h)
{
    g_autoptr(GPtrArray) list = net_clients_list();
    g_autofree const ExecUpgradeNetClient **clients =
        g_new0(const ExecUpgradeNetClient *, list->len);

    if (!h->has_net) {
        return;
    }
    /* A name that changes is what others are found by: first find all */
    for (int i = 0; i < list->len; i++) {
        clients[i] = client_of(h->net, list, i);
    }
    for (int i = 0; i < list->len; i++) {
        NetClientState *nc = g_ptr_array_index(list, i);
        const ExecUpgradeNetBackend *b = backend_find(nc->info->type);

        if (!clients[i]) {
            continue;
        }
        if (strcmp(nc->name, clients[i]->name)) {
            g_free(nc->name);
            nc->name = g_strdup(clients[i]->name);
        }
        if (b && b->commit) {
            b->commit(nc, clients[i]);
        }
        packets_load(nc, clients[i]);
    }
    for (int i = 0; i < list->len; i++) {
        NetClientState *nc = g_ptr_array_index(list, i);

        if (clients[i] && nc->peer && qemu_can_send_packet(nc->peer)) {
            qemu_flush_queued_packets(nc);
        }
    }
}

const ExecUpgradeStage exec_upgrade_stage_net = {
    .name = "net",
    .check = net_check,
    .save = net_save,
    .close = net_close,
    .load = net_load,
    .commit = net_commit,
};
