/* Lengths of files as several open files and processes change them. */
#include "check.h"
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static const char *name;

static long end_of(int fd) {
    struct stat stat;
    long end = lseek(fd, 0, SEEK_END);
    return fstat(fd, &stat) == 0 && stat.st_size == end ? end : -2;
}

static int opened(int flags) {
    int fd = open(name, flags, 0644);
    CHECK_WITH("open", fd >= 0, errno);
    return fd;
}

static void open_files(void) {
    char bytes[100] = {0};
    int one = opened(O_RDWR | O_CREAT | O_TRUNC), two = opened(O_RDWR), end = opened(O_WRONLY | O_APPEND);
    CHECK_WITH("empty", end_of(one) == 0, end_of(one));
    CHECK("write", pwrite(two, bytes, 100, 50) == 100);
    CHECK_WITH("after a write by another", end_of(one) == 150, end_of(one));
    CHECK("write inside", pwrite(one, bytes, 10, 20) == 10);
    CHECK_WITH("as long as before", end_of(two) == 150, end_of(two));
    CHECK("append", write(end, bytes, 30) == 30);
    CHECK_WITH("where it is", lseek(end, 0, SEEK_CUR) == 180, lseek(end, 0, SEEK_CUR));
    CHECK_WITH("after an append", end_of(one) == 180, end_of(one));
    CHECK("append set later", fcntl(two, F_SETFL, O_APPEND) == 0 && write(two, bytes, 5) == 5);
    CHECK_WITH("after that", end_of(one) == 185, end_of(one));
    CHECK("cut", ftruncate(one, 60) == 0);
    CHECK_WITH("after the cut", end_of(two) == 60, end_of(two));
    CHECK("cut by name", truncate(name, 40) == 0);
    CHECK_WITH("after that", end_of(two) == 40, end_of(two));
    CHECK("allocate", posix_fallocate(one, 0, 500) == 0);
    CHECK_WITH("after the allocation", end_of(two) == 500, end_of(two));
    CHECK_WITH("write at a position", lseek(one, 0, SEEK_END) == 500 && write(one, bytes, 7) == 7, errno);
    CHECK_WITH("after that", end_of(two) == 507, end_of(two));
    int three = opened(O_RDWR | O_TRUNC);
    CHECK_WITH("emptied at an open", end_of(one) == 0, end_of(one));
    CHECK("another file of its name", unlink(name) == 0);
    int four = opened(O_RDWR | O_CREAT | O_EXCL);
    CHECK("write there", write(four, bytes, 9) == 9);
    CHECK_WITH("it has a length", end_of(four) == 9, end_of(four));
    CHECK_WITH("of its own", end_of(three) == 0, end_of(three));
    close(one), close(two), close(three), close(four), close(end);
}

/* Each appends; nobody's bytes are lost, and whoever looks last sees all. */
static void processes(void) {
    char bytes[13] = {0};
    int fd = opened(O_RDWR | O_CREAT | O_TRUNC | O_APPEND);
    for (int child = 0; child < 4; child++) {
        if (fork() == 0) {
            int own = open(name, O_WRONLY | O_APPEND);
            long seen = 0;
            for (int i = 0; i < 200; i++) {
                if (write(i % 2 ? fd : own, bytes, 13) != 13)
                    _exit(1);
                long now = lseek(own, 0, SEEK_END);
                if (now < seen + 13 || now % 13 != 0)
                    _exit(2);
                seen = now;
            }
            _exit(0);
        }
    }
    int status;
    for (int child = 0; child < 4; child++)
        CHECK_WITH("child", wait(&status) > 0 && status == 0, status);
    CHECK_WITH("all of it", end_of(fd) == 4 * 200 * 13, end_of(fd));
    close(fd);
}

int main(int argc, char **argv) {
    MUST(argc > 1);
    name = argv[1];
    open_files();
    processes();
    return checks_failed != 0;
}
