/*
 * Exec-upgrade: messages between the process and its stand-in
 *
 * A socket pair of type SOCK_SEQPACKET, so that each message comes whole or
 * not at all, and the end of one process is the end of file for the other.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <poll.h>
#include "qapi/error.h"
#include "qemu/cutils.h"
#include "migration/exec-upgrade/handover/channel.h"
#include "migration/exec-upgrade/trace.h"

static const char *const names[] = {
    [EXEC_UPGRADE_MESSAGE_END] = "end",
    [EXEC_UPGRADE_MESSAGE_READY] = "ready",
    [EXEC_UPGRADE_MESSAGE_DESCRIPTORS] = "descriptors",
    [EXEC_UPGRADE_MESSAGE_STATE] = "state",
    [EXEC_UPGRADE_MESSAGE_LOADED] = "loaded",
};

static bool send_message(int sock, ExecUpgradeMessage *m, const int *fds,
                         Error **errp)
{
    char control[CMSG_SPACE(sizeof(m->numbers))] = { };
    struct iovec iov = { .iov_base = m, .iov_len = sizeof(*m) };
    struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };
    ssize_t len;

    if (m->count) {
        struct cmsghdr *c;

        msg.msg_control = control;
        msg.msg_controllen = CMSG_SPACE(m->count * sizeof(int));
        c = CMSG_FIRSTHDR(&msg);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(m->count * sizeof(int));
        memcpy(CMSG_DATA(c), fds, m->count * sizeof(int));
    }
    do {
        len = sendmsg(sock, &msg, MSG_NOSIGNAL);
    } while (len < 0 && errno == EINTR);
    if (len != sizeof(*m)) {
        error_setg_errno(errp, errno, "exec-upgrade: can't send '%s'",
                         names[m->type]);
        return false;
    }
    trace_exec_upgrade_send(names[m->type], m->count);
    return true;
}

bool exec_upgrade_channel_send(int sock, ExecUpgradeMessageType type,
                               const char *text, Error **errp)
{
    ExecUpgradeMessage m = { .type = type };

    pstrcpy(m.text, sizeof(m.text), text);
    return send_message(sock, &m, NULL, errp);
}

bool exec_upgrade_channel_send_state(int sock, int state_fd,
                                     const intList *carried, Error **errp)
{
    ExecUpgradeMessage m = { .type = EXEC_UPGRADE_MESSAGE_DESCRIPTORS };

    while (carried) {
        for (m.count = 0; carried && m.count < EXEC_UPGRADE_MESSAGE_FDS;
             carried = carried->next) {
            m.numbers[m.count++] = carried->value;
        }
        if (!send_message(sock, &m, m.numbers, errp)) {
            return false;
        }
    }
    m = (ExecUpgradeMessage) {
        .type = EXEC_UPGRADE_MESSAGE_STATE, .count = 1, .numbers = { state_fd },
    };
    return send_message(sock, &m, m.numbers, errp);
}

/* Waits until there is something to read, or @deadline; 0 is for ever */
static bool wait_message(int sock, int64_t deadline, Error **errp)
{
    struct pollfd pfd = { .fd = sock, .events = POLLIN };
    int ret;

    do {
        int64_t left = deadline ? deadline - g_get_monotonic_time() : -1;
        struct timespec ts = {
            .tv_sec = MAX(left, 0) / G_USEC_PER_SEC,
            .tv_nsec = MAX(left, 0) % G_USEC_PER_SEC * 1000,
        };

        ret = ppoll(&pfd, 1, deadline ? &ts : NULL, NULL);
    } while (ret < 0 && errno == EINTR);
    if (ret < 0) {
        error_setg_errno(errp, errno, "exec-upgrade: can't wait");
    } else if (ret == 0) {
        error_setg(errp, "exec-upgrade: no answer in time");
    }
    return ret > 0;
}

static bool is_valid(const ExecUpgradeMessage *m, ssize_t len,
                     const struct msghdr *msg, int received)
{
    return len == sizeof(*m) && m->type > EXEC_UPGRADE_MESSAGE_END &&
           m->type < ARRAY_SIZE(names) &&
           m->count <= EXEC_UPGRADE_MESSAGE_FDS && m->count == received &&
           !(msg->msg_flags & (MSG_TRUNC | MSG_CTRUNC)) &&
           memchr(m->text, 0, sizeof(m->text)) != NULL;
}

bool exec_upgrade_channel_receive(int sock, int64_t deadline,
                                  ExecUpgradeMessage *m, int *fds,
                                  Error **errp)
{
    char control[CMSG_SPACE(sizeof(m->numbers))];
    struct iovec iov = { .iov_base = m, .iov_len = sizeof(*m) };
    struct msghdr msg = {
        .msg_iov = &iov,
        .msg_iovlen = 1,
        .msg_control = control,
        .msg_controllen = sizeof(control),
    };
    struct cmsghdr *c;
    int received = 0;
    ssize_t len;

    if (!wait_message(sock, deadline, errp)) {
        return false;
    }
    memset(m, 0, sizeof(*m));
    do {
        len = recvmsg(sock, &msg, MSG_CMSG_CLOEXEC);
    } while (len < 0 && errno == EINTR);
    if (len == 0 || (len < 0 && errno == ECONNRESET)) {
        m->type = EXEC_UPGRADE_MESSAGE_END;
        return true;
    }
    if (len < 0) {
        error_setg_errno(errp, errno, "exec-upgrade: can't receive");
        return false;
    }
    for (c = CMSG_FIRSTHDR(&msg); c; c = CMSG_NXTHDR(&msg, c)) {
        if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS) {
            received = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
            memcpy(fds, CMSG_DATA(c), received * sizeof(int));
        }
    }
    if (!is_valid(m, len, &msg, received)) {
        while (received) {
            close(fds[--received]);
        }
        error_setg(errp, "exec-upgrade: a message is not valid");
        return false;
    }
    trace_exec_upgrade_receive(names[m->type], m->count);
    return true;
}
