"""Reads a measured file before and after somebody changes it on the host, by calls and by a mapping.

Arguments: the file, a block that is read before, the block that is changed meanwhile, a file that is there once it is.
"""
import errno
import mmap
import os
import sys
import time

path, before, changed, done = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
BLOCK = 4096

fd = os.open(path, os.O_RDONLY)
length = os.fstat(fd).st_size
private = mmap.mmap(fd, length, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
shared = mmap.mmap(fd, length, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)


def called(block):
    try:
        return os.pread(fd, 8, block * BLOCK).decode()
    except OSError as error:
        return errno.errorcode[error.errno]


def touched(mapping, block):
    """In a child, which may die of it."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, mapping[block * BLOCK : block * BLOCK + 8])
        os._exit(0)
    os.close(writing)
    _, status = os.waitpid(child, 0)
    return f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else os.read(reading, 8).decode()


print("before", called(before), touched(private, before), flush=True)
while not os.path.exists(done):
    time.sleep(0.01)
for name, block in [("same", before), ("beside", changed + 1), ("changed", changed)]:
    print(name, called(block), touched(private, block), touched(shared, block), flush=True)
