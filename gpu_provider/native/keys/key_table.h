/* The key table: which gp_key a handle in the queue means. A handle is serial << 16 | index, never 0 and never used
 * twice.
 *
 * Any thread. A removed key stays until nothing pins it any more; then it has left for good. gp_key_table_remove() and
 * gp_key_table_unpin() tell their caller when one has: a device may have a copy of it, which has to be wiped.
 */
#ifndef GP_KEY_TABLE_H
#define GP_KEY_TABLE_H

#include <stdint.h>

#include "keys/key.h"
#include "types.h"

#define GP_MAX_KEYS 65536u

struct gp_key_counts {
    uint32_t keys;        /* in the table */
    uint32_t kernel_keys; /* of those, with constants for the kernels */
    uint32_t locked_keys; /* of those, in locked memory */
};

/* cffi: */
typedef struct gp_key_table gp_key_table;

gp_key *gp_key_table_get(gp_key_table *table, gp_key_handle handle); /* a new reference, or NULL */

/* Pins a key for one request or call: it stays in the table, removed or not. 0 if there is no such key. bytes: of its
 * modulus. */
int gp_key_table_pin(gp_key_table *table, gp_key_handle handle, uint32_t *bytes);

/* gone[i] = 1 where the key with handles[i] has left the table. Returns how many have. */
uint32_t gp_key_table_find_removed(gp_key_table *table, uint32_t count, const gp_key_handle *handles, uint8_t *gone);
/* :cffi */

/* NULL: out of memory. */
gp_key_table *gp_key_table_new(void);
void gp_key_table_free(gp_key_table *table);

/* Takes a reference. 0: out of memory, or a forked child. */
gp_key_handle gp_key_table_add(gp_key_table *table, gp_key *key);

/* 1 if the key has left the table for good. Does nothing in a forked child. */
int gp_key_table_remove(gp_key_table *table, gp_key_handle handle);

/* 1 if the key has left the table for good. */
int gp_key_table_unpin(gp_key_table *table, gp_key_handle handle, uint32_t pins);

/* How many keys have left the table for good. */
uint64_t gp_key_table_removed(const gp_key_table *table);

void gp_key_table_count(gp_key_table *table, struct gp_key_counts *counts);

#endif
