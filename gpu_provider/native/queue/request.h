/* The private operation, from its request's submission to its result. */
#ifndef GP_REQUEST_H
#define GP_REQUEST_H

#include <stdint.h>

#include "queue/client.h"

/* cffi: */
/* output = input^d mod n, both key->bytes long, most significant byte first, input < n.
 *
 * In an OpenSSL async job the job pauses and the connection's callback, or its wait fd, tells when to go on; outside a
 * job the thread sleeps. client may be NULL, closed, or from before a fork: OpenSSL computes at once then. 1, or 0 if
 * the request failed. */
int gp_request_private_op(gp_client *client, gp_key *key, gp_key_handle handle, const uint8_t *input, uint8_t *output);
/* :cffi */

/* The same by a consumer in another process, which is not trusted: verify what it SERVED. GAVE_UP: it took too long, or
 * is gone. NOT_SERVED: it could not be asked. FAILED: it says that it could not compute it. It has the client's
 * timeout; or, where nobody else can compute, until must_until_ns (otherwise 0): then a job that can't pause sleeps. */
enum gp_served { GP_NOT_SERVED, GP_SERVED, GP_GAVE_UP, GP_FAILED };
enum gp_served gp_request_of_service(gp_client *client, gp_key_handle handle, uint32_t bytes, const uint8_t *input,
                                     uint8_t *output, uint64_t must_until_ns);

#endif
