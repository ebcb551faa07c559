/* What Linux promises of mmap, mprotect, mremap, munmap, madvise and brk; a fault is caught and told. */
#include "check.h"
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

static sigjmp_buf escape;
static volatile int fault_code;

static void on_fault(int number, siginfo_t *info, void *context) {
    (void)context;
    fault_code = number * 1000 + info->si_code;
    siglongjmp(escape, 1);
}

/* 0 when the access is allowed, else signal * 1000 + si_code. */
static int probe(volatile char *at, int writing) {
    fault_code = 0;
    if (sigsetjmp(escape, 1) == 0) {
        if (writing)
            *at = *at;
        else
            (void)*at;
    }
    return fault_code;
}

#define MAPERR (SIGSEGV * 1000 + SEGV_MAPERR)
#define ACCERR (SIGSEGV * 1000 + SEGV_ACCERR)
#define BUSERR (SIGBUS * 1000 + BUS_ADRERR)

static char *anonymous(size_t pages, int protection) {
    char *map = mmap(NULL, pages * 4096, protection, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    MUST(map != MAP_FAILED);
    return map;
}

static void protections(void) {
    char *map = anonymous(4, PROT_READ | PROT_WRITE);
    map[4096] = 7;
    CHECK_WITH("a mapped page is writable", probe(map, 1) == 0, fault_code);
    CHECK("mprotect to read-only", mprotect(map + 4096, 4096, PROT_READ) == 0);
    CHECK_WITH("a read-only page is readable", probe(map + 4096, 0) == 0 && map[4096] == 7, fault_code);
    CHECK_WITH("a read-only page faults on a write", probe(map + 4096, 1) == ACCERR, fault_code);
    CHECK_WITH("its neighbour does not", probe(map + 8192, 1) == 0, fault_code);
    CHECK("mprotect to none", mprotect(map + 4096, 4096, PROT_NONE) == 0);
    CHECK_WITH("PROT_NONE faults on a read", probe(map + 4096, 0) == ACCERR, fault_code);
    CHECK("mprotect back", mprotect(map, 4 * 4096, PROT_READ | PROT_WRITE) == 0 && map[4096] == 7);
    CHECK("munmap of the middle", munmap(map + 4096, 4096) == 0);
    CHECK_WITH("an unmapped page faults on a read", probe(map + 4096, 0) == MAPERR, fault_code);
    CHECK_WITH("an unmapped page faults on a write", probe(map + 4096, 1) == MAPERR, fault_code);
    CHECK_WITH("the pages beside it live", probe(map, 1) == 0 && probe(map + 8192, 1) == 0, fault_code);
    CHECK_FAILS("mprotect over a hole", mprotect(map, 4 * 4096, PROT_READ), ENOMEM);
    CHECK("munmap over a hole", munmap(map, 4 * 4096) == 0);
    CHECK_WITH("all is gone", probe(map, 0) == MAPERR && probe(map + 3 * 4096, 0) == MAPERR, fault_code);
    CHECK_FAILS("munmap off a page", munmap(map + 1, 4096), EINVAL);
    CHECK_FAILS("munmap of nothing", munmap(map, 0), EINVAL);
    CHECK_FAILS("mmap of nothing", (long)mmap(NULL, 0, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), EINVAL);
    CHECK_FAILS("mmap without a kind", (long)mmap(NULL, 4096, PROT_READ, MAP_ANONYMOUS, -1, 0), EINVAL);
    CHECK_FAILS("mmap of a bad descriptor", (long)mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, 999, 0), EBADF);
}

