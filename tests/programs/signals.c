/* Signals: siginfo, masks and their nesting, the alternate stack, ucontext read and changed, interrupted calls and
 * SA_RESTART, delivery to one thread and to a thread that computes, faults of each kind, interval timers. */
#include "check.h"
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <ucontext.h>
#include <unistd.h>

static volatile int hits, last_code, last_value, nested, depth, raised, on_alternate;
static char *alternate;
static pthread_t handled_by;

static void note(int number, siginfo_t *info, void *context) {
    (void)number, (void)context;
    last_code = info->si_code;
    last_value = info->si_value.sival_int;
    char here;
    on_alternate = &here >= alternate && &here < alternate + SIGSTKSZ * 4;
    handled_by = pthread_self();
    hits++;
}

static void install(int number, void (*handler)(int, siginfo_t *, void *), int flags) {
    struct sigaction action = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO | flags};
    MUST(sigaction(number, &action, NULL) == 0);
}

static void raise_inside(int number, siginfo_t *info, void *context) {
    (void)info, (void)context;
    /* Raised once: the second entry is inside this one only if the handler's own signal is not blocked in it. */
    if (++depth > 1)
        nested++;
    if (!raised++)
        raise(number);
    depth--;
    hits++;
}

static void basics(void) {
    hits = 0;
    install(SIGUSR1, note, 0);
    kill(getpid(), SIGUSR1);
    CHECK("kill to itself is handled before it returns", hits == 1 && last_code == SI_USER);
    raise(SIGUSR1);
    CHECK("raise", hits == 2 && last_code == SI_TKILL);
    sigqueue(getpid(), SIGUSR1, (union sigval){.sival_int = 77});
    CHECK("sigqueue carries a value", hits == 3 && last_code == SI_QUEUE && last_value == 77);
    struct sigaction old;
    CHECK("sigaction tells", sigaction(SIGUSR1, NULL, &old) == 0 && old.sa_sigaction == note && (old.sa_flags & SA_SIGINFO));
    CHECK_FAILS("SIGKILL has no handler", sigaction(SIGKILL, &old, NULL), EINVAL);
    CHECK_FAILS("a signal that is none", kill(getpid(), 99), EINVAL);
    CHECK("signal 0 asks", kill(getpid(), 0) == 0);

    sigset_t set, was;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigprocmask(SIG_BLOCK, &set, &was);
    kill(getpid(), SIGUSR1);
    sigpending(&set);
    CHECK("a blocked signal is pending", hits == 3 && sigismember(&set, SIGUSR1));
    sigprocmask(SIG_SETMASK, &was, NULL);
    CHECK("and comes when it is unblocked", hits == 4);

    hits = nested = depth = raised = 0;
    install(SIGUSR1, raise_inside, 0);
    raise(SIGUSR1);
    CHECK("a handler is not entered twice", hits == 2 && nested == 0);
    hits = nested = depth = raised = 0;
    install(SIGUSR1, raise_inside, SA_NODEFER);
    raise(SIGUSR1);
    CHECK("SA_NODEFER lets it", hits == 2 && nested == 1);
    install(SIGUSR1, note, SA_RESETHAND);
    hits = 0;
    raise(SIGUSR1);
    sigaction(SIGUSR1, NULL, &old);
    CHECK("SA_RESETHAND", hits == 1 && old.sa_handler == SIG_DFL);
    signal(SIGUSR1, SIG_IGN);
    CHECK("an ignored signal", raise(SIGUSR1) == 0);

    install(SIGRTMIN + 2, note, 0), install(SIGRTMIN + 3, note, 0);
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN + 2), sigaddset(&set, SIGRTMIN + 3);
    sigprocmask(SIG_BLOCK, &set, NULL);
    sigqueue(getpid(), SIGRTMIN + 3, (union sigval){.sival_int = 3});
    sigqueue(getpid(), SIGRTMIN + 2, (union sigval){.sival_int = 1});
    sigqueue(getpid(), SIGRTMIN + 2, (union sigval){.sival_int = 2});
    int order = 0;
    siginfo_t info;
    struct timespec none = {0};
    while (sigtimedwait(&set, &info, &none) > 0)
        order = order * 10 + info.si_value.sival_int;
    CHECK_WITH("real-time signals: lowest first, in order", order == 123, order);
    CHECK_FAILS("sigtimedwait runs out of time", sigtimedwait(&set, &info, &none), EAGAIN);
    sigprocmask(SIG_UNBLOCK, &set, NULL);
}

