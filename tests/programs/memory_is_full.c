/* Other processes take all memory that there is. Whoever has what it needs goes on, the system has room for what it is asked
 * for meanwhile, and when they have ended there is memory again. Only under Cloak: natively it would be all of the host's. */
#include "check.h"
#include <signal.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096ul
#define TAKERS 3
#define PIPES 400
#define LEAST 50
#define ROOM (32ul << 20)

extern char **environ;
static int ends[PIPES][2];

static void on_full(int number) {
    (void)number;
    if (write(1, "f", 1) != 1)
        _exit(4);
    for (;;)
        pause();
}

/* Page after page until there is none, once all others are ready for it: who is being started when memory is full is killed. */
static int take_all(void) {
    char byte;
    MUST(signal(SIGBUS, on_full) != SIG_ERR);
    MUST(write(1, "r", 1) == 1 && read(0, &byte, 1) == 1);
    for (;;) {
        char *more = mmap(NULL, ROOM, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        MUST(more != MAP_FAILED);
        for (unsigned long at = 0; at < ROOM; at += PAGE)
            more[at] = 1;
    }
}

/* What the system keeps for each is its own memory, of which it has some for a time. */
static int pipes_made(int first, int count) {
    char text[64] = "in the pipe", got[64];
    int made = 0;
    while (made < count && pipe(ends[first + made]) == 0)
        made++;
    if (made < count && errno != ENOMEM)
        return -1;
    for (int i = first; i < first + made; i++)
        if (write(ends[i][1], text, sizeof text) != sizeof text || read(ends[i][0], got, sizeof got) != sizeof got ||
            memcmp(got, text, sizeof got) != 0)
            return -1;
    return made;
}

int main(int argc, char **argv) {
    if (argc > 1 && strcmp(argv[1], "take") == 0)
        return take_all();
    int told[2], begin[2], status;
    char byte;
    pid_t takers[TAKERS];
    /* From here on this process has all pages that it needs. */
    memset(ends, -1, sizeof ends);
    MUST(pipe(told) == 0 && pipe(begin) == 0 && kill(getpid(), 0) == 0 && waitpid(-1, &status, 0) == -1);
    CHECK("a pipe", pipes_made(0, 1) == 1);

    posix_spawn_file_actions_t actions;
    MUST(posix_spawn_file_actions_init(&actions) == 0);
    MUST(posix_spawn_file_actions_adddup2(&actions, begin[0], 0) == 0);
    MUST(posix_spawn_file_actions_adddup2(&actions, told[1], 1) == 0);
    char *arguments[] = {argv[0], "take", NULL};
    for (int i = 0; i < TAKERS; i++)
        MUST(posix_spawn(&takers[i], "/proc/self/exe", &actions, NULL, arguments, environ) == 0);
    for (int i = 0; i < TAKERS; i++)
        MUST(read(told[0], &byte, 1) == 1 && byte == 'r');
    MUST(write(begin[1], "bbb", TAKERS) == TAKERS);
    for (int i = 0; i < TAKERS; i++)
        MUST(read(told[0], &byte, 1) == 1 && byte == 'f');

    int made = pipes_made(1, PIPES - 1);
    CHECK_WITH("pipes while memory is full", made >= LEAST, made);
    for (int i = 0; i < TAKERS; i++) {
        MUST(kill(takers[i], SIGKILL) == 0 && waitpid(takers[i], &status, 0) == takers[i]);
        CHECK("one that took it is killed", WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    }
    char *room = mmap(NULL, ROOM, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    MUST(room != MAP_FAILED);
    for (unsigned long at = 0; at < ROOM; at += PAGE)
        room[at] = (char)(at / PAGE);
    int same = 1;
    for (unsigned long at = 0; at < ROOM; at += PAGE)
        same &= room[at] == (char)(at / PAGE);
    CHECK("there is memory again", same);
    return check_result();
}