static void fixed(void) {
    char *map = anonymous(3, PROT_READ | PROT_WRITE);
    memset(map, 'a', 3 * 4096);
    char *again = mmap(map + 4096, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    CHECK("MAP_FIXED lands where it is told", again == map + 4096);
    CHECK("and replaces with zeros", again[0] == 0 && again[4095] == 0);
    CHECK("and spares its neighbours", map[4095] == 'a' && map[8192] == 'a');
    CHECK_FAILS("MAP_FIXED_NOREPLACE does not replace",
                (long)mmap(map, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0), EEXIST);
    munmap(map + 4096, 4096);
    CHECK("MAP_FIXED_NOREPLACE fills a hole",
          mmap(map + 4096, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) == map + 4096);
    char *hinted = mmap(map + 4096, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK("a taken hint goes elsewhere", hinted != MAP_FAILED && hinted != map + 4096);
}

static void remaps(void) {
    char *map = anonymous(2, PROT_READ | PROT_WRITE);
    strcpy(map, "kept");
    map[8191] = 'z';
    char *grown = mremap(map, 2 * 4096, 1024 * 4096, MREMAP_MAYMOVE);
    CHECK("mremap grows", grown != MAP_FAILED && strcmp(grown, "kept") == 0 && grown[8191] == 'z');
    CHECK("the new part is zero and writable", grown[1023 * 4096] == 0 && (grown[1023 * 4096] = 1) == 1);
    CHECK("mremap shrinks in place", mremap(grown, 1024 * 4096, 4096, 0) == grown);
    CHECK_WITH("what it cut off is gone", probe(grown + 4096, 0) == MAPERR, fault_code);
    char *target = anonymous(4, PROT_READ);
    char *moved = mremap(grown, 4096, 4096, MREMAP_MAYMOVE | MREMAP_FIXED, target + 4096);
    CHECK("mremap to a fixed place", moved == target + 4096 && strcmp(moved, "kept") == 0);
    CHECK_WITH("it left its old place", probe(grown, 0) == MAPERR, fault_code);
    CHECK_WITH("it kept its rights", probe(moved, 1) == 0 && probe(target, 1) == ACCERR, fault_code);
    char *hidden = mmap(NULL, 16 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    munmap(hidden + 4096, 15 * 4096);
    madvise(hidden, 4096, MADV_DONTFORK);
    char *longer = mremap(hidden, 4096, 2 * 4096, MREMAP_MAYMOVE);
    char *again = mremap(longer, 2 * 4096, 4 * 4096, MREMAP_MAYMOVE);
    CHECK("mremap of what has grown", again != MAP_FAILED && again[4 * 4096 - 1] == 0);
    again[0] = 'a', again[4095] = 'z';
    char *elsewhere = mremap(again, 2 * 4096, 2 * 4096, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, NULL);
    CHECK("mremap that leaves a hole of zeros",
          elsewhere != MAP_FAILED && elsewhere[0] == 'a' && elsewhere[4095] == 'z' && again[0] == 0 && again[4095] == 0);
    again[0] = 'b';
    CHECK("both can be written", elsewhere[0] == 'a' && again[0] == 'b');
    CHECK_FAILS("of another length", (long)mremap(again, 4096, 2 * 4096, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, NULL), EINVAL);
    CHECK_FAILS("mremap of nothing mapped", (long)mremap(grown, 4096, 8192, MREMAP_MAYMOVE), EFAULT);
    char *walled = anonymous(2, PROT_READ | PROT_WRITE);
    CHECK_FAILS("mremap that may not move", (long)mremap(walled, 4096, 3 * 4096, 0), ENOMEM);
}

static void files(const char *path) {
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
    MUST(fd >= 0 && ftruncate(fd, 6000) == 0 && pwrite(fd, "file data", 9, 4096) == 9);
    char *own = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    MUST(own != MAP_FAILED);
    CHECK("a private mapping shows the file", memcmp(own + 4096, "file data", 9) == 0);
    CHECK("the rest of the last page is zero", own[6000] == 0 && own[8191] == 0);
    own[4096] = 'F';
    char byte = 0;
    CHECK("a private write stays private", pread(fd, &byte, 1, 4096) == 1 && byte == 'f');
    char *shared = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    MUST(shared != MAP_FAILED);
    shared[5] = 'S';
    CHECK("a shared write reaches the file",
          msync(shared, 8192, MS_SYNC) == 0 && pread(fd, &byte, 1, 5) == 1 && byte == 'S');
    char *tail = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, fd, 4096);
    CHECK("a mapping at an offset", tail != MAP_FAILED && memcmp(tail, "file data", 9) == 0);
    char *beyond = mmap(NULL, 3 * 4096, PROT_READ, MAP_PRIVATE, fd, 0);
    CHECK_WITH("past the file's end is SIGBUS", probe(beyond + 2 * 4096, 0) == BUSERR, fault_code);
    CHECK_FAILS("an offset off a page", (long)mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, fd, 100), EINVAL);
    int read_only = open(path, O_RDONLY);
    CHECK_FAILS("no shared writing through a read-only descriptor",
                (long)mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, read_only, 0), EACCES);
    close(fd);
    CHECK("a mapping outlives its descriptor", memcmp(shared + 4096, "file data", 9) == 0);
    unlink(path);
    CHECK("and its name", memcmp(tail, "file data", 9) == 0);
    close(read_only);
}

