/* Dealing out rows to the elements of lanes, and back. Element i of a lane lies at the lane's i-th 64-bit word. */
#ifndef GPK_CPU_GATHER_H
#define GPK_CPU_GATHER_H

#include <string.h>

#include "arithmetic/compiler.h"

namespace gpk {

template <class V> GPK_INLINE void put(V *to, int element, const uint64_t *words, int count)
{
    static_assert(sizeof(V) == V::width * sizeof(uint64_t), "a lane is its elements");
    uint8_t *at = reinterpret_cast<uint8_t *>(to) + (size_t)element * sizeof(uint64_t);

    for (int i = 0; i < count; i++)
        memcpy(at + (size_t)i * sizeof(V), words + i, sizeof(uint64_t));
}

/* The low 52 bits of each word: what lies above has been carried. */
template <class V> GPK_INLINE void get(uint64_t *words, const V *from, int element, int count)
{
    const uint8_t *at = reinterpret_cast<const uint8_t *>(from) + (size_t)element * sizeof(uint64_t);

    for (int i = 0; i < count; i++) {
        memcpy(words + i, at + (size_t)i * sizeof(V), sizeof(uint64_t));
        words[i] &= (UINT64_C(1) << 52) - 1;
    }
}

} // namespace gpk

#endif
