/* Chooses the ALPN protocol on a server.
 *
 * In C because libssl makes it inside the async job, on its 32 KiB stack, where Python must not run. */
#ifndef GP_TLS_PROTOCOLS_H
#define GP_TLS_PROTOCOLS_H

#include <openssl/ssl.h>

/* cffi: */
/* ALPN protocols by the server's preference, each with its length before it. */
typedef struct gp_protocols {
    unsigned int size;
    unsigned char wire[];
} gp_protocols;

/* Has ctx choose the first of ours that the client offers; none: the alert no_application_protocol (RFC 7301, 3.2).
 * The table must outlive ctx, and not change. */
void gp_protocols_install(SSL_CTX *ctx, gp_protocols *protocols);
/* :cffi */

#endif
