/* Writes the code in argument 1 to QEMU's isa-debug-exit port, which ends the machine with (code << 1) | 1. */
#include <stdio.h>
#include <stdlib.h>
#include <sys/io.h>
#include <unistd.h>

int main(int argc, char **argv) {
    if (argc != 2 || iopl(3) != 0) {
        perror("power-off");
        return 1;
    }
    /* What is on its way to the serial port must be out first. */
    sleep(1);
    outb((unsigned char)atoi(argv[1]), 0xf4);
    pause();
    return 1;
}
