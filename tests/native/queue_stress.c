/* Stress of the request queue for the sanitizers: many producers of all kinds, full and empty edges, orphaned slots,
 * late and double completions, and closing with requests in the wait queue. The "backend" returns its input, so every
 * result can be checked.
 *
 * No ASYNC job here: thread sanitizers can't follow OpenSSL's fibres. Orphaning is done by the calls that the job's
 * clean-up hook makes. jobs_stress.c has the jobs. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "queue/consumer.h"
#include "queue/request.h"

#define THREADS 4
#define WORKERS 2
#define TAG_BATCH 16

struct shared {
    gp_client *client;
    gp_consumer *consumer;
    gp_key *key;
    gp_key_handle key_handle;
    int rounds;
    atomic_int stop;
    _Atomic uint64_t tags_sent, tags_received, tags_dropped, full;
    pthread_mutex_t take_lock;
};

static void number_for(uint8_t *input, uint32_t bytes, uint64_t seed)
{
    memset(input, 0, bytes);
    memcpy(input + 8, &seed, sizeof(seed));
}

static void *blocking_producer(void *argument)
{
    struct shared *shared = argument;
    uint8_t input[GP_MAX_BYTES], output[GP_MAX_BYTES];

    for (int i = 0; i < shared->rounds; i++) {
        number_for(input, shared->key->bytes, (uint64_t)i << 8 | (uintptr_t)&input >> 12);
        memset(output, 0, sizeof(output));
        CHECK(gp_request_private_op(shared->client, shared->key, shared->key_handle, input, output) == 1);
        CHECK(memcmp(input, output, shared->key->bytes) == 0);
    }
    return NULL;
}

static void *tag_producer(void *argument)
{
    struct shared *shared = argument;
    uint8_t input[GP_MAX_BYTES];

    for (int i = 0; i < shared->rounds; i++) {
        uint64_t tag = (uint64_t)i + 1;
        enum gp_submit result;

        number_for(input, shared->key->bytes, tag);
        result = gp_client_submit(shared->client, shared->key_handle, input, tag, i % 2);
        CHECK(result == GP_SUBMIT_OK || (result == GP_SUBMIT_FULL && i % 2 == 0));
        if (result == GP_SUBMIT_OK)
            atomic_fetch_add(&shared->tags_sent, 1);
        else
            atomic_fetch_add(&shared->full, 1);
    }
    return NULL;
}

static void *orphaning_producer(void *argument)
{
    struct shared *shared = argument;
    uint8_t input[GP_MAX_BYTES];

    for (int i = 0; i < shared->rounds; i++) {
        struct gp_waiter waiter = {.kind = GP_WAITER_THREAD, .key = shared->key_handle};
        pthread_cond_t reserved = PTHREAD_COND_INITIALIZER;
        struct gp_queued entry = {.kind = GP_WAITER_THREAD, .sleeper = &reserved};
        uint32_t bytes, slot;
        gp_request_handle handle;

        number_for(input, shared->key->bytes, (uint64_t)i);
        slot = gp_client_claim(shared->client, &entry);
        if (slot == GP_NO_SLOT) { /* goes away while in the wait queue, or just after a slot was reserved */
            gp_client_leave_wait_queue(shared->client, &entry);
            continue;
        }
        CHECK(gp_key_table_pin(gp_client_keys(shared->client), shared->key_handle, &bytes));
        handle = gp_client_put(shared->client, slot, &waiter, bytes, input, 1);
        CHECK(handle != 0);
        for (int spin = 0; spin < (i % 7) * 50; spin++)
            (void)gp_client_poll(shared->client, handle);
        gp_client_orphan(shared->client, handle);
    }
    return NULL;
}

/* A worker takes under a lock, as the batching thread does, and completes outside of it, every batch twice. */
static void *worker(void *argument)
{
    struct shared *shared = argument;
    uint32_t waiting[GP_CLASSES], stride = GP_CLASS_BYTES(0), count;
    uint64_t oldest[GP_CLASSES], submitted[8], tags[TAG_BATCH];
    gp_request_handle handles[8];
    gp_key_handle keys[8];
    uint8_t *inputs = malloc((size_t)8 * stride), *outputs = malloc((size_t)TAG_BATCH * GP_MAX_BYTES);
    uint8_t ok[TAG_BATCH];

    while (!atomic_load(&shared->stop)) {
        pthread_mutex_lock(&shared->take_lock);
        gp_consumer_wait(shared->consumer, 1000000, 1, NULL, waiting, oldest);
        count = gp_consumer_take(shared->consumer, 0, 8, handles, keys, inputs, submitted);
        pthread_mutex_unlock(&shared->take_lock);
        memset(ok, 1, sizeof(ok));
        gp_consumer_complete(shared->consumer, count, handles, inputs, stride, ok);
        gp_consumer_complete(shared->consumer, count, handles, inputs, stride, ok);
        count = gp_client_take_finished(shared->client, TAG_BATCH, tags, ok, outputs);
        for (uint32_t i = 0; i < count; i++) {
            CHECK(memcmp(outputs + (size_t)i * GP_MAX_BYTES + 8, &tags[i], sizeof(tags[i])) == 0);
            CHECK(ok[i] != GP_FINISHED_ERR);
            atomic_fetch_add(ok[i] == GP_FINISHED_OK ? &shared->tags_received : &shared->tags_dropped, 1);
        }
    }
    free(inputs);
    free(outputs);
    return NULL;
}

