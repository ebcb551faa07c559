/* Crowds of threads that wait for one word, process after process: what is left of their queues when they are gone. */
#include "check.h"
#include <linux/futex.h>
#include <pthread.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define CROWD 500
static int arrived;

static void *waits_in_crowd(void *word) {
    __atomic_fetch_add(&arrived, 1, __ATOMIC_SEQ_CST);
    while (__atomic_load_n((uint32_t *)word, __ATOMIC_SEQ_CST) == 0)
        syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, 0, NULL, NULL, 0);
    return NULL;
}

/* A process whose threads wait for one word, wake at once, and are gone. */
static int crowd(uint32_t *word) {
    static pthread_t threads[CROWD];
    pthread_attr_t small;
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, 64 << 10);
    for (int i = 0; i < CROWD; i++)
        if (pthread_create(&threads[i], &small, waits_in_crowd, word))
            return 1;
    while (__atomic_load_n(&arrived, __ATOMIC_SEQ_CST) < CROWD)
        usleep(1000);
    usleep(1000); /* the last ones may still be on their way to sleep */
    __atomic_store_n(word, 1, __ATOMIC_SEQ_CST);
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, CROWD, NULL, NULL, 0);
    for (int i = 0; i < CROWD; i++)
        pthread_join(threads[i], NULL);
    return 0;
}

/* Memory that is nobody's cache and no free memory. */
static long held_kib(void) {
    FILE *file = fopen("/proc/meminfo", "r");
    char line[200];
    long pages = -1, objects = -1;
    while (file && fgets(line, sizeof line, file))
        if (sscanf(line, "AnonPages: %ld kB", &pages) != 1)
            sscanf(line, "SUnreclaim: %ld kB", &objects);
    if (file)
        fclose(file);
    return pages + objects;
}

int main(void) {
    static uint32_t words[48]; /* each crowd has its own */
    long before = 0;
    for (int i = 0; i < 48; i++) {
        if (i == 8)
            before = held_kib();
        pid_t child = fork();
        if (child == 0)
            _exit(crowd(&words[i]));
        int status;
        MUST(waitpid(child, &status, 0) == child && status == 0);
    }
    long left = held_kib() - before;
    int all_memory_is_ours = getppid() == 0;
    CHECK_WITH("a crowd that has waited leaves nothing", !all_memory_is_ours || left < 64, left);
    return check_result();
}
