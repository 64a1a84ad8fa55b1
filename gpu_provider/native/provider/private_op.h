/* The RSA private operation of a provider's key: by its batching provider, or at once by OpenSSL. */
#ifndef GP_PRIVATE_OP_H
#define GP_PRIVATE_OP_H

#include <stdint.h>

#include "provider/provider.h"

/* output = input^d mod n, verified with e, both key->bytes long, most significant byte first, input < n, for a key that
 * has a modulus. In an async job this is where the job pauses. An error is raised when it returns 0. */
int gp_private_op(gp_rsa_key *key, const uint8_t *input, uint8_t *output);

#endif