static void run(uint32_t depth, int rounds)
{
    struct shared shared = {.rounds = rounds, .take_lock = PTHREAD_MUTEX_INITIALIZER};
    void *(*const producers[])(void *) = {blocking_producer, tag_producer, orphaning_producer};
    pthread_t threads[3 * THREADS], workers[WORKERS];
    struct gp_client_stats stats;
    struct gp_consumer_stats consumed;
    EVP_PKEY *pkey;

    shared.client = gp_client_new(depth);
    shared.consumer = shared.client != NULL ? gp_consumer_new(shared.client) : NULL;
    CHECK(shared.consumer != NULL);
    pkey = EVP_PKEY_Q_keygen(gp_inner_libctx(), NULL, "RSA", (size_t)2048);
    CHECK(pkey != NULL);
    shared.key = gp_key_new(pkey);
    EVP_PKEY_free(pkey);
    shared.key_handle = gp_client_add_key(shared.client, shared.key);
    CHECK(shared.key_handle != 0);
    for (int i = 0; i < WORKERS; i++)
        pthread_create(&workers[i], NULL, worker, &shared);
    for (int i = 0; i < 3 * THREADS; i++)
        pthread_create(&threads[i], NULL, producers[i % 3], &shared);
    for (int i = 0; i < 3 * THREADS; i++)
        pthread_join(threads[i], NULL);
    do
        gp_client_get_stats(shared.client, &stats);
    while (stats.in_use > 0 || stats.queued > 0);
    atomic_store(&shared.stop, 1);
    for (int i = 0; i < WORKERS; i++)
        pthread_join(workers[i], NULL);
    gp_client_get_stats(shared.client, &stats);
    CHECK(atomic_load(&shared.tags_received) == atomic_load(&shared.tags_sent));
    gp_consumer_get_stats(shared.consumer, &consumed);
    CHECK(stats.direct == 0 && consumed.failed == 0);
    printf("depth %u: %llu submitted, %llu orphaned, %llu retries\n", depth, (unsigned long long)stats.submitted,
           (unsigned long long)stats.orphaned, (unsigned long long)stats.retries);

    /* Closing with a full queue and a wait queue: those in it are told, those submitted can still be completed. */
    uint8_t input[GP_MAX_BYTES] = {0}, outputs[TAG_BATCH * GP_MAX_BYTES], ok[TAG_BATCH];
    uint64_t tags[TAG_BATCH], oldest[GP_CLASSES];
    uint32_t waiting[GP_CLASSES];
    for (uint32_t i = 0; i < depth; i++)
        CHECK(gp_client_submit(shared.client, shared.key_handle, input, i, 0) == GP_SUBMIT_OK);
    CHECK(gp_client_submit(shared.client, shared.key_handle, input, depth, 0) == GP_SUBMIT_FULL);
    CHECK(gp_client_submit(shared.client, shared.key_handle, input, 77, 1) == GP_SUBMIT_OK);
    gp_client_close(shared.client);
    CHECK(gp_client_submit(shared.client, shared.key_handle, input, 0, 1) == GP_SUBMIT_CLOSED);
    CHECK(gp_client_take_finished(shared.client, TAG_BATCH, tags, ok, outputs) == 1);
    CHECK(tags[0] == 77 && ok[0] == GP_FINISHED_CLOSED);
    gp_consumer_wait(shared.consumer, 0, 0, NULL, waiting, oldest);
    CHECK(waiting[0] == depth);
    CHECK(gp_request_private_op(shared.client, shared.key, shared.key_handle, input, outputs) == 1); /* at once */
    gp_client_remove_key(shared.client, shared.key_handle);
    gp_key_free(shared.key);
    gp_consumer_free(shared.consumer);
    gp_client_free(shared.client);
}

int main(int argc, char **argv)
{
    int rounds = argc > 1 ? atoi(argv[1]) : 2000;

    CHECK(gp_client_new(0) == NULL && gp_client_new(GP_MAX_DEPTH + 1) == NULL);
    run(1, rounds);
    run(2, rounds);
    run(7, rounds);
    run(64, rounds);
    puts("queue_stress: passed");
    return 0;
}
