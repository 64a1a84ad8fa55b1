/* What is launched: the arguments of the multi-thread kernels, the same for a device and for a processor, and how the
 * memory that they name is laid out. Plain data; every pointer is the device's (or the host's, for the host build).
 *
 * A row is one operation. Rows of numbers are little-endian bytes, as many as the kernel's class has: 256, 384 or 512.
 * Keys and moduli of other sizes go into the next class: they are rare, and a class is dear to compile for many
 * devices. All memory is aligned to 16 bytes. Rows that only fill the last warp repeat the last row, and store nothing.
 * Constant time, but for `exponent_bits`, the public exponents, and the verdicts.
 */
#ifndef GPK_GPU_LAUNCH_H
#define GPK_GPU_LAUNCH_H

#include "arithmetic/compiler.h"

/* outputs[i] = inputs[i]^d mod n: one record (gpk_thread_record) and one blinding pair per row. A pair is for one row
 * in flight; it is squared behind use. ok[i] is 1, or 0 with a row of zeros: the input was not below n, or the
 * result did not verify (the pair may be what is wrong, so replace it). */
struct gpk_private_launch {
    uint32_t count;         /* rows */
    uint32_t exponent_bits; /* of the longest prime among the launch's keys: exponents count so long */
    uint64_t any_e;         /* the public exponents of the launch's keys, OR-ed */
    const uint32_t *record_of_row, *pair_of_row;
    const void *records;
    void *pairs;
    const uint8_t *inputs;
    uint8_t *outputs;
    uint8_t *ok;
};

/* Fills pairs: row i makes the pair pair_of_row[i] of the key record_of_row[i] from inputs[i], random bytes. outputs
 * and ok are not used. The same structure, so that a caller has one. */

/* outputs[i] = bases[i]^exponents[i] mod the modulus (gpk_thread_modulus) that modulus_of_row names. Only the low
 * exponent_bits of an exponent count; its row has exponent_stride bytes, a multiple of 4. */
struct gpk_modexp_launch {
    uint32_t count;
    uint32_t exponent_bits;
    uint32_t exponent_stride;
    uint32_t unused;
    const uint32_t *modulus_of_row;
    const void *moduli;
    const uint8_t *bases, *exponents;
    uint8_t *outputs;
};

namespace gpk {

/* Arrays of limbs, least significant first: of 32 bits in radix 2^32; doubles in radix 2^52. N is the limbs of a prime,
 * R = 2^(bits N). Offsets in limbs, so that those of a record are the same for any number of threads. */
template <int BITS> struct LimbOf;
template <> struct LimbOf<32> {
    using Type = uint32_t;
};
template <> struct LimbOf<52> {
    using Type = double;
};

template <int BITS, int N> struct RecordLayout {
    using Limb = typename LimbOf<BITS>::Type;
    /* HalfNumber: [2 N] each, p's and then q's. FullNumber: [2 N] each. */
    static constexpr int half_number(int number) { return number * 2 * N; }
    static constexpr int full_number(int number) { return (6 + number) * 2 * N; }
    static constexpr int k0 = 20 * N; /* [4]: -1 / p, -1 / q, -1 / n mod the radix; 0 */
    static constexpr int limbs = 20 * N + 4;
    /* Behind them, in words of 32 bits. HalfExponent: [2][exponent_words], dP, dQ; p - 2, q - 2. */
    static constexpr int words_of_limbs = limbs * (int)(sizeof(Limb) / 4);
    static constexpr int exponent_words = BITS * N / 32 + 1;
    static constexpr int exponent(int which) { return words_of_limbs + which * 2 * exponent_words; }
    static constexpr int e = words_of_limbs + 4 * exponent_words; /* [2] */
    static constexpr int words = (e + 2 + 3) / 4 * 4;
    /* A pair: factor and inverse, [2 N] limbs each. */
    static constexpr int pair_limbs = 4 * N;
};

/* Of a general modulus of N limbs: modulus, R mod m, R^2 mod m, [N] each; -1 / m. */
template <int BITS, int N> struct ModulusLayout {
    using Limb = typename LimbOf<BITS>::Type;
    static constexpr int modulus = 0, one = N, r2 = 2 * N, k0 = 3 * N, limbs = 3 * N + 4;
};

/* The kernels: X(BITS, class in bytes, limbs per thread L, threads per row, window). Two numbers of threads to a class:
 * more limbs in each for throughput, fewer for latency. All of a class and radix have the same N (of RSA: L times half
 * the threads), so that they share records. A window of 3 costs 6 % more products than one of 4, and half the table:
 * where a scheduler's registers hold two warps, the shared memory of an H100 holds the tables of two warps as well, not
 * of one. */
#define GPK_PRIVATE_KERNELS(X) \
    X(32, 256, 8, 8, 4)        \
    X(32, 256, 4, 16, 4)       \
    X(32, 384, 12, 8, 4)       \
    X(32, 384, 6, 16, 4)       \
    X(32, 512, 8, 16, 4)       \
    X(32, 512, 4, 32, 4)       \
    X(52, 256, 10, 4, 3)       \
    X(52, 256, 5, 8, 4)        \
    X(52, 384, 8, 8, 3)        \
    X(52, 384, 4, 16, 4)       \
    X(52, 512, 10, 8, 3)       \
    X(52, 512, 5, 16, 4)

#define GPK_MODEXP_KERNELS(X) \
    X(32, 256, 8, 8, 4)       \
    X(32, 256, 4, 16, 4)      \
    X(32, 384, 12, 8, 4)      \
    X(32, 384, 6, 16, 4)      \
    X(32, 512, 8, 16, 4)      \
    X(32, 512, 4, 32, 4)      \
    X(52, 256, 10, 4, 3)      \
    X(52, 256, 5, 8, 4)       \
    X(52, 384, 8, 8, 3)       \
    X(52, 384, 4, 16, 4)      \
    X(52, 512, 10, 8, 3)      \
    X(52, 512, 5, 16, 4)

/* Bytes of a warp's window table, in shared memory on a device (a processor's elements of 32 bits take 64). */
template <int BITS, int L, int WINDOW> constexpr int table_bytes()
{
    return (L << WINDOW) * 32 * (int)sizeof(typename LimbOf<BITS>::Type);
}

} // namespace gpk

#endif
