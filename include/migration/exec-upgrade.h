/*
 * Exec-upgrade: a QEMU that replaces itself under a running guest
 *
 * What the rest of QEMU calls.  See docs/devel/exec-upgrade.rst.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef MIGRATION_EXEC_UPGRADE_H
#define MIGRATION_EXEC_UPGRADE_H

#include "exec/cpu-common.h"
#include "qemu/exec-upgrade.h"
#include "sysemu/blockdev.h"

struct SerialState;
struct VirtIOSerial;

/*
 * Block flag: the memory is a file that no other process maps (a memfd, or
 * an unlinked file on hugetlbfs).  It is mapped shared, for the next process
 * to adopt, but does not count as RAM_SHARED.
 */
#define RAM_EXEC_UPGRADE (1 << 16)

/**
 * exec_upgrade_init: take over what the previous process left, if there is
 * one
 * @argv: the command line, NULL-terminated
 *
 * Called before options are parsed.  Reads and removes the environment
 * variable that names the handoff; exits if there is a handoff that can't be
 * read.
 */
void exec_upgrade_init(char **argv);

/**
 * exec_upgrade_saving_devices: whether device state is being saved for an
 * upgrade, and not for a migration or a snapshot
 *
 * What is saved only then is loaded only if exec_upgrade_adopting().
 */
bool exec_upgrade_saving_devices(void);

/**
 * exec_upgrade_enabled: whether the machine was started with exec-upgrade=on
 *
 * Meaningful once the machine's properties are set.
 */
bool exec_upgrade_enabled(void);

/**
 * exec_upgrade_skip_option: whether a command line option must not act again
 * @index: QEMU_OPTION_...
 *
 * Called for each option before it is acted on.  Also notes those that make
 * an upgrade impossible.
 */
bool exec_upgrade_skip_option(int index);

/**
 * exec_upgrade_add_fd_adopted: whether what an -add-fd adds is already in its
 * set, since the set is carried
 * @fd: the descriptor
 * @fdset_id: the set
 */
bool exec_upgrade_add_fd_adopted(int fd, int64_t fdset_id);

/**
 * exec_upgrade_keep_add_fd: keep the descriptor of an -add-fd open, for the
 * next process to find it
 * @fd: the descriptor; becomes ours
 */
void exec_upgrade_keep_add_fd(int fd);

/**
 * exec_upgrade_defer_mlock: put off locking all memory until the guest runs
 *
 * Returns true if it is done later, since the time it takes grows with the
 * size of memory.
 */
bool exec_upgrade_defer_mlock(void);

/**
 * exec_upgrade_pidfile_adopt: whether the pidfile is already written and
 * locked
 * @path: its path
 */
bool exec_upgrade_pidfile_adopt(const char *path);

/**
 * exec_upgrade_machine_ready: the machine is complete
 *
 * Called once at the end of start-up.  In a process that is adopting, loads
 * the guest and lets it go on; exits if that fails.
 */
void exec_upgrade_machine_ready(void);

/**
 * exec_upgrade_shutdown: this process is about to end
 *
 * Ends a stand-in that is being built, and fails the command for it.
 */
void exec_upgrade_shutdown(void);

/**
 * exec_upgrade_machine_class_init: add the machine property
 * @oc: class of TYPE_MACHINE
 */
void exec_upgrade_machine_class_init(ObjectClass *oc);

/*
 * Sandbox
 */

/**
 * exec_upgrade_sandbox_init: restrict the process with Landlock, so that the
 * filter of -sandbox spawn=deny can let an upgrade through
 * @machine_opts: properties that the user gave to the machine
 *
 * Called when the command line is parsed, before threads are created and
 * before parse_sandbox().
 */
void exec_upgrade_sandbox_init(const QDict *machine_opts);

/**
 * exec_upgrade_seccomp_opens: whether a rule of the filter is left out, since
 * an upgrade needs what it denies
 * @syscall: number of the system call that the rule denies
 */
bool exec_upgrade_seccomp_opens(int32_t syscall);

/**
 * exec_upgrade_seccomp_load: give a filter to the kernel, unless this process
 * has the same one already
 * @ctx: the filter, a scmp_filter_ctx
 *
 * Takes the place of seccomp_load(), and returns what that does.
 */
int exec_upgrade_seccomp_load(void *ctx);

/**
 * exec_upgrade_sandbox_is_open: whether the filter of spawn=deny is to let an
 * upgrade through
 *
 * If so, Landlock already limits what can be executed.
 */
bool exec_upgrade_sandbox_is_open(void);

/**
 * exec_upgrade_sandbox_has_filter: whether this process has a filter, from
 * whichever QEMU it was before
 * @hash: SHA-256 of the filter
 */
bool exec_upgrade_sandbox_has_filter(const char *hash);
void exec_upgrade_sandbox_note_filter(const char *hash);

/*
 * Block nodes and images
 */

