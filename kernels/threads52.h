/* Radix 2^52 by floating-point multiply-adds, for numbers that lie across T threads, L limbs in each: thread t holds
 * the limbs t L to t L + L - 1, as doubles that are integers below 2^52.
 *
 * A product of two limbs in two roundings toward zero (after Emmart, Zheng, Weems, "Faster modular exponentiation using
 * double precision floating point arithmetic on the GPU", ARITH 2018):
 *   hi = fma(a, b, 2^104)                  whose bits are those of 2^104 plus floor(a b / 2^52)
 *   lo = fma(a, b, (2^104 + 2^52) - hi)    whose bits are those of 2^52 plus a b mod 2^52
 * Columns sum those bits as integers of 64 bits; the bits of 2^104 and 2^52 are taken off beforehand, by the value that a
 * column begins with: until it leaves the thread as the lowest it gets 2 L of each. Their low 52 bits are zero.
 * Each kind of operation has a loop of its own, so that the chains of a limb's four do not wait for one another.
 *
 * A column holds at most 4 L T + T terms below 2^52: below 2^61.
 * Cost of a product, per thread: 4 L^2 T multiply-adds, 2 L^2 T subtractions and 4 L^2 T additions of 64 bits, 5 L T
 * exchanges of 32 bits. Constant time.
 */
#ifndef GPK_THREADS52_H
#define GPK_THREADS52_H

#include "lane_warp.h"

namespace gpk {
namespace {

template <int L, int T> struct Threads52 {
    using Lane = Real;
    static constexpr int bits = 52; /* of a limb */

    /* The limb of the low 52 bits, and back. */
    static GPK_INLINE Real real(Word64 a)
    {
        return real_of_bits(low_bits(a) | Splat<Word64>::of(BITS_OF_2_52)) - Splat<Real>::of(TWO_52);
    }

    static GPK_INLINE Word64 integer(Real a) { return low_bits(bits_of_real(a + Splat<Real>::of(TWO_52))); }

    /* As Threads32::add. */
    static GPK_NOINLINE Mask add(Real *r, const Real *a, const Real *b, Mask first)
    {
        Word64 sum[L];

        GPK_UNROLL
        for (int i = 0; i < L; i++)
            sum[i] = integer(a[i]) + integer(b[i]);
        sum[0] = sum[0] + widen(keep(Where::less(Public::thread() % T, 1), one_where(first)));
        return normalize(r, sum);
    }

    static GPK_INLINE Real complement(Real limb) { return Splat<Real>::of((double)LIMB) - limb; }

    /* r = (a b + q m) / R, with the q that makes the division exact: below m + a b / R, which must be below R. r may be a
     * or b. */
    static GPK_INLINE void multiply(Real *r, const Real *a, const Real *b, const Real *m, Real k0)
    {
        Word64 column[L];

        GPK_UNROLL
        for (int i = 0; i < L; i++)
            column[i] = Splat<Word64>::of(0 - bits_added(i));
        GPK_LOOP
        for (int t = 0; t < T; t++) {
            GPK_UNROLL
            for (int i = 0; i < L; i++)
                step(column, a, from_thread<T>(b[i], t), m, k0);
        }
        GPK_UNROLL
        for (int i = 0; i < L; i++)
            column[i] = column[i] + Splat<Word64>::of(bits_added(i));
        normalize(r, column);
    }

  private:
    static constexpr uint64_t LIMB = (UINT64_C(1) << 52) - 1;
    static constexpr uint64_t BITS_OF_2_52 = UINT64_C(0x433) << 52, BITS_OF_2_104 = UINT64_C(0x467) << 52;
    static constexpr double TWO_52 = 4503599627370496.0, TWO_104 = TWO_52 * TWO_52;

    /* What a column has yet to get of the constants when it lies at index i, before a step. */
    static constexpr uint64_t bits_added(int i)
    {
        return 2 * (uint64_t)(i + 1) * BITS_OF_2_52 + 2 * (uint64_t)i * BITS_OF_2_104;
    }

    static GPK_INLINE Word64 low_bits(Word64 a) { return a & Splat<Word64>::of(LIMB); }

    /* column[0 .. L - 1] and top += x y */
    static GPK_NOINLINE void add_products(Word64 *column, Word64 &top, const Real *x, Real y)
    {
        Real high[L], low[L];

        GPK_UNROLL
        for (int i = 0; i < L; i++)
            high[i] = fma_toward_zero(x[i], y, Splat<Real>::of(TWO_104));
        GPK_UNROLL
        for (int i = 0; i < L; i++)
            low[i] = Splat<Real>::of(TWO_104 + TWO_52) - high[i];
        GPK_UNROLL
        for (int i = 0; i < L; i++)
            low[i] = fma_toward_zero(x[i], y, low[i]);
        GPK_UNROLL
        for (int i = 0; i < L; i++)
            column[i] = column[i] + bits_of_real(low[i]);
        GPK_UNROLL
        for (int i = 1; i < L; i++)
            column[i] = column[i] + bits_of_real(high[i - 1]);
        top = top + bits_of_real(high[L - 1]);
    }

    /* column = (column + a b + q m) / 2^52 with the q that makes the lowest limb zero. */
    static GPK_NOINLINE void step(Word64 *column, const Real *a, Real b, const Real *m, Real k0)
    {
        Word64 top = Splat<Word64>::of(0 - bits_added(L - 1) - 2 * BITS_OF_2_104);

        add_products(column, top, a, b);
        const Real lowest = real(column[0]);
        const Real high = fma_toward_zero(lowest, k0, Splat<Real>::of(TWO_104));
        const Real low = fma_toward_zero(lowest, k0, Splat<Real>::of(TWO_104 + TWO_52) - high);
        add_products(column, top, m, from_thread<T>(low - Splat<Real>::of(TWO_52), 0));

        const Word64 carry = column[0] >> 52, next = from_next<T>(low_bits(column[0]));
        GPK_UNROLL
        for (int i = 0; i < L - 1; i++)
            column[i] = column[i + 1];
        column[L - 1] = top + next;
        column[0] = column[0] + carry;
    }

    /* r = the columns, carried, mod R; returns where they reach R. */
    static GPK_NOINLINE Mask normalize(Real *r, Word64 *column)
    {
        const Word64 limb = Splat<Word64>::of(LIMB);
        Word64 carry = Splat<Word64>::of(0), ones = limb;

        /* Each column's carry to the next, all at once; then what is left is a bit, and runs. */
        Word64 upper = from_previous<T>(column[L - 1] >> 52);
        GPK_UNROLL
        for (int i = 0; i < L; i++) {
            const Word64 own = column[i] >> 52;
            column[i] = low_bits(column[i]) + upper;
            upper = own;
        }
        GPK_UNROLL
        for (int i = 0; i < L; i++) {
            column[i] = column[i] + carry;
            carry = column[i] >> 52;
            column[i] = low_bits(column[i]);
            ones = ones & column[i];
        }
        const Word64 out = upper; /* of the uppermost thread */
        Word64 in = widen(carry_into<T>(bit_of(carry, 0), is_zero(ones ^ limb)));
        GPK_UNROLL
        for (int i = 0; i < L; i++) {
            column[i] = column[i] + in;
            in = column[i] >> 52;
            r[i] = real(column[i]);
        }
        return bit_of(from_thread<T>(out | carry | in, T - 1), 0);
    }
};

} // namespace
} // namespace gpk

#endif
