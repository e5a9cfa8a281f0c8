/*
 * Exec-upgrade: another command line
 *
 * After execve(2) there is no way back, so that what can be known of a command
 * line is known before: that its options exist, and that it makes the machine
 * that there is.  It is held against the one that the process has; what
 * commands have added and deleted counts.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "hw/boards.h"
#include "net/net.h"
#include "qapi/error.h"
#include "qapi/qmp/qdict.h"
#include "qapi/qmp/qjson.h"
#include "qemu/help_option.h"
#include "qemu/option.h"
#include "qemu/qemu-options.h"
#include "sysemu/arch_init.h"
#include "migration/exec-upgrade/command/command.h"
#include "migration/exec-upgrade/ledger/ledger.h"

#define HAS_ARG 1

typedef struct Option {
    const char *name;
    int flags;
    int index;
    uint32_t arch_mask;
} Option;

static const Option options[] = {
    { "h", 0, QEMU_OPTION_h, QEMU_ARCH_ALL },

#define DEF(option, opt_arg, opt_enum, opt_help, arch_mask)     \
    { option, opt_arg, opt_enum, arch_mask },
#define DEFHEADING(text)
#define ARCHHEADING(text, arch_mask)

#include "qemu-options.def"
};

/*
 * Options that make something without an id, which has its name or place by
 * their order.  @like: the option with which this one shares an order.
 * @more: there may be more of them than there were.  @file: what they name
 * must be there, but may be another file.
 */
static const struct {
    int index;
    int like;
    bool more;
    bool file;
} ordered[] = {
    { QEMU_OPTION_kernel, QEMU_OPTION_kernel, .file = true },
    { QEMU_OPTION_initrd, QEMU_OPTION_initrd, .file = true },
    { QEMU_OPTION_dtb, QEMU_OPTION_dtb, .file = true },
    { QEMU_OPTION_option_rom, QEMU_OPTION_option_rom },
    { QEMU_OPTION_m, QEMU_OPTION_m },
    { QEMU_OPTION_smp, QEMU_OPTION_smp },
    { QEMU_OPTION_numa, QEMU_OPTION_numa },
    { QEMU_OPTION_enable_kvm, QEMU_OPTION_enable_kvm },
    { QEMU_OPTION_drive, QEMU_OPTION_drive },
    { QEMU_OPTION_hda, QEMU_OPTION_drive },
    { QEMU_OPTION_hdb, QEMU_OPTION_drive },
    { QEMU_OPTION_hdc, QEMU_OPTION_drive },
    { QEMU_OPTION_hdd, QEMU_OPTION_drive },
    { QEMU_OPTION_cdrom, QEMU_OPTION_drive },
    { QEMU_OPTION_fda, QEMU_OPTION_drive },
    { QEMU_OPTION_fdb, QEMU_OPTION_drive },
    { QEMU_OPTION_sd, QEMU_OPTION_drive },
    { QEMU_OPTION_mtdblock, QEMU_OPTION_drive },
    { QEMU_OPTION_pflash, QEMU_OPTION_drive },
    { QEMU_OPTION_nodefaults, QEMU_OPTION_nodefaults },
    { QEMU_OPTION_net, QEMU_OPTION_net },
    { QEMU_OPTION_nic, QEMU_OPTION_net },
    { QEMU_OPTION_vga, QEMU_OPTION_vga },
    { QEMU_OPTION_usb, QEMU_OPTION_usb },
    { QEMU_OPTION_usbdevice, QEMU_OPTION_usb },
    { QEMU_OPTION_virtfs, QEMU_OPTION_virtfs },
    { QEMU_OPTION_serial, QEMU_OPTION_serial },
    { QEMU_OPTION_parallel, QEMU_OPTION_parallel },
    { QEMU_OPTION_debugcon, QEMU_OPTION_debugcon },
    { QEMU_OPTION_mon, QEMU_OPTION_monitor, .more = true },
    { QEMU_OPTION_monitor, QEMU_OPTION_monitor, .more = true },
    { QEMU_OPTION_qmp, QEMU_OPTION_monitor, .more = true },
    { QEMU_OPTION_qmp_pretty, QEMU_OPTION_monitor, .more = true },
};

