/* Brings a paused connection's async callback to Python: rings of connection ids, each with an eventfd.
 *
 * libssl's callback may fire on any thread, inside the connection's own SSL_do_handshake() (on the job's 32 KiB stack),
 * and late. So it never runs Python, and its argument is not a pointer but two numbers: the ring, and the connection.
 * Rings live in a static table and are never freed, only reused, and ids are never used twice in a process. A late
 * callback finds a closed ring, or adds an id that nobody knows, and both are ignored. */
#ifndef GP_TLS_WAKEUP_H
#define GP_TLS_WAKEUP_H

#include <openssl/ssl.h>
#include <stddef.h>
#include <stdint.h>

/* cffi: */
/* The number of a new ring, or a negative errno value. */
int gp_wakeup_open(void);

/* The ring's eventfd, which is readable while there are ids to take. It belongs to the ring. */
int gp_wakeup_descriptor(int ring);

/* Closes the descriptor and drops what was not taken. */
void gp_wakeup_close(int ring);

/* The same in a forked child, where the ring's lock may be held by a thread that does not exist there: the ring is not
 * used again. */
void gp_wakeup_abandon(int ring);

/* Moves up to `capacity` ids out, oldest first, and returns how many; call again while it returns `capacity`.
 * *lost becomes 1 if ids were dropped for lack of memory: every waiting connection must then be checked. */
size_t gp_wakeup_take(int ring, uint64_t *ids, size_t capacity, int *lost);

/* Has ssl's async callback put `id` into the ring. Call it before the connection's first operation. Returns 1, or 0 on
 * error. */
int gp_wakeup_attach(SSL *ssl, int ring, uint64_t id);

/* Sets or removes the callback of all SSLs made from ctx. It has no ring, so each SSL must be attached. Returns 1, or 0
 * on error. */
int gp_wakeup_attach_context(SSL_CTX *ctx, int on);

/* Removes this connection's callback: it uses wait descriptors. Returns 1, or 0 on error. */
int gp_wakeup_detach(SSL *ssl);
/* :cffi */

#endif
