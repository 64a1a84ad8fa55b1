/* Stress of the staging for the sanitizers: lanes with batches of any keys and sizes, whose keys come and go meanwhile,
 * on a "device" that turns the bits of a number. A model says which pairs are fit for use: made for the row's own key,
 * in no other row of the batch, not too often used, and not in a row that failed. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "staging.h"

#define LANES 3
#define CLASSES 3
#define KEYS 24 /* of all classes */
#define RECORDS 32
#define ROWS 300
#define PAIRS (1u << 14)

static const uint32_t widths[CLASSES] = {256, 384, 512}, narrower[CLASSES] = {256, 320, 448};

struct key {
    pthread_rwlock_t in_use; /* read: by a lane; write: to change the handle */
    uint64_t handle;
};

struct shared {
    gp_records *records;
    pthread_mutex_t lock; /* of whoever changes the records */
    uint32_t unused[CLASSES][RECORDS], unused_count[CLASSES];
    int added[KEYS];
    uint32_t number[KEYS]; /* of its record */
    struct key keys[KEYS];
    int rounds;
    atomic_int stop;
};

struct pairs {
    struct gp_pairs of;
    uint32_t taken;
    uint64_t made_for[PAIRS]; /* the model: 0, if it is not fit for use */
    uint16_t used[PAIRS];
    uint32_t in_batch[PAIRS];
};

struct lane {
    struct shared *shared;
    uint64_t state;
    uint32_t batch;
    struct gp_staging staging;
    struct pairs pairs[CLASSES];
    uint8_t inputs[ROWS * GP_MAX_BYTES], outputs[ROWS * GP_MAX_BYTES], ok[ROWS];
    uint64_t keys[ROWS];
    long requests, failed, renewals;
};

static uint32_t random_below(uint64_t *state, uint32_t limit)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(*state >> 33) % limit;
}

static int kernels_take(uint32_t key)
{
    return key % 8 != 0;
}

static uint64_t public_exponent(uint64_t handle)
{
    return handle | 1;
}

static void *allocate(size_t size)
{
    void *memory = aligned_alloc(16, (size + 15) / 16 * 16);

    CHECK(memory != NULL);
    memset(memory, 0, size);
    return memory;
}

static void add_record(struct shared *shared, uint64_t handle)
{
    const uint32_t key = (uint32_t)(handle & 0xFFFF), class = key % CLASSES;
    struct gp_key_record record = {.number = GP_NO_RECORD};

    pthread_mutex_lock(&shared->lock);
    if (!shared->added[key]) {
        shared->added[key] = 1;
        if (kernels_take(key)) {
            CHECK(shared->unused_count[class] > 0);
            record.number = shared->unused[class][--shared->unused_count[class]];
            record.prime_bits = 1000 + key;
            record.e = public_exponent(handle);
        }
        shared->number[key] = record.number;
        gp_records_set(shared->records, handle, &record);
    }
    pthread_mutex_unlock(&shared->lock);
}

/* A key goes, and its record becomes another's. */
static void *change_keys(void *argument)
{
    struct shared *shared = argument;
    uint64_t state = 99, serial = 1;

    while (!atomic_load(&shared->stop)) {
        const uint32_t i = random_below(&state, KEYS);
        struct key *key = &shared->keys[i];

        pthread_rwlock_wrlock(&key->in_use);
        pthread_mutex_lock(&shared->lock);
        gp_records_remove(shared->records, key->handle);
        if (shared->number[i] != GP_NO_RECORD)
            shared->unused[i % CLASSES][shared->unused_count[i % CLASSES]++] = shared->number[i];
        shared->number[i] = GP_NO_RECORD;
        shared->added[i] = 0;
        pthread_mutex_unlock(&shared->lock);
        key->handle = ++serial << 16 | i;
        pthread_rwlock_unlock(&key->in_use);
    }
    return NULL;
}

