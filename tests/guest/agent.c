/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * init of the test guest: mounts what is needed, loads a driver for each
 * device as it appears, and answers commands; agent.h has the protocol.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <linux/cdrom.h>
#include <linux/netlink.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>
#include "agent.h"

static uint64_t counter;

static pthread_mutex_t uevent_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t uevent_seen = PTHREAD_COND_INITIALIZER;

int64_t now_ns(int clock)
{
    struct timespec ts;

    clock_gettime(clock, &ts);
    return ts.tv_sec * 1000000000ll + ts.tv_nsec;
}

int open_device(const char *path, int flags)
{
    struct timespec ts = { .tv_nsec = 10000000 };
    int fd = -1;

    /* Linux makes the node of a disk or port before it can find the device */
    for (int i = 0; i < 1000; i++) {
        fd = open(path, flags | O_CLOEXEC);
        if (fd >= 0 || errno != ENXIO) {
            break;
        }
        nanosleep(&ts, NULL);
    }
    return fd;
}

int open_port(const char *path)
{
    struct termios tio;
    int fd = open_device(path, O_RDWR | O_NOCTTY);

    if (fd >= 0 && tcgetattr(fd, &tio) == 0) {
        cfmakeraw(&tio);
        cfsetspeed(&tio, B115200);
        tio.c_cflag |= CLOCAL;
        tcsetattr(fd, TCSANOW, &tio);
    }
    return fd;
}

/* Drivers */

/* A device that is always there, to announce that all before it was seen */
#define SETTLE_DEVICE "/devices/virtual/mem/null"

static unsigned long uevent_settled;

static void run_modprobe(char **aliases, int n)
{
    char *argv[n + 4];
    pid_t pid;

    argv[0] = "modprobe";
    argv[1] = "-qab";
    argv[2] = "--";
    memcpy(argv + 3, aliases, n * sizeof(*aliases));
    argv[n + 3] = NULL;
    pid = fork();
    if (!pid) {
        execv("/bin/modprobe", argv);
        _exit(127);
    }
    waitpid(pid, NULL, 0);
}

/* Loads drivers for what the kernel announces, in batches. */
static void *uevent_thread(void *arg)
{
    int fd = (intptr_t)arg;
    struct pollfd pfd = { .fd = fd, .events = POLLIN };
    static char buf[65536];

    for (;;) {
        char *aliases[64];
        int n = 0, settled = 0;

        poll(&pfd, 1, -1);
        while (n < 64) {
            ssize_t len = recv(fd, buf, sizeof(buf) - 1, MSG_DONTWAIT);

            if (len < 0) {
                break;
            }
            buf[len] = 0;
            if (strncmp(buf, "add@", 4)) {
                continue;
            }
            settled += !strcmp(buf + 4, SETTLE_DEVICE);
            for (char *p = buf; p < buf + len; p += strlen(p) + 1) {
                if (!strncmp(p, "MODALIAS=", 9)) {
                    aliases[n++] = strdup(p + 9);
                    break;
                }
            }
        }
        if (n) {
            run_modprobe(aliases, n);
            while (n) {
                free(aliases[--n]);
            }
        }
        pthread_mutex_lock(&uevent_lock);
        uevent_settled += settled;
        pthread_cond_broadcast(&uevent_seen);
        pthread_mutex_unlock(&uevent_lock);
    }
    return NULL;
}

/* Asks the kernel to announce a device again that it found at boot. */
static int announce(const char *path, const struct stat *st, int type,
                    struct FTW *ftw)
{
    static const char *const buses[] = { "pci:", "virtio:", "scsi:", "usb:",
                                         "acpi:", "hid:", NULL };
    char alias[512] = "", uevent[512];
    FILE *f;

    if (type != FTW_F || strcmp(path + ftw->base, "modalias")) {
        return 0;
    }
    f = fopen(path, "re");
    if (f) {
        if (!fgets(alias, sizeof(alias), f)) {
            alias[0] = 0;
        }
        fclose(f);
    }
    for (int i = 0; buses[i]; i++) {
        if (!strncmp(alias, buses[i], strlen(buses[i]))) {
            snprintf(uevent, sizeof(uevent), "%.*suevent", ftw->base, path);
            f = fopen(uevent, "we");
            if (f) {
                fputs("add", f);
                fclose(f);
            }
        }
    }
    return 0;
}