/**
 * exec_upgrade_image_open: open an image file
 * @path: its path
 * @flags: as for open(2)
 * @errp: error
 *
 * Takes the place of qemu_open(), and fails if the previous process had
 * another file open by that path.  Returns the descriptor, or -1 with errno
 * set.
 */
int exec_upgrade_image_open(const char *path, int flags, Error **errp);

/**
 * exec_upgrade_image_leave: give up an image's locks with one of its
 * descriptors
 * @fd: the descriptor, which is about to be closed by qemu_close()
 * @other: the one that the image uses
 *
 * Locks belong to what a descriptor is a duplicate of.  The member of a
 * descriptor set stays open, and would go on to hold them, against our own
 * next process or a later change of permissions here.
 */
void exec_upgrade_image_leave(int fd, int other);

/**
 * exec_upgrade_image_check: whether a file is the one that the previous
 * process had open by a path, if there was a previous process
 * @path: the path
 * @st: the file that is there now
 * @errp: error
 */
bool exec_upgrade_image_check(const char *path, const struct stat *st,
                              Error **errp);

/**
 * exec_upgrade_image_fd: the file that a block node has open
 * @bs: the block node
 * @path: set to the path by which it was opened, owned by @bs
 * @writable: set to whether it is open for writing
 *
 * Returns the descriptor, which stays the node's, or -1 if the node is not a
 * file or device of this host.
 */
int exec_upgrade_image_fd(BlockDriverState *bs, const char **path,
                          bool *writable);

/**
 * exec_upgrade_block_backends_enable: have drives without a medium ask for
 * permissions when they get one
 */
void exec_upgrade_block_backends_enable(void);

/**
 * exec_upgrade_block_backends_busy: whether a request of a drive is in flight
 */
bool exec_upgrade_block_backends_busy(void);

/**
 * exec_upgrade_block_backends_check: check that every drive has taken the
 * permissions on its image that its device needs
 * @errp: error
 */
bool exec_upgrade_block_backends_check(Error **errp);

/**
 * exec_upgrade_block_backend_hold: keep who uses a drive from it
 * @blk: the drive, with a medium
 *
 * As a drained section, but for this user of the node alone: until
 * exec_upgrade_block_backend_release() it begins no request.  Until then it
 * is also inactivated although it may write.
 */
void exec_upgrade_block_backend_hold(BlockBackend *blk);
void exec_upgrade_block_backend_release(BlockBackend *blk);

/* Whether something that was begun before is not complete yet */
bool exec_upgrade_block_backend_held_busy(BlockBackend *blk);

/**
 * exec_upgrade_block_graph_open: open the block nodes that the previous
 * process had, if there was one; exits if that fails
 *
 * They are inactive.  Those of the command line are among them.
 */
void exec_upgrade_block_graph_open(void);

/**
 * exec_upgrade_drives_open: those drives of the command line are there, without
 * a medium, for which the machine looks: give them what they had in the
 * previous process, and make the others; exits if that fails
 */
void exec_upgrade_drives_open(void);

/**
 * exec_upgrade_drive_is_made_later: whether a drive of the command line is made
 * by exec_upgrade_drives_open(), if the user has not deleted it
 * @type: its interface
 */
bool exec_upgrade_drive_is_made_later(BlockInterfaceType type);

/**
 * exec_upgrade_drive_resolve: have a device show what it showed in the
 * previous process
 * @dev: the device
 * @value: value of its property "drive", which may be replaced
 */
void exec_upgrade_drive_resolve(DeviceState *dev, char **value);

/**
 * exec_upgrade_netdev_resolve: have a NIC find a network backend that was
 * deleted in the previous process
 * @value: value of its property "netdev", which may be replaced
 */
void exec_upgrade_netdev_resolve(char **value);

/**
 * exec_upgrade_drive_attached: have a device that has made an empty drive for
 * itself show what it showed in the previous process
 * @blk: the drive of any device
 * @dev: the device
 */
void exec_upgrade_drive_attached(BlockBackend *blk, DeviceState *dev);

/*
 * Devices
 */

struct AHCIState;
struct E1000Core;
struct VmGenIdState;

/**
 * exec_upgrade_ahci_check_cmd: begin the commands of a port, when the machine
 * starts
 * @s: the controller
 * @port: number of the port
 *
 * In a process that is not adopting, begins them at once.
 */
void exec_upgrade_ahci_check_cmd(struct AHCIState *s, int port);

/**
 * exec_upgrade_e1000e_load: take over which interrupts the guest has had
 * @core: the network card, its registers loaded
 */
void exec_upgrade_e1000e_load(struct E1000Core *core);

/**
 * exec_upgrade_vmgenid_adopt: take over the GUID
 * @vms: the device
 *
 * Returns whether the guest must not be told of a new GUID.
 */
bool exec_upgrade_vmgenid_adopt(struct VmGenIdState *vms);

