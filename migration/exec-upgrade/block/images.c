/*
 * Exec-upgrade: images
 *
 * The new process opens every image again, by the path that it was opened
 * by, so that each must still be found there, and be the same file.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "block/block_int.h"
#include "migration/exec-upgrade-monitor.h"
#include "qapi/error.h"
#include "qemu/cutils.h"
#include "migration/exec-upgrade/block/block.h"

static bool same_file(const struct stat *a, const struct stat *b)
{
    return a->st_dev == b->st_dev && a->st_ino == b->st_ino &&
           a->st_rdev == b->st_rdev &&
           (a->st_mode & S_IFMT) == (b->st_mode & S_IFMT);
}

/* @path names a member of a descriptor set: sets @id */
static bool is_fdset(const char *path, int64_t *id)
{
    return strstart(path, "/dev/fdset/", &path) &&
           qemu_strtoi64(path, NULL, 10, id) == 0;
}

/*
 * What is opened read-only until something writes to it is opened so twice:
 * inactive, and when it is activated
 */
static char *fdset_problem(int64_t id, bool auto_read_only, bool writable)
{
    if ((auto_read_only || !writable) &&
        !exec_upgrade_fdset_can_open(id, O_RDONLY)) {
        return g_strdup_printf("can't be opened again: descriptor set '%"
                               PRId64 "' has none for reading only", id);
    }
    if (writable && !exec_upgrade_fdset_can_open(id, O_RDWR)) {
        return g_strdup_printf("can't be opened again: descriptor set '%"
                               PRId64 "' has none for reading and writing",
                               id);
    }
    return NULL;
}

/* Returns the reason why an image can't be opened again, or NULL */
static char *image_problem(BlockDriverState *bs, const char *path, int fd,
                           bool writable)
{
    int cwd = exec_upgrade_cwd();
    struct stat opened, found;
    int64_t fdset_id;

    if (fstat(fd, &opened) < 0) {
        return g_strdup_printf("can't be examined: %s", strerror(errno));
    }
    if (is_fdset(path, &fdset_id)) {
        return fdset_problem(fdset_id, bs->open_flags & BDRV_O_AUTO_RDONLY,
                             writable);
    }
    if (fstatat(cwd, path, &found, 0) < 0) {
        return g_strdup_printf("is not at '%s' any more: %s", path,
                               strerror(errno));
    }
    if (!same_file(&opened, &found)) {
        return g_strdup_printf("is not at '%s' any more: another file has "
                               "its place", path);
    }
    if (faccessat(cwd, path, writable ? R_OK | W_OK : R_OK, AT_EACCESS) < 0) {
        return g_strdup_printf("can't be opened again at '%s': %s", path,
                               strerror(errno));
    }
    return NULL;
}

void exec_upgrade_image_blockers(BlockDriverState *bs, strList **blockers)
{
    g_autofree char *problem = NULL;
    const char *path;
    bool writable;
    int fd = exec_upgrade_image_fd(bs, &path, &writable);

    if (fd >= 0) {
        problem = image_problem(bs, path, fd, writable);
    }
    if (problem) {
        exec_upgrade_add_blocker(blockers, "the image of block node '%s' %s",
                                 bs->node_name, problem);
    }
}

static void image_add(ExecUpgradeHandoff *h, const char *node,
                      const char *path, const struct stat *st)
{
    ExecUpgradeImage *image = g_new0(ExecUpgradeImage, 1);

    image->node = g_strdup(node);
    image->path = g_strdup(path);
    image->device = st->st_dev;
    image->inode = st->st_ino;
    image->rdev = st->st_rdev;
    QAPI_LIST_PREPEND(h->images, image);
}

bool exec_upgrade_image_save(ExecUpgradeHandoff *h, BlockDriverState *bs,
                             Error **errp)
{
    g_autofree char *problem = NULL;
    const char *path;
    struct stat st;
    bool writable;
    int fd = exec_upgrade_image_fd(bs, &path, &writable);

    if (fd < 0) {
        return true;
    }
    /* It may have been replaced since it was checked */
    problem = image_problem(bs, path, fd, writable);
    if (problem || fstat(fd, &st) < 0) {
        error_setg(errp, "exec-upgrade: the image of block node '%s' %s",
                   bs->node_name, problem ?: strerror(errno));
        return false;
    }
    /* A change of permissions opens it again by the second of these */
    image_add(h, bs->node_name, path, &st);
    if (strcmp(path, bs->filename)) {
        image_add(h, bs->node_name, bs->filename, &st);
    }
    return true;
}

bool exec_upgrade_image_check(const char *path, const struct stat *st,
                              Error **errp)
{
    const ExecUpgradeHandoff *h = exec_upgrade_handoff();

    if (!h) {
        return true;
    }
    for (ExecUpgradeImageList *e = h->images; e; e = e->next) {
        const ExecUpgradeImage *image = e->value;

        if (!strcmp(image->path, path)) {
            if (image->device == st->st_dev && image->inode == st->st_ino &&
                image->rdev == st->st_rdev) {
                return true;
            }
            error_setg(errp, "exec-upgrade: '%s' is not the file that block "
                       "node '%s' had before", path, image->node);
            return false;
        }
    }
    error_setg(errp, "exec-upgrade: image '%s' was not open before", path);
    return false;
}
