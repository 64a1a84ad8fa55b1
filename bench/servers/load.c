/* Opens TLS 1.3 connections one after the other, up to CONCURRENCY at a time, sends one HTTP request over each, reads
 * the response to its end, and prints one JSON object: totals, its own CPU time, and every handshake's latency.
 *
 *   load PORT CONNECTIONS CONCURRENCY BYTES
 *
 * It offers TLS_AES_128_GCM_SHA256 and X25519 alone and never resumes a session, so that every server does the same
 * work. The certificate is not checked against anything; the server's signature is. One thread and epoll.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "http.h"

#define READ_SIZE (256 * 1024)

enum stage { CONNECTING, HANDSHAKING, SENDING, READING };

struct connection {
    int fd;
    enum stage stage;
    uint32_t events; /* what epoll watches for */
    SSL *ssl;
    uint64_t connected_ns, received;
    int header_end; /* how many bytes of "\r\n\r\n" have come, one after the other */
    uint64_t body;
};

static struct sockaddr_in address = {.sin_family = AF_INET};
static SSL_CTX *context;
static int poll_fd;
static char request[256];
static int request_size;
static uint64_t expected; /* bytes of a response's body */
static uint64_t *latencies_ns;
static uint64_t received, tickets, handshakes, failed, abrupt;
static char first_failure[256];

static uint64_t now_ns(clockid_t clock)
{
    struct timespec time;
    clock_gettime(clock, &time);
    return (uint64_t)time.tv_sec * UINT64_C(1000000000) + (uint64_t)time.tv_nsec;
}

static void die(const char *what)
{
    fprintf(stderr, "load: %s: %s\n", what, strerror(errno));
    ERR_print_errors_fp(stderr);
    exit(1);
}

static int count_ticket(SSL *ssl, SSL_SESSION *session)
{
    (void)ssl, (void)session;
    tickets++;
    return 0;
}

/* Returns 1, for step(). */
static int fail(const char *what)
{
    failed++;
    if (first_failure[0] == 0) {
        const char *reason = ERR_reason_error_string(ERR_peek_error());
        snprintf(first_failure, sizeof first_failure, "%s: %s", what, reason ? reason : strerror(errno));
    }
    ERR_clear_error();
    return 1;
}

static void watch(struct connection *connection, uint32_t events)
{
    if (connection->events == events)
        return;
    struct epoll_event event = {.events = events, .data.ptr = connection};
    if (epoll_ctl(poll_fd, connection->events ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, connection->fd, &event))
        die("epoll_ctl");
    connection->events = events;
}

static void open_connection(struct connection *connection)
{
    int one = 1;
    *connection = (struct connection){.fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), .ssl = SSL_new(context)};
    if (connection->fd < 0 || connection->ssl == NULL || !SSL_set_fd(connection->ssl, connection->fd))
        die("new connection");
    setsockopt(connection->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    SSL_set_connect_state(connection->ssl);
    if (connect(connection->fd, (struct sockaddr *)&address, sizeof address) && errno != EINPROGRESS)
        die("connect");
    watch(connection, EPOLLOUT);
}

/* 1: the SSL call wants to be called again when the socket is ready. */
static int wants_more(struct connection *connection, int result)
{
    switch (SSL_get_error(connection->ssl, result)) {
    case SSL_ERROR_WANT_READ:
        watch(connection, EPOLLIN);
        return 1;
    case SSL_ERROR_WANT_WRITE:
        watch(connection, EPOLLOUT);
        return 1;
    default:
        return 0;
    }
}

/* How long the header is depends on the server. */
static void count_bytes(struct connection *connection, const char *data, int size)
{
    int i = 0;
    connection->received += (uint64_t)size;
    for (; i < size && connection->header_end < 4; i++)
        connection->header_end =
            data[i] == "\r\n\r\n"[connection->header_end] ? connection->header_end + 1 : data[i] == '\r';
    connection->body += (uint64_t)(size - i);
}

