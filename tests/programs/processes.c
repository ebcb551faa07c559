/* Processes: how they begin and end, who waits for whom, groups, sessions, stops, orphans, descriptors of processes. */
#include "check.h"
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static volatile sig_atomic_t children_seen, last_code, last_status, conts;
static volatile pid_t last_pid;

static void on_child(int signal, siginfo_t *info, void *context) {
    (void)signal, (void)context;
    children_seen++;
    last_code = info->si_code;
    last_status = info->si_status;
    last_pid = info->si_pid;
}

static void on_cont(int signal) {
    (void)signal;
    conts++;
}

static int wait_status(pid_t child) {
    int status = -1;
    return waitpid(child, &status, 0) == child ? status : -1;
}

static pid_t child_that(void (*what)(void)) {
    pid_t child = fork();
    if (child == 0) {
        what();
        _exit(0);
    }
    return child;
}

static void exit_7(void) { _exit(7); }
static void die_by_term(void) { raise(SIGTERM); }
static void die_by_segv(void) {
    struct rlimit none = {0, 0};
    setrlimit(RLIMIT_CORE, &none);
    *(volatile int *)8 = 1;
}
static void sleep_long(void) {
    for (;;)
        pause();
}

static void ends(void) {
    int status = wait_status(child_that(exit_7));
    CHECK("exit code", WIFEXITED(status) && WEXITSTATUS(status) == 7);
    status = wait_status(child_that(die_by_term));
    CHECK("end by signal", WIFSIGNALED(status) && WTERMSIG(status) == SIGTERM);
    status = wait_status(child_that(die_by_segv));
    CHECK("end by fault", WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV);
    CHECK_FAILS("no child left", waitpid(-1, &status, 0), ECHILD);
    pid_t child = child_that(sleep_long);
    CHECK_WITH("not yet", waitpid(child, &status, WNOHANG) == 0, status);
    CHECK("kill", kill(child, SIGKILL) == 0);
    status = wait_status(child);
    CHECK("killed", WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    CHECK_FAILS("gone", kill(child, 0), ESRCH);
    struct rusage usage;
    child = child_that(exit_7);
    CHECK("wait4", wait4(child, &status, 0, &usage) == child && WEXITSTATUS(status) == 7);
    CHECK("usage of children", getrusage(RUSAGE_CHILDREN, &usage) == 0);
}

/* By the empty command line `ps` tells a process that ended from one that lives. */
static void nothing_left_of(pid_t zombie) {
    static const char *const names[] = {"cmdline", "maps"};
    char path[64], bytes[64];
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        snprintf(path, sizeof path, "/proc/%d/%s", zombie, names[i]);
        int fd = open(path, O_RDONLY);
        CHECK_WITH("opened", fd >= 0, errno);
        CHECK_WITH(names[i], read(fd, bytes, sizeof bytes) == 0, errno);
        close(fd);
    }
    snprintf(path, sizeof path, "/proc/%d/exe", zombie);
    CHECK_FAILS("exe", readlink(path, bytes, sizeof bytes), ENOENT);
}

/* The first program starts now, and not when the machine did. */
static void start_time(void) {
    char text[1024], *at;
    FILE *file = fopen("/proc/self/stat", "r");
    struct timespec now;
    CHECK("stat", file != NULL && fgets(text, sizeof text, file) != NULL && (at = strrchr(text, ')')) != NULL);
    fclose(file);
    for (int field = 2; field < 22; field++)
        at = strchr(at + 1, ' ');
    clock_gettime(CLOCK_BOOTTIME, &now);
    long started = strtol(at, NULL, 10) / sysconf(_SC_CLK_TCK);
    CHECK_WITH("it started lately", now.tv_sec - started < 600, started);
}

