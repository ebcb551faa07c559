/* Memory of processes: private pages are copied when written, on either side; shared ones are the same; nothing leaks. */
#include "check.h"
#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef MADV_WIPEONFORK
#define MADV_WIPEONFORK 18
#endif

#define SIZE (9 << 20)

static int ok(pid_t child) {
    int status = -1;
    return waitpid(child, &status, 0) == child && status == 0;
}

static void fill(uint64_t *words, size_t bytes, uint64_t seed) {
    for (size_t i = 0; i < bytes / 8; i += 64)
        words[i] = seed + i;
}

static int holds(const uint64_t *words, size_t bytes, uint64_t seed) {
    for (size_t i = 0; i < bytes / 8; i += 64)
        if (words[i] != seed + i)
            return 0;
    return 1;
}

static uint64_t *map(size_t size, int flags) {
    void *at = mmap(NULL, size, PROT_READ | PROT_WRITE, flags | MAP_ANONYMOUS, -1, 0);
    MUST(at != MAP_FAILED);
    return at;
}

static void copies(void) {
    uint64_t *private = map(SIZE, MAP_PRIVATE);
    fill(private, SIZE, 1);
    pid_t child = fork();
    if (child == 0) {
        int before = holds(private, SIZE, 1);
        fill(private, SIZE, 2);
        _exit(before && holds(private, SIZE, 2) ? 0 : 1);
    }
    CHECK("a child writes its own", ok(child) && holds(private, SIZE, 1));
    int gate[2];
    MUST(pipe(gate) == 0);
    child = fork();
    if (child == 0) {
        char byte;
        MUST(read(gate[0], &byte, 1) == 1);
        _exit(holds(private, SIZE, 1) ? 0 : 1);
    }
    fill(private, SIZE, 3);
    MUST(write(gate[1], "x", 1) == 1);
    CHECK("a parent writes its own", ok(child) && holds(private, SIZE, 3));
    pid_t first = fork();
    if (first == 0) {
        fill(private, SIZE / 2, 4);
        pid_t second = fork();
        if (second == 0) {
            private[0] = 99;
            _exit(holds(private + SIZE / 16, SIZE / 2, 3 + SIZE / 16) && private[0] == 99 ? 0 : 1);
        }
        _exit(ok(second) && holds(private, SIZE / 2, 4) ? 0 : 1);
    }
    CHECK("children of children", ok(first) && holds(private, SIZE, 3));
    char into[16] = "";
    child = fork();
    if (child == 0) {
        MUST(write(gate[1], "from the child!", 16) == 16);
        _exit(0);
    }
    CHECK("a call writes to a copied page", ok(child) && read(gate[0], into, 16) == 16 && !strcmp(into, "from the child!"));
    MUST(munmap(private, SIZE) == 0);
    close(gate[0]), close(gate[1]);
}

static void rights(void) {
    unsigned char *page = (unsigned char *)map(3 * 4096, MAP_PRIVATE);
    memset(page, 7, 3 * 4096);
    pid_t child = fork();
    if (child == 0) {
        mprotect(page, 3 * 4096, PROT_READ);
        mprotect(page, 3 * 4096, PROT_READ | PROT_WRITE);
        page[0] = 8;
        page[8192] = 9;
        _exit(page[1] == 7 ? 0 : 1);
    }
    CHECK("mprotect gives no way to the other's page", ok(child) && page[0] == 7 && page[8192] == 7);
    child = fork();
    if (child == 0) {
        madvise(page, 3 * 4096, MADV_DONTNEED);
        _exit(page[0] == 0 && page[5000] == 0 ? 0 : 1);
    }
    CHECK("nor does MADV_DONTNEED", ok(child) && page[0] == 7 && page[5000] == 7);
    child = fork();
    if (child == 0) {
        unsigned char *moved = mremap(page, 3 * 4096, 6 * 4096, MREMAP_MAYMOVE);
        MUST(moved != MAP_FAILED);
        moved[4096] = 1;
        _exit(moved[0] == 7 && moved[4 * 4096] == 0 ? 0 : 1);
    }
    CHECK("nor mremap", ok(child) && page[4096] == 7);
    child = fork();
    if (child == 0) {
        void *top = sbrk(0);
        MUST(sbrk(1 << 20) == top);
        memset(top, 3, 1 << 20);
        sbrk(-(1 << 20));
        sbrk(1 << 20);
        _exit(((char *)top)[100] == 0 ? 0 : 1);
    }
    CHECK("the heap shrinks and grows", ok(child));
    munmap(page, 3 * 4096);
}