/* 1: the connection has ended, well or badly. */
static int step(struct connection *connection)
{
    static char buffer[READ_SIZE];
    int result;
    ERR_clear_error();
    switch (connection->stage) {
    case CONNECTING: {
        int error;
        socklen_t size = sizeof error;
        getsockopt(connection->fd, SOL_SOCKET, SO_ERROR, &error, &size);
        if (error) {
            errno = error;
            return fail("connect");
        }
        connection->connected_ns = now_ns(CLOCK_MONOTONIC);
        connection->stage = HANDSHAKING;
    }
    /* fall through */
    case HANDSHAKING:
        if ((result = SSL_do_handshake(connection->ssl)) != 1)
            return wants_more(connection, result) ? 0 : fail("handshake");
        latencies_ns[handshakes++] = now_ns(CLOCK_MONOTONIC) - connection->connected_ns;
        connection->stage = SENDING;
    /* fall through */
    case SENDING:
        if ((result = SSL_write(connection->ssl, request, request_size)) <= 0)
            return wants_more(connection, result) ? 0 : fail("request");
        connection->stage = READING;
    /* fall through */
    case READING:
        while ((result = SSL_read(connection->ssl, buffer, READ_SIZE)) > 0)
            count_bytes(connection, buffer, result);
        if (wants_more(connection, result))
            return 0;
        received += connection->received;
        if (connection->header_end < 4 || connection->body != expected)
            return fail("not the whole response");
        if (!(SSL_get_shutdown(connection->ssl) & SSL_RECEIVED_SHUTDOWN))
            abrupt++;
        else
            SSL_shutdown(connection->ssl);
    }
    return 1;
}

int main(int argc, char **argv)
{
    if (argc != 5) {
        fprintf(stderr, "usage: load PORT CONNECTIONS CONCURRENCY BYTES\n");
        return 2;
    }
    uint64_t connections = strtoull(argv[2], NULL, 10), concurrency = strtoull(argv[3], NULL, 10);
    expected = strtoull(argv[4], NULL, 10);
    address.sin_port = htons((uint16_t)atoi(argv[1]));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    request_size = snprintf(request, sizeof request, REQUEST, expected);
    if (concurrency > connections)
        concurrency = connections;

    context = SSL_CTX_new(TLS_client_method());
    if (context == NULL || !SSL_CTX_set_min_proto_version(context, TLS1_3_VERSION)
        || !SSL_CTX_set_ciphersuites(context, "TLS_AES_128_GCM_SHA256") || !SSL_CTX_set1_groups_list(context, "X25519"))
        die("TLS context");
    SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_CLIENT | SSL_SESS_CACHE_NO_INTERNAL);
    SSL_CTX_sess_set_new_cb(context, count_ticket);
    SSL_CTX_set_read_ahead(context, 1); /* one read for many records: the client must not be what is measured */
    SSL_CTX_set_default_read_buffer_len(context, READ_SIZE);
    latencies_ns = calloc(connections, sizeof *latencies_ns);
    struct connection *open = calloc(concurrency, sizeof *open);
    poll_fd = epoll_create1(0);
    if (latencies_ns == NULL || open == NULL || poll_fd < 0)
        die("set-up");

    uint64_t begin = now_ns(CLOCK_MONOTONIC), cpu = now_ns(CLOCK_PROCESS_CPUTIME_ID);
    uint64_t started = 0, ended = 0;
    while (started < concurrency)
        open_connection(&open[started++]);
    while (ended < connections) {
        struct epoll_event events[64];
        int count = epoll_wait(poll_fd, events, 64, -1);
        if (count < 0 && errno != EINTR)
            die("epoll_wait");
        for (int i = 0; i < count; i++) {
            struct connection *connection = events[i].data.ptr;
            if (!step(connection))
                continue;
            SSL_free(connection->ssl);
            close(connection->fd);
            ended++;
            if (started < connections) {
                open_connection(connection);
                started++;
            }
        }
    }
    uint64_t end = now_ns(CLOCK_MONOTONIC);
    cpu = now_ns(CLOCK_PROCESS_CPUTIME_ID) - cpu;
    printf("{\"failed\": %" PRIu64 ", \"failure\": \"%s\", \"connections\": %" PRIu64 ", \"wall_seconds\": %.9f, "
           "\"client_cpu_seconds\": %.9f, \"tickets\": %" PRIu64 ", \"bytes\": %" PRIu64 ", \"abrupt\": %" PRIu64 ", "
           "\"handshake_seconds\": [",
           failed, first_failure, ended, 1e-9 * (double)(end - begin), 1e-9 * (double)cpu, tickets, received, abrupt);
    for (uint64_t i = 0; i < handshakes; i++)
        printf("%s%.9f", i ? ", " : "", 1e-9 * (double)latencies_ns[i]);
    printf("]}\n");
    return 0;
}
