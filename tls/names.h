/* Chooses a certificate by the server name that a client asks for.
 *
 * In C because libssl makes it inside the async job, on its 32 KiB stack, where Python must not run. A table doesn't
 * change once made, and must outlive the SSLs that use it. It hangs on the SSL and not on the SSL_CTX, because an
 * SSL_CTX that another one's table names may outlive its own table. */
#ifndef GP_TLS_NAMES_H
#define GP_TLS_NAMES_H

#include <openssl/ssl.h>
#include <stddef.h>

/* cffi: */
struct gp_name {
    const char *name; /* in lower case: "host.example" or "*.example" */
    SSL_CTX *ctx;
};

/* Sorted by name, byte by byte. */
typedef struct gp_names {
    size_t count;
    struct gp_name entries[];
} gp_names;

/* Has the SSLs of ctx choose by their table: the exact name, then the wildcard one label up, then ctx itself; without
 * regard to case or a final dot. */
void gp_names_enable(SSL_CTX *ctx);

/* Gives a new SSL its table; NULL: none. Returns 1, or 0: out of memory. */
int gp_names_use(SSL *ssl, gp_names *names);
/* :cffi */

#endif
