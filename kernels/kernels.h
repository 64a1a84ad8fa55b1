/* The kernels' C interface: RSA private operations and modular exponentiation over batches.
 *
 * Numbers are rows of little-endian bytes. Every function may be called from any number of threads at once; a key must
 * stay until the calls that use it have returned. Calls leave no thread and no descriptor behind, so a fork between
 * them is safe. A child forked while another thread was inside a call may free the keys that it was forked with, but
 * must not use them; everything else works there.
 */
#ifndef GPK_KERNELS_H
#define GPK_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* cffi: */

#define GPK_MIN_BITS 1024
#define GPK_MAX_BITS 4096

enum gpk_isa {
    GPK_ISA_BEST,     /* the fastest that this processor has */
    GPK_ISA_PORTABLE, /* any processor, one operation at a time */
    GPK_ISA_IFMA,     /* AVX-512 IFMA, eight operations at a time */
};

/* The ISA that `isa` means on this processor; GPK_ISA_BEST for one that it lacks. */
enum gpk_isa gpk_resolve_isa(enum gpk_isa isa);

/* The lanes of the ISA's vectors: a batch of one private operation costs as much as a batch of this many. */
uint32_t gpk_lanes(enum gpk_isa isa);

typedef struct gpk_key gpk_key;

/* core: */
enum gpk_status {
    GPK_OK,
    GPK_UNSUPPORTED, /* a size or an exponent that the kernels don't take: leave the key to libcrypto */
    GPK_INVALID,     /* even modulus or factor, exponent below 3 or even, qinv not below p */
    GPK_NO_MEMORY,
    GPK_NO_ISA, /* this processor lacks the ISA */
};

struct gpk_number {
    const uint8_t *bytes; /* little-endian; any number of leading zeros */
    size_t size;
};
/* :core */

/* Computes what the kernels need of a key. n has 1024 to 4096 bits; p and q have at most 2076 each, and if they differ
 * in length, both cost as much as the longer one; e is odd, at least 3, of at most 64 bits. Constant time, except in
 * the numbers' sizes. The numbers are not checked against one another: if they don't belong together, the check of
 * every operation fails. The memory is locked where the limit on locked memory allows (gpk_key_is_locked), left out of
 * core dumps, and wiped when freed. */
enum gpk_status gpk_key_new(gpk_key **key, struct gpk_number n, struct gpk_number e, struct gpk_number p,
                            struct gpk_number q, struct gpk_number dp, struct gpk_number dq, struct gpk_number qinv);
void gpk_key_free(gpk_key *key);
int gpk_key_is_locked(const gpk_key *key);

/* outputs[i] = inputs[i]^d mod n of keys[i], blinded, computed by the Chinese remainder theorem and verified with e.
 * ok[i] is 1, or 0 with a row of zeros: input not below n, key wider than the row, or a result that did not verify.
 * Rows have 1 to 512 bytes; keys of all sizes may be mixed. Constant time, except in sizes and public exponents. */
enum gpk_status gpk_private(enum gpk_isa isa, uint32_t count, gpk_key *const *keys, const uint8_t *inputs,
                            uint8_t *outputs, uint32_t stride, uint8_t *ok);

/* outputs[i] = bases[i]^exponents[i] mod moduli[i], for odd moduli of any size up to the stride, at most 1024 bytes.
 * Of every exponent the low exponent_bits count, at most 8 exponent_stride; that length is public, as are the moduli,
 * and the exponents if public_exponents is 1: then short ones with few bits set take less time.
 * ok[i] is 1, or 0 with a row of zeros for a modulus that is even or below 3. A base may be larger than the modulus. */
enum gpk_status gpk_modexp(enum gpk_isa isa, uint32_t count, const uint8_t *bases, const uint8_t *exponents,
                           uint32_t exponent_stride, uint32_t exponent_bits, const uint8_t *moduli, uint8_t *outputs,
                           uint32_t stride, uint8_t *ok, int public_exponents);

/* Calls function(argument) on a stack of 64 KiB with a guard page below, which is wiped afterwards; 0: out of memory.
 * Where the processor is not an x86-64, on the caller's. */
int gpk_call_apart(void (*function)(void *argument), void *argument);

/* The functions' addresses, for C code that is not linked with the kernels; NULL if this processor lacks the ISA. */
struct gpk_functions {
    enum gpk_isa isa; /* for private_op */
    uint32_t lanes;   /* gpk_lanes(isa) */
    enum gpk_status (*key_new)(gpk_key **key, struct gpk_number n, struct gpk_number e, struct gpk_number p,
                               struct gpk_number q, struct gpk_number dp, struct gpk_number dq, struct gpk_number qinv);
    void (*key_free)(gpk_key *key);
    int (*key_is_locked)(const gpk_key *key);
    enum gpk_status (*private_op)(enum gpk_isa isa, uint32_t count, gpk_key *const *keys, const uint8_t *inputs,
                                  uint8_t *outputs, uint32_t stride, uint8_t *ok);
    int (*call_apart)(void (*function)(void *argument), void *argument);
};
const struct gpk_functions *gpk_functions_of(enum gpk_isa isa);

/* :cffi */

#ifdef __cplusplus
}
#endif

#endif
