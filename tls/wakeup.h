/* How a paused connection's async callback reaches Python: rings of connection ids, each with an eventfd.
 *
 * libssl's callback may fire on any thread, inside the connection's own SSL_do_handshake() (on the job's 32 KiB stack), and
 * late. So it never runs Python, and its argument is not a pointer but two numbers: which ring, and which connection. Rings
 * live in a static table and are never freed, only reused, and ids are never used twice in a process; a late firing finds
 * a closed ring, or puts an id there that nobody knows, and both are ignored.
 */
#ifndef GP_TLS_WAKEUP_H
#define GP_TLS_WAKEUP_H

#include <openssl/ssl.h>
#include <stddef.h>
#include <stdint.h>

/* ---- Python calls what follows: ssl_build.py reads it ---- */

/* The number of a new ring, or a negative errno value. */
int gp_wakeup_open(void);

/* The ring's eventfd, readable while there are ids to take. It belongs to the ring. */
int gp_wakeup_descriptor(int ring);

/* Closes the descriptor and drops what was not taken. */
void gp_wakeup_close(int ring);

/* The same in a forked child, where the ring's lock may be held by a thread that is not there: the ring is not used again. */
void gp_wakeup_abandon(int ring);

/* Moves up to `capacity` ids out, oldest first, and returns how many; call again while it returns `capacity`.
 * *lost becomes 1 if ids were dropped for want of memory: every waiting connection must be looked at then. */
size_t gp_wakeup_take(int ring, uint64_t *ids, size_t capacity, int *lost);

/* Has ssl's async callback put `id` into the ring. Before the connection's first operation. 1, or 0 on error. */
int gp_wakeup_attach(SSL *ssl, int ring, uint64_t id);

/* The callback for all that are made from ctx, or none; without a ring, so that each must be attached. 1, or 0 on error. */
int gp_wakeup_attach_context(SSL_CTX *ctx, int on);

/* No callback for this connection: wait descriptors. 1, or 0 on error. */
int gp_wakeup_detach(SSL *ssl);

/* ---- end of what Python calls ---- */

#endif