static void alternate_stack(void) {
    alternate = malloc(SIGSTKSZ * 4);
    stack_t stack = {.ss_sp = alternate, .ss_size = SIGSTKSZ * 4}, told;
    CHECK("sigaltstack", sigaltstack(&stack, NULL) == 0 && sigaltstack(NULL, &told) == 0 && told.ss_sp == alternate && told.ss_flags == 0);
    install(SIGUSR1, note, SA_ONSTACK);
    raise(SIGUSR1);
    CHECK("SA_ONSTACK runs there", on_alternate);
    install(SIGUSR1, note, 0);
    raise(SIGUSR1);
    CHECK("without it, not", !on_alternate);
    stack.ss_size = 10;
    CHECK_FAILS("too small", sigaltstack(&stack, NULL), ENOMEM);
    stack.ss_flags = SS_DISABLE;
    CHECK("disabled", sigaltstack(&stack, NULL) == 0 && sigaltstack(NULL, &told) == 0 && told.ss_flags == SS_DISABLE);
}

static sigjmp_buf escape;
static volatile int fault_number, fault_code;
static void *volatile fault_address;

static void on_fault(int number, siginfo_t *info, void *context) {
    (void)context;
    fault_number = number, fault_code = info->si_code, fault_address = info->si_addr;
    siglongjmp(escape, 1);
}

static char overflow_stack[64 * 1024];
static volatile char bottomless_limit = 1;

__attribute__((noinline)) static int bottomless(int level) {
    volatile char frame[4096];
    frame[0] = (char)level;
    return bottomless_limit ? bottomless(level + 1) + frame[0] : 0;
}

static void faults(void) {
    stack_t stack = {.ss_sp = overflow_stack, .ss_size = sizeof overflow_stack};
    MUST(sigaltstack(&stack, NULL) == 0);
    int numbers[] = {SIGSEGV, SIGILL, SIGFPE, SIGBUS, SIGTRAP};
    for (int i = 0; i < 5; i++)
        install(numbers[i], on_fault, SA_ONSTACK);
    if (sigsetjmp(escape, 1) == 0)
        *(volatile int *)0x10 = 1;
    CHECK("a null write", fault_number == SIGSEGV && fault_code == SEGV_MAPERR && fault_address == (void *)0x10);
    if (sigsetjmp(escape, 1) == 0)
        __asm__ volatile("ud2");
    CHECK("ud2", fault_number == SIGILL);
    if (sigsetjmp(escape, 1) == 0)
        __asm__ volatile("xor %%edx, %%edx; mov $1, %%eax; xor %%ecx, %%ecx; div %%ecx" ::: "eax", "ecx", "edx");
    CHECK("division by zero", fault_number == SIGFPE && fault_code == FPE_INTDIV);
    if (sigsetjmp(escape, 1) == 0)
        __asm__ volatile("int3");
    CHECK("int3", fault_number == SIGTRAP);
    if (sigsetjmp(escape, 1) == 0)
        __asm__ volatile("hlt");
    CHECK("a privileged instruction", fault_number == SIGSEGV);
    if (sigsetjmp(escape, 1) == 0)
        ((void (*)(void))overflow_stack)();
    CHECK("running data", fault_number == SIGSEGV && fault_code == SEGV_ACCERR);
    fault_number = 0;
    if (sigsetjmp(escape, 1) == 0)
        bottomless(0);
    CHECK("a stack overflow is caught on the alternate stack", fault_number == SIGSEGV);
    for (int i = 0; i < 5; i++)
        signal(numbers[i], SIG_DFL);
}

static void change_context(int number, siginfo_t *info, void *opaque) {
    (void)number, (void)info;
    ucontext_t *context = opaque;
    context->uc_mcontext.gregs[REG_RBX] += 1;
    context->uc_mcontext.gregs[REG_RIP] += 2;
    sigaddset(&context->uc_sigmask, SIGUSR2);
    context->uc_mcontext.fpregs->_xmm[5].element[0] ^= 0xffffffff;
}

static void contexts(void) {
    install(SIGILL, change_context, 0);
    uint64_t rbx = 41;
    uint32_t xmm[4] = {1, 2, 3, 4}, back[4];
    __asm__ volatile("movdqu %2, %%xmm5; ud2; movdqu %%xmm5, %1"
                     : "+b"(rbx), "=m"(back) : "m"(xmm) : "xmm5", "memory");
    CHECK("changed registers are honoured", rbx == 42);
    CHECK("changed vector registers are honoured", back[0] == (1u ^ 0xffffffff) && back[1] == 2 && back[3] == 4);
    sigset_t set;
    sigprocmask(SIG_BLOCK, NULL, &set);
    CHECK("a changed mask is honoured", sigismember(&set, SIGUSR2) == 1);
    sigemptyset(&set);
    sigprocmask(SIG_SETMASK, &set, NULL);
    signal(SIGILL, SIG_DFL);
}

