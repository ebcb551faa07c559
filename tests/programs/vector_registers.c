/* Vector and x87 state lives through system calls and through signal handlers: XMM always, YMM, ZMM and mask registers
 * where the processor has them. The printed lines are the same either way.
 *
 *   vector_registers          through calls, signals and faults
 *   vector_registers FILE     through reads and syncs of a file, which a protected volume opens and seals meanwhile */
#include "check.h"
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

static unsigned char pattern[32 * 64] __attribute__((aligned(64))), seen[32 * 64] __attribute__((aligned(64)));

enum via { BY_CALL, BY_BLOCKING_CALL, BY_SIGNAL, BY_FAULT, ANYWHERE, BY_READ = ANYWHERE, BY_SYNC, WAYS };
static const char *const way_names[WAYS] = {"a call",  "a call that sleeps", "a signal",
                                            "a fault", "a read of a file",   "a sync of a file"};

/* More than a guest of 64 MiB keeps of a volume, so that reads in a circle find nothing there. */
enum { PIECE = 64 << 10, FILE_SIZE = 24 << 20 };
static char piece[PIECE];
static int file = -1;

/* What a way needs done before. */
static void prepare(enum via way) {
    static off_t at;
    at = (at + PIECE) % FILE_SIZE;
    if (way == BY_READ)
        MUST(lseek(file, at, SEEK_SET) == at);
    if (way == BY_SYNC)
        MUST(pwrite(file, piece, PIECE, at) == PIECE);
}

/* Each way is an instruction sequence that clobbers rax, rcx, r11 and what it takes as arguments. */
static struct timespec brief = {.tv_nsec = 200000};
static long pid, tid;

#define LOADED(load, store, trap, number, a, b, c)                                                                   \
    do {                                                                                                             \
        long result = (number);                                                                                      \
        register long third __asm__("rdx") = (long)(c);                                                              \
        __asm__ volatile(load trap store                                                                             \
                         : "+a"(result), "+r"(third) : "D"((long)(a)), "S"((long)(b)), "r"(from), "r"(to)            \
                         : "rcx", "r11", "memory", "cc", ALL_XMM);                                                   \
    } while (0)

#define ALL_XMM                                                                                                      \
    "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12",       \
        "xmm13", "xmm14", "xmm15"

#define FOR16(m) m(0) m(1) m(2) m(3) m(4) m(5) m(6) m(7) m(8) m(9) m(10) m(11) m(12) m(13) m(14) m(15)
#define FOR32(m)                                                                                                     \
    FOR16(m) m(16) m(17) m(18) m(19) m(20) m(21) m(22) m(23) m(24) m(25) m(26) m(27) m(28) m(29) m(30) m(31)

#define LOAD_XMM(n) "movdqa 64*" #n "(%4), %%xmm" #n "\n"
#define STORE_XMM(n) "movdqa %%xmm" #n ", 64*" #n "(%5)\n"
#define LOAD_YMM(n) "vmovdqa 64*" #n "(%4), %%ymm" #n "\n"
#define STORE_YMM(n) "vmovdqa %%ymm" #n ", 64*" #n "(%5)\n"
#define LOAD_ZMM(n) "vmovdqa64 64*" #n "(%4), %%zmm" #n "\n"
#define STORE_ZMM(n) "vmovdqa64 %%zmm" #n ", 64*" #n "(%5)\n"

#define GO(load, store)                                                                                              \
    switch (way) {                                                                                                   \
    case BY_CALL: LOADED(FOR(load), FOR(store), "syscall\n", SYS_getppid, 0, 0, 0); break;                           \
    case BY_BLOCKING_CALL: LOADED(FOR(load), FOR(store), "syscall\n", SYS_nanosleep, &brief, 0, 0); break;           \
    case BY_READ: LOADED(FOR(load), FOR(store), "syscall\n", SYS_read, file, piece, PIECE); break;                    \
    case BY_SYNC: LOADED(FOR(load), FOR(store), "syscall\n", SYS_fdatasync, file, 0, 0); break;                       \
    case BY_SIGNAL: LOADED(FOR(load), FOR(store), "syscall\n", SYS_tgkill, pid, tid, SIGUSR1); break;                \
    default: LOADED(FOR(load), FOR(store), "ud2\n", 0, 0, 0, 0); break;                                              \
    }

static void through(enum via way, int width) {
    const unsigned char *from = pattern;
    unsigned char *to = seen;
#define FOR(m) FOR16(m)
    if (width == 16) {
        GO(LOAD_XMM, STORE_XMM)
    } else if (width == 32) {
        GO(LOAD_YMM, STORE_YMM)
    }
#undef FOR
#define FOR(m) FOR32(m)
    if (width == 64) {
        GO(LOAD_ZMM, STORE_ZMM)
    }
#undef FOR
}

