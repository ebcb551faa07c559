/* 8 GiB of address space of which little is touched; also the reservations that Node and Java make. */
#include "check.h"
#include <sys/mman.h>

static const size_t SIZE = 8UL << 30;
enum { TOUCHES = 1000 };

int main(void) {
    char *map = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    MUST(map != MAP_FAILED);
    uint64_t state = 99, wrong = 0;
    for (int i = 0; i < TOUCHES; i++) {
        uint64_t *word = (uint64_t *)(map + next_random(&state) % (SIZE / 8) * 8);
        wrong += *word != 0 && *word != (uint64_t)(word - (uint64_t *)map);
        *word = (uint64_t)(word - (uint64_t *)map);
    }
    CHECK_WITH("fresh pages are zero", wrong == 0, wrong);
    state = 99;
    for (int i = 0; i < TOUCHES; i++) {
        uint64_t *word = (uint64_t *)(map + next_random(&state) % (SIZE / 8) * 8);
        wrong += *word != (uint64_t)(word - (uint64_t *)map);
    }
    CHECK_WITH("what was written is there", wrong == 0, wrong);
    CHECK("pages are given back", madvise(map, SIZE, MADV_DONTNEED) == 0);
    state = 99;
    for (int i = 0; i < TOUCHES; i++)
        wrong += *(uint64_t *)(map + next_random(&state) % (SIZE / 8) * 8) != 0;
    CHECK_WITH("and come back as zeros", wrong == 0, wrong);
    CHECK("the mapping goes", munmap(map, SIZE) == 0);

    const size_t huge = 64UL << 30;
    char *reserved = mmap(NULL, huge, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    MUST(reserved != MAP_FAILED);
    char *middle = reserved + huge / 2;
    CHECK("part of a reservation becomes usable", mprotect(middle, 1 << 20, PROT_READ | PROT_WRITE) == 0);
    memset(middle, 0x5a, 1 << 20);
    CHECK("and holds data", middle[0] == 0x5a && middle[(1 << 20) - 1] == 0x5a);
    char *fixed = mmap(reserved + 4096, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    CHECK("a fixed mapping replaces part of it", fixed == reserved + 4096 && fixed[0] == 0);
    CHECK("trimming both ends", munmap(reserved, 4096) == 0 && munmap(reserved + huge / 4 * 3, huge / 4) == 0);
    CHECK("the middle is whole", middle[4096] == 0x5a);

    /* A page here and there needs a page table each: far more of them than such memory would need in one piece. */
    const size_t stride = 2UL << 20, sparse = 3000 * stride;
    uint64_t lost = 0;
    for (int round = 0; round < 3; round++) {
        char *spread = mmap(NULL, sparse, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        MUST(spread != MAP_FAILED && madvise(spread, sparse, MADV_NOHUGEPAGE) == 0);
        for (size_t at = 0; at < sparse; at += stride) lost += spread[at] != 0, spread[at] = (char)(at / stride) | 1;
        for (size_t at = 0; at < sparse; at += stride) lost += spread[at] != ((char)(at / stride) | 1);
        MUST(munmap(spread, sparse) == 0);
    }
    CHECK_WITH("pages far apart", lost == 0, lost);
    return check_result();
}
