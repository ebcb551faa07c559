/* One thread waits for answers from outside while others compute, one for each processor, and make no calls: whoever
 * takes an answer must be found all the same. */
#include "check.h"
#include <fcntl.h>
#include <pthread.h>
#include <unistd.h>

enum { MOST = 64, ROUNDS = 25 };

static int stop;

static void *compute(void *unused) {
    (void)unused;
    while (!__atomic_load_n(&stop, __ATOMIC_RELAXED))
        ;
    return NULL;
}

int main(int argc, char **argv) {
    MUST(argc > 1);
    long count = sysconf(_SC_NPROCESSORS_ONLN);
    MUST(count > 0 && count <= MOST);
    pthread_t threads[MOST];
    for (long i = 0; i < count; i++)
        MUST(pthread_create(&threads[i], NULL, compute, NULL) == 0);
    int fd = open(argv[1], O_RDWR | O_CREAT | O_TRUNC, 0600);
    MUST(fd >= 0);
    int good = 1;
    for (int i = 0; i < ROUNDS; i++) {
        int seen = -1;
        good &= pwrite(fd, &i, sizeof i, 0) == sizeof i && fsync(fd) == 0;
        good &= pread(fd, &seen, sizeof seen, 0) == sizeof seen && seen == i;
    }
    CHECK("every answer came", good);
    close(fd);
    unlink(argv[1]);
    __atomic_store_n(&stop, 1, __ATOMIC_RELAXED);
    for (long i = 0; i < count; i++)
        pthread_join(threads[i], NULL);
    return check_result();
}
