/* A program on a simulated machine that intercepts what it names (`--platform sim-snp --hostile intercept`): an OUT to a
 * port of the shim's raises #VC at the instruction behind it, as if the CPU intercepted that. The CPUs on which the tests
 * run intercept none of these.
 *
 *   0x511       CPUID
 *   0x512       the reason in the value
 */
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

static sigjmp_buf back;

static void leaf(uint32_t number, uint32_t sub, uint32_t out[4])
{
    __asm__ volatile("outl %%eax, %%dx\n\tcpuid"
                     : "=a"(out[0]), "=b"(out[1]), "=c"(out[2]), "=d"(out[3])
                     : "a"(number), "c"(sub), "d"(0x511));
}

static uint64_t ticks(void)
{
    uint32_t low, high;
    __asm__ volatile("outl %%eax, %%dx\n\trdtsc" : "=a"(low), "=d"(high) : "a"(0x6eff), "d"(0x512));
    return (uint64_t)high << 32 | low;
}

static uint64_t ticks_of(uint32_t *processor)
{
    uint32_t low, high;
    __asm__ volatile("outl %%eax, %%dx\n\trdtscp"
                     : "=a"(low), "=d"(high), "=c"(*processor)
                     : "a"(0x87ff), "d"(0x512), "c"(77));
    return (uint64_t)high << 32 | low;
}

static void caught(int signal, siginfo_t *info, void *context)
{
    (void)info, (void)context;
    /* What the C library copies need not be aligned. */
    __asm__ volatile("pushfq\n\tandq $~0x40000, (%%rsp)\n\tpopfq" : : : "cc", "memory");
    siglongjmp(back, signal);
}

int main(void)
{
    setvbuf(stdout, NULL, _IONBF, 0);
    struct sigaction action = {.sa_sigaction = caught, .sa_flags = SA_SIGINFO | SA_NODEFER};
    sigaction(SIGILL, &action, NULL);
    sigaction(SIGBUS, &action, NULL);
    uint32_t r[4], processor = 77;
    char vendor[13] = "";
    leaf(0, 0, r);
    memcpy(vendor, &r[1], 4), memcpy(vendor + 4, &r[3], 4), memcpy(vendor + 8, &r[2], 4);
    printf("vendor %s, leaves %s\n", vendor, r[0] >= 0xd ? "up to vector state" : "missing");
    leaf(1, 0, r);
    printf("APIC %u, OSXSAVE %u\n", r[1] >> 24, r[2] >> 27 & 1);
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    leaf(0xd, 0, r);
    printf("vector state %s, of %s\n", r[0] == (low & 0x2e7) && r[3] == 0 ? "as enabled" : "another",
           r[1] >= 0x240 && r[1] == r[2] ? "its size" : "another size");
    leaf(0x40000000, 0, r);
    printf("hypervisor %u %u %u %u\n", r[0], r[1], r[2], r[3]);
    leaf(0x8000001f, 0, r);
    printf("C-bit %u\n", r[1] & 63);
    uint64_t first = ticks(), second = ticks_of(&processor), third = ticks();
    printf("time %s, processor %u\n", first < second && second < third ? "goes on" : "stands", processor);
    int signal = sigsetjmp(back, 1);
    if (signal == 0)
        __asm__ volatile("outl %%eax, %%dx\n\tvmmcall" : : "a"(0x81ff), "d"(0x512));
    printf("VMMCALL: %s\n", signal == SIGILL ? "no such instruction" : "done");
    signal = sigsetjmp(back, 1);
    if (signal == 0)
        __asm__ volatile("pushfq\n\torq $0x40000, (%%rsp)\n\tpopfq\n\toutl %%eax, %%dx\n\tnop" : : "a"(0x51ff), "d"(0x512) : "cc", "memory");
    __asm__ volatile("pushfq\n\tandq $~0x40000, (%%rsp)\n\tpopfq" : : : "cc", "memory");
    printf("alignment: %s\n", signal == SIGBUS ? "a bus error" : "nothing");
    return 0;
}
