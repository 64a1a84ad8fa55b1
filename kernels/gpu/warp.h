/* Vectors across a warp: an element for each of its 32 threads. On a device a thread's element is a register of its
 * own; on a processor a vector holds all 32, and exchanges among threads are permutations. The layers above compile for
 * both.
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

#ifndef __CUDACC__
#include <math.h>
#include <string.h>
#ifdef __AVX2__
#include <immintrin.h>
#endif
#endif

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

/* Access to a vector's elements, for this file and carry_chain.h: the layers above have none. */
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
    static GPK_INLINE Public same(uint32_t x) { return thread().each([x](uint32_t) { return x; }); }

    GPK_INLINE Public operator+(uint32_t x) const { return each([x](uint32_t e) { return e + x; }); }
    GPK_INLINE Public operator*(uint32_t x) const { return each([x](uint32_t e) { return e * x; }); }
    GPK_INLINE Public operator/(uint32_t x) const { return each([x](uint32_t e) { return e / x; }); }
    GPK_INLINE Public operator%(uint32_t x) const { return each([x](uint32_t e) { return e % x; }); }
    GPK_INLINE Public at_most(uint32_t x) const { return each([x](uint32_t e) { return e < x ? e : x; }); }
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
    GPK_EACH_PART(Inside::of(if_clear)[k] ^=
                  Inside::of(bit)[k] & (Inside::of(if_clear)[k] ^ Inside::of(if_set)[k]))
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

GPK_INLINE Mask is_zero(Word64 a)
{
    return ~bit_of(a | (Splat<Word64>::of(0) - a), 63);
}

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

/* Exchanges among the T threads of each group. */

/* The element of the group's thread `source`, a number that is public and the same for all groups. */
template <int T, class V> GPK_INLINE V from_thread(V a, int source)
{
    V r;
#ifdef __CUDACC__
    Inside::of(r)[0] = __shfl_sync(0xffffffff, Inside::of(a)[0], source, T);
#else
    for (int group = 0; group < WARP; group += T) {
        const auto x = Inside::get(a, group + source);
        for (int i = 0; i < T; i++)
            Inside::set(r, group + i, x);
    }
#endif
    return r;
}

/* The next thread's element; zero in the group's last thread. */
template <int T, class V> GPK_INLINE V from_next(V a)
{
    V r;
#ifdef __CUDACC__
    Inside::of(r)[0] = __shfl_down_sync(0xffffffff, Inside::of(a)[0], 1, T);
    return keep(Where::less(Public::thread() % T, T - 1), r);
#else
    for (int i = 0; i < WARP; i++)
        Inside::set(r, i, (i + 1) % T != 0 ? Inside::get(a, (i + 1) % WARP) : 0);
    return r;
#endif
}

/* The previous thread's element; zero in the group's first thread. */
template <int T, class V> GPK_INLINE V from_previous(V a)
{
    V r;
#ifdef __CUDACC__
    Inside::of(r)[0] = __shfl_up_sync(0xffffffff, Inside::of(a)[0], 1, T);
    return keep(Where::less((Public::thread() + (T - 1)) % T, T - 1), r);
#else
    for (int i = 0; i < WARP; i++)
        Inside::set(r, i, i % T != 0 ? Inside::get(a, (i + WARP - 1) % WARP) : 0);
    return r;
#endif
}

/* The element of the same thread in the group's lower or upper half. */
template <int T, class V> GPK_INLINE V from_half(V a, int upper)
{
    V r;
#ifdef __CUDACC__
    Inside::of(r)[0] = __shfl_sync(0xffffffff, Inside::of(a)[0], threadIdx.x % (T / 2) + upper * (T / 2), T);
#else
    for (int i = 0; i < WARP; i++)
        Inside::set(r, i, Inside::get(a, i / T * T + i % (T / 2) + upper * (T / 2)));
#endif
    return r;
}

/* The carry into each thread, 0 or 1, when threads generate a carry where `generates` is set and pass one on where
 * `propagates` is, never both: ((G << 1) + P) ^ P over the group's bits. No carry enters the first thread. */
template <int T> GPK_INLINE Word32 carry_into(Mask generates, Mask propagates)
{
    Word32 r;
#ifdef __CUDACC__
    const uint32_t first = threadIdx.x % WARP / T * T, members = T == 32 ? 0xffffffff : (1U << T % 32) - 1;
    const uint32_t g = __ballot_sync(0xffffffff, Inside::of(generates)[0] & 1) >> first & members;
    const uint32_t p = __ballot_sync(0xffffffff, Inside::of(propagates)[0] & 1) >> first & members;
    Inside::of(r)[0] = (((g << 1) + p) ^ p) >> threadIdx.x % T & 1;
#else
    uint64_t carry = 0;
    for (int i = 0; i < WARP; i++) {
        carry = i % T == 0 ? 0 : carry;
        Inside::set(r, i, carry & 1);
        carry = Inside::get(generates, i) | (Inside::get(propagates, i) & carry);
    }
#endif
    return r;
}

