/*
 * QTest testcase for exec-upgrade
 *
 * The machine has no guest: memory is written and read over the qtest
 * connection, which, like that of QMP, has to live through the upgrade.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <glib/gstdio.h>
#include "libqtest.h"
#include "qapi/qmp/qdict.h"
#include "qapi/qmp/qlist.h"

#define BLOCK_SIZE 4096

/* Where the pattern lies: conventional memory, and behind the first MiB */
static const uint64_t places[] = { 0x10000, 0x100000, 0x2345000, 0x3fff000 };

static void fill(char *block, uint64_t addr)
{
    for (int i = 0; i < BLOCK_SIZE; i++) {
        block[i] = (addr >> 12) * 7 + i * 13 + (i >> 8);
    }
}

static void write_pattern(QTestState *qts)
{
    char block[BLOCK_SIZE];

    for (int i = 0; i < ARRAY_SIZE(places); i++) {
        fill(block, places[i]);
        qtest_memwrite(qts, places[i], block, sizeof(block));
    }
}

static void check_pattern(QTestState *qts)
{
    char want[BLOCK_SIZE], found[BLOCK_SIZE];

    for (int i = 0; i < ARRAY_SIZE(places); i++) {
        fill(want, places[i]);
        qtest_memread(qts, places[i], found, sizeof(found));
        g_assert_cmpmem(want, sizeof(want), found, sizeof(found));
    }
}

static QDict *upgrade(QTestState *qts)
{
    QDict *rsp = qtest_qmp(qts, "{ 'execute': 'exec-upgrade' }");
    QDict *result = qdict_get_qdict(rsp, "return");

    g_assert(result);
    g_assert_cmpint(qdict_get_int(result, "downtime"), >, 0);
    g_assert(qlist_empty(qdict_get_qlist(result, "dropped")));
    qobject_ref(result);
    qobject_unref(rsp);
    return result;
}

static int64_t upgrade_count(QTestState *qts)
{
    QDict *rsp = qtest_qmp(qts, "{ 'execute': 'query-exec-upgrade' }");
    int64_t count = qdict_get_int(qdict_get_qdict(rsp, "return"), "count");

    qobject_unref(rsp);
    return count;
}

static pid_t read_pid(const char *pidfile)
{
    g_autofree char *text = NULL;

    g_assert(g_file_get_contents(pidfile, &text, NULL, NULL));
    return atoi(text);
}

static int open_fd_count(pid_t pid)
{
    g_autofree char *path = g_strdup_printf("/proc/%d/fd", pid);
    g_autoptr(GDir) dir = g_dir_open(path, 0, NULL);
    int count = 0;

    g_assert(dir);
    while (g_dir_read_name(dir)) {
        count++;
    }
    return count;
}

static void test_memory(const void *data)
{
    QTestState *qts = qtest_init(data);

    write_pattern(qts);
    for (int i = 1; i <= 3; i++) {
        qobject_unref(upgrade(qts));
        g_assert_cmpint(upgrade_count(qts), ==, i);
        check_pattern(qts);
    }
    qtest_quit(qts);
}

static void test_process(void)
{
    g_autofree char *dir = g_dir_make_tmp("exec-upgrade-XXXXXX", NULL);
    g_autofree char *pidfile = g_build_filename(dir, "pid", NULL);
    QTestState *qts = qtest_initf("-m 64 -pidfile %s", pidfile);
    pid_t pid = read_pid(pidfile);
    int count;

    qobject_unref(upgrade(qts));
    count = open_fd_count(pid);
    for (int i = 0; i < 10; i++) {
        qobject_unref(upgrade(qts));
    }
    g_assert_cmpint(read_pid(pidfile), ==, pid);
    g_assert_cmpint(open_fd_count(pid), ==, count);
    qtest_quit(qts);
    g_assert(!g_file_test(pidfile, G_FILE_TEST_EXISTS));
    g_assert_cmpint(g_rmdir(dir), ==, 0);
}

/* The machine's own clock and interrupt controller: state of devices */
static void test_device_state(void)
{
    QTestState *qts = qtest_init("-m 64");

    qtest_outb(qts, 0x70, 0x40);
    qtest_outb(qts, 0x71, 0x5a);
    qtest_outb(qts, 0x21, 0xa5);
    qobject_unref(upgrade(qts));
    qtest_outb(qts, 0x70, 0x40);
    g_assert_cmphex(qtest_inb(qts, 0x71), ==, 0x5a);
    g_assert_cmphex(qtest_inb(qts, 0x21), ==, 0xa5);
    qtest_quit(qts);
}

