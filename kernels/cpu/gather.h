/* Puts rows into the lanes of vectors, and gets them back. Lane i is the vector's i-th 64-bit word. */
#ifndef GPK_CPU_GATHER_H
#define GPK_CPU_GATHER_H

#include <string.h>

#include "arithmetic/compiler.h"

namespace gpk {

template <class V> GPK_INLINE void put(V *to, int lane, const uint64_t *words, int count)
{
    static_assert(sizeof(V) == V::lanes * sizeof(uint64_t), "a vector is its lanes");
    uint8_t *at = reinterpret_cast<uint8_t *>(to) + (size_t)lane * sizeof(uint64_t);

    for (int i = 0; i < count; i++)
        memcpy(at + (size_t)i * sizeof(V), words + i, sizeof(uint64_t));
}

/* Keeps the low 52 bits of each word: the upper ones have been carried. */
template <class V> GPK_INLINE void get(uint64_t *words, const V *from, int lane, int count)
{
    const uint8_t *at = reinterpret_cast<const uint8_t *>(from) + (size_t)lane * sizeof(uint64_t);

    for (int i = 0; i < count; i++) {
        memcpy(words + i, at + (size_t)i * sizeof(V), sizeof(uint64_t));
        words[i] &= (UINT64_C(1) << 52) - 1;
    }
}

} // namespace gpk

#endif
