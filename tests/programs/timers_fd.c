/* 10,000 timers at once: timerfds in one epoll set, of mixed clocks and due times, each of which must fire once. */
#include "check.h"
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/timerfd.h>
#include <unistd.h>

enum { TIMERS = 10000 };

static unsigned char fired[TIMERS];
static int fds[TIMERS];

int main(void) {
    struct rlimit limit;
    MUST(getrlimit(RLIMIT_NOFILE, &limit) == 0);
    limit.rlim_cur = limit.rlim_max;
    MUST(setrlimit(RLIMIT_NOFILE, &limit) == 0);
    /* Where the hard limit is lower there are as many timers as it allows; native and cloaked agree on the limit. */
    int timers = limit.rlim_cur < TIMERS + 16 ? (int)limit.rlim_cur - 16 : TIMERS;
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    MUST(epoll >= 0);
    for (int i = 0; i < timers; i++) {
        fds[i] = timerfd_create(i % 2 ? CLOCK_MONOTONIC : CLOCK_REALTIME, TFD_NONBLOCK | TFD_CLOEXEC);
        MUST(fds[i] >= 0);
        struct itimerspec due = {.it_value = {.tv_nsec = 1 + (i * 7919L % 500) * 1000000L}};
        MUST(timerfd_settime(fds[i], 0, &due, NULL) == 0);
        struct epoll_event event = {.events = EPOLLIN, .data.u32 = (uint32_t)i};
        MUST(epoll_ctl(epoll, EPOLL_CTL_ADD, fds[i], &event) == 0);
    }
    int seen = 0, wrong = 0;
    while (seen < timers) {
        struct epoll_event events[256];
        int count = epoll_wait(epoll, events, 256, 30000);
        if (count <= 0)
            break;
        for (int i = 0; i < count; i++) {
            uint64_t expirations = 0;
            uint32_t which = events[i].data.u32;
            if (read(fds[which], &expirations, 8) != 8 || expirations != 1 || fired[which]++)
                wrong++;
            seen++;
        }
    }
    CHECK_WITH("every timer fired", seen == timers, seen);
    CHECK_WITH("each timer fired once", wrong == 0, wrong);
    CHECK("none fires again", epoll_wait(epoll, &(struct epoll_event){0}, 1, 0) == 0);
    return check_result();
}
