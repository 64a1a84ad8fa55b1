/* The rows of a batch on their way to the device and back: see staging.h. */
#include "staging.h"

#include <errno.h>
#include <openssl/crypto.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "keys/key_table.h"

struct record_entry {
    _Atomic gp_key_handle handle;
    struct gp_key_record record;
};

struct gp_records {
    struct record_entry entries[GP_MAX_KEYS]; /* by the handle's index */
};

gp_records *gp_records_new(void)
{
    return calloc(1, sizeof(gp_records));
}

void gp_records_free(gp_records *records)
{
    free(records);
}

static struct record_entry *entry_of(gp_records *records, gp_key_handle handle)
{
    return &records->entries[handle & (GP_MAX_KEYS - 1)];
}

void gp_records_set(gp_records *records, gp_key_handle handle, const struct gp_key_record *record)
{
    struct record_entry *entry = entry_of(records, handle);

    entry->record = *record;
    atomic_store_explicit(&entry->handle, handle, memory_order_release);
}

void gp_records_remove(gp_records *records, gp_key_handle handle)
{
    struct record_entry *entry = entry_of(records, handle);

    if (atomic_load_explicit(&entry->handle, memory_order_relaxed) == handle)
        atomic_store_explicit(&entry->handle, 0, memory_order_release);
}

/* Arrays of 32-bit numbers in memory for the device. */
static uint32_t aligned(uint32_t count)
{
    return (count + 3) & ~UINT32_C(3);
}

static uint32_t *records_of_upload(const struct gp_staging *staging, uint32_t width)
{
    return (uint32_t *)(staging->upload + (size_t)staging->rows * width);
}

/* The places that are used, their records, and the keys that have none. */
static void find_records(struct gp_staging *staging, const gp_records *records, const gp_key_handle *keys,
                         uint32_t *record_of)
{
    static const struct gp_key_record none = {.number = GP_NO_RECORD};
    const struct gp_key_record *record = &none;

    staging->count = staging->lacking_count = staging->prime_bits = 0;
    staging->any_e = 0;
    for (uint32_t i = 0; i < staging->rows; i++) {
        if (i == 0 || keys[i] != keys[i - 1]) {
            const struct record_entry *entry = &records->entries[keys[i] & (GP_MAX_KEYS - 1)];

            if (atomic_load_explicit(&entry->handle, memory_order_acquire) == keys[i]) {
                record = &entry->record;
            } else {
                record = &none;
                staging->lacking[staging->lacking_count++] = keys[i];
            }
            staging->any_e |= record->e;
            if (record->prime_bits > staging->prime_bits)
                staging->prime_bits = record->prime_bits;
        }
        if (record->number == GP_NO_RECORD)
            continue;
        record_of[staging->count] = record->number;
        staging->row[staging->count++] = i;
    }
}

static enum gp_staged find_lacking_pairs(struct gp_staging *staging, const gp_records *records, struct gp_pairs *pairs,
                                         const gp_key_handle *keys, const uint32_t *record_of)
{
    for (uint32_t i = 0; i < staging->count; i++)
        if (record_of[i] >= pairs->records)
            return GP_LACKS_ROOM;
    for (uint32_t i = 0; i < staging->count; i++)
        pairs->wanted[record_of[i]]++;
    for (uint32_t i = 0; i < staging->count; i++) {
        const uint32_t record = record_of[i], wanted = pairs->wanted[record], last = staging->lacking_count;
        const gp_key_handle key = keys[staging->row[i]];

        pairs->wanted[record] = 0;
        if (wanted == 0 || (wanted <= pairs->count[record] && pairs->owner[record] == key))
            continue;
        const struct gp_key_record *of_key = &records->entries[key & (GP_MAX_KEYS - 1)].record;

        pairs->e[record] = of_key->e;
        pairs->prime_bits[record] = of_key->prime_bits;
        staging->lacking[last] = key;
        staging->lacking_record[last] = record;
        staging->lacking_pairs[last] = wanted;
        staging->lacking_count++;
    }
    return staging->lacking_count > 0 ? GP_LACKS_PAIRS : GP_STAGED;
}

static void add_fresh(struct gp_staging *staging, const struct gp_pairs *pairs, uint32_t record, uint32_t pair)
{
    pairs->uses[pair] = 0;
    staging->fresh_record[staging->fresh_count] = record;
    staging->fresh_pair[staging->fresh_count++] = pair;
}

