/* Montgomery arithmetic in radix 2^52 with the one primitive mad52 (lo, hi).
 *
 * A number is N limbs, least significant first, R = 2^(52 N). Only the low 52 bits of a limb count: the carries of a
 * sum stay above them, which mad52 does not see, and are masked off where a limb is added or stored.
 *
 * Bounds ("almost Montgomery", after Walter, "Montgomery exponentiation needs no final subtractions", 1999, and Gueron,
 * "Efficient software implementations of modular exponentiation", 2012): with m < R / 16, operands below 4 m give a
 * product below m + 16 m^2 / R < 2 m, so that no loop subtracts, and the sum of two products is an operand again.
 * reduce() gives the canonical value at the end.
 * A column holds at most 4 N + 1 terms below 2^52: below 2^62 for N = 160.
 *
 * Products are formed a block of ROWS by ROWS limbs at a time, columns in registers (product scanning; Koc, Acar,
 * Kaliski, "Analyzing and comparing Montgomery multiplication algorithms", 1996), and reduced in a second pass, so that
 * squaring can leave out the half that repeats. Cost in mad52 instructions: multiply 4 N^2 + N, square 3 N^2 + 2 N.
 *
 * Constant time: no branch and no address depends on anything but N.
 */
#ifndef GPK_CPU_MONTGOMERY52_H
#define GPK_CPU_MONTGOMERY52_H

#include "arithmetic/compiler.h"