/* Options that make something with an id, or a device without one */
static const struct {
    int index;
    ExecUpgradeLedgerKind kind;
    const char *name;
    const char *type;
} makers[] = {
    { QEMU_OPTION_object, EXEC_UPGRADE_LEDGER_KIND_OBJECT,
      "object", "qom-type" },
    { QEMU_OPTION_chardev, EXEC_UPGRADE_LEDGER_KIND_CHARDEV,
      "chardev", "backend" },
    { QEMU_OPTION_netdev, EXEC_UPGRADE_LEDGER_KIND_NETDEV,
      "netdev", "type" },
    { QEMU_OPTION_device, EXEC_UPGRADE_LEDGER_KIND_DEVICE,
      "device", "driver" },
};

/* Something that an option makes; @place: of a device, where it is */
typedef struct Made {
    ExecUpgradeLedgerKind kind;
    char *id;
    char *type;
    char *place;
} Made;

/*
 * @made: of Made, devices with JSON last, as QEMU makes them
 * @ordered: for each row of ordered[] that others are like, their text
 * @files: paths of files that are read
 * @machine: the machine's type, or NULL
 * @config_file: what it makes is not all in the command line
 */
typedef struct CommandLine {
    GPtrArray *made;
    GPtrArray *ordered[ARRAY_SIZE(ordered)];
    GPtrArray *files;
    char *machine;
    bool config_file;
} CommandLine;

static void made_free(gpointer opaque)
{
    Made *made = opaque;

    g_free(made->id);
    g_free(made->type);
    g_free(made->place);
    g_free(made);
}

static void command_line_free(CommandLine *line)
{
    g_ptr_array_unref(line->made);
    g_ptr_array_unref(line->files);
    for (int i = 0; i < ARRAY_SIZE(line->ordered); i++) {
        g_ptr_array_unref(line->ordered[i]);
    }
    g_free(line->machine);
    g_free(line);
}
G_DEFINE_AUTOPTR_CLEANUP_FUNC(CommandLine, command_line_free)

/*
 * Parse
 */

static const Option *option_find(const char *arg)
{
    /* --option is -option */
    const char *name = arg + (arg[1] == '-' ? 2 : 1);

    for (int i = 0; i < ARRAY_SIZE(options); i++) {
        if (!strcmp(options[i].name, name) &&
            (options[i].arch_mask & arch_type)) {
            return &options[i];
        }
    }
    return NULL;
}

static const Made *made_find(GPtrArray *made, ExecUpgradeLedgerKind kind,
                             const char *id)
{
    for (int i = 0; id && i < made->len; i++) {
        const Made *m = g_ptr_array_index(made, i);

        if (m->kind == kind && !g_strcmp0(m->id, id)) {
            return m;
        }
    }
    return NULL;
}

/* Options with string values, of either syntax; NULL with an error */
static QDict *parse_values(const char *arg, const char *implied,
                           Error **errp)
{
    static QemuOptsList list = {
        .name = "argument",
        .head = QTAILQ_HEAD_INITIALIZER(list.head),
        .desc = { { /* any */ } },
    };
    QemuOpts *opts;
    QDict *values;

    list.implied_opt_name = implied;
    if (arg[0] == '{') {
        QObject *obj = qobject_from_json(arg, errp);

        values = qobject_to(QDict, obj);
        if (obj && !values) {
            error_setg(errp, "not an object");
            qobject_unref(obj);
        }
        return values;
    }
    opts = qemu_opts_parse(&list, arg, true, errp);
    if (!opts) {
        return NULL;
    }
    values = qemu_opts_to_qdict(opts, NULL);
    qemu_opts_del(opts);
    return values;
}

static char *value_text(const QDict *values, const char *key)
{
    QObject *value = qdict_get(values, key);
    GString *json;

    if (!value || qobject_type(value) == QTYPE_QSTRING) {
        return g_strdup(qdict_get_try_str(values, key));
    }
    json = qobject_to_json(value);
    return g_string_free(json, false);
}

