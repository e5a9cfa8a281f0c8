/*
 * Exec-upgrade: the place of a device
 *
 * A device that was given no place took the next that was free, which depends
 * on what was plugged before it.  The guest knows it by that place, and so
 * does the device state.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "hw/core/cpu.h"
#include "hw/pci/pci.h"
#include "hw/qdev-core.h"
#include "hw/qdev-properties.h"
#include "hw/usb.h"
#include "qapi/error.h"
#include "qapi/qmp/qbool.h"
#include "qapi/qmp/qdict.h"
#include "qapi/qmp/qnum.h"
#include "qapi/qmp/qstring.h"
#include "qemu/cutils.h"
#include "qom/qom-qobject.h"
#include "migration/exec-upgrade/ledger/ledger.h"

/* Properties that are decided when a device is made, if not given before */
static const struct {
    const char *type;
    const char *properties[4];
} places[] = {
    { "scsi-device", { "channel", "scsi-id", "lun" } },
    { "ide-device", { "unit" } },
    { "virtio-serial-port", { "nr" } },
    { "pc-dimm", { "slot", "addr" } },
    { "virtio-mem-pci", { "memaddr" } },
    { "virtio-pmem-pci", { "memaddr" } },
    { "hda-codec", { "cad" } },
    { "ccid-card", { "slot" } },
    { TYPE_CPU, { "socket-id", "die-id", "core-id", "thread-id" } },
    { TYPE_DEVICE, { "mac" } },
};

/* As keyval's visitor reads it */
static char *value_text(const QObject *value)
{
    switch (qobject_type(value)) {
    case QTYPE_QBOOL:
        return g_strdup(qbool_get_bool(qobject_to(QBool, value)) ? "on"
                                                                 : "off");
    case QTYPE_QNUM:
        return qnum_to_string(qobject_to(QNum, value));
    case QTYPE_QSTRING:
        return g_strdup(qstring_get_str(qobject_to(QString, value)));
    default:
        g_assert_not_reached();
    }
}

static void put_value(QDict *options, const char *name, QObject *value,
                      bool typed)
{
    if (typed) {
        qdict_put_obj(options, name, qobject_ref(value));
    } else {
        g_autofree char *text = value_text(value);

        qdict_put_str(options, name, text);
    }
}

/* Have @place give a property the value that it has now */
static void put_property(QDict *place, DeviceState *dev, const char *name)
{
    if (object_property_find(OBJECT(dev), name)) {
        qdict_put_obj(place, name,
                      object_property_get_qobject(OBJECT(dev), name,
                                                  &error_abort));
    }
}

/*
 * Buses
 */

typedef struct BusSearch {
    const char *name;
    int found;
} BusSearch;

static int count_bus(BusState *bus, void *opaque)
{
    BusSearch *search = opaque;

    search->found += !strcmp(bus->name, search->name);
    return 0;
}

static bool bus_name_is_unique(const char *name)
{
    BusSearch search = { .name = name };

    qbus_walk_children(sysbus_get_default(), NULL, count_bus, NULL, NULL,
                       &search);
    return search.found == 1;
}

static bool put_bus(QDict *place, DeviceState *dev, Error **errp)
{
    BusState *bus = dev->parent_bus;
    g_autofree char *name = exec_upgrade_device_name(dev);

    if (!bus || bus == sysbus_get_default()) {
        return true;
    }
    if (!bus_name_is_unique(bus->name)) {
        error_setg(errp, "device '%s' was not given a bus, and there is more "
                   "than one with the name '%s'", name, bus->name);
        return false;
    }
    qdict_put_str(place, "bus", bus->name);
    return true;
}

static void put_pci(QDict *place, DeviceState *dev)
{
    PCIDevice *pdev = (PCIDevice *)object_dynamic_cast(OBJECT(dev),
                                                       TYPE_PCI_DEVICE);
    g_autofree char *addr = NULL;

    if (pdev) {
        addr = g_strdup_printf("%02x.%x", PCI_SLOT(pdev->devfn),
                               PCI_FUNC(pdev->devfn));
        qdict_put_str(place, "addr", addr);
    }
}

/*
 * QEMU adds a hub by itself when a device that was given no port takes the
 * last one.  The hub is where it was only if all is plugged in the same order.
 */
