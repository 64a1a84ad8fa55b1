/* The RSA private operation on V::width rows at once, each with its own key: blinding, CRT, Garner, verification.
 *
 *   c' = c A mod n                          base blinding with A = r^-e; Kocher 1996
 *   x  = c' mod p, c' mod q                 c' R = c'_lo R + c'_hi R R = MM(c'_lo, R^2) + MM(c'_hi, R^3)
 *   sp = x^dP mod p, sq = x^dQ mod q        one exponentiation in pairs of lanes (mod p, mod q)
 *   h  = (sp - sq) qinv mod p               Garner 1959; RFC 8017, 5.1.2
 *   s' = sq + q h,  s = s' r mod n
 *   s^e mod n = c                           or the row fails: Boneh, DeMillo, Lipton, "On the importance of checking
 *                                           cryptographic protocols for faults", 1997
 *
 * Unit of cost: a product of N limbs (4 N^2 mad52; one of 2 N limbs is 4 units, its squaring 3). For 1024-bit primes
 * and e = 65537: exponentiations 2 x 1,050, reduction of the input 4, Garner 8, blinding 8, its refresh 6, check 56.
 * All is constant time but for sizes, e and the row's verdict.
 */
#ifndef GPK_RSA_H
#define GPK_RSA_H

#include "exponentiation.h"
#include "gather.h"
#include "key.h"
#include "memory.h"
#include "montgomery52.h"
#include "pair.h"

