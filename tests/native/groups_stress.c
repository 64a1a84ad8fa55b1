/* Stress of groups without a batching thread: threads that sleep until another computes for them, several keys and size
 * classes, requests that are given up at any moment, and keys that are removed meanwhile.
 *
 * No ASYNC job here: thread sanitizers can't follow OpenSSL's fibres. jobs_in_groups_stress.c has the jobs. */
#include "queue/groups.h"

#include "queue/counts.h"
#include "queue/request.h"
#include "returning_kernels.h"

#define THREADS 12
#define KEYS 3

static const struct gp_group_settings settings = {
    .kernels = &returning_kernels, .pretend = 1, .most = 8, .max_wait_ns = 5000000};
static gp_key *keys[KEYS];
static gp_key_handle handles[KEYS];
static gp_client *client;
static gp_groups *groups;
static _Atomic uint64_t given_up;

static void number_for(uint8_t *input, uint32_t bytes, int seed)
{
    memset(input, 0, bytes);
    memcpy(input + 8, &seed, sizeof(seed));
}

/* As gp_private_op() does it. */
static void *caller(void *argument)
{
    const int rounds = *(int *)argument;
    uint8_t input[GP_MAX_BYTES], output[GP_MAX_BYTES];

    for (int i = 0; i < rounds; i++) {
        const gp_key *key = keys[i % KEYS];
        uint64_t began = gp_now_ns();

        number_for(input, key->bytes, i + 1);
        if (gp_groups_is_alone(groups, key->bytes, GP_SLEEPS, began)) {
            CHECK(gp_key_private(key, input, output));
            gp_count(&gp_counts_of(GP_CLASS_OF(key->bytes))->singles, 1);
            gp_groups_computed_alone(groups, key->bytes, began);
        } else {
            CHECK(gp_request_private_op(client, keys[i % KEYS], handles[i % KEYS], input, output));
        }
        CHECK(is_result(key, input, output));
    }
    return NULL;
}

/* What becomes of a request when its connection is freed. */
static void *leaver(void *argument)
{
    const int rounds = *(int *)argument;
    uint8_t input[GP_MAX_BYTES];

    for (int i = 0; i < rounds; i++) {
        struct gp_waiter waiter = {.kind = GP_WAITER_THREAD, .key = handles[i % KEYS]};
        uint32_t bytes, slot = gp_client_claim(client, NULL);
        gp_request_handle request;

        CHECK(slot < GP_MAX_DEPTH && gp_key_table_pin(gp_client_keys(client), waiter.key, &bytes));
        number_for(input, bytes, i + 1);
        request = gp_client_put(client, slot, &waiter, bytes, input, 1);
        CHECK(request != 0);
        if (i % 3 == 0)
            gp_groups_serve(client, request, GP_SLEEPS);
        for (int spin = 0; spin < (i % 7) * 50; spin++)
            (void)gp_client_poll(client, request);
        gp_client_orphan(client, request);
        atomic_fetch_add(&given_up, 1);
    }
    return NULL;
}

static void *remover(void *argument)
{
    const int rounds = *(int *)argument;
    uint8_t input[GP_MAX_BYTES], output[GP_MAX_BYTES];

    for (int i = 0; i < rounds; i++) {
        gp_key_handle handle = gp_client_add_key(client, keys[0]);

        number_for(input, keys[0]->bytes, i + 1);
        CHECK(handle != 0 && gp_request_private_op(client, keys[0], handle, input, output));
        CHECK(is_result(keys[0], input, output));
        gp_client_remove_key(client, handle);
    }
    return NULL;
}

int main(int argc, char **argv)
{
    static const size_t bits[KEYS] = {2048, 2048, 3072};
    void *(*const kinds[])(void *) = {caller, caller, leaver, remover};
    int rounds = argc > 1 ? atoi(argv[1]) : 150;
    uint64_t computed = 0, grouped = 0, formed = 0;
    struct gp_client_stats stats;
    pthread_t threads[THREADS];

    groups = gp_groups_of_process(&settings);
    CHECK(groups != NULL && gp_groups_of_process(&settings) == groups);
    client = gp_groups_client(groups);
    CHECK(client != NULL);
    for (int i = 0; i < KEYS; i++) {
        keys[i] = make_key(bits[i]);
        handles[i] = gp_client_add_key(client, keys[i]);
    }
    for (int i = 0; i < THREADS; i++)
        CHECK(pthread_create(&threads[i], NULL, kinds[i % 4], &rounds) == 0);
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    for (uint32_t i = 0; i < GP_CLASSES; i++) {
        struct gp_counts *counts = gp_counts_of(i);

        computed += atomic_load(&counts->singles) + atomic_load(&counts->grouped);
        grouped += atomic_load(&counts->grouped);
        formed += atomic_load(&counts->groups);
    }
    gp_client_get_stats(client, &stats);
    printf("%llu computed, %llu of them in %llu groups; %llu given up\n", (unsigned long long)computed,
           (unsigned long long)grouped, (unsigned long long)formed, (unsigned long long)given_up);
    CHECK(computed >= (uint64_t)rounds * (THREADS - THREADS / 4) && computed <= (uint64_t)rounds * THREADS);
    CHECK(grouped > formed); /* some were computed together */
    CHECK(stats.in_use == 0 && stats.keys == KEYS);
    for (int i = 0; i < KEYS; i++) {
        gp_client_remove_key(client, handles[i]);
        gp_key_free(keys[i]);
    }
    gp_client_get_stats(client, &stats);
    CHECK(stats.keys == 0);
    puts("groups_stress: passed");
    return 0;
}
