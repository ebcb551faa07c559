/* Names and directories: getdents64, stat in all its forms, links, renames, the *at calls, access, times, the current
 * directory, and large directories read in pieces. Argument 1 names a folder to make. */
#include "check.h"
#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { MANY = 500 };

static void make(const char *name, const char *text) {
    int fd = open(name, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    MUST(fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text) && close(fd) == 0);
}

static void stats(void) {
    struct stat by_name, by_fd, link;
    struct statx extended;
    make("file", "twelve bytes");
    MUST(symlink("file", "link") == 0 && mkdir("dir", 0755) == 0);
    int fd = open("file", O_RDONLY);
    CHECK("stat", stat("file", &by_name) == 0 && by_name.st_size == 12 && S_ISREG(by_name.st_mode) && by_name.st_nlink == 1);
    CHECK("fstat agrees", fstat(fd, &by_fd) == 0 && by_fd.st_ino == by_name.st_ino && by_fd.st_dev == by_name.st_dev);
    CHECK("lstat sees the link", lstat("link", &link) == 0 && S_ISLNK(link.st_mode) && link.st_size == 4);
    CHECK("stat goes through it", stat("link", &link) == 0 && link.st_ino == by_name.st_ino);
    CHECK("statx", statx(AT_FDCWD, "file", 0, STATX_BASIC_STATS, &extended) == 0 && extended.stx_size == 12 && extended.stx_ino == by_name.st_ino);
    CHECK("statx of a descriptor", statx(fd, "", AT_EMPTY_PATH, STATX_SIZE, &extended) == 0 && extended.stx_size == 12);
    CHECK("statx of the link", statx(AT_FDCWD, "link", AT_SYMLINK_NOFOLLOW, STATX_TYPE, &extended) == 0 && S_ISLNK(extended.stx_mode));
    CHECK_FAILS("stat of nothing", stat("absent", &link), ENOENT);
    CHECK_FAILS("stat through a file", stat("file/below", &link), ENOTDIR);
    CHECK("the mode follows umask", (umask(022), by_name.st_mode & 07777) == 0644);
    struct timespec times[2] = {{1000000000, 5}, {1234567890, 123456789}};
    CHECK("utimensat", utimensat(AT_FDCWD, "file", times, 0) == 0 && stat("file", &by_name) == 0 && by_name.st_mtim.tv_sec == 1234567890 && by_name.st_mtim.tv_nsec == 123456789);
    CHECK("chmod", chmod("file", 0600) == 0 && stat("file", &by_name) == 0 && (by_name.st_mode & 07777) == 0600);
    CHECK("access", access("file", R_OK | W_OK) == 0 && access("dir", X_OK) == 0);
    CHECK_FAILS("access of nothing", access("absent", F_OK), ENOENT);
    struct statfs system;
    CHECK("statfs", statfs(".", &system) == 0 && system.f_bsize > 0 && system.f_blocks > 0);
    close(fd);
}

static void links(void) {
    struct stat status;
    char target[10];
    CHECK("link", link("file", "hard") == 0 && stat("hard", &status) == 0 && status.st_nlink == 2);
    CHECK("readlink", readlink("link", target, sizeof target) == 4 && memcmp(target, "file", 4) == 0);
    CHECK("readlink cut short", readlink("link", target, 2) == 2);
    CHECK_FAILS("readlink of a file", readlink("file", target, 10), EINVAL);
    MUST(symlink("loop", "loop") == 0);
    CHECK_FAILS("a loop of links", open("loop", O_RDONLY), ELOOP);
    CHECK_FAILS("O_NOFOLLOW", open("link", O_RDONLY | O_NOFOLLOW), ELOOP);
    CHECK("unlink leaves the other name", unlink("hard") == 0 && stat("file", &status) == 0 && status.st_nlink == 1);
    int fd = open("file", O_RDONLY);
    CHECK("an open file outlives its name", unlink("file") == 0 && read(fd, target, 6) == 6 && memcmp(target, "twelve", 6) == 0);
    CHECK("and has no links", fstat(fd, &status) == 0 && status.st_nlink == 0);
    close(fd);
    CHECK_FAILS("a dangling link", open("link", O_RDONLY), ENOENT);
    CHECK("removed", unlink("link") == 0 && unlink("loop") == 0);
}