/* The i-th row of a key uses the i-th pair of its block. */
static void assign_pairs(struct gp_staging *staging, struct gp_pairs *pairs, const uint32_t *record_of,
                         uint32_t *pair_of)
{
    staging->fresh_count = 0;
    for (uint32_t i = 0; i < staging->count; i++) {
        const uint32_t pair = pairs->first[record_of[i]] + pairs->wanted[record_of[i]]++;

        pair_of[i] = pair;
        if (pairs->uses[pair] >= GP_PAIR_USES)
            add_fresh(staging, pairs, record_of[i], pair);
        if (++pairs->uses[pair] == GP_PAIR_USES)
            pairs->worn = 1;
    }
    for (uint32_t i = 0; i < staging->count; i++)
        pairs->wanted[record_of[i]] = 0;
    if (staging->fresh_count > 0)
        pairs->worn = 1; /* the rest of a new block is not made yet */
}

/* Returns 0 when there is no room for one more. */
static int add_worn(struct gp_staging *staging, const struct gp_pairs *pairs, uint16_t least_uses)
{
    for (uint32_t record = 0; record < pairs->records; record++)
        for (uint32_t i = 0; i < pairs->count[record]; i++) {
            const uint32_t pair = pairs->first[record] + i;

            if (pairs->uses[pair] < least_uses)
                continue;
            if (staging->fresh_count == staging->room)
                return 0;
            add_fresh(staging, pairs, record, pair);
        }
    return 1;
}

uint32_t gp_stage_worn(struct gp_staging *staging, struct gp_pairs *pairs)
{
    if (staging->fresh_count > 0 || !pairs->worn)
        return 0;
    /* Those first that the next batch would have to wait for. */
    pairs->worn = !(add_worn(staging, pairs, GP_PAIR_USES) && add_worn(staging, pairs, GP_PAIR_WORN));
    return staging->fresh_count;
}

static void widen(uint8_t *to, const uint8_t *from, uint32_t stride, uint32_t width)
{
    memcpy(to, from, stride);
    memset(to + stride, 0, width - stride);
}

enum gp_staged gp_stage(struct gp_staging *staging, const gp_records *records, struct gp_pairs *pairs, uint32_t rows,
                        const gp_key_handle *keys, const uint8_t *inputs, uint32_t stride, uint32_t width)
{
    staging->rows = rows;
    uint32_t *record_of = records_of_upload(staging, width);

    find_records(staging, records, keys, record_of);
    if (staging->lacking_count > 0)
        return GP_LACKS_RECORDS;
    const enum gp_staged lacking = find_lacking_pairs(staging, records, pairs, keys, record_of);
    if (lacking != GP_STAGED)
        return lacking;
    assign_pairs(staging, pairs, record_of, record_of + aligned(rows));
    for (uint32_t i = 0; inputs != NULL && i < staging->count; i++)
        widen(staging->upload + (size_t)i * width, inputs + (size_t)staging->row[i] * stride, stride, width);
    return GP_STAGED;
}

static int fill_random(uint8_t *to, size_t size)
{
    while (size > 0) {
        const ssize_t got = getrandom(to, size, 0);

        if (got < 0 && errno != EINTR)
            return 0;
        if (got > 0) {
            to += got;
            size -= (size_t)got;
        }
    }
    return 1;
}

int gp_stage_fresh(struct gp_staging *staging, const struct gp_pairs *pairs, uint32_t width)
{
    const uint32_t count = staging->fresh_count;
    uint32_t *record_of = (uint32_t *)(staging->fresh + (size_t)count * width), *pair_of = record_of + aligned(count);

    staging->fresh_prime_bits = 0;
    staging->fresh_any_e = 0;
    for (uint32_t i = 0; i < count; i++) {
        const uint32_t record = staging->fresh_record[i];

        record_of[i] = record;
        pair_of[i] = staging->fresh_pair[i];
        staging->fresh_any_e |= pairs->e[record];
        if (pairs->prime_bits[record] > staging->fresh_prime_bits)
            staging->fresh_prime_bits = pairs->prime_bits[record];
    }
    return fill_random(staging->fresh, (size_t)count * width);
}

uint32_t gp_unstage(struct gp_staging *staging, const struct gp_pairs *pairs, uint8_t *outputs, uint8_t *ok,
                    uint32_t stride, uint32_t width)
{
    const uint32_t *pair_of = records_of_upload(staging, width) + aligned(staging->rows);
    uint8_t *verdicts = staging->download + (size_t)staging->count * width;
    uint32_t failed = 0;

    for (uint32_t i = 0; i < staging->count; i++) {
        const uint32_t row = staging->row[i];
        uint8_t *result = staging->download + (size_t)i * width;

        if (verdicts[i] == 1) {
            if (outputs != NULL)
                memcpy(outputs + (size_t)row * stride, result, stride);
            ok[row] = 1;
        } else {
            pairs->uses[pair_of[i]] = GP_PAIR_USES;
            failed++;
        }
        OPENSSL_cleanse(result, width); /* now, while it is in the cache */
    }
    memset(verdicts, 0, staging->count); /* of a batch that is given up there are none */
    return failed;
}
