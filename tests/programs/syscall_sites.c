/* SYSCALL instructions in awkward places. A system that rewrites them must keep each of these working: what lies before
 * and after, jumps into and behind the instruction, the red zone, flags, and a program that looks at its own code.
 *
 * A program that reads its own code as data sees the rewritten instructions: no x86 machine without protection keys can
 * map code that runs but reads as something else. What must hold: nothing but the code around a SYSCALL differs, and the
 * file is untouched. With the argument `as-it-was` the program demands its own bytes; that holds where nothing rewrites. */
#include "check.h"
#include <fcntl.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { REPEATS = 300 };

/* site_plain: the common shape. site_plain_at: its SYSCALL, called directly with rax set by the caller.
 * site_loop: the instruction after SYSCALL is a jump target. site_tight: two SYSCALLs back to back.
 * site_end: RET right behind, then a byte sequence that must not run. site_shared: two ways into one SYSCALL. */
__asm__(".text\n"
        ".globl site_plain, site_plain_at, site_loop, site_tight, site_end, site_shared_a, site_shared_b, site_red\n"
        ".globl site_registers, site_flags, site_prefixed, sites_end\n"
        ".p2align 4\n"
        "site_plain: mov $39, %eax\n"
        "site_plain_at: syscall\n ret\n"
        "site_loop: mov $3, %r8d\n xor %r9d, %r9d\n mov $39, %eax\n syscall\n"
        "1: dec %r8d\n inc %r9d\n test %r8d, %r8d\n jnz 1b\n add %r9, %rax\n ret\n"
        "site_tight: mov $39, %eax\n syscall\n mov %rax, %r8\n mov $39, %eax\n syscall\n .byte 0x0f, 0x05\n mov %r8, %rax\n ret\n"
        "site_end: mov $39, %eax\n syscall\n ret\n ud2\n ud2\n"
        "site_shared_a: mov $39, %eax\n jmp 2f\n"
        "site_shared_b: mov $102, %eax\n nop\n"
        "2: syscall\n ret\n"
        /* Sixteen words in the red zone, across the call. */
        "site_red: mov $16, %ecx\n 3: mov %rcx, %rdx\n imul $0x1357, %rdx, %rdx\n neg %rcx\n mov %rdx, (%rsp,%rcx,8)\n neg %rcx\n"
        " dec %ecx\n jnz 3b\n mov $39, %eax\n syscall\n xor %eax, %eax\n mov $16, %ecx\n"
        "4: neg %rcx\n mov (%rsp,%rcx,8), %rdx\n neg %rcx\n mov %rcx, %rsi\n imul $0x1357, %rsi, %rsi\n cmp %rsi, %rdx\n"
        " je 5f\n inc %eax\n 5: dec %ecx\n jnz 4b\n ret\n"
        /* Every register but rax, rcx and r11 is as before: rdi points at 12 words to load and 12 to store. */
        "site_registers: push %rbx\n push %rbp\n push %r12\n push %r13\n push %r14\n push %r15\n push %rdi\n mov %rdi, %rax\n"
        " mov 0(%rax), %rbx\n mov 8(%rax), %rbp\n mov 16(%rax), %rdx\n mov 24(%rax), %rsi\n mov 32(%rax), %rdi\n"
        " mov 40(%rax), %r8\n mov 48(%rax), %r9\n mov 56(%rax), %r10\n mov 64(%rax), %r12\n mov 72(%rax), %r13\n"
        " mov 80(%rax), %r14\n mov 88(%rax), %r15\n mov $39, %eax\n syscall\n pop %rax\n"
        " mov %rbx, 96(%rax)\n mov %rbp, 104(%rax)\n mov %rdx, 112(%rax)\n mov %rsi, 120(%rax)\n mov %rdi, 128(%rax)\n"
        " mov %r8, 136(%rax)\n mov %r9, 144(%rax)\n mov %r10, 152(%rax)\n mov %r12, 160(%rax)\n mov %r13, 168(%rax)\n"
        " mov %r14, 176(%rax)\n mov %r15, 184(%rax)\n pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbp\n pop %rbx\n ret\n"
        /* Carry, zero, sign, overflow and direction as before. */
        "site_flags: push %rdi\n popf\n mov $39, %eax\n syscall\n pushf\n pop %rax\n cld\n ret\n"
        /* A REX prefix in front is legal and does nothing. */
        "site_prefixed: mov $39, %eax\n .byte 0x48, 0x0f, 0x05\n ret\n"
        "sites_end: nop\n");