static void advice(void) {
    uint64_t *kept = map(4096, MAP_PRIVATE), *wiped = map(4096, MAP_PRIVATE), *absent = map(4096, MAP_PRIVATE);
    kept[0] = wiped[0] = absent[0] = 5;
    CHECK("MADV_WIPEONFORK", madvise(wiped, 4096, MADV_WIPEONFORK) == 0);
    CHECK("MADV_DONTFORK", madvise(absent, 4096, MADV_DONTFORK) == 0);
    pid_t child = fork();
    if (child == 0) {
        unsigned char present;
        int gone = mincore(absent, 4096, &present) == -1 && errno == ENOMEM;
        _exit(kept[0] == 5 && wiped[0] == 0 && gone ? 0 : 1);
    }
    CHECK("zeros, and nothing", ok(child) && wiped[0] == 5 && absent[0] == 5);
}

static int all_zero(const uint64_t *words, size_t bytes) {
    for (size_t i = 0; i < bytes / 8; i++)
        if (words[i])
            return 0;
    return 1;
}

/* What somebody had before is nobody's to read: memory that was freed comes back as zeros, to whomever and however. */
static void reused(void) {
    enum { MUCH = 24 << 20 };
    int clean = 1;
    for (int round = 0; round < 3; round++) {
        pid_t child = fork();
        if (child == 0) {
            memset(map(MUCH, MAP_PRIVATE), 0xa5, MUCH);
            memset(map(MUCH, MAP_SHARED), 0x5a, MUCH);
            uint64_t *holes = map(MUCH, MAP_PRIVATE);
            for (size_t at = 0; at < MUCH; at += 8192)
                memset((char *)holes + at, 0x77, 4096);
            _exit(0);
        }
        MUST(ok(child));
        uint64_t *fresh = map(4 * MUCH, round == 1 ? MAP_SHARED : MAP_PRIVATE);
        clean &= all_zero(fresh, 4 * MUCH);
        munmap(fresh, 4 * MUCH);
    }
    CHECK("what an ended process had comes back as zeros", clean);
    uint64_t *own = map(SIZE, MAP_PRIVATE);
    memset(own, 0xff, SIZE);
    CHECK("what was given up is gone", madvise(own, SIZE, MADV_DONTNEED) == 0 && all_zero(own, SIZE));
    memset(own, 0xff, SIZE);
    munmap(own, SIZE);
    uint64_t *next = map(2 * SIZE, MAP_PRIVATE);
    CHECK("what was unmapped comes back as zeros", all_zero(next, 2 * SIZE));
    memset(next, 0xff, 2 * SIZE);
    munmap(next, 2 * SIZE);
    int fd = syscall(SYS_memfd_create, "reused", 0);
    static uint64_t bytes[512];
    MUST(fd >= 0 && ftruncate(fd, SIZE) == 0);
    for (size_t at = clean = 0; at < SIZE; at += sizeof bytes)
        clean += pread(fd, bytes, sizeof bytes, at) == sizeof bytes && all_zero(bytes, sizeof bytes);
    CHECK("in a file in memory as well", clean == SIZE / sizeof bytes);
    close(fd);
}

