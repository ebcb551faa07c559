/* What a program finds when it starts: arguments, environment, auxiliary vector, standard streams, exit code. */
#include "check.h"
#include <sys/auxv.h>
#include <unistd.h>

extern char **environ;

static int in_own_text(unsigned long address) {
    extern char __executable_start, etext;
    return address >= (unsigned long)&__executable_start && address < (unsigned long)&etext;
}

static __thread int thread_local_value = 42;

int main(int argc, char **argv) {
    printf("argc %d\n", argc);
    for (int i = 1; i < argc; i++)
        printf("argv[%d] \"%s\"\n", i, argv[i]);
    CHECK("argv ends with a null", argv[argc] == NULL);
    CHECK("environ follows argv", environ == argv + argc + 1);
    const char *greeting = getenv("CLOAK_TEST_GREETING");
    printf("greeting %s\n", greeting ? greeting : "(none)");
    CHECK("page size", getauxval(AT_PAGESZ) == 4096 && sysconf(_SC_PAGESIZE) == 4096);
    CHECK("AT_RANDOM points at bytes", getauxval(AT_RANDOM) != 0);
    CHECK("AT_PHDR and AT_PHNUM", getauxval(AT_PHDR) != 0 && getauxval(AT_PHNUM) > 2);
    CHECK("AT_ENTRY lies in the program", in_own_text(getauxval(AT_ENTRY)));
    CHECK("AT_SECURE is off", getauxval(AT_SECURE) == 0);
    CHECK("AT_EXECFN names a program", strstr((char *)getauxval(AT_EXECFN), "hello") != NULL);
    CHECK("AT_CLKTCK", getauxval(AT_CLKTCK) == 100 && sysconf(_SC_CLK_TCK) == 100);
    CHECK("AT_UID is getuid", getauxval(AT_UID) == getuid() && getauxval(AT_EGID) == getegid());
    CHECK("thread-local storage", thread_local_value == 42);
    CHECK("floating point", 0.1 + 0.2 > 0.3 && (int)(2.5 * 4) == 10);
    char exe[4096];
    ssize_t length = readlink("/proc/self/exe", exe, sizeof exe - 1);
    exe[length < 0 ? 0 : length] = 0;
    CHECK("/proc/self/exe is this program", strlen(exe) > 6 && strcmp(exe + strlen(exe) - 6, "/hello") == 0);
    fprintf(stderr, "a line on standard error\n");
    if (checks_failed != 0)
        return 1;
    return argc > 1 ? atoi(argv[1]) : 0;
}