/**
 * exec_upgrade_numa_changed: the user changed NUMA nodes in preconfig, which
 * can't be repeated
 */
void exec_upgrade_numa_changed(void);

/*
 * The ledger of what commands have made, and what they have deleted
 */

struct ObjectOptions;

/**
 * exec_upgrade_ledger_add_device: a device was made
 * @dev: the device
 * @options: as for device_add
 * @typed: values in @options have their JSON types, else all are strings
 */
void exec_upgrade_ledger_add_device(DeviceState *dev, const QDict *options,
                                    bool typed);

/**
 * exec_upgrade_ledger_anon_number: number of a device without an id
 * @next: the next one; updated
 */
int exec_upgrade_ledger_anon_number(int *next);

/*
 * exec_upgrade_object_option, exec_upgrade_device_option,
 * exec_upgrade_device_option_json: make what the command line says, but not
 * what was deleted since; and a device where it was, if there is no such one
 * before it any more
 */
void exec_upgrade_object_option(struct ObjectOptions *options, Error **errp);
DeviceState *exec_upgrade_device_option(QemuOpts *opts, Error **errp);
DeviceState *exec_upgrade_device_option_json(const QDict *options, bool typed,
                                             Error **errp);

/**
 * exec_upgrade_chardev_removed: whether a character device of the command line
 * was deleted since, so that it is not created
 * @id: its id
 */
bool exec_upgrade_chardev_removed(const char *id);

/*
 * Make what commands have added.  Exit if that fails.
 */
void exec_upgrade_objects_build(bool (*is_wanted)(const char *type));
void exec_upgrade_chardevs_build(void);

/*
 * Memory, in softmmu/physmem-exec-upgrade.c.inc
 */

/**
 * exec_upgrade_ram_alloc_anon: allocate memory that has no file of its own
 * @block: the block, complete but for its memory; gets host and fd
 * @shared: whether RAM_SHARED is set
 * @noreserve: whether RAM_NORESERVE is set
 *
 * Takes the place of qemu_anon_ram_alloc().  Returns the address, or NULL
 * with errno set.
 */
void *exec_upgrade_ram_alloc_anon(RAMBlock *block, bool shared,
                                  bool noreserve);

/**
 * exec_upgrade_ram_alloc_adopted: allocate a block whose file is carried
 * @size: size in bytes
 * @mr: its memory region, with its name set
 * @ram_flags: RAM_...
 * @errp: error
 *
 * Only if exec_upgrade_ram_adopted(@mr).  Returns a block of scratch memory,
 * over which the file is mapped when the machine is complete.
 */
RAMBlock *exec_upgrade_ram_alloc_adopted(ram_addr_t size, MemoryRegion *mr,
                                         uint32_t ram_flags, Error **errp);

/**
 * exec_upgrade_ram_adopted: whether a region's memory was set up by the
 * previous process, so that its file must not be opened, and its pages not be
 * bound or preallocated again
 * @mr: a memory region with its name set
 */
bool exec_upgrade_ram_adopted(MemoryRegion *mr);

/**
 * exec_upgrade_ram_is_scratch: whether a memory backend's file is still to be
 * mapped over what the block has now
 * @block: the block
 *
 * What it has now is empty, so that there is nothing in it to discard.
 */
bool exec_upgrade_ram_is_scratch(RAMBlock *block);

/**
 * exec_upgrade_ram_size: size that a block of memory has to have
 * @name: its idstr
 * @size: what the file that fills it has, in bytes
 *
 * Returns the size of the carried block, or @size if there is none.  A guest
 * keeps its firmware, whatever size the new version's has.
 */
uint64_t exec_upgrade_ram_size(const char *name, uint64_t size);

/**
 * exec_upgrade_pci_rom_size: size that an option ROM has to have
 * @pdev: its device; gets romsize, if its ROM is carried
 * @size: size of the file, in bytes
 *
 * Returns how much of the file is to be read.
 */
int64_t exec_upgrade_pci_rom_size(PCIDevice *pdev, int64_t size);

/**
 * exec_upgrade_ram_share_private: whether a file may be mapped shared though
 * the user did not ask for it, since no other process can see it
 * @block: gets RAM_EXEC_UPGRADE if so
 * @fd: its file
 */
bool exec_upgrade_ram_share_private(RAMBlock *block, int fd);

/*
 * Front-ends of character devices
 */

/**
 * exec_upgrade_serial_load: a character waits to be sent
 * @s: the serial port, whose watch is not set if nobody is connected any more
 */
void exec_upgrade_serial_load(struct SerialState *s);

/**
 * exec_upgrade_virtio_serial_load: the ports' state is loaded
 * @s: the device; in a process that is adopting, its s->post_load is replaced
 */
void exec_upgrade_virtio_serial_load(struct VirtIOSerial *s);

/**
 * exec_upgrade_gdb_attached: whether a debugger is connected
 */
bool exec_upgrade_gdb_attached(void);

#endif
