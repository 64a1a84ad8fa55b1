/* Chooses the ALPN protocol on a server.
 *
 * In C because libssl makes it inside the async job, on its 32 KiB stack, where Python must not run. A table doesn't
 * change once made, and lives as long as its SSL_CTX. */
#ifndef GP_TLS_PROTOCOLS_H
#define GP_TLS_PROTOCOLS_H

#include <openssl/ssl.h>

/* cffi: */
typedef struct gp_protocols gp_protocols;

/* wire: ALPN protocols by the server's preference, each with its length before it. NULL: out of memory. */
gp_protocols *gp_protocols_new(const unsigned char *wire, unsigned int size);
void gp_protocols_free(gp_protocols *protocols);

/* Has ctx choose the first of ours that the client offers; none: the alert no_application_protocol (RFC 7301, 3.2). */
void gp_protocols_install(SSL_CTX *ctx, gp_protocols *protocols);
/* :cffi */

#endif
