/* Threads share system-call sites, and stand behind them while another thread's call makes them hot: whatever is done to
 * a site's code, each thread goes on with the instruction that follows, with the right result. */
#include "check.h"
#include <pthread.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { SITES = 64, THREADS = 8, CALLS = 48, ROOM = 64 };

/* mov eax, esi; syscall; add rax, 5; xor rax, 3; ret */
static const unsigned char code[] = {0x89, 0xf0, 0x0f, 0x05, 0x48, 0x83, 0xc0, 0x05, 0x48, 0x83, 0xf0, 0x03, 0xc3};
typedef long (*site)(const void *argument, long number);

static unsigned char *sites;
static int wrong;

static void *work(void *unused) {
    (void)unused;
    for (int i = 0; i < SITES; i++) {
        site call = (site)(void *)(sites + i * ROOM + i % 8); // every alignment
        for (int n = 0; n < CALLS; n++) {
            struct timespec some = {0, 20000};
            long slept = call(&some, SYS_nanosleep), who = call(NULL, SYS_gettid);
            if (slept != (5 ^ 3) || who != ((syscall(SYS_gettid) + 5) ^ 3))
                __atomic_add_fetch(&wrong, 1, __ATOMIC_RELAXED);
        }
    }
    return NULL;
}

int main(void) {
    sites = mmap(NULL, SITES * ROOM, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    MUST(sites != MAP_FAILED);
    memset(sites, 0xcc, SITES * ROOM);
    for (int i = 0; i < SITES; i++)
        memcpy(sites + i * ROOM + i % 8, code, sizeof code);
    MUST(mprotect(sites, SITES * ROOM, PROT_READ | PROT_EXEC) == 0);
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++)
        MUST(pthread_create(&threads[i], NULL, work, NULL) == 0);
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    CHECK_WITH("every call went on behind its site", wrong == 0, wrong);
    return check_result();
}
