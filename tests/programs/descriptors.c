/* Descriptors and file data: dup in all its forms, flags, locks, vectored and positioned input and output, sendfile,
 * copy_file_range, seeking in holes, truncation, fallocate. Argument 1 names a scratch file. */
#include "check.h"
#include <fcntl.h>
#include <pthread.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static char path[4000], second[4010];
/* Volatile, so that the compiler does not see (and refuse) the mistakes that are made on purpose. */
static volatile int too_many = 5000;
static void *volatile nowhere = (void *)8;

static void duplicates(void) {
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0644);
    MUST(fd >= 0 && write(fd, "0123456789", 10) == 10);
    int copy = dup(fd);
    CHECK("dup takes the lowest", copy == fd + 1);
    CHECK("a copy shares the offset", lseek(fd, 3, SEEK_SET) == 3 && lseek(copy, 0, SEEK_CUR) == 3);
    CHECK("dup2 onto itself", dup2(fd, fd) == fd);
    CHECK("dup2 to a far number", dup2(fd, 50) == 50 && lseek(50, 0, SEEK_CUR) == 3);
    CHECK_FAILS("dup3 onto itself", dup3(fd, fd, 0), EINVAL);
    CHECK("dup3 with O_CLOEXEC", dup3(fd, 51, O_CLOEXEC) == 51 && fcntl(51, F_GETFD) == FD_CLOEXEC && fcntl(50, F_GETFD) == 0);
    CHECK("F_DUPFD from a floor", fcntl(fd, F_DUPFD, 40) == 40 && fcntl(fd, F_DUPFD_CLOEXEC, 40) == 41 && fcntl(41, F_GETFD) == FD_CLOEXEC);
    CHECK("F_SETFD", fcntl(fd, F_SETFD, FD_CLOEXEC) == 0 && fcntl(fd, F_GETFD) == FD_CLOEXEC && fcntl(copy, F_GETFD) == 0);
    CHECK("F_GETFL", (fcntl(fd, F_GETFL) & O_ACCMODE) == O_RDWR);
    CHECK("F_SETFL is shared by copies", fcntl(fd, F_SETFL, O_APPEND) == 0 && (fcntl(copy, F_GETFL) & O_APPEND));
    CHECK("O_APPEND writes at the end", write(copy, "AB", 2) == 2 && lseek(fd, 0, SEEK_CUR) == 12 && fcntl(fd, F_SETFL, 0) == 0);
    for (int number = 40; number < 52; number++)
        close(number);
    close(copy);
    CHECK_FAILS("closed twice", close(copy), EBADF);
    CHECK_FAILS("read of a closed one", read(copy, path, 0), EBADF);
    CHECK("a lower number is reused", (close(0), dup(fd)) == 0);
    CHECK_FAILS("dup2 of none", dup2(777, 5), EBADF);
    CHECK_FAILS("dup2 to a negative number", dup2(fd, -1), EBADF);
    struct rlimit limit, few;
    getrlimit(RLIMIT_NOFILE, &limit);
    few = limit;
    few.rlim_cur = 20;
    MUST(setrlimit(RLIMIT_NOFILE, &few) == 0);
    int taken = 0, free_numbers = 0;
    for (int number = 0; number < 20; number++)
        free_numbers += fcntl(number, F_GETFD) == -1;
    while (dup(fd) >= 0)
        taken++;
    CHECK_WITH("the limit is held", errno == EMFILE && taken == free_numbers, taken);
    CHECK("close_range", syscall(436, fd + 1, ~0U, 0) == 0 && fcntl(fd + 1, F_GETFD) == -1);
    setrlimit(RLIMIT_NOFILE, &limit);
    close(fd);
    int read_only = open(path, O_RDONLY | O_CLOEXEC);
    CHECK("O_CLOEXEC at open", fcntl(read_only, F_GETFD) == FD_CLOEXEC);
    CHECK_FAILS("a write through a read-only one", write(read_only, "x", 1), EBADF);
    close(read_only);
    CHECK_FAILS("O_EXCL", open(path, O_CREAT | O_EXCL | O_RDWR, 0600), EEXIST);
    CHECK_FAILS("O_DIRECTORY of a file", open(path, O_DIRECTORY | O_RDONLY), ENOTDIR);
    CHECK_FAILS("a directory for writing", open("/", O_RDWR), EISDIR);
    CHECK_FAILS("a name that is not there", open("/nowhere/at/all", O_RDONLY), ENOENT);
}

