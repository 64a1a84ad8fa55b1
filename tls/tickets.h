/* The keys that session tickets are encrypted with, for several SSL_CTXs together: so a client resumes its session although
 * its server has read its certificates again since. By itself every SSL_CTX makes keys of its own, and never new ones.
 *
 * In C because libssl asks for them inside the async job, on its 32 KiB stack, where Python must not run. */
#ifndef GP_TLS_TICKETS_H
#define GP_TLS_TICKETS_H

#include <openssl/ssl.h>
#include <stdint.h>

/* A new key encrypts from then on; GP_TICKETS_KEYS - 1 earlier ones still decrypt. */
#define GP_TICKETS_KEYS 3

/* ---- Python calls what follows: ssl_build.py reads it ---- */

typedef struct gp_tickets gp_tickets;

/* A key encrypts for `interval` nanoseconds, and decrypts for GP_TICKETS_KEYS times as long. libctx must not be freed before
 * the result is. NULL: out of memory, or no randomness, with an error queued. */
gp_tickets *gp_tickets_new(OSSL_LIB_CTX *libctx, uint64_t interval);

/* Wipes the keys. No SSL may use them any more. */
void gp_tickets_free(gp_tickets *tickets);

/* Begins a new key now. 1, or 0: no randomness, with an error queued. */
int gp_tickets_rotate(gp_tickets *tickets);

/* In a forked child, where a thread that is not there may have held the lock. */
void gp_tickets_after_fork(gp_tickets *tickets);

/* For the SSLs made from ctx from now on. 1, or 0: out of memory. */
int gp_tickets_install(SSL_CTX *ctx, gp_tickets *tickets);

/* ---- end of what Python calls ---- */

/* Gives a new SSL what was installed in its SSL_CTX, whichever that one is later turned to by the server's name. 1, or 0: out
 * of memory. */
int gp_tickets_inherit(SSL *ssl);

#endif
