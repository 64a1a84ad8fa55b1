/* Modular exponentiation of V::lanes rows at once, each with its own odd modulus.
 *
 * For each group, R mod m comes from doubling (scalar) and R^2 from about 12 squarings of it; both are kept while the
 * moduli stay the same.
 * Constant time in bases, and in exponents that are not public; moduli and sizes are public.
 */
#ifndef GPK_CPU_MODEXP_H
#define GPK_CPU_MODEXP_H

#include "arithmetic/exponentiation.h"
#include "arithmetic/limbs.h"
#include "cpu/gather.h"
#include "cpu/montgomery52.h"

namespace gpk {

template <int N, class V> class Modexp {
  public:
    static constexpr int lanes = V::lanes;
    using Row = uint64_t[N];

    /* A group's numbers, as the calls below take them: they are too large for a stack. */
    Row rows[lanes], moduli[lanes];
    uint8_t exponents[lanes][MAX_MODEXP_BYTES + 16];

    /* moduli: odd, 3 or more, below R / 16. The object's memory was zero before the first call. */
    void set_moduli()
    {
        if (memcmp(current, moduli, sizeof(current)) == 0)
            return;
        memcpy(current, moduli, sizeof(current));
        uint64_t row_one[N], k0 = 0;
        for (int i = 0; i < lanes; i++) {
            if (i == 0 || memcmp(moduli[i], moduli[i - 1], sizeof(Row)) != 0) {
                limbs_one(row_one, moduli[i], N, limbs_bits(moduli[i], N));
                k0 = limbs_k0(moduli[i][0]);
            }
            put(arithmetic.modulus, i, moduli[i], N);
            put(&arithmetic.k0, i, &k0, 1);
            put(one, i, row_one, N);
        }
        /* R^2 is the Montgomery form of 2^(52 N). 52 N is even, so the last step is a squaring: below 2 moduli. */
        constexpr int POWER = 52 * N;
        for (int i = 0; i < N; i++)
            r2[i] = one[i];
        for (int bit = 31 - __builtin_clz(POWER); bit >= 0; bit--) {
            arithmetic.square(r2, r2);
            if (POWER >> bit & 1)
                arithmetic.add(r2, r2, r2);
        }
    }

    /* rows: in, bases below R; out, powers. exponents: zero for 2 bytes beyond exponent_bits. */
    void run(int exponent_bits)
    {
        uint64_t packed[MAX_WORDS];

        for (int i = 0; i < lanes; i++) {
            put(number, i, rows[i], N);
            Digits<WINDOW>::pack(packed, exponents[i], exponent_bits);
            put(exponent, i, packed, Digits<WINDOW>::words(exponent_bits));
        }
        mod_exp<WINDOW>(arithmetic, number, one, r2, PackedExponent<V>(exponent), Digits<WINDOW>::count(exponent_bits),
                        table);
        for (int i = 0; i < lanes; i++)
            get(rows[i], number, i, N);
    }

    /* The same for public exponents: products only where a row has a bit, if those are fewer than with windows. */
    void run_public(int exponent_bits)
    {
        uint64_t any = 0;

        if (exponent_bits > 64)
            return run(exponent_bits);
        for (int i = 0; i < lanes; i++) {
            uint64_t word = 0;
            for (int bit = 0; bit < exponent_bits; bit++)
                word |= (uint64_t)(exponents[i][bit / 8] >> bit % 8 & 1) << bit;
            any |= word;
            put(exponent, i, &word, 1);
        }
        const int with_windows = (1 << WINDOW) - 2 + exponent_bits / WINDOW;
        if (__builtin_popcountll(any) > with_windows)
            return run(exponent_bits);
        for (int i = 0; i < lanes; i++)
            put(number, i, rows[i], N);
        raise_to_public(any);
        for (int i = 0; i < lanes; i++)
            get(rows[i], number, i, N);
    }

  private:
    static constexpr int WINDOW = 4; /* as key.h's */
    static constexpr int MAX_WORDS = Digits<WINDOW>::words(8 * MAX_MODEXP_BYTES);

    Montgomery52<N, V> arithmetic;
    Row current[lanes];
    V one[N], r2[N], number[N], exponent[MAX_WORDS], table[N << WINDOW];

    /* number = number^exponent[0]. any: the bits that one of the exponents has. */
    void raise_to_public(uint64_t any)
    {
        V *const power = table, *const factor = table + N;
        int position = any == 0 ? 0 : 63 - __builtin_clzll(any);

        arithmetic.multiply(number, number, r2);
        choose(power, position);
        while (position-- > 0) {
            arithmetic.square(power, power);
            if (any >> position & 1) {
                choose(factor, position);
                arithmetic.multiply(power, power, factor);
            }
        }
        arithmetic.set_unit(factor);
        arithmetic.multiply(number, power, factor);
        arithmetic.reduce(number, number);
    }

    /* to = number where the row's exponent has the bit, one elsewhere */
    void choose(V *to, int position) const
    {
        const auto bit = bit_of(exponent[0], position);

        for (int i = 0; i < N; i++)
            to[i] = blend(bit, one[i], number[i]);
    }
};

} // namespace gpk

#endif
