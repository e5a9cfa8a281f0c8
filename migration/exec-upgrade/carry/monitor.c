/*
 * Exec-upgrade: monitors
 *
 * The connection is carried with the character device; here is what the
 * monitor itself knows of its client: capabilities, commands not executed or
 * not read to their end, output not written, descriptors, the edited line.
 *
 * QMP monitors have a thread of their own.  It is stopped before anything is
 * saved, so that what is read from a connection is either saved or stays in
 * the connection; and in the new process until all is loaded.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "migration/exec-upgrade-monitor.h"
#include "monitor/monitor-internal.h"
#include "qapi/compat-policy.h"
#include "qapi/error.h"
#include "qapi/qapi-visit-exec-upgrade.h"
#include "qapi/qmp/qdict.h"
#include "qapi/qmp/qjson.h"
#include "qapi/qmp/qstring.h"
#include "qapi/qobject-output-visitor.h"
#include "qemu/memfd.h"
#include "qemu/memfd-exec-upgrade.h"
#include "migration/exec-upgrade/carry/carry.h"

/* How a client's request that upgrades through HMP is named in QMP */
#define HUMAN_COMMAND "human-monitor-command"

/* A character device that QEMU draws itself; ui/ has no header with it */
#define TYPE_CHARDEV_VC "chardev-vc"

/* How long an HMP command waits for a QMP command to end, in microseconds */
#define ASK_WAIT (1 * G_USEC_PER_SEC)

/* What monitor_qmp_setup_handlers_bh() waits for */
typedef struct ExecUpgradeDeferred {
    QEMUBHFunc *cb;
    void *opaque;
} ExecUpgradeDeferred;

static struct {
    /* How many want the thread stopped, and whether there is one to stop */
    int holders;
    bool stopped;
    bool initialized;
    QemuSemaphore at_rest;
    QemuSemaphore go_on;
    /* New process: of ExecUpgradeDeferred; it is a holder if there are any */
    GSList *deferred;
    /* Old process, after save: of int, memfds with output */
    GArray *memfds;
    /* Old process: HMP monitor whose user asked for the upgrade */
    Monitor *hmp_asker;
    /* The same, as long as a QMP command has to end first */
    Monitor *hmp_waiting;
} monitors;

/*
 * The thread
 */

static void monitor_rest_bh(void *opaque)
{
    qemu_sem_post(&monitors.at_rest);
    qemu_sem_wait(&monitors.go_on);
}

void exec_upgrade_monitor_hold(void)
{
    if (monitors.holders++ || !mon_iothread) {
        return;
    }
    if (!monitors.initialized) {
        qemu_sem_init(&monitors.at_rest, 0);
        qemu_sem_init(&monitors.go_on, 0);
        monitors.initialized = true;
    }
    monitors.stopped = true;
    aio_bh_schedule_oneshot(iothread_get_aio_context(mon_iothread),
                            monitor_rest_bh, NULL);
    qemu_sem_wait(&monitors.at_rest);
}

void exec_upgrade_monitor_release(void)
{
    assert(monitors.holders > 0);
    if (--monitors.holders || !monitors.stopped) {
        return;
    }
    monitors.stopped = false;
    qemu_sem_post(&monitors.go_on);
}

void exec_upgrade_monitor_schedule(AioContext *ctx, QEMUBHFunc *cb,
                                   void *opaque)
{
    ExecUpgradeDeferred *d;

    if (!exec_upgrade_adopting()) {
        aio_bh_schedule_oneshot(ctx, cb, opaque);
        return;
    }
    if (!monitors.deferred) {
        exec_upgrade_monitor_hold();
    }
    d = g_new(ExecUpgradeDeferred, 1);
    *d = (ExecUpgradeDeferred) { .cb = cb, .opaque = opaque };
    monitors.deferred = g_slist_append(monitors.deferred, d);
}

/*
 * Which monitor is which
 */

/* NULL: a monitor that no user is connected to, or one drawn by QEMU itself */
static const char *monitor_label(const Monitor *mon)
{
    Chardev *chr = mon->chr.chr;

    return !chr || object_dynamic_cast(OBJECT(chr), TYPE_CHARDEV_VC) ?
           NULL : chr->label;
}

static bool monitor_is(const Monitor *mon, const char *chardev, int64_t index)
{
    return !g_strcmp0(monitor_label(mon), chardev) && mon->chr.tag == index;
}

