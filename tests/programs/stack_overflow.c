/* Recursion without end: the stack's limit is met by SIGSEGV, which kills. With an argument, in a thread's stack. */
#include "check.h"
#include <pthread.h>

static volatile unsigned sink;
/* Never reached; it keeps the compiler from seeing that there is no end. */
static volatile unsigned bottom = ~0u;

__attribute__((noinline)) static unsigned deeper(unsigned depth) {
    volatile char frame[512];
    frame[depth % sizeof frame] = (char)depth;
    if (depth == bottom)
        return 0;
    unsigned below = deeper(depth + 1);
    sink += (unsigned)frame[depth % sizeof frame];
    return below + 1;
}

static void *in_thread(void *unused) {
    (void)unused;
    sink = deeper(0);
    return NULL;
}

int main(int argc, char **argv) {
    (void)argv;
    printf("going down\n");
    fflush(stdout);
    if (argc > 1) {
        pthread_t thread;
        MUST(pthread_create(&thread, NULL, in_thread, NULL) == 0);
        pthread_join(thread, NULL);
    } else {
        sink = deeper(0);
    }
    printf("came back\n");
    return 0;
}
