"""Prints what inotify tells of files below the folder that is named."""
import ctypes
import os
import struct
import sys

libc = ctypes.CDLL(None, use_errno=True)
names = {
    1: "ACCESS", 2: "MODIFY", 4: "ATTRIB", 8: "CLOSE_WRITE", 0x10: "CLOSE_NOWRITE", 0x20: "OPEN", 0x40: "MOVED_FROM",
    0x80: "MOVED_TO", 0x100: "CREATE", 0x200: "DELETE", 0x400: "DELETE_SELF", 0x800: "MOVE_SELF", 0x8000: "IGNORED",
    0x40000000: "ISDIR",
}
fd = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
cookies = {}


def watch(path, mask=0xFFF):
    number = libc.inotify_add_watch(fd, path.encode(), ctypes.c_uint32(mask))
    return number if number >= 0 else os.strerror(ctypes.get_errno())


def told(what):
    print(what)
    try:
        data = os.read(fd, 1 << 16)
    except BlockingIOError:
        return
    at = 0
    while at < len(data):
        number, mask, cookie, length = struct.unpack_from("iIII", data, at)
        name = data[at + 16:at + 16 + length].rstrip(b"\0").decode()
        at += 16 + length
        bits = " ".join(text for bit, text in names.items() if mask & bit)
        cookie = cookies.setdefault(cookie, len(cookies)) if cookie else "-"
        print("   ", number, bits, cookie, name)


cookies[0] = 0
os.makedirs(sys.argv[1], exist_ok=True)
os.chdir(sys.argv[1])
os.mkdir("d")
print(watch("d"), watch("d/missing"), watch("d", 0))
with open("d/file", "w") as file:
    told("made")
    file.write("text")
    file.flush()
    told("written")
told("closed")
print(watch("d/file"))
with open("d/file") as file:
    file.read()
told("read")
os.chmod("d/file", 0o600)
told("mode")
os.truncate("d/file", 1)
told("cut")
os.mkdir("d/inner")
os.symlink("nowhere", "d/link")
os.mkfifo("d/fifo")
told("names")
os.rename("d/file", "d/moved")
told("moved")
open("d/moved", "a").close()
told("opened where it is now")
os.rename("d/inner", "outer")
os.rename("outer", "d/back")
told("out and in")
os.unlink("d/moved")
told("removed")
os.rmdir("d/back")
os.unlink("d/link")
os.unlink("d/fifo")
told("all removed")
os.rmdir("d")
told("gone")
print(watch(".", 0x100 | 0x80000000))
for name in "xy":
    open(name, "w").close()
told("once")
number = watch(".", 0x100)
print(libc.inotify_rm_watch(fd, number), libc.inotify_rm_watch(fd, number))
told("no more")
for name in "xy":
    os.unlink(name)
