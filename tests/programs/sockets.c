/* Sockets: TCP and UDP over IPv4 and IPv6, Unix streams, datagrams and the abstract name space, socketpairs, options,
 * sendmsg and recvmsg in parts, non-blocking connects, half closes, errors. All traffic is on loopback. */
#include "check.h"
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <stddef.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

static struct sockaddr_storage loopback(int family, socklen_t *length) {
    struct sockaddr_storage address = {.ss_family = (sa_family_t)family};
    if (family == AF_INET)
        ((struct sockaddr_in *)&address)->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    else
        ((struct sockaddr_in6 *)&address)->sin6_addr = in6addr_loopback;
    *length = family == AF_INET ? sizeof(struct sockaddr_in) : sizeof(struct sockaddr_in6);
    return address;
}

static int bound(int family, int kind, struct sockaddr_storage *address, socklen_t *length) {
    *address = loopback(family, length);
    int fd = socket(family, kind | SOCK_CLOEXEC, 0);
    MUST(fd >= 0 && bind(fd, (struct sockaddr *)address, *length) == 0);
    MUST(getsockname(fd, (struct sockaddr *)address, length) == 0);
    return fd;
}

static void *send_much(void *arg) {
    static char bytes[100000];
    uint64_t state = 3;
    int fd = *(int *)arg;
    for (size_t i = 0; i < sizeof bytes; i++)
        bytes[i] = (char)next_random(&state);
    for (int round = 0; round < 20; round++)
        for (size_t sent = 0; sent < sizeof bytes;) {
            ssize_t now = send(fd, bytes + sent, sizeof bytes - sent, MSG_NOSIGNAL);
            MUST(now > 0);
            sent += (size_t)now;
        }
    shutdown(fd, SHUT_WR);
    return NULL;
}

static void tcp(int family, const char *name) {
    printf("-- tcp over %s\n", name);
    struct sockaddr_storage address, peer, self;
    socklen_t length, peer_length = sizeof peer, self_length = sizeof self;
    int listener = bound(family, SOCK_STREAM, &address, &length), yes = 1, value = 0;
    socklen_t value_length = sizeof value;
    CHECK("listen", listen(listener, 5) == 0);
    CHECK("SO_ACCEPTCONN", getsockopt(listener, SOL_SOCKET, SO_ACCEPTCONN, &value, &value_length) == 0 && value == 1);
    CHECK_FAILS("the same address again", ({ int other = socket(family, SOCK_STREAM, 0); int r = bind(other, (struct sockaddr *)&address, length); int e = errno; close(other); errno = e; r; }), EADDRINUSE);
    int client = socket(family, SOCK_STREAM | SOCK_NONBLOCK, 0);
    int connecting = connect(client, (struct sockaddr *)&address, length);
    CHECK_WITH("a connect that does not block", connecting == 0 || errno == EINPROGRESS, errno);
    struct pollfd ready = {.fd = client, .events = POLLOUT};
    CHECK("becomes writable", poll(&ready, 1, 30000) == 1 && getsockopt(client, SOL_SOCKET, SO_ERROR, &value, &value_length) == 0 && value == 0);
    int server = accept4(listener, (struct sockaddr *)&peer, &peer_length, SOCK_CLOEXEC);
    CHECK("accept4", server >= 0 && fcntl(server, F_GETFD) == FD_CLOEXEC && peer.ss_family == family);
    MUST(getsockname(client, (struct sockaddr *)&self, &self_length) == 0);
    CHECK("names agree", self_length == peer_length && memcmp(&self, &peer, self_length) == 0);
    CHECK("options", setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes) == 0 && getsockopt(client, IPPROTO_TCP, TCP_NODELAY, &value, &value_length) == 0 && value == 1);
    CHECK("SO_TYPE", getsockopt(client, SOL_SOCKET, SO_TYPE, &value, &value_length) == 0 && value == SOCK_STREAM);
    CHECK_FAILS("nothing to read", recv(client, &value, 4, 0), EAGAIN);
    CHECK("send and peek", send(server, "hello", 5, 0) == 5 && poll(&(struct pollfd){.fd = client, .events = POLLIN}, 1, 30000) == 1);
    char text[32] = {0};
    CHECK("MSG_PEEK", recv(client, text, 3, MSG_PEEK) == 3 && memcmp(text, "hel", 3) == 0);
    CHECK("FIONREAD", ioctl(client, FIONREAD, &value) == 0 && value == 5);
    CHECK("then all of it", read(client, text, 32) == 5 && memcmp(text, "hello", 5) == 0);
    fcntl(client, F_SETFL, 0);
    struct iovec parts[2] = {{"two ", 4}, {"parts", 5}};
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};
    CHECK("sendmsg", sendmsg(client, &message, 0) == 9);
    CHECK("MSG_WAITALL", recv(server, text, 9, MSG_WAITALL) == 9 && memcmp(text, "two parts", 9) == 0);
    pthread_t thread;
    pthread_create(&thread, NULL, send_much, &client);
    static char bytes[70001];
    uint64_t total = 0, sum = 0;
    for (ssize_t got; (got = recv(server, bytes, sizeof bytes, 0)) > 0; total += (uint64_t)got)
        for (ssize_t i = 0; i < got; i++)
            sum = sum * 31 + (unsigned char)bytes[i];
    pthread_join(thread, NULL);
    printf("received %llu sum %016llx\n", (unsigned long long)total, (unsigned long long)sum);
    CHECK("a half-closed peer still hears", send(server, "bye", 3, 0) == 3 && recv(client, text, 3, MSG_WAITALL) == 3);
    close(server);
    CHECK("the end", recv(client, text, 1, 0) == 0);
    close(client), close(listener);
    client = socket(family, SOCK_STREAM, 0);
    CHECK_FAILS("nobody listens", connect(client, (struct sockaddr *)&address, length), ECONNREFUSED);
    CHECK_FAILS("not connected", send(client, "x", 1, MSG_NOSIGNAL), EPIPE);
    CHECK_FAILS("no peer", getpeername(client, (struct sockaddr *)&peer, &peer_length), ENOTCONN);
    close(client);
}

