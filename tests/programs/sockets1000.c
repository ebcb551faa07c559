/* 1,000 connected TCP sockets in one process (500 connections over loopback), driven by one epoll set; each client
 * sends its own bytes, gets them back, and checks them. */
#include "check.h"
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

enum { CONNECTIONS = 500, MESSAGE = 3000 };

static int clients[CONNECTIONS], servers[CONNECTIONS];
static size_t received[CONNECTIONS];
static unsigned char replies[CONNECTIONS][MESSAGE];

static void fill(unsigned char *message, int which) {
    uint64_t state = (uint64_t)which + 1;
    for (int i = 0; i < MESSAGE; i++)
        message[i] = (unsigned char)next_random(&state);
}

static void watch(int epoll, int fd, uint32_t tag) {
    MUST(fcntl(fd, F_SETFL, O_NONBLOCK) == 0);
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = tag};
    MUST(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) == 0);
}

int main(void) {
    struct rlimit limit;
    MUST(getrlimit(RLIMIT_NOFILE, &limit) == 0);
    limit.rlim_cur = limit.rlim_max;
    MUST(setrlimit(RLIMIT_NOFILE, &limit) == 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), epoll = epoll_create1(0);
    MUST(listener >= 0 && epoll >= 0 && bind(listener, (struct sockaddr *)&address, length) == 0);
    MUST(listen(listener, 128) == 0 && getsockname(listener, (struct sockaddr *)&address, &length) == 0);
    for (int i = 0; i < CONNECTIONS; i++) {
        clients[i] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        MUST(clients[i] >= 0 && connect(clients[i], (struct sockaddr *)&address, sizeof address) == 0);
        servers[i] = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        MUST(servers[i] >= 0);
        watch(epoll, clients[i], (uint32_t)i);
        watch(epoll, servers[i], (uint32_t)i | 0x10000);
    }
    unsigned char message[MESSAGE];
    for (int i = 0; i < CONNECTIONS; i++) {
        fill(message, i);
        MUST(send(clients[i], message, MESSAGE, MSG_NOSIGNAL) == MESSAGE);
    }
    int finished = 0;
    while (finished < CONNECTIONS) {
        struct epoll_event events[64];
        int count = epoll_wait(epoll, events, 64, 30000);
        if (count <= 0)
            break;
        for (int i = 0; i < count; i++) {
            uint32_t which = events[i].data.u32 & 0xffff;
            if (events[i].data.u32 & 0x10000) {
                ssize_t got = recv(servers[which], message, sizeof message, 0);
                MUST(got <= 0 || send(servers[which], message, (size_t)got, MSG_NOSIGNAL) == got);
            } else {
                ssize_t got = recv(clients[which], replies[which] + received[which], MESSAGE - received[which], 0);
                if (got > 0 && (received[which] += (size_t)got) == MESSAGE)
                    finished++;
            }
        }
    }
    int wrong = 0;
    for (int i = 0; i < CONNECTIONS; i++) {
        fill(message, i);
        wrong += memcmp(message, replies[i], MESSAGE) != 0;
    }
    CHECK_WITH("every connection echoed", finished == CONNECTIONS, finished);
    CHECK_WITH("every echo is right", wrong == 0, wrong);
    int closed = 0;
    for (int i = 0; i < CONNECTIONS; i++) {
        MUST(close(servers[i]) == 0 && fcntl(clients[i], F_SETFL, 0) == 0);
        closed += recv(clients[i], message, 1, 0) == 0;
    }
    CHECK_WITH("every client sees the end", closed == CONNECTIONS, closed);
    return check_result();
}
