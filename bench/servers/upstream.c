/* The HTTP server behind every measured relay: answers "GET /N" with N zero bytes and closes the connection.
 *
 *   upstream PORT       on 127.0.0.1, until it is killed
 *
 * One thread and epoll, so that it costs little beside what is measured.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <inttypes.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "http.h"

#define MAX_FD 4096
#define CHUNK (256 * 1024)

struct exchange {
    char text[256]; /* the request as it arrives, then the response's header */
    size_t have, sent;
    uint64_t body; /* bytes still to send */
    int answering;
};

static struct exchange exchanges[MAX_FD];
static char zeros[CHUNK];

static void die(const char *what)
{
    perror(what);
    exit(1);
}

/* 1: done or broken, close it. */
static int answer(int fd, struct exchange *exchange)
{
    while (exchange->sent < exchange->have) {
        ssize_t n = send(fd, exchange->text + exchange->sent, exchange->have - exchange->sent,
                         MSG_NOSIGNAL | (exchange->body ? MSG_MORE : 0));
        if (n < 0)
            return errno != EAGAIN;
        exchange->sent += (size_t)n;
    }
    while (exchange->body > 0) {
        ssize_t n = send(fd, zeros, exchange->body < CHUNK ? exchange->body : CHUNK, MSG_NOSIGNAL);
        if (n < 0)
            return errno != EAGAIN;
        exchange->body -= (uint64_t)n;
    }
    return 1;
}

static int read_request(int fd, struct exchange *exchange)
{
    ssize_t n = recv(fd, exchange->text + exchange->have, sizeof exchange->text - 1 - exchange->have, 0);
    if (n < 0)
        return errno != EAGAIN;
    exchange->have += (size_t)n;
    exchange->text[exchange->have] = 0;
    if (n == 0)
        return 1;
    if (strstr(exchange->text, "\r\n\r\n") == NULL)
        return 0;
    if (sscanf(exchange->text, "GET /%" SCNu64, &exchange->body) != 1)
        return 1;
    exchange->have = (size_t)snprintf(exchange->text, sizeof exchange->text, RESPONSE, exchange->body);
    exchange->answering = 1;
    return answer(fd, exchange);
}

int main(int argc, char **argv)
{
    if (argc != 2) {
        fprintf(stderr, "usage: upstream PORT\n");
        return 2;
    }
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argv[1])), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int one = 1; /* or connections of an earlier bench, long closed, would keep the port */
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (listener < 0 || bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 1024))
        die("listen on 127.0.0.1");
    int poll = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN, .data.fd = listener};
    if (poll < 0 || epoll_ctl(poll, EPOLL_CTL_ADD, listener, &event))
        die("epoll");
    for (;;) {
        struct epoll_event events[256];
        int count = epoll_wait(poll, events, 256, -1);
        if (count < 0 && errno != EINTR)
            die("epoll_wait");
        for (int i = 0; i < count; i++) {
            int fd = events[i].data.fd;
            if (fd == listener) {
                while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
                    if (fd >= MAX_FD) {
                        close(fd);
                        continue;
                    }
                    exchanges[fd] = (struct exchange){.body = 0};
                    event = (struct epoll_event){.events = EPOLLIN, .data.fd = fd};
                    if (epoll_ctl(poll, EPOLL_CTL_ADD, fd, &event))
                        die("epoll_ctl");
                }
                continue;
            }
            struct exchange *exchange = &exchanges[fd];
            int was_answering = exchange->answering;
            if (was_answering ? answer(fd, exchange) : read_request(fd, exchange)) {
                close(fd);
            } else if (exchange->answering != was_answering) {
                event = (struct epoll_event){.events = EPOLLOUT, .data.fd = fd};
                if (epoll_ctl(poll, EPOLL_CTL_MOD, fd, &event))
                    die("epoll_ctl");
            }
        }
    }
}