static void data(void) {
    char back[64] = {0};
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0644);
    struct iovec out[3] = {{"one ", 4}, {"", 0}, {"two three", 9}};
    CHECK("writev", writev(fd, out, 3) == 13);
    struct iovec in[3] = {{back, 4}, {back + 20, 3}, {back + 40, 20}};
    lseek(fd, 0, SEEK_SET);
    CHECK("readv", readv(fd, in, 3) == 13 && memcmp(back, "one ", 4) == 0 && memcmp(back + 20, "two", 3) == 0 && memcmp(back + 40, " three", 6) == 0);
    CHECK("pwrite leaves the offset", pwrite(fd, "TWO", 3, 4) == 3 && lseek(fd, 0, SEEK_CUR) == 13);
    CHECK("pread leaves the offset", pread(fd, back, 3, 4) == 3 && memcmp(back, "TWO", 3) == 0 && lseek(fd, 0, SEEK_CUR) == 13);
    CHECK("pwritev and preadv", pwritev(fd, out, 1, 20) == 4 && preadv(fd, in, 1, 20) == 4 && memcmp(back, "one ", 4) == 0);
    CHECK("preadv2 at the offset", lseek(fd, 4, SEEK_SET) == 4 && preadv2(fd, in, 1, -1, 0) == 4 && lseek(fd, 0, SEEK_CUR) == 8);
    CHECK("the gap is zeros", pread(fd, back, 7, 13) == 7 && memcmp(back, "\0\0\0\0\0\0\0", 7) == 0);
    CHECK_FAILS("a negative offset", pread(fd, back, 1, -1), EINVAL);
    CHECK_FAILS("a negative seek", lseek(fd, -1, SEEK_SET), EINVAL);
    CHECK_FAILS("too many parts", writev(fd, out, too_many), EINVAL);
    CHECK_FAILS("a buffer that is not there", write(fd, nowhere, 10), EFAULT);
    CHECK("an empty write", write(fd, NULL, 0) == 0);

    static char large[1 << 20], again[1 << 20];
    uint64_t state = 11;
    for (size_t i = 0; i < sizeof large; i++)
        large[i] = (char)next_random(&state);
    int other = open(second, O_RDWR | O_CREAT | O_TRUNC, 0644);
    MUST(ftruncate(fd, 0) == 0 && pwrite(fd, large, sizeof large, 0) == sizeof large);
    off_t offset = 1000;
    CHECK("sendfile", sendfile(other, fd, &offset, 500000) == 500000 && offset == 501000);
    CHECK("sendfile's data", pread(other, again, 500000, 0) == 500000 && memcmp(again, large + 1000, 500000) == 0);
    loff_t from = 7, to = 3;
    ssize_t copied = copy_file_range(fd, &from, other, &to, 200000, 0);
    CHECK_WITH("copy_file_range", copied == 200000 && from == 200007 && to == 200003, copied);
    CHECK("copy_file_range's data", pread(other, again, 200000, 3) == 200000 && memcmp(again, large + 7, 200000) == 0);
    CHECK("ftruncate up and down", ftruncate(other, 5000000) == 0 && lseek(other, 0, SEEK_END) == 5000000 && ftruncate(other, 100) == 0 && lseek(other, 0, SEEK_END) == 100);
    CHECK("truncate by name", truncate(second, 50) == 0 && lseek(other, 0, SEEK_END) == 50);
    CHECK("fallocate", fallocate(other, 0, 0, 100000) == 0 && lseek(other, 0, SEEK_END) == 100000);
    CHECK("fallocate keeping the size", fallocate(other, FALLOC_FL_KEEP_SIZE, 0, 200000) == 0 && lseek(other, 0, SEEK_END) == 100000);
    CHECK("posix_fadvise", posix_fadvise(other, 0, 0, POSIX_FADV_SEQUENTIAL) == 0);
    CHECK("fsync and fdatasync", fsync(other) == 0 && fdatasync(other) == 0);
    struct stat status;
    CHECK("fchmod", fchmod(other, 0640) == 0 && fstat(other, &status) == 0 && (status.st_mode & 07777) == 0640);
    close(fd), close(other);
}

static void *wait_for_lock(void *arg) {
    int fd = open(path, O_RDWR);
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 0, .l_len = 10};
    *(int *)arg = fcntl(fd, F_OFD_SETLKW, &lock) == 0;
    close(fd);
    return NULL;
}

static void locks(void) {
    int fd = open(path, O_RDWR), other = open(path, O_RDWR), got = 0;
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 0, .l_len = 10};
    CHECK("a record lock", fcntl(fd, F_SETLK, &lock) == 0);
    CHECK("no conflict with itself", fcntl(other, F_GETLK, &lock) == 0 && lock.l_type == F_UNLCK);
    lock.l_type = F_UNLCK;
    fcntl(fd, F_SETLK, &lock);
    lock = (struct flock){.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 0, .l_len = 10};
    CHECK("a lock of the open file", fcntl(fd, F_OFD_SETLK, &lock) == 0);
    CHECK_FAILS("conflicts with another opening", fcntl(other, F_OFD_SETLK, &lock), EAGAIN);
    pthread_t thread;
    pthread_create(&thread, NULL, wait_for_lock, &got);
    usleep(20000);
    CHECK("who waits for it has it not", got == 0);
    lock.l_type = F_UNLCK;
    fcntl(fd, F_OFD_SETLK, &lock);
    pthread_join(thread, NULL);
    CHECK("until it is free", got == 1);
    CHECK("flock", flock(fd, LOCK_EX) == 0);
    CHECK_FAILS("flock elsewhere", flock(other, LOCK_EX | LOCK_NB), EWOULDBLOCK);
    close(fd);
    CHECK("a close frees it", flock(other, LOCK_SH | LOCK_NB) == 0);
    close(other);
}

