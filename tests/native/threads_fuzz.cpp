/* libFuzzer's target for the host build of the multi-thread kernels: what a device is given, with every buffer of
 * exactly the size that launch.h states, window tables included. The address sanitizer finds an access beyond one,
 * which would cost a process its GPU. Keys and moduli of every class are mixed in a launch, launches need not fill
 * their last warp, and pairs are used again. The oracle is libcrypto. See `make fuzz`.
 */
#include "fuzz_input.h"
#include "host/kernel_list.h"
#include "records.h"

using namespace gpk;

namespace {

constexpr int LENGTHS[] = {64, 64, 65, 96, 128, 128, 256, 512, 1024, 1036, 1037, 1536, 1660, 1661, 2048, 2076, 2077, 3};
constexpr uint8_t UNTOUCHED = 0xa5;

const HostUnit &pick_unit(Input &input)
{
    const HostUnits narrow = host_units32(), wide = host_units52();
    const int picked = input.byte() % (narrow.count + wide.count);

    return picked < narrow.count ? narrow.first[picked] : wide.first[picked - narrow.count];
}

void run(const HostUnit &unit, gpk_operation operation, const void *launch)
{
    void *table = aligned_alloc(64, (size_t)unit.table_bytes);

    CHECK(table != NULL);
    unit.run[operation](launch, table);
    free(table);
}

/* Up to three warps, the last of them not always full. */
uint32_t pick_rows(Input &input, const gpk_unit &unit)
{
    return 1 + input.byte() % (uint32_t)(3 * 32 / unit.threads);
}

int longest_prime(const gpk_unit &unit)
{
    if (unit.radix_bits == 32)
        return 4 * unit.class_bytes;
    return unit.class_bytes == 256 ? 1036 : unit.class_bytes == 384 ? 1660 : 2076;
}

struct Key : KeyParts {
    Bytes record;

    /* As for the other kernels: of sound keys all is promised, of others that nothing is written outside. */
    Key(Input &input, const gpk_unit &unit) : KeyParts(input, LENGTHS), record((size_t)unit.key_bytes)
    {
        const enum gpk_status status =
            gpk_thread_record(unit.radix_bits, unit.class_bytes, record.data(), given(N), given(E), given(P), given(Q),
                              given(DP), given(DQ), given(QINV));
        CHECK(status == GPK_OK || status == GPK_INVALID || status == GPK_UNSUPPORTED);
        if (sound) {
            const bool supported = bits(N) <= 8 * unit.class_bytes && longest() <= longest_prime(unit);
            CHECK(status == (supported ? GPK_OK : GPK_UNSUPPORTED));
        }
        if (status != GPK_OK)
            record.clear();
    }