static void renames(void) {
    make("a", "A");
    make("b", "B");
    char byte;
    CHECK("rename replaces", rename("a", "b") == 0 && access("a", F_OK) == -1);
    int fd = open("b", O_RDONLY);
    CHECK("with the source's data", read(fd, &byte, 1) == 1 && byte == 'A');
    close(fd);
    make("c", "C");
    CHECK_FAILS("RENAME_NOREPLACE", renameat2(AT_FDCWD, "c", AT_FDCWD, "b", RENAME_NOREPLACE), EEXIST);
    CHECK("RENAME_EXCHANGE", renameat2(AT_FDCWD, "c", AT_FDCWD, "b", RENAME_EXCHANGE) == 0 && (fd = open("b", O_RDONLY)) >= 0 && read(fd, &byte, 1) == 1 && byte == 'C');
    close(fd);
    CHECK_FAILS("a file onto a directory", rename("b", "dir"), EISDIR);
    CHECK_FAILS("a directory into itself", rename("dir", "dir/below"), EINVAL);
    CHECK("a directory", rename("dir", "moved") == 0 && access("moved", F_OK) == 0);
    CHECK("removed", unlink("b") == 0 && unlink("c") == 0 && rmdir("moved") == 0);
}

static void relative(void) {
    char where[4096], under[4200];
    MUST(mkdir("sub", 0755) == 0 && getcwd(where, sizeof where) != NULL);
    int dir = open("sub", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int fd = openat(dir, "inner", O_CREAT | O_WRONLY, 0600);
    CHECK("openat", fd >= 0 && access("sub/inner", F_OK) == 0);
    close(fd);
    CHECK("mkdirat and unlinkat", mkdirat(dir, "d", 0700) == 0 && unlinkat(dir, "d", AT_REMOVEDIR) == 0);
    CHECK("faccessat and fstatat", faccessat(dir, "inner", R_OK, 0) == 0 && fstatat(dir, "inner", &(struct stat){0}, 0) == 0);
    CHECK("fchdir", fchdir(dir) == 0 && access("inner", F_OK) == 0);
    snprintf(under, sizeof under, "%s/sub", where);
    char now[4200];
    CHECK("getcwd", getcwd(now, sizeof now) != NULL && strcmp(now, under) == 0);
    CHECK("chdir up", chdir("..") == 0 && getcwd(now, sizeof now) != NULL && strcmp(now, where) == 0);
    CHECK_FAILS("getcwd with no room", syscall(SYS_getcwd, now, 2), ERANGE);
    CHECK_FAILS("rmdir of what is not empty", rmdir("sub"), ENOTEMPTY);
    CHECK_FAILS("unlink of a directory", unlink("sub"), EISDIR);
    CHECK_FAILS("openat below a file", openat(dir, "inner/x", O_RDONLY), ENOTDIR);
    char name[300];
    memset(name, 'n', 299);
    name[299] = 0;
    CHECK_FAILS("a name too long", open(name, O_RDONLY), ENAMETOOLONG);
    CHECK("removed", unlinkat(dir, "inner", 0) == 0 && rmdir("sub") == 0 && close(dir) == 0);
    int path_only = open(".", O_PATH);
    CHECK_FAILS("O_PATH does not read", read(path_only, name, 1), EBADF);
    close(path_only);
    int temporary = open(".", O_TMPFILE | O_RDWR, 0600);
    CHECK("O_TMPFILE", temporary >= 0 && write(temporary, "t", 1) == 1);
    close(temporary);
}

static void listing(void) {
    char name[40];
    MUST(mkdir("many", 0755) == 0 && chdir("many") == 0);
    for (int i = 0; i < MANY; i++) {
        snprintf(name, sizeof name, "entry-%d-%0*d", i, i % 20 + 1, i);
        make(name, "");
    }
    /* A small buffer, so that the directory comes in many pieces. */
    char buffer[600];
    int fd = open(".", O_RDONLY | O_DIRECTORY), entries = 0, dots = 0, wrong = 0;
    static char seen[MANY];
    for (long got; (got = syscall(SYS_getdents64, fd, buffer, sizeof buffer)) > 0;)
        for (long at = 0; at < got;) {
            struct dirent64 *entry = (struct dirent64 *)(buffer + at);
            int number;
            if (entry->d_name[0] == '.')
                dots++;
            else if (sscanf(entry->d_name, "entry-%d-", &number) == 1 && !seen[number]++)
                entries += entry->d_type == DT_REG || entry->d_type == DT_UNKNOWN;
            else
                wrong++;
            at += entry->d_reclen;
        }
    CHECK_WITH("every entry once", entries == MANY && dots == 2 && wrong == 0, entries);
    CHECK_FAILS("a buffer too small", (lseek(fd, 0, SEEK_SET), syscall(SYS_getdents64, fd, buffer, 10)), EINVAL);
    close(fd);
    DIR *dir = opendir(".");
    int count = 0, removed = 0;
    while (readdir(dir) != NULL)
        count++;
    rewinddir(dir);
    for (struct dirent *entry; (entry = readdir(dir)) != NULL;)
        removed += entry->d_name[0] != '.' && unlink(entry->d_name) == 0;
    CHECK_WITH("readdir, rewinddir, and removal on the way", count == MANY + 2 && removed == MANY, removed);
    closedir(dir);
    CHECK("removed", chdir("..") == 0 && rmdir("many") == 0);
}

/* The fields of `struct open_how`; the header is newer than some C libraries. */
static long open_within(int folder, const char *name, unsigned long flags, unsigned long bounds) {
    uint64_t how[3] = {flags, 0, bounds};
    long fd = syscall(437, folder, name, how, sizeof how);
    if (fd >= 0)
        close((int)fd);
    return fd >= 0 ? 0 : -1;
}

enum { NO_XDEV = 1, NO_MAGIC = 2, NO_LINKS = 4, BENEATH = 8, IN_ROOT = 16 };

static void within(void) {
    MUST(mkdir("in", 0755) == 0 && mkdir("in/deeper", 0755) == 0);
    make("out", "x");
    make("in/file", "x");
    MUST(symlink("../out", "in/escape") == 0 && symlink("/file", "in/absolute") == 0);
    MUST(symlink("file", "in/near") == 0 && symlink("../file", "in/deeper/up") == 0);
    int in = open("in", O_RDONLY | O_DIRECTORY);
    MUST(in >= 0);
    CHECK("beneath", open_within(in, "file", O_RDONLY, BENEATH) == 0);
    CHECK("a link beneath", open_within(in, "near", O_RDONLY, BENEATH) == 0);
    CHECK("up and not out", open_within(in, "deeper/../deeper/up", O_RDONLY, BENEATH) == 0);
    CHECK_FAILS("out by its name", open_within(in, "../out", O_RDONLY, BENEATH), EXDEV);
    CHECK_FAILS("out and in again", open_within(in, "../in/file", O_RDONLY, BENEATH), EXDEV);
    CHECK_FAILS("out by a link", open_within(in, "escape", O_RDONLY, BENEATH), EXDEV);
    CHECK_FAILS("out by an absolute link", open_within(in, "absolute", O_RDONLY, BENEATH), EXDEV);
    CHECK_FAILS("an absolute name", open_within(in, "/etc/passwd", O_RDONLY, BENEATH), EXDEV);
    CHECK("another root: an absolute name", open_within(in, "/file", O_RDONLY, IN_ROOT) == 0);
    CHECK("another root: an absolute link", open_within(in, "absolute", O_RDONLY, IN_ROOT) == 0);
    CHECK("another root: its parent is itself", open_within(in, "../../file", O_RDONLY, IN_ROOT) == 0);
    CHECK_FAILS("another root: nothing outside", open_within(in, "escape", O_RDONLY, IN_ROOT), ENOENT);
    CHECK("no links on the way", open_within(in, "deeper/../file", O_RDONLY, NO_LINKS) == 0);
    CHECK_FAILS("a link on the way", open_within(in, "near", O_RDONLY, NO_LINKS), ELOOP);
    CHECK("the link itself", open_within(in, "near", O_PATH | O_NOFOLLOW, NO_LINKS) == 0);
    CHECK_FAILS("a link to what is open", open_within(AT_FDCWD, "/proc/self/fd/0", O_PATH, NO_MAGIC), ELOOP);
    CHECK_FAILS("another file system", open_within(AT_FDCWD, "/proc/version", O_RDONLY, NO_XDEV), EXDEV);
    CHECK("the same one", open_within(in, "deeper/up", O_RDONLY, NO_XDEV) == 0);
    CHECK_FAILS("both", open_within(in, "file", O_RDONLY, BENEATH | IN_ROOT), EINVAL);
    CHECK_FAILS("bits that are none", open_within(in, "file", O_RDONLY, 0x100), EINVAL);
    close(in);
    MUST(unlink("in/deeper/up") == 0 && unlink("in/near") == 0 && unlink("in/absolute") == 0);
    MUST(unlink("in/escape") == 0 && unlink("in/file") == 0 && unlink("out") == 0);
    MUST(rmdir("in/deeper") == 0 && rmdir("in") == 0);
}

int main(int argc, char **argv) {
    const char *folder = argc > 1 ? argv[1] : "/tmp/cloak-directories";
    umask(022);
    MUST(mkdir(folder, 0755) == 0 && chdir(folder) == 0);
    stats();
    links();
    renames();
    relative();
    listing();
    within();
    CHECK("the folder is empty again", chdir("/") == 0 && rmdir(folder) == 0);
    return check_result();
}
