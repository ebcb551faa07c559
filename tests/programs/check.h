/* Checks for the test programs: each prints one line whose text does not depend on the run (no addresses, no times, no
 * identifiers), so that the output of a native run and of a cloaked run can be compared byte by byte. */
#ifndef CLOAK_CHECK_H
#define CLOAK_CHECK_H

#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int checks_failed __attribute__((unused));

/* Prints `ok WHAT`, or what failed with the line and errno; the program goes on, so one run shows every failure. */
#define CHECK(what, condition)                                                                                       \
    do {                                                                                                             \
        errno = 0;                                                                                                   \
        if (condition) {                                                                                             \
            printf("ok %s\n", what);                                                                                 \
        } else {                                                                                                     \
            printf("FAILED %s (%s:%d, errno %d)\n", what, __FILE__, __LINE__, errno);                                \
            __atomic_add_fetch(&checks_failed, 1, __ATOMIC_RELAXED);                                                 \
        }                                                                                                            \
        fflush(stdout);                                                                                              \
    } while (0)

/* The call must fail with exactly this errno. */
#define CHECK_FAILS(what, call, expected)                                                                            \
    do {                                                                                                             \
        errno = 0;                                                                                                   \
        long result_of_call = (long)(call);                                                                          \
        CHECK_WITH(what, result_of_call == -1 && errno == (expected), errno);                                        \
    } while (0)

#define CHECK_WITH(what, condition, seen)                                                                            \
    do {                                                                                                             \
        long seen_value = (long)(seen);                                                                              \
        if (condition) {                                                                                             \
            printf("ok %s\n", what);                                                                                 \
        } else {                                                                                                     \
            printf("FAILED %s (%s:%d, saw %ld)\n", what, __FILE__, __LINE__, seen_value);                            \
            __atomic_add_fetch(&checks_failed, 1, __ATOMIC_RELAXED);                                                 \
        }                                                                                                            \
        fflush(stdout);                                                                                              \
    } while (0)

/* For steps that the rest of the program cannot do without. */
#define MUST(condition)                                                                                              \
    do {                                                                                                             \
        if (!(condition)) {                                                                                          \
            printf("STOPPED at %s:%d: %s (errno %d)\n", __FILE__, __LINE__, #condition, errno);                      \
            exit(3);                                                                                                 \
        }                                                                                                            \
    } while (0)

static inline int check_result(void) { return checks_failed == 0 ? 0 : 1; }

/* splitmix64: the same stream everywhere, seeded by hand. */
static inline uint64_t next_random(uint64_t *state) {
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* FNV-1a, for checksums of buffers. */
static inline uint64_t checksum(const void *bytes, size_t length) {
    const unsigned char *at = bytes;
    uint64_t hash = 0xcbf29ce484222325u;
    for (size_t i = 0; i < length; i++)
        hash = (hash ^ at[i]) * 0x100000001b3u;
    return hash;
}

#endif
