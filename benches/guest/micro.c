/* Costs of single operations, one line each: `name<TAB>nanoseconds an operation`.
 *
 * Each row is the median of several batches, each long enough for the clock to be exact. Argument 1 is a file of at
 * least 1 MiB to read from. Static, so that the same bytes run natively and under every peer. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <spawn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { BATCHES = 7, BATCH_NS = 25 * 1000 * 1000, CHASE = 256 << 20, COPY = 64 << 20 };

static const char *file_name;
static int file;
static char buffer[64 * 1024];
static volatile uint64_t sink;

static int64_t now(void) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return at.tv_sec * 1000000000LL + at.tv_nsec;
}

static int ascending(const void *a, const void *b) {
    double difference = *(const double *)a - *(const double *)b;
    return (difference > 0) - (difference < 0);
}

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static void row(const char *name, void (*operation)(long count)) {
    long count = 1;
    int64_t spent;
    for (;;) {
        int64_t start = now();
        operation(count);
        spent = now() - start;
        if (spent > BATCH_NS / 4)
            break;
        count *= 2;
    }
    count = count * BATCH_NS / spent + 1;
    double batches[BATCHES];
    for (int i = 0; i < BATCHES; i++) {
        int64_t start = now();
        operation(count);
        batches[i] = (double)(now() - start) / (double)count;
    }
    qsort(batches, BATCHES, sizeof *batches, ascending);
    printf("%s\t%.2f\n", name, batches[BATCHES / 2]);
    fflush(stdout);
}

static void getpid_by_call(long count) {
    while (count--)
        syscall(SYS_getpid);
}

static void clock_by_call(long count) {
    struct timespec at;
    while (count--)
        syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &at);
}

static void clock_by_libc(long count) {
    struct timespec at;
    while (count--)
        clock_gettime(CLOCK_MONOTONIC, &at);
}

static void futex_wake(long count) {
    static uint32_t word;
    while (count--)
        syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

static void read_one(long count) {
    while (count--)
        if (pread(file, buffer, 1, count % 4096) != 1)
            fail("pread");
}

static void read_64k(long count) {
    while (count--)
        if (pread(file, buffer, sizeof buffer, 0) != sizeof buffer)
            fail("pread");
}

static void open_close(long count) {
    while (count--) {
        int fd = open(file_name, O_RDONLY | O_CLOEXEC);
        if (fd < 0)
            fail(file_name);
        close(fd);
    }
}

static void access_file(long count) {
    while (count--)
        if (access(file_name, R_OK) != 0)
            fail("access");
}

static void map_touch_unmap(long count) {
    while (count--) {
        char *map = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (map == MAP_FAILED)
            fail("mmap");
        for (int at = 0; at < 1 << 20; at += 4096)
            map[at] = 1;
        munmap(map, 1 << 20);
    }
}

static int there[2], back[2];

static void answer_all(void) {
    char byte;
    while (read(there[0], &byte, 1) == 1 && write(back[1], &byte, 1) == 1)
        ;
}

static void *answer(void *unused) {
    (void)unused;
    answer_all();
    return NULL;
}

static void ping_pong(long count) {
    char byte = 0;
    while (count--)
        if (write(there[1], &byte, 1) != 1 || read(back[0], &byte, 1) != 1)
            fail("ping-pong");
}

static void alu(long count) {
    uint64_t x = 88172645463325252u;
    while (count--) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
    }
    sink = x;
}

static uint32_t *chain;
static uint32_t chain_at;

/* One cycle through all cache lines of 256 MiB in an order that no prefetcher follows. */
static void make_chain(void) {
    const uint32_t lines = CHASE / 64;
    chain = mmap(NULL, CHASE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    uint32_t *order = malloc(lines * sizeof *order);
    if (chain == MAP_FAILED || order == NULL)
        fail("256 MiB");
    for (uint32_t i = 0; i < lines; i++)
        order[i] = i;
    uint64_t state = 1;
    for (uint32_t i = lines - 1; i > 0; i--) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        uint32_t j = (uint32_t)((state >> 33) % (i + 1)), swap = order[i];
        order[i] = order[j];
        order[j] = swap;
    }
    for (uint32_t i = 0; i < lines; i++)
        chain[(size_t)order[i] * 16] = order[(i + 1) % lines];
    free(order);
}

static void chase(long count) {
    uint32_t at = chain_at;
    while (count--)
        at = chain[(size_t)at * 16];
    chain_at = at;
}

static char *copy_from, *copy_to;

static void copy(long count) {
    while (count--) {
        memcpy(copy_to, copy_from, COPY);
        sink += (uint64_t)copy_to[count % COPY];
    }
}

static void fork_wait(long count) {
    while (count--) {
        pid_t child = fork();
        if (child == 0)
            _exit(0);
        if (child < 0 || waitpid(child, NULL, 0) != child)
            fail("fork");
    }
}

static void spawn(long count, char **arguments) {
    while (count--) {
        pid_t child;
        if (posix_spawn(&child, arguments[0], NULL, NULL, arguments, NULL) != 0 || waitpid(child, NULL, 0) != child)
            fail(arguments[0]);
    }
}

static void spawn_true(long count) {
    spawn(count, (char *[]){"/bin/true", NULL});
}

static void spawn_python(long count) {
    spawn(count, (char *[]){"/usr/bin/python3", "-c", "pass", NULL});
}

/* The other process ends when nobody can write to it any more. */
static void ping_pong_with_process(const char *name) {
    if (pipe(there) != 0 || pipe(back) != 0)
        fail("pipe");
    pid_t child = fork();
    if (child < 0)
        fail("fork");
    if (child == 0) {
        close(there[1]);
        close(back[0]);
        answer_all();
        _exit(0);
    }
    row(name, ping_pong);
    close(there[1]);
    if (waitpid(child, NULL, 0) != child)
        fail("waitpid");
    close(there[0]);
    close(back[0]);
    close(back[1]);
}

int main(int argc, char **argv) {
    if (argc < 2)
        return 2;
    file_name = argv[1];
    file = open(file_name, O_RDONLY | O_CLOEXEC);
    if (file < 0)
        fail(file_name);
    if (argc == 3) {
        row("pread-1-shared", read_one);
        row("pread-64k-shared", read_64k);
        row("open-close-shared", open_close);
        row("access-shared", access_file);
        return 0;
    }
    row("getpid", getpid_by_call);
    row("clock_gettime-call", clock_by_call);
    row("clock_gettime-vdso", clock_by_libc);
    row("futex-wake", futex_wake);
    row("pread-1", read_one);
    row("pread-64k", read_64k);
    row("open-close", open_close);
    row("access", access_file);
    row("mmap-touch-munmap", map_touch_unmap);
    row("fork-exit-wait", fork_wait);
    row("spawn-true", spawn_true);
    row("spawn-python", spawn_python);
    ping_pong_with_process("pipe-ping-pong-processes");
    pthread_t thread;
    if (pipe(there) != 0 || pipe(back) != 0 || pthread_create(&thread, NULL, answer, NULL) != 0)
        fail("two threads");
    row("pipe-ping-pong", ping_pong);
    row("alu", alu);
    make_chain();
    row("pointer-chase", chase);
    copy_from = malloc(COPY);
    copy_to = malloc(COPY);
    if (copy_from == NULL || copy_to == NULL)
        fail("malloc");
    memset(copy_from, 1, COPY);
    memset(copy_to, 2, COPY);
    row("copy-64m", copy);
    return 0;
}
