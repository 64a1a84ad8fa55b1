/* Chooses a certificate by the server name that a client asks for.
 *
 * In C because libssl makes it inside the async job, on its 32 KiB stack, where Python must not run. A table doesn't
 * change once made, and lives as long as the SSLs that use it. It hangs on the SSL and not on the SSL_CTX, because an
 * SSL_CTX that another one's table names may outlive its own table. */
#ifndef GP_TLS_NAMES_H
#define GP_TLS_NAMES_H

#include <openssl/ssl.h>
#include <stddef.h>

/* cffi: */
typedef struct gp_names gp_names;

/* names: `count` lower-case strings, "host.example" or "*.example"; contexts[i] belongs to names[i] and must
 * outlive the table. NULL: out of memory. */
gp_names *gp_names_new(const char *const *names, SSL_CTX *const *contexts, size_t count);
void gp_names_free(gp_names *names);

/* Has the SSLs of ctx choose by their table: the exact name, then the wildcard one label up, then ctx itself; without
 * regard to case or a final dot. */
void gp_names_enable(SSL_CTX *ctx);

/* Gives a new SSL its table; NULL: none. Returns 1, or 0: out of memory. */
int gp_names_use(SSL *ssl, gp_names *names);
/* :cffi */

#endif
