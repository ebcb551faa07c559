/* 10,000 POSIX timers at once, each with a queued real-time signal that carries its number. */
#include "check.h"
#include <signal.h>
#include <time.h>
#include <unistd.h>

enum { TIMERS = 10000 };

static unsigned char fired[TIMERS];
static timer_t timers[TIMERS];

int main(void) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN + 1);
    MUST(sigprocmask(SIG_BLOCK, &set, NULL) == 0);
    for (int i = 0; i < TIMERS; i++) {
        struct sigevent event = {
            .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN + 1, .sigev_value.sival_int = i};
        MUST(timer_create(CLOCK_MONOTONIC, &event, &timers[i]) == 0);
        struct itimerspec due = {.it_value = {.tv_nsec = 1 + (i * 7919L % 500) * 1000000L}};
        MUST(timer_settime(timers[i], 0, &due, NULL) == 0);
    }
    int seen = 0, wrong = 0;
    while (seen < TIMERS) {
        siginfo_t info;
        struct timespec patience = {.tv_sec = 30};
        if (sigtimedwait(&set, &info, &patience) < 0)
            break;
        int which = info.si_value.sival_int;
        if (info.si_code != SI_TIMER || which < 0 || which >= TIMERS || fired[which]++)
            wrong++;
        seen++;
    }
    CHECK_WITH("every timer fired", seen == TIMERS, seen);
    CHECK_WITH("each timer fired once, with its value", wrong == 0, wrong);
    for (int i = 0; i < TIMERS; i++)
        wrong += timer_delete(timers[i]) != 0;
    CHECK_WITH("timers are deleted", wrong == 0, wrong);

    /* A periodic timer that is not collected counts its overruns. */
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN + 1};
    timer_t periodic;
    MUST(timer_create(CLOCK_MONOTONIC, &event, &periodic) == 0);
    struct itimerspec every = {.it_value = {.tv_nsec = 1000000}, .it_interval = {.tv_nsec = 1000000}};
    MUST(timer_settime(periodic, 0, &every, NULL) == 0);
    usleep(50000);
    siginfo_t info;
    CHECK("a periodic timer is pending once", sigwaitinfo(&set, &info) == SIGRTMIN + 1);
    CHECK("and counts what it overran", timer_getoverrun(periodic) > 0 && info.si_overrun >= 0);
    struct itimerspec left;
    CHECK("its interval is told", timer_gettime(periodic, &left) == 0 && left.it_interval.tv_nsec == 1000000);
    CHECK("a deleted timer is gone", timer_delete(periodic) == 0);
    return check_result();
}