/* A block for a key's rows; all blocks are discarded when there is no room for one more. */
static void extend(struct pairs *pairs, uint32_t record, uint64_t handle, uint32_t wanted)
{
    struct gp_pairs *of = &pairs->of;
    uint32_t size = 1;

    while (size < wanted)
        size *= 2;
    if (wanted > of->count[record]) {
        if (pairs->taken + size > PAIRS) {
            memset(of->count, 0, RECORDS * sizeof(*of->count));
            pairs->taken = 0;
        }
        of->first[record] = pairs->taken;
        of->count[record] = size;
        pairs->taken += size;
    }
    of->owner[record] = handle;
    for (uint32_t i = 0; i < of->count[record]; i++)
        of->uses[of->first[record] + i] = GP_PAIR_USES;
}

static void stage(struct lane *lane, uint32_t class, uint32_t rows, uint32_t stride, const uint8_t *inputs)
{
    struct gp_staging *staging = &lane->staging;
    struct gp_pairs *of = &lane->pairs[class].of;

    for (;;) {
        const enum gp_staged lacks =
            gp_stage(staging, lane->shared->records, of, rows, lane->keys, inputs, stride, widths[class]);

        if (lacks == GP_STAGED)
            return;
        if (lacks == GP_LACKS_ROOM)
            of->records = RECORDS;
        for (uint32_t i = 0; i < staging->lacking_count; i++) {
            if (lacks == GP_LACKS_RECORDS)
                add_record(lane->shared, staging->lacking[i]);
            else if (lacks == GP_LACKS_PAIRS)
                extend(&lane->pairs[class], staging->lacking_record[i], staging->lacking[i], staging->lacking_pairs[i]);
        }
    }
}

/* Those that are listed as fresh. */
static void make_pairs(struct lane *lane, uint32_t class)
{
    struct gp_staging *staging = &lane->staging;
    struct pairs *pairs = &lane->pairs[class];
    const size_t numbers = (size_t)staging->fresh_count * widths[class];
    const uint32_t *record_of = (const uint32_t *)(staging->fresh + numbers);
    const uint32_t *pair_of = record_of + ((staging->fresh_count + 3) & ~3u);
    uint64_t any_e = 0;
    uint32_t prime_bits = 0;

    CHECK(gp_stage_fresh(staging, &pairs->of, widths[class]));
    for (uint32_t i = 0; i < staging->fresh_count; i++) {
        const uint32_t record = record_of[i], first = pairs->of.first[record];
        const uint64_t handle = pairs->of.owner[record];

        CHECK(record < RECORDS && pair_of[i] >= first && pair_of[i] < first + pairs->of.count[record]);
        pairs->made_for[pair_of[i]] = handle;
        pairs->used[pair_of[i]] = 0;
        any_e |= public_exponent(handle);
        if (prime_bits < 1000 + (handle & 0xFFFF))
            prime_bits = 1000 + (uint32_t)(handle & 0xFFFF);
    }
    CHECK(staging->fresh_any_e == any_e && staging->fresh_prime_bits == prime_bits);
    memset(staging->fresh, 0, numbers);
}

/* What the kernels rely on. */
static void check_staged(struct lane *lane, uint32_t class, uint32_t rows)
{
    struct gp_staging *staging = &lane->staging;
    struct pairs *pairs = &lane->pairs[class];
    const uint32_t *record_of = (const uint32_t *)(staging->upload + (size_t)rows * widths[class]);
    const uint32_t *pair_of = record_of + ((rows + 3) & ~3u);
    uint32_t taken = 0;
    uint64_t any_e = 0;

    lane->batch++;
    make_pairs(lane, class);
    for (uint32_t row = 0; row < rows; row++) {
        const uint64_t handle = lane->keys[row];
        const uint32_t key = (uint32_t)(handle & 0xFFFF);

        if (!kernels_take(key))
            continue;
        CHECK(staging->row[taken] == row);
        CHECK(record_of[taken] == lane->shared->number[key]);
        const uint32_t pair = pair_of[taken];
        CHECK(pair < PAIRS && pairs->made_for[pair] == handle);
        CHECK(pairs->in_batch[pair] != lane->batch);
        pairs->in_batch[pair] = lane->batch;
        CHECK(++pairs->used[pair] <= GP_PAIR_USES);
        any_e |= public_exponent(handle);
        taken++;
    }
    CHECK(staging->count == taken && staging->any_e == any_e);
}

