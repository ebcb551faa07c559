/* 64 threads share two processors: mutex, condition variable, barrier, read-write lock, semaphore and spin work, each
 * with a checksum that a lost wake-up or a torn update would change. */
#include "check.h"
#include <pthread.h>
#include <semaphore.h>

enum { THREADS = 64, ROUNDS = 200, QUEUE = 16, ITEMS_PER_PRODUCER = 500 };

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t not_empty = PTHREAD_COND_INITIALIZER, not_full = PTHREAD_COND_INITIALIZER;
static pthread_rwlock_t rwlock = PTHREAD_RWLOCK_INITIALIZER;
static pthread_barrier_t barrier;
static sem_t semaphore;
static uint64_t counter, pair_low, pair_high, torn, inside, crowded;
static uint64_t slots[THREADS], barrier_faults;
static uint64_t queue[QUEUE], queued, head, consumed_sum;

static void run(void *(*work)(void *)) {
    pthread_t threads[THREADS];
    for (long i = 0; i < THREADS; i++)
        MUST(pthread_create(&threads[i], NULL, work, (void *)i) == 0);
    for (int i = 0; i < THREADS; i++)
        MUST(pthread_join(threads[i], NULL) == 0);
}

static void *count(void *arg) {
    uint64_t state = (uint64_t)(long)arg;
    for (int i = 0; i < ROUNDS * 10; i++) {
        pthread_mutex_lock(&mutex);
        counter += next_random(&state) & 0xff;
        pthread_mutex_unlock(&mutex);
    }
    return NULL;
}

static void *meet(void *arg) {
    long self = (long)arg;
    for (uint64_t round = 1; round <= ROUNDS; round++) {
        slots[self] = round;
        pthread_barrier_wait(&barrier);
        for (int i = 0; i < THREADS; i++)
            if (slots[i] != round)
                __atomic_add_fetch(&barrier_faults, 1, __ATOMIC_RELAXED);
        pthread_barrier_wait(&barrier);
    }
    return NULL;
}

static void *produce_or_consume(void *arg) {
    long self = (long)arg;
    for (uint64_t i = 0; i < ITEMS_PER_PRODUCER; i++) {
        pthread_mutex_lock(&mutex);
        if (self % 2 == 0) {
            while (queued == QUEUE)
                pthread_cond_wait(&not_full, &mutex);
            queue[(head + queued++) % QUEUE] = (uint64_t)self * ITEMS_PER_PRODUCER + i;
            pthread_cond_signal(&not_empty);
        } else {
            while (queued == 0)
                pthread_cond_wait(&not_empty, &mutex);
            consumed_sum += queue[head];
            head = (head + 1) % QUEUE;
            queued--;
            pthread_cond_signal(&not_full);
        }
        pthread_mutex_unlock(&mutex);
    }
    return NULL;
}

static void *read_or_write(void *arg) {
    long self = (long)arg;
    for (int i = 0; i < ROUNDS; i++) {
        if (self % 8 == 0) {
            pthread_rwlock_wrlock(&rwlock);
            pair_low++;
            pair_high++;
        } else {
            pthread_rwlock_rdlock(&rwlock);
            if (pair_low != pair_high)
                __atomic_add_fetch(&torn, 1, __ATOMIC_RELAXED);
        }
        pthread_rwlock_unlock(&rwlock);
    }
    return NULL;
}

static void *enter(void *arg) {
    (void)arg;
    for (int i = 0; i < ROUNDS; i++) {
        sem_wait(&semaphore);
        if (__atomic_add_fetch(&inside, 1, __ATOMIC_SEQ_CST) > 3)
            __atomic_add_fetch(&crowded, 1, __ATOMIC_RELAXED);
        __atomic_sub_fetch(&inside, 1, __ATOMIC_SEQ_CST);
        sem_post(&semaphore);
    }
    return NULL;
}

/* Each thread computes without a call, so that only the timer can let the others run. */
static void *compute(void *arg) {
    uint64_t state = (uint64_t)(long)arg, sum = 0;
    for (int i = 0; i < 200000; i++)
        sum ^= next_random(&state);
    slots[(long)arg] = sum;
    return NULL;
}

int main(void) {
    MUST(pthread_barrier_init(&barrier, NULL, THREADS) == 0 && sem_init(&semaphore, 0, 3) == 0);
    run(count);
    printf("mutex sum %llu\n", (unsigned long long)counter);
    run(meet);
    printf("barrier faults %llu\n", (unsigned long long)barrier_faults);
    run(produce_or_consume);
    printf("queue sum %llu left %llu\n", (unsigned long long)consumed_sum, (unsigned long long)queued);
    run(read_or_write);
    printf("rwlock torn %llu writes %llu\n", (unsigned long long)torn, (unsigned long long)pair_low);
    run(enter);
    printf("semaphore crowded %llu\n", (unsigned long long)crowded);
    run(compute);
    printf("compute %016llx\n", (unsigned long long)checksum(slots, sizeof slots));
    CHECK("no torn pair, no early barrier, no crowd", torn == 0 && barrier_faults == 0 && crowded == 0);
    return check_result();
}
