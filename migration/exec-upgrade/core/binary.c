/*
 * Exec-upgrade: a binary, and what it says of itself
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qemu/units.h"
#include "migration/exec-upgrade/core/core.h"
#include "note.h"

#include "elf.h"

/* A program header table or a note segment larger than this is no QEMU's */
#define ELF_PART_MAX (1 * MiB)

char *exec_upgrade_binary_path(Error **errp)
{
    g_autoptr(GError) gerr = NULL;
    g_autofree char *path = g_file_read_link("/proc/self/exe", &gerr);

    if (!path) {
        error_setg(errp, "exec-upgrade: can't find the running binary: %s; "
                   "name one with 'binary'", gerr->message);
        return NULL;
    }
    /* proc(5): a file that was unlinked or replaced shows so */
    if (g_str_has_suffix(path, " (deleted)")) {
        path[strlen(path) - strlen(" (deleted)")] = '\0';
    }
    return g_steal_pointer(&path);
}

static bool read_at(int fd, void *buf, size_t size, uint64_t offset)
{
    return pread(fd, buf, size, offset) == size;
}

static bool read_ehdr(int fd, Elf64_Ehdr *ehdr)
{
    return read_at(fd, ehdr, sizeof(*ehdr), 0) &&
           memcmp(ehdr->e_ident, ELFMAG, SELFMAG) == 0;
}

/* Find our note among those of one segment; see elf(5), "Notes" */
static bool find_note(const char *notes, size_t size, ExecUpgradeNoteDesc *desc)
{
    size_t pos = 0;

    while (size - pos >= sizeof(Elf64_Nhdr)) {
        const Elf64_Nhdr *nhdr = (const Elf64_Nhdr *)(notes + pos);
        uint64_t name = pos + sizeof(*nhdr);
        uint64_t content = name + ROUND_UP((uint64_t)nhdr->n_namesz, 4);
        uint64_t end = content + ROUND_UP((uint64_t)nhdr->n_descsz, 4);

        if (end > size) {
            return false;
        }
        if (nhdr->n_type == EXEC_UPGRADE_NOTE_TYPE &&
            nhdr->n_namesz == sizeof(EXEC_UPGRADE_NOTE_NAME) &&
            nhdr->n_descsz >= sizeof(*desc) &&
            memcmp(notes + name, EXEC_UPGRADE_NOTE_NAME,
                   sizeof(EXEC_UPGRADE_NOTE_NAME)) == 0) {
            memcpy(desc, notes + content, sizeof(*desc));
            return true;
        }
        pos = end;
    }
    return false;
}

/* The program headers, e_phnum of them, or NULL */
static Elf64_Phdr *read_phdrs(int fd, const Elf64_Ehdr *ehdr)
{
    g_autofree Elf64_Phdr *phdrs = NULL;
    size_t size = ehdr->e_phnum * sizeof(Elf64_Phdr);

    if (ehdr->e_phentsize != sizeof(Elf64_Phdr)) {
        return NULL;
    }
    phdrs = g_malloc(size);
    return read_at(fd, phdrs, size, ehdr->e_phoff) ? g_steal_pointer(&phdrs)
                                                   : NULL;
}

/* What a segment has in the file, with a NUL added, or NULL */
static char *read_segment(int fd, const Elf64_Phdr *phdr)
{
    g_autofree char *content = NULL;

    if (phdr->p_filesz > ELF_PART_MAX) {
        return NULL;
    }
    content = g_malloc(phdr->p_filesz + 1);
    content[phdr->p_filesz] = '\0';
    return read_at(fd, content, phdr->p_filesz, phdr->p_offset)
           ? g_steal_pointer(&content) : NULL;
}

static bool read_note(int fd, const Elf64_Ehdr *ehdr, ExecUpgradeNoteDesc *desc)
{
    g_autofree Elf64_Phdr *phdrs = read_phdrs(fd, ehdr);

    for (int i = 0; phdrs && i < ehdr->e_phnum; i++) {
        g_autofree char *notes = phdrs[i].p_type == PT_NOTE ?
                                 read_segment(fd, &phdrs[i]) : NULL;

        if (notes && find_note(notes, phdrs[i].p_filesz, desc)) {
            return true;
        }
    }
    return false;
}

bool exec_upgrade_binary_has_note(int fd)
{
    ExecUpgradeNoteDesc desc;
    Elf64_Ehdr ehdr;

    return read_ehdr(fd, &ehdr) && read_note(fd, &ehdr, &desc);
}

char *exec_upgrade_binary_loader(int fd)
{
    g_autofree Elf64_Phdr *phdrs = NULL;
    Elf64_Ehdr ehdr;

    phdrs = read_ehdr(fd, &ehdr) ? read_phdrs(fd, &ehdr) : NULL;
    for (int i = 0; phdrs && i < ehdr.e_phnum; i++) {
        if (phdrs[i].p_type == PT_INTERP) {
            return read_segment(fd, &phdrs[i]);
        }
    }
    return NULL;
}

bool exec_upgrade_binary_check(int fd, const char *path, Error **errp)
{
    ExecUpgradeNoteDesc desc;
    Elf64_Ehdr own, ehdr;
    struct stat st;
    int self;
    bool ok;

    if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode)) {
        error_setg(errp, "exec-upgrade: %s is not a regular file", path);
        return false;
    }
    if (faccessat(AT_FDCWD, path, X_OK, AT_EACCESS) < 0) {
        error_setg(errp, "exec-upgrade: %s is not executable", path);
        return false;
    }
    if (!read_ehdr(fd, &ehdr)) {
        error_setg(errp, "exec-upgrade: %s is not an ELF file", path);
        return false;
    }

    self = qemu_open_old("/proc/self/exe", O_RDONLY);
    ok = self >= 0 && read_ehdr(self, &own);
    if (self >= 0) {
        close(self);
    }
    if (!ok) {
        error_setg(errp, "exec-upgrade: can't read the running binary");
        return false;
    }
    if (ehdr.e_ident[EI_CLASS] != own.e_ident[EI_CLASS] ||
        ehdr.e_ident[EI_DATA] != own.e_ident[EI_DATA] ||
        ehdr.e_machine != own.e_machine) {
        error_setg(errp, "exec-upgrade: %s is an ELF file for machine %d, "
                   "expected %d as in the running binary", path,
                   ehdr.e_machine, own.e_machine);
        return false;
    }
    if (!read_note(fd, &ehdr, &desc)) {
        error_setg(errp, "exec-upgrade: %s does not support exec-upgrade (no "
                   "handoff note); install a build that has it", path);
        return false;
    }
    if (desc.format_min > EXEC_UPGRADE_FORMAT ||
        desc.format_max < EXEC_UPGRADE_FORMAT) {
        error_setg(errp, "exec-upgrade: %s reads handoff formats %u to %u, "
                   "expected %d among them", path, desc.format_min,
                   desc.format_max, EXEC_UPGRADE_FORMAT);
        return false;
    }
    if (strncmp(desc.target, exec_upgrade_target, sizeof(desc.target))) {
        error_setg(errp, "exec-upgrade: %s emulates %.*s, expected %s", path,
                   (int)sizeof(desc.target), desc.target, exec_upgrade_target);
        return false;
    }
    return true;
}