static void udp(int family, const char *name) {
    printf("-- udp over %s\n", name);
    struct sockaddr_storage here, there, from;
    socklen_t length, there_length, from_length = sizeof from;
    int receiver = bound(family, SOCK_DGRAM, &here, &length), sender = bound(family, SOCK_DGRAM, &there, &there_length);
    char text[32];
    CHECK("sendto", sendto(sender, "datagram", 8, 0, (struct sockaddr *)&here, length) == 8);
    CHECK("recvfrom tells who", recvfrom(receiver, text, 32, 0, (struct sockaddr *)&from, &from_length) == 8 && from_length == there_length && memcmp(&from, &there, from_length) == 0);
    CHECK("connect", connect(sender, (struct sockaddr *)&here, length) == 0 && send(sender, "", 0, 0) == 0 && recv(receiver, text, 32, 0) == 0);
    struct iovec part = {text, 3};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    CHECK("recvmsg tells of a cut", send(sender, "longer", 6, 0) == 6 && recvmsg(receiver, &message, 0) == 3 && (message.msg_flags & MSG_TRUNC));
    struct iovec out[2] = {{"a1", 2}, {"b2", 2}};
    struct mmsghdr several[2] = {{.msg_hdr = {.msg_iov = &out[0], .msg_iovlen = 1}}, {.msg_hdr = {.msg_iov = &out[1], .msg_iovlen = 1}}};
    CHECK("sendmmsg", sendmmsg(sender, several, 2, 0) == 2);
    char got[2][8];
    struct iovec in[2] = {{got[0], 8}, {got[1], 8}};
    struct mmsghdr back[2] = {{.msg_hdr = {.msg_iov = &in[0], .msg_iovlen = 1}}, {.msg_hdr = {.msg_iov = &in[1], .msg_iovlen = 1}}};
    CHECK("recvmmsg", recvmmsg(receiver, back, 2, 0, NULL) == 2 && back[1].msg_len == 2 && memcmp(got[1], "b2", 2) == 0);
    struct timeval brief = {.tv_usec = 5000};
    CHECK("SO_RCVTIMEO", setsockopt(receiver, SOL_SOCKET, SO_RCVTIMEO, &brief, sizeof brief) == 0);
    CHECK_FAILS("runs out", recv(receiver, text, 1, 0), EAGAIN);
    CHECK_FAILS("no destination", send(receiver, "x", 1, 0), EDESTADDRREQ);
    close(receiver), close(sender);
}

