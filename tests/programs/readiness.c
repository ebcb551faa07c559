/* Who is ready: epoll level-, edge-triggered and one-shot, nested sets, poll, select, eventfd, timerfd, signalfd, pipes. */
#include "check.h"
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/select.h>
#include <sys/signalfd.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

static struct epoll_event event;

static void epolls(void) {
    int set = epoll_create1(EPOLL_CLOEXEC), ends[2];
    char bytes[16];
    MUST(set >= 0 && pipe2(ends, O_NONBLOCK) == 0);
    CHECK_FAILS("epoll_wait for no room", epoll_wait(set, &event, 0, 0), EINVAL);
    event = (struct epoll_event){.events = EPOLLIN, .data.u64 = 0x123456789abcdef0};
    CHECK("add", epoll_ctl(set, EPOLL_CTL_ADD, ends[0], &event) == 0);
    CHECK_FAILS("add again", epoll_ctl(set, EPOLL_CTL_ADD, ends[0], &event), EEXIST);
    CHECK_FAILS("change what is not in", epoll_ctl(set, EPOLL_CTL_MOD, ends[1], &event), ENOENT);
    CHECK_FAILS("a set in itself", epoll_ctl(set, EPOLL_CTL_ADD, set, &event), EINVAL);
    CHECK_FAILS("a descriptor that is none", epoll_ctl(set, EPOLL_CTL_ADD, 777, &event), EBADF);
    CHECK("nothing is ready", epoll_wait(set, &event, 1, 0) == 0 && epoll_wait(set, &event, 1, 3) == 0);
    MUST(write(ends[1], "ab", 2) == 2);
    CHECK("level: ready with its data", epoll_wait(set, &event, 1, -1) == 1 && event.events == EPOLLIN &&
                                            event.data.u64 == 0x123456789abcdef0);
    CHECK("level: ready until it is read", epoll_wait(set, &event, 1, 0) == 1 && read(ends[0], bytes, 1) == 1 &&
                                               epoll_wait(set, &event, 1, 0) == 1);
    MUST(read(ends[0], bytes, 16) == 1);
    CHECK("level: then no more", epoll_wait(set, &event, 1, 0) == 0);

    event.events = EPOLLIN | EPOLLET;
    MUST(epoll_ctl(set, EPOLL_CTL_MOD, ends[0], &event) == 0 && write(ends[1], "a", 1) == 1);
    CHECK("edge: told once", epoll_wait(set, &event, 1, 0) == 1 && epoll_wait(set, &event, 1, 0) == 0);
    MUST(write(ends[1], "b", 1) == 1);
    CHECK("edge: told of more", epoll_wait(set, &event, 1, 0) == 1 && epoll_wait(set, &event, 1, 0) == 0);
    event.events = EPOLLIN | EPOLLONESHOT;
    MUST(epoll_ctl(set, EPOLL_CTL_MOD, ends[0], &event) == 0);
    CHECK("one-shot: told once", epoll_wait(set, &event, 1, 0) == 1);
    MUST(write(ends[1], "c", 1) == 1);
    CHECK("one-shot: then disarmed", epoll_wait(set, &event, 1, 0) == 0);
    event.events = EPOLLIN | EPOLLONESHOT;
    CHECK("one-shot: armed again", epoll_ctl(set, EPOLL_CTL_MOD, ends[0], &event) == 0 && epoll_wait(set, &event, 1, 0) == 1);

    int outer = epoll_create1(0);
    event.events = EPOLLIN;
    MUST(epoll_ctl(outer, EPOLL_CTL_ADD, set, &event) == 0);
    event.events = EPOLLIN;
    MUST(epoll_ctl(set, EPOLL_CTL_MOD, ends[0], &event) == 0);
    CHECK("a set in a set", epoll_wait(outer, &event, 1, 0) == 1);
    CHECK("delete", epoll_ctl(set, EPOLL_CTL_DEL, ends[0], NULL) == 0 && epoll_wait(set, &event, 1, 0) == 0);
    event.events = EPOLLIN;
    MUST(read(ends[0], bytes, 16) > 0 && epoll_ctl(set, EPOLL_CTL_ADD, ends[0], &event) == 0 && close(ends[1]) == 0);
    CHECK("the other end's close is EPOLLHUP", epoll_wait(set, &event, 1, -1) == 1 && event.events == EPOLLHUP);
    MUST(close(ends[0]) == 0);
    CHECK("a closed descriptor leaves the set", epoll_wait(set, &event, 1, 0) == 0);
    int file = open("/etc/passwd", O_RDONLY);
    event.events = EPOLLIN;
    CHECK_FAILS("a regular file", epoll_ctl(set, EPOLL_CTL_ADD, file, &event), EPERM);
    close(file), close(outer), close(set);
}

static int late_end;

