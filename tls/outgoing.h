/* A BIO through which libssl writes to a socket. It accepts only whole records, and keeps what the socket has no room
 * for.
 *
 * libssl itself can't cope with a half-written record when a peer asks for a key update: it answers while it reads, and
 * the answer fails with "bad length", which is fatal. So here it never has one. Its caller does not notice: a record
 * that is still kept counts as not written, and SSL_ERROR_WANT_WRITE says so. */
#ifndef GP_TLS_OUTGOING_H
#define GP_TLS_OUTGOING_H

#include <openssl/bio.h>
#include <openssl/ssl.h>
#include <stddef.h>

struct gp_outgoing {
    int descriptor;
    size_t unreported; /* application data in the kept record, which the caller believes unwritten */
    int shut_down;     /* 1 + what SSL_shutdown has returned while its alert is kept; 0: nothing */
    unsigned char *kept;
    size_t begin, end;
};

/* NULL: out of memory. */
BIO *gp_outgoing_new(int descriptor);

/* NULL if the SSL does not write to such a BIO. */
struct gp_outgoing *gp_outgoing_of(SSL *ssl);

/* Sends what is kept. 1 if nothing is left, 0 if the socket has no more room, -1 with errno. */
int gp_outgoing_send(struct gp_outgoing *outgoing);

#endif