/* What decides where a device is, as far as the user says */
static char *device_place(const QDict *values)
{
    g_autofree char *bus = value_text(values, "bus");
    g_autofree char *addr = value_text(values, "addr");

    return g_strdup_printf("%s, address %s", bus ?: "any bus", addr ?: "any");
}

static bool parse_made(CommandLine *line, int i, const char *arg,
                       Error **errp)
{
    g_autoptr(QDict) values = parse_values(arg, makers[i].type, errp);
    Made *made;

    if (!values) {
        return false;
    }
    made = g_new0(Made, 1);
    made->kind = makers[i].kind;
    made->id = value_text(values, "id");
    made->type = value_text(values, makers[i].type);
    if (made->kind == EXEC_UPGRADE_LEDGER_KIND_DEVICE) {
        made->place = device_place(values);
    }
    if (made_find(line->made, made->kind, made->id)) {
        error_setg(errp, "%s '%s' is there twice", makers[i].name, made->id);
        made_free(made);
        return false;
    }
    g_ptr_array_add(line->made, made);
    return true;
}

static bool parse_machine(CommandLine *line, const char *arg, Error **errp)
{
    g_autoptr(QDict) values = parse_values(arg, "type", errp);

    if (!values) {
        return false;
    }
    if (qdict_haskey(values, "type")) {
        g_free(line->machine);
        line->machine = value_text(values, "type");
    }
    return true;
}

/* Row of an option in ordered[], or -1 */
static int ordered_row(int index)
{
    for (int i = 0; i < ARRAY_SIZE(ordered); i++) {
        if (ordered[i].index == index) {
            return i;
        }
    }
    return -1;
}

static void parse_ordered(CommandLine *line, int index, const char *name,
                          const char *arg)
{
    int row = ordered_row(index);

    if (row < 0) {
        return;
    }
    if (ordered[row].file) {
        g_ptr_array_add(line->files, g_strdup(arg));
        arg = NULL;
    }
    g_ptr_array_add(line->ordered[ordered_row(ordered[row].like)],
                    g_strdup_printf("-%s%s%s", name, arg ? " " : "",
                                    arg ?: ""));
}

/* Whether an option shows what there is, and ends QEMU */
static bool is_help(const Option *option, const char *arg)
{
    switch (option->index) {
    case QEMU_OPTION_h:
    case QEMU_OPTION_version:
    case QEMU_OPTION_audio_help:
        return true;
    case QEMU_OPTION_accel:
    case QEMU_OPTION_audio:
    case QEMU_OPTION_chardev:
    case QEMU_OPTION_cpu:
    case QEMU_OPTION_d:
    case QEMU_OPTION_device:
    case QEMU_OPTION_display:
    case QEMU_OPTION_drive:
    case QEMU_OPTION_M:
    case QEMU_OPTION_machine:
    case QEMU_OPTION_netdev:
    case QEMU_OPTION_object:
    case QEMU_OPTION_trace:
        return has_help_option(arg);
    default:
        return false;
    }
}

/* JSON devices come in a pass of their own */
static bool parse_option(CommandLine *line, const Option *option,
                         const char *arg, bool json_devices, Error **errp)
{
    bool json_device = option->index == QEMU_OPTION_device && arg[0] == '{';

    if (json_devices) {
        return !json_device ||
               parse_made(line, ARRAY_SIZE(makers) - 1, arg, errp);
    }
    if (is_help(option, arg)) {
        error_setg(errp, "QEMU only shows help and ends");
        return false;
    }
    switch (option->index) {
    case QEMU_OPTION_M:
    case QEMU_OPTION_machine:
        return parse_machine(line, arg, errp);
    case QEMU_OPTION_readconfig:
        line->config_file = true;
        g_ptr_array_add(line->files, g_strdup(arg));
        return true;
    default:
        parse_ordered(line, option->index, option->name, arg);
    }
    for (int i = 0; !json_device && i < ARRAY_SIZE(makers); i++) {
        if (makers[i].index == option->index) {
            return parse_made(line, i, arg, errp);
        }
    }
    return true;
}