namespace gpk {

template <int N, class V> class RsaPrivate {
  public:
    static constexpr int width = V::width;
    using Row = uint64_t[2 * N];

    /* Loads one key per row; they are of this size class. */
    void set_keys(gpk_key *const *row_keys)
    {
        int prime_bits = 0;

        for (int i = 0; i < width; i++) {
            keys[i] = row_keys[i];
            if (keys[i]->prime_bits > prime_bits)
                prime_bits = keys[i]->prime_bits;
        }
        digits = Digits<PRIVATE_WINDOW>::count(prime_bits);
        gather_primes(half.modulus, &PrimeConstants::modulus);
        gather_numbers(full.modulus, &gpk_key::n);
        for (int i = 0; i < width; i++) {
            put(&half.k0, i, &keys[i]->prime[0].k0, 1);
            put(&half.k0, width + i, &keys[i]->prime[1].k0, 1);
            put(&full.k0, i, &keys[i]->n_k0, 1);
        }
    }

    /* rows: in, numbers below R_n (canonical: below n, or the row fails); out, the results, zero where it failed.
     * pairs: one for each row, squared here; rows that only fill the lanes may share another's. */
    void private_operation(Row *rows, BlindingPair *const *pairs, uint8_t *ok)
    {
        for (int i = 0; i < width; i++) {
            put(input, i, rows[i], 2 * N);
            put(blinding, i, pairs[i]->factor, 2 * N);
            put(unblinding, i, pairs[i]->inverse, 2 * N);
        }
        full.multiply(number, input, blinding);
        crt(&PrimeConstants::exponent);
        full.multiply(number, number, unblinding);
        full.reduce_once(number, number);

        gather_numbers(constant, &gpk_key::n_r2);
        full.multiply(base, number, constant);
        raise_to_e(number); /* a factor out of Montgomery form takes the result out of it */
        full.reduce_once(power, power);

        full.square(blinding, blinding);
        full.square(unblinding, unblinding);
        for (int i = 0; i < width; i++) {
            get(pairs[i]->factor, blinding, i, 2 * N);
            get(pairs[i]->inverse, unblinding, i, 2 * N);
            settle(rows[i], i, ok + i);
        }
    }

    /* Fills each row's pair from random numbers below R_n. One key's or many's. */
    void make_pairs(const Row *random, BlindingPair *const *pairs)
    {
        for (int i = 0; i < width; i++)
            put(input, i, random[i], 2 * N);
        for (int i = 0; i < 2 * N; i++)
            number[i] = input[i];
        crt(&PrimeConstants::inverse); /* r^(p - 2) and r^(q - 2): Fermat's inverse, in constant time */
        gather_numbers(constant, &gpk_key::n_r2);
        full.multiply(unblinding, input, constant);
        full.multiply(base, number, constant);
        raise_to_e(base);
        for (int i = 0; i < width; i++) {
            get(pairs[i]->factor, power, i, 2 * N);
            get(pairs[i]->inverse, unblinding, i, 2 * N);
        }
    }

  private:
    using Two = Pair<V>; /* (mod p, mod q) */

    gpk_key *keys[width];
    int digits;
    Montgomery52<N, Two> half;
    Montgomery52<2 * N, V> full;
    Two x[N], y[N], factor[N], exponent[2 * N], table[N << PRIVATE_WINDOW];
    V input[2 * N], number[2 * N], constant[2 * N], base[2 * N], power[2 * N], blinding[2 * N], unblinding[2 * N];

    static_assert(Digits<PRIVATE_WINDOW>::words(52 * N) <= 2 * N, "the exponents fit");

    void gather_primes(Two *to, uint64_t *PrimeConstants::*constants)
    {
        for (int i = 0; i < width; i++) {
            put(to, i, keys[i]->prime[0].*constants, N);
            put(to, width + i, keys[i]->prime[1].*constants, N);
        }
    }

    void gather_numbers(V *to, uint64_t *gpk_key::*constants)
    {
        for (int i = 0; i < width; i++)
            put(to, i, keys[i]->*constants, 2 * N);
    }

    void gather_exponents(uint64_t *PrimeConstants::*constants)
    {
        for (int i = 0; i < Digits<PRIVATE_WINDOW>::words(digits * PRIVATE_WINDOW); i++)
            exponent[i] = Splat<Two>::of(0);
        for (int i = 0; i < width; i++) {
            const int words = Digits<PRIVATE_WINDOW>::words(keys[i]->prime_bits);
            put(exponent, i, keys[i]->prime[0].*constants, words);
            put(exponent, width + i, keys[i]->prime[1].*constants, words);
        }
    }

    /* number = number^d mod n with the exponents named, below 3 n; number below R_n. */
    void crt(uint64_t *PrimeConstants::*exponents)
    {
        for (int i = 0; i < N; i++) {
            x[i] = {number[i], number[i]};
            y[i] = {number[N + i], number[N + i]};
        }
        gather_primes(factor, &PrimeConstants::r2);
        half.multiply(x, x, factor);
        gather_primes(factor, &PrimeConstants::r3);
        half.multiply(y, y, factor);
        half.add(x, x, y);

        gather_primes(y, &PrimeConstants::one);
        gather_exponents(exponents);
        exponentiate<PRIVATE_WINDOW>(half, x, x, y, exponent, digits, table);

        /* (sp qinv mod p, sq): a factor out of Montgomery form takes the product out of it */
        for (int i = 0; i < N; i++)
            factor[i] = Splat<Two>::of(i == 0);
        for (int i = 0; i < width; i++)
            put(factor, i, keys[i]->qinv, N);
        half.multiply(x, x, factor);
        half.reduce_once(x, x);

        /* (sq qinv mod p, not used) */
        for (int i = 0; i < N; i++) {
            y[i] = {x[i].second, x[i].second};
            factor[i] = Splat<Two>::of(0);
        }
        for (int i = 0; i < width; i++)
            put(factor, i, keys[i]->qinv_r, N);
        half.multiply(y, y, factor);
        half.reduce_once(y, y);
        half.subtract(y, x, y);

        for (int i = 0; i < N; i++) {
            number[i] = y[i].first;
            number[N + i] = base[N + i] = Splat<V>::of(0);
            base[i] = x[i].second;
        }
        gather_numbers(constant, &gpk_key::q_r);
        full.multiply(number, number, constant);
        full.add(number, number, base);
    }

    /* power = base^(e - 1) times last, below 2 n, by squaring and multiplying; e is public. */
    void raise_to_e(const V *last)
    {
        V e;
        uint64_t any = 0;

        for (int i = 0; i < width; i++) {
            put(&e, i, &keys[i]->e, 1);
            any |= keys[i]->e;
        }
        gather_numbers(constant, &gpk_key::n_one);
        int position = 63 - __builtin_clzll(any);
        choose(power, e, position);
        while (position-- > 0) {
            full.square(power, power);
            if (position == 0) {
                full.multiply(power, power, last); /* every e is odd */
            } else if (any >> position & 1) {
                choose(chosen, e, position);
                full.multiply(power, power, chosen);
            }
        }
    }

    V chosen[2 * N];

    /* r = base where the row's e has the bit, one elsewhere */
    void choose(V *r, V e, int position)
    {
        const auto bit = bit_of(e, position);

        for (int i = 0; i < 2 * N; i++)
            r[i] = blend(bit, constant[i], base[i]);
    }

    /* The verdict on one row, and its result. */
    void settle(uint64_t *row, int index, uint8_t *ok)
    {
        uint64_t result[2 * N], again[2 * N], difference = 0;

        get(again, power, index, 2 * N);
        for (int i = 0; i < 2 * N; i++)
            difference |= again[i] ^ row[i];
        const uint64_t right = ((difference - 1) & ~difference) >> 63; /* 1 if the difference is zero */
        get(result, number, index, 2 * N);
        for (int i = 0; i < 2 * N; i++)
            row[i] = result[i] & (0 - right);
        *ok = (uint8_t)right;
        GPK_PUBLIC(*ok);
    }
};

} // namespace gpk

#endif