static Monitor *monitor_find(const char *chardev, int64_t index)
{
    Monitor *mon;

    QEMU_LOCK_GUARD(&monitor_lock);
    QTAILQ_FOREACH(mon, &mon_list, entry) {
        if (monitor_is(mon, chardev, index)) {
            return mon;
        }
    }
    return NULL;
}

static const ExecUpgradeMonitor *session_find(const ExecUpgradeHandoff *h,
                                              const Monitor *mon)
{
    ExecUpgradeMonitorList *e;

    for (e = h->monitors; e; e = e->next) {
        const ExecUpgradeMonitor *m = e->value;

        if (monitor_is(mon, m->chardev, m->index) &&
            m->qmp == monitor_is_qmp(mon)) {
            return m;
        }
    }
    return NULL;
}

bool exec_upgrade_monitor_event(Monitor *mon, QEMUChrEvent event)
{
    const ExecUpgradeHandoff *h = exec_upgrade_handoff();
    const ExecUpgradeMonitor *m = h ? session_find(h, mon) : NULL;

    return m && m->open;
}

/*
 * Check
 */

static void monitor_check(strList **blockers)
{
    Monitor *mon = monitors.hmp_waiting ?:
                   exec_upgrade_monitor_busy(monitors.hmp_asker ?:
                                             monitor_cur());
    QObject *req;

    if (mon) {
        exec_upgrade_add_blocker(blockers, "monitor '%s' is executing a "
                                 "command", monitor_label(mon) ?: "");
    }
    if (monitors.hmp_asker && exec_upgrade_qmp_dispatching(&mon, &req)) {
        exec_upgrade_add_blocker(blockers, "monitor '%s' is executing a "
                                 "command", monitor_label(mon) ?: "");
    }
    QEMU_LOCK_GUARD(&monitor_lock);
    QTAILQ_FOREACH(mon, &mon_list, entry) {
        MonitorHMP *hmp = container_of(mon, MonitorHMP, common);

        if (!monitor_is_qmp(mon) && hmp->rs && hmp->rs->read_password &&
            monitor_label(mon)) {
            exec_upgrade_add_blocker(blockers, "monitor '%s' is waiting for a "
                                     "password", monitor_label(mon));
        }
    }
}

/*
 * HMP
 */

void exec_upgrade_monitor_ask(Monitor *mon)
{
    int64_t end = g_get_monotonic_time() + ASK_WAIT;
    Monitor *other;
    QObject *req;

    if (mon->skip_flush) {
        /* The request that the QMP dispatcher works on is this one */
        return;
    }
    /*
     * A QMP command that is executed right now can't be carried.  With the
     * thread stopped no new ones arrive, so that this ends soon, unless one
     * waits for what the main loop does: then monitor_check() refuses.
     */
    exec_upgrade_monitor_hold();
    monitors.hmp_waiting = mon;
    /* The dispatcher sets its own */
    monitor_set_cur(qemu_coroutine_self(), NULL);
    while (exec_upgrade_qmp_dispatching(&other, &req) &&
           g_get_monotonic_time() < end) {
        aio_poll(qemu_get_aio_context(), false);
        aio_poll(iohandler_get_aio_context(), false);
    }
    monitor_set_cur(qemu_coroutine_self(), mon);
    monitors.hmp_waiting = NULL;
    monitors.hmp_asker = mon;
}

void exec_upgrade_monitor_ask_done(Monitor *mon)
{
    if (!mon->skip_flush) {
        monitors.hmp_asker = NULL;
        exec_upgrade_monitor_release();
    }
}

static char *bytes_save(const char *buf, size_t len)
{
    return g_base64_encode((const guchar *)buf, len);
}

/* Returns the length, or -1 if it does not fit */
static int bytes_load(const char *base64, char *buf, size_t size)
{
    gsize len;
    g_autofree guchar *bytes = g_base64_decode(base64, &len);

    if (len > size) {
        return -1;
    }
    memcpy(buf, bytes, len);
    return len;
}

