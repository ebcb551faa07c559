/* What mappings of a file see when it loses pages: holes, other sizes, O_TRUNC; in memory and on a volume, from two
 * processes. */
#include "check.h"
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PAGE = 4096 };

static sigjmp_buf back;

static void jump(int signal) {
    siglongjmp(back, signal);
}

/* The byte, or -1 for SIGBUS. */
static int byte_at(volatile unsigned char *at) {
    if (sigsetjmp(back, 1))
        return -1;
    return *at;
}

static int byte_of(int fd, off_t at) {
    unsigned char byte;
    return pread(fd, &byte, 1, at) == 1 ? byte : -1;
}

static unsigned char *map(int fd, int flags) {
    unsigned char *at = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, flags, fd, 0);
    MUST(at != MAP_FAILED);
    return at;
}

/* A child that has the mapping, too, answers with a byte of it (255: SIGBUS) each time that it is asked. */
static int ask[2], answer[2];

static pid_t start_child(unsigned char *shared) {
    MUST(pipe(ask) == 0 && pipe(answer) == 0);
    pid_t child = fork();
    if (child == 0) {
        int page;
        close(ask[1]);
        while (read(ask[0], &page, sizeof page) == sizeof page) {
            int byte = byte_at(shared + page * PAGE);
            unsigned char told = byte < 0 ? 255 : byte;
            MUST(write(answer[1], &told, 1) == 1);
        }
        _exit(0);
    }
    close(ask[0]);
    return child;
}

static int child_sees(int page) {
    unsigned char told;
    MUST(write(ask[1], &page, sizeof page) == sizeof page && read(answer[0], &told, 1) == 1);
    return told == 255 ? -1 : told;
}

static void check(const char *kind, int fd, const char *path) {
    printf("%s\n", kind);
    MUST(ftruncate(fd, 4 * PAGE) == 0);
    unsigned char *shared = map(fd, MAP_SHARED), *private = map(fd, MAP_PRIVATE);
    memset(shared, 7, 4 * PAGE);
    private[3 * PAGE] = 9;
    pid_t child = start_child(shared);
    CHECK("both see what is written", child_sees(1) == 7 && child_sees(3) == 7);

    if (fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, PAGE, PAGE) != 0)
        MUST(pwrite(fd, (char[PAGE]){0}, PAGE, PAGE) == PAGE);
    CHECK("a hole is zeros, to the file and both mappings", byte_of(fd, PAGE) == 0 && byte_at(shared + PAGE) == 0 && child_sees(1) == 0);
    shared[PAGE] = 5;
    CHECK("what is written there is the file's", byte_of(fd, PAGE) == 5 && child_sees(1) == 5);
    CHECK("its neighbours stay", byte_at(shared + PAGE - 1) == 7 && byte_at(shared + 2 * PAGE) == 7);

    CHECK("MADV_REMOVE is a hole, too", madvise(shared + PAGE, PAGE, MADV_REMOVE) != 0 || (byte_of(fd, PAGE) == 0 && byte_at(shared + PAGE) == 0));
    CHECK_FAILS("not of a private mapping", madvise(private, PAGE, MADV_REMOVE), EACCES);

    MUST(ftruncate(fd, 2 * PAGE + 100) == 0);
    CHECK("behind the end is SIGBUS", byte_at(shared + 3 * PAGE) == -1 && child_sees(3) == -1);
    CHECK("a private copy goes with its page", byte_at(private + 3 * PAGE) == -1);
    CHECK("the last page stays, zeros behind the end", byte_at(shared + 2 * PAGE + 99) == 7 && byte_at(shared + 2 * PAGE + 100) == 0);
    MUST(ftruncate(fd, 4 * PAGE) == 0);
    CHECK("grown again it is zeros", byte_at(shared + 3 * PAGE) == 0 && child_sees(3) == 0);
    MUST(pwrite(fd, "x", 1, 3 * PAGE) == 1);
    CHECK("and one file", byte_at(shared + 3 * PAGE) == 'x' && child_sees(3) == 'x');

    int again = open(path, O_RDWR | O_TRUNC);
    MUST(again >= 0);
    CHECK("O_TRUNC", byte_at(shared) == -1 && child_sees(0) == -1);
    MUST(pwrite(again, "y", 1, 0) == 1);
    CHECK("what comes after it", byte_at(shared) == 'y' && child_sees(0) == 'y' && byte_at(shared + PAGE) == -1);
    MUST(close(again) == 0 && close(ask[1]) == 0 && close(answer[0]) == 0 && close(answer[1]) == 0);
    MUST(waitpid(child, NULL, 0) == child);
    MUST(munmap(shared, 4 * PAGE) == 0 && munmap(private, 4 * PAGE) == 0 && close(fd) == 0);
}

int main(int argc, char **argv) {
    MUST(argc == 2);
    MUST(signal(SIGBUS, jump) != SIG_ERR);
    char path[64];
    int fd = memfd_create("pages", 0);
    MUST(fd >= 0);
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    check("a file in memory", fd, path);
    fd = open(argv[1], O_RDWR | O_CREAT | O_TRUNC, 0600);
    MUST(fd >= 0);
    check("a file of a volume", fd, argv[1]);
    MUST(unlink(argv[1]) == 0);

    int from[2], to[2];
    MUST(pipe(from) == 0 && pipe(to) == 0 && write(from[1], "bytes", 5) == 5);
    CHECK_FAILS("tee with a flag that there is not", tee(from[0], to[1], 5, 0x100), EINVAL);
    CHECK_FAILS("splice with one", splice(from[0], NULL, to[1], NULL, 5, 0x100), EINVAL);
    CHECK("without", tee(from[0], to[1], 5, 0) == 5 && splice(from[0], NULL, to[1], NULL, 5, 0) == 5);
    return check_result();
}
