/* What a program asks of its machine: clocks, sleep, randomness, identity, limits, processors, and the parts of /proc,
 * /sys and /dev that run-times read. Values differ from run to run, so only what must hold of them is printed. */
#include "check.h"
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysinfo.h>
#include <sys/time.h>
#include <sys/times.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

static int64_t now_ns(clockid_t clock) {
    struct timespec at;
    MUST(clock_gettime(clock, &at) == 0);
    return at.tv_sec * 1000000000LL + at.tv_nsec;
}

static int64_t now_by_call(clockid_t clock) {
    struct timespec at;
    MUST(syscall(SYS_clock_gettime, clock, &at) == 0);
    return at.tv_sec * 1000000000LL + at.tv_nsec;
}

static int64_t shared_last;
static int backward;

static void *watch_clock(void *unused) {
    (void)unused;
    for (int i = 0; i < 20000; i++) {
        int64_t seen = __atomic_load_n(&shared_last, __ATOMIC_ACQUIRE), now = i % 16 ? now_ns(CLOCK_MONOTONIC) : now_by_call(CLOCK_MONOTONIC);
        if (now < seen)
            __atomic_add_fetch(&backward, 1, __ATOMIC_RELAXED);
        while (seen < now && !__atomic_compare_exchange_n(&shared_last, &seen, now, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
            ;
    }
    return NULL;
}

static void clocks(void) {
    clockid_t all[] = {CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_MONOTONIC_RAW, CLOCK_BOOTTIME, CLOCK_REALTIME_COARSE, CLOCK_MONOTONIC_COARSE, CLOCK_PROCESS_CPUTIME_ID, CLOCK_THREAD_CPUTIME_ID};
    int wrong = 0;
    for (int i = 0; i < 8; i++) {
        int64_t last = now_ns(all[i]);
        for (int round = 0; round < 1000; round++) {
            int64_t now = round % 2 ? now_ns(all[i]) : now_by_call(all[i]);
            /* The vDSO and the call may round a coarse clock alike, never back. The wall clock may be set. */
            wrong += now < last && all[i] != CLOCK_REALTIME && all[i] != CLOCK_REALTIME_COARSE;
            last = now;
        }
    }
    CHECK_WITH("no clock goes back", wrong == 0, wrong);
    pthread_t threads[8];
    for (int i = 0; i < 8; i++)
        pthread_create(&threads[i], NULL, watch_clock, NULL);
    for (int i = 0; i < 8; i++)
        pthread_join(threads[i], NULL);
    CHECK_WITH("not between threads either", backward == 0, backward);
    CHECK("the wall clock is past 2024", now_ns(CLOCK_REALTIME) > 1704067200LL * 1000000000);
    struct timeval day;
    gettimeofday(&day, NULL);
    CHECK("gettimeofday and time agree with it", llabs(day.tv_sec - now_ns(CLOCK_REALTIME) / 1000000000) <= 5 && llabs(time(NULL) - day.tv_sec) <= 5);
    struct timespec resolution, brief = {.tv_nsec = 3000000}, due;
    CHECK("clock_getres", clock_getres(CLOCK_MONOTONIC, &resolution) == 0 && resolution.tv_nsec == 1);
    CHECK_FAILS("a clock that is none", syscall(SYS_clock_gettime, 99, &due), EINVAL);
    int64_t before = now_ns(CLOCK_MONOTONIC);
    CHECK("nanosleep sleeps as long as it must", nanosleep(&brief, NULL) == 0 && now_ns(CLOCK_MONOTONIC) - before >= 3000000);
    clock_gettime(CLOCK_MONOTONIC, &due);
    due.tv_sec += (due.tv_nsec + 2000000) / 1000000000;
    due.tv_nsec = (due.tv_nsec + 2000000) % 1000000000;
    CHECK("clock_nanosleep to a time", clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &due, NULL) == 0 && now_ns(CLOCK_MONOTONIC) >= due.tv_sec * 1000000000LL + due.tv_nsec);
    int64_t cpu = now_ns(CLOCK_PROCESS_CPUTIME_ID);
    volatile uint64_t sink = 0;
    for (int i = 0; i < 20000000; i++)
        sink += (uint64_t)i;
    CHECK("processor time grows with work", now_ns(CLOCK_PROCESS_CPUTIME_ID) > cpu && now_ns(CLOCK_THREAD_CPUTIME_ID) > 0);
    struct tms ticks;
    struct rusage usage;
    /* Their sum: Linux shares it out by what its ticks saw, which on a busy machine may be none in the program. */
    CHECK("times and getrusage", times(&ticks) != (clock_t)-1 && getrusage(RUSAGE_SELF, &usage) == 0 && usage.ru_maxrss > 0
        && usage.ru_utime.tv_sec + usage.ru_utime.tv_usec + usage.ru_stime.tv_sec + usage.ru_stime.tv_usec > 0);
}

static void randomness(void) {
    unsigned char one[64], two[64];
    CHECK("getrandom", getrandom(one, 64, 0) == 64 && getrandom(two, 64, GRND_NONBLOCK) == 64 && memcmp(one, two, 64) != 0);
    static unsigned char much[100000];
    int counts[256] = {0}, uneven = 0;
    CHECK("much of it", getrandom(much, sizeof much, 0) == sizeof much);
    for (size_t i = 0; i < sizeof much; i++)
        counts[much[i]]++;
    for (int i = 0; i < 256; i++)
        uneven += counts[i] < 200 || counts[i] > 600;
    CHECK_WITH("evenly spread", uneven == 0, uneven);
    CHECK_FAILS("a flag that is none", getrandom(one, 1, 0x100), EINVAL);
    int fd = open("/dev/urandom", O_RDONLY);
    CHECK("/dev/urandom", read(fd, two, 64) == 64 && memcmp(one, two, 64) != 0);
    close(fd);
}

static char *whole(const char *path) {
    static char text[200000];
    int fd = open(path, O_RDONLY);
    size_t length = 0;
    for (ssize_t got; fd >= 0 && (got = read(fd, text + length, sizeof text - 1 - length)) > 0;)
        length += (size_t)got;
    text[length] = 0;
    close(fd);
    return text;
}

static void files(void) {
    char *text = whole("/proc/self/maps");
    unsigned long start, end, here = (unsigned long)&files;
    char rights[5];
    int found = 0, stack = strstr(text, "[stack]") != NULL;
    for (char *line = text; line && *line; line = strchr(line, '\n') ? strchr(line, '\n') + 1 : NULL)
        if (sscanf(line, "%lx-%lx %4s", &start, &end, rights) == 3 && here >= start && here < end)
            found = strcmp(rights, "r-xp") == 0;
    CHECK("/proc/self/maps shows this code and the stack", found && stack);
    int pid = 0;
    CHECK("/proc/self/stat", sscanf(whole("/proc/self/stat"), "%d (machine) R", &pid) == 1 && pid == getpid());
    text = whole("/proc/self/status");
    CHECK("/proc/self/status", strstr(text, "Name:\tmachine\n") && strstr(text, "VmRSS:") && strstr(text, "Threads:\t1\n"));
    CHECK("/proc/self/cgroup", strstr(whole("/proc/self/cgroup"), ":/") != NULL);
    text = whole("/proc/meminfo");
    CHECK("/proc/meminfo", strstr(text, "MemTotal:") && strstr(text, "MemAvailable:"));
    text = whole("/proc/cpuinfo");
    CHECK("/proc/cpuinfo", strstr(text, "processor\t: 0") && strstr(text, "flags\t"));
    CHECK("/proc/stat", strncmp(whole("/proc/stat"), "cpu ", 4) == 0);
    char name[64], target[256] = {0};
    int fd = open("/etc/passwd", O_RDONLY);
    snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
    CHECK("/proc/self/fd", readlink(name, target, 255) > 0 && strcmp(target, "/etc/passwd") == 0);
    close(fd);
    CHECK("/proc/self/comm", strcmp(whole("/proc/self/comm"), "machine\n") == 0);
    CHECK("/sys/devices/system/cpu/online", strncmp(whole("/sys/devices/system/cpu/online"), "0", 1) == 0);
    unsigned char zeros[100];
    memset(zeros, 1, 100);
    fd = open("/dev/zero", O_RDONLY);
    CHECK("/dev/zero", read(fd, zeros, 100) == 100 && zeros[0] == 0 && zeros[99] == 0);
    close(fd);
    fd = open("/dev/null", O_RDWR);
    struct stat status;
    CHECK("/dev/null", write(fd, "gone", 4) == 4 && read(fd, zeros, 1) == 0 && fstat(fd, &status) == 0 && S_ISCHR(status.st_mode));
    close(fd);
    fd = open("/dev/full", O_WRONLY);
    CHECK_FAILS("/dev/full", write(fd, "x", 1), ENOSPC);
    close(fd);
    snprintf(name, sizeof name, "/cloak-shm-%d", getpid());
    fd = shm_open(name, O_RDWR | O_CREAT | O_EXCL, 0600);
    MUST(fd >= 0 && ftruncate(fd, 8192) == 0);
    char *one = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0), *two = mmap(NULL, 8192, PROT_READ, MAP_SHARED, fd, 0);
    CHECK("/dev/shm: two mappings are one memory", one != MAP_FAILED && two != MAP_FAILED && (one[5000] = 9, two[5000] == 9));
    CHECK("removed", shm_unlink(name) == 0 && close(fd) == 0);
    fd = memfd_create("cloak", MFD_CLOEXEC);
    CHECK("memfd_create", fd >= 0 && write(fd, "mem", 3) == 3 && lseek(fd, 0, SEEK_END) == 3);
    close(fd);
}

