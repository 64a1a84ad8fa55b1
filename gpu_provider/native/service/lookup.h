/* Asks the service for the public part of a key that it has, and waits for the answer: for whoever loads a key by its
 * name alone. Over a connection of its own, so any thread may. */
#ifndef GP_LOOKUP_H
#define GP_LOOKUP_H

#include <stdint.h>

#include "types.h"

/* cffi: */
/* Both most significant byte first. */
struct gp_public_key {
    uint16_t modulus_size, exponent_size;
    uint8_t modulus[GP_MAX_BYTES], exponent[GP_MAX_BYTES];
};

enum gp_lookup {
    GP_LOOKUP_FOUND,
    GP_LOOKUP_NO_KEY,     /* of this name */
    GP_LOOKUP_NO_SERVICE, /* none that answers within timeout_ns; errno says why */
    GP_LOOKUP_BAD_NAME    /* no key can have it */
};
enum gp_lookup gp_lookup(const char *path, const char *name, uint64_t timeout_ns, struct gp_public_key *found);
/* :cffi */

#endif