static int ends[2];
static volatile int stop, started;
static pthread_t main_thread;

static void *interrupt_main(void *unused) {
    (void)unused;
    /* Often enough that one comes while the main thread sleeps, whichever way it was scheduled. */
    while (!stop) {
        usleep(5000);
        pthread_kill(main_thread, SIGUSR1);
    }
    return NULL;
}

static void *write_after(void *unused) {
    (void)unused;
    while (hits < 3)
        usleep(1000);
    MUST(write(ends[1], "r", 1) == 1);
    return NULL;
}

static void interruptions(void) {
    pthread_t thread, writer;
    char byte;
    MUST(pipe(ends) == 0);
    main_thread = pthread_self();
    install(SIGUSR1, note, 0);
    hits = stop = 0;
    pthread_create(&thread, NULL, interrupt_main, NULL);
    CHECK_FAILS("a read is interrupted", read(ends[0], &byte, 1), EINTR);
    struct timespec hour = {.tv_sec = 3600}, left = {0};
    CHECK_FAILS("a sleep is interrupted", nanosleep(&hour, &left), EINTR);
    CHECK("and tells what is left", left.tv_sec >= 3000 && left.tv_sec < 3600);
    CHECK_FAILS("pause", pause(), EINTR);
    install(SIGUSR1, note, SA_RESTART);
    hits = 0;
    pthread_create(&writer, NULL, write_after, NULL);
    CHECK("with SA_RESTART a read goes on", read(ends[0], &byte, 1) == 1 && byte == 'r' && hits >= 3);
    pthread_join(writer, NULL);
    CHECK_FAILS("but a sleep does not", nanosleep(&hour, NULL), EINTR);
    sigset_t block, none;
    sigemptyset(&none), sigemptyset(&block), sigaddset(&block, SIGUSR1);
    sigprocmask(SIG_BLOCK, &block, NULL);
    hits = 0;
    CHECK_FAILS("sigsuspend", sigsuspend(&none), EINTR);
    sigset_t now;
    sigprocmask(SIG_BLOCK, NULL, &now);
    CHECK("sigsuspend restores the mask", hits >= 1 && sigismember(&now, SIGUSR1));
    stop = 1;
    pthread_join(thread, NULL);
    sigprocmask(SIG_UNBLOCK, &block, NULL);
}

static void *compute(void *unused) {
    (void)unused;
    sigset_t none;
    sigemptyset(&none);
    pthread_sigmask(SIG_SETMASK, &none, NULL);
    started = 1;
    /* No call in this loop: the signal must reach a thread that never enters the system. */
    while (!stop)
        __asm__ volatile("" ::: "memory");
    return NULL;
}

static void set_stop(int number) {
    (void)number;
    stop = 1;
    handled_by = pthread_self();
}

static void threads(void) {
    pthread_t thread;
    stop = started = 0;
    signal(SIGUSR2, set_stop);
    pthread_create(&thread, NULL, compute, NULL);
    while (!started)
        usleep(1000);
    pthread_kill(thread, SIGUSR2);
    pthread_join(thread, NULL);
    CHECK("a signal reaches a thread that computes, and that thread", stop == 1 && pthread_equal(handled_by, thread));

    /* Blocked here, so that a signal to the process goes to the one thread that does not block it. */
    sigset_t block;
    sigemptyset(&block), sigaddset(&block, SIGUSR2);
    pthread_sigmask(SIG_BLOCK, &block, NULL);
    stop = started = 0;
    pthread_create(&thread, NULL, compute, NULL);
    while (!started)
        usleep(1000);
    kill(getpid(), SIGUSR2);
    pthread_join(thread, NULL);
    CHECK("a signal to the process finds a thread that takes it", stop == 1 && pthread_equal(handled_by, thread));
    pthread_sigmask(SIG_UNBLOCK, &block, NULL);

    stop = 0;
    signal(SIGALRM, set_stop);
    struct itimerval every = {.it_value = {.tv_usec = 5000}};
    setitimer(ITIMER_REAL, &every, NULL);
    while (!stop)
        __asm__ volatile("" ::: "memory");
    CHECK("an interval timer stops a loop", stop == 1);
    stop = 0;
    signal(SIGVTALRM, set_stop);
    setitimer(ITIMER_VIRTUAL, &every, NULL);
    while (!stop)
        __asm__ volatile("" ::: "memory");
    CHECK("so does one of processor time", stop == 1);
    CHECK("alarm tells what was left", alarm(100) == 0 && alarm(0) > 90);
}

int main(void) {
    basics();
    alternate_stack();
    faults();
    contexts();
    interruptions();
    threads();
    return check_result();
}