static void advice(void) {
    char *map = anonymous(4, PROT_READ | PROT_WRITE);
    memset(map, 'x', 4 * 4096);
    CHECK("MADV_DONTNEED", madvise(map + 4096, 4096, MADV_DONTNEED) == 0);
    CHECK("drops one page and no other", map[4096] == 0 && map[4095] == 'x' && map[8192] == 'x');
    CHECK("MADV_FREE keeps the mapping", madvise(map, 4096, MADV_FREE) == 0 && probe(map, 1) == 0);
    CHECK("MADV_WILLNEED", madvise(map, 4 * 4096, MADV_WILLNEED) == 0);
    munmap(map, 4 * 4096);
    CHECK_FAILS("advice about nothing", madvise(map, 4096, MADV_DONTNEED), ENOMEM);
    CHECK_FAILS("unknown advice", madvise(anonymous(1, PROT_READ), 4096, 12345), EINVAL);
    unsigned char resident[2] = {0, 0};
    char *touched = anonymous(2, PROT_READ | PROT_WRITE);
    touched[0] = 1;
    CHECK("mincore tells a touched page", mincore(touched, 4096, resident) == 0 && (resident[0] & 1) == 1);
}

static void program_break(void) {
    char *start = (char *)syscall(SYS_brk, 0);
    CHECK("brk grows", (char *)syscall(SYS_brk, start + 100000) == start + 100000);
    memset(start, 'b', 100000);
    CHECK("brk keeps an odd end", (char *)syscall(SYS_brk, 0) == start + 100000);
    CHECK("brk shrinks", (char *)syscall(SYS_brk, start + 4096) == start + 4096);
    CHECK("brk grows again to zeros", (char *)syscall(SYS_brk, start + 50000) == start + 50000 && start[45000] == 0);
    CHECK("brk below its start is refused", (char *)syscall(SYS_brk, 4096) == start + 50000);
    CHECK("brk back", (char *)syscall(SYS_brk, start) == start);
}

static void from_the_kernel(void) {
    char *map = anonymous(2, PROT_READ | PROT_WRITE);
    int pair[2];
    MUST(pipe(pair) == 0 && munmap(map + 4096, 4096) == 0);
    CHECK_FAILS("a call that writes to unmapped memory", (write(pair[1], "abc", 3), read(pair[0], map + 4096, 3)), EFAULT);
    CHECK_FAILS("a call that reads unmapped memory", write(pair[1], map + 4096, 3), EFAULT);
    MUST(mprotect(map, 4096, PROT_READ) == 0);
    CHECK_FAILS("a call that writes to read-only memory", read(pair[0], map, 3), EFAULT);
    CHECK_FAILS("a path in unmapped memory", open(map + 4096, O_RDONLY), EFAULT);
    CHECK_FAILS("a structure in kernel space", syscall(SYS_clock_gettime, 0, (void *)0xffff800000000000), EFAULT);
}

int main(int argc, char **argv) {
    struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO};
    MUST(sigaction(SIGSEGV, &action, NULL) == 0 && sigaction(SIGBUS, &action, NULL) == 0);
    protections();
    fixed();
    remaps();
    files(argc > 1 ? argv[1] : "/tmp/cloak-mmap-semantics");
    advice();
    program_break();
    from_the_kernel();
    CHECK_WITH("null faults", probe((char *)0, 0) == MAPERR, fault_code);
    CHECK_WITH("a non-canonical address faults", probe((char *)0x8000000000000000, 0) / 1000 == SIGSEGV, fault_code);
    CHECK_WITH("kernel space faults", probe((char *)0xffffffff81000000, 0) / 1000 == SIGSEGV, fault_code);
    return check_result();
}