static ExecUpgradeHmpSession *hmp_save(Monitor *mon)
{
    ReadLineState *rs = container_of(mon, MonitorHMP, common)->rs;
    ExecUpgradeHmpSession *s = g_new0(ExecUpgradeHmpSession, 1);
    strList **history = &s->history;
    int i;

    s->line = bytes_save(rs->cmd_buf, rs->cmd_buf_size);
    s->cursor = rs->cmd_buf_index;
    s->shown = bytes_save(rs->last_cmd_buf, rs->last_cmd_buf_size);
    s->shown_cursor = rs->last_cmd_buf_index;
    s->escape = rs->esc_state;
    s->escape_parameter = rs->esc_param;
    s->history_entry = rs->hist_entry;
    for (i = 0; i < READLINE_MAX_CMDS && rs->history[i]; i++) {
        QAPI_LIST_APPEND(history, bytes_save(rs->history[i],
                                             strlen(rs->history[i])));
    }
    s->greeted = mon->reset_seen;
    s->suspended = qatomic_read(&mon->suspend_cnt);
    s->mux_out = mon->mux_out;
    if (mon->mon_cpu_path) {
        s->has_cpu = true;
        s->cpu = g_strdup(mon->mon_cpu_path);
    }
    return s;
}

static bool hmp_load(Monitor *mon, const ExecUpgradeHmpSession *s,
                     Error **errp)
{
    ReadLineState *rs = container_of(mon, MonitorHMP, common)->rs;
    int line = bytes_load(s->line, rs->cmd_buf, READLINE_CMD_BUF_SIZE);
    int shown = bytes_load(s->shown, rs->last_cmd_buf, READLINE_CMD_BUF_SIZE);
    strList *e;
    int i = 0;

    if (line < 0 || shown < 0 || s->cursor < 0 || s->cursor > line ||
        s->shown_cursor < 0 || s->shown_cursor > shown) {
        error_setg(errp, "the edited line is not valid");
        return false;
    }
    rs->cmd_buf_size = line;
    rs->cmd_buf_index = s->cursor;
    rs->last_cmd_buf_size = shown;
    rs->last_cmd_buf_index = s->shown_cursor;
    rs->esc_state = s->escape;
    rs->esc_param = s->escape_parameter;
    for (e = s->history; e && i < READLINE_MAX_CMDS; e = e->next) {
        gsize len;
        g_autofree guchar *bytes = g_base64_decode(e->value, &len);

        rs->history[i++] = g_strndup((char *)bytes, len);
    }
    if (s->history_entry < -1 || s->history_entry >= MAX(i, 1)) {
        error_setg(errp, "history entry %" PRId64 " does not exist",
                   s->history_entry);
        return false;
    }
    rs->hist_entry = s->history_entry;

    mon->reset_seen = s->greeted;
    qatomic_set(&mon->suspend_cnt, s->suspended);
    WITH_QEMU_LOCK_GUARD(&mon->mon_lock) {
        mon->mux_out = s->mux_out;
    }
    mon->mon_cpu_path = g_strdup(s->has_cpu ? s->cpu : NULL);
    return true;
}

/*
 * Output that the connection did not take yet.  There is no bound to it, as a
 * client may not read for long, so it has a file of its own.
 */

static bool output_save(Monitor *mon, ExecUpgradeMonitor *m, Error **errp)
{
    int fd;

    QEMU_LOCK_GUARD(&mon->mon_lock);
    if (!mon->outbuf->len) {
        return true;
    }
    fd = exec_upgrade_memfd_create("exec-upgrade-output", MFD_CLOEXEC);
    if (fd < 0) {
        error_setg_errno(errp, errno, "can't create memfd");
        return false;
    }
    g_array_append_val(monitors.memfds, fd);
    if (qemu_write_full(fd, mon->outbuf->str, mon->outbuf->len) !=
        mon->outbuf->len) {
        error_setg_errno(errp, errno, "can't write %zu bytes",
                         (size_t)mon->outbuf->len);
        return false;
    }
    m->has_output = true;
    m->output = exec_upgrade_fd_carry(fd);
    return true;
}

static bool output_load(Monitor *mon, const ExecUpgradeMonitor *m,
                        Error **errp)
{
    struct stat st;
    void *bytes;
    int fd;

    if (!m->has_output) {
        return true;
    }
    fd = exec_upgrade_fd_adopt(m->output, m->chardev, errp);
    if (fd < 0) {
        return false;
    }
    bytes = fstat(fd, &st) < 0 ? MAP_FAILED :
            mmap(NULL, st.st_size, PROT_READ, MAP_SHARED, fd, 0);
    if (bytes == MAP_FAILED) {
        error_setg_errno(errp, errno, "can't read what was not written yet");
        close(fd);
        return false;
    }
    WITH_QEMU_LOCK_GUARD(&mon->mon_lock) {
        g_string_append_len(mon->outbuf, bytes, st.st_size);
    }
    munmap(bytes, st.st_size);
    close(fd);
    return true;
}

