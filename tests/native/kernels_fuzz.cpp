/* libFuzzer's target for the kernels' C entries: keys whose parts need not belong together, batches of any size over
 * them, exponentiations with any sizes. See `make fuzz`.
 *
 * Every buffer is as large as the interface asks for and no larger, so that the address sanitizer sees a byte too many.
 * The oracle is libcrypto: a row that is ok is checked by the public operation, or computed again; one that is not must
 * be zeros; and a sound key's rows must be ok.
 */
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
    void operator()(gpk_key *key) const { gpk_key_free(key); }
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

/* What the fuzzer says, read from its front; zeros when it has said all. */
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

    /* Random-looking bytes from two of the fuzzer's, or a pattern that carries, or its own bytes. */
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

/* The index-th prime of so many bits, its two highest set: the same in every run. */
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

struct Key {
    enum Part { N, E, P, Q, DP, DQ, QINV, PARTS };
    Bytes parts[PARTS];
    bool sound; /* made of different primes, and unchanged */
    std::unique_ptr<gpk_key, Free> loaded;

    BIGNUM *inverse(const BIGNUM *of, const BIGNUM *modulus)
    {
        BIGNUM *found = BN_mod_inverse(NULL, of, modulus, scratch());
        if (found == NULL) {
            sound = false;
            found = BN_new();
        }
        return found;
    }

