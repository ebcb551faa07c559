/* Registers that belong to somebody else: argument 1 says what to do.
 *
 * `keep SECONDS` fills all general and vector registers with a marker and computes with them; `look ROUNDS` saves everything
 * that XSAVE saves, and the general registers, after calls that sleep or yield, in new threads, in new processes and in new
 * programs, and searches it for the marker; `own` does so with its own registers filled, so that the search can be seen
 * to find. The marker is computed: it is in no file. */
#include "check.h"
#include <cpuid.h>
#include <pthread.h>
#include <sched.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static unsigned char area[16384] __attribute__((aligned(64)));
static volatile uint64_t parts[2] = {0x5ec2e75ec2e7, 0x9e3779b97f4a7c15};

/* Who searches must not have the marker in a register itself: it only ever has its complement. */
static uint64_t complement(void) { return parts[0] * parts[1]; }

static uint64_t marker(void) { return ~complement(); }

static int is_marker(uint64_t word, uint64_t complement) {
    __asm__("add %1, %0" : "+r"(word) : "r"(complement) : "cc");
    return word == ~0ul;
}

static int has(unsigned which) {
    unsigned a, b, c, d;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return 0;
    return (b >> which) & 1;
}

/* All of them hold the marker afterwards. */
#define FILL(m)                                                                                                      \
    do {                                                                                                             \
        __asm__ volatile("movq %0, %%xmm0\n punpcklqdq %%xmm0, %%xmm0\n" : : "r"(m) : "xmm0");                       \
        if (has(16))                                                                                                 \
            __asm__ volatile("vpbroadcastq %%xmm0, %%zmm0\n vmovdqa64 %%zmm0, %%zmm7\n"                           \
                             "vmovdqa64 %%zmm0, %%zmm15\n vmovdqa64 %%zmm0, %%zmm23\n vmovdqa64 %%zmm0, %%zmm31"     \
                             : : : "xmm0", "xmm7", "xmm15");                                                         \
        else if (has(5))                                                                                             \
            __asm__ volatile("vinserti128 $1, %%xmm0, %%ymm0, %%ymm0\n vmovdqa %%ymm0, %%ymm7\n"                     \
                             "vmovdqa %%ymm0, %%ymm15" : : : "xmm0", "xmm7", "xmm15");                               \
        else                                                                                                         \
            __asm__ volatile("movdqa %%xmm0, %%xmm7\n movdqa %%xmm0, %%xmm15" : : : "xmm0", "xmm7", "xmm15");        \
    } while (0)

/* Whether the marker is in any register now. */
static __attribute__((noinline)) int found_in(unsigned char *to) {
    uint64_t general[8];
    __asm__ volatile("mov %%r8, 0(%0)\n mov %%r9, 8(%0)\n mov %%r10, 16(%0)\n mov %%r11, 24(%0)\n mov %%r12, 32(%0)\n"
                     "mov %%r13, 40(%0)\n mov %%r14, 48(%0)\n mov %%r15, 56(%0)"
                     : : "r"(general) : "memory");
    memset(to, 0, sizeof area);
    __asm__ volatile("xsave64 (%0)" : : "r"(to), "a"(-1), "d"(-1) : "memory");
    uint64_t other = complement();
    int found = 0;
    for (int i = 0; i < 8; i++) found |= is_marker(general[i], other);
    for (size_t i = 0; i + 8 <= sizeof area; i++) {
        uint64_t word;
        memcpy(&word, to + i, 8);
        found |= is_marker(word, other);
    }
    return found;
}

static void *thread(void *unused) {
    (void)unused;
    unsigned char *own = aligned_alloc(64, sizeof area);
    MUST(own);
    long found = found_in(own);
    free(own);
    return (void *)found;
}

static int keep(int seconds) {
    time_t end = time(0) + seconds;
    uint64_t m = marker(), wrong = 0;
    printf("keeping\n");
    fflush(stdout);
    while (time(0) < end) {
        FILL(m);
        register uint64_t a __asm__("r12") = m, b __asm__("r13") = m, c __asm__("r14") = m, d __asm__("r15") = m;
        for (long i = 0; i < 2000000; i++) __asm__ volatile("" : "+r"(a), "+r"(b), "+r"(c), "+r"(d));
        wrong += a != m || b != m || c != m || d != m;
    }
    printf("%s\n", wrong == 0 ? "kept" : "LOST");
    return wrong != 0;
}

static int look(int rounds, char *self) {
    int found = 0;
    for (int round = 0; round < rounds; round++) {
        struct timespec brief = {.tv_nsec = 1000000};
        round % 2 ? (void)sched_yield() : (void)nanosleep(&brief, 0);
        found |= found_in(area);
        if (round % 8 == 0) {
            pthread_t other;
            void *result = 0;
            MUST(pthread_create(&other, 0, thread, 0) == 0 && pthread_join(other, &result) == 0);
            found |= result != 0;
        }
        if (round % 32 == 0) {
            pid_t child = fork();
            MUST(child >= 0);
            if (child == 0) {
                if (round % 64 == 0) execl(self, self, "once", (char *)0);
                _exit(found_in(area));
            }
            int status;
            MUST(waitpid(child, &status, 0) == child);
            found |= status != 0;
        }
    }
    printf("%s\n", found ? "FOUND somebody's registers" : "nothing of anybody");
    return found;
}

int main(int argc, char **argv) {
    MUST(argc >= 2);
    if (strcmp(argv[1], "once") == 0) return found_in(area);
    if (strcmp(argv[1], "keep") == 0) return keep(atoi(argv[2]));
    if (strcmp(argv[1], "look") == 0) return look(atoi(argv[2]), argv[0]);
    FILL(marker());
    printf("%s\n", found_in(area) ? "found its own" : "BLIND");
    return 0;
}
