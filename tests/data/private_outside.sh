# Run in a network and a mount namespace of its own: what a private network reaches outside, with a server of names on the
# host's loopback interface. Arguments: the program to launch with, a folder for files.
set -e
cloak=$1 folder=$2
ip link set lo up
ip address add 203.0.113.5/32 dev lo
printf 'nameserver 127.0.0.53\noptions timeout:5\n' > "$folder/resolv.conf"
mount --bind "$folder/resolv.conf" /etc/resolv.conf
cat > "$folder/outside.py" <<'PYTHON'
import socket, threading

def names():
    """Every name has one address of IPv4 and none of IPv6."""
    server = socket.socket(type=socket.SOCK_DGRAM)
    server.bind(("127.0.0.53", 53))
    while True:
        asked, sender = server.recvfrom(512)
        end = asked.index(b"\0", 12) + 5
        question, kind = asked[12:end], asked[end - 4:end - 2]
        answers = b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4" + bytes([203, 0, 113, 5]) if kind == b"\0\1" else b""
        server.sendto(asked[:2] + b"\x81\x80\0\1" + (b"\0\1" if answers else b"\0\0") + b"\0\0\0\0" + question + answers, sender)

threading.Thread(target=names, daemon=True).start()
echo = socket.socket(type=socket.SOCK_DGRAM)
echo.bind(("203.0.113.5", 7))

def echoes():
    while True:
        data, sender = echo.recvfrom(512)
        echo.sendto(data + b" from outside", sender)

threading.Thread(target=echoes, daemon=True).start()
listening = socket.create_server(("203.0.113.5", 80))
loopback = socket.create_server(("127.0.0.1", 81))
print("ready", flush=True)
while True:
    taken, _ = listening.accept()
    taken.sendall(b"hello " + taken.recv(100))
    taken.close()
PYTHON
python3 "$folder/outside.py" > "$folder/ready" &
server=$!
trap 'kill $server' EXIT
until grep -q ready "$folder/ready"; do sleep 0.1; done
"$cloak" run --cpus 1 --memory 512M --network private -- /usr/bin/python3 -c '
import socket
stream = socket.create_connection(("some.name.test", 80))
print(stream.getpeername(), stream.getsockname()[0])
stream.sendall(b"world")
print(stream.makefile().read())
datagram = socket.socket(type=socket.SOCK_DGRAM)
datagram.sendto(b"datagram", ("203.0.113.5", 7))
print(*datagram.recvfrom(100))
datagram.connect(("203.0.113.5", 7))
datagram.send(b"connected")
print(datagram.recv(100))
try:
    socket.create_connection(("127.0.0.1", 81))
except ConnectionRefusedError:
    print("refused")
print(open("/etc/resolv.conf").read(), end="")
'