static void unix_sockets(const char *name) {
    printf("-- unix\n");
    struct sockaddr_un address = {.sun_family = AF_UNIX}, peer;
    socklen_t length = sizeof peer;
    snprintf(address.sun_path, sizeof address.sun_path, "%s", name);
    int listener = socket(AF_UNIX, SOCK_STREAM, 0), client = socket(AF_UNIX, SOCK_STREAM, 0);
    char text[32];
    CHECK("bind makes a name", bind(listener, (struct sockaddr *)&address, sizeof address) == 0 && access(name, F_OK) == 0 && listen(listener, 3) == 0);
    CHECK("connect by name", connect(client, (struct sockaddr *)&address, sizeof address) == 0);
    int server = accept(listener, NULL, NULL);
    CHECK("getpeername tells it", getpeername(client, (struct sockaddr *)&peer, &length) == 0 && strcmp(peer.sun_path, name) == 0);
    CHECK("data both ways", write(client, "ping", 4) == 4 && read(server, text, 32) == 4 && write(server, "pong!", 5) == 5 && read(client, text, 32) == 5);
    struct ucred credentials;
    socklen_t size = sizeof credentials;
    CHECK("SO_PEERCRED", getsockopt(server, SOL_SOCKET, SO_PEERCRED, &credentials, &size) == 0 && credentials.pid == getpid() && credentials.uid == getuid());
    close(server), close(client), close(listener), unlink(name);
    client = socket(AF_UNIX, SOCK_STREAM, 0);
    CHECK_FAILS("a name that is gone", connect(client, (struct sockaddr *)&address, sizeof address), ENOENT);
    close(client);
    struct sockaddr_un abstract = {.sun_family = AF_UNIX};
    int digits = snprintf(abstract.sun_path + 1, 100, "cloak-test-%d", getpid());
    socklen_t abstract_length = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + (size_t)digits);
    int receiver = socket(AF_UNIX, SOCK_DGRAM, 0), sender = socket(AF_UNIX, SOCK_DGRAM, 0);
    CHECK("an abstract name", bind(receiver, (struct sockaddr *)&abstract, abstract_length) == 0);
    CHECK("a datagram to it", sendto(sender, "dgram", 5, 0, (struct sockaddr *)&abstract, abstract_length) == 5 && recv(receiver, text, 32, 0) == 5);
    close(receiver), close(sender);
    int kinds[] = {SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET}, pair[2];
    const char *kind_names[] = {"a stream pair", "a datagram pair", "a seqpacket pair"};
    for (int i = 0; i < 3; i++) {
        MUST(socketpair(AF_UNIX, kinds[i] | SOCK_CLOEXEC, 0, pair) == 0);
        ssize_t first = (write(pair[0], "abc", 3), write(pair[0], "defg", 4), read(pair[1], text, 32));
        CHECK_WITH(kind_names[i], first == (i == 0 ? 7 : 3), first);
        close(pair[0]);
        if (i == 2)
            CHECK("its messages, then its end", read(pair[1], text, 32) == 4 && read(pair[1], text, 32) == 0);
        close(pair[1]);
    }
    CHECK_FAILS("a family that is none", socket(200, SOCK_STREAM, 0), EAFNOSUPPORT);
    CHECK_FAILS("a file is no socket", ({ int fd = open("/dev/null", O_RDWR); long r = send(fd, "x", 1, 0); int e = errno; close(fd); errno = e; r; }), ENOTSOCK);
}

int main(int argc, char **argv) {
    tcp(AF_INET, "IPv4");
    udp(AF_INET, "IPv4");
    int six = socket(AF_INET6, SOCK_STREAM, 0);
    socklen_t length;
    struct sockaddr_storage address = loopback(AF_INET6, &length);
    /* A machine without IPv6 says so, natively and cloaked alike. */
    if (six >= 0 && bind(six, (struct sockaddr *)&address, length) == 0) {
        tcp(AF_INET6, "IPv6");
        udp(AF_INET6, "IPv6");
    } else {
        printf("-- no IPv6 here\n");
    }
    close(six);
    unix_sockets(argc > 1 ? argv[1] : "/tmp/cloak-unix-socket");
    return check_result();
}