static void start_drivers(void)
{
    struct sockaddr_nl addr = { .nl_family = AF_NETLINK, .nl_groups = 1 };
    int fd = socket(AF_NETLINK, SOCK_DGRAM | SOCK_CLOEXEC,
                    NETLINK_KOBJECT_UEVENT);
    int size = 4 << 20;
    pthread_t thread;

    setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof(size));
    bind(fd, (struct sockaddr *)&addr, sizeof(addr));
    pthread_create(&thread, NULL, uevent_thread, (void *)(intptr_t)fd);
    nftw("/sys/devices", announce, 16, FTW_PHYS);
}

/* Commands */

static void *counter_thread(void *arg)
{
    struct timespec ts = { .tv_nsec = 10000000 };

    for (;;) {
        __atomic_add_fetch(&counter, 1, __ATOMIC_RELAXED);
        nanosleep(&ts, NULL);
    }
    return NULL;
}

static void print_file(FILE *out, const char *path)
{
    char line[256] = "";
    FILE *f = fopen(path, "re");

    if (f) {
        if (fgets(line, sizeof(line), f)) {
            line[strcspn(line, " \n")] = 0;
        }
        fclose(f);
    }
    fputs(line, out);
}

static int counter_command(const char *args, FILE *out)
{
    fprintf(out, "counter=%lu monotonic=%ld realtime=%ld cpus=%ld uptime=",
            __atomic_load_n(&counter, __ATOMIC_RELAXED),
            now_ns(CLOCK_MONOTONIC), now_ns(CLOCK_REALTIME),
            sysconf(_SC_NPROCESSORS_ONLN));
    print_file(out, "/proc/uptime");
    fputs(" boot_id=", out);
    print_file(out, "/proc/sys/kernel/random/boot_id");
    return 0;
}

/* sh COMMAND: runs it in the shell, answers with its output. */
static int sh_command(const char *args, FILE *out)
{
    char buf[4096];
    size_t len;
    FILE *f;

    if (setenv("CMD", args, 1) < 0 ||
        !(f = popen("eval \"$CMD\" 2>&1", "re"))) {
        return -1;
    }
    while ((len = fread(buf, 1, sizeof(buf), f)) > 0) {
        fwrite(buf, 1, len, out);
    }
    return pclose(f);
}

