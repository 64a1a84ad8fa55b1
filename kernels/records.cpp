/* Fills key and modulus records of the multi-thread kernels, in the layout of launch.h. Numbers are computed in limbs
 * of 52 bits, by doubling, as in key.cpp, and then written in the radix of the kernel. */
#include "records.h"

#include <string.h>

#include "arithmetic/limbs.h"
#include "arithmetic/number.h"
#include "arithmetic/rsa.h"
#include "cpu/memory.h"

using namespace gpk;

namespace {

/* Numbers below 2^(BITS LIMBS), LIMBS of them in the record. */
template <int BITS, int LIMBS> struct Numbers {
    using Limb = typename LimbOf<BITS>::Type;
    static constexpr int work = (BITS * LIMBS + 51) / 52;
    uint64_t x[work];

    static_assert(work <= MAX_LIMBS, "limbs.h takes them");

    /* x = x 2^count mod m for x < m */
    void shift_left(const Numbers &m, int count)
    {
        for (int i = 0; i < count; i++)
            limbs_double(x, m.x, work);
    }

    /* x = 2^count mod m, for an odd m of `bits` bits, m > 1 */
    void set_power_of_two(const Numbers &m, int bits, int count)
    {
        memset(x, 0, sizeof(x));
        x[(bits - 1) / 52] = UINT64_C(1) << (bits - 1) % 52;
        shift_left(m, count - bits + 1);
    }

    void write(void *record, int offset) const
    {
        Limb *to = static_cast<Limb *>(record) + offset;

        if constexpr (BITS == 52) {
            for (int i = 0; i < LIMBS; i++)
                to[i] = (Limb)(int64_t)x[i]; /* signed: many processors convert unsigned numbers with a branch */
        } else {
            uint8_t bytes[MAX_BYTES];
            limbs_to_bytes(bytes, 4 * LIMBS, x, work);
            for (int i = 0; i < LIMBS; i++)
                to[i] = bytes[4 * i] | (Limb)bytes[4 * i + 1] << 8 | (Limb)bytes[4 * i + 2] << 16
                        | (Limb)bytes[4 * i + 3] << 24;
            wipe(bytes, sizeof(bytes));
        }
    }

    void write_k0(void *record, int offset) const
    {
        static_cast<Limb *>(record)[offset] = (Limb)(limbs_k0(x[0]) & ((UINT64_C(1) << BITS) - 1));
    }

    ~Numbers() { wipe(x, sizeof(x)); }
};

/* In radix 2^52 moduli must be below R / 16. */
constexpr int slack(int radix_bits) { return radix_bits == 52 ? 4 : 0; }

/* The low `words` words of a little-endian number. */
void write_words(uint32_t *to, const uint8_t *bytes, size_t size, int words)
{
    for (int i = 0; i < words; i++) {
        to[i] = 0;
        for (int j = 0; j < 4; j++)
            if ((size_t)(4 * i + j) < size)
                to[i] |= (uint32_t)bytes[4 * i + j] << 8 * j;
    }
}

template <int BITS, int N> struct KeyRecord {
    using Layout = RecordLayout<BITS, N>;
    using Half = Numbers<BITS, N>;
    using Full = Numbers<BITS, 2 * N>;

    static int at(HalfNumber number, int which) { return Layout::half_number((int)number) + which * N; }
    static int at(FullNumber number) { return Layout::full_number((int)number); }

    static void write_prime(uint32_t *record, int which, const Half &m, int bits, gpk_number exponent)
    {
        Half x;
        uint8_t bytes[MAX_BYTES];

        m.write(record, at(HalfNumber::modulus, which));
        m.write_k0(record, Layout::k0 + which);
        x.set_power_of_two(m, bits, BITS * N);
        x.write(record, at(HalfNumber::one, which));
        x.shift_left(m, BITS * N);
        x.write(record, at(HalfNumber::r2, which));
        x.shift_left(m, BITS * N);
        x.write(record, at(HalfNumber::r3, which));

        uint32_t *exponents = record + which * Layout::exponent_words;
        write_words(exponents + Layout::exponent((int)HalfExponent::private_exponent), exponent.bytes, exponent.size,
                    Layout::exponent_words);
        limbs_to_bytes(bytes, sizeof(bytes), m.x, Half::work);
        uint32_t borrow = 2; /* Fermat's exponent m - 2 */
        for (uint8_t &byte : bytes) {
            const uint32_t d = byte - borrow;
            borrow = d >> 31;
            byte = (uint8_t)d;
        }
        write_words(exponents + Layout::exponent((int)HalfExponent::inverting), bytes, sizeof(bytes),
                    Layout::exponent_words);
        wipe(bytes, sizeof(bytes));
    }

    static enum gpk_status write(int class_bytes, uint32_t *record, gpk_number n, gpk_number e, gpk_number p,
                                 gpk_number q, gpk_number dp, gpk_number dq, gpk_number qinv)
    {
        const int p_bits = bits_of(p), q_bits = bits_of(q), n_bits = bits_of(n);
        const int prime_bits = p_bits > q_bits ? p_bits : q_bits;
        Half prime[2], inverse;
        Full modulus, x;

        if (!is_odd(n) || !is_odd(p) || !is_odd(q) || p_bits < 3 || q_bits < 3 || !is_odd(e) || bits_of(e) < 2
            || bits_of(qinv) > p_bits || q_bits >= n_bits)
            return GPK_INVALID;
        if (n_bits > 8 * class_bytes || n_bits > 2 * BITS * N - slack(BITS) || prime_bits > BITS * N - slack(BITS)
            || bits_of(e) > 64 || bits_of(dp) > prime_bits || bits_of(dq) > prime_bits)
            return GPK_UNSUPPORTED;

        load(prime[0].x, Half::work, p);
        load(prime[1].x, Half::work, q);
        load(inverse.x, Half::work, qinv);
        uint64_t fits = limbs_less(inverse.x, prime[0].x, Half::work);
        GPK_PUBLIC(fits);
        if (!fits)
            return GPK_INVALID;

        memset(record, 0, Layout::words * sizeof(*record));
        write_prime(record, 0, prime[0], p_bits, dp);
        write_prime(record, 1, prime[1], q_bits, dq);
        inverse.write(record, at(HalfNumber::qinv, 0));
        inverse.shift_left(prime[0], BITS * N);
        inverse.write(record, at(HalfNumber::qinv_r, 0));
        memset(inverse.x, 0, sizeof(inverse.x));
        inverse.x[0] = 1;
        inverse.write(record, at(HalfNumber::qinv, 1));

        load(modulus.x, Full::work, n);
        modulus.write(record, at(FullNumber::modulus));
        modulus.write_k0(record, Layout::k0 + 2);
        x.set_power_of_two(modulus, n_bits, 2 * BITS * N);
        x.write(record, at(FullNumber::one));
        x.shift_left(modulus, 2 * BITS * N);
        x.write(record, at(FullNumber::r2));
        load(x.x, Full::work, q); /* q < n */
        x.shift_left(modulus, 2 * BITS * N);
        x.write(record, at(FullNumber::q_r));

        const uint64_t small = small_number(e);
        record[Layout::e] = (uint32_t)small;
        record[Layout::e + 1] = (uint32_t)(small >> 32);
        return GPK_OK;
    }
};

template <int BITS, int LIMBS> enum gpk_status write_modulus(int class_bytes, void *record, gpk_number number)
{
    using Layout = ModulusLayout<BITS, LIMBS>;
    const int bits = bits_of(number);
    Numbers<BITS, LIMBS> m, x;

    if (!is_odd(number) || bits < 2)
        return GPK_INVALID;
    if (bits > 8 * class_bytes || bits > BITS * LIMBS - slack(BITS))
        return GPK_UNSUPPORTED;
    memset(record, 0, Layout::limbs * sizeof(typename Layout::Limb));
    load(m.x, m.work, number);
    m.write(record, Layout::modulus);
    m.write_k0(record, Layout::k0);
    x.set_power_of_two(m, bits, BITS * LIMBS);
    x.write(record, Layout::one);
    x.shift_left(m, BITS * LIMBS);
    x.write(record, Layout::r2);
    return GPK_OK;
}

} // namespace

