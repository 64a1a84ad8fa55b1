/* C interface of the multi-thread kernels' host build: what a device launches (launch.h), computed by a function call.
 * For tests, and for a host device in place of a GPU: the same source, memory layouts and arguments.
 *
 * Also for a device: the list of kernels, and how key and modulus records are filled. May be called from any number of
 * threads at once, as long as no two launches share a blinding pair.
 */
#ifndef GPK_HOST_THREADS_H
#define GPK_HOST_THREADS_H

#include "kernels.h"
#include "gpu/launch.h"

#ifdef __cplusplus
extern "C" {
#endif

enum gpk_operation {
    GPK_PRIVATE_OPERATION, /* of gpk_private_launch */
    GPK_MAKE_PAIRS,        /* of gpk_private_launch */
    GPK_MODEXP,            /* of gpk_modexp_launch */
};

struct gpk_thread_kernel {
    const char *name; /* gpk_private_r52_256_t4_w3: operation, radix, class in bytes, threads of a row, window */
    enum gpk_operation operation;
    int radix_bits;   /* 32 or 52 */
    int class_bytes;  /* of a row of numbers */
    int threads;      /* of a row */
    int window;
    int rows;         /* of a warp */
    int table_bytes;  /* shared memory of a warp on a device */
    int record_bytes; /* of a key's record, or of a modulus's */
    int pair_bytes;   /* of a blinding pair; 0 for GPK_MODEXP */
};

/* The kernels that this host build has, fewer than a device's; NULL behind the last. None where an x86-64 processor
 * lacks AVX2 or FMA. */
const struct gpk_thread_kernel *gpk_thread_kernel_at(int index);

/* Runs kernel `index` over all rows: launch is a gpk_private_launch or a gpk_modexp_launch, whose memory
 * must fit the kernel; nothing is checked. The thread's rounding mode is as before when it returns. */
enum gpk_status gpk_thread_run(int index, const void *launch);

/* Fills the record that kernels of this radix and class read, record_bytes long, of a key: any odd e of at most 64
 * bits, n of at most 8 class_bytes bits, primes of at most 4 class_bytes (radix 2^32) or up to 52 N - 4 bits, where N
 * is the limbs (radix 2^52). Constant time but for the numbers' sizes; the record is as secret as the key. */
enum gpk_status gpk_thread_record(int radix_bits, int class_bytes, void *record, struct gpk_number n,
                                  struct gpk_number e, struct gpk_number p, struct gpk_number q, struct gpk_number dp,
                                  struct gpk_number dq, struct gpk_number qinv);

/* The same of a general odd modulus, 3 or more, of at most 8 class_bytes bits; GPK_INVALID for another. Public. */
enum gpk_status gpk_thread_modulus(int radix_bits, int class_bytes, void *record, struct gpk_number modulus);

#ifdef __cplusplus
}
#endif

#endif