/* Takes @rsp */
static void assert_refused(QTestState *qts, QDict *rsp, const char *reason)
{
    const char *desc = qdict_get_str(qdict_get_qdict(rsp, "error"), "desc");

    g_assert_nonnull(strstr(desc, reason));
    qobject_unref(rsp);
    g_assert_cmpint(upgrade_count(qts), ==, 0);
    check_pattern(qts);
}

static void test_refused_binary(void)
{
    g_autofree char *dir = g_dir_make_tmp("exec-upgrade-XXXXXX", NULL);
    g_autofree char *script = g_build_filename(dir, "script", NULL);
    QTestState *qts = qtest_init("-m 64");

    g_assert(g_file_set_contents(script, "#!/bin/sh\n", -1, NULL));
    write_pattern(qts);

    assert_refused(qts, qtest_qmp(qts, "{ 'execute': 'exec-upgrade',"
                                  " 'arguments': { 'binary': %s } }", dir),
                   "is not a regular file");
    assert_refused(qts, qtest_qmp(qts, "{ 'execute': 'exec-upgrade',"
                                  " 'arguments': { 'binary': %s } }", script),
                   "is not executable");
    g_assert_cmpint(g_chmod(script, 0755), ==, 0);
    assert_refused(qts, qtest_qmp(qts, "{ 'execute': 'exec-upgrade',"
                                  " 'arguments': { 'binary': %s } }", script),
                   "is not an ELF file");
    g_assert_cmpint(g_unlink(script), ==, 0);
    assert_refused(qts, qtest_qmp(qts, "{ 'execute': 'exec-upgrade',"
                                  " 'arguments': { 'binary': %s } }", script),
                   "No such file or directory");
    assert_refused(qts, qtest_qmp(qts, "{ 'execute': 'exec-upgrade',"
                                  " 'arguments': { 'binary': '/bin/true' } }"),
                   "no handoff note");
    assert_refused(qts, qtest_qmp(qts, "{ 'execute': 'exec-upgrade',"
                                  " 'arguments': { 'arguments': [] } }"),
                   "'arguments' is empty");
    assert_refused(qts, qtest_qmp(qts, "{ 'execute': 'exec-upgrade',"
                                  " 'arguments': { 'binari': 'x' } }"),
                   "Parameter 'binari' is unexpected");
    g_assert_cmpint(g_rmdir(dir), ==, 0);
    qtest_quit(qts);
}

static void test_refused_off(void)
{
    QTestState *qts = qtest_init("-m 64 -machine exec-upgrade=off");

    write_pattern(qts);
    assert_refused(qts, qtest_qmp(qts, "{ 'execute': 'exec-upgrade' }"),
                   "exec-upgrade=off");
    qtest_quit(qts);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);

    qtest_add_data_func("/exec-upgrade/memory/plain", "-m 64", test_memory);
    qtest_add_data_func("/exec-upgrade/memory/ram",
                        "-m 64 -object memory-backend-ram,id=m,size=64M "
                        "-machine memory-backend=m", test_memory);
    qtest_add_data_func("/exec-upgrade/memory/memfd-private",
                        "-m 64 -object memory-backend-memfd,id=m,size=64M,"
                        "share=off -machine memory-backend=m", test_memory);
    qtest_add_data_func("/exec-upgrade/memory/prealloc",
                        "-m 64 -object memory-backend-memfd,id=m,size=64M,"
                        "prealloc=on -machine memory-backend=m", test_memory);
    qtest_add_data_func("/exec-upgrade/memory/numa",
                        "-m 64 -object memory-backend-ram,id=m0,size=32M "
                        "-object memory-backend-ram,id=m1,size=32M "
                        "-numa node,memdev=m0 -numa node,memdev=m1",
                        test_memory);
    qtest_add_data_func("/exec-upgrade/memory/q35", "-machine q35 -m 64",
                        test_memory);
    qtest_add_func("/exec-upgrade/process", test_process);
    qtest_add_func("/exec-upgrade/device-state", test_device_state);
    qtest_add_func("/exec-upgrade/refused/binary", test_refused_binary);
    qtest_add_func("/exec-upgrade/refused/off", test_refused_off);

    return g_test_run();
}
