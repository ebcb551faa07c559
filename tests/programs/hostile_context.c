/* A program that has taken its own libos over, which it may: both are at CPL 3 in one address space. It makes the
 * libos's kernel calls and uses its ports and its windows on memory, to reach what is another context's or the
 * kernel's. Each attack prints one line, `refused ATTACK` or `WORKED ATTACK`.
 *
 * `hostile_context MARKER-HALF MARKER-HALF` also searches all frames of its own for the marker that the halves make. The
 * first half must not fill a block of an allocator: the second one may follow it there. */
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE 4096ul
#define LIBOS_BASE 0x6f0000000000ul
#define LIBOS_VCPU (LIBOS_BASE + (64ul << 30))
#define LIBOS_PHYS (LIBOS_BASE + (128ul << 30))
#define BOOT_GPA 0x1000ul
#define BOOT_MAGIC 0x3142424b414f4c43ul /* CLOAKBB1 */
#define ADDRESS 0x000ffffffffff000ul
#define LARGE_BIT (1ul << 7)
#define HIGHEST (6ul << 30)

/* abi::boot */
struct header {
    uint64_t magic, version, start, syscall, syscall_stashed, upcall, kcall, boot_copy, probe;
};
enum { HEADER_WORDS = sizeof(struct header) / 8, BOOT_COPY = offsetof(struct header, boot_copy) / 8 };
struct block {
    uint32_t index, vcpus, first_vcpu, own_tables;
    uint64_t frames[2][2], segments[4][2];
    uint64_t table_pool, table_pool_end, table_pool_next, root, free_frames, libos_gpa;
};
/* abi::kcall */
enum { PAGE_OPS = 0, FLUSH = 1, KICK = 2, START = 3, SYSCALL_MODE = 5, SPACE_SWITCH = 7, SPACE_COPY = 9 };
enum { FRAME_ERROR = -3 };

static const struct header *header = (void *)LIBOS_BASE;
static const struct block *own;

/* At the one instruction from which the kernel takes calls; `where` is what it finds in RCX. */
static long kernel_call_with(uint64_t number, uint64_t first, uint64_t second, uint64_t where) {
    __asm__ volatile("lea -128(%%rsp), %%rsp; call *%[gate]; lea 128(%%rsp), %%rsp"
                     : "+a"(number), "+D"(first), "+S"(second), "+c"(where)
                     : [gate] "r"(header->kcall - 1)
                     : "rdx", "r8", "r9", "r10", "r11", "memory", "cc");
    return (long)number;
}

static long kernel_call(uint64_t number, uint64_t first, uint64_t second) {
    return kernel_call_with(number, first, second, 0);
}

static sigjmp_buf back;

static void on_fault(int signal) {
    (void)signal;
    siglongjmp(back, 1);
}

/* Whether an attempt comes to its end. */
static int survives(void (*attempt)(uint64_t, uint64_t), uint64_t first, uint64_t second) {
    if (sigsetjmp(back, 1) != 0) return 0;
    attempt(first, second);
    return 1;
}

static void peek(uint64_t at, uint64_t unused) { (void)*(volatile uint64_t *)at, (void)unused; }
static void poke(uint64_t at, uint64_t value) { *(volatile uint64_t *)at = value; }
static void out(uint64_t port, uint64_t value) {
    __asm__ volatile("outl %%eax, %%dx" : : "d"((uint16_t)port), "a"((uint32_t)value));
}
static void read_cr3(uint64_t a, uint64_t b) { __asm__ volatile("mov %%cr3, %%rax" : : "b"(a), "c"(b) : "rax"); }
static void read_msr(uint64_t number, uint64_t b) { __asm__ volatile("rdmsr" : : "c"(number), "b"(b) : "rax", "rdx"); }
static void no_interrupts(uint64_t a, uint64_t b) { __asm__ volatile("cli" : : "b"(a), "c"(b)); }
static void load_idt(uint64_t at, uint64_t b) { __asm__ volatile("lidt (%0)" : : "r"(at), "b"(b)); }

static void tell(const char *attack, int worked) {
    printf("%s %s\n", worked ? "WORKED" : "refused", attack);
    fflush(stdout);
}

static volatile uint64_t *window(uint64_t gpa) { return (volatile uint64_t *)(LIBOS_PHYS + gpa); }

static int is_own(uint64_t gpa) {
    for (int i = 0; i < 2; i++)
        if (gpa >= own->frames[i][0] && gpa < own->frames[i][1]) return 1;
    return 0;
}

