"""What a file system does, told line by line: run on the host and in a protected volume, the lines are the same."""
import ctypes
import errno
import mmap
import os
import threading


def numbered():
    return sorted(name for name in os.listdir(".") if name[0] == "f" and name[1:].isdigit())


# Calls and shared mappings see each other's writes.
file = open("mapped", "w+b")
file.truncate(10000)
shared = mmap.mmap(file.fileno(), 10000)
shared[0:5] = b"hello"
shared[9000:9004] = b"tail"
print(os.pread(file.fileno(), 5, 0), os.pread(file.fileno(), 4, 9000))
os.pwrite(file.fileno(), b"CALLS", 100)
print(shared[100:105])
os.ftruncate(file.fileno(), 20000)
longer = mmap.mmap(file.fileno(), 20000)
longer[19990:19995] = b"ENDED"
longer.flush()
private = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE)
print(private[0:5], private[19990:19995])
private[0:5] = b"OTHER"
print(shared[0:5])
print(os.lseek(file.fileno(), 0, os.SEEK_DATA), os.lseek(file.fileno(), 0, os.SEEK_HOLE))

# A mapping that ends leaves what it wrote.
other = open("ended", "w+b")
other.truncate(4096)
mapping = mmap.mmap(other.fileno(), 4096)
mapping[7:11] = b"left"
mapping.close()
other.close()
print(open("ended", "rb").read()[5:13])

# Files without names.
unnamed = os.open(".", os.O_TMPFILE | os.O_RDWR, 0o600)
os.write(unnamed, b"unnamed")
print(os.fstat(unnamed).st_nlink)
libc = ctypes.CDLL(None, use_errno=True)
AT_FDCWD, AT_SYMLINK_FOLLOW = -100, 0x400
print(libc.linkat(AT_FDCWD, b"/proc/self/fd/%d" % unnamed, AT_FDCWD, b"linked", AT_SYMLINK_FOLLOW))
print(open("linked").read(), os.stat("linked").st_nlink)
with open("gone", "w") as gone:
    gone.write("still here")
gone = open("gone")
os.unlink("gone")
print(gone.read(), os.path.exists("gone"))

# A FIFO.
os.mkfifo("fifo")
writer = threading.Thread(target=lambda: open("fifo", "w").write("through a fifo"))
writer.start()
print(open("fifo").read())
writer.join()

# Many names, and a listing that loses none.
for i in range(500):
    with open("f%03d" % i, "w") as one:
        one.write(str(i))
print(len(numbered()), numbered()[0], numbered()[-1])
for name in numbered():
    os.unlink(name)
print(len(numbered()))

# Renaming, and what is refused.
os.rename("mapped", "renamed")
print(os.stat("renamed").st_size, file.fileno() > 0)
os.makedirs("above/below")
for source, target in (("above", "above/below/x"), ("renamed", "above"), ("above", "renamed"), ("missing", "x")):
    try:
        os.rename(source, target)
        print("moved")
    except OSError as error:
        print(errno.errorcode[error.errno])
for path in ("above", "renamed"):
    try:
        os.rmdir(path)
    except OSError as error:
        print(errno.errorcode[error.errno])
os.symlink("renamed", "link")
print(os.readlink("link"), os.path.islink("link"), os.stat("link").st_size)

# Attributes.
os.chmod("renamed", 0o4711)
os.utime("renamed", ns=(1, 2))
status = os.stat("renamed")
print(oct(status.st_mode), status.st_atime_ns, status.st_mtime_ns, status.st_nlink)
directory = os.open(".", os.O_RDONLY)
os.fsync(directory)

# Appending.
with open("log", "a") as first, open("log", "a") as second:
    for i in range(3):
        for log in (first, second):
            log.write("%d" % i)
            log.flush()
print(open("log").read())

# Sizes: sparse, cut, extended.
with open("sparse", "w+b") as sparse:
    sparse.seek(1 << 30)
    sparse.write(b"end")
    sparse.flush()
    print(os.fstat(sparse.fileno()).st_size, os.fstat(sparse.fileno()).st_blocks < 100)
    sparse.truncate(5)
    sparse.truncate(10)
    sparse.seek(0)
    print(sparse.read())
