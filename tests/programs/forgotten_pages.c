/* What one thread takes away no other can use any more, however many mappings one call goes over. */
#include "check.h"
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/mman.h>

#define PAGE 4096ul

static sigjmp_buf back;
static _Atomic(volatile char *) watched;
static atomic_int seen, gone, ended;

static void on_fault(int number) {
    (void)number;
    siglongjmp(back, 1);
}

/* Reads and writes one page until it may not. */
static void *watch(void *unused) {
    (void)unused;
    while (!atomic_load(&ended)) {
        volatile char *page = atomic_load(&watched);
        if (page == NULL)
            continue;
        if (sigsetjmp(back, 1) == 0) {
            for (;;) {
                page[0]++;
                atomic_store(&seen, 1);
                if (atomic_load(&gone)) {
                    /* Whoever took it has come back from the call: it must fault by itself. */
                    for (int i = 0; i < 1000; i++)
                        page[0]++;
                    atomic_store(&gone, 2);
                    break;
                }
            }
        }
        atomic_store(&watched, NULL);
    }
    return NULL;
}

/* `count` mappings that cannot be one, the last of which another thread uses; whether it still could afterwards. */
static int stays(int count, int protects) {
    char *at = mmap(NULL, count * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    MUST(at != MAP_FAILED);
    for (int i = 0; i < count; i++)
        MUST(mmap(at + i * PAGE, PAGE, PROT_READ | PROT_WRITE | (i % 2 ? PROT_EXEC : 0),
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == at + i * PAGE);
    memset(at, 1, count * PAGE);
    atomic_store(&seen, 0);
    atomic_store(&gone, 0);
    atomic_store(&watched, at + (count - 1) * PAGE);
    while (!atomic_load(&seen))
        ;
    MUST((protects ? mprotect(at, count * PAGE, PROT_NONE) : munmap(at, count * PAGE)) == 0);
    atomic_store(&gone, 1);
    while (atomic_load(&watched) != NULL)
        ;
    if (protects)
        munmap(at, count * PAGE);
    return atomic_load(&gone) == 2;
}

int main(void) {
    struct sigaction action = {.sa_handler = on_fault};
    pthread_t thread;
    MUST(sigaction(SIGSEGV, &action, NULL) == 0 && pthread_create(&thread, NULL, watch, NULL) == 0);
    int unmapped = 0, protected = 0;
    /* Changes of page tables go in lots; what comes alone after a full one is as good as the others. */
    int counts[] = {1, 2, 31, 32, 33, 62, 63, 64, 65, 66, 126, 127, 128, 129};
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        unmapped += stays(counts[i], 0);
        protected += stays(counts[i], 1);
    }
    atomic_store(&ended, 1);
    MUST(pthread_join(thread, NULL) == 0);
    CHECK_WITH("what is unmapped is unmapped for all threads", unmapped == 0, unmapped);
    CHECK_WITH("what is protected is protected from all threads", protected == 0, protected);
    return check_result();
}
