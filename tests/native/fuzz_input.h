/* What the fuzzers of the kernels share: how they read the fuzzer's bytes, keys whose parts need not belong together,
 * and libcrypto's answers. */
#ifndef FUZZ_INPUT_H
#define FUZZ_INPUT_H

#include <algorithm>
#include <map>
#include <memory>
#include <string.h>
#include <utility>
#include <vector>

#include <openssl/bn.h>

#include "check.h"
#include "kernels.h"

namespace {

struct Free {
    void operator()(BIGNUM *number) const { BN_free(number); }
    void operator()(BN_CTX *context) const { BN_CTX_free(context); }
};
using Number = std::unique_ptr<BIGNUM, Free>;
using Bytes = std::vector<uint8_t>; /* numbers: least significant first */

BN_CTX *scratch()
{
    static const std::unique_ptr<BN_CTX, Free> context(BN_CTX_new());
    return context.get();
}

Number number(uint64_t value = 0)
{
    Number made(BN_new());
    CHECK(BN_set_word(made.get(), value));
    return made;
}

Number number(const uint8_t *bytes, size_t size)
{
    Number made(BN_lebin2bn(bytes, (int)size, NULL));
    CHECK(made != NULL);
    return made;
}

Bytes bytes_of(const BIGNUM *value)
{
    Bytes bytes((size_t)BN_num_bytes(value));
    CHECK(BN_bn2lebinpad(value, bytes.data(), (int)bytes.size()) >= 0);
    return bytes;
}

bool is_zero(const uint8_t *bytes, size_t size)
{
    return std::all_of(bytes, bytes + size, [](uint8_t byte) { return byte == 0; });
}

/* The fuzzer's bytes, read from the front; zeros after the last. */
class Input {
  public:
    Input(const uint8_t *data, size_t size) : data(data), left(size) {}

    uint8_t byte()
    {
        if (left == 0)
            return 0;
        left--;
        return *data++;
    }

    uint32_t below(uint32_t bound) { return (byte() | (uint32_t)byte() << 8) % bound; }

    template <class T, size_t COUNT> T one_of(const T (&choices)[COUNT]) { return choices[byte() % COUNT]; }

    /* Random-looking bytes made from two of the fuzzer's, a pattern that carries, or the fuzzer's own bytes. */
    void fill(uint8_t *to, size_t size)
    {
        const uint8_t kind = byte(), pattern = byte();
        uint64_t state = pattern * UINT64_C(0x9e3779b97f4a7c15) + kind;

        for (size_t i = 0; i < size; i++) {
            state = state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
            to[i] = kind % 4 == 0 ? byte() : kind % 4 == 1 ? pattern : (uint8_t)(state >> 56);
        }
        if (kind % 4 == 2 && size > 0)
            memset(to + size - pattern % size, 0xff, pattern % size);
    }

    Bytes fill(size_t size)
    {
        Bytes bytes(size);
        fill(bytes.data(), size);
        return bytes;
    }

  private:
    const uint8_t *data;
    size_t left;
};

/* The index-th prime of this many bits, with its two highest set: the same in every run. */
const BIGNUM *prime(int bits, uint8_t index)
{
    static std::map<std::pair<int, uint8_t>, Number> made;
    Number &found = made[{bits, index}];

    if (found == NULL) {
        const uint8_t seed[] = {2, index};
        Bytes start = Input(seed, sizeof(seed)).fill((size_t)(bits + 7) / 8);
        start[0] |= 1;
        found = number(start.data(), start.size());
        BN_mask_bits(found.get(), bits);
        CHECK(BN_set_bit(found.get(), bits - 1) && BN_set_bit(found.get(), bits - 2));
        while (BN_check_prime(found.get(), scratch(), NULL) != 1)
            CHECK(BN_add_word(found.get(), 2));
    }
    return found.get();
}

struct KeyParts {
    enum Part { N, E, P, Q, DP, DQ, QINV, PARTS };
    Bytes parts[PARTS];
    bool sound; /* made of different primes, and unchanged */

    BIGNUM *inverse(const BIGNUM *of, const BIGNUM *modulus)
    {
        BIGNUM *found = BN_mod_inverse(NULL, of, modulus, scratch());
        if (found == NULL) {
            sound = false;
            found = BN_new();
        }
        return found;
    }

