/* The private operation, and the three ways in which its caller waits for it.
 *
 * A gp_wait belongs to one ASYNC_WAIT_CTX, that is to one connection. It is counted: the wait context has a reference,
 * and so has each request and each place in the wait queue.
 */
#ifndef GP_WAIT_H
#define GP_WAIT_H

#include <stdint.h>

#include "queue/client.h"

/* cffi: */
/* output = input^d mod n, both key->bytes long, most significant byte first, input < n.
 *
 * In an OpenSSL async job the job pauses and the connection's callback, or its wait fd, tells when to go on; outside a
 * job the thread sleeps. client may be NULL, closed, or from before a fork: OpenSSL computes at once then. 1, or 0 if
 * the request failed. */
int gp_wait_private_op(gp_client *client, gp_key *key, gp_key_handle handle, const uint8_t *input, uint8_t *output);
/* :cffi */

/* Fetches from memory what gp_wait_notify() will need soon. */
void gp_wait_prefetch(const struct gp_wait *wait);

/* Fires the callback of a job's connection, or signals its wait fd. Hold no lock. */
void gp_wait_notify(struct gp_wait *wait);

/* The request failed: to be called before it is published as done, since afterwards the job may have gone on. */
void gp_wait_set_error(struct gp_wait *wait);

void gp_wait_free(struct gp_wait *wait);

#endif