long site_plain(void), site_loop(void), site_tight(void), site_end(void), site_shared_a(void), site_shared_b(void);
long site_red(void), site_registers(uint64_t *), site_flags(uint64_t), site_prefixed(void);
extern const char site_plain_at[], sites_end[];

static long call_at(const void *at, long number) {
    long result = number;
    __asm__ volatile("call *%1" : "+a"(result) : "r"(at) : "rcx", "r11", "memory");
    return result;
}

static int all_sites(long pid, long uid) {
    uint64_t words[24];
    int wrong = 0;
    for (int i = 0; i < 12; i++)
        words[i] = 0x0101010101010101u * (unsigned)(i + 1);
    for (int i = 0; i < REPEATS; i++) {
        wrong += site_plain() != pid;
        wrong += call_at(site_plain_at, SYS_getuid) != uid || call_at(site_plain_at, SYS_getpid) != pid;
        wrong += site_loop() != pid + 3;
        wrong += site_tight() != pid;
        wrong += site_end() != pid;
        wrong += site_shared_a() != pid || site_shared_b() != uid;
        wrong += site_red() != 0;
        memset(words + 12, 0, 96);
        site_registers(words);
        wrong += memcmp(words, words + 12, 96) != 0;
        wrong += (site_flags(0x202 | 0x8d5) & 0x8d5) != 0x8d5 || (site_flags(0x202) & 0x8d5) != 0;
        wrong += site_prefixed() != pid;
    }
    return wrong;
}

static void *many(void *unused) {
    (void)unused;
    return (void *)(long)all_sites(getpid(), getuid());
}

enum { NEAR_BEFORE = 7, NEAR_BEHIND = 11, SITES_MAX = 4096 };

/* How many bytes changed that belong to no SYSCALL, the load of its number before it, or the instructions behind it. */
static long changed_elsewhere(const unsigned char *before, const unsigned char *now, size_t size) {
    static unsigned char near[SITES_MAX];
    long changed = 0;
    for (size_t i = 0; i + 1 < size; i++)
        if (before[i] == 0x0f && before[i + 1] == 0x05)
            for (size_t j = i < NEAR_BEFORE ? 0 : i - NEAR_BEFORE; j < size && j < i + NEAR_BEHIND; j++)
                near[j] = 1;
    for (size_t i = 0; i < size; i++)
        changed += before[i] != now[i] && !near[i];
    return changed;
}

static void own_text(const unsigned char *before, size_t size, int exactly) {
    long changed = changed_elsewhere(before, (void *)site_plain, size);
    CHECK_WITH("its own code reads as it was, but for calls", changed == 0, changed);
    if (exactly)
        CHECK("its own code reads as it was", memcmp(before, (void *)site_plain, size) == 0);
    /* The file's own bytes, found by their place in the mapping. */
    static unsigned char image[4 << 20];
    int fd = open("/proc/self/exe", O_RDONLY);
    ssize_t length = read(fd, image, sizeof image);
    CHECK("and its file has it so", length > 0 && memmem(image, (size_t)length, before, size) != NULL);
    close(fd);
}

typedef long (*code)(void);