    /* A key as a key generator makes them, but for two primes that may be one, of any length. */
    explicit Key(Input &input)
    {
        static const int lengths[] = {512, 512, 512, 520, 560, 600, 768, 1024, 1036, 1037, 1300, 1536, 2048, 2072, 3, 64};
        static const uint64_t exponents[] = {65537, 65537, 3, 17, UINT64_C(0x100000001), UINT64_MAX, 1, 4};
        const int p_bits = input.one_of(lengths);
        const int q_bits = input.byte() % 4 != 0 ? p_bits : input.one_of(lengths);
        const BIGNUM *p = prime(p_bits, input.byte() % 2), *q = prime(q_bits, input.byte() % 4 != 0 ? 2 : input.byte() % 2);
        Number e = number(input.one_of(exponents)), n = number(), p1(BN_dup(p)), q1(BN_dup(q));

        sound = BN_cmp(p, q) != 0 && p_bits >= 64 && q_bits >= 64 && !BN_is_one(e.get());
        CHECK(BN_mul(n.get(), p, q, scratch()) && BN_sub_word(p1.get(), 1) && BN_sub_word(q1.get(), 1));
        const Number dp(inverse(e.get(), p1.get())), dq(inverse(e.get(), q1.get())), qinv(inverse(q, p));
        const BIGNUM *numbers[PARTS] = {n.get(), e.get(), p, q, dp.get(), dq.get(), qinv.get()};
        for (int i = 0; i < PARTS; i++)
            parts[i] = bytes_of(numbers[i]);
        for (int changes = input.byte() % 4; changes > 1; changes--)
            change(input);
        load();
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

    /* What the interface promises for sound keys; for others, that the verdict and the key agree. */
    void load()
    {
        gpk_number numbers[PARTS];
        gpk_key *key;

        for (int i = 0; i < PARTS; i++)
            numbers[i] = {parts[i].data(), parts[i].size()};
        const enum gpk_status status = gpk_key_new(&key, numbers[N], numbers[E], numbers[P], numbers[Q], numbers[DP],
                                                   numbers[DQ], numbers[QINV]);
        loaded.reset(key);
        CHECK((status == GPK_OK) == (loaded != NULL));
        CHECK(status == GPK_OK || status == GPK_INVALID || status == GPK_UNSUPPORTED);
        if (sound) {
            const int n_bits = bits(N), longest = std::max(bits(P), bits(Q));
            const bool supported = n_bits >= GPK_MIN_BITS && n_bits <= GPK_MAX_BITS && longest <= 2076;
            CHECK(status == (supported ? GPK_OK : GPK_UNSUPPORTED));
        }
    }

    int bits(Part part) const { return BN_num_bits(number(parts[part].data(), parts[part].size()).get()); }
};

enum gpk_lane pick_lane(Input &input)
{
    static const enum gpk_lane lanes[] = {GPK_LANE_BEST, GPK_LANE_IFMA, GPK_LANE_PORTABLE};
    return input.one_of(lanes);
}

/* Rows that a run may take, so that each ends within a fraction of a second. */
uint32_t most_rows(enum gpk_lane lane, uint32_t bytes)
{
    return gpk_resolve_lane(lane) == GPK_LANE_IFMA ? 20 : bytes > 256 ? 1 : bytes > 160 ? 2 : 5;
}

/* One that is interesting for the key: at the ends, multiples of a prime, or anything that fits into the row. */
void make_row(Input &input, const Key &key, uint8_t *row, uint32_t stride)
{
    static const enum Key::Part parts[] = {Key::N, Key::P, Key::Q, Key::QINV};
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

void check_private_row(const Key &key, const uint8_t *input, const uint8_t *output, uint32_t stride, uint8_t ok)
{
    const Number x = number(input, stride), y = number(output, stride), again = number();
    const Number n = number(key.parts[Key::N].data(), key.parts[Key::N].size());
    const Number e = number(key.parts[Key::E].data(), key.parts[Key::E].size());
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

void fuzz_private(Input &input)
{
    const enum gpk_lane lane = pick_lane(input);
    std::vector<Key> keys;
    uint32_t widest = 0;

    for (int left = 1 + input.byte() % 3; left > 0; left--) {
        Key key(input);
        if (key.loaded != NULL) {
            widest = std::max(widest, (uint32_t)(key.bits(Key::N) + 7) / 8);
            keys.push_back(std::move(key));
        }
    }
    const uint32_t stride = input.byte() % 4 != 0 ? widest + input.byte() % 4 : input.below(530);
    const uint32_t count = keys.empty() || stride == 0 ? 0 : input.byte() % (most_rows(lane, widest) + 1);
    std::vector<const Key *> row_keys;
    std::vector<gpk_key *> pointers;
    Bytes inputs(count * (size_t)stride), outputs(inputs.size(), 0xa5), ok(count, 7);
    for (uint32_t i = 0; i < count; i++) {
        row_keys.push_back(&keys[input.byte() % keys.size()]);
        pointers.push_back(row_keys.back()->loaded.get());
        make_row(input, *row_keys.back(), inputs.data() + i * (size_t)stride, stride);
    }
    const Bytes before = inputs;
    const enum gpk_status status =
        gpk_private(lane, count, pointers.data(), inputs.data(), outputs.data(), stride, ok.data());
    CHECK(inputs == before);
    if (gpk_resolve_lane(lane) == GPK_LANE_BEST) {
        CHECK(status == GPK_NO_LANE);
        return;
    }
    CHECK(status == (stride == 0 || stride > 512 ? GPK_UNSUPPORTED : GPK_OK));
    for (uint32_t i = 0; i < count && status == GPK_OK; i++)
        check_private_row(*row_keys[i], &inputs[i * (size_t)stride], &outputs[i * (size_t)stride], stride, ok[i]);
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

void fuzz_modexp(Input &input)
{
    static const uint32_t sizes[] = {128, 256, 260, 261, 384, 389, 390, 512};
    const enum gpk_lane lane = pick_lane(input);
    const uint32_t stride = input.byte() % 2 ? input.one_of(sizes) : input.below(530);
    const uint32_t exponent_stride = input.byte() % 2 ? input.byte() % 40 : input.below(530);
    const bool any_length = input.byte() % 4 == 0;
    const uint32_t exponent_bits = any_length ? input.below(4300) : 8 * exponent_stride - input.byte() % 8;
    const uint32_t most = exponent_bits < 256 ? 20 : most_rows(lane, std::max(stride, 161U));
    const uint32_t count = input.byte() % (most + 1);
    const bool same = input.byte() % 2;
    Bytes bases = input.fill(count * (size_t)stride), exponents = input.fill(count * (size_t)exponent_stride);
    Bytes moduli = input.fill(count * (size_t)stride), outputs(bases.size(), 0xa5), ok(count, 7);

    for (uint32_t i = 0; i < count && stride > 0; i++) {
        uint8_t *modulus = moduli.data() + i * (size_t)stride;
        if (same && i > 0)
            memcpy(modulus, modulus - stride, stride);
        else if (input.byte() % 8 != 0)
            modulus[0] |= 1;
        else
            std::fill(modulus + input.below(stride), modulus + stride, 0);
    }
    const enum gpk_status status =
        gpk_modexp(lane, count, bases.data(), exponents.data(), exponent_stride, exponent_bits, moduli.data(),
                   outputs.data(), stride, ok.data());
    if (gpk_resolve_lane(lane) == GPK_LANE_BEST) {
        CHECK(status == GPK_NO_LANE);
        return;
    }
    const bool taken = stride > 0 && stride <= 512 && exponent_stride <= 512 && exponent_bits > 0
                       && exponent_bits <= 8 * exponent_stride;
    CHECK(status == (taken ? GPK_OK : GPK_UNSUPPORTED));
    for (uint32_t i = 0; i < count && taken; i++)
        check_power(&bases[i * (size_t)stride], &exponents[i * (size_t)exponent_stride], exponent_stride, exponent_bits,
                    &moduli[i * (size_t)stride], &outputs[i * (size_t)stride], stride, ok[i]);
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    Input input(data, size);

    if (input.byte() % 2)
        fuzz_private(input);
    else
        fuzz_modexp(input);
    return 0;
}
