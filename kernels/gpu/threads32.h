/* Radix 2^32 for numbers that lie across T threads, L limbs in each: thread t holds the limbs t L to t L + L - 1.
 *
 * Products by operand scanning (the CIOS method of Koc, Acar, Kaliski, "Analyzing and comparing Montgomery
 * multiplication algorithms", 1996), a limb of b and a limb of the quotient at a time. Each thread keeps the columns of
 * its own limbs as two rows of 64-bit sums, one of the products a_i b with even i and one with odd i, so that a row is
 * one chain of carries; when the number moves down a limb, the rows change places (Emmart and Zheng, "Pushing the
 * performance envelope of modular exponentiation across multiple generations of GPUs", 2015, describe such rows).
 *
 * A square contains every product of two different limbs twice, and needs to compute it once: threads52.h says which
 * thread computes which. Limbs whose products count twice are doubled beforehand, as a number of L limbs and a bit.
 *
 * Cost of a product, per thread: 2 L^2 T multiply-adds of 32 x 32 + 64 bits, about 12 L T other instructions, 3 L T
 * exchanges; of a square, (3 L^2 + L) T / 2 multiply-adds, L^2 T / 2 additions more, and as many exchanges.
 * Constant time.
 */
#ifndef GPK_GPU_THREADS32_H
#define GPK_GPU_THREADS32_H

#include "gpu/carry_chain.h"
#include "gpu/exchange.h"

