"""What a program meets that has no network. Arguments: a port that listens on the host, a Unix socket of the host."""
import errno
import socket
import sys

port, path = int(sys.argv[1]), sys.argv[2]


def told(name, work):
    try:
        work()
        print(name, "ok")
    except socket.gaierror:
        print(name, "gaierror")
    except OSError as error:
        print(name, errno.errorcode[error.errno])


listening = socket.socket()


def listen():
    listening.bind(("", 0))
    listening.listen()
    listening.setblocking(False)


def pair():
    one, other = socket.socketpair()
    one.send(b"inside")
    assert other.recv(10) == b"inside"


told("connect", lambda: socket.socket().connect(("127.0.0.1", port)))
told("datagram", lambda: socket.socket(type=socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", port)))
told("socket", lambda: socket.socket(socket.AF_UNIX).connect(path))
told("listen", listen)
told("accept", listening.accept)
told("loopback", lambda: socket.socket().connect(("127.0.0.1", listening.getsockname()[1])))
told("pair", pair)
told("name", lambda: socket.getaddrinfo("name.invalid", 80))
