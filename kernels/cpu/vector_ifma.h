/* The AVX-512 IFMA vector: eight lanes of 64 bits, one for each operation of the batch. Each operator is one
 * instruction whose time does not depend on its data. Only for files compiled with IFMA of flags.mk. */
#ifndef GPK_CPU_VECTOR_IFMA_H
#define GPK_CPU_VECTOR_IFMA_H

#include <immintrin.h>

#include "arithmetic/compiler.h"

namespace gpk {
namespace { // unnamed, so that the linker can't give this code to another translation unit

struct Vec8 {
    __m512i v;
    static constexpr int lanes = 8;
    static constexpr bool long_blocks = true;
    struct Bit {
        __m512i mask; /* lanes all ones or zero: gcc would move mask registers to and fro */
    };
};

/* c + the low (high) 52 bits of a * b, whose operands are the low 52 bits of a and b (VPMADD52LUQ, VPMADD52HUQ). */
GPK_INLINE Vec8 mad52lo(Vec8 c, Vec8 a, Vec8 b) { return {_mm512_madd52lo_epu64(c.v, a.v, b.v)}; }
GPK_INLINE Vec8 mad52hi(Vec8 c, Vec8 a, Vec8 b) { return {_mm512_madd52hi_epu64(c.v, a.v, b.v)}; }

GPK_INLINE Vec8 operator+(Vec8 a, Vec8 b) { return {_mm512_add_epi64(a.v, b.v)}; }
GPK_INLINE Vec8 operator-(Vec8 a, Vec8 b) { return {_mm512_sub_epi64(a.v, b.v)}; }
GPK_INLINE Vec8 operator&(Vec8 a, Vec8 b) { return {_mm512_and_si512(a.v, b.v)}; }

/* Without the intrinsic, for which gcc 12 warns wrongly (bug 105593). */
typedef uint64_t Words8 __attribute__((vector_size(64)));
template <int K> GPK_INLINE Vec8 operator>>(Vec8 a, Constant<K>) { return {(__m512i)((Words8)a.v >> K)}; }

GPK_INLINE Vec8::Bit bit_of(Vec8 a, int position)
{
    return {_mm512_movm_epi64(_mm512_test_epi64_mask(a.v, _mm512_set1_epi64((int64_t)(UINT64_C(1) << position))))};
}

GPK_INLINE Vec8 blend(Vec8::Bit bit, Vec8 if_clear, Vec8 if_set)
{
    return {_mm512_ternarylogic_epi64(if_set.v, bit.mask, if_clear.v, 0xe2)};
}

} // namespace

template <> struct Splat<Vec8> {
    static GPK_INLINE Vec8 of(uint64_t x) { return {_mm512_set1_epi64((int64_t)x)}; }
};

} // namespace gpk

#endif
