/* How much of a process is in memory, by its own files under /proc: the counted figure agrees with the one that goes
 * through the tables, whatever was mapped, moved, copied or given back before; and it is the process's, nobody else's. */
#include "check.h"
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096ul
#define MIB (1ul << 20)
#define SIZE (9 * MIB)
#define ARENA (24 * MIB)

static char text[1 << 16];
/* What the counted figure may differ by: a kernel that counts for each processor apart is not exact. */
static long slack = 1024;

/* KiB after `name` in a file, read without a touch of fresh memory. */
static long kib(const char *path, const char *name) {
    int file = open(path, O_RDONLY);
    MUST(file >= 0);
    ssize_t got = 0, part;
    while ((part = read(file, text + got, sizeof text - 1 - got)) > 0)
        got += part;
    close(file);
    text[got] = 0;
    char *at = strstr(text, name);
    MUST(at != NULL);
    return strtol(at + strlen(name), NULL, 10);
}

static long status(const char *name) { return kib("/proc/self/status", name); }

/* By the 24th field of `stat`: 22 spaces behind the name. */
static long by_stat(void) {
    kib("/proc/self/stat", ")");
    char *at = strrchr(text, ')');
    for (int i = 0; i < 22; i++)
        at = strchr(at + 1, ' ');
    return strtol(at, NULL, 10) * 4;
}

static long by_tables(void) { return kib("/proc/self/smaps_rollup", "Rss:"); }

/* The counted figures lie between those by the tables before and after: to read them may fault something in. */
static int agree(void) {
    long low = by_tables() - slack;
    long counted[] = {status("VmRSS:"), by_stat(), status("RssAnon:") + status("RssFile:") + status("RssShmem:")};
    long high = by_tables() + slack;
    for (int i = 0; i < 3; i++)
        if (counted[i] < low || counted[i] > high)
            return 0;
    return 1;
}

static int ends_well(pid_t child) {
    int status = -1;
    return waitpid(child, &status, 0) == child && status == 0;
}

static void touch(char *at, size_t size) {
    for (size_t i = 0; i < size; i += PAGE)
        at[i] = (char)(i / PAGE);
}

static char *map(size_t size, int flags, int file) {
    char *at = mmap(NULL, size, PROT_READ | PROT_WRITE, flags, file, 0);
    MUST(at != MAP_FAILED);
    return at;
}