static bool parse_pass(CommandLine *line, char **argv, bool json_devices,
                       Error **errp)
{
    ERRP_GUARD();

    for (char **p = argv + 1; *p; p++) {
        char **first = p;
        const Option *option;
        const char *arg;

        if (**p != '-') {
            if (!json_devices) {
                parse_ordered(line, QEMU_OPTION_hda, "hda", *p);
            }
            continue;
        }
        option = option_find(*p);
        if (!option) {
            error_setg(errp, "'%s' is no option of this QEMU", *p);
            return false;
        }
        if ((option->flags & HAS_ARG) && !*++p) {
            error_setg(errp, "'%s' requires an argument", *first);
            return false;
        }
        arg = p > first ? *p : NULL;
        if (!parse_option(line, option, arg, json_devices, errp)) {
            error_prepend(errp, "'%s%s%s': ", *first, arg ? " " : "",
                          arg ?: "");
            return false;
        }
    }
    return true;
}

static CommandLine *command_line_parse(char **argv, Error **errp)
{
    g_autoptr(CommandLine) line = g_new0(CommandLine, 1);

    line->made = g_ptr_array_new_with_free_func(made_free);
    line->files = g_ptr_array_new_with_free_func(g_free);
    for (int i = 0; i < ARRAY_SIZE(line->ordered); i++) {
        line->ordered[i] = g_ptr_array_new_with_free_func(g_free);
    }
    if (!parse_pass(line, argv, false, errp) ||
        !parse_pass(line, argv, true, errp)) {
        return NULL;
    }
    return g_steal_pointer(&line);
}

/*
 * Compare
 */

static const char *machine_class_name(const char *name)
{
    GSList *list = object_class_get_list(TYPE_MACHINE, false);
    const char *found = NULL;

    for (GSList *l = list; name && l; l = l->next) {
        MachineClass *mc = MACHINE_CLASS(l->data);

        if (!g_strcmp0(mc->name, name) || !g_strcmp0(mc->alias, name)) {
            found = mc->name;
        }
    }
    g_slist_free(list);
    return found;
}

static void compare_machine(const CommandLine *new, strList **blockers)
{
    MachineClass *mc = MACHINE_GET_CLASS(qdev_get_machine());
    const char *name = new->machine ? machine_class_name(new->machine) : NULL;

    if (new->machine ? g_strcmp0(name, mc->name) : !mc->is_default) {
        exec_upgrade_add_blocker(blockers, "the machine is '%s', and not '%s'",
                                 mc->name, new->machine ?: "the default one");
    }
}

static void check_files(GPtrArray *files, strList **blockers)
{
    for (int i = 0; i < files->len; i++) {
        const char *path = g_ptr_array_index(files, i);

        /* Of a multiboot kernel, -initrd has a list */
        if (!strchr(path, ',') &&
            faccessat(exec_upgrade_cwd(), path, R_OK,
                      AT_EACCESS) < 0) {
            exec_upgrade_add_blocker(blockers, "'%s' can't be read: %s", path,
                                     strerror(errno));
        }
    }
}

static void compare_ordered(GPtrArray *old, GPtrArray *new, bool more,
                            strList **blockers)
{
    for (int i = 0; i < MAX(old->len, new->len); i++) {
        const char *was = i < old->len ? g_ptr_array_index(old, i) : NULL;
        const char *is = i < new->len ? g_ptr_array_index(new, i) : NULL;

        if (!was && more) {
            return;
        }
        if (g_strcmp0(was, is)) {
            exec_upgrade_add_blocker(blockers, "expected %s%s%s, found "
                                     "%s%s%s", was ? "'" : "", was ?: "no more",
                                     was ? "'" : "", is ? "'" : "",
                                     is ?: "no more", is ? "'" : "");
            return;
        }
    }
}

