/* A launcher that takes the command line of `cloak run` and runs the program natively. Its own name says how:
 *
 *   plain         as it is; with it the whole harness runs without a cloak binary
 *   no-fork       refusing new processes with ENOSYS, as Cloak does until it serves them: tells which tests need one
 *   corrupt, wrong-exit, silent-death, hang
 *                 wrong on purpose; the harness's own tests check that each is noticed */
#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static void refuse_processes(void) {
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        /* clone3 takes its flags by pointer, which a filter cannot follow; libc then falls back to clone. */
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_clone3, 5, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_fork, 4, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_vfork, 3, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_clone, 0, 3),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[0])),
        BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, CLONE_THREAD, 1, 0),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOSYS),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {.len = sizeof filter / sizeof *filter, .filter = filter};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0) {
        perror("stand-in: seccomp");
        exit(125);
    }
}

static void misbehave(const char *how) {
    if (strcmp(how, "no-fork") == 0) {
        refuse_processes();
    } else if (strcmp(how, "corrupt") == 0) {
        if (write(1, "?", 1) != 1)
            exit(125);
    } else if (strcmp(how, "silent-death") == 0) {
        raise(SIGKILL);
    } else if (strcmp(how, "hang") == 0) {
        for (;;)
            pause();
    } else if (strcmp(how, "wrong-exit") == 0) {
        int status;
        pid_t child = fork();
        if (child != 0) {
            waitpid(child, &status, 0);
            exit((WEXITSTATUS(status) + 1) & 0xff);
        }
    }
}

int main(int argc, char **argv) {
    const char *own_name = strrchr(argv[0], '/') ? strrchr(argv[0], '/') + 1 : argv[0];
    if (argc < 2 || strcmp(argv[1], "run") != 0) {
        fprintf(stderr, "stand-in: only `run` is known\n");
        return 125;
    }
    clearenv();
    int at = 2;
    for (; at < argc && strcmp(argv[at], "--") != 0; at++) {
        int takes_value = strcmp(argv[at], "--stats") != 0 && strcmp(argv[at], "--trace") != 0;
        if (strcmp(argv[at], "--env") == 0 && at + 1 < argc)
            putenv(argv[at + 1]);
        if (strcmp(argv[at], "--workdir") == 0 && at + 1 < argc && chdir(argv[at + 1]) != 0) {
            perror(argv[at + 1]);
            return 125;
        }
        at += takes_value;
    }
    if (at + 1 >= argc) {
        fprintf(stderr, "stand-in: no program after `--`\n");
        return 125;
    }
    misbehave(own_name);
    execvp(argv[at + 1], argv + at + 1);
    int error = errno;
    fprintf(stderr, "stand-in: %s: %s\n", argv[at + 1], strerror(error));
    return error == ENOENT ? 127 : 126;
}
