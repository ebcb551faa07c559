/* A program that lives off its own SIGSEGV: the handler maps the page that was touched and the instruction goes on. */
#include "check.h"
#include <signal.h>
#include <sys/mman.h>

enum { PAGES = 200 };
static char *region;
static volatile int faults, wrong_code, wrong_address;

static void handler(int number, siginfo_t *info, void *context) {
    (void)number, (void)context;
    char *page = (char *)((uintptr_t)info->si_addr & ~4095UL);
    if (page < region || page >= region + PAGES * 4096L) {
        wrong_address++;
        _Exit(9);
    }
    if (info->si_code != SEGV_ACCERR)
        wrong_code++;
    faults++;
    if (mprotect(page, 4096, PROT_READ | PROT_WRITE) != 0)
        _Exit(10);
}

int main(void) {
    region = mmap(NULL, PAGES * 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    MUST(region != MAP_FAILED);
    struct sigaction action = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO};
    MUST(sigaction(SIGSEGV, &action, NULL) == 0);
    unsigned sum = 0;
    for (int i = 0; i < PAGES; i++) {
        char *at = region + i * 4096L + i;
        if (i % 2)
            *at = (char)i;
        sum += (unsigned char)*at;
    }
    printf("faults %d wrong code %d sum %u\n", faults, wrong_code, sum);

    /* A page taken away after munmap gives SEGV_MAPERR; the handler maps it afresh. */
    CHECK("200 pages, 200 faults", faults == PAGES && wrong_code == 0);
    MUST(munmap(region, PAGES * 4096) == 0);
    region = mmap(region, PAGES * 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    MUST(region != MAP_FAILED);
    faults = 0;
    for (int i = 0; i < PAGES; i++) {
        CHECK_WITH("a fresh page is zero", i > 0 || region[0] == 0, region[0]);
        region[i * 4096L] = 1;
        i += 19;
    }
    CHECK_WITH("a write to a read-only page faults once", faults == PAGES / 20, faults);
    return check_result();
}
