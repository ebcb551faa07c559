"""What a program finds on a private network. Argument: a port that listens on the host's loopback interface."""
import errno
import os
import socket
import subprocess
import sys
import time

port = int(sys.argv[1])


def told(name, work):
    try:
        print(name, work())
    except socket.gaierror:
        print(name, "gaierror")
    except OSError as error:
        print(name, errno.errorcode[error.errno])


def between_processes(family, address):
    """A server in a child, a client here."""
    listening = socket.socket(family)
    listening.bind((address, 0))
    listening.listen()
    child = os.fork()
    if child == 0:
        taken, peer = listening.accept()
        asked = taken.recv(100)
        taken.sendall(asked.upper() + b" " + peer[0].encode())
        os._exit(0)
    client = socket.create_connection(listening.getsockname()[:2])
    client.sendall(b"asked")
    answer = client.makefile().read()
    os.waitpid(child, 0)
    return answer


def datagrams():
    server = socket.socket(type=socket.SOCK_DGRAM)
    server.bind(("127.0.0.1", 0))
    client = socket.socket(type=socket.SOCK_DGRAM)
    client.sendto(b"ping", server.getsockname())
    data, sender = server.recvfrom(100)
    server.sendto(data + b" pong", sender)
    return client.recv(100).decode()


def curl():
    """A server that another program makes, and one that is no Python."""
    server = subprocess.Popen(
        [sys.executable, "-m", "http.server", "8000", "--bind", "127.0.0.1", "--directory", "/etc"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    for _ in range(600):
        done = subprocess.run(
            ["curl", "-s", "--noproxy", "*", "http://localhost:8000/hostname"], capture_output=True
        )
        if done.returncode == 0:
            break
        time.sleep(0.1)
    server.kill()
    server.wait()
    return done.stdout.decode().strip()


def table(name):
    with open("/proc/net/" + name) as file:
        return len(file.readlines())


told("name", socket.gethostname)
told("own", lambda: socket.gethostbyname(socket.gethostname()))
told("localhost", lambda: sorted({a[4][0] for a in socket.getaddrinfo("localhost", 80)}))
told("interfaces", lambda: [name for _, name in socket.if_nameindex()])
told("sys", lambda: sorted(os.listdir("/sys/class/net")))
told("IPv4", lambda: between_processes(socket.AF_INET, "127.0.0.1"))
told("all", lambda: between_processes(socket.AF_INET, "0.0.0.0"))
told("IPv6", lambda: between_processes(socket.AF_INET6, "::1"))
told("datagrams", datagrams)
told("curl", curl)
told("host", lambda: socket.create_connection(("127.0.0.1", port)))
told("host by another name", lambda: socket.create_connection(("192.0.0.1", port)))
told("unknown", lambda: socket.getaddrinfo("no.such.name.invalid", 80))
listening = socket.create_server(("127.0.0.1", 0))
told("tcp", lambda: table("tcp"))
told("route", lambda: table("route"))
told("hosts", lambda: open("/etc/hosts").read().split()[:2])