/*
 * Save
 */

static void asker_save(ExecUpgradeHandoff *h, Monitor *mon)
{
    h->has_asker = true;
    h->asker = g_new0(ExecUpgradeAsker, 1);
    h->asker->chardev = g_strdup(monitor_label(mon));
    h->asker->index = mon->chr.tag;
}

static void asker_save_qmp(ExecUpgradeHandoff *h, Monitor *mon, QDict *req)
{
    QObject *id = qdict_get(req, "id");

    asker_save(h, mon);
    h->asker->human = !g_strcmp0(qdict_get_try_str(req, "execute"),
                                 HUMAN_COMMAND);
    if (id) {
        h->asker->has_id = true;
        h->asker->id = g_string_free(qobject_to_json(id), false);
    }
}

static bool session_save(ExecUpgradeMonitor *m, Monitor *mon, Error **errp)
{
    m->chardev = g_strdup(monitor_label(mon));
    m->index = mon->chr.tag;
    m->qmp = monitor_is_qmp(mon);
    m->open = mon->chr.chr->be_open;
    m->fds = exec_upgrade_monitor_fds_save(mon);
    if (!m->qmp) {
        m->has_hmp_session = true;
        m->hmp_session = hmp_save(mon);
    } else if (m->open) {
        m->has_qmp_session = true;
        m->qmp_session = exec_upgrade_qmp_save(mon);
    }
    return !m->open || output_save(mon, m, errp);
}

static void monitor_undo(void)
{
    guint i;

    for (i = 0; i < monitors.memfds->len; i++) {
        close(g_array_index(monitors.memfds, int, i));
    }
    g_clear_pointer(&monitors.memfds, g_array_unref);
}

static bool monitor_save(ExecUpgradeHandoff *h, Error **errp)
{
    ExecUpgradeMonitorList **tail = &h->monitors;
    Monitor *mon;
    QObject *req;

    if (!h->plan) {
        exec_upgrade_monitor_events_flush();
    }
    monitors.memfds = g_array_new(false, false, sizeof(int));

    QEMU_LOCK_GUARD(&monitor_lock);
    QTAILQ_FOREACH(mon, &mon_list, entry) {
        ExecUpgradeMonitor *m;

        if (!monitor_label(mon) ||
            (!monitor_is_qmp(mon) &&
             !container_of(mon, MonitorHMP, common)->rs)) {
            continue;
        }
        m = g_new0(ExecUpgradeMonitor, 1);
        QAPI_LIST_APPEND(tail, m);
        if (!session_save(m, mon, errp)) {
            error_prepend(errp, "exec-upgrade: monitor '%s': ", m->chardev);
            monitor_undo();
            return false;
        }
    }

    if (monitors.hmp_asker) {
        asker_save(h, monitors.hmp_asker);
    } else if (exec_upgrade_qmp_dispatching(&mon, &req)) {
        const ExecUpgradeMonitor *m = session_find(h, mon);
        QDict *dict = qobject_to(QDict, req);

        /* A client that has connected since then did not ask */
        if (dict && m && m->open && m->qmp_session->negotiated) {
            asker_save_qmp(h, mon, dict);
        }
    }
    return true;
}

/*
 * Load
 */

static void deferred_run(gpointer data, gpointer user_data)
{
    ExecUpgradeDeferred *d = data;

    d->cb(d->opaque);
}

static bool session_load(Monitor *mon, const ExecUpgradeMonitor *m,
                         Error **errp)
{
    if (!exec_upgrade_monitor_fds_load(mon, m->fds, errp)) {
        return false;
    }
    if (m->has_hmp_session && !hmp_load(mon, m->hmp_session, errp)) {
        return false;
    }
    if (!m->open || !mon->chr.chr->be_open) {
        /* If the connection was not carried, the next one starts afresh */
        return true;
    }
    mon_refcount++;
    if (m->has_qmp_session &&
        !exec_upgrade_qmp_load(mon, m->qmp_session, errp)) {
        return false;
    }
    return output_load(mon, m, errp);
}

