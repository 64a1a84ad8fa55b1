/* OpenSSL's arithmetic over a batch: the backend of last resort, and the check of the others' results.
 *
 * Any thread; no lock is held while anything is computed. Rows are least significant byte first.
 */
#ifndef GP_LIBCRYPTO_H
#define GP_LIBCRYPTO_H

#include <stdint.h>

#include "keys/key_table.h"
#include "types.h"

/* cffi: */
/* ok[i] = 1 where outputs[i] = inputs[i]^d mod n. Rows are `stride` bytes. */
void gp_libcrypto_private(gp_key_table *keys, uint32_t count, const gp_key_handle *handles, const uint8_t *inputs,
                          uint8_t *outputs, uint32_t stride, uint8_t *ok);

/* Clears ok[i] where outputs[i]^e mod n is not inputs[i]. Returns how many it cleared. */
uint32_t gp_libcrypto_verify(gp_key_table *keys, uint32_t count, const gp_key_handle *handles, const uint8_t *inputs,
                             const uint8_t *outputs, uint32_t stride, uint8_t *ok);
/* :cffi */

#endif
