/* Exponentiation with a fixed window and a whole-table scan, over any Montgomery arithmetic (it does not know the
 * radix).
 *
 * Left to right, WINDOW bits at a time (Menezes, van Oorschot, Vanstone, Handbook of Applied Cryptography, 14.82):
 * the same sequence of squarings and multiplications for every exponent of the same number of digits; a
 * multiplication by the entry 0 (one) is not left out. Each look-up reads the whole table. Constant time but for the
 * number of digits.
 *
 * Cost for d digits: 2^WINDOW - 2 products for the table, (d - 1) WINDOW squarings, d - 1 products, d scans.
 */
#ifndef GPK_EXPONENTIATION_H
#define GPK_EXPONENTIATION_H

#include "compiler.h"

namespace gpk {

/* How an exponent is stored: digits of WINDOW bits, least significant first, as many whole ones as a word of 64
 * holds. */
template <int WINDOW> struct Digits {
    static constexpr int per_word = 64 / WINDOW;
    static constexpr int count(int bits) { return (bits + WINDOW - 1) / WINDOW; }
    static constexpr int words(int bits) { return (count(bits) + per_word - 1) / per_word; }

    /* The low `bits` bits of little-endian bytes, readable up to 2 bytes beyond. Constant time but for bits. */
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

/* The scan of a whole table for the entry that a digit names, a limb with each call: aside of the squarings. */
template <int WINDOW, int N, class V> class TableScan {
  public:
    GPK_INLINE TableScan(V *entry, const V *table, V word, int position)
        : entry(entry), table(table), selector(word, position)
    {
    }

    GPK_INLINE void operator()()
    {
        if (limb < N) {
            entry[limb] = selector.pick(table + (limb << WINDOW));
            limb++;
        }
    }

    GPK_INLINE void finish()
    {
        while (limb < N)
            (*this)();
    }

  private:
    V *entry;
    const V *table;
    Selector<WINDOW, V> selector;
    int limb = 0;
};

/* result = base^exponent in Montgomery form, below 2 moduli. base and one: Montgomery form, below 4 moduli.
 * exponent: Digits<WINDOW>::words of it. table: limbs 2^WINDOW elements of scratch. result may be base. */
template <int WINDOW, class Arithmetic, class V = typename Arithmetic::Lane>
void exponentiate(Arithmetic &arithmetic, V *result, const V *base, const V *one, const V *exponent, int digits,
                  V *table)
{
    constexpr int N = Arithmetic::limbs, ENTRIES = 1 << WINDOW;
    V factor[N];

    /* Entry by entry along each limb, so that the scan reads memory in order. */
    for (int i = 0; i < N; i++) {
        table[i * ENTRIES] = one[i];
        table[i * ENTRIES + 1] = factor[i] = base[i];
    }
    for (int entry = 2; entry < ENTRIES; entry++) {
        arithmetic.multiply(factor, factor, base);
        for (int i = 0; i < N; i++)
            table[i * ENTRIES + entry] = factor[i];
    }
    for (int digit = digits - 1; digit >= 0; digit--) {
        constexpr int PER_WORD = Digits<WINDOW>::per_word;
        TableScan<WINDOW, N, V> scan(factor, table, exponent[digit / PER_WORD], digit % PER_WORD * WINDOW);

        if (digit == digits - 1) {
            scan.finish();
            for (int i = 0; i < N; i++)
                result[i] = factor[i];
            continue;
        }
        for (int i = 0; i < WINDOW; i++)
            arithmetic.square(result, result, scan);
        scan.finish();
        arithmetic.multiply(result, result, factor);
    }
}

} // namespace gpk

#endif