static bool monitor_load(const ExecUpgradeHandoff *h, Error **errp)
{
    Monitor *mon;

    /* The thread is stopped, so this one may do what is usually left to it */
    g_slist_foreach(monitors.deferred, deferred_run, NULL);

    QTAILQ_FOREACH(mon, &mon_list, entry) {
        const ExecUpgradeMonitor *m = session_find(h, mon);

        if (m && !session_load(mon, m, errp)) {
            error_prepend(errp, "exec-upgrade: monitor '%s': ", m->chardev);
            return false;
        }
    }

    mon = h->has_asker ? monitor_find(h->asker->chardev, h->asker->index)
                       : NULL;
    if (mon && monitor_is_qmp(mon) &&
        exec_upgrade_qmp_suspended_in_dispatch(mon)) {
        monitor_suspend(mon);
    }
    return true;
}

static void monitor_commit(const ExecUpgradeHandoff *h)
{
    Monitor *mon;

    QTAILQ_FOREACH(mon, &mon_list, entry) {
        if (session_find(h, mon)) {
            monitor_flush(mon);
        }
    }
}

/*
 * The reply
 */

char *exec_upgrade_monitor_result_text(const ExecUpgradeResult *result)
{
    GString *text = g_string_new(NULL);
    strList *e;

    g_string_printf(text, "Upgraded from %s to %s\n"
                    "Guest paused for %" PRId64 ".%03d ms\n",
                    result->from, result->to, result->downtime / 1000,
                    (int)(result->downtime % 1000));
    for (e = result->dropped; e; e = e->next) {
        g_string_append_printf(text, "Dropped: %s\n", e->value);
    }
    return g_string_free(text, false);
}

static QObject *result_object(ExecUpgradeResult *result)
{
    QObject *obj = NULL;
    Visitor *v = qobject_output_visitor_new_qmp(&obj);

    visit_type_ExecUpgradeResult(v, NULL, &result, &error_abort);
    visit_complete(v, &obj);
    visit_free(v);
    return obj;
}

/* What human-monitor-command returns: each line ends as on a terminal */
static QObject *result_human(const ExecUpgradeResult *result)
{
    g_autofree char *text = exec_upgrade_monitor_result_text(result);
    g_auto(GStrv) lines = g_strsplit(text, "\n", -1);
    g_autofree char *output = g_strjoinv("\r\n", lines);

    return QOBJECT(qstring_from_str(output));
}

static void asker_reply(const ExecUpgradeHandoff *h,
                        ExecUpgradeResult *result)
{
    const ExecUpgradeAsker *asker = h->asker;
    Monitor *mon = h->has_asker ? monitor_find(asker->chardev, asker->index)
                                : NULL;
    QDict *rsp;

    if (!mon) {
        return;
    }
    if (!monitor_is_qmp(mon)) {
        g_autofree char *text = exec_upgrade_monitor_result_text(result);

        monitor_puts(mon, text);
        monitor_resume(mon);
        return;
    }
    rsp = qdict_new();
    qdict_put_obj(rsp, "return", asker->human ? result_human(result)
                                              : result_object(result));
    if (asker->has_id) {
        qdict_put_obj(rsp, "id", qobject_from_json(asker->id, &error_abort));
    }
    exec_upgrade_qmp_reply(mon, rsp);
    qobject_unref(rsp);
}

void exec_upgrade_monitor_reply(const ExecUpgradeHandoff *h,
                                ExecUpgradeResult *result)
{
    asker_reply(h, result);
}

void exec_upgrade_monitor_go_on(void)
{
    if (monitors.deferred) {
        g_slist_free_full(g_steal_pointer(&monitors.deferred), g_free);
        exec_upgrade_monitor_release();
    }
}

/*
 * Two rows of the table: the thread rests while anything is saved, and the
 * sessions are saved when all else was, so that no output comes behind them.
 */

static bool monitor_thread_save(ExecUpgradeHandoff *h, Error **errp)
{
    exec_upgrade_monitor_hold();
    return true;
}

const ExecUpgradeStage exec_upgrade_stage_monitor_thread = {
    .name = "monitor-thread",
    .save = monitor_thread_save,
    .undo = exec_upgrade_monitor_release,
};

const ExecUpgradeStage exec_upgrade_stage_monitor = {
    .name = "monitor",
    .check = monitor_check,
    .save = monitor_save,
    .undo = monitor_undo,
    .load = monitor_load,
    .commit = monitor_commit,
};
