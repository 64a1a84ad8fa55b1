/* A key's numbers as they come in: little-endian bytes. Constant time, except in their sizes. */
#ifndef GPK_ARITHMETIC_NUMBER_H
#define GPK_ARITHMETIC_NUMBER_H

#include "arithmetic/limbs.h"
#include "kernels.h"

namespace gpk {
namespace {

inline int bits_of(gpk_number number)
{
    for (size_t i = number.size; i-- > 0;)
        if (number.bytes[i] != 0)
            return (int)(8 * i) + 32 - __builtin_clz(number.bytes[i]);
    return 0;
}

inline int is_odd(gpk_number number) { return number.size > 0 && (number.bytes[0] & 1); }

inline void load(uint64_t *to, int limbs, gpk_number number)
{
    limbs_from_bytes(to, limbs, number.bytes, (int)(number.size < MAX_BYTES ? number.size : MAX_BYTES));
}

inline uint64_t small_number(gpk_number number)
{
    uint64_t value = 0;

    for (size_t i = 0; i < number.size && i < 8; i++)
        value |= (uint64_t)number.bytes[i] << 8 * i;
    return value;
}

} // namespace
} // namespace gpk

#endif