static void *write_late(void *unused) {
    (void)unused;
    usleep(20000);
    MUST(write(late_end, "x", 1) == 1);
    return NULL;
}

static void polls(void) {
    int ends[2];
    char byte;
    MUST(pipe(ends) == 0);
    struct pollfd fds[3] = {{.fd = ends[0], .events = POLLIN}, {.fd = ends[1], .events = POLLOUT}, {.fd = -1, .events = POLLIN}};
    CHECK("poll: the writer is ready", poll(fds, 3, 0) == 1 && fds[1].revents == POLLOUT && fds[0].revents == 0);
    CHECK("poll: a negative descriptor is passed over", fds[2].revents == 0);
    fds[2].fd = 777;
    CHECK("poll: a bad one is told", poll(fds, 3, 0) == 2 && fds[2].revents == POLLNVAL);
    CHECK("poll: time runs out", poll(fds, 1, 5) == 0);
    late_end = ends[1];
    pthread_t thread;
    pthread_create(&thread, NULL, write_late, NULL);
    CHECK("poll: woken by another thread", poll(fds, 1, 30000) == 1 && fds[0].revents == POLLIN);
    pthread_join(thread, NULL);

    fd_set readers, writers;
    FD_ZERO(&readers);
    FD_ZERO(&writers);
    FD_SET(ends[0], &readers);
    FD_SET(ends[1], &writers);
    struct timeval none = {0};
    CHECK("select: both", select(ends[1] + 1, &readers, &writers, NULL, &none) == 2 && FD_ISSET(ends[0], &readers));
    MUST(read(ends[0], &byte, 1) == 1);
    struct timespec brief = {.tv_nsec = 2000000};
    CHECK("pselect: time runs out and clears", pselect(ends[0] + 1, &readers, NULL, NULL, &brief, NULL) == 0 && !FD_ISSET(ends[0], &readers));
    /* A number within the table that is not open: one past the table is passed over in silence. */
    FD_SET(60, &readers);
    CHECK_FAILS("select: a bad descriptor", select(61, &readers, NULL, NULL, &none), EBADF);
    pthread_create(&thread, NULL, write_late, NULL);
    FD_ZERO(&readers);
    FD_SET(ends[0], &readers);
    CHECK("select: woken by another thread", select(ends[0] + 1, &readers, NULL, NULL, NULL) == 1);
    pthread_join(thread, NULL);
    close(ends[0]), close(ends[1]);
}

static void eventfds(void) {
    uint64_t value = 5;
    int fd = eventfd(3, EFD_NONBLOCK | EFD_CLOEXEC);
    CHECK("eventfd: starts with its count", read(fd, &value, 8) == 8 && value == 3);
    CHECK_FAILS("eventfd: then empty", read(fd, &value, 8), EAGAIN);
    value = 5;
    MUST(write(fd, &value, 8) == 8 && write(fd, &value, 8) == 8);
    CHECK("eventfd: adds up", read(fd, &value, 8) == 8 && value == 10);
    value = UINT64_MAX;
    CHECK_FAILS("eventfd: not all ones", write(fd, &value, 8), EINVAL);
    value = UINT64_MAX - 1;
    MUST(write(fd, &value, 8) == 8);
    value = 1;
    CHECK_FAILS("eventfd: full", write(fd, &value, 8), EAGAIN);
    CHECK_FAILS("eventfd: too small a buffer", read(fd, &value, 4), EINVAL);
    close(fd);
    fd = eventfd(2, EFD_SEMAPHORE);
    CHECK("eventfd: a semaphore gives one by one", read(fd, &value, 8) == 8 && value == 1 && read(fd, &value, 8) == 8 && value == 1);
    close(fd);
}

static void timerfds(void) {
    uint64_t count = 0;
    int fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    CHECK_FAILS("timerfd: not armed", read(fd, &count, 8), EAGAIN);
    struct itimerspec when = {.it_value = {.tv_nsec = 2000000}, .it_interval = {.tv_nsec = 1000000}}, left;
    MUST(timerfd_settime(fd, 0, &when, NULL) == 0);
    struct pollfd ready = {.fd = fd, .events = POLLIN};
    CHECK("timerfd: becomes ready", poll(&ready, 1, 30000) == 1 && read(fd, &count, 8) == 8 && count >= 1);
    usleep(10000);
    CHECK("timerfd: counts what was missed", read(fd, &count, 8) == 8 && count >= 5);
    CHECK("timerfd: tells its interval", timerfd_gettime(fd, &left) == 0 && left.it_interval.tv_nsec == 1000000 && left.it_value.tv_nsec <= 1000000);
    when = (struct itimerspec){0};
    CHECK("timerfd: disarms and tells the old", timerfd_settime(fd, 0, &when, &left) == 0 && left.it_interval.tv_nsec == 1000000);
    CHECK_FAILS("timerfd: is quiet then", (usleep(3000), read(fd, &count, 8)), EAGAIN);
    clock_gettime(CLOCK_MONOTONIC, &when.it_value);
    when.it_value.tv_sec -= 1;
    CHECK("timerfd: an absolute time that has passed fires at once",
          timerfd_settime(fd, TFD_TIMER_ABSTIME, &when, NULL) == 0 && poll(&ready, 1, 30000) == 1 && read(fd, &count, 8) == 8 && count == 1);
    CHECK_FAILS("timerfd: a clock that is none", timerfd_create(99, 0), EINVAL);
    close(fd);
}

