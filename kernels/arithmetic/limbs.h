/* Numbers of one key or row, before they go into lanes: limbs of 52 bits in 64-bit words, least significant first.
 * Constant time, except in the sizes. Used once per key or row, so simple rather than fast. */
#ifndef GPK_ARITHMETIC_LIMBS_H
#define GPK_ARITHMETIC_LIMBS_H

#include <stdint.h>
#include <string.h>

namespace gpk {
namespace {

constexpr uint64_t LIMB_MASK = (UINT64_C(1) << 52) - 1;
constexpr int MAX_LIMBS = 160;
constexpr int MAX_BYTES = 512; /* of a key's number */
constexpr int MAX_MODEXP_BYTES = 1024;

constexpr int limbs_to_bytes(int limbs) { return limbs * 52 / 8; }

/* Ignores bytes beyond the limbs: callers check that they are zero. size <= MAX_MODEXP_BYTES. */
inline void limbs_from_bytes(uint64_t *to, int limbs, const uint8_t *bytes, int size)
{
    uint8_t padded[MAX_LIMBS * 52 / 8 + 16] = {0};

    if (size > 0) /* otherwise bytes may be NULL, which memcpy must not get */
        memcpy(padded, bytes, (size_t)size);
    for (int i = 0; i < limbs; i++) {
        uint64_t word;
        memcpy(&word, padded + i * 52 / 8, sizeof(word));
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
        word = __builtin_bswap64(word);
#endif
        to[i] = word >> i * 52 % 8 & LIMB_MASK;
    }
}

/* Writes `size` bytes, with zeros above the limbs, which must be below 2^52. */
inline void limbs_to_bytes(uint8_t *bytes, int size, const uint64_t *from, int limbs)
{
    for (int i = 0; i < size; i++) {
        const int bit = 8 * i, limb = bit / 52, shift = bit % 52;
        uint64_t byte = limb < limbs ? from[limb] >> shift : 0;
        if (shift > 44 && limb + 1 < limbs)
            byte |= from[limb + 1] << (52 - shift);
        bytes[i] = (uint8_t)byte;
    }
}

/* 1 if a < b, else 0 */
inline uint64_t limbs_less(const uint64_t *a, const uint64_t *b, int limbs)
{
    uint64_t borrow = 0;

    for (int i = 0; i < limbs; i++)
        borrow = (a[i] - b[i] - borrow) >> 63;
    return borrow;
}

/* x = 2 x mod m for x < m */
inline void limbs_double(uint64_t *x, const uint64_t *m, int limbs)
{
    uint64_t difference[MAX_LIMBS + 1], carry = 0, borrow = 0;

    for (int i = 0; i < limbs; i++) {
        const uint64_t twice = (x[i] << 1 & LIMB_MASK) | carry;
        carry = x[i] >> 51;
        const uint64_t d = twice - m[i] - borrow;
        borrow = d >> 63;
        difference[i] = d & LIMB_MASK;
        x[i] = twice;
    }
    uint64_t keep = 0 - (borrow & (carry ^ 1)); /* twice < m */
    __asm__("" : "+r"(keep));
    for (int i = 0; i < limbs; i++)
        x[i] = difference[i] ^ (keep & (difference[i] ^ x[i]));
}

/* The length of a public number in bits. */
inline int limbs_bits(const uint64_t *x, int limbs)
{
    for (int i = limbs - 1; i >= 0; i--)
        if (x[i] != 0)
            return 52 * i + 64 - __builtin_clzll(x[i]);
    return 0;
}

/* -1 / m mod 2^52 for odd m, by Newton's iteration (Dusse and Kaliski, 1990): each step doubles the correct bits. */
inline uint64_t limbs_k0(uint64_t m)
{
    uint64_t inverse = m; /* correct mod 8 */

    for (int i = 0; i < 5; i++)
        inverse *= 2 - m * inverse;
    return (0 - inverse) & LIMB_MASK;
}

/* x = 2^(52 limbs) mod m, for an odd m of `bits` bits (public), m > 1 */
inline void limbs_one(uint64_t *x, const uint64_t *m, int limbs, int bits)
{
    memset(x, 0, (size_t)limbs * sizeof(*x));
    x[(bits - 1) / 52] = UINT64_C(1) << (bits - 1) % 52; /* 2^(bits - 1) < m */
    for (int i = bits - 1; i < 52 * limbs; i++)
        limbs_double(x, m, limbs);
}

} // namespace
} // namespace gpk

#endif