const struct gpk_unit *gpk_unit_at(int index)
{
#define UNIT(bits, bytes, l, threads, window, host) unit_of<bits, bytes, l, threads, window>(),
    static constexpr gpk_unit units[] = {GPK_UNITS(UNIT)};
#undef UNIT

    return index >= 0 && index < (int)(sizeof(units) / sizeof(units[0])) ? &units[index] : NULL;
}

enum gpk_status gpk_thread_record(int radix_bits, int class_bytes, void *record, gpk_number n, gpk_number e,
                                  gpk_number p, gpk_number q, gpk_number dp, gpk_number dq, gpk_number qinv)
{
    uint32_t *words = static_cast<uint32_t *>(record);
    enum gpk_status status = GPK_UNSUPPORTED;

#define TRY(bits, bytes, l, threads, window, host)                                                \
    if (radix_bits == bits && class_bytes == bytes)                                               \
        status = KeyRecord<bits, l * threads / 2>::write(bytes, words, n, e, p, q, dp, dq, qinv); \
    else
    GPK_UNITS(TRY) {}
#undef TRY
    wipe_stack();
    return status;
}

enum gpk_status gpk_thread_modulus(int radix_bits, int class_bytes, void *record, gpk_number modulus)
{
#define TRY(bits, bytes, l, threads, window, host)  \
    if (radix_bits == bits && class_bytes == bytes) \
        return write_modulus<bits, l * threads>(bytes, record, modulus);
    GPK_UNITS(TRY)
#undef TRY
    return GPK_UNSUPPORTED;
}