static void put(unsigned char *page, size_t at, int number, int add) {
    const unsigned char text[] = {0xb8, (unsigned char)number, 0, 0, 0, 0x0f, 0x05, 0x48, 0x83, 0xc0, (unsigned char)add, 0xc3};
    memcpy(page + at, text, sizeof text);
}

static void made_at_run_time(long pid, long uid) {
    unsigned char *page = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    MUST(page != MAP_FAILED);
    int wrong = 0;
    for (int round = 0; round < 20; round++) {
        MUST(mprotect(page, 8192, PROT_READ | PROT_WRITE) == 0);
        put(page, 100, round % 2 ? 39 : 102, round);
        MUST(mprotect(page, 8192, PROT_READ | PROT_EXEC) == 0);
        for (int i = 0; i < 20; i++)
            wrong += ((code)(page + 100))() != (round % 2 ? pid : uid) + round;
    }
    CHECK_WITH("code rewritten between calls", wrong == 0, wrong);
    MUST(mprotect(page, 8192, PROT_READ | PROT_WRITE) == 0);
    for (int at = 4084; at < 4096; at++) {
        put(page, (size_t)at, 39, 1);
        MUST(mprotect(page, 8192, PROT_READ | PROT_EXEC) == 0);
        for (int i = 0; i < 20; i++)
            wrong += ((code)(page + at))() != pid + 1;
        MUST(mprotect(page, 8192, PROT_READ | PROT_WRITE) == 0);
    }
    CHECK_WITH("a SYSCALL across or beside a page's end", wrong == 0, wrong);
    MUST(mprotect(page, 8192, PROT_READ | PROT_WRITE | PROT_EXEC) == 0);
    for (int round = 0; round < 20; round++) {
        put(page, 200, round % 2 ? 39 : 102, round);
        for (int i = 0; i < 20; i++)
            wrong += ((code)(page + 200))() != (round % 2 ? pid : uid) + round;
    }
    CHECK_WITH("code rewritten in a page that is writable and executable", wrong == 0, wrong);
    put(page, 200, 39, 0);
    unsigned char copy[12];
    ((code)(page + 200))();
    memcpy(copy, page + 200, sizeof copy);
    CHECK("code copied elsewhere works there",
          copy[5] == 0x0f && copy[6] == 0x05 && (memcpy(page + 300, copy, sizeof copy), ((code)(page + 300))() == pid));
    unsigned char *old = page;
    page = mremap(page, 8192, 8192, MREMAP_MAYMOVE | MREMAP_FIXED, mmap(NULL, 8192, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    CHECK("code that moved works", page != MAP_FAILED && page != old && ((code)(page + 200))() == pid);
    munmap(page, 8192);
    page = mmap(page, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    put(page, 200, 102, 5);
    MUST(mprotect(page, 8192, PROT_READ | PROT_EXEC) == 0);
    CHECK("other code at the same place works", ((code)(page + 200))() == uid + 5);
}

int main(int argc, char **argv) {
    long pid = getpid(), uid = getuid();
    static unsigned char before[SITES_MAX];
    size_t size = (size_t)(sites_end - (char *)site_plain);
    MUST(size <= sizeof before);
    memcpy(before, (void *)site_plain, size);
    CHECK_WITH("every site, 300 times", all_sites(pid, uid) == 0, 0);
    pthread_t threads[8];
    long wrong = 0;
    for (int i = 0; i < 8; i++)
        pthread_create(&threads[i], NULL, many, NULL);
    for (int i = 0; i < 8; i++) {
        void *result;
        pthread_join(threads[i], &result);
        wrong += (long)result;
    }
    CHECK_WITH("every site, by eight threads", wrong == 0, wrong);
    own_text(before, size, argc > 1 && strcmp(argv[1], "as-it-was") == 0);
    made_at_run_time(pid, uid);
    CHECK_FAILS("a call that is none", syscall(100000), ENOSYS);
    CHECK_FAILS("a negative call", syscall(-5), ENOSYS);
    return check_result();
}