static void waitid_shapes(void) {
    siginfo_t info;
    pid_t child = child_that(exit_7);
    memset(&info, 0, sizeof info);
    CHECK("waitid leaves it", waitid(P_PID, child, &info, WEXITED | WNOWAIT) == 0 && info.si_pid == child &&
                                  info.si_code == CLD_EXITED && info.si_status == 7 && info.si_signo == SIGCHLD);
    CHECK("still a zombie", kill(child, 0) == 0);
    nothing_left_of(child);
    CHECK("waitid takes it", waitid(P_ALL, 0, &info, WEXITED) == 0 && info.si_pid == child);
    CHECK_FAILS("waitid with none", waitid(P_ALL, 0, &info, WEXITED), ECHILD);
    CHECK_FAILS("waitid without what", waitid(P_ALL, 0, &info, WNOHANG), EINVAL);
    child = child_that(sleep_long);
    memset(&info, 1, sizeof info);
    CHECK("nothing yet", waitid(P_PID, child, &info, WEXITED | WNOHANG) == 0 && info.si_pid == 0);
    kill(child, SIGINT);
    CHECK("by signal", waitid(P_PGID, getpgrp(), &info, WEXITED) == 0 && info.si_code == CLD_KILLED &&
                           info.si_status == SIGINT);
}