static uint64_t step(uint64_t gpa) { return gpa < (8ul << 20) ? PAGE : 256 << 10; }

static int read_foreign(void) {
    for (uint64_t gpa = 0; gpa < HIGHEST; gpa += step(gpa))
        /* Its first root table is shown to it, to read. */
        if (!is_own(gpa) && gpa != own->root && survives(peek, (uint64_t)window(gpa), 0)) return 1;
    return 0;
}

/* One page operation: map LEN bytes from GPA on. The kernel takes it from the block of the vCPU that calls, whichever that
 * is: what another one's block holds is a former operation of the libos, and right. */
static long map(uint64_t va, uint64_t len, uint64_t gpa, uint64_t flags) {
    for (uint32_t vcpu = 0; vcpu < own->vcpus; vcpu++) {
        volatile uint64_t *op = (uint64_t *)(LIBOS_VCPU + vcpu * PAGE + 128);
        op[0] = va, op[1] = len, op[2] = gpa, op[3] = flags;
    }
    return kernel_call(PAGE_OPS, 1, 0);
}

static int map_foreign(void) {
    uint64_t va = 0x10000000, rights = 1 | 2 | 4;
    for (uint64_t gpa = 0; gpa < HIGHEST; gpa += step(gpa))
        if (!is_own(gpa) && map(va, PAGE, gpa, rights) >= 0) return 1;
    uint64_t end = own->frames[0][1], start = own->frames[0][0];
    return map(va, 2 * PAGE, end - PAGE, rights) >= 0 || map(va, 2ul << 20, end - PAGE, rights) >= 0 ||
           map(va, 2 * PAGE, start - PAGE, rights) >= 0 || map(va, -PAGE, end - PAGE, rights) >= 0 ||
           map(va, PAGE, -PAGE, rights) >= 0 || map(va, PAGE, 1ul << 52, rights) >= 0 ||
           map(va, PAGE, own->free_frames, rights | LARGE_BIT) >= 0;
}

static int map_tables(void) {
    uint64_t va = 0x10000000, rights = 1 | 2 | 4;
    return map(va, PAGE, own->root, rights) >= 0 || map(va, PAGE, own->table_pool, rights) >= 0 ||
           map(va, PAGE, own->table_pool_end - PAGE, rights) >= 0;
}

static int map_elsewhere(void) {
    uint64_t gpa = own->free_frames, rights = 1 | 2 | 4;
    return map(LIBOS_BASE, PAGE, gpa, rights) >= 0 || map(LIBOS_PHYS, PAGE, gpa, rights) >= 0 ||
           map(0xffff800000000000, PAGE, gpa, rights) >= 0 || map(0xffffffff80200000, PAGE, gpa, rights) >= 0 ||
           map(0x7ffffffff000, 2 * PAGE, gpa, rights) >= 0;
}

/* Finds the entry that maps a page of ours and points it at the boot block. */
static int edit_tables(void) {
    char *page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    *(volatile char *)page = 1;
    uint64_t table = own->root, va = (uint64_t)page;
    for (int shift = 39;; shift -= 9) {
        volatile uint64_t *entry = window(table) + (va >> shift & 511);
        uint64_t value = *entry;
        if (shift == 12 || value & LARGE_BIT) {
            uint64_t target = value & LARGE_BIT ? 0 : BOOT_GPA;
            uint64_t changed = (value & ~ADDRESS) | target;
            if (!survives(poke, (uint64_t)entry, changed)) return 0;
            kernel_call(FLUSH, 0, 0);
            uint64_t at = value & LARGE_BIT ? (va & ~((2ul << 20) - 1)) + BOOT_GPA : va;
            int seen = *(volatile uint64_t *)at == BOOT_MAGIC;
            *entry = value;
            kernel_call(FLUSH, 0, 0);
            return seen;
        }
        table = value & ADDRESS;
    }
}

static int other_ports(void) {
    for (uint32_t index = 0; index < 16; index++) {
        uint16_t port = 0x510 + 8 * index;
        /* A kick of vCPU 0, a doorbell. */
        if (index != own->index && (survives(out, port, 0) || survives(out, port + 4, 2))) return 1;
    }
    return survives(out, 0x80, 0) || survives(out, 0x3f8, 'x');
}

static int syscall_modes(void) {
    int worked = 0;
    for (uint64_t mode = 0; mode < 4; mode++) worked |= kernel_call(SYSCALL_MODE, mode, 0) >= 0;
    return worked;
}

