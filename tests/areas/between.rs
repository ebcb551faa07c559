//! What processes of a context say to each other is not seen on the OS side.

use std::time::Duration;

use cloak_tests::os_side::{children_of, count, memory_of};
use cloak_tests::{Case, Launcher, needs};

const PATIENCE: Duration = Duration::from_secs(120);
const MARKER: &[u8] = b"BETWEEN-THE-TWO-OF-US";

/// Puts the marker together, so that no command line holds it, and sends many copies from a parent to its child by the
/// way that the argument names. They go on until they are killed, so that buffers hold what was said last.
const SPEAKERS: &str = r#"
import array, mmap, os, signal, socket, sys, time
from multiprocessing import shared_memory
way = sys.argv[1]
marker = "-".join(["BETWEEN", "THE", "TWO", "OF", "US"]).encode()
message = marker * 100

def pipe():
    return os.pipe()

def fifo():
    os.mkfifo("/tmp/fifo")
    both = os.open("/tmp/fifo", os.O_RDWR)
    return os.open("/tmp/fifo", os.O_RDONLY), both

def file():
    open("/tmp/file", "w").close()
    return os.open("/tmp/file", os.O_RDONLY), os.open("/tmp/file", os.O_WRONLY)

def pair(kind):
    ends = socket.socketpair(socket.AF_UNIX, kind)
    return tuple(end.detach() for end in ends)

def listening(family, address):
    server = socket.socket(family, socket.SOCK_STREAM)
    server.bind(address)
    server.listen(1)
    client = socket.socket(family, socket.SOCK_STREAM)
    client.connect(server.getsockname())
    return server.accept()[0].detach(), client.detach()

def passed():
    # The descriptors themselves go through a socket.
    ends, (read, write) = socket.socketpair(), os.pipe()
    ends[0].sendmsg([marker], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [read, write]))])
    _, ancillary, _, _ = ends[1].recvmsg(100, 1000)
    return tuple(array.array("i", ancillary[0][2]))

def memory(buffer):
    # A descriptor only says when to look.
    read, write = os.pipe()
    buffer[:len(message)] = message
    global shared
    shared = buffer
    return read, write

def posix():
    segment = shared_memory.SharedMemory(create=True, size=65536)
    global kept
    kept = segment
    return memory(segment.buf)

def memfd():
    fd = os.memfd_create("between")
    os.ftruncate(fd, 65536)
    return memory(mmap.mmap(fd, 65536))

ways = {
    "pipe": pipe, "fifo": fifo, "file": file, "passed": passed, "posix": posix, "memfd": memfd,
    "anonymous": lambda: memory(mmap.mmap(-1, 65536)),
    "stream": lambda: pair(socket.SOCK_STREAM), "datagram": lambda: pair(socket.SOCK_DGRAM),
    "packets": lambda: pair(socket.SOCK_SEQPACKET), "terminal": os.openpty,
    "named": lambda: listening(socket.AF_UNIX, "/tmp/socket"),
    "abstract": lambda: listening(socket.AF_UNIX, "\0between"),
    "tcp": lambda: listening(socket.AF_INET, ("127.0.0.1", 0)),
}
shared = None
read, write = ways[way]()
if os.fork() == 0:
    got = 0
    while got < 10:
        got += os.read(read, 1 << 16).count(marker)
    if shared is not None:
        assert bytes(shared[:len(marker)]) == marker
    print("heard", flush=True)
    while True:
        os.read(read, 1 << 16)
while True:
    os.write(write, b"\n" + message + b"\n")
    time.sleep(0.01)
"#;

/// Memory of the OS service after parent and child have spoken by `way`.
fn service_after(way: &str) -> Vec<u8> {
    let mut running = Case::new("/usr/bin/python3")
        .args(["-c", SPEAKERS, way])
        .start(&Launcher::under_test());
    assert!(
        running.prints("heard", PATIENCE),
        "{way}: {}",
        String::from_utf8_lossy(&running.stderr_so_far())
    );
    let services = children_of(running.pid().as_raw_nonzero().get());
    assert_eq!(services.len(), 1, "one OS service");
    memory_of(services[0])
}

#[test]
fn what_processes_say_to_each_other_stays_inside() {
    if needs::cloaked_program("/usr/bin/python3").is_none() || !needs::root() {
        return;
    }
    let ways = "pipe fifo file stream datagram packets named abstract passed terminal posix memfd anonymous";
    for way in ways.split(' ') {
        assert_eq!(count(&service_after(way), MARKER), 0, "by {way}");
    }
    // The host's network is the host's: what goes that way is found, so this test finds what is there.
    assert!(count(&service_after("tcp"), MARKER) > 0, "by TCP over the host");
}
