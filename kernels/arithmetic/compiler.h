/* What all of the kernels' headers need of the language: forced inlining, unrolled loops, and what every vector type
 * shares. A vector's elements are its lanes. */
#ifndef GPK_ARITHMETIC_COMPILER_H
#define GPK_ARITHMETIC_COMPILER_H

#ifdef __CUDACC_RTC__ /* NVRTC has no standard headers; -default-device makes every function a device function */
typedef unsigned char uint8_t;
typedef signed int int32_t;
typedef unsigned int uint32_t;
typedef unsigned long long uint64_t;
#define UINT64_C(x) x##ULL
#else
#include <stdint.h>
#endif

/* GPK_INLINE: always inlined. GPK_NOINLINE: only on a device, where arrays must stay in registers.
 * GPK_FUNCTION: inlined at the compiler's choice on a processor, always on a device.
 * GPK_UNROLL: unrolls a loop over a number's limbs on a device, where they are in registers, which can't be indexed.
 * GPK_LOOP: keeps a device from unrolling a loop.
 * GPK_EACH: the body of an unrolled loop, with its counter as a constant: unroll<0, 4>(GPK_EACH(i) { ... }). */
#ifdef __CUDACC__
#define GPK_INLINE __device__ __forceinline__
#define GPK_NOINLINE GPK_INLINE
#define GPK_FUNCTION GPK_INLINE
#define GPK_UNROLL _Pragma("unroll")
#define GPK_LOOP _Pragma("unroll 1")
#define GPK_EACH(i) [&](auto i)
#else
#define GPK_INLINE inline __attribute__((always_inline))
#define GPK_NOINLINE __attribute__((noinline))
#define GPK_FUNCTION
#define GPK_UNROLL
#define GPK_LOOP
#define GPK_EACH(i) [&](auto i) __attribute__((always_inline))
#endif

namespace gpk {

template <int I> struct Constant {
    GPK_INLINE constexpr operator int() const { return I; }
};

/* body(Constant<FROM>), ..., body(Constant<TO - 1>). Unlike an unrolling pragma it makes array indices constants before
 * the compiler decides which arrays live in registers. */
template <int FROM, int TO, class Body> GPK_INLINE void unroll(Body &&body)
{
    if constexpr (FROM < TO) {
        body(Constant<FROM>{});
        unroll<FROM + 1, TO>(body);
    }
}

/* x must not be zero. */
GPK_INLINE int leading_zeros(uint64_t x)
{
#ifdef __CUDACC__
    return __clzll((long long)x);
#else
    return __builtin_clzll(x);
#endif
}

/* Splat<V>::of(x): x in every lane. */
template <class V> struct Splat;

/* Picks, lane by lane, the entry of table[0], table[STRIDE], ... whose index is the BITS bits of a word that start at
 * `position`. Constant time: a tree of 2^BITS - 1 blends that reads every entry. */
template <int BITS, class V> class Selector {
  public:
    template <class Word> GPK_INLINE Selector(Word word, int position)
    {
        unroll<0, BITS>(GPK_EACH(i) { bits[i] = bit_of(word, position + i); });
    }

    /* table: const V *, or anything that is indexed and advanced like one. */
    template <int STRIDE = 1, class Table> GPK_INLINE V pick(Table table) const { return tree<BITS, STRIDE>(table); }

  private:
    typename V::Bit bits[BITS];

    template <int LEVEL, int STRIDE, class Table> GPK_INLINE V tree(Table table) const
    {
        if constexpr (LEVEL == 0)
            return table[0];
        else
            return blend(bits[LEVEL - 1], tree<LEVEL - 1, STRIDE>(table),
                         tree<LEVEL - 1, STRIDE>(table + (STRIDE << (LEVEL - 1))));
    }
};

} // namespace gpk

#endif