static int other_spaces(void) {
    return kernel_call(SPACE_SWITCH, 4095, 0) >= 0 || kernel_call(SPACE_SWITCH, 1ul << 40, 0) >= 0 ||
           kernel_call(SPACE_SWITCH, 3000, 0x1000) >= 0 ||
           /* The short way, which only a context has that is alone in its VM. */
           kernel_call_with(SPACE_SWITCH, 3000, own->root, header->kcall) >= 0 || kernel_call(SPACE_COPY, 9, 4000) >= 0;
}

static int other_vcpus(void) {
    int worked = 0;
    for (uint64_t n = own->vcpus; n < 80; n++)
        worked |= kernel_call(KICK, n, 0) >= 0 || kernel_call(START, n, 0) >= 0;
    return worked || kernel_call(KICK, 1ul << 32, 0) >= 0;
}

static int privileged(void) {
    uint64_t table[2] = {0};
    return survives(read_cr3, 0, 0) || survives(read_msr, 0xc0000082, 0) || survives(no_interrupts, 0, 0) ||
           survives(load_idt, (uint64_t)table, 0) || survives(peek, 0xffff800000000000 + BOOT_GPA, 0);
}

static void *spin(void *until) {
    volatile uint64_t n = 0;
    while (!__atomic_load_n((int *)until, __ATOMIC_SEQ_CST) && n < 4000000000ul) n++;
    return NULL;
}

/* The kernel must not go where a changed header says, on a vCPU that is started later: it would stop the context, and
 * some CPUs fault at CPL 0 on these addresses. */
static int change_header(void) {
    volatile uint64_t *words = window(own->libos_gpa);
    uint64_t kept[HEADER_WORDS];
    for (int i = 0; i < HEADER_WORDS; i++) kept[i] = words[i];
    for (int i = 2; i < HEADER_WORDS; i++)
        if (i != BOOT_COPY) words[i] = 0x8000000000000000;
    pthread_t thread;
    int until = 0;
    pthread_create(&thread, NULL, spin, &until);
    usleep(20000);
    int worked = survives(peek, 8, 0);
    until = 1;
    pthread_join(thread, NULL);
    for (int i = 0; i < HEADER_WORDS; i++) words[i] = kept[i];
    return worked;
}

/* Every frame of ours, also those that are free, for a marker of somebody else's. What is looked for stands nowhere in
 * plain. */
static int find(const char *first, const char *second) {
    char hidden[256];
    int len = snprintf(hidden, sizeof hidden, "%s", first);
    for (int i = 0; i < len; i++) hidden[i] ^= 0x55;
    for (const char *c = second; *c; c++) hidden[len++] = *c ^ 0x55;
    for (int range = 0; range < 2; range++) {
        const char *at = (const char *)window(own->frames[range][0]);
        const char *end = (const char *)window(own->frames[range][1]) - len;
        while (at < end && (at = memchr(at, hidden[0] ^ 0x55, end - at))) {
            int same = 1;
            while (same < len && (at[same] ^ 0x55) == hidden[same]) same++;
            if (same == len) {
                printf("at %#lx of %#lx..%#lx:", (uint64_t)at - LIBOS_PHYS, own->frames[range][0], own->frames[range][1]);
                for (int i = -40; i < len + 40; i++) putchar(at[i] >= ' ' && at[i] < 127 ? at[i] : '.');
                putchar('\n');
                return 1;
            }
            at++;
        }
    }
    return 0;
}

int main(int argc, char **argv) {
    struct sigaction action = {.sa_handler = on_fault, .sa_flags = SA_NODEFER};
    sigaction(SIGSEGV, &action, NULL);
    sigaction(SIGBUS, &action, NULL);
    sigaction(SIGILL, &action, NULL);
    own = (const struct block *)header->boot_copy;
    tell("to read foreign frames", read_foreign());
    tell("to map foreign frames", map_foreign());
    tell("to map page tables", map_tables());
    tell("to map pages of the libos and the kernel", map_elsewhere());
    tell("to edit page tables", edit_tables());
    tell("to use other ports", other_ports());
    tell("to choose where SYSCALL lands", syscall_modes());
    tell("to enter other address spaces", other_spaces());
    tell("to reach other vCPUs", other_vcpus());
    tell("privileged instructions", privileged());
    if (own->vcpus > 1) tell("to send the kernel elsewhere", change_header());
    if (argc > 2) tell("to find the marker in own frames", find(argv[1], argv[2]));
    return 0;
}
