/* What other people's test suites found: small differences from Linux, each once. */
#include "check.h"

#include <fcntl.h>
#include <linux/net_tstamp.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static volatile sig_atomic_t caught;

static void note(int number) { caught = number; }

/* CPython: a directory of /proc stands for its process. */
static void a_process_is_signalled_by_its_directory(void) {
    struct sigaction action = {.sa_handler = note};
    MUST(sigaction(SIGUSR1, &action, NULL) == 0);
    char path[64];
    snprintf(path, sizeof path, "/proc/%d", getpid());
    int directory = open(path, O_DIRECTORY | O_RDONLY), other = open("/proc", O_DIRECTORY | O_RDONLY);
    MUST(directory >= 0 && other >= 0);
    CHECK("a signal by /proc/PID", syscall(SYS_pidfd_send_signal, directory, SIGUSR1, NULL, 0) == 0);
    CHECK("it arrived", caught == SIGUSR1);
    CHECK_FAILS("not by /proc", syscall(SYS_pidfd_send_signal, other, SIGUSR1, NULL, 0), EBADF);
    close(directory);
    close(other);
}

/* CPython: notification of nothing is how it is switched off. */
static void no_notification_is_asked_for(void) {
    int directory = open("/", O_RDONLY);
    MUST(directory >= 0);
    CHECK("F_NOTIFY of nothing", fcntl(directory, F_NOTIFY, DN_MULTISHOT) == 0);
    close(directory);
}

/* mio: a listener is never ready for writing, whatever it was before it listened. */
static void a_listener_is_not_writable(void) {
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), set = epoll_create1(0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    MUST(bind(listener, (struct sockaddr *)&address, sizeof address) == 0 && listen(listener, 8) == 0);
    struct epoll_event event = {.events = EPOLLOUT | EPOLLET | EPOLLONESHOT};
    MUST(epoll_ctl(set, EPOLL_CTL_ADD, listener, &event) == 0);
    CHECK("a listener is not writable", epoll_wait(set, &event, 1, 50) == 0);
    close(listener);
    close(set);
}

/* nix: a socket may be told by which clock it is told when to send. */
static void a_time_to_send_at(void) {
    int sender = socket(AF_INET, SOCK_DGRAM, 0);
    struct sock_txtime when = {.clockid = CLOCK_MONOTONIC};
    socklen_t length = sizeof when;
    CHECK("SO_TXTIME is set", setsockopt(sender, SOL_SOCKET, SO_TXTIME, &when, length) == 0);
    CHECK("and told back", getsockopt(sender, SOL_SOCKET, SO_TXTIME, &when, &length) == 0);
    CHECK("as it was", length == sizeof when && when.clockid == CLOCK_MONOTONIC);
    close(sender);
}

static int score(void) {
    char text[16] = "";
    int file = open("/proc/self/oom_score_adj", O_RDONLY);
    MUST(file >= 0 && read(file, text, sizeof text - 1) > 0);
    close(file);
    return atoi(text);
}

static int set_score(const char *text) {
    int file = open("/proc/self/oom_score_adj", O_WRONLY);
    MUST(file >= 0);
    int result = write(file, text, strlen(text)) < 0 ? errno : 0;
    close(file);
    return result;
}

/* Redis: the score is kept, is inherited, and is each process's own. */
static void a_process_has_a_score_of_its_own(void) {
    CHECK("oom_score_adj is set", set_score("700\n") == 0 && score() == 700);
    CHECK("within bounds", set_score("1001\n") == EINVAL && score() == 700);
    CHECK("to a number", set_score("none\n") == EINVAL && score() == 700);
    pid_t child = fork();
    MUST(child >= 0);
    if (child == 0) {
        CHECK("a child has its parent's", score() == 700);
        CHECK("and then its own", set_score("800") == 0 && score() == 800);
        _exit(check_result());
    }
    int status;
    CHECK("the child ended well", waitpid(child, &status, 0) == child && status == 0);
    CHECK("the parent's stayed", score() == 700);
}

/* tokio: what was sent over loopback is seen by the next look, and one that does not wait sees what came after the last. */
static void what_was_sent_is_there(void) {
    int receiver = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0), sender = socket(AF_INET, SOCK_DGRAM, 0);
    int set = epoll_create1(0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    MUST(bind(receiver, (struct sockaddr *)&address, sizeof address) == 0);
    MUST(getsockname(receiver, (struct sockaddr *)&address, &length) == 0);
    MUST(connect(sender, (struct sockaddr *)&address, sizeof address) == 0);
    struct pollfd asked = {.fd = receiver, .events = POLLIN};
    struct epoll_event event = {.events = EPOLLIN};
    CHECK("nothing is there", poll(&asked, 1, 0) == 0);
    int polled = 0, waited = 0;
    char byte;
    for (int i = 0; i < 1000; i++) {
        MUST(send(sender, "x", 1, 0) == 1);
        polled += poll(&asked, 1, 0) == 1;
        MUST(recv(receiver, &byte, 1, 0) == 1);
    }
    MUST(epoll_ctl(set, EPOLL_CTL_ADD, receiver, &event) == 0);
    for (int i = 0; i < 1000; i++) {
        MUST(send(sender, "x", 1, 0) == 1);
        waited += epoll_wait(set, &event, 1, 0) == 1;
        MUST(recv(receiver, &byte, 1, 0) == 1);
    }
    CHECK("each is seen by poll", polled == 1000);
    CHECK("each is seen by epoll_wait", waited == 1000);
    close(receiver);
    close(sender);
    close(set);
}

