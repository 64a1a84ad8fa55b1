/* Radix 2^52 by floating-point multiply-adds, for numbers that lie across T threads, L limbs in each: thread t holds
 * the limbs t L to t L + L - 1, as doubles that are integers below 2^52.
 *
 * A product of two limbs in two roundings toward zero (after Emmart, Zheng, Weems, "Faster modular exponentiation using
 * double precision floating point arithmetic on the GPU", ARITH 2018):
 *   hi = fma(a, b, 2^104)                  whose bits are those of 2^104 plus floor(a b / 2^52)
 *   lo = fma(a, b, (2^104 + 2^52) - hi)    whose bits are those of 2^52 plus a b mod 2^52
 * Columns sum those bits as 64-bit integers. The bits of 2^104 and 2^52, whose low 52 bits are zero, are subtracted in
 * advance, from a column's initial value: it gets 2 L of each before it leaves the thread as the lowest.
 * Each kind of operation has a loop of its own, so that a limb's four operations do not wait for one another.
 *
 * A square contains every product of two different limbs twice, and needs to compute it once. Limb i of any thread and
 * limb k > i of any thread meet when the former is passed round, in separate columns that count twice; limbs with the
 * same index i meet when either is passed round, and count once each time. So each thread always works on its limbs
 * from i on, and none waits for another that has more to do.
 *
 * A column holds at most 4 L T + T terms below 2^52, where one that counts twice is two: below 2^61.
 * Cost of a product, per thread: 4 L^2 T multiply-adds, 2 L^2 T subtractions and 4 L^2 T additions of 64 bits, 5 L T
 * exchanges of 32 bits; of a square, (3 L^2 + L) T, half as many, and as many. Constant time.
 */
#ifndef GPK_GPU_THREADS52_H
#define GPK_GPU_THREADS52_H

#include "gpu/exchange.h"

