/* A key's constants for a device, in a record that a function of the kernels fills. */
#ifndef GP_KEY_RECORD_H
#define GP_KEY_RECORD_H

#include <stdint.h>

#include "keys/key_table.h"
#include "kernels.h"
#include "types.h"

/* cffi: */
/* Instead of a record: the kernels don't support the key. */
#define GP_NO_RECORD 0xffffffffu

struct gp_key_record {
    uint32_t number;     /* in the device's table of the key's size class, or GP_NO_RECORD */
    uint32_t prime_bits; /* of the longer prime */
    uint64_t e;
};

/* gpk_thread_record() of the kernels, with which the core is not linked. */
typedef enum gpk_status gp_key_record_writer(int radix_bits, int class_bytes, void *record, struct gpk_number n,
                                             struct gpk_number e, struct gpk_number p, struct gpk_number q,
                                             struct gpk_number dp, struct gpk_number dq, struct gpk_number qinv);

/* Fills `memory` with a key's constants, and all of `record` but its number. GPK_UNSUPPORTED for a key that the kernels
 * don't support, and for one whose numbers don't belong together: OpenSSL computes those. GPK_INVALID: no such key. */
enum gpk_status gp_key_record_fill(gp_key_table *keys, gp_key_handle handle, gp_key_record_writer *write,
                                   int radix_bits, int class_bytes, void *memory, struct gp_key_record *record);
/* :cffi */

#endif