    /* A key as a key generator makes it, with primes of these lengths, which may be the same prime. */
    template <size_t COUNT> KeyParts(Input &input, const int (&lengths)[COUNT])
    {
        static const uint64_t exponents[] = {65537, 65537, 3, 17, UINT64_C(0x100000001), UINT64_MAX, 1, 4};
        const int p_bits = input.one_of(lengths);
        const int q_bits = input.byte() % 4 != 0 ? p_bits : input.one_of(lengths);
        const BIGNUM *p = prime(p_bits, input.byte() % 2);
        const BIGNUM *q = prime(q_bits, input.byte() % 4 != 0 ? 2 : input.byte() % 2);
        Number e = number(input.one_of(exponents)), n = number(), p1(BN_dup(p)), q1(BN_dup(q));

        sound = BN_cmp(p, q) != 0 && p_bits >= 64 && q_bits >= 64 && !BN_is_one(e.get());
        CHECK(BN_mul(n.get(), p, q, scratch()) && BN_sub_word(p1.get(), 1) && BN_sub_word(q1.get(), 1));
        const Number dp(inverse(e.get(), p1.get())), dq(inverse(e.get(), q1.get())), qinv(inverse(q, p));
        const BIGNUM *numbers[PARTS] = {n.get(), e.get(), p, q, dp.get(), dq.get(), qinv.get()};
        for (int i = 0; i < PARTS; i++)
            parts[i] = bytes_of(numbers[i]);
        for (int changes = input.byte() % 4; changes > 1; changes--)
            change(input);
    }

    void change(Input &input)
    {
        Bytes &part = parts[input.byte() % PARTS];

        switch (input.byte() % 8) {
        case 0: /* leading zeros change nothing */
            part.insert(part.end(), input.below(1200), 0);
            return;
        case 1:
            part.clear();
            break;
        case 2:
            part = parts[input.byte() % PARTS];
            break;
        case 3:
            part = input.fill(input.below(600));
            break;
        case 4:
            part.resize(part.size() + input.byte() % 8, 0xff);
            break;
        case 5:
            part.resize(input.below(600));
            break;
        default:
            if (!part.empty())
                part[input.below((uint32_t)part.size())] ^= (uint8_t)(1 << input.byte() % 8);
        }
        sound = false;
    }

    gpk_number given(Part part) const { return {parts[part].data(), parts[part].size()}; }
    int bits(Part part) const { return BN_num_bits(number(parts[part].data(), parts[part].size()).get()); }
};

/* A row that is interesting for the key: at the ends, multiples of a prime, or anything that fits. */
void make_row(Input &input, const KeyParts &key, uint8_t *row, uint32_t stride)
{
    static const enum KeyParts::Part parts[] = {KeyParts::N, KeyParts::P, KeyParts::Q, KeyParts::QINV};
    const uint8_t kind = input.byte();

    if (kind % 4 == 0) {
        input.fill(row, stride);
        return;
    }
    const Bytes &part = key.parts[input.one_of(parts)];
    const Number value = number(part.data(), part.size());
    if (kind % 4 == 1)
        CHECK(BN_add_word(value.get(), kind >> 2));
    else if (kind % 4 == 2)
        CHECK(BN_sub_word(value.get(), (kind >> 2) + 1));
    else
        CHECK(BN_mul_word(value.get(), (kind >> 2) + 1));
    BN_set_negative(value.get(), 0);
    const Bytes bytes = bytes_of(value.get());
    std::copy_n(bytes.data(), std::min(bytes.size(), (size_t)stride), row);
}

void check_private_row(const KeyParts &key, const uint8_t *input, const uint8_t *output, uint32_t stride, uint8_t ok)
{
    const Number x = number(input, stride), y = number(output, stride), again = number();
    const Number n = number(key.parts[KeyParts::N].data(), key.parts[KeyParts::N].size());
    const Number e = number(key.parts[KeyParts::E].data(), key.parts[KeyParts::E].size());
    const bool fits = BN_cmp(x.get(), n.get()) < 0 && stride >= (uint32_t)BN_num_bytes(n.get());

    CHECK(ok <= 1);
    if (ok) {
        CHECK(fits && BN_cmp(y.get(), n.get()) < 0);
        CHECK(BN_mod_exp(again.get(), y.get(), e.get(), n.get(), scratch()));
        CHECK(BN_cmp(again.get(), x.get()) == 0);
    } else {
        CHECK(is_zero(output, stride));
        CHECK(!(key.sound && fits));
    }
}

void check_power(const uint8_t *base, const uint8_t *exponent, uint32_t exponent_size, uint32_t exponent_bits,
                 const uint8_t *modulus, const uint8_t *output, uint32_t size, uint8_t ok)
{
    const Number b = number(base, size), e = number(exponent, exponent_size), m = number(modulus, size);
    const Number y = number(output, size), expected = number();

    CHECK(ok == (BN_is_odd(m.get()) && !BN_is_one(m.get())));
    if (ok) {
        BN_mask_bits(e.get(), (int)exponent_bits);
        CHECK(BN_mod_exp(expected.get(), b.get(), e.get(), m.get(), scratch()));
    }
    CHECK(BN_cmp(y.get(), expected.get()) == 0);
}

} // namespace

#endif