/* The numbers with their bits turned, and a verdict that is now and then not 1. Returns how many are not. */
static uint32_t compute(struct lane *lane, uint32_t class, uint32_t rows)
{
    struct gp_staging *staging = &lane->staging;
    const uint32_t width = widths[class], count = staging->count;
    const uint32_t *pair_of = (const uint32_t *)(staging->upload + (size_t)rows * width) + ((rows + 3) & ~3u);
    uint32_t failed = 0;

    for (uint32_t i = 0; i < count; i++) {
        const int fails = random_below(&lane->state, 50) == 0;

        for (uint32_t byte = 0; byte < width; byte++)
            staging->download[(size_t)i * width + byte] = (uint8_t)~staging->upload[(size_t)i * width + byte];
        staging->download[(size_t)count * width + i] = fails ? (uint8_t)(2 * random_below(&lane->state, 128)) : 1;
        if (fails)
            lane->pairs[class].made_for[pair_of[i]] = 0;
        failed += (uint32_t)fails;
    }
    return failed;
}

static void check_results(struct lane *lane, uint32_t rows, uint32_t stride, uint32_t width, uint32_t failed,
                          int on_host)
{
    struct gp_staging *staging = &lane->staging;
    uint32_t without = 0;

    for (uint32_t row = 0; row < rows; row++) {
        const int taken = kernels_take((uint32_t)(lane->keys[row] & 0xFFFF));

        CHECK(lane->ok[row] == 0 || (lane->ok[row] == 1 && taken));
        without += taken && lane->ok[row] == 0;
        for (uint32_t byte = 0; on_host && lane->ok[row] && byte < stride; byte++)
            CHECK((lane->outputs[(size_t)row * stride + byte] ^ lane->inputs[(size_t)row * stride + byte]) == 0xFF);
    }
    CHECK(without == failed);
    for (size_t byte = 0; byte < (size_t)staging->count * (width + 1); byte++)
        CHECK(staging->download[byte] == 0);
}

static void *run_lane(void *argument)
{
    struct lane *lane = argument;
    struct shared *shared = lane->shared;

    for (int round = 0; round < shared->rounds; round++) {
        const uint32_t class = random_below(&lane->state, CLASSES), rows = 1 + random_below(&lane->state, ROWS);
        const uint32_t stride = random_below(&lane->state, 2) ? widths[class] : narrower[class];
        const int on_host = random_below(&lane->state, 4) != 0;
        const uint32_t only = random_below(&lane->state, 3) == 0 ? 1 : KEYS / CLASSES; /* many rows with one key, too */

        for (uint32_t key = class; key < KEYS; key += CLASSES)
            pthread_rwlock_rdlock(&shared->keys[key].in_use);
        for (uint32_t row = 0; row < rows; row++) {
            const uint32_t key = class + CLASSES * random_below(&lane->state, only);

            lane->keys[row] = shared->keys[key].handle;
            for (uint32_t byte = 0; byte < stride; byte += 8)
                memcpy(lane->inputs + (size_t)row * stride + byte, &lane->state, 8);
        }
        memset(lane->ok, 0, rows);
        stage(lane, class, rows, stride, on_host ? lane->inputs : NULL);
        check_staged(lane, class, rows);
        const uint32_t failed = compute(lane, class, rows);
        memset(lane->staging.upload, 0, (size_t)rows * widths[class]);
        if (gp_stage_worn(&lane->staging, &lane->pairs[class].of) > 0) {
            make_pairs(lane, class);
            lane->renewals++;
        }
        CHECK(gp_unstage(&lane->staging, &lane->pairs[class].of, on_host ? lane->outputs : NULL, lane->ok, stride,
                         widths[class])
              == failed);
        check_results(lane, rows, stride, widths[class], failed, on_host);
        for (uint32_t key = class; key < KEYS; key += CLASSES)
            pthread_rwlock_unlock(&shared->keys[key].in_use);
        lane->requests += rows;
        lane->failed += failed;
    }
    return NULL;
}

