/* What the kernels of launch.h need of the processor: the list of units, and the records of keys and moduli. All
 * functions may be called from any number of threads at once. */
#ifndef GPK_RECORDS_H
#define GPK_RECORDS_H

#include "gpu/launch.h"
#include "kernels.h"

extern "C" {
/* cffi: */

/* The units that a device has; NULL after the last. */
const struct gpk_unit *gpk_unit_at(int index);

/* Fills the record that kernels of this radix and class read, of key_bytes, from a key: any odd e of at most 64 bits, n
 * of at most 8 class_bytes bits, primes of at most 4 class_bytes (radix 2^32) or 52 N - 4 bits, where N is their limbs
 * (radix 2^52). Constant time, except in the numbers' sizes; the record is as secret as the key. */
enum gpk_status gpk_thread_record(int radix_bits, int class_bytes, void *record, struct gpk_number n,
                                  struct gpk_number e, struct gpk_number p, struct gpk_number q, struct gpk_number dp,
                                  struct gpk_number dq, struct gpk_number qinv);

/* The same, of modulus_bytes, from an odd modulus of at least 3 and at most 8 class_bytes bits; GPK_INVALID for
 * another. Public. */
enum gpk_status gpk_thread_modulus(int radix_bits, int class_bytes, void *record, struct gpk_number modulus);

/* :cffi */
} /* extern "C" */

#endif
