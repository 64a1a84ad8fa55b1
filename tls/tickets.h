/* The keys that encrypt session tickets, shared by several SSL_CTXs, so that a client can resume its session although
 * its server has reloaded its certificates since. By default every SSL_CTX has its own keys, and never changes them.
 *
 * In C because libssl asks for them inside the async job, on its 32 KiB stack, where Python must not run. */
#ifndef GP_TLS_TICKETS_H
#define GP_TLS_TICKETS_H

#include <openssl/ssl.h>
#include <stddef.h>
#include <stdint.h>

/* cffi: */
/* The newest key encrypts; the GP_TICKETS_KEYS - 1 earlier ones still decrypt. */
#define GP_TICKETS_KEYS 3

typedef struct gp_tickets gp_tickets;

/* A key encrypts for `interval` nanoseconds, and decrypts for GP_TICKETS_KEYS times as long. libctx must outlive the
 * result. `memfd`: where the keys are, for processes that share them; empty for the first of them, which must be done
 * before the next begins, and not closed before this returns. -1: in this process. NULL: out of memory, or no
 * randomness, with an error queued. */
gp_tickets *gp_tickets_new(OSSL_LIB_CTX *libctx, uint64_t interval, int memfd);

/* Wipes the keys, if no other process may have them. No SSL may use them any more. */
void gp_tickets_free(gp_tickets *tickets);

/* Puts a key of the caller's in the place of the index-th, where 0 encrypts: 48 or 80 bytes, which are its name, what
 * encrypts and what authenticates; or the same in base64. Returns 1, or 0: it is something else. */
int gp_tickets_give(gp_tickets *tickets, size_t index, const char *data, size_t size);

/* Starts to encrypt with a new key. Returns 1, or 0: no randomness, with an error queued. */
int gp_tickets_rotate(gp_tickets *tickets);

/* For a forked child, where the lock may be held by a thread that does not exist there. Shared keys have a lock that
 * both processes use. */
void gp_tickets_after_fork(gp_tickets *tickets);

/* Has the servers of ctx resume no session whose client's certificate has expired since. Otherwise a client could go on
 * for ever, since each resumption gives it a ticket with a new term. */
void gp_tickets_end_with_certificate(SSL_CTX *ctx);

/* For SSLs made from ctx from now on. Returns 1, or 0: out of memory. */
int gp_tickets_install(SSL_CTX *ctx, gp_tickets *tickets);
/* :cffi */

/* Gives a new SSL the keys of its SSL_CTX. It keeps them even if the server name switches it to another SSL_CTX.
 * Returns 1, or 0: out of memory. */
int gp_tickets_inherit(SSL *ssl);

#endif