static struct lane *new_lane(struct shared *shared, uint64_t seed)
{
    struct lane *lane = allocate(sizeof(*lane));
    const size_t numbers = ROWS * (GP_MAX_BYTES + 8) + 16;

    lane->shared = shared;
    lane->state = seed;
    lane->staging = (struct gp_staging){
        .upload = allocate(numbers),
        .download = allocate(numbers),
        .fresh = allocate(numbers),
        .row = allocate(ROWS * 4),
        .fresh_record = allocate(ROWS * 4),
        .fresh_pair = allocate(ROWS * 4),
        .lacking = allocate(ROWS * 8),
        .lacking_record = allocate(ROWS * 4),
        .lacking_pairs = allocate(ROWS * 4),
        .room = ROWS,
    };
    for (uint32_t class = 0; class < CLASSES; class++)
        lane->pairs[class].of = (struct gp_pairs){
            .owner = allocate(RECORDS * 8),
            .first = allocate(RECORDS * 4),
            .count = allocate(RECORDS * 4),
            .wanted = allocate(RECORDS * 4),
            .e = allocate(RECORDS * 8),
            .prime_bits = allocate(RECORDS * 4),
            .uses = allocate(PAIRS * 2),
        };
    return lane;
}

static void free_lane(struct lane *lane)
{
    struct gp_staging *staging = &lane->staging;
    void *arrays[] = {
        staging->upload,     staging->download, staging->fresh,          staging->row,           staging->fresh_record,
        staging->fresh_pair, staging->lacking,  staging->lacking_record, staging->lacking_pairs, lane};

    for (uint32_t class = 0; class < CLASSES; class++) {
        struct gp_pairs *of = &lane->pairs[class].of;
        void *more[] = {of->owner, of->first, of->count, of->wanted, of->e, of->prime_bits, of->uses};

        for (size_t i = 0; i < sizeof(more) / sizeof(*more); i++)
            free(more[i]);
    }
    for (size_t i = 0; i < sizeof(arrays) / sizeof(*arrays); i++)
        free(arrays[i]);
}

int main(int count, char **arguments)
{
    static struct shared shared;
    struct lane *lanes[LANES];
    pthread_t threads[LANES], changer;
    long requests = 0, failed = 0, renewals = 0;

    shared.rounds = count > 1 ? atoi(arguments[1]) : 600;
    shared.records = gp_records_new();
    CHECK(shared.records != NULL);
    pthread_mutex_init(&shared.lock, NULL);
    for (uint32_t class = 0; class < CLASSES; class++)
        for (uint32_t number = 0; number < RECORDS; number++)
            shared.unused[class][shared.unused_count[class]++] = number;
    for (uint32_t key = 0; key < KEYS; key++) {
        pthread_rwlock_init(&shared.keys[key].in_use, NULL);
        shared.keys[key].handle = 1u << 16 | key;
        shared.number[key] = GP_NO_RECORD;
    }
    CHECK(pthread_create(&changer, NULL, change_keys, &shared) == 0);
    for (uint64_t i = 0; i < LANES; i++) {
        lanes[i] = new_lane(&shared, i + 1);
        CHECK(pthread_create(&threads[i], NULL, run_lane, lanes[i]) == 0);
    }
    for (int i = 0; i < LANES; i++) {
        pthread_join(threads[i], NULL);
        requests += lanes[i]->requests;
        failed += lanes[i]->failed;
        renewals += lanes[i]->renewals;
        free_lane(lanes[i]);
    }
    atomic_store(&shared.stop, 1);
    pthread_join(changer, NULL);
    gp_records_free(shared.records);
    CHECK(failed > 0 && renewals > 0);
    printf("staging_stress: passed: %ld requests, %ld failed, %ld renewals\n", requests, failed, renewals);
    return 0;
}
