/* A file of 4 GiB (argument 1 names it): sparse, with real data at many offsets, some of them past 2^32. */
#include "check.h"
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { BLOCK = 64 * 1024, BLOCKS = 128 };
static const off_t SIZE = (4LL << 30) + 12345;

static off_t place(int which) {
    /* Spread over the file, never overlapping, off any page boundary. */
    return (SIZE - BLOCK) / BLOCKS * which + which * 3;
}

static void fill(unsigned char *block, int which) {
    uint64_t state = (uint64_t)which + 7;
    for (int i = 0; i < BLOCK; i += 8) {
        uint64_t value = next_random(&state);
        memcpy(block + i, &value, 8);
    }
}

int main(int argc, char **argv) {
    MUST(argc == 2);
    static unsigned char block[BLOCK], back[BLOCK];
    int fd = open(argv[1], O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    MUST(fd >= 0 && ftruncate(fd, SIZE) == 0);
    struct stat status;
    CHECK("the size is past 4 GiB", fstat(fd, &status) == 0 && status.st_size == SIZE);
    int wrong = 0;
    for (int i = 0; i < BLOCKS; i++) {
        fill(block, i);
        wrong += pwrite(fd, block, BLOCK, place(i)) != BLOCK;
    }
    CHECK_WITH("blocks are written", wrong == 0, wrong);
    for (int i = BLOCKS - 1; i >= 0; i--) {
        fill(block, i);
        wrong += lseek(fd, place(i), SEEK_SET) != place(i) || read(fd, back, BLOCK) != BLOCK;
        wrong += memcmp(block, back, BLOCK) != 0;
    }
    CHECK_WITH("blocks read back", wrong == 0, wrong);
    off_t hole = place(1) + BLOCK + 4096;
    memset(block, 0, BLOCK);
    CHECK("a hole reads as zeros", pread(fd, back, 4096, hole) == 4096 && memcmp(back, block, 4096) == 0);
    CHECK("a read at the end is short", pread(fd, back, BLOCK, SIZE - 100) == 100);
    CHECK("a read past the end is empty", pread(fd, back, BLOCK, SIZE) == 0);
    CHECK("a seek to the end", lseek(fd, 0, SEEK_END) == SIZE);

    /* The block that lies across 2^32, through a mapping. */
    int last = BLOCKS - 1;
    off_t start = place(last) & ~4095LL;
    size_t length = (size_t)(place(last) - start) + BLOCK;
    unsigned char *map = mmap(NULL, length, PROT_READ, MAP_SHARED, fd, start);
    fill(block, last);
    CHECK("a mapping past 3 GiB shows the data",
          map != MAP_FAILED && memcmp(map + (place(last) - start), block, BLOCK) == 0);
    CHECK("the file shrinks", ftruncate(fd, 10) == 0 && fstat(fd, &status) == 0 && status.st_size == 10);
    CHECK("it closes and goes", close(fd) == 0 && unlink(argv[1]) == 0 && access(argv[1], F_OK) == -1);
    return check_result();
}