namespace gpk {

/* An aside that does nothing. */
struct Nothing {
    GPK_INLINE void operator()() {}
};

template <int N, class V> struct Montgomery52 {
    using Vector = V;
    static constexpr int limbs = N;
    static constexpr bool takes_asides = true;
    static constexpr uint64_t LIMB = (UINT64_C(1) << 52) - 1;

    V modulus[N]; /* odd, below R / 16, limbs below 2^52 */
    V k0;         /* -1 / modulus mod 2^52 */

    /* r = 1, outside of Montgomery form. */
    static void set_unit(V *r)
    {
        for (int i = 0; i < N; i++)
            r[i] = Splat<V>::of(i == 0);
    }

    /* r = a b / R mod modulus, below modulus + a b / R. r may be a or b. */
    GPK_NOINLINE void multiply(V *r, const V *a, const V *b)
    {
        Nothing nothing;
        form_product(a, b);
        reduce_product(r, nothing);
    }

    /* r = a a / R mod modulus, bounded as in multiply. r may be a. Calls aside() now and then: independent work, which
     * fills the gaps in the chain from one limb of the quotient to the next. */
    template <class Aside> GPK_NOINLINE void square(V *r, const V *a, Aside &aside)
    {
        form_square(a);
        reduce_product(r, aside);
    }

    void square(V *r, const V *a)
    {
        Nothing nothing;
        square(r, a, nothing);
    }

    /* r = a mod modulus, canonical, for a product a (below 2 modulus). r may be a. */
    GPK_NOINLINE void reduce(V *r, const V *a) const
    {
        const V mask = Splat<V>::of(LIMB);
        V borrow = Splat<V>::of(0), difference[N];

        for (int i = 0; i < N; i++) {
            V d = (a[i] & mask) - modulus[i] - borrow;
            borrow = d >> SIGN;
            difference[i] = d & mask;
        }
        const auto below = bit_of(borrow, 0);
        for (int i = 0; i < N; i++)
            r[i] = blend(below, difference[i], a[i] & mask);
    }

    /* r = a + b, an operand, for a and b below 2 modulus: added as integers, limbs below 2^52. r may be a or b. */
    static void add(V *r, const V *a, const V *b)
    {
        const V mask = Splat<V>::of(LIMB);
        V carry = Splat<V>::of(0);

        for (int i = 0; i < N; i++) {
            V sum = (a[i] & mask) + (b[i] & mask) + carry;
            carry = sum >> CARRY;
            r[i] = sum & mask;
        }
    }

    /* r = a - b mod modulus, canonical, for canonical a and b. r may be a or b. */
    void subtract(V *r, const V *a, const V *b) const
    {
        const V mask = Splat<V>::of(LIMB), zero = Splat<V>::of(0);
        V borrow = zero, carry = zero;

        for (int i = 0; i < N; i++) {
            V d = a[i] - b[i] - borrow;
            borrow = d >> SIGN;
            r[i] = d & mask;
        }
        const auto below = bit_of(borrow, 0);
        for (int i = 0; i < N; i++) {
            V sum = r[i] + blend(below, zero, modulus[i]) + carry;
            carry = sum >> CARRY;
            r[i] = sum & mask;
        }
    }

  private:
    static constexpr Constant<52> CARRY{};
    static constexpr Constant<63> SIGN{};

    /* A block's columns should fill the registers: bench/kernels/ATTEMPTS.md has the measurements. */
    static constexpr int ROWS = V::long_blocks && N % 8 == 0    ? 8
                                : V::long_blocks && N % 10 == 0 ? 10
                                : N % 4 == 0                    ? 4
                                                                : 5;
    static constexpr int BLOCKS = N / ROWS;
    static_assert(N % ROWS == 0, "limbs come in whole blocks");

    V product[2 * N]; /* columns, not carried */
    V quotient[N];

    /* columns += x y for one block of each */
    static GPK_INLINE void add_block(V *columns, const V *x, const V *y)
    {
        V row[ROWS];

        unroll<0, ROWS>(GPK_EACH(r) { row[r] = x[r]; });
        unroll<0, ROWS>(GPK_EACH(c) {
            const V limb = y[c];
            unroll<0, ROWS>(GPK_EACH(r) { columns[r + c] = mad52lo(columns[r + c], row[r], limb); });
            unroll<0, ROWS>(GPK_EACH(r) { columns[r + c + 1] = mad52hi(columns[r + c + 1], row[r], limb); });
        });
    }

    /* columns += the products x_r x_c with r < c */
    static GPK_INLINE void add_triangle(V *columns, const V *x)
    {
        unroll<0, ROWS>(GPK_EACH(c) {
            const V limb = x[c];
            unroll<0, c>(GPK_EACH(r) { columns[r + c] = mad52lo(columns[r + c], x[r], limb); });
            unroll<0, c>(GPK_EACH(r) { columns[r + c + 1] = mad52hi(columns[r + c + 1], x[r], limb); });
        });
    }

    static GPK_INLINE void clear(V *columns)
    {
        unroll<0, ROWS>(GPK_EACH(i) { columns[i] = Splat<V>::of(0); });
    }

    /* Stores the finished columns of block k, and moves the upper half down. */
    GPK_INLINE void store_block(V *columns, int k)
    {
        unroll<0, ROWS>(GPK_EACH(i) {
            product[k * ROWS + i] = columns[i];
            columns[i] = columns[ROWS + i];
        });
        clear(columns + ROWS);
    }

    /* The same for a square: doubles the columns and adds the squares x_i^2. ODD: whether k ROWS is odd. */
    template <int ODD> GPK_INLINE void store_square_block(const V *x, V *columns, int k)
    {
        unroll<0, ROWS>(GPK_EACH(i) {
            const V limb = x[k * ROWS / 2 + (i + ODD) / 2], twice = columns[i] + columns[i];
            product[k * ROWS + i] = (i + ODD) % 2 == 0 ? mad52lo(twice, limb, limb) : mad52hi(twice, limb, limb);
            columns[i] = columns[ROWS + i];
        });
        clear(columns + ROWS);
    }

    GPK_INLINE void form_product(const V *a, const V *b)
    {
        V columns[2 * ROWS];

        clear(columns);
        clear(columns + ROWS);
        for (int k = 0; k < 2 * BLOCKS - 1; k++) {
            const int from = k < BLOCKS ? 0 : k - BLOCKS + 1, to = k < BLOCKS ? k : BLOCKS - 1;
            for (int i = from; i <= to; i++)
                add_block(columns, a + i * ROWS, b + (k - i) * ROWS);
            store_block(columns, k);
        }
        store_block(columns, 2 * BLOCKS - 1);
    }

    /* a^2 = 2 sum_{i<j} a_i a_j + sum a_i^2 */
    GPK_INLINE void form_square(const V *a)
    {
        V columns[2 * ROWS];

        clear(columns);
        clear(columns + ROWS);
        for (int k = 0; k < 2 * BLOCKS; k++) {
            for (int i = k < BLOCKS ? 0 : k - BLOCKS + 1; 2 * i < k; i++)
                add_block(columns, a + i * ROWS, a + (k - i) * ROWS);
            if (k % 2 == 0)
                add_triangle(columns, a + k / 2 * ROWS);
            if (ROWS % 2 != 0 && k % 2 != 0)
                store_square_block<1>(a, columns, k);
            else
                store_square_block<0>(a, columns, k);
        }
    }

    GPK_INLINE void load_block(V *columns, int k)
    {
        unroll<0, ROWS>(GPK_EACH(i) { columns[i] = product[k * ROWS + i]; });
    }

    GPK_INLINE void next_block(V *columns, int k)
    {
        unroll<0, ROWS>(GPK_EACH(i) { columns[i] = columns[ROWS + i]; });
        if (k + 2 < 2 * BLOCKS)
            load_block(columns + ROWS, k + 2);
    }

    /* r = (product + quotient modulus) / R, with the quotient that makes the division exact */
    template <class Aside> GPK_INLINE void reduce_product(V *r, Aside &aside)
    {
        const V zero = Splat<V>::of(0);
        V columns[2 * ROWS];

        load_block(columns, 0);
        load_block(columns + ROWS, 1);
        for (int k = 0; k < BLOCKS; k++) {
            for (int i = 0; i < k; i++)
                add_block(columns, quotient + i * ROWS, modulus + (k - i) * ROWS);
            V row[ROWS];
            unroll<0, ROWS>(GPK_EACH(c) { row[c] = modulus[c]; });
            aside();
            unroll<0, ROWS>(GPK_EACH(i) {
                const V q = mad52lo(zero, columns[i], k0);
                quotient[k * ROWS + i] = q;
                unroll<0, ROWS>(GPK_EACH(c) { columns[i + c] = mad52lo(columns[i + c], q, row[c]); });
                unroll<0, ROWS>(GPK_EACH(c) { columns[i + c + 1] = mad52hi(columns[i + c + 1], q, row[c]); });
                columns[i + 1] = columns[i + 1] + (columns[i] >> CARRY);
            });
            next_block(columns, k);
        }
        for (int k = BLOCKS; k < 2 * BLOCKS; k++) {
            for (int i = k - BLOCKS + 1; i < BLOCKS; i++)
                add_block(columns, quotient + i * ROWS, modulus + (k - i) * ROWS);
            unroll<0, ROWS>(GPK_EACH(i) {
                r[(k - BLOCKS) * ROWS + i] = columns[i];
                columns[i + 1] = columns[i + 1] + (columns[i] >> CARRY);
            });
            next_block(columns, k);
        }
    }
};

} // namespace gpk

#endif
