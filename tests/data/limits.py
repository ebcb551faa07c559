"""Limits on resources that hold. Argument: a folder for files."""
import errno
import mmap
import os
import resource
import signal
import sys

os.makedirs(sys.argv[1], exist_ok=True)
os.chdir(sys.argv[1])


def told(name, work):
    try:
        print(name, work())
    except OSError as error:
        print(name, errno.errorcode[error.errno])
    except MemoryError:
        print(name, "MemoryError")


def in_child(work):
    """The work in a process of its own: how it ended."""
    child = os.fork()
    if child == 0:
        work()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def large():
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    fd = os.open("large", os.O_RDWR | os.O_CREAT)
    os.write(fd, b"x" * 5000)
    os.write(fd, b"x")


def larger():
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    fd = os.open("larger", os.O_RDWR | os.O_CREAT)
    print("written", os.write(fd, b"x" * 5000))
    told("more", lambda: os.write(fd, b"x"))
    told("before", lambda: os.pwrite(fd, b"yy", 999))
    told("behind", lambda: os.pwrite(fd, b"y", 1000))
    told("cut", lambda: os.ftruncate(fd, 10))
    told("grown", lambda: os.ftruncate(fd, 1001))
    told("allocated", lambda: os.posix_fallocate(fd, 0, 2000))
    read, write = os.pipe()
    told("pipe", lambda: os.write(write, b"x" * 2000))
    sys.stdout.flush()


def space():
    size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + (64 << 20), resource.RLIM_INFINITY))
    told("little", lambda: len(mmap.mmap(-1, 16 << 20)))
    told("much", lambda: len(mmap.mmap(-1, 128 << 20)))
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    told("again", lambda: len(mmap.mmap(-1, 128 << 20)))
    sys.stdout.flush()


def processes():
    os.setresuid(54321, 54321, 54321)
    resource.setrlimit(resource.RLIMIT_NPROC, (3, 3))
    children = []
    while True:
        try:
            child = os.fork()
        except OSError as error:
            print("after", len(children), errno.errorcode[error.errno])
            break
        if child == 0:
            signal.pause()
        children.append(child)
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    told("then", lambda: in_child(lambda: None))
    sys.stdout.flush()


def other():
    """The limits of another process are set, and hold there."""
    child = os.fork()
    if child == 0:
        signal.sigwait([signal.SIGUSR1])
        told("opened", lambda: os.open("/", os.O_RDONLY))
        sys.stdout.flush()
        os._exit(0)
    print("was", resource.prlimit(child, resource.RLIMIT_NOFILE, (3, 3))[0] > 3)
    sys.stdout.flush()
    os.kill(child, signal.SIGUSR1)
    os.waitpid(child, 0)


signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
for work in (large, larger, space, processes):
    print(work.__name__, flush=True)
    print(in_child(work), os.path.getsize("large"), flush=True)
other()
