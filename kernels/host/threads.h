/* The C interface of the multi-thread kernels on a processor: what a GPU needs of them, and their host build.
 *
 * A GPU needs the list of units, and the records of keys and moduli. The host build computes by a function call what a
 * device launches (launch.h), from the same source, for tests and for a host device in place of a GPU. All functions
 * may be called from any number of threads at once, as long as no two launches share a blinding pair.
 */
#ifndef GPK_HOST_THREADS_H
#define GPK_HOST_THREADS_H

#include "gpu/launch.h"
#include "kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

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

/* A kernel of the host build. */
struct gpk_host_kernel {
    enum gpk_operation operation;
    struct gpk_unit unit;
};

/* The host build's kernels, fewer than a device's; NULL after the last. None where an x86-64 processor lacks AVX2 or
 * FMA. */
const struct gpk_host_kernel *gpk_host_kernel_at(int index);

/* Computes all rows with kernel `index`: launch is a gpk_private_launch or a gpk_modexp_launch, whose memory must fit
 * the kernel; nothing is checked. Leaves the thread's rounding mode as it was. */
enum gpk_status gpk_host_run(int index, const void *launch);

/* :cffi */

#ifdef __cplusplus
}
#endif

#endif
