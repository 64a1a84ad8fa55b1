/* What is launched: the arguments of the multi-thread kernels, the layout of the memory that they point to, and the
 * list of kernels, the same for a device and for a processor. Plain data; every pointer is the device's (or, in the
 * host build, the host's).
 *
 * A row is one operation. Rows of numbers are little-endian bytes, as many as the kernel's class has: 256, 384 or 512.
 * Keys and moduli of other sizes go into the next class: they are rare, and each class takes long to compile.
 * All memory is aligned to 16 bytes. Rows that only fill the last warp repeat the last row, and store nothing. Constant
 * time, except in `exponent_bits`, the public exponents, and the verdicts.
 */
#ifndef GPK_GPU_LAUNCH_H
#define GPK_GPU_LAUNCH_H

#include "arithmetic/compiler.h"

extern "C" {
/* cffi: */

/* A private operation: outputs[i] = inputs[i]^d mod n, with a record (gpk_thread_record) and a blinding pair for each
 * row. No other row in flight may use the same pair; the kernel squares it after use. ok[i] is 1, or 0 with a row of
 * zeros: the input was not below n, or the result did not verify (replace the pair, which may be what is wrong).
 *
 * To make pairs, the same structure: row i makes the pair pair_of_row[i] of the key record_of_row[i] from the random
 * bytes inputs[i]. outputs and ok are not used. */
struct gpk_private_launch {
    uint32_t count;         /* rows */
    uint32_t exponent_bits; /* of the longest prime of the launch's keys: all exponents count as this long */
    uint64_t any_e;         /* the public exponents of the launch's keys, OR-ed */
    const uint32_t *record_of_row, *pair_of_row;
    const void *records;
    void *pairs;
    const uint8_t *inputs;
    uint8_t *outputs;
    uint8_t *ok;
};

/* outputs[i] = bases[i]^exponents[i] mod the modulus (gpk_thread_modulus) that modulus_of_row names. Of an exponent the
 * low exponent_bits count; its row has exponent_stride bytes, a multiple of 4. */
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

enum gpk_operation {
    GPK_PRIVATE_OPERATION, /* of gpk_private_launch */
    GPK_MAKE_PAIRS,        /* of gpk_private_launch */
    GPK_MODEXP,            /* of gpk_modexp_launch */
};

/* Kernels that are compiled together, one for each operation. */
struct gpk_unit {
    int radix_bits;    /* 32 or 52 */
    int class_bytes;   /* of a row of numbers */
    int limbs;         /* in each thread */
    int threads;       /* of a row */
    int window;        /* bits of an exponent's digit */
    int key_bytes;     /* of a key's record */
    int pair_bytes;    /* of a blinding pair */
    int modulus_bytes; /* of a modulus's record */
};

/* :cffi */
} /* extern "C" */

namespace gpk {

/* A limb in memory. */
template <int BITS> struct LimbOf;
template <> struct LimbOf<32> {
    using Type = uint32_t;
};
template <> struct LimbOf<52> {
    using Type = double;
};

/* Limbs are least significant first. N is the limbs of a prime, R = 2^(BITS N). Offsets are in limbs, which makes a
 * record the same for any number of threads. */
template <int BITS, int N> struct RecordLayout {
    using Limb = typename LimbOf<BITS>::Type;
    /* HalfNumber: [2 N] each, p's and then q's. FullNumber: [2 N] each. */
    static constexpr int half_number(int number) { return number * 2 * N; }
    static constexpr int full_number(int number) { return (6 + number) * 2 * N; }
    static constexpr int k0 = 20 * N; /* [4]: -1 / p, -1 / q, -1 / n mod the radix; 0 */
    static constexpr int limbs = 20 * N + 4;
    /* After them, in 32-bit words. HalfExponent: [2][exponent_words] each, dP and dQ; p - 2 and q - 2. */
    static constexpr int words_of_limbs = limbs * (int)(sizeof(Limb) / 4);
    static constexpr int exponent_words = BITS * N / 32 + 1;
    static constexpr int exponent(int which) { return words_of_limbs + which * 2 * exponent_words; }
    static constexpr int e = words_of_limbs + 4 * exponent_words; /* [2] */
    static constexpr int words = (e + 2 + 3) / 4 * 4;
    /* A pair: r^-e to blind, r to unblind, [2 N] limbs each. */
    static constexpr int pair_limbs = 4 * N;
};

/* A general modulus m of N limbs: m, R mod m, R^2 mod m, [N] each; -1 / m. */
template <int BITS, int N> struct ModulusLayout {
    using Limb = typename LimbOf<BITS>::Type;
    static constexpr int modulus = 0, one = N, r2 = 2 * N, k0 = 3 * N, limbs = 3 * N + 4;
};

/* The units: X(BITS, class in bytes, limbs per thread L, threads per row, window, whether the host build has it too).
 * Each class has two numbers of threads: more limbs in each for throughput, fewer for latency. All units of a class and
 * radix have the same N (in RSA, L times half the threads), so they share records. A window of 3 costs 6 % more
 * products than one of 4, and half the table: where a scheduler has registers for two warps, an H100's shared memory
 * then holds the tables of two warps, too. */
#define GPK_UNITS(X)            \
    X(32, 256, 8, 8, 4, true)   \
    X(32, 256, 4, 16, 4, true)  \
    X(32, 384, 12, 8, 4, true)  \
    X(32, 384, 6, 16, 4, false) \
    X(32, 512, 8, 16, 4, true)  \
    X(32, 512, 4, 32, 4, false) \
    X(52, 256, 10, 4, 3, true)  \
    X(52, 256, 5, 8, 4, true)   \
    X(52, 384, 8, 8, 3, true)   \
    X(52, 384, 4, 16, 4, false) \
    X(52, 512, 10, 8, 3, true)  \
    X(52, 512, 5, 16, 4, false)

template <int BITS, int CLASS, int L, int THREADS, int WINDOW> constexpr gpk_unit unit_of()
{
    using Key = RecordLayout<BITS, L * THREADS / 2>;
    using Modulus = ModulusLayout<BITS, L * THREADS>;
    constexpr int LIMB = (int)sizeof(typename Key::Limb);

    return {BITS, CLASS, L, THREADS, WINDOW, 4 * Key::words, LIMB * Key::pair_limbs, LIMB * Modulus::limbs};
}

/* Bytes of a warp's window table, in shared memory on a device. On a processor, where elements of 32 bits take 64, it
 * may take twice as much. */
template <int BITS, int L, int WINDOW> constexpr int table_bytes()
{
    return (L << WINDOW) * 32 * (int)sizeof(typename LimbOf<BITS>::Type);
}

} // namespace gpk

#endif
