/* Batches over one vector type: rows are sorted by size class, into groups with a row for each lane.
 *
 * The last group of a class is padded and costs as much as a full one: its spare lanes repeat the group's first row,
 * and their results are dropped. The workspace holds the secrets of the computation and is wiped after each size class,
 * so it is zero between calls.
 */
#ifndef GPK_CPU_BATCH_H
#define GPK_CPU_BATCH_H

#include "arithmetic/limbs.h"
#include "cpu/batches.h"
#include "cpu/memory.h"
#include "cpu/modexp.h"
#include "cpu/rows.h"

namespace gpk {

namespace {

template <int N, class V> using VectorRsa = RsaPrivate<VectorRows<N, V>>;

/* Makes pairs for the key until it can take one; NULL if memory or randomness ran out. */
template <int N, class V> BlindingPair *make_and_take(VectorRsa<N, V> *rsa, gpk_key *key)
{
    constexpr int lanes = V::lanes;
    BlindingPair *pair;

    while ((pair = take_pair(key)) == NULL) {
        BlindingPair *vacant[PAIRS];
        gpk_key *keys[lanes];
        typename VectorRows<N, V>::Row random[lanes];
        const int count = take_vacant(key, vacant);

        if (count == 0)
            return NULL;
        for (gpk_key *&row_key : keys)
            row_key = key;
        rsa->rows.set_keys(keys);
        for (int done = 0; done < count; done += lanes) {
            BlindingPair *pairs[lanes];
            if (!random_bytes(random, sizeof(random)))
                return NULL;
            for (int i = 0; i < lanes; i++)
                pairs[i] = vacant[done + i < count ? done + i : done];
            /* A pair that several lanes make is written several times: the last is as good as the first. */
            for (auto &row : random)
                for (uint64_t &limb : row)
                    limb &= LIMB_MASK;
            rsa->rows.set_rows(random, pairs, NULL);
            rsa->make_pair();
        }
        add_ready(key, vacant, count);
    }
    return pair;
}

/* Computes rows `indices[0 .. count - 1]`, whose keys have N limbs. */
template <int N, class V>
void private_group(VectorRsa<N, V> *rsa, const PrivateBatch &batch, const uint32_t *indices, int count)
{
    constexpr int lanes = V::lanes, capacity = limbs_to_bytes(2 * N);
    typename VectorRows<N, V>::Row rows[lanes];
    gpk_key *keys[lanes];
    BlindingPair *pairs[lanes];
    uint8_t ok[lanes];
    const int size = (int)batch.stride < capacity ? (int)batch.stride : capacity;

    for (int i = 0; i < lanes; i++) {
        const uint32_t row = indices[i < count ? i : 0];
        keys[i] = batch.keys[row];
        pairs[i] = i < count ? make_and_take(rsa, keys[i]) : pairs[0];
        if (pairs[i] == NULL) {
            while (i-- > 0)
                return_pair(keys[i], pairs[i], 0);
            return;
        }
        limbs_from_bytes(rows[i], 2 * N, batch.inputs + (size_t)row * batch.stride, size);
    }
    rsa->rows.set_keys(keys);
    rsa->rows.set_rows(rows, pairs, ok);
    rsa->private_operation();
    for (int i = 0; i < count; i++) {
        limbs_to_bytes(batch.outputs + (size_t)indices[i] * batch.stride, size, rows[i], 2 * N);
        batch.ok[indices[i]] = ok[i];
        return_pair(keys[i], pairs[i], !ok[i]);
    }
}

/* Whether the row's bytes above the class's capacity are zero, and the row is wide enough for the key. */
inline int row_fits(const PrivateBatch &batch, uint32_t index, int limbs)
{
    const uint8_t *row = batch.inputs + (size_t)index * batch.stride;
    uint8_t above = 0;

    for (uint32_t i = (uint32_t)limbs_to_bytes(2 * limbs); i < batch.stride; i++)
        above |= row[i];
    return above == 0 && (uint32_t)batch.keys[index]->bytes <= batch.stride;
}

template <int N, class V> void private_class(void *workspace, const PrivateBatch &batch)
{
    VectorRsa<N, V> *rsa = static_cast<VectorRsa<N, V> *>(workspace);
    uint32_t indices[V::lanes];
    int count = 0, used = 0;

    static_assert(sizeof(*rsa) <= WORKSPACE_SIZE, "the workspace is large enough");
    for (uint32_t i = 0; i < batch.count; i++) {
        if (batch.keys[i]->limbs != N || !row_fits(batch, i, N))
            continue;
        indices[count++] = i;
        used = 1;
        if (count == V::lanes) {
            private_group(rsa, batch, indices, count);
            count = 0;
        }
    }
    if (count > 0)
        private_group(rsa, batch, indices, count);
    if (used)
        wipe(workspace, sizeof(*rsa));
}

template <class V> void private_batch(void *workspace, const PrivateBatch &batch)
{
    memset(batch.ok, 0, batch.count);
    memset(batch.outputs, 0, (size_t)batch.count * batch.stride);
    private_class<20, V>(workspace, batch);
    private_class<25, V>(workspace, batch);
    private_class<30, V>(workspace, batch);
    private_class<35, V>(workspace, batch);
    private_class<40, V>(workspace, batch);
}

/* Up to V::lanes rows from `first` on. */
template <int N, class V>
void modexp_group(Modexp<N, V> *modexp, const ModexpBatch &batch, uint32_t first, uint32_t count)
{
    constexpr uint32_t lanes = V::lanes;
    auto &rows = modexp->rows, &moduli = modexp->moduli;
    auto &exponents = modexp->exponents;

    for (uint32_t i = 0; i < lanes; i++) {
        const size_t row = first + (i < count ? i : 0);
        limbs_from_bytes(rows[i], N, batch.bases + row * batch.stride, (int)batch.stride);
        limbs_from_bytes(moduli[i], N, batch.moduli + row * batch.stride, (int)batch.stride);
        memset(exponents[i], 0, sizeof(exponents[i]));
        memcpy(exponents[i], batch.exponents + row * batch.exponent_stride, batch.exponent_stride);
        const int valid = (moduli[i][0] & 1) && limbs_bits(moduli[i], N) > 1;
        if (!valid) {
            memset(moduli[i], 0, sizeof(moduli[i]));
            moduli[i][0] = 3;
        }
        if (i < count)
            batch.ok[row] = (uint8_t)valid;
    }
    modexp->set_moduli();
    if (batch.public_exponents)
        modexp->run_public((int)batch.exponent_bits);
    else
        modexp->run((int)batch.exponent_bits);
    for (uint32_t i = 0; i < count; i++) {
        if (!batch.ok[first + i])
            memset(rows[i], 0, sizeof(rows[i]));
        limbs_to_bytes(batch.outputs + (size_t)(first + i) * batch.stride, (int)batch.stride, rows[i], N);
    }
}

/* Pairs of vectors while more rows are left than one vector holds: two streams hide the multiplier's latency. What a
 * pair of the longest numbers needs for a while would not fit onto the workspace's stack. */
template <int N, class V> void modexp_class(void *workspace, const ModexpBatch &batch)
{
    constexpr bool pairs = V::lanes > 1 && N <= 80;
    auto *one = static_cast<Modexp<N, V> *>(workspace);
    size_t used = sizeof(*one);
    uint32_t row = 0;

    static_assert(sizeof(*one) <= WORKSPACE_SIZE, "the workspace is large enough");

    if constexpr (pairs) {
        constexpr uint32_t lanes = 2 * V::lanes;
        auto *two = reinterpret_cast<Modexp<N, VectorPair<V>> *>(one + 1);
        static_assert(sizeof(*one) + sizeof(*two) <= WORKSPACE_SIZE, "the workspace is large enough");

        while (batch.count - row > V::lanes) {
            const uint32_t left = batch.count - row, count = left < lanes ? left : lanes;
            modexp_group(two, batch, row, count);
            row += count;
            used = sizeof(*one) + sizeof(*two);
        }
    }
    while (row < batch.count) {
        const uint32_t left = batch.count - row, count = left < V::lanes ? left : V::lanes;
        modexp_group(one, batch, row, count);
        row += count;
    }
    wipe(workspace, used);
}

/* Computes the batch in the first of the classes whose R is at least 16 times any modulus of the stride. */
template <class V, int N, int... LONGER> void modexp_in_class_of(void *workspace, const ModexpBatch &batch)
{
    if constexpr (sizeof...(LONGER) > 0)
        if (8 * batch.stride + 4 > 52 * N)
            return modexp_in_class_of<V, LONGER...>(workspace, batch);
    modexp_class<N, V>(workspace, batch);
}

/* Size classes of 256, 512, 1024, 2048, 3072, 4096, 6144 and 8192 bits; a size between two costs what the larger one
 * costs. */
template <class V> void modexp_batch(void *workspace, const ModexpBatch &batch)
{
    modexp_in_class_of<V, 5, 10, 20, 40, 60, 80, 120, 160>(workspace, batch);
}

} // namespace
} // namespace gpk

#endif