/* eject DEVICE: opens the tray. */
static int eject_command(const char *args, FILE *out)
{
    int fd = open(args, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    int ret = ioctl(fd, CDROMEJECT);

    fputs(ret ? strerror(errno) : "", out);
    close(fd);
    return ret;
}

/*
 * Whether what @path names can be opened.  The kernel makes the node of a
 * virtio port before it finds the port by its number, and its file in debugfs
 * (virtio_console.c, add_port()) after that.
 */
static int is_there(const char *path)
{
    char port[256];

    if (access(path, F_OK) < 0) {
        return 0;
    }
    if (strncmp(path, "/dev/vport", 10)) {
        return 1;
    }
    snprintf(port, sizeof(port), "/sys/kernel/debug/virtio-ports/%s",
             path + 5);
    return access(port, F_OK) == 0;
}

/* wait PATH SECONDS: until a device has its node, or any path exists. */
static int wait_command(const char *args, FILE *out)
{
    char path[256];
    int seconds;
    struct timespec end, now;

    if (sscanf(args, "%255s %d", path, &seconds) != 2) {
        return -1;
    }
    clock_gettime(CLOCK_REALTIME, &end);
    end.tv_sec += seconds;
    pthread_mutex_lock(&uevent_lock);
    while (!is_there(path)) {
        struct timespec next;

        clock_gettime(CLOCK_REALTIME, &now);
        if (now.tv_sec >= end.tv_sec) {
            break;
        }
        /* No event tells of a file in debugfs */
        next = now;
        next.tv_nsec += 20000000;
        if (next.tv_nsec >= 1000000000) {
            next.tv_nsec -= 1000000000;
            next.tv_sec++;
        }
        pthread_cond_timedwait(&uevent_seen, &uevent_lock, &next);
    }
    pthread_mutex_unlock(&uevent_lock);
    return is_there(path) ? 0 : -1;
}

/*
 * settle: until drivers are loaded for what the kernel has announced.  Twice:
 * a driver may find more devices.
 */
static int settle_command(const char *args, FILE *out)
{
    for (int i = 0; i < 2; i++) {
        FILE *f = fopen("/sys" SETTLE_DEVICE "/uevent", "we");
        unsigned long before;

        if (!f) {
            fputs(strerror(errno), out);
            return -1;
        }
        pthread_mutex_lock(&uevent_lock);
        before = uevent_settled;
        fputs("add", f);
        fclose(f);
        while (uevent_settled == before) {
            pthread_cond_wait(&uevent_seen, &uevent_lock);
        }
        pthread_mutex_unlock(&uevent_lock);
    }
    return 0;
}

static const struct {
    const char *name;
    command_fn *run;
} commands[] = {
    { "counter", counter_command },
    { "sh", sh_command },
    { "eject", eject_command },
    { "wait", wait_command },
    { "settle", settle_command },
    { "mem", mem_command },
    { "disk", disk_command },
    { "lines", lines_command },
    { "reader", reader_command },
    { "clock", clock_command },
};

static int run_command(const char *line, FILE *out)
{
    size_t len = strcspn(line, " ");

    for (size_t i = 0; i < sizeof(commands) / sizeof(*commands); i++) {
        if (strlen(commands[i].name) == len &&
            !memcmp(commands[i].name, line, len)) {
            return commands[i].run(line + len + (line[len] == ' '), out);
        }
    }
    fputs("unknown command", out);
    return -1;
}

static void answer(FILE *port, char *line)
{
    char *text = NULL;
    size_t size = 0, id = strcspn(line, " ");
    FILE *out = open_memstream(&text, &size);
    int ret = run_command(line + id + (line[id] == ' '), out);

    fclose(out);
    fprintf(port, "%.*s %s ", (int)id, line, ret ? "fail" : "ok");
    for (size_t i = 0; i < size; i++) {
        switch (text[i]) {
        case '\n':
            fputs("\\n", port);
            break;
        case '\\':
            fputs("\\\\", port);
            break;
        case 0:
            break;
        default:
            fputc(text[i], port);
        }
    }
    fputc('\n', port);
    fflush(port);
    free(text);
}

int main(void)
{
    const char *path = getenv("agent") ?: "/dev/ttyS1";
    char *line = NULL;
    size_t size = 0;
    pthread_t thread;
    FILE *in, *port;
    int fd;

    mount("proc", "/proc", "proc", 0, NULL);
    mount("sys", "/sys", "sysfs", 0, NULL);
    mount("debug", "/sys/kernel/debug", "debugfs", 0, NULL);
    mount("dev", "/dev", "devtmpfs", 0, NULL);
    mkdir("/tmp", 0777);
    setenv("PATH", "/bin", 1);
    setenv("TERM", "dumb", 1);

    start_drivers();
    pthread_create(&thread, NULL, counter_thread, NULL);

    while ((fd = open_port(path)) < 0) {
        wait_command("/never 1", NULL);
    }
    in = fdopen(fd, "re");
    port = fdopen(dup(fd), "we");
    fputs("\nready ", port);
    print_file(port, "/proc/sys/kernel/random/boot_id");
    fputs("\n", port);
    fflush(port);

    for (;;) {
        ssize_t len = getline(&line, &size, in);

        if (len < 0) {
            /* a virtio port reads end of file while nobody is connected */
            clearerr(in);
            wait_command("/never 1", NULL);
        } else if (len > 1) {
            line[len - 1] = 0;
            answer(port, line);
        }
    }
}