/* Whether the next process leaves it out, whether or not an option makes it */
static bool is_left_out(const Made *made,
                        const ExecUpgradeLedgerNameList *left_out)
{
    return made->id && exec_upgrade_ledger_names_have(left_out, made->kind,
                                                      made->id);
}

/* A network backend that no device has */
static bool is_spare(const Made *made)
{
    NetClientState *nc = made->kind == EXEC_UPGRADE_LEDGER_KIND_NETDEV
                         ? qemu_find_netdev(made->id) : NULL;

    return nc && !nc->peer;
}

static void compare_made(GPtrArray *old, GPtrArray *new,
                         const ExecUpgradeLedgerNameList *left_out,
                         strList **blockers)
{
    for (int i = 0; i < old->len; i++) {
        const Made *was = g_ptr_array_index(old, i);
        const Made *is = made_find(new, was->kind, was->id);

        if (was->kind == EXEC_UPGRADE_LEDGER_KIND_DEVICE || !was->id ||
            is_left_out(was, left_out)) {
            continue;
        }
        if (!is && !is_spare(was)) {
            exec_upgrade_add_blocker(blockers, "%s '%s' is missing",
                                     ExecUpgradeLedgerKind_str(was->kind),
                                     was->id);
        } else if (is && g_strcmp0(was->type, is->type)) {
            exec_upgrade_add_blocker(blockers, "%s '%s' is a '%s', and not a "
                                     "'%s'",
                                     ExecUpgradeLedgerKind_str(was->kind),
                                     was->id, was->type, is->type);
        }
    }
}

/* The next device from @*i on that there is now */
static const Made *next_device(GPtrArray *made, int *i,
                               const ExecUpgradeLedgerNameList *left_out)
{
    while (*i < made->len) {
        const Made *m = g_ptr_array_index(made, (*i)++);

        if (m->kind == EXEC_UPGRADE_LEDGER_KIND_DEVICE &&
            !is_left_out(m, left_out)) {
            return m;
        }
    }
    return NULL;
}

static char *device_text(const Made *device)
{
    return device ? g_strdup_printf("device '%s' (%s, %s)", device->id ?: "",
                                    device->type ?: "", device->place)
                  : g_strdup("no more devices");
}

/* Their order decides of the places that they take */
static void compare_devices(GPtrArray *old, GPtrArray *new,
                            const ExecUpgradeLedgerNameList *left_out,
                            strList **blockers)
{
    const Made *was, *is;
    int i = 0, j = 0;

    do {
        g_autofree char *old_text = NULL, *new_text = NULL;

        was = next_device(old, &i, left_out);
        is = next_device(new, &j, left_out);
        old_text = device_text(was);
        new_text = device_text(is);
        if (strcmp(old_text, new_text)) {
            exec_upgrade_add_blocker(blockers, "expected %s, found %s",
                                     old_text, new_text);
            return;
        }
    } while (was);
}

static void compare(const CommandLine *old, const CommandLine *new,
                    strList **blockers)
{
    ExecUpgradeLedgerNameList *left_out = exec_upgrade_ledger_left_out();

    for (int i = 0; i < ARRAY_SIZE(ordered); i++) {
        compare_ordered(old->ordered[i], new->ordered[i], ordered[i].more,
                        blockers);
    }
    if (!old->config_file && !new->config_file) {
        compare_made(old->made, new->made, left_out, blockers);
        compare_devices(old->made, new->made, left_out, blockers);
    }
    qapi_free_ExecUpgradeLedgerNameList(left_out);
}

bool exec_upgrade_arguments_check(char **argv, strList **blockers,
                                  Error **errp)
{
    ERRP_GUARD();
    g_autoptr(CommandLine) new = command_line_parse(argv, errp);
    g_autoptr(CommandLine) old = NULL;

    if (!new) {
        error_prepend(errp, "exec-upgrade: arguments: ");
        return false;
    }
    compare_machine(new, blockers);
    check_files(new->files, blockers);
    old = command_line_parse(exec_upgrade_argv(), NULL);
    if (old) {
        compare(old, new, blockers);
    }
    return true;
}
