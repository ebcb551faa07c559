/* The life of threads: creation and join by the thousand, detachment, thread-local storage and its destructors,
 * cancellation, once, names, small stacks, the main thread leaving first. */
#include "check.h"
#include <pthread.h>
#include <sys/syscall.h>
#include <unistd.h>

static __thread uint64_t local = 7;
static __thread char local_array[10000];
static int counter, destroyed, cleaned, once_runs;
static pthread_key_t key;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void *add(void *amount) {
    __atomic_add_fetch(&counter, (int)(long)amount, __ATOMIC_RELAXED);
    return amount;
}

static void *use_local(void *arg) {
    int fresh = local == 7 && local_array[9999] == 0;
    local = (uint64_t)(long)arg;
    memset(local_array, 1, sizeof local_array);
    pthread_setspecific(key, arg);
    usleep(100);
    return (void *)(long)(fresh && local == (uint64_t)(long)arg && pthread_getspecific(key) == arg);
}

static void destroy(void *value) { __atomic_add_fetch(&destroyed, (int)(long)value, __ATOMIC_RELAXED); }
static void clean(void *unused) { (void)unused; cleaned++; }
static void run_once(void) { once_runs++; }

static void *until_cancelled(void *unused) {
    (void)unused;
    pthread_cleanup_push(clean, NULL);
    for (;;)
        pause();
    pthread_cleanup_pop(0);
    return NULL;
}

static void *call_once(void *unused) {
    (void)unused;
    pthread_once(&once, run_once);
    return NULL;
}

static void *tell_tid(void *out) {
    *(long *)out = syscall(SYS_gettid);
    return NULL;
}

static void *last_words(void *main_thread) {
    pthread_join(*(pthread_t *)main_thread, NULL);
    CHECK("the process lives on after its main thread", 1);
    exit(check_result());
}

int main(void) {
    pthread_t threads[64];
    long wrong = 0;
    void *result;
    for (int i = 0; i < 2000; i++) {
        MUST(pthread_create(&threads[0], NULL, add, (void *)1L) == 0 && pthread_join(threads[0], &result) == 0);
        wrong += result != (void *)1L;
    }
    CHECK_WITH("two thousand, one after another", wrong == 0 && counter == 2000, counter);
    MUST(pthread_key_create(&key, destroy) == 0);
    for (long i = 0; i < 64; i++)
        MUST(pthread_create(&threads[i], NULL, use_local, (void *)(i + 1)) == 0);
    for (int i = 0; i < 64; i++) {
        pthread_join(threads[i], &result);
        wrong += result != (void *)1L;
    }
    CHECK_WITH("thread-local storage is each thread's own", wrong == 0 && local == 7, wrong);
    CHECK_WITH("destructors ran with each value", destroyed == 64 * 65 / 2, destroyed);
    for (int i = 0; i < 16; i++)
        MUST(pthread_create(&threads[i], NULL, call_once, NULL) == 0);
    for (int i = 0; i < 16; i++)
        pthread_join(threads[i], NULL);
    CHECK_WITH("once is once", once_runs == 1, once_runs);
    MUST(pthread_create(&threads[0], NULL, until_cancelled, NULL) == 0);
    usleep(10000);
    CHECK("cancel", pthread_cancel(threads[0]) == 0 && pthread_join(threads[0], &result) == 0 && result == PTHREAD_CANCELED && cleaned == 1);

    pthread_attr_t attributes;
    size_t size;
    pthread_attr_init(&attributes);
    CHECK("a small stack", pthread_attr_setstacksize(&attributes, 65536) == 0 && pthread_attr_getstacksize(&attributes, &size) == 0 && size == 65536);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    counter = 0;
    for (int i = 0; i < 200; i++)
        MUST(pthread_create(&threads[0], &attributes, add, (void *)1L) == 0);
    for (int tries = 0; __atomic_load_n(&counter, __ATOMIC_RELAXED) < 200 && tries < 30000; tries++)
        usleep(1000);
    CHECK_WITH("two hundred detached", counter == 200, counter);
    long tids[2] = {0, 0};
    pthread_create(&threads[0], NULL, tell_tid, &tids[0]);
    pthread_create(&threads[1], NULL, tell_tid, &tids[1]);
    pthread_join(threads[0], NULL);
    pthread_join(threads[1], NULL);
    CHECK("each has its number", tids[0] > 0 && tids[1] > 0 && tids[0] != tids[1] && tids[0] != getpid());
    /* A join returns a moment before Linux has let the number go. */
    for (int tries = 0; syscall(SYS_tgkill, getpid(), tids[0], 0) == 0 && tries < 1000; tries++)
        usleep(1000);
    CHECK_FAILS("a signal to a thread that is gone", syscall(SYS_tgkill, getpid(), tids[0], 0), ESRCH);
    char name[16];
    CHECK("names", pthread_setname_np(pthread_self(), "a-thread-name") == 0 && pthread_getname_np(pthread_self(), name, 16) == 0 && strcmp(name, "a-thread-name") == 0);
    static pthread_t self;
    self = pthread_self();
    MUST(pthread_create(&threads[0], NULL, last_words, &self) == 0);
    pthread_exit(NULL);
}