namespace gpk {
namespace {

template <int L, int T> struct Threads52 {
    using Vector = Real;
    static constexpr int bits = 52; /* of a limb */

    /* Converts the low 52 bits to a limb, and back. */
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

    /* r = (a b + q m) / R, with the q that makes the division exact. It is below m + a b / R, which must be below R. r
     * may be a or b. */
    static GPK_INLINE void multiply(Real *r, const Real *a, const Real *b, const Real *m, Real k0)
    {
        const Word64 k = integer(k0);
        Word64 column[L];

        GPK_UNROLL
        for (int i = 0; i < L; i++)
            column[i] = Splat<Word64>::of(0 - bits_added(i));
        GPK_LOOP
        for (int t = 0; t < T; t++) {
            GPK_UNROLL
            for (int i = 0; i < L; i++)
                step(column, a, from_thread<T>(b[i], t), m, k);
        }
        GPK_UNROLL
        for (int i = 0; i < L; i++)
            column[i] = column[i] + Splat<Word64>::of(bits_added(i));
        normalize(r, column);
    }

    /* r = multiply(a, a). r may be a. */
    static GPK_INLINE void square(Real *r, const Real *a, const Real *m, Real k0)
    {
        const Word64 k = integer(k0);
        Word64 column[L], twice[L];

        unroll<0, L>(GPK_EACH(i) {
            constexpr uint64_t ADDED = bits_squared(i, 0);
            column[i] = Splat<Word64>::of(0 - ADDED);
            twice[i] = Splat<Word64>::of(0);
        });
        GPK_LOOP
        for (int t = 0; t < T; t++)
            unroll<0, L>(GPK_EACH(i) { square_step<i>(column, twice, a, from_thread<T>(a[i], t), m, k); });
        unroll<0, L>(GPK_EACH(i) {
            constexpr uint64_t ADDED = bits_squared(i, 0);
            column[i] = column[i] + (twice[i] << 1) + Splat<Word64>::of(ADDED);
        });
        normalize(r, column);
    }

  private:
    static constexpr uint64_t LIMB = (UINT64_C(1) << 52) - 1;
    static constexpr uint64_t BITS_OF_2_52 = UINT64_C(0x433) << 52, BITS_OF_2_104 = UINT64_C(0x467) << 52;
    static constexpr double TWO_52 = 4503599627370496.0, TWO_104 = TWO_52 * TWO_52;

    /* How much of the constants a column at index i has yet to get, before a step. */
    static constexpr uint64_t bits_added(int i)
    {
        return 2 * (uint64_t)(i + 1) * BITS_OF_2_52 + 2 * (uint64_t)i * BITS_OF_2_104;
    }

    /* The same in a square, for a column at index k (or L, for a new one) before a step whose limb has index i,
     * including what counts twice. */
    static constexpr uint64_t bits_squared(int k, int i)
    {
        uint64_t bits = 0;

        for (; k >= 0; k--, i = (i + 1) % L) {
            if (k < L)
                bits += (k < i ? 1 : k == i ? 2 : 3) * BITS_OF_2_52;
            if (k > 0)
                bits += (k - 1 < i ? 1 : k - 1 == i ? 2 : 3) * BITS_OF_2_104;
        }
        return bits;
    }

    static GPK_INLINE Word64 low_bits(Word64 a) { return a & Splat<Word64>::of(LIMB); }

    /* column[FROM .. TO - 1] and `after`, which is column[TO], += x[FROM .. TO - 1] y. */
    template <int FROM, int TO>
    static GPK_NOINLINE void add_products(Word64 *column, Word64 &after, const Real *x, Real y)
    {
        Real high[L], low[L];

        GPK_UNROLL
        for (int i = FROM; i < TO; i++)
            high[i] = fma_toward_zero(x[i], y, Splat<Real>::of(TWO_104));
        GPK_UNROLL
        for (int i = FROM; i < TO; i++)
            low[i] = Splat<Real>::of(TWO_104 + TWO_52) - high[i];
        GPK_UNROLL
        for (int i = FROM; i < TO; i++)
            low[i] = fma_toward_zero(x[i], y, low[i]);
        GPK_UNROLL
        for (int i = FROM; i < TO; i++)
            column[i] = column[i] + bits_of_real(low[i]);
        GPK_UNROLL
        for (int i = FROM + 1; i < TO; i++)
            column[i] = column[i] + bits_of_real(high[i - 1]);
        after = after + bits_of_real(high[TO - 1]);
    }

    /* column = (column + a b + q m) / 2^52 with the q that makes the lowest limb zero. */
    static GPK_NOINLINE void step(Word64 *column, const Real *a, Real b, const Real *m, Word64 k0)
    {
        Word64 top = Splat<Word64>::of(0 - bits_added(L - 1) - 2 * BITS_OF_2_104);

        add_products<0, L>(column, top, a, b);
        move_down(column, top, m, k0);
    }

    /* The same for a square, where b is some thread's a[I]. */
    template <int I>
    static GPK_NOINLINE void square_step(Word64 *column, Word64 *twice, const Real *a, Real b, const Real *m, Word64 k0)
    {
        constexpr uint64_t ADDED = bits_squared(L, I);
        Word64 top = Splat<Word64>::of(0 - ADDED), twice_top = Splat<Word64>::of(0);

        if constexpr (I < L - 1) {
            add_products<I, I + 1>(column, column[I + 1], a, b);
            add_products<I + 1, L>(twice, twice_top, a, b);
        } else {
            add_products<I, I + 1>(column, top, a, b);
        }
        column[0] = column[0] + (twice[0] << 1);
        move_down(column, top, m, k0);
        GPK_UNROLL
        for (int i = 0; i < L - 1; i++)
            twice[i] = twice[i + 1];
        twice[L - 1] = twice_top;
    }

    /* column = (column + q m) / 2^52, with `top` as the new column. The quotient's limb, for which the next step waits,
     * is an integer product: a device has integer units to spare. */
    static GPK_NOINLINE void move_down(Word64 *column, Word64 top, const Real *m, Word64 k0)
    {
        add_products<0, L>(column, top, m, from_thread<T>(real(multiply_low(column[0], k0)), 0));

        const Word64 carry = column[0] >> 52, next = low_bits(from_next<T>(column[0]));
        GPK_UNROLL
        for (int i = 0; i < L - 1; i++)
            column[i] = column[i + 1];
        column[L - 1] = top + next;
        column[0] = column[0] + carry;
    }

    /* r = the columns, carried, mod R. Returns where they reach R. */
    static GPK_NOINLINE Mask normalize(Real *r, Word64 *column)
    {
        const Word64 limb = Splat<Word64>::of(LIMB);
        Word64 carry = Splat<Word64>::of(0), ones = limb;

        /* Adds each column's carry to the next column, all at once; the carries that are left are single bits, and
         * ripple. */
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
