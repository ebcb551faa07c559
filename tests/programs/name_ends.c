/* Names that end in a slash, in `.` or in `..`: what each call on a name says of them, on a volume and in /tmp. What Linux
 * says is in no list here: the output is compared with a native run's. Argument 1 names a folder to make. */
#include "check.h"
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

static const char *const ENDS[] = {"", "/", "/.", "/..", "/./", "//", "/more", "/more/"};
static const char *const NAMES[] = {"file", "other", "full", "empty", "to_file", "to_full", "to_nothing", "absent", ".", ".."};

static void fresh(void) {
    MUST(system("rm -rf file other full empty to_file to_full to_nothing absent more nowhere") == 0);
    MUST(close(creat("file", 0600)) == 0 && close(creat("other", 0600)) == 0 && mkdir("full", 0700) == 0 && mkdir("empty", 0700) == 0);
    MUST(mkdir("full/in", 0700) == 0 && symlink("file", "to_file") == 0 && symlink("full", "to_full") == 0 && symlink("nowhere", "to_nothing") == 0);
}

static int make(const char *path) {
    int fd = open(path, O_CREAT | O_WRONLY, 0600);
    return fd < 0 ? -1 : close(fd);
}

static int opened(const char *path) {
    int fd = open(path, O_RDONLY);
    return fd < 0 ? -1 : close(fd);
}

static int seen(const char *path) {
    struct stat stat;
    return lstat(path, &stat);
}

static int directory(const char *path) { return mkdir(path, 0700); }
static int fifo(const char *path) { return mknod(path, S_IFIFO | 0600, 0); }
static int link_to(const char *path) { return symlink("anything", path); }
static int second(const char *path) { return link("file", path); }
static int first(const char *path) { return link(path, "more"); }
static int moved_file(const char *path) { return rename("other", path); }
static int moved_directory(const char *path) { return rename("empty", path); }
static int moved(const char *path) { return rename(path, "more"); }

static const struct {
    const char *name;
    int (*call)(const char *);
} CALLS[] = {
    {"open", opened},   {"creat", make},        {"lstat", seen},        {"mkdir", directory},
    {"mknod", fifo},    {"symlink", link_to},   {"link to", second},    {"link from", first},
    {"unlink", unlink}, {"rmdir", rmdir},       {"move file to", moved_file}, {"move folder to", moved_directory},
    {"move", moved},
};

/* Two folders deeper, so that no name leads to another file system. */
static void all(void) {
    char path[64];
    MUST(mkdir("one", 0700) == 0 && mkdir("one/two", 0700) == 0 && chdir("one/two") == 0);
    fresh();
    for (size_t c = 0; c < sizeof CALLS / sizeof *CALLS; c++) {
        for (size_t n = 0; n < sizeof NAMES / sizeof *NAMES; n++) {
            for (size_t e = 0; e < sizeof ENDS / sizeof *ENDS; e++) {
                snprintf(path, sizeof path, "%s%s", NAMES[n], ENDS[e]);
                errno = 0;
                int result = CALLS[c].call(path);
                printf("%s %s: %d\n", CALLS[c].name, path, result == 0 ? 0 : errno);
                if (result == 0 && CALLS[c].call != opened && CALLS[c].call != seen)
                    fresh();
            }
        }
    }
}

int main(int argc, char **argv) {
    char here[] = "/tmp/cloak-name-ends-XXXXXX";
    MUST(argc == 2 && mkdir(argv[1], 0700) == 0 && chdir(argv[1]) == 0);
    all();
    MUST(mkdtemp(here) != NULL && chdir(here) == 0);
    all();
    char command[512];
    snprintf(command, sizeof command, "cd / && rm -rf '%s' '%s'", argv[1], here);
    return system(command);
}
