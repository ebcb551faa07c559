/* System V semaphores and message queues: what is done whole, who waits for whom, what ends with a process. And how many
 * processes a user may have. */
#include "check.h"
#include <signal.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/resource.h>
#include <sys/sem.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

union semun {
    int val;
    struct semid_ds *buf;
    unsigned short *array;
};

static int exits(pid_t child, int code) {
    int status = -1;
    return waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == code;
}

static int value(int id, int number) { return semctl(id, number, GETVAL); }

static int operate(int id, int number, int change, int flags) {
    struct sembuf one = {number, change, flags};
    return semop(id, &one, 1);
}

/* Waits until so many threads wait for semaphore 0 to grow. */
static int waiters(int id, int command, int count) {
    struct timespec little = {0, 1000000};
    for (int i = 0; i < 5000; i++) {
        if (semctl(id, 0, command) == count)
            return 1;
        nanosleep(&little, NULL);
    }
    return 0;
}

static void on_signal(int signal) { (void)signal; }

static void sets(void) {
    key_t key = 0x5eed0000 | (getpid() & 0xffff);
    CHECK_FAILS("an absent key", semget(key, 3, 0600), ENOENT);
    int id = semget(key, 3, IPC_CREAT | IPC_EXCL | 0640);
    MUST(id >= 0);
    CHECK("found again", semget(key, 0, 0) == id);
    CHECK_FAILS("larger than it is", semget(key, 4, 0), EINVAL);
    CHECK_FAILS("exclusively", semget(key, 3, IPC_CREAT | IPC_EXCL | 0600), EEXIST);
    unsigned short all[3] = {5, 6, 7};
    CHECK("all set", semctl(id, 0, SETALL, (union semun){.array = all}) == 0);
    CHECK("one set", semctl(id, 2, SETVAL, (union semun){.val = 1}) == 0);
    unsigned short got[3];
    CHECK("all read", semctl(id, 0, GETALL, (union semun){.array = got}) == 0 && got[0] == 5 && got[1] == 6 && got[2] == 1);
    CHECK("who set it", semctl(id, 2, GETPID) == getpid());
    CHECK_FAILS("too high", semctl(id, 2, SETVAL, (union semun){.val = 32768}), ERANGE);
    CHECK_FAILS("no such semaphore", semctl(id, 3, GETVAL), EINVAL);
    struct semid_ds about;
    MUST(semctl(id, 0, IPC_STAT, (union semun){.buf = &about}) == 0);
    CHECK("its description", about.sem_nsems == 3 && about.sem_perm.mode == 0640 && about.sem_otime == 0 &&
                                 about.sem_ctime > 0 && about.sem_perm.__key == key);
    struct sembuf whole[3] = {{0, -5, 0}, {1, 10, 0}, {2, -2, IPC_NOWAIT}};
    CHECK_FAILS("not all can be done", semop(id, whole, 3), EAGAIN);
    CHECK("so none is", value(id, 0) == 5 && value(id, 1) == 6 && value(id, 2) == 1);
    whole[2].sem_op = -1;
    CHECK("all can", semop(id, whole, 3) == 0 && value(id, 0) == 0 && value(id, 1) == 16 && value(id, 2) == 0);
    CHECK_FAILS("past the highest", operate(id, 1, 32767, 0), ERANGE);
    CHECK_FAILS("a number out of the set", operate(id, 3, 1, 0), EFBIG);
    CHECK_FAILS("no operations", semop(id, whole, 0), EINVAL);
    CHECK_FAILS("too many", semop(id, whole, 501), E2BIG);
    struct timespec soon = {0, 20000000};
    struct sembuf take = {0, -1, 0};
    CHECK_FAILS("waiting for a while", semtimedop(id, &take, 1, &soon), EAGAIN);

    pid_t child = fork();
    if (child == 0)
        _exit(operate(id, 0, -2, 0) == 0 ? 0 : 1);
    CHECK("a child waits", waiters(id, GETNCNT, 1));
    CHECK("one is not enough", operate(id, 0, 1, 0) == 0 && waiters(id, GETNCNT, 1) && value(id, 0) == 1);
    CHECK("two are", operate(id, 0, 1, 0) == 0 && exits(child, 0) && value(id, 0) == 0);
    MUST(operate(id, 0, 3, 0) == 0);
    child = fork();
    if (child == 0)
        _exit(operate(id, 0, 0, 0) == 0 ? 0 : 1);
    CHECK("a child waits for zero", waiters(id, GETZCNT, 1));
    CHECK("until it is", operate(id, 0, -3, 0) == 0 && exits(child, 0));

    child = fork();
    if (child == 0) {
        signal(SIGUSR1, on_signal);
        _exit(operate(id, 0, -1, 0) == -1 && errno == EINTR ? 0 : 1);
    }
    CHECK("a child waits once more", waiters(id, GETNCNT, 1));
    CHECK("a signal ends it", kill(child, SIGUSR1) == 0 && exits(child, 0) && waiters(id, GETNCNT, 0));

    child = fork();
    if (child == 0) {
        int done = operate(id, 0, 7, SEM_UNDO) == 0 && operate(id, 1, -4, SEM_UNDO) == 0;
        _exit(done && value(id, 0) == 7 && value(id, 1) == 12 ? 0 : 1);
    }
    CHECK("a child's changes", exits(child, 0));
    CHECK("end with it", value(id, 0) == 0 && value(id, 1) == 16);

    child = fork();
    if (child == 0)
        _exit(operate(id, 0, -1, 0) == -1 && errno == EIDRM ? 0 : 1);
    CHECK("another waits", waiters(id, GETNCNT, 1));
    CHECK("the set goes", semctl(id, 0, IPC_RMID) == 0 && exits(child, 0));
    CHECK_FAILS("gone", semctl(id, 0, GETVAL), EINVAL);
}

