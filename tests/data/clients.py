"""Serves connections one after the other; the first word of each says what to do with it."""

import array
import fcntl
import os
import socket
import sys
import termios

listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))


def turns(connection):
    """Two processes share the connection and write in turn."""
    mine, yours = os.pipe(), os.pipe()
    child = os.fork()
    own, other, word = (yours, mine, b"child") if child == 0 else (mine, yours, b"parent")
    if child:
        os.write(mine[1], b"x")
    for turn in range(300):
        os.read(own[0], 1)
        connection.sendall(b"%s %d\n" % (word, turn))
        os.write(other[1], b"x")
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)


def looks(connection):
    """What is there is seen, counted, and still there."""
    first = connection.recv(3, socket.MSG_PEEK)
    waiting = array.array("i", [0])
    while waiting[0] < 11:
        fcntl.ioctl(connection, termios.FIONREAD, waiting)
    whole = connection.recv(100, socket.MSG_PEEK)
    part = connection.recv(5)
    rest = connection.recv(6, socket.MSG_WAITALL)
    connection.setblocking(False)
    try:
        connection.recv(1)
        more = b"more"
    except BlockingIOError:
        more = b"nothing"
    connection.setblocking(True)
    connection.sendall(b"|".join([first, b"%d" % waiting[0], whole, part, rest, more]))


while True:
    connection, _ = listener.accept()
    word = connection.recv(6)
    if word == b"exits.":
        for number in range(200):
            connection.sendall(number.to_bytes(2, "big") * 8192)
        os._exit(7)
    elif word == b"turns.":
        turns(connection)
    elif word == b"looks.":
        looks(connection)
    elif word == b"leave.":
        # Nine bytes are left unread.
        connection.recv(100, socket.MSG_PEEK)
    connection.close()
