/* Rows of RSA operations in a processor's vectors, as rsa.h asks: each row has a lane of its own, and numbers mod p and
 * mod q form a pair of vectors. */
#ifndef GPK_CPU_ROWS_H
#define GPK_CPU_ROWS_H

#include "arithmetic/rsa.h"
#include "cpu/gather.h"
#include "cpu/key.h"
#include "cpu/memory.h"
#include "cpu/montgomery52.h"
#include "cpu/vector_pair.h"

namespace gpk {

template <int N, class V> class VectorRows {
  public:
    static constexpr int lanes = V::lanes, WINDOW = PRIVATE_WINDOW;
    using Two = VectorPair<V>; /* (mod p, mod q) */
    using Half = Montgomery52<N, Two>;
    using Full = Montgomery52<2 * N, V>;
    using Row = uint64_t[2 * N];

    /* One key per row, all of this size class. */
    void set_keys(gpk_key *const *row_keys)
    {
        prime_bits = 0;
        any = 0;
        for (int i = 0; i < lanes; i++) {
            keys[i] = row_keys[i];
            any |= keys[i]->e;
            put(&e, i, &keys[i]->e, 1);
            if (keys[i]->prime_bits > prime_bits)
                prime_bits = keys[i]->prime_bits;
        }
    }

    /* numbers: in, below R_n; out, the results, zero where the operation failed. row_pairs: one per row; rows that only
     * fill the vectors may share another's. verdicts may be NULL where none is settled. */
    void set_rows(Row *numbers, BlindingPair *const *row_pairs, uint8_t *verdicts)
    {
        rows = numbers;
        pairs = row_pairs;
        ok = verdicts;
    }

    void load(Half &half) const
    {
        load(half.modulus, HalfNumber::modulus);
        for (int i = 0; i < lanes; i++) {
            put(&half.k0, i, &keys[i]->prime[0].k0, 1);
            put(&half.k0, lanes + i, &keys[i]->prime[1].k0, 1);
        }
    }

    void load(Full &full) const
    {
        load(full.modulus, FullNumber::modulus);
        for (int i = 0; i < lanes; i++)
            put(&full.k0, i, &keys[i]->n_k0, 1);
    }

    void load(Two *to, HalfNumber number) const
    {
        switch (number) {
        case HalfNumber::modulus:
            return gather(to, &PrimeConstants::modulus);
        case HalfNumber::one:
            return gather(to, &PrimeConstants::one);
        case HalfNumber::r2:
            return gather(to, &PrimeConstants::r2);
        case HalfNumber::r3:
            return gather(to, &PrimeConstants::r3);
        case HalfNumber::qinv:
            Half::set_unit(to);
            return gather_first(to, &gpk_key::qinv);
        case HalfNumber::qinv_r:
            for (int i = 0; i < N; i++)
                to[i] = Splat<Two>::of(0);
            return gather_first(to, &gpk_key::qinv_r);
        }
    }

    void load(V *to, FullNumber number) const
    {
        switch (number) {
        case FullNumber::modulus:
            return gather(to, &gpk_key::n);
        case FullNumber::one:
            return gather(to, &gpk_key::n_one);
        case FullNumber::r2:
            return gather(to, &gpk_key::n_r2);
        case FullNumber::q_r:
            return gather(to, &gpk_key::q_r);
        }
    }

    void load_input(V *to) const
    {
        for (int i = 0; i < lanes; i++)
            put(to, i, rows[i], 2 * N);
    }

    void load_blinding(V *to) const
    {
        for (int i = 0; i < lanes; i++)
            put(to, i, pairs[i]->blinding, 2 * N);
    }

    void load_unblinding(V *to) const
    {
        for (int i = 0; i < lanes; i++)
            put(to, i, pairs[i]->unblinding, 2 * N);
    }

    void store_blinding(const V *from) const
    {
        for (int i = 0; i < lanes; i++)
            get(pairs[i]->blinding, from, i, 2 * N);
    }

    void store_unblinding(const V *from) const
    {
        for (int i = 0; i < lanes; i++)
            get(pairs[i]->unblinding, from, i, 2 * N);
    }

    /* Sets each row's verdict, and its result: number, if power is the row's input again. Both are canonical. */
    void settle(const V *number, const V *power) const
    {
        for (int i = 0; i < lanes; i++)
            settle_row(number, power, i);
    }

    PackedExponent<Two> exponent(HalfExponent which)
    {
        const bool inverting = which == HalfExponent::inverting;
        const auto constants = inverting ? &PrimeConstants::inverting : &PrimeConstants::exponent;

        for (int i = 0; i < Digits<WINDOW>::words(prime_bits); i++)
            exponents[i] = Splat<Two>::of(0);
        for (int i = 0; i < lanes; i++) {
            const int words = Digits<WINDOW>::words(keys[i]->prime_bits);
            put(exponents, i, keys[i]->prime[0].*constants, words);
            put(exponents, lanes + i, keys[i]->prime[1].*constants, words);
        }
        return PackedExponent<Two>(exponents);
    }

    int digits() const { return Digits<WINDOW>::count(prime_bits); }
    Two *table() { return entries; }
    uint64_t any_e() const { return any; }
    auto e_has(int position) const { return bit_of(e, position); }

    /* number = low + high R; both halves go to both rings. */
    static void halves(Two *low, Two *high, const V *number)
    {
        for (int i = 0; i < N; i++) {
            low[i] = {number[i], number[i]};
            high[i] = {number[N + i], number[N + i]};
        }
    }

    /* Copies the ring mod q to both. */
    static void second(Two *to, const Two *from)
    {
        for (int i = 0; i < N; i++)
            to[i] = {from[i].second, from[i].second};
    }

    /* first = a in the ring mod p, second = b in the ring mod q, as integers. */
    static void join(V *first, V *second, const Two *a, const Two *b)
    {
        for (int i = 0; i < N; i++) {
            first[i] = a[i].first;
            second[i] = b[i].second;
            first[N + i] = second[N + i] = Splat<V>::of(0);
        }
    }

  private:
    gpk_key *keys[lanes];
    Row *rows;
    BlindingPair *const *pairs;
    uint8_t *ok;
    int prime_bits;
    uint64_t any;
    V e;
    Two exponents[2 * N], entries[N << WINDOW];

    static_assert(Digits<WINDOW>::words(52 * N) <= 2 * N, "the exponents fit");

    void gather(Two *to, uint64_t *PrimeConstants::*constants) const
    {
        for (int i = 0; i < lanes; i++) {
            put(to, i, keys[i]->prime[0].*constants, N);
            put(to, lanes + i, keys[i]->prime[1].*constants, N);
        }
    }

    void gather_first(Two *to, uint64_t *gpk_key::*constants) const
    {
        for (int i = 0; i < lanes; i++)
            put(to, i, keys[i]->*constants, N);
    }

    void gather(V *to, uint64_t *gpk_key::*constants) const
    {
        for (int i = 0; i < lanes; i++)
            put(to, i, keys[i]->*constants, 2 * N);
    }

    void settle_row(const V *number, const V *power, int index) const
    {
        uint64_t *row = rows[index];
        uint64_t result[2 * N], again[2 * N], difference = 0;

        get(again, power, index, 2 * N);
        for (int i = 0; i < 2 * N; i++)
            difference |= again[i] ^ row[i];
        const uint64_t right = ((difference - 1) & ~difference) >> 63; /* 1 if the difference is zero */
        get(result, number, index, 2 * N);
        for (int i = 0; i < 2 * N; i++)
            row[i] = result[i] & (0 - right);
        ok[index] = (uint8_t)right;
        GPK_PUBLIC(ok[index]);
    }
};

} // namespace gpk

#endif
