/* futex(2): wait and wake, bitsets, timeouts of both clocks, requeue, wake-op, priority-inheritance locks by libc, and
 * robust lists whose owner dies. */
#include "check.h"
#include <linux/futex.h>
#include <pthread.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static uint32_t word, other_word;
static int sleeping, woken;

static long futex(uint32_t *at, int operation, uint32_t value, const void *timeout, uint32_t *second, uint32_t third) {
    return syscall(SYS_futex, at, operation, value, timeout, second, third);
}

static void *waiter(void *bitset) {
    __atomic_add_fetch(&sleeping, 1, __ATOMIC_SEQ_CST);
    long result = bitset ? futex(&word, FUTEX_WAIT_BITSET_PRIVATE, 0, NULL, NULL, (uint32_t)(long)bitset)
                         : futex(&word, FUTEX_WAIT_PRIVATE, 0, NULL, NULL, 0);
    __atomic_add_fetch(&woken, 1, __ATOMIC_SEQ_CST);
    return (void *)result;
}

/* There is no call that tells that another thread sleeps on a futex, so wake until the count is reached. */
static int wake_until(uint32_t *at, int wanted) {
    int total = 0;
    for (int tries = 0; total < wanted && tries < 20000; tries++) {
        long count = futex(at, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
        if (count > 0)
            total += (int)count;
        else
            usleep(500);
    }
    return total;
}

static void waits(void) {
    word = 1;
    CHECK_FAILS("wait for a value that is not there", futex(&word, FUTEX_WAIT_PRIVATE, 0, NULL, NULL, 0), EAGAIN);
    struct timespec brief = {.tv_nsec = 2000000};
    CHECK_FAILS("a relative timeout", futex(&word, FUTEX_WAIT_PRIVATE, 1, &brief, NULL, 0), ETIMEDOUT);
    struct timespec due;
    clock_gettime(CLOCK_MONOTONIC, &due);
    due.tv_nsec += 1000000;
    due.tv_sec += due.tv_nsec / 1000000000;
    due.tv_nsec %= 1000000000;
    CHECK_FAILS("an absolute timeout", futex(&word, FUTEX_WAIT_BITSET_PRIVATE, 1, &due, NULL, ~0u), ETIMEDOUT);
    struct timespec past = {.tv_sec = 1};
    CHECK_FAILS("a deadline long past, on the wall clock",
                futex(&word, FUTEX_WAIT_BITSET_PRIVATE | FUTEX_CLOCK_REALTIME, 1, &past, NULL, ~0u), ETIMEDOUT);
    CHECK_FAILS("an empty bitset", futex(&word, FUTEX_WAIT_BITSET_PRIVATE, 1, NULL, NULL, 0), EINVAL);
    struct timespec bad = {.tv_nsec = 2000000000};
    CHECK_FAILS("a bad timeout", futex(&word, FUTEX_WAIT_PRIVATE, 1, &bad, NULL, 0), EINVAL);
    CHECK_FAILS("a word off its alignment", futex((uint32_t *)((char *)&word + 1), FUTEX_WAIT_PRIVATE, 1, &brief, NULL, 0), EINVAL);
    CHECK_FAILS("a word nowhere", futex((uint32_t *)8, FUTEX_WAIT_PRIVATE, 1, &brief, NULL, 0), EFAULT);
    CHECK_FAILS("an operation that is none", futex(&word, 99, 0, NULL, NULL, 0), ENOSYS);
    CHECK("waking nobody", futex(&word, FUTEX_WAKE_PRIVATE, 10, NULL, NULL, 0) == 0);
}

static void wakes(void) {
    word = 0;
    pthread_t threads[8];
    for (int i = 0; i < 8; i++)
        pthread_create(&threads[i], NULL, waiter, NULL);
    CHECK("eight waiters are woken", wake_until(&word, 8) == 8);
    long wrong = 0;
    for (int i = 0; i < 8; i++) {
        void *result;
        pthread_join(threads[i], &result);
        wrong += result != NULL;
    }
    CHECK_WITH("each wait ended with 0", wrong == 0, wrong);

    pthread_t odd;
    pthread_create(&odd, NULL, waiter, (void *)2L);
    usleep(20000);
    CHECK("another bitset wakes nobody", futex(&word, FUTEX_WAKE_BITSET_PRIVATE, 8, NULL, NULL, 4) == 0);
    int count = 0;
    for (int tries = 0; count == 0 && tries < 20000; tries++, usleep(500))
        count = (int)futex(&word, FUTEX_WAKE_BITSET_PRIVATE, 8, NULL, NULL, 2);
    CHECK("its own does", count == 1);
    pthread_join(odd, NULL);
}

static void requeues(void) {
    word = 0;
    other_word = 0;
    sleeping = woken = 0;
    pthread_t threads[6];
    for (int i = 0; i < 6; i++)
        pthread_create(&threads[i], NULL, waiter, NULL);
    CHECK_FAILS("requeue with another value", futex(&word, FUTEX_CMP_REQUEUE_PRIVATE, 1, (void *)10L, &other_word, 7), EAGAIN);
    int moved = 0;
    for (int tries = 0; moved < 6 && tries < 20000; tries++, usleep(500)) {
        long count = futex(&word, FUTEX_CMP_REQUEUE_PRIVATE, 0, (void *)10L, &other_word, 0);
        moved += count > 0 ? (int)count : 0;
    }
    CHECK_WITH("six are moved", moved == 6, moved);
    CHECK("none wakes at the old word", futex(&word, FUTEX_WAKE_PRIVATE, 10, NULL, NULL, 0) == 0 && woken == 0);
    CHECK("all wake at the new", futex(&other_word, FUTEX_WAKE_PRIVATE, 10, NULL, NULL, 0) == 6);
    for (int i = 0; i < 6; i++)
        pthread_join(threads[i], NULL);
    other_word = 5;
    CHECK("wake-op adds", futex(&word, FUTEX_WAKE_OP_PRIVATE, 1, (void *)1L, &other_word,
                                FUTEX_OP(FUTEX_OP_ADD, 3, FUTEX_OP_CMP_EQ, 5)) == 0 && other_word == 8);
}

static pthread_mutex_t robust;

static void *die_holding(void *unused) {
    (void)unused;
    pthread_mutex_lock(&robust);
    return NULL;
}

static void robust_lists(void) {
    pthread_mutexattr_t attributes;
    pthread_mutexattr_init(&attributes);
    pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
    pthread_mutex_init(&robust, &attributes);
    pthread_t owner;
    pthread_create(&owner, NULL, die_holding, NULL);
    pthread_join(owner, NULL);
    CHECK("the next owner hears of the death", pthread_mutex_lock(&robust) == EOWNERDEAD);
    CHECK("and makes it whole", pthread_mutex_consistent(&robust) == 0 && pthread_mutex_unlock(&robust) == 0);
    CHECK("then it locks as ever", pthread_mutex_lock(&robust) == 0 && pthread_mutex_unlock(&robust) == 0);
    pthread_create(&owner, NULL, die_holding, NULL);
    pthread_join(owner, NULL);
    CHECK("a second death", pthread_mutex_lock(&robust) == EOWNERDEAD && pthread_mutex_unlock(&robust) == 0);
    CHECK("left broken it is lost", pthread_mutex_lock(&robust) == ENOTRECOVERABLE);
    void *head;
    size_t size;
    CHECK("the list is told", syscall(SYS_get_robust_list, 0, &head, &size) == 0 && size == 24);
}

static pthread_cond_t condition;
static pthread_mutex_t plain = PTHREAD_MUTEX_INITIALIZER;

static void timed_libc(void) {
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&condition, &attributes);
    struct timespec due;
    clock_gettime(CLOCK_MONOTONIC, &due);
    due.tv_sec -= due.tv_sec > 0;
    pthread_mutex_lock(&plain);
    CHECK("a timed condition wait ends", pthread_cond_timedwait(&condition, &plain, &due) == ETIMEDOUT);
    pthread_mutex_unlock(&plain);
}

int main(void) {
    waits();
    wakes();
    requeues();
    robust_lists();
    timed_libc();
    return check_result();
}
