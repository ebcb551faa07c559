/* Resource limits that hold: the size of files, processor time, address space, open files. */
#include "check.h"
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static volatile sig_atomic_t too_large, too_long;

static void count(int signal) {
    if (signal == SIGXFSZ)
        too_large++;
    else
        too_long++;
}

static void limit(int resource, rlim_t soft, rlim_t hard) {
    struct rlimit both = {soft, hard};
    MUST(setrlimit(resource, &both) == 0);
}

static off_t size_of(int fd) {
    struct stat about;
    MUST(fstat(fd, &about) == 0);
    return about.st_size;
}

/* Whether the call was refused with EFBIG and one more SIGXFSZ. */
static int refused(long result) {
    static int seen;
    int told = errno == EFBIG && too_large == seen + 1;
    seen = too_large;
    return result == -1 && told;
}

static void file_size(const char *path) {
    char bytes[3000] = {0};
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
    MUST(fd >= 0);
    struct rlimit before;
    MUST(getrlimit(RLIMIT_FSIZE, &before) == 0);
    MUST(signal(SIGXFSZ, count) != SIG_ERR);
    limit(RLIMIT_FSIZE, 4096, before.rlim_max);
    CHECK("a write within the limit", write(fd, bytes, 3000) == 3000);
    CHECK("a write across it is cut", write(fd, bytes, 3000) == 1096 && size_of(fd) == 4096);
    CHECK("a write at it", refused(write(fd, bytes, 1)));
    CHECK("a write of nothing at it", write(fd, bytes, 0) == 0);
    CHECK("a positioned write behind it", refused(pwrite(fd, bytes, 1, 9000)));
    CHECK("a positioned write across it is cut", pwrite(fd, bytes, 100, 4090) == 6);
    CHECK("a size beyond it", refused(ftruncate(fd, 4097)) && refused(truncate(path, 5000)) && size_of(fd) == 4096);
    CHECK("space beyond it", refused(fallocate(fd, 0, 0, 8192)));
    CHECK("a smaller size", ftruncate(fd, 4000) == 0);
    int appends = open(path, O_WRONLY | O_APPEND), from = open("/proc/self/exe", O_RDONLY);
    MUST(appends >= 0 && from >= 0);
    CHECK("what is appended is cut", write(appends, bytes, 3000) == 96 && refused(write(appends, bytes, 1)));
    MUST(lseek(fd, 4000, SEEK_SET) == 4000);
    CHECK("what is sent from a file is cut", sendfile(fd, from, NULL, 3000) == 96);
    int pipes[2], told = too_large;
    MUST(pipe(pipes) == 0);
    for (int i = 0; i < 3; i++)
        MUST(write(pipes[1], bytes, 3000) == 3000);
    CHECK("a pipe has no such limit", too_large == told);
    pid_t child = fork();
    if (child == 0) {
        signal(SIGXFSZ, SIG_DFL);
        (void)!pwrite(fd, bytes, 1, 4096);
        _exit(0);
    }
    int status;
    MUST(waitpid(child, &status, 0) == child);
    CHECK("by default the signal kills, and a child has its parent's limit", WIFSIGNALED(status) && WTERMSIG(status) == SIGXFSZ);
    limit(RLIMIT_FSIZE, before.rlim_cur, before.rlim_max);
    CHECK("without the limit", pwrite(fd, bytes, 1000, 9000) == 1000);
    MUST(close(fd) == 0 && close(appends) == 0 && close(from) == 0 && unlink(path) == 0);
}

static void burn(void) {
    for (volatile unsigned long i = 0;; i++)
        ;
}

static void processor_time(void) {
    int status;
    pid_t child = fork();
    if (child == 0) {
        limit(RLIMIT_CPU, 1, 100);
        burn();
    }
    MUST(waitpid(child, &status, 0) == child);
    CHECK("SIGXCPU at the soft limit", WIFSIGNALED(status) && WTERMSIG(status) == SIGXCPU);
    child = fork();
    if (child == 0) {
        limit(RLIMIT_CPU, 1, 2);
        if (fork() == 0) {
            signal(SIGXCPU, count);
            burn();
        }
        wait(&status);
        _exit(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL ? 7 : 8);
    }
    MUST(waitpid(child, &status, 0) == child);
    CHECK("SIGKILL at the hard limit, in a child that has its parent's", WIFEXITED(status) && WEXITSTATUS(status) == 7);
}

static void address_space(void) {
    size_t large = 512 << 20;
    int status;
    pid_t child = fork();
    if (child == 0) {
        limit(RLIMIT_AS, large, RLIM_INFINITY);
        void *no = mmap(NULL, large, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        int first = no == MAP_FAILED && errno == ENOMEM;
        char *yes = mmap(NULL, large / 4, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        int second = yes != MAP_FAILED && mremap(yes, large / 4, large, MREMAP_MAYMOVE) == MAP_FAILED && errno == ENOMEM;
        int third = mmap(yes, large / 4, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == yes;
        int fourth = sbrk(large) == (void *)-1 && errno == ENOMEM && malloc(large) == NULL;
        _exit(first | second << 1 | third << 2 | fourth << 3);
    }
    MUST(waitpid(child, &status, 0) == child);
    CHECK("mmap, mremap, brk beyond the limit", WIFEXITED(status) && WEXITSTATUS(status) == 15);
}

static void open_files(void) {
    struct rlimit before, seen;
    MUST(getrlimit(RLIMIT_NOFILE, &before) == 0);
    limit(RLIMIT_NOFILE, 20, before.rlim_max);
    int last = -1, fd;
    while ((fd = dup(0)) >= 0)
        last = fd;
    int why = errno;
    CHECK("open files", last == 19 && why == EMFILE);
    limit(RLIMIT_NOFILE, before.rlim_cur, before.rlim_max);
    for (fd = 3; fd <= last; fd++)
        close(fd);
    struct rlimit wrong = {20, 10};
    CHECK("a soft limit above the hard one", setrlimit(RLIMIT_NOFILE, &wrong) == -1 && errno == EINVAL);
    CHECK("another process's", prlimit(getpid(), RLIMIT_NOFILE, NULL, &seen) == 0 && seen.rlim_cur == before.rlim_cur);
}

int main(int argc, char **argv) {
    MUST(argc == 2);
    file_size(argv[1]);
    processor_time();
    address_space();
    open_files();
    return check_result();
}
