/* Montgomery arithmetic on numbers that lie across T threads of a warp, L limbs in each. RADIX: Threads32 or Threads52.
 * The interface is that of Montgomery52, for exponentiation.h and rsa.h.
 *
 * Limbs are always carried: values are below R = 2^(bits L T), exactly.
 * Bounds ("almost Montgomery", as in montgomery52.h): operands and products are below R, in radix 2^32 for every odd
 * modulus m < R, since a product that reaches R has m taken off once: it is below R + m. Radix 2^52 asks for m < R /
 * 16, and there products of operands below 4 m are below 2 m. reduce() makes any product canonical.
 *
 * Unit of cost: see the radix. Constant time.
 */
#ifndef GPK_GPU_MONTGOMERY_THREADS_H
#define GPK_GPU_MONTGOMERY_THREADS_H

#include "gpu/elements.h"

namespace gpk {
namespace {

template <template <int, int> class RADIX, int L, int T> struct MontgomeryThreads {
    using Radix = RADIX<L, T>;
    using Vector = typename Radix::Vector;
    static constexpr int limbs = L, threads = T;
    static constexpr bool exact = Radix::bits == 32; /* R may be just above the modulus */
    static constexpr bool takes_asides = false;

    Vector modulus[L];
    Vector k0; /* -1 / modulus mod the radix, in every thread */

    /* r = 1, outside of Montgomery form. */
    static GPK_INLINE void set_unit(Vector *r)
    {
        GPK_UNROLL
        for (int i = 0; i < L; i++)
            r[i] = Splat<Vector>::of(0);
        r[0] = keep(Where::less(Public::thread() % T, 1), Splat<Vector>::of(1));
    }

    /* r = a b / R mod modulus, below modulus + a b / R. r may be a or b. On a device this calls a function: kernels
     * with a copy for each call take several times as long to compile. */
    GPK_INLINE void multiply(Vector *r, const Vector *a, const Vector *b) const
    {
#ifdef __CUDACC__
        Number x, y, m;

        GPK_UNROLL
        for (int i = 0; i < L; i++) {
            x.limb[i] = a[i];
            y.limb[i] = b[i];
            m.limb[i] = modulus[i];
        }
        x = multiply_apart(x, y, m, k0);
        GPK_UNROLL
        for (int i = 0; i < L; i++)
            r[i] = x.limb[i];
#else
        multiply_here(r, a, b, modulus, k0);
#endif
    }

    /* r = a^(2^times) / R^(2^times - 1), bounded as in multiply. times is public, and at least 1. r may be a. */
    GPK_INLINE void square(Vector *r, const Vector *a, int times = 1) const
    {
#ifdef __CUDACC__
        Number x, m;

        GPK_UNROLL
        for (int i = 0; i < L; i++) {
            x.limb[i] = a[i];
            m.limb[i] = modulus[i];
        }
        x = square_apart(x, m, k0, times);
        GPK_UNROLL
        for (int i = 0; i < L; i++)
            r[i] = x.limb[i];
#else
        square_here(r, a, modulus, k0);
        for (int i = 1; i < times; i++)
            square_here(r, r, modulus, k0);
#endif
    }

    /* r = a mod modulus, canonical, for a product a. r may be a. In radix 2^32 a product is below 2 m if m < R / 4, and
     * otherwise below R <= 4 m. */
    GPK_NOINLINE void reduce(Vector *r, const Vector *a) const
    {
        Vector complement[L], difference[L];

        GPK_UNROLL
        for (int i = 0; i < L; i++) {
            complement[i] = Radix::complement(modulus[i]);
            r[i] = a[i];
        }
        GPK_LOOP
        for (int times = 0; times < (exact ? 3 : 1); times++) {
            const Mask reaches = Radix::add(difference, r, complement, Mask::all());
            GPK_UNROLL
            for (int i = 0; i < L; i++)
                r[i] = blend(reaches, r[i], difference[i]);
        }
    }

    /* r = a + b mod modulus, an operand, for a and b below 2 modulus. r may be a or b. */
    GPK_NOINLINE void add(Vector *r, const Vector *a, const Vector *b) const
    {
        const Mask reaches = Radix::add(r, a, b, Mask::none());

        if constexpr (exact) /* the sum is below 4 m and 2 R: it may have to come down twice */
            subtract_modulus(r, modulus, subtract_modulus(r, modulus, reaches));
    }

    /* r = a - b mod modulus, canonical, for canonical a and b. r may be a or b. */
    GPK_NOINLINE void subtract(Vector *r, const Vector *a, const Vector *b) const
    {
        Vector term[L];

        GPK_UNROLL
        for (int i = 0; i < L; i++)
            term[i] = Radix::complement(b[i]);
        const Mask below = ~Radix::add(r, a, term, Mask::all());
        GPK_UNROLL
        for (int i = 0; i < L; i++)
            term[i] = blend(below, Splat<Vector>::of(0), modulus[i]);
        Radix::add(r, r, term, Mask::none());
    }

  private:
    /* Passed by value, so that arguments and results stay in registers. */
    struct Number {
        Vector limb[L];
    };

#ifdef __CUDACC__
    static __device__ __noinline__ Number multiply_apart(Number a, Number b, Number m, Vector k0)
    {
        multiply_here(a.limb, a.limb, b.limb, m.limb, k0);
        return a;
    }

    static __device__ __noinline__ Number square_apart(Number a, Number m, Vector k0, int times)
    {
        GPK_LOOP
        for (int i = 0; i < times; i++)
            square_here(a.limb, a.limb, m.limb, k0);
        return a;
    }
#endif

    static GPK_NOINLINE void multiply_here(Vector *r, const Vector *a, const Vector *b, const Vector *m, Vector k0)
    {
        if constexpr (exact)
            subtract_modulus(r, m, Radix::multiply(r, a, b, m, k0));
        else
            Radix::multiply(r, a, b, m, k0);
    }

    static GPK_NOINLINE void square_here(Vector *r, const Vector *a, const Vector *m, Vector k0)
    {
        if constexpr (exact)
            subtract_modulus(r, m, Radix::square(r, a, m, k0));
        else
            Radix::square(r, a, m, k0);
    }

    /* r + R -= modulus where the mask is set; returns where it still reaches R. */
    static GPK_NOINLINE Mask subtract_modulus(Vector *r, const Vector *modulus, Mask where)
    {
        const Vector zero = Splat<Vector>::of(0);
        Vector complement[L];

        GPK_UNROLL
        for (int i = 0; i < L; i++)
            complement[i] = blend(where, zero, Radix::complement(modulus[i]));
        return where & Radix::add(r, r, complement, where);
    }
};

} // namespace
} // namespace gpk

#endif
