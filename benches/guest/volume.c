/* Files and memory that something stands behind: rates in bytes (or pages) for each second.
 *
 *   volume files PREFIX FILE MIB     writes and reads a file, in a row and at random
 *   volume reads PREFIX FILE         reads one again and again
 *   volume pages PREFIX MIB          touches memory, in a row and at random
 *
 * Each line of output is the key of a row, a tab, and its figure. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { PIECE = 64 << 10, BLOCK = 4096 };
static char piece[PIECE];
static const char *prefix;

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static void check(int good, const char *what)
{
    if (!good) {
        perror(what);
        exit(1);
    }
}

static uint64_t next(void)
{
    static uint64_t state = 1;
    state = state * 6364136223846793005u + 1442695040888963407u;
    return state >> 33;
}

static void told(const char *work, double amount, double since)
{
    printf("%s-%s\t%.0f\n", prefix, work, amount / (now() - since));
    fflush(stdout);
}

static void files(const char *path, size_t bytes)
{
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
    check(fd >= 0, path);
    for (int round = 0; round < 2; round++) {
        /* The first one makes the file; the second one writes over it. */
        double since = now();
        for (size_t at = 0; at < bytes; at += PIECE)
            check(pwrite(fd, piece, PIECE, at) == PIECE, "pwrite");
        check(fdatasync(fd) == 0, "fdatasync");
        told(round == 0 ? "write-new-64k" : "write-64k", bytes, since);
    }
    double since = now();
    for (size_t at = 0; at < bytes; at += PIECE)
        check(pread(fd, piece, PIECE, at) == PIECE, "pread");
    told("read-64k", bytes, since);
    size_t few = bytes / 4;
    since = now();
    for (size_t done = 0; done < few; done += BLOCK)
        check(pread(fd, piece, BLOCK, next() % (bytes / BLOCK) * BLOCK) == BLOCK, "pread");
    told("read-4k", few, since);
    since = now();
    for (size_t done = 0; done < few; done += BLOCK)
        check(pwrite(fd, piece, BLOCK, next() % (bytes / BLOCK) * BLOCK) == BLOCK, "pwrite");
    check(fdatasync(fd) == 0, "fdatasync");
    told("write-4k", few, since);
}

static void reads(const char *path)
{
    int fd = open(path, O_RDONLY);
    struct stat stat;
    check(fd >= 0 && fstat(fd, &stat) == 0 && stat.st_size >= PIECE, path);
    double since = 0;
    for (int round = 0; round < 33; round++) {
        /* The first one brings it in. */
        if (round == 1)
            since = now();
        for (off_t at = 0; at + PIECE <= stat.st_size; at += PIECE)
            check(pread(fd, piece, PIECE, at) == PIECE, "pread");
    }
    told("read-64k", 32.0 * (stat.st_size / PIECE * PIECE), since);
}

static void pages(size_t bytes)
{
    char *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    check(memory != MAP_FAILED, "mmap");
    size_t count = bytes / BLOCK;
    for (size_t page = 0; page < count; page++)
        *(uint64_t *)(memory + page * BLOCK) = page * 31;
    double since = now();
    for (int round = 0; round < 2; round++)
        for (size_t page = 0; page < count; page++)
            check(++*(uint64_t *)(memory + page * BLOCK) == page * 31 + round + 1, "what a page holds");
    told("in-a-row", 2.0 * count, since);
    since = now();
    for (size_t done = 0; done < count; done++) {
        size_t page = next() % count;
        check(*(uint64_t *)(memory + page * BLOCK) == page * 31 + 2, "what a page holds");
    }
    told("at-random", count, since);
}

int main(int argc, char **argv)
{
    if (argc < 4)
        return 2;
    prefix = argv[2];
    memset(piece, 0x5a, sizeof piece);
    if (!strcmp(argv[1], "files") && argc == 5)
        files(argv[3], (size_t)atoi(argv[4]) << 20);
    else if (!strcmp(argv[1], "reads"))
        reads(argv[3]);
    else if (!strcmp(argv[1], "pages"))
        pages((size_t)atoi(argv[3]) << 20);
    else
        return 2;
    return 0;
}