/* A mutex of a semaphore, and a counter that only it protects. */
static void contended(void) {
    int id = semget(IPC_PRIVATE, 2, 0600);
    MUST(id >= 0 && operate(id, 0, 1, 0) == 0);
    pid_t children[4];
    for (int c = 0; c < 4; c++) {
        children[c] = fork();
        if (children[c] == 0) {
            for (int i = 0; i < 200; i++) {
                MUST(operate(id, 0, -1, SEM_UNDO) == 0);
                int before = value(id, 1);
                MUST(semctl(id, 1, SETVAL, (union semun){.val = before + 1}) == 0);
                MUST(operate(id, 0, 1, SEM_UNDO) == 0);
            }
            _exit(0);
        }
    }
    int ended = 0;
    for (int c = 0; c < 4; c++)
        ended += exits(children[c], 0);
    CHECK_WITH("four processes take turns", ended == 4 && value(id, 1) == 800, value(id, 1));
    semctl(id, 0, IPC_RMID);
}

struct message {
    long type;
    char text[64];
};

static int send(int id, long type, const char *text, int flags) {
    struct message message = {.type = type};
    strcpy(message.text, text);
    return msgsnd(id, &message, strlen(text), flags);
}

static int takes(int id, long type, int flags, const char *text, long its_type) {
    struct message message = {0};
    ssize_t got = msgrcv(id, &message, sizeof message.text, type, flags);
    return got == (ssize_t)strlen(text) && memcmp(message.text, text, got) == 0 && message.type == its_type;
}

