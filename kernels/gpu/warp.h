/* Vectors across a warp: an element for each of its 32 threads. On a device a thread's element is a register of its
 * own; on a processor a vector holds all 32, and exchanges among threads are permutations. The layers above compile for
 * both. These are the types; elements.h, exchange.h and memory.h have their operations.
 *
 * The types also check those layers: a secret (Word32, Word64, Real, Mask) is no number, condition or index, and what
 * is public of each thread (its place, its row) has a type of its own, Public. A secret that is used as a condition or
 * an address does not compile (tests/kernels/test_types.py). They can't show a device's errors of masks or convergence:
 * every exchange is among all 32 threads, which must be converged (tests/kernels/test_ptx.py).
 *
 * Threads work in groups of T neighbours, a power of two up to 32: one number or one row per group.
 * Constant time: no branches, and no addresses but those made of Public.
 */
#ifndef GPK_GPU_WARP_H
#define GPK_GPU_WARP_H

#include "arithmetic/compiler.h"

namespace gpk {
namespace {

constexpr int WARP = 32;

#ifdef __CUDACC__
typedef uint32_t Slot32;
typedef uint64_t Slot64;
typedef double SlotReal;
#define GPK_EACH_PART(...)   \
    {                        \
        constexpr int k = 0; \
        __VA_ARGS__;         \
    }
constexpr int PARTS = 1;
#else
/* Every element takes 64 bits, even one of 32, so that products need no widening. */
typedef uint64_t Slot64 __attribute__((vector_size(32)));
typedef Slot64 Slot32;
typedef double SlotReal __attribute__((vector_size(32)));
constexpr int PER_PART = 4, PARTS = WARP / PER_PART;
#define GPK_ONE_PART(number, ...) \
    {                             \
        constexpr int k = number; \
        __VA_ARGS__;              \
    }
/* Not a loop, so that the parts become registers before the compiler looks at loops. */
#define GPK_EACH_PART(...)       \
    GPK_ONE_PART(0, __VA_ARGS__) \
    GPK_ONE_PART(1, __VA_ARGS__) \
    GPK_ONE_PART(2, __VA_ARGS__) \
    GPK_ONE_PART(3, __VA_ARGS__) \
    GPK_ONE_PART(4, __VA_ARGS__) \
    GPK_ONE_PART(5, __VA_ARGS__) \
    GPK_ONE_PART(6, __VA_ARGS__) \
    GPK_ONE_PART(7, __VA_ARGS__)
#endif

/* Access to a vector's elements, for these types' own operations: the layers above have none. */
struct Inside {
    template <class V> static GPK_INLINE auto &of(V &vector) { return vector.part; }
#ifndef __CUDACC__
    template <class V> static GPK_INLINE auto get(const V &vector, int i)
    {
        return vector.part[i / PER_PART][i % PER_PART];
    }
    template <class V, class E> static GPK_INLINE void set(V &vector, int i, E x)
    {
        vector.part[i / PER_PART][i % PER_PART] = x;
    }
#endif
};

/* A secret yes or no for each thread: all ones or zero. */
class Mask {
  public:
    static GPK_INLINE Mask all() { return ~none(); }
    static GPK_INLINE Mask none()
    {
        Mask r;
        GPK_EACH_PART(r.part[k] = Slot32{})
        return r;
    }
    friend GPK_INLINE Mask operator&(Mask a, Mask b)
    {
        GPK_EACH_PART(a.part[k] &= b.part[k])
        return a;
    }
    friend GPK_INLINE Mask operator~(Mask a)
    {
        GPK_EACH_PART(a.part[k] = ~a.part[k])
        return a;
    }

  private:
    friend Inside;
    Slot32 part[PARTS];
};

/* 32 bits for each thread. All operations are modulo 2^32. */
class Word32 {
  public:
    using Bit = Mask;
    using Element = uint32_t; /* in memory */

    friend GPK_INLINE Word32 operator&(Word32 a, Word32 b)
    {
        GPK_EACH_PART(a.part[k] &= b.part[k])
        return a;
    }
    friend GPK_INLINE Word32 operator|(Word32 a, Word32 b)
    {
        GPK_EACH_PART(a.part[k] |= b.part[k])
        return a;
    }
    friend GPK_INLINE Word32 operator^(Word32 a, Word32 b)
    {
        GPK_EACH_PART(a.part[k] ^= b.part[k])
        return a;
    }

  private:
    friend Inside;
    Slot32 part[PARTS];
};

/* 64 bits for each thread. All operations are modulo 2^64. */
class Word64 {
  public:
    using Bit = Mask;
    using Element = uint64_t;

