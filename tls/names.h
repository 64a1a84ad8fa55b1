/* The choices that libssl asks for in the middle of a handshake: the certificate by server name, and the ALPN protocol.
 *
 * In C because they run inside the async job, on its 32 KiB stack, where Python must not run. The tables don't change once
 * made. A table of names lives as long as the SSLs that use it; it hangs on the SSL and not on the SSL_CTX, because an SSL_CTX
 * that another one's table names may outlive its own table. A table of protocols lives as long as its SSL_CTX. */
#ifndef GP_TLS_SELECTION_H
#define GP_TLS_SELECTION_H

#include <openssl/ssl.h>
#include <stddef.h>

typedef struct gp_names gp_names;
typedef struct gp_protocols gp_protocols;

/* names: `count` lower-case strings, "host.example" or "*.example"; contexts[i] belongs to names[i] and must
 * outlive the table. NULL: out of memory. */
gp_names *gp_names_new(const char *const *names, SSL_CTX *const *contexts, size_t count);
void gp_names_free(gp_names *names);

/* Has the SSLs of ctx choose by their table: exact name, then the wildcard one label up, then ctx itself; without regard to
 * case or a final dot. */
void gp_names_enable(SSL_CTX *ctx);

/* Gives a new SSL its table; NULL: none. 1, or 0: out of memory. */
int gp_names_use(SSL *ssl, gp_names *names);

/* wire: ALPN protocols by the server's preference, each with its length before it. NULL: out of memory. */
gp_protocols *gp_protocols_new(const unsigned char *wire, unsigned int size);
void gp_protocols_free(gp_protocols *protocols);

/* The first of ours that the client offers; none: the alert no_application_protocol (RFC 7301, 3.2). */
void gp_protocols_install(SSL_CTX *ctx, gp_protocols *protocols);

#endif