static void pipes(void) {
    int from[2], to[2];
    char got[32];
    MUST(pipe(from) == 0 && pipe(to) == 0);
    struct iovec parts[2] = {{"two ", 4}, {"parts", 5}};
    CHECK("vmsplice to a pipe", vmsplice(from[1], parts, 2, 0) == 9);
    CHECK("tee", tee(from[0], to[1], 100, 0) == 9);
    CHECK("it is in the second", read(to[0], got, sizeof got) == 9 && memcmp(got, "two parts", 9) == 0);
    CHECK("a part", tee(from[0], to[1], 3, 0) == 3 && read(to[0], got, sizeof got) == 3 && memcmp(got, "two", 3) == 0);
    struct iovec places[2] = {{got, 2}, {got + 10, 20}};
    CHECK("and still in the first", vmsplice(from[0], places, 2, 0) == 9 && memcmp(got, "tw", 2) == 0 &&
                                        memcmp(got + 10, "o parts", 7) == 0);
    CHECK_FAILS("nothing there", tee(from[0], to[1], 9, SPLICE_F_NONBLOCK), EAGAIN);
    struct iovec none = {got, 0};
    CHECK("nothing asked for is not waited for", tee(from[0], to[1], 0, 0) == 0 &&
          splice(from[0], NULL, to[1], NULL, 0, 0) == 0 && vmsplice(from[0], &none, 1, 0) == 0);
    CHECK("nor looked for", tee(-1, -1, 0, 0) == 0 && splice(-1, NULL, -1, NULL, 0, 0x100) == 0);
    CHECK_FAILS("but flags of a tee are", tee(-1, -1, 0, 0x100), EINVAL);
    CHECK_FAILS("and a vmsplice's descriptor", vmsplice(-1, &none, 1, 0), EBADF);
    CHECK_FAILS("a pipe and itself", tee(from[0], from[1], 9, 0), EINVAL);
    int fd = open(path, O_RDWR);
    CHECK_FAILS("tee from a file", tee(fd, to[1], 9, 0), EINVAL);
    CHECK_FAILS("vmsplice to a file", vmsplice(fd, parts, 1, 0), EBADF);
    close(fd);
    close(from[1]);
    CHECK("the end", tee(from[0], to[1], 9, 0) == 0);
    close(from[0]), close(to[0]), close(to[1]);
}

/* The line of `/proc/locks` for a file, without its numbers. */
static int listed(const char *kind, const char *access, const char *range) {
    struct stat about;
    char line[200], wanted[3][100];
    MUST(stat(path, &about) == 0);
    snprintf(wanted[0], sizeof wanted[0], ": %s  ADVISORY  %s ", kind, access);
    snprintf(wanted[1], sizeof wanted[1], ":%lu %s\n", (unsigned long)about.st_ino, range);
    FILE *file = fopen("/proc/locks", "r");
    MUST(file != NULL);
    int found = 0;
    while (fgets(line, sizeof line, file) != NULL)
        found |= strstr(line, wanted[0]) != NULL && strstr(line, wanted[1]) != NULL;
    fclose(file);
    return found;
}

static void listed_locks(void) {
    int fd = open(path, O_RDWR);
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 2, .l_len = 3};
    CHECK("a record", fcntl(fd, F_SETLK, &lock) == 0 && listed("POSIX", "WRITE", "2 4"));
    lock.l_type = F_UNLCK;
    CHECK("no record", fcntl(fd, F_SETLK, &lock) == 0 && !listed("POSIX", "WRITE", "2 4"));
    CHECK("a whole file", flock(fd, LOCK_SH) == 0 && listed("FLOCK", "READ", "0 EOF"));
    close(fd);
}

int main(int argc, char **argv) {
    snprintf(path, sizeof path, "%s", argc > 1 ? argv[1] : "/tmp/cloak-descriptors");
    snprintf(second, sizeof second, "%s.second", path);
    duplicates();
    data();
    locks();
    pipes();
    listed_locks();
    CHECK("cleaned up", unlink(path) == 0 && unlink(second) == 0);
    return check_result();
}
