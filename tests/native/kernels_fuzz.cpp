/* libFuzzer's target for the kernels' C entries: keys whose parts need not belong together, batches of any size over
 * them, exponentiations with any sizes. See `make fuzz`.
 *
 * Every buffer is as large as the interface asks for and no larger, so that the address sanitizer sees a byte too many.
 * The oracle is libcrypto: a row that is ok is checked by the public operation, or computed again; one that is not must
 * be zeros; and a sound key's rows must be ok.
 */
#include "fuzz_input.h"

namespace {

constexpr int LENGTHS[] = {512, 512, 512, 520, 560, 600, 768, 1024, 1036, 1037, 1300, 1536, 2048, 2072, 3, 64};

struct FreeKey {
    void operator()(gpk_key *key) const { gpk_key_free(key); }
};

struct Key : KeyParts {
    std::unique_ptr<gpk_key, FreeKey> loaded;

    /* What the interface promises for sound keys; for others, that the verdict and the key agree. */
    explicit Key(Input &input) : KeyParts(input, LENGTHS)
    {
        gpk_key *key;
        const enum gpk_status status =
            gpk_key_new(&key, given(N), given(E), given(P), given(Q), given(DP), given(DQ), given(QINV));
        loaded.reset(key);
        CHECK((status == GPK_OK) == (loaded != NULL));
        CHECK(status == GPK_OK || status == GPK_INVALID || status == GPK_UNSUPPORTED);
        if (sound) {
            const int n_bits = bits(N), longest = std::max(bits(P), bits(Q));
            const bool supported = n_bits >= GPK_MIN_BITS && n_bits <= GPK_MAX_BITS && longest <= 2076;
            CHECK(status == (supported ? GPK_OK : GPK_UNSUPPORTED));
        }
    }
};

enum gpk_isa pick_isa(Input &input)
{
    static const enum gpk_isa isas[] = {GPK_ISA_BEST, GPK_ISA_IFMA, GPK_ISA_PORTABLE};
    return input.one_of(isas);
}

/* Rows that a run may take, so that each ends within a fraction of a second. */
uint32_t most_rows(enum gpk_isa isa, uint32_t bytes)
{
    return gpk_resolve_isa(isa) == GPK_ISA_IFMA ? 20 : bytes > 256 ? 1 : bytes > 160 ? 2 : 5;
}

void fuzz_private(Input &input)
{
    const enum gpk_isa isa = pick_isa(input);
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
    const uint32_t count = keys.empty() || stride == 0 ? 0 : input.byte() % (most_rows(isa, widest) + 1);
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
        gpk_private(isa, count, pointers.data(), inputs.data(), outputs.data(), stride, ok.data());
    CHECK(inputs == before);
    if (gpk_resolve_isa(isa) == GPK_ISA_BEST) {
        CHECK(status == GPK_NO_ISA);
        return;
    }
    CHECK(status == (stride == 0 || stride > 512 ? GPK_UNSUPPORTED : GPK_OK));
    for (uint32_t i = 0; i < count && status == GPK_OK; i++)
        check_private_row(*row_keys[i], &inputs[i * (size_t)stride], &outputs[i * (size_t)stride], stride, ok[i]);
}

void fuzz_modexp(Input &input)
{
    static const uint32_t sizes[] = {32,  33,  64,  65,  129, 130, 256, 259, 260,
                                     384, 389, 390, 512, 519, 520, 779, 780, 1024};
    const enum gpk_isa isa = pick_isa(input);
    const uint32_t stride = input.byte() % 2 ? input.one_of(sizes) : input.below(1040);
    const uint32_t exponent_stride = input.byte() % 2 ? input.byte() % 40 : input.below(1040);
    const bool any_length = input.byte() % 4 == 0;
    const uint32_t exponent_bits = any_length ? input.below(8400) : 8 * exponent_stride - input.byte() % 8;
    const uint32_t most = exponent_bits < 256 ? 20 : most_rows(isa, std::max(stride, 161U));
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
        gpk_modexp(isa, count, bases.data(), exponents.data(), exponent_stride, exponent_bits, moduli.data(),
                   outputs.data(), stride, ok.data(), input.byte() % 2);
    if (gpk_resolve_isa(isa) == GPK_ISA_BEST) {
        CHECK(status == GPK_NO_ISA);
        return;
    }
    const bool taken = stride > 0 && stride <= 1024 && exponent_stride <= 1024 && exponent_bits > 0
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
