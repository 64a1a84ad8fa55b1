/* Operations on the elements of a warp's vectors, each thread by itself: choices, bits, products, conversions. */
#ifndef GPK_GPU_ELEMENTS_H
#define GPK_GPU_ELEMENTS_H

#ifndef __CUDACC__
#include <math.h>
#ifdef __AVX2__
#include <immintrin.h>
#endif
#endif

#include "gpu/warp.h"

namespace gpk {
namespace {

/* Hides a mask from a device's compiler, which might make a branch of a choice by a mask that it knows. */
GPK_INLINE Mask opaque(Mask mask)
{
#ifdef __CUDACC__
    asm("" : "+r"(Inside::of(mask)[0]));
#endif
    return mask;
}

GPK_INLINE Word32 blend(Mask bit, Word32 if_clear, Word32 if_set)
{
    GPK_EACH_PART(Inside::of(if_clear)[k] ^= Inside::of(bit)[k] & (Inside::of(if_clear)[k] ^ Inside::of(if_set)[k]))
    return if_clear;
}

/* The mask of 32 bits as one of 64. */
#ifdef __CUDACC__
GPK_INLINE uint64_t wide(uint32_t mask)
{
    uint64_t r;
    asm("mov.b64 %0, {%1, %1};" : "=l"(r) : "r"(mask));
    return r;
}
#else
GPK_INLINE const Slot64 &wide(const Slot64 &mask) { return mask; }
#endif

GPK_INLINE Word64 blend(Mask bit, Word64 if_clear, Word64 if_set)
{
    GPK_EACH_PART(Inside::of(if_clear)[k] ^=
                  wide(Inside::of(bit)[k]) & (Inside::of(if_clear)[k] ^ Inside::of(if_set)[k]))
    return if_clear;
}

/* The number whose bits these are, and back. */
GPK_INLINE Real real_of_bits(Word64 a)
{
    Real r;
#ifdef __CUDACC__
    Inside::of(r)[0] = __longlong_as_double((long long)Inside::of(a)[0]);
#else
    GPK_EACH_PART(Inside::of(r)[k] = (SlotReal)Inside::of(a)[k])
#endif
    return r;
}

GPK_INLINE Word64 bits_of_real(Real a)
{
    Word64 r;
#ifdef __CUDACC__
    Inside::of(r)[0] = (uint64_t)__double_as_longlong(Inside::of(a)[0]);
#else
    GPK_EACH_PART(Inside::of(r)[k] = (Slot64)Inside::of(a)[k])
#endif
    return r;
}

GPK_INLINE Real blend(Mask bit, Real if_clear, Real if_set)
{
    return real_of_bits(blend(bit, bits_of_real(if_clear), bits_of_real(if_set)));
}

/* a in these threads, zero in the others. */
template <class V> GPK_INLINE V keep(Where where, V a)
{
    Mask mask;
    GPK_EACH_PART(Inside::of(mask)[k] = Inside::of(where)[k])
    return blend(mask, Splat<V>::of(0), a);
}

/* Each element's bit at a position that is public and the same for all threads. */
GPK_INLINE Mask bit_of(Word64 a, int position)
{
    Mask r;
    GPK_EACH_PART(Inside::of(r)[k] = 0 - (Slot32)(Inside::of(a)[k] >> position & 1))
    return opaque(r);
}

GPK_INLINE Mask bit_of(Word32 a, int position)
{
    Mask r;
    GPK_EACH_PART(Inside::of(r)[k] = 0 - (Inside::of(a)[k] >> position & 1))
    return opaque(r);
}

GPK_INLINE Mask is_zero(Word64 a) { return ~bit_of(a | (Splat<Word64>::of(0) - a), 63); }

/* The low 64 bits of (high 2^64 + low) / 2^count, for count below 64. */
GPK_INLINE Word64 shift_right(Word64 low, Word64 high, Public count)
{
#ifdef __CUDACC__
    const uint32_t bits = count.element[0];
    Inside::of(low)[0] = Inside::of(low)[0] >> bits | Inside::of(high)[0] << 1 << (63 - bits);
#else
    for (int i = 0; i < WARP; i++)
        Inside::set(low, i,
                    Inside::get(low, i) >> count.element[i] | Inside::get(high, i) << 1 << (63 - count.element[i]));
#endif
    return low;
}

GPK_INLINE Word64 widen(Word32 a)
{
    Word64 r;
    GPK_EACH_PART(Inside::of(r)[k] = Inside::of(a)[k])
    return r;
}

GPK_INLINE Word32 low_half(Word64 a)
{
    Word32 r;
#ifdef __CUDACC__
    Inside::of(r)[0] = (uint32_t)Inside::of(a)[0];
#else
    GPK_EACH_PART(Inside::of(r)[k] = Inside::of(a)[k] & 0xffffffff)
#endif
    return r;
}

GPK_INLINE Word32 high_half(Word64 a) { return low_half(a >> 32); }

GPK_INLINE Word64 join(Word32 low, Word32 high)
{
    Word64 r;
#ifdef __CUDACC__
    asm("mov.b64 %0, {%1, %2};" : "=l"(Inside::of(r)[0]) : "r"(Inside::of(low)[0]), "r"(Inside::of(high)[0]));
#else
    GPK_EACH_PART(Inside::of(r)[k] = Inside::of(low)[k] | Inside::of(high)[k] << 32)
#endif
    return r;
}

/* 1 where the mask is set, else 0 */
GPK_INLINE Word32 one_where(Mask mask) { return blend(mask, Splat<Word32>::of(0), Splat<Word32>::of(1)); }

/* a b mod 2^32. */
GPK_INLINE Word32 multiply_low(Word32 a, Word32 b)
{
    Word32 r;
    GPK_EACH_PART(Inside::of(r)[k] = Inside::of(a)[k] * Inside::of(b)[k])
#ifndef __CUDACC__
    GPK_EACH_PART(Inside::of(r)[k] &= 0xffffffff)
#endif
    return r;
}

/* a b mod 2^64. */
GPK_INLINE Word64 multiply_low(Word64 a, Word64 b)
{
    GPK_EACH_PART(Inside::of(a)[k] *= Inside::of(b)[k])
    return a;
}

/* a b + c, rounded once, toward zero. */
GPK_INLINE Real fma_toward_zero(Real a, Real b, Real c)
{
    Real r;
#if defined(__CUDACC__)
    Inside::of(r)[0] = __fma_rz(Inside::of(a)[0], Inside::of(b)[0], Inside::of(c)[0]);
#elif defined(__AVX2__) && defined(__FMA__)
    GPK_EACH_PART(Inside::of(r)[k] = (SlotReal)_mm256_fmadd_pd((__m256d)Inside::of(a)[k], (__m256d)Inside::of(b)[k],
                                                               (__m256d)Inside::of(c)[k]))
#else
    for (int i = 0; i < WARP; i++) /* the C library's is exact, and obeys the rounding mode */
        Inside::set(r, i, fma(Inside::get(a, i), Inside::get(b, i), Inside::get(c, i)));
#endif
    return r;
}

} // namespace
} // namespace gpk

#endif