/* Whether the mask is set in all of the group's threads. */
template <int T> GPK_INLINE Mask all_of(Mask mask)
{
#ifdef __CUDACC__
    const uint32_t first = threadIdx.x % WARP / T * T, members = T == 32 ? 0xffffffff : (1U << T % 32) - 1;
    const uint32_t missing = (__ballot_sync(0xffffffff, ~Inside::of(mask)[0] & 1) >> first) & members;
    Inside::of(mask)[0] = (missing | (0 - missing)) >> 31 ? 0 : ~0U;
#else
    for (int group = 0; group < WARP; group += T) {
        uint64_t all = ~UINT64_C(0);
        for (int i = 0; i < T; i++)
            all &= Inside::get(mask, group + i);
        for (int i = 0; i < T; i++)
            Inside::set(mask, group + i, all);
    }
#endif
    return mask;
}

/* The same address, hidden from a device's compiler. Otherwise it would load only once what is needed at the beginning
 * and at the end, and spill it in between. */
template <class E> GPK_INLINE E *once_more(E *memory)
{
#ifdef __CUDACC__
    asm volatile("" : "+l"(memory));
#endif
    return memory;
}

/* The same number, likewise hidden. Otherwise every address computed from it would take a register from beginning to
 * end. */
GPK_INLINE Public once_more(Public number)
{
#ifdef __CUDACC__
    asm volatile("" : "+r"(number.element[0]));
#endif
    return number;
}

/* Memory, by public indices. A thread that is not in `where` does not touch it. */
struct Memory {
    static GPK_INLINE Word32 load(const uint32_t *from, Public index, Where where)
    {
        return as<Word32>(from, index, where);
    }
    static GPK_INLINE Word64 load(const uint64_t *from, Public index, Where where)
    {
        return as<Word64>(from, index, where);
    }
    static GPK_INLINE Real load(const double *from, Public index, Where where) { return as<Real>(from, index, where); }
    template <class E> static GPK_INLINE auto load(const E *from, Public index)
    {
        return load(from, index, Where::less(Public::same(0), 1));
    }

    template <class E, class V> static GPK_INLINE void store(E *to, Public index, V a, Where where)
    {
#ifdef __CUDACC__
        if (Inside::of(where)[0])
            to[index.element[0]] = (E)Inside::of(a)[0];
#else
        for (int i = 0; i < WARP; i++)
            if (Inside::get(where, i))
                to[index.element[i]] = (E)Inside::get(a, i);
#endif
    }

    /* Stores a verdict, 1 or 0, which becomes public. */
    static GPK_INLINE void store(uint8_t *to, Public index, Mask a, Where where)
    {
        store<uint8_t>(to, index, one_where(a), where);
    }

    /* Lets the warp's threads load what the others have stored. */
    static GPK_INLINE void synchronize()
    {
#ifdef __CUDACC__
        __syncwarp();
#endif
    }

  private:
    template <class V, class E> static GPK_INLINE V as(const E *from, Public index, Where where)
    {
        V r;
#ifdef __CUDACC__
        Inside::of(r)[0] = 0;
        if (Inside::of(where)[0])
            Inside::of(r)[0] = from[index.element[0]];
#else
        for (int i = 0; i < WARP; i++)
            Inside::set(r, i, Inside::get(where, i) ? from[index.element[i]] : (E)0);
#endif
        return r;
    }
};

/* A warp's table, whose entries are vectors. In memory the elements of the 32 threads are side by side, so that on a
 * device each thread has a column of its own, and banks do not conflict. Indexed and advanced like a V *. */
#ifdef __CUDACC__
template <class V> class WarpTable {
  public:
    using Element = typename V::Element;

    class Entry {
      public:
        explicit GPK_INLINE Entry(Element *at) : at(at) {}
        GPK_INLINE operator V() const
        {
            V r;
            /* volatile: otherwise the compiler would load entries ahead of a loop of scans, and spill them. */
            Inside::of(r)[0] = *(volatile const Element *)at;
            return r;
        }
        GPK_INLINE void operator=(V a) const { *at = Inside::of(a)[0]; }

      private:
        Element *at;
    };

    static GPK_INLINE WarpTable in(void *memory)
    {
        return WarpTable(static_cast<Element *>(memory) + threadIdx.x % WARP);
    }
    GPK_INLINE WarpTable operator+(int count) const { return WarpTable(column + count * WARP); }
    GPK_INLINE Entry operator[](int index) const { return Entry(column + index * WARP); }

  private:
    explicit GPK_INLINE WarpTable(Element *column) : column(column) {}
    Element *column;
};
#else
template <class V> class WarpTable {
  public:
    static WarpTable in(void *memory) { return WarpTable(static_cast<V *>(memory)); }
    GPK_INLINE WarpTable operator+(int count) const { return WarpTable(entries + count); }
    GPK_INLINE V &operator[](int index) const { return entries[index]; }

  private:
    explicit GPK_INLINE WarpTable(V *entries) : entries(entries) {}
    V *entries;
};
#endif

} // namespace
} // namespace gpk

#endif
