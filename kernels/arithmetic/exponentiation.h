/* Exponentiation with a fixed window and a whole-table scan, over any Montgomery arithmetic, whatever its radix.
 *
 * Left to right, WINDOW bits at a time (Menezes, van Oorschot, Vanstone, Handbook of Applied Cryptography, 14.82):
 * the same sequence of squarings and multiplications for every exponent of the same number of digits; the
 * multiplication by entry 0, which is one, is not skipped. Each look-up reads the whole table. Constant time, except in
 * the number of digits.
 *
 * Cost for d digits: 2^WINDOW - 2 products for the table, (d - 1) WINDOW squarings, d - 1 products, d scans.
 */
#ifndef GPK_ARITHMETIC_EXPONENTIATION_H
#define GPK_ARITHMETIC_EXPONENTIATION_H

#include "arithmetic/compiler.h"

namespace gpk {

/* How an exponent is stored: digits of WINDOW bits, least significant first, as many as fit into each 64-bit word. */
template <int WINDOW> struct Digits {
    static constexpr int per_word = 64 / WINDOW;
    static constexpr int count(int bits) { return (bits + WINDOW - 1) / WINDOW; }
    static constexpr int words(int bits) { return (count(bits) + per_word - 1) / per_word; }

    /* Packs the low `bits` bits of little-endian bytes, which must be readable 2 bytes beyond. Constant time, except in
     * bits. */
    static void pack(uint64_t *to, const uint8_t *bytes, int bits)
    {
        for (int i = 0; i < words(bits); i++)
            to[i] = 0;
        for (int i = 0; i < count(bits); i++) {
            const uint8_t *at = bytes + i * WINDOW / 8;
            const unsigned two = at[0] | (unsigned)at[1] << 8;
            const int left = bits - i * WINDOW, width = left < WINDOW ? left : WINDOW;
            const uint64_t digit = two >> i * WINDOW % 8 & ((1U << width) - 1);
            to[i / per_word] |= digit << i % per_word * WINDOW;
        }
    }
};

/* An exponent in each lane, as Digits stores it. */
template <class V> class PackedExponent {
  public:
    explicit PackedExponent(const V *words) : words(words) {}

    /* The selector of the table entry that a digit names. */
    template <int WINDOW, class = V> GPK_INLINE Selector<WINDOW, V> select(int digit) const
    {
        constexpr int PER_WORD = Digits<WINDOW>::per_word;
        return Selector<WINDOW, V>(words[digit / PER_WORD], digit % PER_WORD * WINDOW);
    }

  private:
    const V *words;
};

/* Scans the whole table for one entry, a limb with each call: the aside of the squarings. */
template <int WINDOW, int N, class V, class Table> class TableScan {
  public:
    GPK_INLINE TableScan(V *entry, Table table, Selector<WINDOW, V> selector)
        : entry(entry), table(table), selector(selector)
    {
    }

    GPK_INLINE void operator()()
    {
        if (limb < N) {
            scan(limb);
            limb++;
        }
    }

    GPK_INLINE void finish()
    {
        GPK_UNROLL
        for (int i = limb; i < N; i++)
            scan(i);
    }

  private:
    V *entry;
    Table table;
    Selector<WINDOW, V> selector;
    int limb = 0;

    GPK_INLINE void scan(int i) { entry[i] = selector.pick(table + (i << WINDOW)); }
};

/* result = base^exponent, all in Montgomery form; result is bounded like a product. base and one are operands.
 * exponent: PackedExponent, or anything with its select(). table: scratch for limbs 2^WINDOW vectors, V * or anything
 * that is indexed and advanced like one. result may be base. */
template <int WINDOW, class Arithmetic, class Exponent, class Table, class V = typename Arithmetic::Vector>
GPK_FUNCTION void mont_exp(Arithmetic &arithmetic, V *result, const V *base, const V *one, const Exponent &exponent,
                           int digits, Table table)
{
    constexpr int N = Arithmetic::limbs, ENTRIES = 1 << WINDOW;
    using Scan = TableScan<WINDOW, N, V, Table>;
    V factor[N];

    /* For each limb, all entries side by side, so that the scan reads memory in order. */
    GPK_UNROLL
    for (int i = 0; i < N; i++) {
        table[i * ENTRIES] = one[i];
        table[i * ENTRIES + 1] = factor[i] = base[i];
    }
    GPK_LOOP
    for (int entry = 2; entry < ENTRIES; entry++) {
        arithmetic.multiply(factor, factor, base);
        GPK_UNROLL
        for (int i = 0; i < N; i++)
            table[i * ENTRIES + entry] = factor[i];
    }
    Scan(result, table, exponent.template select<WINDOW, V>(digits - 1)).finish();
    GPK_LOOP
    for (int digit = digits - 2; digit >= 0; digit--) {
        Scan scan(factor, table, exponent.template select<WINDOW, V>(digit));

        if constexpr (Arithmetic::takes_asides) {
            for (int i = 0; i < WINDOW; i++)
                arithmetic.square(result, result, scan);
        } else {
            arithmetic.square(result, result, WINDOW);
        }
        scan.finish();
        arithmetic.multiply(result, result, factor);
    }
}

/* number = number^exponent mod the modulus, canonical, outside of Montgomery form, for a number below R. one, r2: R and
 * R^2 mod the modulus. */
template <int WINDOW, class Arithmetic, class Exponent, class Table, class V = typename Arithmetic::Vector>
GPK_FUNCTION void mod_exp(Arithmetic &arithmetic, V *number, const V *one, const V *r2, const Exponent &exponent,
                          int digits, Table table)
{
    constexpr int N = Arithmetic::limbs;
    V unit[N];

    arithmetic.multiply(number, number, r2);
    mont_exp<WINDOW>(arithmetic, number, number, one, exponent, digits, table);
    Arithmetic::set_unit(unit);
    arithmetic.multiply(number, number, unit);
    arithmetic.reduce(number, number);
}

} // namespace gpk

#endif
