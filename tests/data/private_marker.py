"""Says a marker over the loopback interface again and again, in streams and datagrams."""
import os
import socket
import threading

marker = b"-".join([b"MARKER", b"OF", b"LOOPBACK"]) * 20
listening = socket.create_server(("127.0.0.1", 0))
datagrams = socket.socket(type=socket.SOCK_DGRAM)
datagrams.bind(("127.0.0.1", 0))
if os.fork() == 0:
    taken, _ = listening.accept()
    while data := taken.recv(1 << 16):
        taken.sendall(data)
        datagrams.recv(1 << 16)
    os._exit(0)
client = socket.create_connection(listening.getsockname())
sender = socket.socket(type=socket.SOCK_DGRAM)
rounds = 0
while True:
    client.sendall(marker)
    sender.sendto(marker, datagrams.getsockname())
    left = len(marker)
    while left:
        left -= len(client.recv(left))
    rounds += 1
    if rounds == 200:
        print("under way", flush=True)