/* CPython's asyncore: what comes is seen beside what is always there, of another file and of the same. */
static void what_comes_is_seen_beside_what_is_there(void) {
    int receiver = socket(AF_INET, SOCK_DGRAM, 0), sender = socket(AF_INET, SOCK_DGRAM, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    MUST(bind(receiver, (struct sockaddr *)&address, sizeof address) == 0);
    MUST(getsockname(receiver, (struct sockaddr *)&address, &length) == 0);
    MUST(connect(sender, (struct sockaddr *)&address, sizeof address) == 0);
    struct pollfd asked[] = {{.fd = sender, .events = POLLOUT}, {.fd = receiver, .events = POLLIN | POLLOUT}};
    CHECK("both take data", poll(asked, 2, -1) == 2);
    MUST(send(sender, "x", 1, 0) == 1);
    for (int i = 0; i < 10000 && !(asked[1].revents & POLLIN); i++) {
        MUST(poll(asked, 2, -1) == 2);
        usleep(1000);
    }
    CHECK("what was sent is seen, too", asked[1].revents == (POLLIN | POLLOUT));
    close(receiver);
    close(sender);
}

static size_t command_line(pid_t process, char *to, size_t size) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/cmdline", process);
    int file = open(path, O_RDONLY);
    MUST(file >= 0);
    ssize_t length = read(file, to, size);
    MUST(length >= 0);
    close(file);
    return (size_t)length;
}

/* Redis: a process gives itself a title by writing over its arguments, and over its environment where that is too short. */
static void a_title_is_seen(char **arguments) {
    char *first = arguments[0], *end = first;
    for (char **argument = arguments; *argument; argument++)
        end = *argument + strlen(*argument) + 1;
    int told[2], seen[2];
    MUST(environ[0] == end && strlen(environ[0]) > 6);
    MUST(pipe(told) == 0 && pipe(seen) == 0);
    pid_t child = fork();
    char byte = 0, line[4096] = {0};
    if (child == 0) {
        memset(first, 0, (size_t)(end - first));
        memcpy(first, "me", 2);
        MUST(write(told[1], &byte, 1) == 1 && read(seen[0], &byte, 1) == 1);
        memset(first, 'x', (size_t)(end - first) + 5);
        end[5] = 0;
        MUST(write(told[1], &byte, 1) == 1 && read(seen[0], &byte, 1) == 1);
        _exit(0);
    }
    MUST(read(told[0], &byte, 1) == 1);
    size_t length = command_line(child, line, sizeof line);
    CHECK("a short title", length == (size_t)(end - first) && strcmp(line, "me") == 0);
    MUST(write(seen[1], &byte, 1) == 1 && read(told[0], &byte, 1) == 1);
    length = command_line(child, line, sizeof line);
    CHECK("a long title", length == (size_t)(end - first) + 6 && strspn(line, "x") == length - 1);
    MUST(write(seen[1], &byte, 1) == 1);
    MUST(waitpid(child, NULL, 0) == child);
    for (int i = 0; i < 2; i++)
        close(told[i]), close(seen[i]);
    CHECK("the parent has its own", strcmp(arguments[0], first) == 0 && first[0] != 'x');
}

/* KiB of all areas, by the name that smaps has for them. */
static long kib_of(const char *name) {
    FILE *areas = fopen("/proc/self/smaps", "r");
    MUST(areas != NULL);
    char line[512];
    long sum = 0;
    while (fgets(line, sizeof line, areas))
        if (strncmp(line, name, strlen(name)) == 0)
            sum += atol(line + strlen(name));
    fclose(areas);
    return sum;
}

/* Redis: how much memory a child has for itself, since its parent writes. */
static void memory_is_a_childs_own_when_its_parent_writes(void) {
    size_t size = 4 << 20;
    char *bytes = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    int told[2], seen[2];
    MUST(bytes != MAP_FAILED && pipe(told) == 0 && pipe(seen) == 0);
    long resident = kib_of("Rss:");
    memset(bytes, 1, size);
    CHECK("touched memory is resident", kib_of("Rss:") - resident >= 4096);
    pid_t child = fork();
    char byte = 0;
    if (child == 0) {
        long before = kib_of("Private_Dirty:");
        MUST(write(told[1], &byte, 1) == 1 && read(seen[0], &byte, 1) == 1);
        /* A few pages may have been the child's from the beginning. */
        _exit(before < 3072 && kib_of("Private_Dirty:") - before >= 3072 ? 0 : 1);
    }
    MUST(read(told[0], &byte, 1) == 1);
    memset(bytes, 2, size);
    MUST(write(seen[1], &byte, 1) == 1);
    int status = -1;
    MUST(waitpid(child, &status, 0) == child);
    CHECK("memory becomes the child's own", status == 0);
    for (int i = 0; i < 2; i++)
        close(told[i]), close(seen[i]);
    munmap(bytes, size);
}

int main(int count, char **arguments) {
    MUST(count > 0);
    a_process_is_signalled_by_its_directory();
    no_notification_is_asked_for();
    a_listener_is_not_writable();
    a_time_to_send_at();
    a_process_has_a_score_of_its_own();
    what_was_sent_is_there();
    what_comes_is_seen_beside_what_is_there();
    a_title_is_seen(arguments);
    memory_is_a_childs_own_when_its_parent_writes();
    return check_result();
}