static void messages(void) {
    key_t key = 0x5eed0000 | (getpid() & 0xffff);
    CHECK_FAILS("an absent queue", msgget(key, 0600), ENOENT);
    int id = msgget(key, IPC_CREAT | 0600);
    MUST(id >= 0);
    CHECK("found again", msgget(key, 0) == id);
    struct message message;
    CHECK_FAILS("none there", msgrcv(id, &message, 64, 0, IPC_NOWAIT), ENOMSG);
    CHECK_FAILS("of type 0", send(id, 0, "x", 0), EINVAL);
    CHECK_FAILS("too long", msgsnd(id, &message, 8193, 0), EINVAL);
    CHECK("sent", send(id, 4, "four", 0) == 0 && send(id, 2, "two", 0) == 0 && send(id, 3, "three", 0) == 0 &&
                      send(id, 2, "two again", 0) == 0);
    struct msqid_ds about;
    MUST(msgctl(id, IPC_STAT, &about) == 0);
    CHECK("its description", about.msg_qnum == 4 && about.__msg_cbytes == 21 && about.msg_qbytes == 16384 &&
                                 about.msg_lspid == getpid() && about.msg_lrpid == 0 && about.msg_rtime == 0);
    CHECK("the first of a type", takes(id, 2, 0, "two", 2));
    CHECK("any but a type", takes(id, 4, MSG_EXCEPT, "three", 3));
    CHECK("the lowest type", takes(id, -3, 0, "two again", 2));
    CHECK_FAILS("no lower one", msgrcv(id, &message, 64, -3, IPC_NOWAIT), ENOMSG);
    CHECK_FAILS("too small a place", msgrcv(id, &message, 2, 0, 0), E2BIG);
    CHECK("cut", msgrcv(id, &message, 2, 0, MSG_NOERROR) == 2 && memcmp(message.text, "fo", 2) == 0);
    pid_t child = fork();
    if (child == 0)
        _exit(takes(id, 9, 0, "for the child", 9) && send(id, 1, "answer", 0) == 0 ? 0 : 1);
    CHECK("a child answers", send(id, 9, "for the child", 0) == 0 && takes(id, 1, 0, "answer", 1) && exits(child, 0));
    static struct {
        long type;
        char text[8192];
    } large = {.type = 1};
    CHECK("filled", msgsnd(id, &large, 8192, 0) == 0 && msgsnd(id, &large, 8192, 0) == 0);
    CHECK_FAILS("full", msgsnd(id, &large, 1, IPC_NOWAIT), EAGAIN);
    child = fork();
    if (child == 0)
        _exit(send(id, 5, "when there is room", 0) == 0 ? 0 : 1);
    CHECK("room made", msgrcv(id, &large, 8192, 1, 0) == 8192 && exits(child, 0));
    CHECK("it came", takes(id, 5, 0, "when there is room", 5));
    child = fork();
    if (child == 0)
        _exit(msgrcv(id, &large, 8192, 77, 0) == -1 && errno == EIDRM ? 0 : 1);
    struct timespec little = {0, 30000000};
    nanosleep(&little, NULL);
    CHECK("the queue goes", msgctl(id, IPC_RMID, NULL) == 0);
    int status = -1;
    /* It may come only after the queue has gone. */
    CHECK("its reader hears of it", waitpid(child, &status, 0) == child && WIFEXITED(status));
    CHECK_FAILS("gone", msgctl(id, IPC_STAT, &about), EINVAL);
}

/* Another user: the superuser may have as many processes as there are. */
static void processes_of_a_user(void) {
    pid_t child = fork();
    if (child == 0) {
        struct rlimit few = {3, 3};
        if (setrlimit(RLIMIT_NPROC, &few) != 0 || setuid(54321) != 0)
            _exit(getuid() == 0 ? 9 : 2);
        pid_t first = fork();
        if (first == 0)
            pause();
        pid_t second = fork();
        if (second == 0)
            pause();
        int refused = first > 0 && second > 0 && fork() == -1 && errno == EAGAIN;
        kill(second, SIGKILL);
        waitpid(second, NULL, 0);
        pid_t third = fork();
        if (third == 0)
            _exit(0);
        int again = third > 0 && exits(third, 0);
        kill(first, SIGKILL);
        waitpid(first, NULL, 0);
        _exit(!refused ? 3 : !again ? 4 : 0);
    }
    int status = -1;
    waitpid(child, &status, 0);
    int code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    CHECK_WITH("a user's processes are limited", code == 0, code);
}

int main(void) {
    sets();
    contended();
    messages();
    if (getuid() == 0)
        processes_of_a_user();
    return check_result();
}