namespace gpk {
namespace {

template <int L, int T> struct Threads32 {
    using Vector = Word32;
    static constexpr int bits = 32; /* of a limb */

    static_assert(L % 2 == 0, "the two rows have the same length");

    /* r = a + b, plus 1 where `first` is set, mod R = 2^(32 L T). Returns where the sum reaches R, in all of the
     * group's threads. r may be a or b. */
    static GPK_NOINLINE Mask add(Word32 *r, const Word32 *a, const Word32 *b, Mask first)
    {
        CarryChain chain;
        const Word32 zero = Splat<Word32>::of(0);
        const Word32 in = keep(Where::less(Public::thread() % T, 1), one_where(first));
        Word32 sum[L];

        sum[0] = chain.add(a[0], b[0]);
        GPK_UNROLL
        for (int i = 1; i < L; i++)
            sum[i] = chain.addc(a[i], b[i]);
        const Word32 carry = chain.addc(zero, zero);
        const Word32 again = add_word(sum, in); /* a + b + 1 carries once at most */
        return resolve(r, sum, carry | again);
    }

    static GPK_INLINE Word32 complement(Word32 limb) { return limb ^ Splat<Word32>::of(0xffffffff); }

    /* r = (a b + q m) / R mod R, with the q that makes the division exact. Returns where the quotient reaches R; for
     * a, b < R it is below R + m. r may be a or b. */
    static GPK_INLINE Mask multiply(Word32 *r, const Word32 *a, const Word32 *b, const Word32 *m, Word32 k0)
    {
        Word64 even[H], odd[H];
        Word32 next = Splat<Word32>::of(0), top = next;

        GPK_UNROLL
        for (int i = 0; i < H; i++)
            even[i] = odd[i] = Splat<Word64>::of(0);
        GPK_LOOP
        for (int t = 0; t < T; t++) {
            GPK_UNROLL
            for (int i = 0; i < L; i += 2) {
                step(even, odd, next, top, a, from_thread<T>(b[i], t), m, k0);
                step(odd, even, next, top, a, from_thread<T>(b[i + 1], t), m, k0);
            }
        }
        return finish(r, even, odd, next, top);
    }

    /* multiply(r, a, a, m, k0) */
    static GPK_INLINE Mask square(Word32 *r, const Word32 *a, const Word32 *m, Word32 k0)
    {
        Word64 even[H], odd[H];
        Word32 twice[L], next = Splat<Word32>::of(0), top = next;
        const Mask overflow = bit_of(a[L - 1], 31);

        twice[0] = high_half(join(next, a[0]) << 1);
        GPK_UNROLL
        for (int i = 1; i < L; i++)
            twice[i] = high_half(join(a[i - 1], a[i]) << 1);
        GPK_UNROLL
        for (int i = 0; i < H; i++)
            even[i] = odd[i] = Splat<Word64>::of(0);
        GPK_LOOP
        for (int t = 0; t < T; t++) {
            unroll<0, H>(GPK_EACH(j) {
                constexpr int I = 2 * j;
                square_step<I>(even, odd, next, top, a, twice, overflow, from_thread<T>(a[I], t), m, k0);
                square_step<I + 1>(odd, even, next, top, a, twice, overflow, from_thread<T>(a[I + 1], t), m, k0);
            });
        }
        return finish(r, even, odd, next, top);
    }

  private:
    static constexpr int H = L / 2;

    /* r = the columns as one number mod R. Returns where it reaches R. */
    static GPK_NOINLINE Mask finish(Word32 *r, const Word64 *even, const Word64 *odd, Word32 next, Word32 top)
    {
        /* The last step's even row is `odd`, and its lowest word has moved to the thread below. */
        CarryChain chain;
        Word32 sum[L];
        sum[0] = chain.add(low_half(even[0]), high_half(odd[0]));
        GPK_UNROLL
        for (int i = 1; i < L; i++) {
            const Word32 upper = i == L - 1   ? next
                                 : i % 2 == 0 ? high_half(odd[i / 2])
                                              : low_half(odd[(i + 1) / 2 % H]);
            sum[i] = chain.addc(i % 2 == 0 ? low_half(even[i / 2]) : high_half(even[i / 2]), upper);
        }
        top = chain.addc(top, Splat<Word32>::of(0));
        const Word32 carry = add_word(sum, from_previous<T>(top));
        return resolve(r, sum, carry, top);
    }

    /* Multiplies by one limb b. In: odd is the even row of the step before (columns 0 to L - 1, not yet moved down),
     * even its odd row (columns 1 to L), next the limb from the thread above, top the carries out of column L, at most
     * 4. Out: the same of this step, with the rows exchanged. */
    static GPK_NOINLINE void step(Word64 *even, Word64 *odd, Word32 &next, Word32 &top, const Word32 *a, Word32 b,
                                  const Word32 *m, Word32 k0)
    {
        CarryChain chain;
        const Word32 zero = Splat<Word32>::of(0);

        /* Column 1 of the old even row moves to column 0; the carry to column 1 begins the odd row's chain. */
        even[0] = join(chain.add(low_half(even[0]), high_half(odd[0])), high_half(even[0]));
        GPK_UNROLL
        for (int i = 0; i < H; i++)
            odd[i] = chain.madc(i == H - 1 ? join(next, top) : odd[(i + 1) % H], a[2 * i + 1], b);
        top = chain.addc(zero, zero);
        add_even(even, odd, top, a, b);
        reduce(even, odd, next, top, m, k0);
    }

    /* The same for a square, where b is some thread's a[I]; adds the products of this thread's limbs from I on. */
    template <int I>
    static GPK_NOINLINE void square_step(Word64 *even, Word64 *odd, Word32 &next, Word32 &top, const Word32 *a,
                                         const Word32 *twice, Mask overflow, Word32 b, const Word32 *m, Word32 k0)
    {
        CarryChain chain;
        const Word32 zero = Splat<Word32>::of(0);
        Word32 x[L];

        /* Twice the limbs above I, without the carry from limb I. */
        x[I] = a[I];
        GPK_UNROLL
        for (int k = I + 1; k < L; k++)
            x[k] = k == I + 1 ? twice[k] & Splat<Word32>::of(0xfffffffe) : twice[k];
        even[0] = join(chain.add(low_half(even[0]), high_half(odd[0])), high_half(even[0]));
        GPK_UNROLL
        for (int i = 0; i < H; i++) {
            const Word64 old = i == H - 1 ? join(next, top) : odd[(i + 1) % H];
            if (2 * i + 1 < I) {
                const Word32 low = chain.addc(low_half(old), zero);
                odd[i] = join(low, chain.addc(high_half(old), zero));
            } else {
                odd[i] = chain.madc(old, x[2 * i + 1], b);
            }
        }
        top = chain.addc(zero, zero);
        if constexpr (I < L - 1)
            add_even<(I + 1) / 2>(even, odd, top, x, b, blend(overflow, zero, b));
        reduce(even, odd, next, top, m, k0);
    }

    /* Adds q m, with the q that makes the lowest column zero, and passes the lowest limb to the thread below. */
    static GPK_INLINE void reduce(Word64 *even, Word64 *odd, Word32 &next, Word32 &top, const Word32 *m, Word32 k0)
    {
        CarryChain chain;
        const Word32 zero = Splat<Word32>::of(0);
        const Word32 q = from_thread<T>(multiply_low(low_half(even[0]), k0), 0);
        odd[0] = chain.mad(odd[0], m[1], q);
        GPK_UNROLL
        for (int i = 1; i < H; i++)
            odd[i] = chain.madc(odd[i], m[2 * i + 1], q);
        top = chain.addc(top, zero);
        add_even(even, odd, top, m, q);
        next = from_next<T>(low_half(even[0]));
    }

    /* even += the even limbs of x, from 2 FROM on, times y. The carry goes into column L, in the odd row, and so does
     * `above`. */
    template <int FROM = 0>
    static GPK_INLINE void add_even(Word64 *even, Word64 *odd, Word32 &top, const Word32 *x, Word32 y,
                                    Word32 above = Splat<Word32>::of(0))
    {
        CarryChain chain;
        const Word32 zero = Splat<Word32>::of(0);

        even[FROM] = chain.mad(even[FROM], x[2 * FROM], y);
        GPK_UNROLL
        for (int i = FROM + 1; i < H; i++)
            even[i] = chain.madc(even[i], x[2 * i], y);
        odd[H - 1] = join(low_half(odd[H - 1]), chain.addc(high_half(odd[H - 1]), above));
        top = chain.addc(top, zero);
    }

    /* sum += x within each thread. Returns the carry. */
    static GPK_NOINLINE Word32 add_word(Word32 *sum, Word32 x)
    {
        CarryChain chain;
        const Word32 zero = Splat<Word32>::of(0);

        sum[0] = chain.add(sum[0], x);
        GPK_UNROLL
        for (int i = 1; i < L; i++)
            sum[i] = chain.addc(sum[i], zero);
        return chain.addc(zero, zero);
    }

    /* r = sum + the carries (0 or 1) out of the threads below. Returns whether the uppermost thread carries, or its
     * `top` is set. */
    static GPK_NOINLINE Mask resolve(Word32 *r, Word32 *sum, Word32 carry, Word32 top = Splat<Word32>::of(0))
    {
        Word32 ones = sum[0];

        GPK_UNROLL
        for (int i = 1; i < L; i++)
            ones = ones & sum[i];
        const Mask full = is_zero(widen(complement(ones)));
        const Word32 in = carry_into<T>(bit_of(carry, 0), full);
        const Word32 out = add_word(sum, in);
        GPK_UNROLL
        for (int i = 0; i < L; i++)
            r[i] = sum[i];
        return bit_of(from_thread<T>(carry | out | top, T - 1), 0);
    }
};

} // namespace
} // namespace gpk

#endif
