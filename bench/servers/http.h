/* The one exchange that load.c and upstream.c speak: a request names how many bytes the response's body shall have. */
#ifndef BENCH_HTTP_H
#define BENCH_HTTP_H

#define REQUEST "GET /%" PRIu64 " HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
#define RESPONSE "HTTP/1.1 200 OK\r\nContent-Length: %020" PRIu64 "\r\nConnection: close\r\n\r\n"

#endif