static void kinds(const char *name) {
    long before = status("RssAnon:"), all = status("VmRSS:");
    char *private = map(SIZE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
    touch(private, SIZE);
    CHECK("memory of its own counts", status("RssAnon:") - before >= (long)(SIZE >> 10) - slack && agree());
    before = status("RssShmem:");
    char *shared = map(SIZE, MAP_SHARED | MAP_ANONYMOUS, -1);
    touch(shared, SIZE);
    CHECK("shared memory counts", status("RssShmem:") - before >= (long)(SIZE >> 10) - slack && agree());
    int file = open(name, O_RDWR | O_CREAT | O_TRUNC, 0600);
    MUST(file >= 0 && write(file, private, 4 * MIB) == 4 * MIB);
    before = status("RssFile:");
    char *mapped = map(4 * MIB, MAP_SHARED, file);
    touch(mapped, 4 * MIB);
    CHECK("a file's pages count", status("RssFile:") - before >= 4096 - slack && agree());
    before = status("VmRSS:");
    MUST(madvise(private + MIB, 4 * MIB, MADV_DONTNEED) == 0);
    CHECK("what is given back counts no more", before - status("VmRSS:") >= 4096 - slack && agree());
    MUST(munmap(private, SIZE) == 0 && munmap(shared, SIZE) == 0 && munmap(mapped, 4 * MIB) == 0 && close(file) == 0);
    CHECK("nothing is left of it", labs(status("VmRSS:") - all) <= 1024 && agree());
    CHECK("the most stays known", status("VmHWM:") >= (long)(2 * SIZE >> 10));
    unlink(name);
}

/* Small mappings that move, to anywhere and to where something was: once zeros that nobody owned stayed behind. */
static void moved(void) {
    char *room = map(64 * PAGE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
    for (int i = 0; i < 16; i++) {
        MUST(munmap(room, 64 * PAGE) == 0 && mmap(room, 64 * PAGE, PROT_READ | PROT_WRITE,
                                                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == room);
        touch(room, 8 * PAGE);
        char *away = mremap(room, 2 * PAGE, 3 * PAGE, MREMAP_MAYMOVE);
        MUST(away != MAP_FAILED && away != room);
        MUST(mremap(room + 4 * PAGE, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, room + 6 * PAGE) == room + 6 * PAGE);
        MUST(room[6 * PAGE] == 4 && away[PAGE] == 1 && munmap(away, 3 * PAGE) == 0);
    }
    munmap(room, 64 * PAGE);
    CHECK("what moves leaves nothing behind", agree());
}

/* A child's memory is not its parent's, nor is what it had at most. */
static void children(void) {
    int told[2], end[2];
    char byte = 0;
    MUST(pipe(told) == 0 && pipe(end) == 0);
    long before = status("VmRSS:");
    pid_t child = fork();
    if (child == 0) {
        char *own = map(64 * MIB, MAP_PRIVATE | MAP_ANONYMOUS, -1);
        touch(own, 64 * MIB);
        int good = status("VmRSS:") >= 65536 - slack && agree();
        MUST(write(told[1], &byte, 1) == 1 && read(end[0], &byte, 1) == 1);
        _exit(good ? 0 : 1);
    }
    MUST(read(told[0], &byte, 1) == 1);
    CHECK("a child's memory is not its parent's", status("VmRSS:") - before < 16384);
    MUST(write(end[1], &byte, 1) == 1);
    struct rusage own, childs;
    int state = -1;
    MUST(wait4(child, &state, 0, &childs) == child);
    CHECK("a child tells the most that it had", state == 0 && childs.ru_maxrss >= 65536 - slack);
    MUST(getrusage(RUSAGE_SELF, &own) == 0);
    CHECK("and its parent that of its own", own.ru_maxrss < 65536 && own.ru_maxrss >= before - slack);
    MUST(getrusage(RUSAGE_CHILDREN, &childs) == 0);
    CHECK("who waited keeps it", childs.ru_maxrss >= 65536 - slack);
    child = fork();
    if (child == 0) {
        touch(map(32 * MIB, MAP_PRIVATE | MAP_ANONYMOUS, -1), 32 * MIB);
        execl("/bin/true", "true", (char *)NULL);
        _exit(127);
    }
    MUST(wait4(child, &state, 0, &childs) == child);
    CHECK("the program before counts, too", state == 0 && childs.ru_maxrss >= 32768 - slack);
    close(told[0]), close(told[1]), close(end[0]), close(end[1]);
}

/* Whatever is done to some memory, in any order, here and in children. */
static void anything(uint64_t seed, int steps) {
    char *arena = map(ARENA, MAP_PRIVATE | MAP_ANONYMOUS, -1);
    int good = 1;
    for (int i = 0; i < steps && good; i++) {
        size_t first = next_random(&seed) % (ARENA / PAGE), count = 1 + next_random(&seed) % (next_random(&seed) % 4 ? 40 : 1200);
        size_t size = (first + count > ARENA / PAGE ? ARENA / PAGE - first : count) * PAGE;
        char *at = arena + first * PAGE;
        int flags = MAP_FIXED | MAP_ANONYMOUS;
        switch (next_random(&seed) % 9) {
        case 0:
        case 1:
        case 2:
            MUST(mprotect(at, size, PROT_READ | PROT_WRITE) == 0);
            touch(at, size);
            break;
        case 3:
            MUST(mmap(at, size, PROT_READ | PROT_WRITE, flags | MAP_PRIVATE, -1, 0) == at);
            break;
        case 4:
            MUST(mmap(at, size, PROT_READ | PROT_WRITE, flags | MAP_SHARED, -1, 0) == at);
            break;
        case 5:
            MUST(madvise(at, size, MADV_DONTNEED) == 0);
            break;
        case 6:
            MUST(mprotect(at, size, next_random(&seed) % 2 ? PROT_READ : PROT_NONE) == 0);
            break;
        case 7: {
            /* Fails where it goes over several mappings. */
            char *to = mremap(at, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, arena + (ARENA / PAGE - count) / 2 * PAGE);
            if (to != MAP_FAILED && to != at)
                for (char *hole = at; hole < at + size; hole += PAGE)
                    if (hole < to || hole >= to + size)
                        MUST(mmap(hole, PAGE, PROT_READ | PROT_WRITE, flags | MAP_PRIVATE, -1, 0) == hole);
            break;
        }
        default: {
            MUST(madvise(at, size, next_random(&seed) % 2 ? MADV_DONTFORK : MADV_DOFORK) == 0);
            pid_t child = fork();
            if (child == 0) {
                int same = agree();
                /* Its own: part of it may not be there. */
                char *own = map(3 * MIB, MAP_PRIVATE | MAP_ANONYMOUS, -1);
                touch(own, 3 * MIB);
                same = same && agree();
                munmap(arena, ARENA);
                _exit(same && agree() ? 0 : 1);
            }
            good = ends_well(child);
        }
        }
        good = good && agree();
    }
    munmap(arena, ARENA);
    CHECK("whatever was done, both agree", good && agree());
}

int main(int argc, char **argv) {
    MUST(argc > 1);
    /* The first program of a VM has no parent. */
    if (getppid() == 0)
        slack = 0;
    CHECK("both agree at the start", agree());
    kinds(argv[1]);
    moved();
    children();
    for (uint64_t seed = 1; seed <= 4; seed++)
        anything(seed, 60);
    return check_result();
}