static void identity(void) {
    struct utsname name;
    CHECK("uname", uname(&name) == 0 && strcmp(name.sysname, "Linux") == 0 && strcmp(name.machine, "x86_64") == 0 && atoi(name.release) >= 4);
    CHECK("getpid and gettid", getpid() > 0 && syscall(SYS_gettid) == getpid() && getppid() >= 0);
    uid_t real, effective, saved;
    CHECK("getresuid", getresuid(&real, &effective, &saved) == 0 && real == getuid() && effective == geteuid());
    cpu_set_t set;
    CHECK("processors", sched_getaffinity(0, sizeof set, &set) == 0 && CPU_COUNT(&set) >= 1 && sysconf(_SC_NPROCESSORS_ONLN) >= 1);
    unsigned cpu = 99;
    CHECK("getcpu is one of them", syscall(SYS_getcpu, &cpu, NULL, NULL) == 0 && cpu < CPU_SETSIZE && CPU_ISSET(cpu, &set));
    struct rlimit limit;
    CHECK("limits", getrlimit(RLIMIT_STACK, &limit) == 0 && limit.rlim_cur >= 1 << 20 && getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur >= 256);
    struct sysinfo info;
    CHECK("sysinfo", sysinfo(&info) == 0 && info.totalram > 0 && info.mem_unit > 0);
    char title[16];
    CHECK("PR_SET_NAME", prctl(PR_SET_NAME, "renamed") == 0 && prctl(PR_GET_NAME, title) == 0 && strcmp(title, "renamed") == 0);
    CHECK("sched_yield", sched_yield() == 0);
    char host[256];
    CHECK("gethostname", gethostname(host, sizeof host) == 0 && host[0] != 0);
}

int main(void) {
    clocks();
    randomness();
    files();
    identity();
    return check_result();
}