/* Handlers and other threads spoil every register they can reach. */
static void spoil(void) {
    __asm__ volatile("pcmpeqd %%xmm0, %%xmm0; movdqa %%xmm0, %%xmm7; movdqa %%xmm0, %%xmm15" ::: "xmm0", "xmm7", "xmm15");
    if (__builtin_cpu_supports("avx"))
        __asm__ volatile("vzeroall" ::: ALL_XMM);
    __asm__ volatile("fninit; fld1; fldpi");
}

static void handler(int number, siginfo_t *info, void *context) {
    (void)info;
    spoil();
    if (number == SIGILL)
        ((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP] += 2;
}

static int survives(enum via way, int width, int registers) {
    /* A sync waits for the disk. */
    for (int round = 0; round < (way == BY_SYNC ? 8 : 50); round++) {
        uint64_t state = (uint64_t)round;
        for (size_t i = 0; i < sizeof pattern; i++)
            pattern[i] = (unsigned char)next_random(&state);
        memset(seen, 0, sizeof seen);
        prepare(way);
        through(way, width);
        for (int i = 0; i < registers; i++)
            if (memcmp(pattern + 64 * i, seen + 64 * i, (size_t)width) != 0)
                return 0;
    }
    return 1;
}

static int masks_survive(enum via way) {
    uint64_t in = 0x1234567890abcdef, out = 0;
    long result = way == BY_READ ? SYS_read : SYS_getppid;
    prepare(way);
    __asm__ volatile("kmovq %2, %%k1; kmovq %2, %%k7; syscall; kmovq %%k7, %1; kmovq %%k1, %%rcx; and %%rcx, %1"
                     : "+a"(result), "=&r"(out) : "r"(in), "D"((long)file), "S"(piece), "d"((long)PIECE)
                     : "rcx", "r11", "memory");
    return out == in;
}

static void *disturb(void *stop) {
    while (!__atomic_load_n((int *)stop, __ATOMIC_RELAXED)) {
        spoil();
        syscall(SYS_sched_yield);
    }
    return NULL;
}

int main(int count, char **arguments) {
    if (count > 1) {
        file = open(arguments[1], O_RDWR | O_CREAT, 0600);
        MUST(file >= 0);
        for (off_t at = 0; at < FILE_SIZE; at += PIECE)
            MUST(pwrite(file, piece, PIECE, at) == PIECE);
    }
    enum via first = count > 1 ? BY_READ : BY_CALL, end = count > 1 ? WAYS : ANYWHERE;
    pid = getpid();
    tid = syscall(SYS_gettid);
    struct sigaction action = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO};
    MUST(sigaction(SIGUSR1, &action, NULL) == 0 && sigaction(SIGILL, &action, NULL) == 0);
    int stop = 0, avx = __builtin_cpu_supports("avx"), avx512 = __builtin_cpu_supports("avx512bw");
    pthread_t threads[3];
    for (int i = 0; i < 3; i++)
        pthread_create(&threads[i], NULL, disturb, &stop);
    for (enum via way = first; way < end; way++) {
        char line[80];
        snprintf(line, sizeof line, "xmm through %s", way_names[way]);
        CHECK(line, survives(way, 16, 16));
        snprintf(line, sizeof line, "ymm through %s", way_names[way]);
        CHECK(line, !avx || survives(way, 32, 16));
        snprintf(line, sizeof line, "zmm through %s", way_names[way]);
        CHECK(line, !avx512 || survives(way, 64, 32));
    }
    CHECK("mask registers through a call", !avx512 || masks_survive(first));

    uint32_t mxcsr = 0x1f80 | 0x6000, mxcsr_after;
    uint16_t control = 0x0f7f, control_after;
    long result = SYS_getppid;
    double kept = 0;
    __asm__ volatile("ldmxcsr %3; fldcw %4; fldpi; syscall; fstpl %5; stmxcsr %1; fnstcw %2"
                     : "+a"(result), "=m"(mxcsr_after), "=m"(control_after)
                     : "m"(mxcsr), "m"(control), "m"(kept) : "rcx", "r11", "memory");
    CHECK("mxcsr and the x87 control word through a call", mxcsr_after == mxcsr && control_after == control);
    CHECK("an x87 register through a call", kept > 3.14159 && kept < 3.1416);
    raise(SIGUSR1);
    __asm__ volatile("stmxcsr %0; fnstcw %1" : "=m"(mxcsr_after), "=m"(control_after));
    CHECK("mxcsr and the x87 control word through a signal", mxcsr_after == mxcsr && control_after == control);
    __atomic_store_n(&stop, 1, __ATOMIC_RELAXED);
    for (int i = 0; i < 3; i++)
        pthread_join(threads[i], NULL);
    return check_result();
}
