/* What every header of the kernels needs of the language: forced inlining, unrolled loops, and the lanes' common
 * part. */
#ifndef GPK_COMPILER_H
#define GPK_COMPILER_H

#ifdef __CUDACC_RTC__ /* NVRTC has no headers of its own; -default-device makes every function one of the device */
typedef unsigned char uint8_t;
typedef signed int int32_t;
typedef unsigned int uint32_t;
typedef unsigned long long uint64_t;
#define UINT64_C(x) x##ULL
#else
#include <stdint.h>
#endif

#define GPK_INLINE inline __attribute__((always_inline))
#define GPK_NOINLINE __attribute__((noinline))
/* The body of an unrolled loop, with its counter as a constant: unroll<0, 4>(GPK_EACH(i) { ... }). */
#define GPK_EACH(i) [&](auto i) __attribute__((always_inline))

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

/* Splat<V>::of(x): every element is x. */
template <class V> struct Splat;

/* Picks the entry of table[0], table[STRIDE], ... whose number stands in BITS bits of a word from `position` on,
 * element by element. Constant time: a tree of 2^BITS - 1 blends that reads every entry. */
template <int BITS, class V> class Selector {
  public:
    GPK_INLINE Selector(V word, int position)
    {
        unroll<0, BITS>(GPK_EACH(i) { bits[i] = bit_of(word, position + i); });
    }

    template <int STRIDE = 1> GPK_INLINE V pick(const V *table) const { return tree<BITS, STRIDE>(table); }

  private:
    typename V::Bit bits[BITS];

    template <int LEVEL, int STRIDE> GPK_INLINE V tree(const V *table) const
    {
        if constexpr (LEVEL == 0)
            return *table;
        else
            return blend(bits[LEVEL - 1], tree<LEVEL - 1, STRIDE>(table),
                         tree<LEVEL - 1, STRIDE>(table + (STRIDE << (LEVEL - 1))));
    }
};

} // namespace gpk

#endif
