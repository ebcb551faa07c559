/* System calls in text that nobody has read yet, each with the page before it missing, too: whoever makes such a site faster
 * has to wait for that page. Two processes do nothing but fork meanwhile. */
#include "check.h"
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

/* Further than what is read ahead. */
#define STRIDE (1ul << 20)
#define SITES 48
#define FORKERS 2

/* Forks until it is killed. */
static void fork_on(void) {
    for (;;) {
        pid_t child = fork();
        if (child == 0)
            _exit(0);
        if (child < 0 || waitpid(child, NULL, 0) != child)
            _exit(1);
    }
}

int main(int argc, char **argv) {
    /* syscall; ret */
    static const unsigned char code[] = {0x0f, 0x05, 0xc3};
    char path[4096];
    snprintf(path, sizeof path, "%s.text", argc > 1 ? argv[1] : "/tmp/forks_while_patching");
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0700), status;
    MUST(fd >= 0 && ftruncate(fd, (SITES + 1) * STRIDE) == 0);
    for (unsigned long i = 1; i <= SITES; i++)
        MUST(pwrite(fd, code, sizeof code, i * STRIDE) == sizeof code);
    char *text = mmap(NULL, (SITES + 1) * STRIDE, PROT_READ | PROT_EXEC, MAP_PRIVATE, fd, 0);
    MUST(text != MAP_FAILED);

    pid_t forkers[FORKERS];
    for (int i = 0; i < FORKERS; i++) {
        forkers[i] = fork();
        MUST(forkers[i] >= 0);
        if (forkers[i] == 0)
            fork_on();
    }
    int right = 0;
    for (unsigned long i = 1; i <= SITES; i++) {
        long result = SYS_getpid;
        __asm__ volatile("call *%1" : "+a"(result) : "r"(text + i * STRIDE) : "rcx", "r11", "memory");
        right += result == getpid();
    }
    CHECK_WITH("each call in fresh text is served", right == SITES, right);
    for (int i = 0; i < FORKERS; i++) {
        MUST(kill(forkers[i], SIGKILL) == 0 && waitpid(forkers[i], &status, 0) == forkers[i]);
        CHECK("whoever forked did so to the end", WIFSIGNALED(status));
    }
    MUST(unlink(path) == 0);
    return check_result();
}