static bool has_hub_of_its_own(USBBus *bus)
{
    USBPort *port;

    QTAILQ_FOREACH(port, &bus->used, next) {
        if (port->dev && object_dynamic_cast(OBJECT(port->dev), "usb-hub") &&
            !DEVICE(port->dev)->opts) {
            return true;
        }
    }
    return false;
}

static bool put_usb(QDict *place, DeviceState *dev, Error **errp)
{
    USBDevice *udev = (USBDevice *)object_dynamic_cast(OBJECT(dev),
                                                       TYPE_USB_DEVICE);
    g_autofree char *name = exec_upgrade_device_name(dev);

    if (!udev || !udev->port) {
        return true;
    }
    if (has_hub_of_its_own(usb_bus_from_device(udev))) {
        error_setg(errp, "device '%s' was not given a port, and QEMU has added "
                   "a USB hub to its bus by itself", name);
        return false;
    }
    qdict_put_str(place, "port", udev->port->path);
    return true;
}

QDict *exec_upgrade_device_place(DeviceState *dev, const QDict *options,
                                 Error **errp)
{
    QDict *place = qdict_new();

    if ((!qdict_haskey(options, "bus") && !put_bus(place, dev, errp)) ||
        (!qdict_haskey(options, "port") && !put_usb(place, dev, errp))) {
        qobject_unref(place);
        return NULL;
    }
    put_pci(place, dev);
    for (int i = 0; i < ARRAY_SIZE(places); i++) {
        if (!object_dynamic_cast(OBJECT(dev), places[i].type)) {
            continue;
        }
        for (int j = 0; j < ARRAY_SIZE(places[i].properties) &&
             places[i].properties[j]; j++) {
            put_property(place, dev, places[i].properties[j]);
        }
    }
    return place;
}

void exec_upgrade_device_options_merge(QDict *options, const QDict *place,
                                       bool typed)
{
    for (const QDictEntry *e = qdict_first(place); e;
         e = qdict_next(place, e)) {
        if (!qdict_haskey(options, qdict_entry_key(e))) {
            put_value(options, qdict_entry_key(e), qdict_entry_value(e),
                      typed);
        }
    }
}

QDict *exec_upgrade_device_options(DeviceState *dev, const QDict *options,
                                   bool typed, Error **errp)
{
    QDict *place = exec_upgrade_device_place(dev, options, errp);
    QDict *all;

    if (!place) {
        return NULL;
    }
    all = qdict_clone_shallow(options);
    exec_upgrade_device_options_merge(all, place, typed);
    qobject_unref(place);
    return all;
}

/*
 * Numbers
 */

int exec_upgrade_device_number(DeviceState *dev)
{
    const char *name = object_get_canonical_path_component(OBJECT(dev));
    int number = -1;

    return sscanf(name, "device[%d]", &number) == 1 ? number : -1;
}

/* The number of a bus that got its name from it, or -1 */
static int bus_number(BusState *bus)
{
    const char *type = object_get_typename(OBJECT(bus));
    size_t len = strlen(type);
    int number;

    if (g_ascii_strncasecmp(bus->name, type, len) || bus->name[len] != '.' ||
        qemu_strtoi(bus->name + len + 1, NULL, 10, &number) < 0) {
        return -1;
    }
    return number;
}

static int add_bus(Object *obj, void *opaque)
{
    BusState *bus = (BusState *)object_dynamic_cast(obj, TYPE_BUS);
    ExecUpgradeLedgerBusList **list = opaque;
    ExecUpgradeLedgerBus *b;

    /* One whose device has an id is named by that */
    if (!bus || (bus->parent && bus->parent->id) || bus_number(bus) < 0) {
        return 0;
    }
    b = g_new0(ExecUpgradeLedgerBus, 1);
    b->type = g_strdup(object_get_typename(obj));
    b->number = bus_number(bus);
    QAPI_LIST_PREPEND(*list, b);
    return 0;
}

ExecUpgradeLedgerBusList *exec_upgrade_device_buses(DeviceState *dev)
{
    ExecUpgradeLedgerBusList *list = NULL;

    object_child_foreach_recursive(OBJECT(dev), add_bus, &list);
    return list;
}

void exec_upgrade_device_buses_next(const ExecUpgradeLedgerBusList *list)
{
    for (; list; list = list->next) {
        ObjectClass *oc = object_class_by_name(list->value->type);

        if (oc && object_class_dynamic_cast(oc, TYPE_BUS)) {
            BUS_CLASS(oc)->automatic_ids = list->value->number;
        }
    }
}
