/* One libssl operation for each call from Python, with its error: ERR_clear_error, the operation, SSL_get_error. */
#ifndef GP_TLS_CONNECTION_H
#define GP_TLS_CONNECTION_H

#include <openssl/ssl.h>
#include <stddef.h>
#include <stdint.h>

/* cffi: */
enum gp_connection_operation { GP_HANDSHAKE, GP_READ, GP_WRITE, GP_SHUTDOWN };

/* Beside the SSL_ERROR_ values: the peer sent too much that is not application data (flood.h), and the connection is
 * over. */
#define GP_ERROR_FLOOD 255

/* A new SSL: over the socket `descriptor`, or over two memory BIOs if that is negative. On failure NULL, with an error
 * queued. */
SSL *gp_connection_new(SSL_CTX *ctx, int descriptor);

/* Returns done << 8 | the SSL_ERROR_ value or GP_ERROR_FLOOD. done: bytes read or written; for a shutdown 1 once both
 * sides have closed. errno is that of the operation.
 *
 * Without SSL_MODE_ASYNC a write goes on, record after record, until the buffer is done or libssl stops, and so does a
 * read that can't block: done and an error may then both be set. A read of very many small records stops earlier,
 * without an error. With SSL_MODE_ASYNC both end after one record, since a pause has to leave the caller's arguments
 * unchanged. */
uint64_t gp_connection_operate(SSL *ssl, int operation, void *buffer, size_t size);

/* Cuts the connection off from its peer: reads meet the end, writes go nowhere. The descriptor is no longer used.
 * Returns 1, or 0: out of memory. */
int gp_connection_cut_off(SSL *ssl);
/* :cffi */

#endif