    friend GPK_INLINE Word64 operator+(Word64 a, Word64 b)
    {
        GPK_EACH_PART(a.part[k] += b.part[k])
        return a;
    }
    friend GPK_INLINE Word64 operator-(Word64 a, Word64 b)
    {
        GPK_EACH_PART(a.part[k] -= b.part[k])
        return a;
    }
    friend GPK_INLINE Word64 operator&(Word64 a, Word64 b)
    {
        GPK_EACH_PART(a.part[k] &= b.part[k])
        return a;
    }
    friend GPK_INLINE Word64 operator|(Word64 a, Word64 b)
    {
        GPK_EACH_PART(a.part[k] |= b.part[k])
        return a;
    }
    friend GPK_INLINE Word64 operator^(Word64 a, Word64 b)
    {
        GPK_EACH_PART(a.part[k] ^= b.part[k])
        return a;
    }
    /* count is public and the same for all threads. */
    friend GPK_INLINE Word64 operator>>(Word64 a, int count)
    {
        GPK_EACH_PART(a.part[k] >>= count)
        return a;
    }
    friend GPK_INLINE Word64 operator<<(Word64 a, int count)
    {
        GPK_EACH_PART(a.part[k] <<= count)
        return a;
    }

  private:
    friend Inside;
    Slot64 part[PARTS];
};

/* A double for each thread, rounded toward zero. On a processor RoundTowardZero must have set the mode. */
class Real {
  public:
    using Bit = Mask;
    using Element = double;

    friend GPK_INLINE Real operator+(Real a, Real b)
    {
        GPK_EACH_PART(a.part[k] += b.part[k])
        return a;
    }
    friend GPK_INLINE Real operator-(Real a, Real b)
    {
        GPK_EACH_PART(a.part[k] -= b.part[k])
        return a;
    }

  private:
    friend Inside;
    SlotReal part[PARTS];
};

/* x, which is public, in every element. */
template <class V, class E> GPK_INLINE V splat(E x)
{
    V r;
#ifdef __CUDACC__
    Inside::of(r)[0] = x;
#else
    GPK_EACH_PART(Inside::of(r)[k] = decltype(Inside::of(r)[k] + x){} + x)
#endif
    return r;
}

} // namespace

template <> struct Splat<Word32> {
    static GPK_INLINE Word32 of(uint32_t x) { return splat<Word32>(x); }
};
template <> struct Splat<Word64> {
    static GPK_INLINE Word64 of(uint64_t x) { return splat<Word64>(x); }
};
template <> struct Splat<Real> {
    static GPK_INLINE Real of(double x) { return splat<Real>(x); }
};

namespace {

/* A public number for each thread, from 0 to 2^32 - 1: its place, its row, an index. */
class Public {
  public:
    /* 0 to 31 */
    static GPK_INLINE Public thread()
    {
        Public r;
#ifdef __CUDACC__
        r.element[0] = threadIdx.x % WARP;
#else
        for (int i = 0; i < WARP; i++)
            r.element[i] = (uint32_t)i;
#endif
        return r;
    }
    static GPK_INLINE Public same(uint32_t x)
    {
        return thread().each([x](uint32_t) { return x; });
    }

    GPK_INLINE Public operator+(uint32_t x) const
    {
        return each([x](uint32_t e) { return e + x; });
    }
    GPK_INLINE Public operator*(uint32_t x) const
    {
        return each([x](uint32_t e) { return e * x; });
    }
    GPK_INLINE Public operator/(uint32_t x) const
    {
        return each([x](uint32_t e) { return e / x; });
    }
    GPK_INLINE Public operator%(uint32_t x) const
    {
        return each([x](uint32_t e) { return e % x; });
    }
    GPK_INLINE Public at_most(uint32_t x) const
    {
        return each([x](uint32_t e) { return e < x ? e : x; });
    }
    GPK_INLINE Public operator+(Public b) const
    {
        for (int i = 0; i < ELEMENTS; i++)
            b.element[i] += element[i];
        return b;
    }

    /* from[index], which is public */
    static GPK_INLINE Public load(const uint32_t *from, Public index)
    {
        return index.each([from](uint32_t e) { return from[e]; });
    }

  private:
    template <class Body> GPK_INLINE Public each(Body body) const
    {
        Public r;
        for (int i = 0; i < ELEMENTS; i++)
            r.element[i] = body(element[i]);
        return r;
    }

#ifdef __CUDACC__
    static constexpr int ELEMENTS = 1;
#else
    static constexpr int ELEMENTS = WARP;
#endif
    friend class Where;
    friend struct Memory;
    friend Word64 shift_right(Word64 low, Word64 high, Public count);
    friend Public once_more(Public number);
    uint32_t element[ELEMENTS];
};

/* A public yes or no for each thread. */
class Where {
  public:
    static GPK_INLINE Where less(Public a, uint32_t b)
    {
        Where r;
#ifdef __CUDACC__
        Inside::of(r)[0] = a.element[0] < b ? ~0U : 0;
#else
        for (int i = 0; i < WARP; i++)
            Inside::set(r, i, a.element[i] < b ? ~UINT64_C(0) : 0);
#endif
        return r;
    }
    friend GPK_INLINE Where operator&(Where a, Where b)
    {
        GPK_EACH_PART(a.part[k] &= b.part[k])
        return a;
    }

  private:
    friend Inside;
    friend struct Memory;
    Slot32 part[PARTS];
};

} // namespace
} // namespace gpk

#endif
