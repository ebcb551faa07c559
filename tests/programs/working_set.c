/* A working set of argument 1 MiB: filled with words that tell their place, read back in order, and changed and read back
 * at random. With an argument 2 it waits between filling and reading until a file of that name is there. */
#include "check.h"
#include <sys/mman.h>
#include <unistd.h>

enum { PAGE = 4096, WORDS = PAGE / 8 };

/* "SECRET!!", so that a test can look for it elsewhere. */
static const uint64_t MARKER = 0x2121544552434553;

static uint64_t expected(size_t page, int word, uint64_t round) {
    return (page << 20 | (uint64_t)word) * 0x9e3779b97f4a7c15 + round;
}

int main(int argc, char **argv) {
    MUST(argc >= 2);
    size_t pages = strtoul(argv[1], 0, 10) << 8;
    uint64_t *memory = mmap(0, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    unsigned char *rounds = calloc(pages, 1);
    MUST(memory != MAP_FAILED && rounds);
    size_t wrong = 0;
    for (size_t page = 0; page < pages; page++) {
        uint64_t *words = memory + page * WORDS;
        wrong += words[0] != 0 || words[WORDS - 1] != 0;
        for (int word = 1; word < WORDS - 1; word++) words[word] = MARKER;
        words[0] = expected(page, 0, 0);
        words[WORDS - 1] = expected(page, WORDS - 1, 0);
    }
    CHECK("new memory is zero", wrong == 0);
    CHECK("filled", 1);
    while (argc > 2 && access(argv[2], F_OK) != 0) usleep(10000);
    for (size_t page = 0; page < pages; page++) {
        uint64_t *words = memory + page * WORDS;
        wrong += words[0] != expected(page, 0, 0) || words[WORDS - 1] != expected(page, WORDS - 1, 0);
        wrong += words[WORDS / 2] != MARKER;
    }
    CHECK("in order it is as it was left", wrong == 0);
    uint64_t state = 1;
    for (int i = 0; i < 20000; i++) {
        uint64_t random = next_random(&state);
        size_t page = (random >> 20) % pages;
        uint64_t *words = memory + page * WORDS;
        wrong += words[0] != expected(page, 0, rounds[page]);
        if (random & 1) words[0] = expected(page, 0, ++rounds[page]);
    }
    for (size_t page = 0; page < pages; page++) wrong += memory[page * WORDS] != expected(page, 0, rounds[page]);
    CHECK("at random it is as it was left", wrong == 0);
    return checks_failed != 0;
}
