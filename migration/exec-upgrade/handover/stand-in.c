/*
 * Exec-upgrade: a child process that executes the new binary
 *
 * It starts with what an upgrade would leave to the new program of this
 * process: its command line, and under their numbers the descriptors that
 * are carried.  Its standard error is a file, so that what it says last can
 * be told, and so that it never waits for a reader.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <poll.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include "qapi/error.h"
#include "qemu/exec-upgrade.h"
#include "qemu/memfd.h"
#include "qemu/memfd-exec-upgrade.h"
#include "migration/exec-upgrade/handover/handover.h"
#include "migration/exec-upgrade/handover/stand-in.h"
#include "migration/exec-upgrade/trace.h"

/* How much of what it said last is told, in bytes */
#define LAST_WORDS 500

/* How long one that closed its socket may take to end, in milliseconds */
#define END_WAIT_MS 500

static char **environment(int plan_fd, int sock)
{
    g_autofree char *plan = g_strdup_printf("%d", plan_fd);
    g_autofree char *channel = g_strdup_printf("%d", sock);
    char **env = g_get_environ();

    env = g_environ_setenv(env, EXEC_UPGRADE_ENV, plan, true);
    return g_environ_setenv(env, EXEC_UPGRADE_CHANNEL_ENV, channel, true);
}

/*
 * Between vfork(2) and execveat(2) the child has our memory, but a table of
 * descriptors of its own.  It calls nothing but what signal-safety(7) lists.
 */
static pid_t spawn(const ExecUpgradeRequest *req, char **env, int sock,
                   int stderr_fd, int *child_errno)
{
    /* The child writes it, where the compiler sees no other thread */
    volatile int failed = 0;
    sigset_t all, old;
    pid_t pid;

    /* The guest's are this process's to act on */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    pid = vfork();
    if (pid == 0) {
        /* With the main thread, which lives as long as the process does */
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (dup2(stderr_fd, STDERR_FILENO) >= 0 &&
            fcntl(sock, F_SETFD, 0) >= 0 && exec_upgrade_fds_inherit(NULL)) {
            syscall(SYS_execveat, req->binary_fd, "", req->argv, env,
                    AT_EMPTY_PATH);
        }
        failed = errno;
        _exit(127);
    }
    *child_errno = pid < 0 ? errno : failed;
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    return pid;
}

bool exec_upgrade_stand_in_spawn(ExecUpgradeStandIn *s,
                                 const ExecUpgradeRequest *req, int plan_fd,
                                 Error **errp)
{
    g_auto(GStrv) env = NULL;
    int socks[2], failed;

    *s = (ExecUpgradeStandIn) { .pid = -1, .sock = -1, .stderr_fd = -1 };
    s->stderr_fd = exec_upgrade_memfd_create("exec-upgrade-stderr",
                                             MFD_CLOEXEC);
    if (s->stderr_fd < 0) {
        error_setg_errno(errp, errno, "exec-upgrade: can't create memfd");
        return false;
    }
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, socks) < 0) {
        error_setg_errno(errp, errno, "exec-upgrade: can't make a socket");
        exec_upgrade_stand_in_end(s);
        return false;
    }
    s->sock = socks[0];
    env = environment(plan_fd, socks[1]);
    s->pid = spawn(req, env, socks[1], s->stderr_fd, &failed);
    close(socks[1]);
    if (failed) {
        error_setg_errno(errp, failed, "exec-upgrade: can't execute the new "
                         "binary");
        exec_upgrade_stand_in_end(s);
        return false;
    }
    trace_exec_upgrade_stand_in(s->pid);
    return true;
}

void exec_upgrade_stand_in_end(ExecUpgradeStandIn *s)
{
    if (s->pid > 0) {
        kill(s->pid, SIGKILL);
        while (waitpid(s->pid, NULL, 0) < 0 && errno == EINTR) {
            /* again */
        }
        s->pid = -1;
    }
    if (s->sock >= 0) {
        close(s->sock);
        s->sock = -1;
    }
    if (s->stderr_fd >= 0) {
        close(s->stderr_fd);
        s->stderr_fd = -1;
    }
}

/* The end of what it has written, in one line; the caller frees it */
static char *last_words(int fd)
{
    struct stat st;
    char buf[LAST_WORDS + 1];
    ssize_t len;

    if (fstat(fd, &st) < 0) {
        return g_strdup("");
    }
    len = pread(fd, buf, LAST_WORDS, MAX(0, st.st_size - LAST_WORDS));
    buf[MAX(len, 0)] = '\0';
    for (char *p = buf; *p; p++) {
        /* What a client is told is text */
        if (!g_ascii_isprint(*p)) {
            *p = ' ';
        }
    }
    return g_strdup(g_strstrip(buf));
}

/* Not for ever: the guest may be paused */
static bool wait_end(pid_t pid)
{
    struct pollfd pfd = {
        .fd = syscall(SYS_pidfd_open, pid, 0), .events = POLLIN,
    };
    int ret;

    if (pfd.fd < 0) {
        return false;
    }
    do {
        ret = poll(&pfd, 1, END_WAIT_MS);
    } while (ret < 0 && errno == EINTR);
    close(pfd.fd);
    return ret > 0;
}

void exec_upgrade_stand_in_error(ExecUpgradeStandIn *s, const char *when,
                                 Error **errp)
{
    g_autofree char *words = last_words(s->stderr_fd);
    const char *colon = *words ? ": " : "";
    siginfo_t info = { };

    /* It has closed its socket, and so has ended or is about to */
    if (!wait_end(s->pid) ||
        waitid(P_PID, s->pid, &info, WEXITED | WNOWAIT | WNOHANG) < 0 ||
        !info.si_pid) {
        error_setg(errp, "exec-upgrade: the new QEMU gave up %s%s%s", when,
                   colon, words);
    } else if (info.si_code == CLD_EXITED) {
        error_setg(errp, "exec-upgrade: the new QEMU ended %s, with status "
                   "%d%s%s", when, info.si_status, colon, words);
    } else {
        error_setg(errp, "exec-upgrade: the new QEMU was killed %s, by signal "
                   "%d (%s)%s%s", when, info.si_status,
                   strsignal(info.si_status), colon, words);
    }
}