static void shared(const char *file) {
    uint64_t *words = map(SIZE, MAP_SHARED);
    pid_t child = fork();
    if (child == 0) {
        fill(words, SIZE, 11);
        _exit(0);
    }
    CHECK("shared memory is one", ok(child) && holds(words, SIZE, 11));
    uint32_t *word = (uint32_t *)words;
    *word = 0;
    child = fork();
    if (child == 0) {
        while (__atomic_load_n(word, __ATOMIC_SEQ_CST) == 0)
            syscall(SYS_futex, word, FUTEX_WAIT, 0, NULL, NULL, 0);
        __atomic_store_n(word, 2, __ATOMIC_SEQ_CST);
        syscall(SYS_futex, word, FUTEX_WAKE, 1, NULL, NULL, 0);
        _exit(0);
    }
    usleep(3000);
    __atomic_store_n(word, 1, __ATOMIC_SEQ_CST);
    syscall(SYS_futex, word, FUTEX_WAKE, 1, NULL, NULL, 0);
    while (__atomic_load_n(word, __ATOMIC_SEQ_CST) == 1)
        syscall(SYS_futex, word, FUTEX_WAIT, 1, NULL, NULL, 0);
    CHECK("a futex between processes", ok(child) && *word == 2);
    pthread_mutexattr_t attributes;
    pthread_mutexattr_init(&attributes);
    pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
    pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
    pthread_mutex_t *mutex = (void *)(words + 1000);
    pthread_mutex_init(mutex, &attributes);
    child = fork();
    if (child == 0) {
        pthread_mutex_lock(mutex);
        _exit(0);
    }
    CHECK("a robust mutex whose owner died", ok(child) && pthread_mutex_lock(mutex) == EOWNERDEAD);
    pthread_mutex_consistent(mutex);
    pthread_mutex_unlock(mutex);
    uint64_t *sum = words + 2000;
    *sum = 0;
    pid_t adders[4];
    for (int i = 0; i < 4; i++)
        if ((adders[i] = fork()) == 0) {
            for (int j = 0; j < 500; j++) {
                pthread_mutex_lock(mutex);
                *(volatile uint64_t *)sum += 1;
                pthread_mutex_unlock(mutex);
            }
            _exit(0);
        }
    int all = 1;
    for (int i = 0; i < 4; i++)
        all &= ok(adders[i]);
    CHECK_WITH("four processes, one mutex", all && *sum == 2000, *sum);
    munmap(words, SIZE);
    int fd = open(file, O_RDWR | O_CREAT | O_TRUNC, 0600);
    MUST(fd >= 0 && ftruncate(fd, 65536) == 0);
    uint64_t *pages = mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    uint64_t *own = mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    own[1] = 77;
    child = fork();
    if (child == 0) {
        pages[0] = 42;
        own[1] = 78;
        _exit(0);
    }
    uint64_t seen = 0;
    CHECK("a shared file", ok(child) && pages[0] == 42 && pread(fd, &seen, 8, 0) == 8 && seen == 42);
    CHECK("a private file", own[1] == 77 && pages[1] == 0);
    close(fd);
    unlink(file);
}

static uint64_t *hammered;
static int stop;
static void *hammer(void *base) {
    uint64_t *words = base, n = 0;
    while (!__atomic_load_n(&stop, __ATOMIC_RELAXED)) {
        n++;
        for (int i = 0; i < 64; i++)
            __atomic_store_n(&words[i * 512], n, __ATOMIC_RELAXED);
    }
    return NULL;
}

/* While a thread writes, a child must see each page as it was at some moment, and never a change afterwards. */
static void while_threads_write(void) {
    hammered = map(64 * 4096, MAP_PRIVATE);
    pthread_t thread;
    pthread_create(&thread, NULL, hammer, hammered);
    int good = 1;
    for (int round = 0; round < 20; round++) {
        pid_t child = fork();
        if (child == 0) {
            uint64_t first[64];
            for (int i = 0; i < 64; i++)
                first[i] = hammered[i * 512];
            usleep(2000);
            int same = 1;
            for (int i = 0; i < 64; i++)
                same &= first[i] == *(volatile uint64_t *)&hammered[i * 512];
            for (int i = 1; i < 64; i++)
                same &= first[i - 1] - first[i] <= 1; // written in this order
            _exit(same ? 0 : 1);
        }
        good &= ok(child);
    }
    stop = 1;
    pthread_join(thread, NULL);
    CHECK("a moment's picture", good);
    munmap(hammered, 64 * 4096);
}

static long free_kib(void) {
    FILE *file = fopen("/proc/meminfo", "r");
    char line[200];
    long kib = -1;
    while (file && fgets(line, sizeof line, file))
        if (sscanf(line, "MemFree: %ld kB", &kib) == 1)
            break;
    if (file)
        fclose(file);
    return kib;
}

static void nothing_leaks(int rounds, int exact) {
    char *block = malloc(3 << 20);
    memset(block, 1, 3 << 20);
    long before = 0;
    for (int i = 0; i < rounds; i++) {
        if (i == rounds / 10)
            before = free_kib();
        pid_t child = fork();
        if (child == 0) {
            memset(block, 2, 200 * 4096);
            char *more = malloc(1 << 20);
            memset(more, 3, 1 << 20);
            _exit(more[5] + block[0] == 5 ? 0 : 1);
        }
        if (!ok(child)) {
            CHECK("each child", 0);
            return;
        }
    }
    long lost = before - free_kib();
    /* The host's memory is used by others, too. */
    CHECK_WITH("no memory is lost", !exact || lost < 1024, lost);
    free(block);
}