    int longest() const { return std::max(bits(P), bits(Q)); }
    uint64_t e() const { return BN_get_word(number(parts[E].data(), parts[E].size()).get()); }
};

void fuzz_private(Input &input)
{
    const HostUnit &picked = pick_unit(input);
    const gpk_unit &unit = picked.about;
    const uint32_t count = pick_rows(input, unit), stride = (uint32_t)unit.class_bytes;
    std::vector<Key> keys;
    Bytes records;

    for (int left = 1 + input.byte() % 3; left > 0; left--) {
        Key key(input, unit);
        if (!key.record.empty()) {
            records.insert(records.end(), key.record.begin(), key.record.end());
            keys.push_back(std::move(key));
        }
    }
    if (keys.empty())
        return;
    records.shrink_to_fit();

    std::vector<uint32_t> record_of_row, pair_of_row;
    Bytes inputs(count * (size_t)stride), outputs(inputs.size()), pairs(count * (size_t)unit.pair_bytes), ok(count);
    Bytes randoms(inputs.size());
    gpk_private_launch launch = {count,          0,        0, NULL, NULL, records.data(), pairs.data(), NULL,
                                 outputs.data(), ok.data()};
    const bool noise = input.byte() % 4 != 0;
    for (uint32_t i = 0; i < count; i++) {
        const uint32_t record = input.byte() % (uint32_t)keys.size();
        record_of_row.push_back(record);
        pair_of_row.push_back(count - 1 - i);
        launch.exponent_bits = std::max(launch.exponent_bits, (uint32_t)keys[record].longest());
        launch.any_e |= keys[record].e();
        if (!noise) { /* not fit to blind with: a row of zeros has no inverse */
            input.fill(randoms.data() + i * (size_t)stride, stride);
            keys[record].sound = false;
        } else {
            const uint8_t seed[] = {3, (uint8_t)i};
            Input(seed, sizeof(seed)).fill(randoms.data() + i * (size_t)stride, stride);
        }
    }
    launch.record_of_row = record_of_row.data();
    launch.pair_of_row = pair_of_row.data();
    launch.inputs = randoms.data();
    run(picked, GPK_MAKE_PAIRS, &launch);

    launch.inputs = inputs.data();
    for (int uses = 1 + input.byte() % 2; uses > 0; uses--) {
        std::fill(outputs.begin(), outputs.end(), UNTOUCHED);
        std::fill(ok.begin(), ok.end(), UNTOUCHED);
        for (uint32_t i = 0; i < count; i++) {
            std::fill_n(inputs.data() + i * (size_t)stride, stride, 0);
            make_row(input, keys[record_of_row[i]], inputs.data() + i * (size_t)stride, stride);
        }
        const Bytes before = inputs, records_before = records;
        run(picked, GPK_PRIVATE_OPERATION, &launch);
        CHECK(inputs == before && records == records_before);
        for (uint32_t i = 0; i < count; i++)
            check_private_row(keys[record_of_row[i]], &inputs[i * (size_t)stride], &outputs[i * (size_t)stride], stride,
                              ok[i]);
    }
}

void fuzz_modexp(Input &input)
{
    const HostUnit &picked = pick_unit(input);
    const gpk_unit &unit = picked.about;
    const uint32_t count = pick_rows(input, unit), stride = (uint32_t)unit.class_bytes;
    const uint32_t exponent_stride = 4 * (1 + input.byte() % (input.byte() % 16 == 0 ? 128U : 8U));
    const uint32_t exponent_bits = 8 * exponent_stride - input.below(8 * exponent_stride);
    const bool one_exponent = input.byte() % 2;
    Bytes records, moduli;
    uint32_t distinct = 0;

    for (int left = 1 + input.byte() % 3; left > 0; left--) {
        Bytes modulus = input.fill(stride), record((size_t)unit.modulus_bytes);
        if (input.byte() % 2)
            std::fill(modulus.begin() + input.below(stride), modulus.end(), 0);
        if (input.byte() % 8 != 0)
            modulus[0] |= 1;
        const enum gpk_status status =
            gpk_thread_modulus(unit.radix_bits, unit.class_bytes, record.data(), {modulus.data(), modulus.size()});
        const Number m = number(modulus.data(), modulus.size());
        CHECK(status == (BN_is_odd(m.get()) && !BN_is_one(m.get()) ? GPK_OK : GPK_INVALID));
        if (status == GPK_OK) {
            records.insert(records.end(), record.begin(), record.end());
            moduli.insert(moduli.end(), modulus.begin(), modulus.end());
            distinct++;
        }
    }
    if (distinct == 0)
        return;
    records.shrink_to_fit();

    const Bytes bases = input.fill(count * (size_t)stride);
    const Bytes exponents = input.fill((one_exponent ? 1 : count) * (size_t)exponent_stride);
    Bytes outputs(bases.size(), UNTOUCHED);
    std::vector<uint32_t> modulus_of_row;
    for (uint32_t i = 0; i < count; i++)
        modulus_of_row.push_back(input.byte() % distinct);
    const gpk_modexp_launch launch = {count,
                                      exponent_bits,
                                      one_exponent ? 0 : exponent_stride,
                                      0,
                                      modulus_of_row.data(),
                                      records.data(),
                                      bases.data(),
                                      exponents.data(),
                                      outputs.data()};
    run(picked, GPK_MODEXP, &launch);
    for (uint32_t i = 0; i < count; i++)
        check_power(&bases[i * (size_t)stride], &exponents[i * (size_t)launch.exponent_stride], exponent_stride,
                    exponent_bits, &moduli[modulus_of_row[i] * (size_t)stride], &outputs[i * (size_t)stride], stride,
                    1);
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
