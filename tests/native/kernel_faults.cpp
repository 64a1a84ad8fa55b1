/* Whichever multiplication of a private operation goes wrong, in either half or in the blinding, the row's check
 * notices.
 *
 * A vector type here flips one bit of one product: each run another product, all over the operation. usage:
 * kernel_faults: numbers of the key on stdin (hex: n e p q dp dq qinv), prints "PRODUCTS CAUGHT HARMLESS". Fails if
 * a wrong result comes out, or anything with a bad verdict.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cpu/vector_portable.h"

namespace {
uint64_t products, faulty_product;
}

namespace gpk {
namespace {

struct Faulty {
    Word word;
    static constexpr int lanes = 1;
    static constexpr bool long_blocks = false;
    using Bit = Word::Bit;
};

inline Word fault(Word result)
{
    if (products++ == faulty_product) {
        uint64_t bits;
        memcpy(&bits, &result, sizeof(bits));
        bits ^= UINT64_C(1) << faulty_product % 52;
        memcpy(static_cast<void *>(&result), &bits, sizeof(bits));
    }
    return result;
}

inline Faulty mad52lo(Faulty c, Faulty a, Faulty b)
{
    return {fault(mad52lo(c.word, a.word, b.word))};
}
inline Faulty mad52hi(Faulty c, Faulty a, Faulty b)
{
    return {fault(mad52hi(c.word, a.word, b.word))};
}
inline Faulty operator+(Faulty a, Faulty b)
{
    return {a.word + b.word};
}
inline Faulty operator-(Faulty a, Faulty b)
{
    return {a.word - b.word};
}
inline Faulty operator&(Faulty a, Faulty b)
{
    return {a.word & b.word};
}
template <int K> Faulty operator>>(Faulty a, Constant<K> k)
{
    return {a.word >> k};
}
inline Word::Bit bit_of(Faulty a, int position)
{
    return bit_of(a.word, position);
}
inline Faulty blend(Word::Bit bit, Faulty clear, Faulty set)
{
    return {blend(bit, clear.word, set.word)};
}

} // namespace

template <> struct Splat<Faulty> {
    static Faulty of(uint64_t x) { return {Splat<Word>::of(x)}; }
};

} // namespace gpk

#include "cpu/batch.h"

using namespace gpk;

static gpk_key *read_key(uint64_t *n, int limbs)
{
    static uint8_t bytes[7][512];
    gpk_number numbers[7];
    char hex[2048];

    for (int i = 0; i < 7; i++) {
        if (scanf("%2000s", hex) != 1)
            exit(2);
        const size_t length = strlen(hex), size = (length + 1) / 2;
        for (size_t j = 0; j < length; j++) {
            const char digit[2] = {hex[length - 1 - j], 0};
            bytes[i][j / 2] |= (uint8_t)(strtoul(digit, NULL, 16) << j % 2 * 4);
        }
        numbers[i] = {bytes[i], size};
    }
    limbs_from_bytes(n, limbs, bytes[0], (int)numbers[0].size);
    gpk_key *key;
    if (gpk_key_new(&key, numbers[0], numbers[1], numbers[2], numbers[3], numbers[4], numbers[5], numbers[6]) != GPK_OK)
        exit(2);
    return key;
}

int main(void)
{
    constexpr int N = 20;
    using Rsa = VectorRsa<N, Faulty>;
    using Row = VectorRows<N, Faulty>::Row;
    uint64_t n[2 * N];
    gpk_key *keys[1] = {read_key(n, 2 * N)};
    Rsa *rsa = static_cast<Rsa *>(calloc(1, sizeof(Rsa)));
    Row right[1];
    uint64_t total = 0, caught = 0, harmless = 0;

    for (int run = 0; run < 200; run++) {
        /* Run 0 counts the products; the last ones square the pair for its next use, and harm that use alone. */
        faulty_product = run == 0 ? UINT64_MAX : (uint64_t)run * (total - 2 * (3 * 4 * N * N + 4 * N)) / 200;
        products = UINT64_MAX / 2; /* no fault while pairs are made */
        BlindingPair *pair = make_and_take(rsa, keys[0]);
        Row row[1];
        uint8_t ok;
        for (int i = 0; i < 2 * N; i++)
            row[0][i] = n[i] / 3;
        rsa->rows.set_keys(keys);
        rsa->rows.set_rows(row, &pair, &ok);
        products = 0;
        rsa->private_operation();
        if (run == 0) {
            total = products;
            if (!ok)
                return 3;
            memcpy(right, row, sizeof(right));
        } else if (ok) {
            /* It hit an entry of the table that no digit names. */
            if (memcmp(right, row, sizeof(right)) != 0)
                return 4;
            harmless++;
        } else {
            for (uint64_t limb : row[0])
                if (limb != 0)
                    return 5;
            caught++;
        }
        return_pair(keys[0], pair, !ok);
    }
    printf("%llu %llu %llu\n", (unsigned long long)total, (unsigned long long)caught, (unsigned long long)harmless);
    gpk_key_free(keys[0]);
    free(rsa);
    return 0;
}