/* What one process believes of some pages: value and rights of each. */
enum { PAGES = 96, PAGE_BYTES = 4096, LARGE_BYTES = 6 << 20, LARGE_WORDS = 40 };
enum right { ABSENT, READABLE, WRITABLE };
static struct {
    enum right rights[PAGES];
    uint64_t values[PAGES], large[LARGE_WORDS];
} believed;
static char *pages;
static uint64_t *large;
static int probe[2];

static uint64_t *page(int i) { return (uint64_t *)(void *)(pages + i * PAGE_BYTES) + i % 500; }
static uint64_t *word(int i) { return large + (size_t)i * (LARGE_BYTES / 8 / LARGE_WORDS) + i; }

/* Whether the kernel can read there: a pipe says so without a signal. */
static int is_there(const void *at) {
    char byte;
    return write(probe[1], at, 1) == 1 && read(probe[0], &byte, 1) == 1;
}

static int all_as_believed(void) {
    for (int i = 0; i < PAGES; i++)
        if (is_there(page(i)) != (believed.rights[i] != ABSENT) ||
            (believed.rights[i] != ABSENT && *page(i) != believed.values[i]))
            return 0;
    for (int i = 0; i < LARGE_WORDS; i++)
        if (*word(i) != believed.large[i])
            return 0;
    return 1;
}

static void change_some(uint64_t *random, int count) {
    while (count--) {
        int i = (int)(next_random(random) % PAGES);
        enum right *right = &believed.rights[i];
        char *at = pages + i * PAGE_BYTES;
        switch (next_random(random) % 6) {
        case 0:
            MUST(munmap(at, PAGE_BYTES) == 0);
            *right = ABSENT;
            break;
        case 1:
            MUST(mmap(at, PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == at);
            *right = WRITABLE;
            believed.values[i] = 0;
            break;
        case 2:
            if (*right != ABSENT) {
                *right = *right == READABLE ? WRITABLE : READABLE;
                MUST(mprotect(at, PAGE_BYTES, PROT_READ | (*right == WRITABLE ? PROT_WRITE : 0)) == 0);
            }
            break;
        case 3:
            i = (int)(next_random(random) % LARGE_WORDS);
            *word(i) = believed.large[i] = next_random(random);
            break;
        default:
            if (*right == WRITABLE)
                *page(i) = believed.values[i] = next_random(random);
        }
    }
}

/* Of a process that has changed its memory after each fork, each child sees what was there at its own, whatever the
 * children before it have done to theirs; and the parent sees none of it. */
static void again_and_again(int rounds) {
    uint64_t random = 7;
    pages = (char *)map(PAGES * PAGE_BYTES, MAP_PRIVATE);
    large = map(LARGE_BYTES, MAP_PRIVATE);
    MUST(pipe(probe) == 0);
    for (int i = 0; i < PAGES; i++)
        believed.rights[i] = WRITABLE;
    int right = 1;
    for (int round = 0; round < rounds && right; round++) {
        pid_t children[4];
        int count = 1 + (int)(next_random(&random) % 4);
        for (int n = 0; n < count; n++) {
            uint64_t seed = next_random(&random);
            change_some(&random, 6);
            children[n] = fork();
            if (children[n] == 0) {
                MUST(pipe(probe) == 0);
                int good = all_as_believed();
                change_some(&seed, 20);
                if (seed % 3 == 0) {
                    pid_t below = fork();
                    if (below == 0) {
                        int same = all_as_believed();
                        change_some(&seed, 20);
                        _exit(same && all_as_believed() ? 0 : 1);
                    }
                    change_some(&seed, 5);
                    good &= ok(below);
                }
                _exit(good && all_as_believed() ? 0 : 1);
            }
        }
        change_some(&random, 6);
        for (int n = 0; n < count; n++)
            right &= ok(children[n]);
        right &= all_as_believed();
    }
    CHECK("each child has a copy of its own time", right);
}

int main(int argc, char **argv) {
    MUST(argc > 1);
    int rounds = argc > 2 ? atoi(argv[2]) : 100;
    copies();
    again_and_again(rounds < 240 ? rounds / 4 : 60);
    rights();
    advice();
    reused();
    shared(argv[1]);
    while_threads_write();
    nothing_leaks(rounds, getppid() == 0);
    return check_result();
}