static void signalfds(void) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1), sigaddset(&set, SIGRTMIN);
    MUST(sigprocmask(SIG_BLOCK, &set, NULL) == 0);
    int fd = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
    struct signalfd_siginfo info;
    CHECK_FAILS("signalfd: nothing pending", read(fd, &info, sizeof info), EAGAIN);
    kill(getpid(), SIGUSR1);
    kill(getpid(), SIGUSR1);
    CHECK("signalfd: a signal", read(fd, &info, sizeof info) == sizeof info && info.ssi_signo == SIGUSR1 && info.ssi_pid == (uint32_t)getpid());
    CHECK_FAILS("signalfd: standard signals do not queue", read(fd, &info, sizeof info), EAGAIN);
    for (int i = 0; i < 3; i++)
        sigqueue(getpid(), SIGRTMIN, (union sigval){.sival_int = 40 + i});
    struct pollfd ready = {.fd = fd, .events = POLLIN};
    CHECK("signalfd: polls ready", poll(&ready, 1, 30000) == 1);
    int sum = 0;
    while (read(fd, &info, sizeof info) == sizeof info)
        sum = sum * 100 + info.ssi_int;
    CHECK_WITH("signalfd: real-time signals queue in order, with values", sum == 404142, sum);
    sigprocmask(SIG_UNBLOCK, &set, NULL);
    close(fd);
}

static int reader_end;

static void *drain(void *total) {
    char bytes[5000];
    for (ssize_t got; (got = read(reader_end, bytes, sizeof bytes)) > 0;)
        for (ssize_t i = 0; i < got; i++)
            *(uint64_t *)total = *(uint64_t *)total * 31 + (unsigned char)bytes[i];
    return NULL;
}

static void pipes(void) {
    int ends[2], waiting = -1;
    static char bytes[300000];
    MUST(pipe2(ends, O_CLOEXEC | O_NONBLOCK) == 0);
    CHECK("pipe: flags", fcntl(ends[0], F_GETFD) == FD_CLOEXEC && (fcntl(ends[0], F_GETFL) & O_NONBLOCK));
    CHECK_FAILS("pipe: empty", read(ends[0], bytes, 1), EAGAIN);
    CHECK("pipe: holds 64 KiB", write(ends[1], bytes, sizeof bytes) == 65536 && fcntl(ends[1], F_GETPIPE_SZ) == 65536);
    CHECK_FAILS("pipe: full", write(ends[1], bytes, 1), EAGAIN);
    CHECK("pipe: FIONREAD", ioctl(ends[0], FIONREAD, &waiting) == 0 && waiting == 65536);
    CHECK_FAILS("pipe: does not seek", lseek(ends[0], 0, SEEK_CUR), ESPIPE);
    CHECK_FAILS("pipe: the wrong end", write(ends[0], bytes, 1), EBADF);
    close(ends[1]);
    while (read(ends[0], bytes, sizeof bytes) > 0)
        ;
    CHECK("pipe: ends when the writer is gone", read(ends[0], bytes, 1) == 0);
    close(ends[0]);

    MUST(pipe(ends) == 0);
    uint64_t total = 0, expected = 0, state = 5;
    for (size_t i = 0; i < sizeof bytes; i++)
        bytes[i] = (char)next_random(&state);
    reader_end = ends[0];
    pthread_t thread;
    pthread_create(&thread, NULL, drain, &total);
    CHECK("pipe: a write larger than the pipe blocks until it is through", write(ends[1], bytes, sizeof bytes) == sizeof bytes);
    close(ends[1]);
    pthread_join(thread, NULL);
    for (size_t i = 0; i < sizeof bytes; i++)
        expected = expected * 31 + (unsigned char)bytes[i];
    CHECK("pipe: every byte in order", total == expected);
    close(ends[0]);
    MUST(pipe(ends) == 0 && close(ends[0]) == 0);
    signal(SIGPIPE, SIG_IGN);
    CHECK_FAILS("pipe: no reader", write(ends[1], "x", 1), EPIPE);
    signal(SIGPIPE, SIG_DFL);
    close(ends[1]);
}

int main(void) {
    epolls();
    polls();
    eventfds();
    timerfds();
    signalfds();
    pipes();
    return check_result();
}
