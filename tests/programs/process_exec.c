/* Another program in a process: what it finds, what is gone, what stays; scripts; failures. */
#include "check.h"
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

static int result(pid_t child) {
    int status = -1;
    return waitpid(child, &status, 0) == child && WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void on_signal(int signal) { (void)signal; }

/* The second program: says what it finds as one exit code. */
static int second(int argc, char **argv) {
    int wrong = 0;
    char link[300] = "", word[20];
    ssize_t len = readlink("/proc/self/exe", link, sizeof link - 1);
    sigset_t mask, pending;
    struct sigaction action;
    stack_t alt;
    if (argc != 5 || strcmp(argv[2], "two words") || strcmp(argv[3], "") || strcmp(argv[4], "ünï"))
        wrong |= 1;
    if (!getenv("ONLY") || strcmp(getenv("ONLY"), "this") || environ[1])
        wrong |= 2;
    if (len <= 0 || !strstr(link, "process_exec"))
        wrong |= 4;
    if (fcntl(50, F_GETFD) != -1 || fcntl(51, F_GETFD) != 0)
        wrong |= 8;
    sigprocmask(SIG_BLOCK, NULL, &mask);
    if (!sigismember(&mask, SIGUSR1) || sigismember(&mask, SIGUSR2))
        wrong |= 16;
    sigpending(&pending);
    if (!sigismember(&pending, SIGUSR1))
        wrong |= 32;
    sigaction(SIGHUP, NULL, &action);
    int ignored = action.sa_handler == SIG_IGN;
    sigaction(SIGTERM, NULL, &action);
    sigaltstack(NULL, &alt);
    if (!ignored || action.sa_handler != SIG_DFL || !(alt.ss_flags & SS_DISABLE))
        wrong |= 64;
    int number = open("/proc/self/comm", O_RDONLY);
    len = read(number, word, sizeof word);
    if (getauxval(AT_PAGESZ) != 4096 || !getauxval(AT_RANDOM) || !getauxval(AT_ENTRY) || len <= 0 ||
        strncmp(word, "process_exec", 12))
        wrong |= 128;
    return wrong;
}

static void *exec_in_a_thread(void *program) {
    execl(program, "process_exec", "leader", NULL);
    _exit(99);
}

static void *wait_for_ever(void *unused) {
    for (;;)
        pause();
    return unused;
}

static void write_script(const char *path, const char *text) {
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0755);
    MUST(fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text) && close(fd) == 0);
}

int main(int argc, char **argv) {
    if (argc > 1 && !strcmp(argv[1], "second"))
        return second(argc, argv);
    if (argc > 1 && !strcmp(argv[1], "leader"))
        return getpid() == syscall(SYS_gettid) ? 12 : 13;
    MUST(argc > 1);
    char self[300] = "", text[400], out[100];
    MUST(readlink("/proc/self/exe", self, sizeof self - 1) > 0);
    char *environment[] = {"ONLY=this", NULL};
    char *arguments[] = {"process_exec", "second", "two words", "", "ünï", NULL};

    pid_t child = fork();
    if (child == 0) {
        sigset_t block;
        sigemptyset(&block);
        sigaddset(&block, SIGUSR1);
        sigprocmask(SIG_BLOCK, &block, NULL);
        raise(SIGUSR1);
        signal(SIGHUP, SIG_IGN);
        signal(SIGTERM, on_signal);
        stack_t alt = {.ss_sp = malloc(65536), .ss_size = 65536};
        sigaltstack(&alt, NULL);
        dup3(1, 50, O_CLOEXEC);
        dup2(1, 51);
        execve(self, arguments, environment);
        _exit(200);
    }
    int code = result(child);
    CHECK_WITH("what a program finds", code == 0, code);

    child = vfork();
    if (child == 0) {
        execl("/bin/sh", "sh", "-c", "exit 21", NULL);
        _exit(200);
    }
    CHECK("vfork and exec", result(child) == 21);
    char *true_arguments[] = {"sh", "-c", "exit 22", NULL};
    MUST(posix_spawn(&child, "/bin/sh", NULL, NULL, true_arguments, environ) == 0);
    CHECK("posix_spawn", result(child) == 22);
    CHECK_WITH("posix_spawn of nothing", posix_spawn(&child, "/nowhere", NULL, NULL, true_arguments, environ) == ENOENT, 0);
    CHECK("system", WEXITSTATUS(system("exit 23")) == 23);
    FILE *pipe = popen("echo from a pipe", "r");
    CHECK("popen", pipe && fgets(out, sizeof out, pipe) && !strcmp(out, "from a pipe\n") && pclose(pipe) == 0);

    child = fork();
    if (child == 0) {
        pthread_t threads[3];
        pthread_create(&threads[0], NULL, wait_for_ever, NULL);
        pthread_create(&threads[1], NULL, wait_for_ever, NULL);
        pthread_create(&threads[2], NULL, exec_in_a_thread, self);
        wait_for_ever(NULL);
    }
    CHECK("exec in a thread", result(child) == 12);

    snprintf(text, sizeof text, "#!/bin/sh\nexit $(( $1 + $# ))\n");
    write_script(argv[1], text);
    child = fork();
    if (child == 0) {
        execl(argv[1], argv[1], "30", "x", NULL);
        _exit(200);
    }
    CHECK("a script", result(child) == 32);
    snprintf(text, sizeof text, "#! /bin/sh -e\nfalse\nexit 7\n");
    write_script(argv[1], text);
    child = fork();
    if (child == 0) {
        execl(argv[1], argv[1], NULL);
        _exit(200);
    }
    CHECK("its interpreter's argument", result(child) == 1);
    int fd = open("/bin/sh", O_PATH | O_CLOEXEC);
    child = fork();
    if (child == 0) {
        char *plain[] = {"sh", "-c", "exit 41", NULL};
        syscall(SYS_execveat, fd, "", plain, environ, AT_EMPTY_PATH);
        _exit(200);
    }
    CHECK("execveat of a descriptor", result(child) == 41);
    close(fd);

    write_script(argv[1], "neither ELF nor script");
    char *one[] = {"x", NULL};
    CHECK_FAILS("no program", execve(argv[1], one, environ), ENOEXEC);
    chmod(argv[1], 0644);
    CHECK_FAILS("not executable", execve(argv[1], one, environ), EACCES);
    CHECK_FAILS("a directory", execve("/usr", one, environ), EACCES);
    CHECK_FAILS("no such file", execve("/no/such/file", one, environ), ENOENT);
    CHECK_FAILS("a bad address", syscall(SYS_execve, "/bin/sh", 1L, environ), EFAULT);
    write_script(argv[1], "#!/no/such/interpreter\n");
    chmod(argv[1], 0755);
    CHECK_FAILS("no such interpreter", execve(argv[1], one, environ), ENOENT);
    unlink(argv[1]);
    return check_result();
}