static void stops(void) {
    int status;
    siginfo_t info;
    children_seen = 0;
    struct sigaction action = {.sa_sigaction = on_child, .sa_flags = SA_SIGINFO | SA_RESTART}, old;
    sigaction(SIGCHLD, &action, &old);
    pid_t child = child_that(sleep_long);
    CHECK("stop", kill(child, SIGSTOP) == 0);
    CHECK("stopped", waitpid(child, &status, WUNTRACED) == child && WIFSTOPPED(status) && WSTOPSIG(status) == SIGSTOP);
    CHECK("told of the stop", children_seen == 1 && last_code == CLD_STOPPED && last_pid == child);
    CHECK_WITH("told once", waitpid(child, &status, WUNTRACED | WNOHANG) == 0, status);
    CHECK("go on", kill(child, SIGCONT) == 0);
    CHECK("continued", waitid(P_PID, child, &info, WCONTINUED) == 0 && info.si_code == CLD_CONTINUED);
    kill(child, SIGSTOP);
    waitpid(child, &status, WUNTRACED);
    kill(child, SIGTERM);
    CHECK_WITH("a stopped one does not take SIGTERM", waitpid(child, &status, WNOHANG) == 0, status);
    kill(child, SIGCONT);
    status = wait_status(child);
    CHECK("but after it went on", WIFSIGNALED(status) && WTERMSIG(status) == SIGTERM);
    child = child_that(sleep_long);
    kill(child, SIGSTOP);
    waitpid(child, &status, WUNTRACED);
    kill(child, SIGKILL);
    status = wait_status(child);
    CHECK("SIGKILL ends a stopped one", WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    sigaction(SIGCHLD, &old, NULL);
}

static void who_is_told(void) {
    children_seen = 0;
    struct sigaction action = {.sa_sigaction = on_child, .sa_flags = SA_SIGINFO | SA_RESTART};
    sigaction(SIGCHLD, &action, NULL);
    pid_t child = child_that(exit_7);
    wait_status(child);
    CHECK("SIGCHLD", children_seen == 1 && last_code == CLD_EXITED && last_status == 7 && last_pid == child);
    signal(SIGCHLD, SIG_IGN);
    child = child_that(exit_7);
    CHECK_FAILS("ignored children leave nothing", waitpid(child, NULL, 0), ECHILD);
    action.sa_flags |= SA_NOCLDWAIT;
    children_seen = 0;
    sigaction(SIGCHLD, &action, NULL);
    child = child_that(exit_7);
    CHECK_FAILS("nor with SA_NOCLDWAIT", waitpid(child, NULL, 0), ECHILD);
    CHECK_WITH("but the signal comes", children_seen == 1, children_seen);
    signal(SIGCHLD, SIG_DFL);
}

static void groups(void) {
    int gate[2], status;
    MUST(pipe(gate) == 0);
    pid_t members[3];
    for (int i = 0; i < 3; i++) {
        members[i] = fork();
        if (members[i] == 0) {
            char byte;
            close(gate[1]);
            MUST(read(gate[0], &byte, 1) == 0);
            sleep_long();
        }
        CHECK("into a group", setpgid(members[i], members[0]) == 0);
    }
    CHECK("its number", getpgid(members[2]) == members[0]);
    CHECK_FAILS("no such process", setpgid(999999, 0), ESRCH);
    CHECK_FAILS("no such group", setpgid(members[1], 999999), EPERM);
    close(gate[1]);
    CHECK("to the group", kill(-members[0], SIGUSR1) == 0);
    int died = 0;
    for (int i = 0; i < 3; i++)
        died += waitpid(-members[0], &status, 0) > 0 && WIFSIGNALED(status) && WTERMSIG(status) == SIGUSR1;
    CHECK_WITH("all three", died == 3, died);
    CHECK_FAILS("the group is gone", kill(-members[0], 0), ESRCH);
    close(gate[0]);
    pid_t child = fork();
    if (child == 0) {
        pid_t session = setsid();
        _exit(session == getpid() && getsid(0) == session && getpgrp() == session && setsid() == -1 ? 5 : 6);
    }
    status = wait_status(child);
    CHECK_WITH("a session", WEXITSTATUS(status) == 5, status);
}

static void orphans(void) {
    int answer[2];
    MUST(pipe(answer) == 0);
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    int on = 0;
    prctl(PR_GET_CHILD_SUBREAPER, &on);
    CHECK("a reaper", on == 1);
    pid_t child = fork();
    if (child == 0) {
        pid_t middle = getpid();
        if (fork() == 0) {
            while (getppid() == middle)
                usleep(1000);
            pid_t parent = getppid();
            MUST(write(answer[1], &parent, sizeof parent) == sizeof parent);
            _exit(11);
        }
        _exit(0);
    }
    int status = wait_status(child);
    pid_t parent = 0;
    MUST(read(answer[0], &parent, sizeof parent) == sizeof parent);
    CHECK("an orphan comes to its reaper", parent == getpid());
    CHECK("who waits for it", wait(&status) > 0 && WEXITSTATUS(status) == 11);
    prctl(PR_SET_CHILD_SUBREAPER, 0);
    child = fork();
    if (child == 0) {
        pid_t grandchild = fork();
        if (grandchild == 0) {
            prctl(PR_SET_PDEATHSIG, SIGUSR2);
            MUST(write(answer[1], "r", 1) == 1);
            sigset_t set;
            int got = 0;
            sigemptyset(&set);
            sigaddset(&set, SIGUSR2);
            sigprocmask(SIG_BLOCK, &set, NULL);
            sigwait(&set, &got);
            MUST(write(answer[1], got == SIGUSR2 ? "d" : "?", 1) == 1);
            _exit(0);
        }
        usleep(100000);
        _exit(0);
    }
    char bytes[2] = {0};
    signal(SIGUSR2, SIG_IGN);
    MUST(read(answer[0], bytes, 1) == 1);
    wait_status(child);
    MUST(read(answer[0], bytes + 1, 1) == 1);
    CHECK("told of its parent's death", bytes[0] == 'r' && bytes[1] == 'd');
    close(answer[0]), close(answer[1]);
}

static void pidfds(void) {
    pid_t child = child_that(sleep_long);
    int fd = syscall(SYS_pidfd_open, child, 0);
    CHECK("pidfd_open", fd >= 0 && fcntl(fd, F_GETFD) == FD_CLOEXEC);
    struct pollfd wait_for = {.fd = fd, .events = POLLIN};
    CHECK("it lives", poll(&wait_for, 1, 0) == 0);
    CHECK("pidfd_send_signal", syscall(SYS_pidfd_send_signal, fd, SIGTERM, NULL, 0) == 0);
    CHECK("readable at its end", poll(&wait_for, 1, 10000) == 1 && wait_for.revents == POLLIN);
    siginfo_t info;
    CHECK("waitid by descriptor", waitid(P_PIDFD, fd, &info, WEXITED) == 0 && info.si_status == SIGTERM);
    CHECK_FAILS("no signals any more", syscall(SYS_pidfd_send_signal, fd, SIGTERM, NULL, 0), ESRCH);
    close(fd);
    int through_clone = -1;
    child = syscall(SYS_clone, CLONE_PIDFD | SIGCHLD, NULL, &through_clone, NULL, 0);
    if (child == 0)
        _exit(9);
    CHECK("clone with a descriptor", through_clone >= 0 && waitid(P_PIDFD, through_clone, &info, WEXITED) == 0 &&
                                         info.si_status == 9);
    close(through_clone);
}

static int shared_counter;
static int on_own_stack(void *arg) {
    shared_counter += *(int *)arg;
    return 3;
}

/* A process whose end nobody is told of. */
static pid_t silent_child(unsigned long flags, int status) {
    pid_t child = syscall(SYS_clone, flags, NULL, NULL, NULL, 0);
    if (child == 0)
        _exit(status);
    siginfo_t info;
    if (!(flags & CLONE_PARENT))
        MUST(waitid(P_PID, child, &info, WEXITED | WNOWAIT | __WALL) == 0);
    return child;
}

/* Nor its sibling, or its heir, would wait for it, if that were so for them as well. */
static void silent_ends(void) {
    sigset_t set;
    siginfo_t info = {0};
    int status, waited = 0, sum = 0;
    sigemptyset(&set);
    sigaddset(&set, SIGCHLD);
    sigprocmask(SIG_BLOCK, &set, NULL);
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    /* Where this program is the first one, it has inherited by now. */
    while (waitpid(-1, &status, WNOHANG | __WALL) > 0)
        ;
    struct timespec limit = {.tv_sec = 20};
    if (fork() == 0) {
        silent_child(0, 21);
        _exit(20);
    }
    CHECK("its heir is told of an end before", sigtimedwait(&set, &info, &limit) == SIGCHLD && info.si_status == 21);
    while (waited < 2 && wait(&status) > 0)
        waited++, sum += WEXITSTATUS(status);
    CHECK_WITH("and waits for it", waited == 2 && sum == 41, sum);
    prctl(PR_SET_CHILD_SUBREAPER, 0);
    if (fork() == 0) {
        silent_child(CLONE_PARENT, 22);
        _exit(20);
    }
    for (waited = sum = 0; waited < 2 && wait(&status) > 0;)
        waited++, sum += WEXITSTATUS(status);
    CHECK_WITH("a sibling's end is told as the process's own", waited == 2 && sum == 42, sum);
    if (syscall(SYS_clone, 0, NULL, NULL, NULL, 0) == 0) {
        execl("/bin/sh", "sh", "-c", "exit 23", NULL);
        _exit(24);
    }
    MUST(waitid(P_ALL, 0, &info, WEXITED | WNOWAIT | __WALL) == 0);
    CHECK("a program that was begun is waited for", wait(&status) > 0 && WEXITSTATUS(status) == 23);
    sigprocmask(SIG_UNBLOCK, &set, NULL);
}

static void clone_shapes(void) {
    static char stack[65536] __attribute__((aligned(16)));
    int add = 5;
    pid_t child = clone(on_own_stack, stack + sizeof stack, CLONE_VM | CLONE_VFORK | SIGCHLD, &add);
    int status = wait_status(child);
    CHECK("shared memory, parent waits", shared_counter == 5 && WEXITSTATUS(status) == 3);
    child = clone(on_own_stack, stack + sizeof stack, SIGCHLD, &add);
    status = wait_status(child);
    CHECK("own memory", shared_counter == 5 && WEXITSTATUS(status) == 3);
    child = clone(on_own_stack, stack + sizeof stack, CLONE_VM, &add);
    CHECK_FAILS("without SIGCHLD it is not waited for", waitpid(child, &status, 0), ECHILD);
    CHECK("but with __WALL", waitpid(child, &status, __WALL) == child && shared_counter == 10);
    volatile int vforked = 0;
    child = vfork();
    if (child == 0) {
        vforked = 1;
        _exit(4);
    }
    status = wait_status(child);
    CHECK("vfork", vforked == 1 && WEXITSTATUS(status) == 4);
    pid_t tids[2] = {0};
    child = syscall(SYS_clone, CLONE_PARENT_SETTID | CLONE_CHILD_SETTID | SIGCHLD, NULL, &tids[0], &tids[1], 0);
    if (child == 0)
        _exit(tids[1] == getpid() ? 1 : 2);
    status = wait_status(child);
    CHECK("numbers", tids[0] == child && tids[1] == 0 && WEXITSTATUS(status) == 1);
    int fds[2];
    MUST(pipe(fds) == 0);
    child = syscall(SYS_clone, CLONE_FILES | SIGCHLD, NULL, NULL, NULL, 0);
    if (child == 0) {
        close(fds[0]);
        _exit(0);
    }
    wait_status(child);
    CHECK_FAILS("shared descriptors", fcntl(fds[0], F_GETFD), EBADF);
    close(fds[1]);
    child = syscall(SYS_clone, CLONE_FS | SIGCHLD, NULL, NULL, NULL, 0);
    if (child == 0)
        _exit(chdir("/usr"));
    wait_status(child);
    char cwd[100] = "";
    CHECK("shared working directory", getcwd(cwd, sizeof cwd) && !strcmp(cwd, "/usr"));
    CHECK_FAILS("CLONE_SIGHAND alone", syscall(SYS_clone, CLONE_SIGHAND | SIGCHLD, NULL, NULL, NULL, 0), EINVAL);
}

static void descriptors(const char *file) {
    int fd = open(file, O_RDWR | O_CREAT | O_TRUNC, 0600), status;
    MUST(fd >= 0 && write(fd, "0123456789", 10) == 10 && lseek(fd, 2, SEEK_SET) == 2);
    pid_t child = fork();
    if (child == 0)
        _exit(lseek(fd, 3, SEEK_CUR) == 5 ? 0 : 1);
    status = wait_status(child);
    CHECK("one position", status == 0 && lseek(fd, 0, SEEK_CUR) == 5);
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    CHECK("lock", fcntl(fd, F_SETLK, &lock) == 0);
    child = fork();
    if (child == 0) {
        int denied = fcntl(fd, F_SETLK, &lock) == -1 && (errno == EAGAIN || errno == EACCES);
        struct flock other = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
        int found = fcntl(fd, F_GETLK, &other) == 0 && other.l_type == F_WRLCK && other.l_pid == getppid();
        _exit(denied && found ? 0 : 1);
    }
    CHECK("a child is another owner", wait_status(child) == 0);
    lock.l_type = F_UNLCK;
    fcntl(fd, F_SETLK, &lock);
    lock.l_type = F_WRLCK;
    child = fork();
    if (child == 0)
        _exit(fcntl(fd, F_SETLK, &lock) == 0 ? 0 : 1);
    CHECK("it takes it", wait_status(child) == 0);
    CHECK("and its end gives it back", fcntl(fd, F_SETLK, &lock) == 0);
    close(fd);
    unlink(file);
    int pair[2];
    MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    child = fork();
    if (child == 0) {
        close(pair[0]);
        char text[20];
        ssize_t got = read(pair[1], text, sizeof text);
        MUST(write(pair[1], text, got) == got);
        _exit(0);
    }
    close(pair[1]);
    char text[20] = "";
    MUST(write(pair[0], "ping", 4) == 4);
    CHECK("socket pair", read(pair[0], text, 20) == 4 && !memcmp(text, "ping", 4));
    CHECK("end of stream at its end", read(pair[0], text, 20) == 0 && wait_status(child) == 0);
    close(pair[0]);
}

static void *spin(void *stop) {
    while (!__atomic_load_n((int *)stop, __ATOMIC_RELAXED))
        ;
    return NULL;
}

static void *fork_in_a_thread(void *unused) {
    (void)unused;
    pid_t child = child_that(exit_7);
    return (void *)(long)wait_status(child);
}

static void with_threads(void) {
    pthread_t thread, other;
    int stop = 0;
    void *result;
    pthread_create(&other, NULL, spin, &stop);
    pthread_create(&thread, NULL, fork_in_a_thread, NULL);
    pthread_join(thread, &result);
    CHECK("fork in a thread", WEXITSTATUS((long)result) == 7);
    stop = 1;
    pthread_join(other, NULL);
    pid_t child = fork();
    if (child == 0) {
        static int never = 0;
        pthread_create(&thread, NULL, spin, &never);
        pthread_create(&other, NULL, spin, &never);
        usleep(2000);
        exit(8);
    }
    CHECK("exit ends threads that compute", WEXITSTATUS(wait_status(child)) == 8);
    child = fork();
    if (child == 0) {
        static int never = 0;
        pthread_create(&thread, NULL, spin, &never);
        sleep_long();
    }
    usleep(5000);
    kill(child, SIGKILL);
    int status = wait_status(child);
    CHECK("so does SIGKILL", WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
}

static void in_a_row(void) {
    int wrong = 0;
    for (int i = 0; i < 200; i++) {
        pid_t child = fork();
        if (child == 0)
            _exit(i & 127);
        int status = wait_status(child);
        wrong += !WIFEXITED(status) || WEXITSTATUS(status) != (i & 127);
    }
    CHECK_WITH("two hundred in a row", wrong == 0, wrong);
    pid_t all[40];
    for (int i = 0; i < 40; i++)
        if ((all[i] = fork()) == 0) {
            usleep(1000 * (i % 7));
            _exit(i);
        }
    for (int i = 39; i >= 0; i--)
        wrong += WEXITSTATUS(wait_status(all[i])) != i;
    CHECK_WITH("forty at once", wrong == 0, wrong);
}

/* What a program may say of itself, and have told back. */
static void says_of_itself(void) {
    CHECK("timer slack", prctl(PR_GET_TIMERSLACK) == 50000 && prctl(PR_SET_TIMERSLACK, 60000) == 0 &&
                             prctl(PR_GET_TIMERSLACK) == 60000 && prctl(PR_SET_TIMERSLACK, 0) == 0 &&
                             prctl(PR_GET_TIMERSLACK) == 50000);
    CHECK("kept capabilities", prctl(PR_GET_KEEPCAPS) == 0 && prctl(PR_SET_KEEPCAPS, 1) == 0 &&
                                   prctl(PR_GET_KEEPCAPS) == 1 && prctl(PR_SET_KEEPCAPS, 0) == 0);
    CHECK_FAILS("neither kept nor not", prctl(PR_SET_KEEPCAPS, 2), EINVAL);
    CHECK("huge pages", prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0) == 0 && prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0) == 1 &&
                            prctl(PR_SET_THP_DISABLE, 0, 0, 0, 0) == 0);
    CHECK("memory errors", prctl(PR_MCE_KILL_GET, 0, 0, 0, 0) == PR_MCE_KILL_DEFAULT &&
                               prctl(PR_MCE_KILL, PR_MCE_KILL_SET, PR_MCE_KILL_EARLY, 0, 0) == 0 &&
                               prctl(PR_MCE_KILL_GET, 0, 0, 0, 0) == PR_MCE_KILL_EARLY &&
                               prctl(PR_MCE_KILL, PR_MCE_KILL_CLEAR, 0, 0, 0) == 0);
    CHECK("no events to count", prctl(PR_TASK_PERF_EVENTS_DISABLE) == 0 && prctl(PR_TASK_PERF_EVENTS_ENABLE) == 0);
    CHECK_FAILS("a name that is none", prctl(0x53564d41, 0, 0x10000, 4096, "[,$"), EINVAL);
}

int main(int argc, char **argv) {
    /* A shell's background job may have it ignored. */
    signal(SIGINT, SIG_DFL);
    MUST(argc > 1);
    setpgid(0, 0);
    signal(SIGCONT, on_cont);
    start_time();
    ends();
    waitid_shapes();
    stops();
    who_is_told();
    groups();
    orphans();
    pidfds();
    clone_shapes();
    silent_ends();
    descriptors(argv[1]);
    with_threads();
    in_a_row();
    says_of_itself();
    return check_result();
}
