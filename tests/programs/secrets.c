/* Fills argument 1 MiB of memory with what nobody outside may see: in each page a marker, a password and a key. The marker
 * and the password come in halves (arguments 2 to 5), the key is computed, so that none of them is in any file. It writes
 * some of them to the file of argument 6 ("-": none), waits until the file of argument 7 is there, and says whether its
 * memory is whole. */
#include "check.h"
#include <sys/mman.h>
#include <unistd.h>

enum { PAGE = 4096, KEY = 32, AT_KEY = 1024, AT_PASSWORD = 2048 };

static unsigned char key_byte(const char *half, int i) { return (unsigned char)((i * 73 + half[0]) ^ (i << 3)); }

int main(int argc, char **argv) {
    MUST(argc == 8);
    size_t pages = strtoul(argv[1], 0, 10) << 8;
    char marker[256], password[256];
    MUST(snprintf(marker, sizeof marker, "%s%s", argv[2], argv[3]) > 0);
    MUST(snprintf(password, sizeof password, "%s%s", argv[4], argv[5]) > 0);
    char *memory = mmap(0, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    MUST(memory != MAP_FAILED);
    for (size_t page = 0; page < pages; page++) {
        char *at = memory + page * PAGE;
        memset(at, 'a' + (int)(page % 26), PAGE);
        memcpy(at + page % 512, marker, strlen(marker));
        for (int i = 0; i < KEY; i++) at[AT_KEY + i] = (char)key_byte(argv[2], i);
        memcpy(at + AT_PASSWORD, password, strlen(password));
    }
    if (strcmp(argv[6], "-") != 0) {
        FILE *file = fopen(argv[6], "w");
        MUST(file && fwrite(memory, PAGE, 64, file) == 64 && fflush(file) == 0 && fsync(fileno(file)) == 0);
        MUST(fclose(file) == 0);
    }
    printf("filled\n");
    fflush(stdout);
    while (access(argv[7], F_OK) != 0) usleep(20000);
    size_t wrong = 0;
    for (size_t page = 0; page < pages; page++) {
        char *at = memory + page * PAGE;
        wrong += memcmp(at + page % 512, marker, strlen(marker)) != 0;
        for (int i = 0; i < KEY; i++) wrong += at[AT_KEY + i] != (char)key_byte(argv[2], i);
        wrong += memcmp(at + AT_PASSWORD, password, strlen(password)) != 0 || at[PAGE - 1] != 'a' + (char)(page % 26);
        memset(at, 'z', PAGE);
    }
    for (size_t i = 0; i < pages * PAGE; i += 61) wrong += memory[i] != 'z';
    printf("%s\n", wrong == 0 ? "whole" : "WRONG");
    return wrong != 0;
}
