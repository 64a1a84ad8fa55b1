/* The processor's backend over kernels that fail: a worker and a small batch in the batching thread. */
#include <openssl/evp.h>
#include <openssl/rsa.h>
#include <string.h>

#include "check.h"
#include "keys/libcrypto.h"
#include "queue/consumer.h"

#define BITS 2048
#define BYTES (BITS / 8)
#define ROWS 11

static int healthy, keys_made;

static enum gpk_status key_new(gpk_key **key, struct gpk_number n, struct gpk_number e, struct gpk_number p,
                               struct gpk_number q, struct gpk_number dp, struct gpk_number dq, struct gpk_number qinv)
{
    CHECK(n.size == BYTES && (n.bytes[0] & 1) && e.size == 3 && e.bytes[0] == 1 && e.bytes[2] == 1);
    CHECK(p.size == BYTES / 2 && q.size == BYTES / 2 && dp.size > 0 && dq.size > 0 && qinv.size > 0);
    *key = malloc(1);
    CHECK(*key != NULL);
    keys_made++;
    return GPK_OK;
}

static void key_free(gpk_key *key)
{
    free(key);
    keys_made--;
}

static int key_is_locked(const gpk_key *key)
{
    return key != NULL;
}

/* Leaves out each row whose number divides by three, unless healthy. What it computes is zero: results count as right
 * by ok. */
static enum gpk_status private_op(enum gpk_isa isa, uint32_t count, gpk_key *const *keys, const uint8_t *inputs,
                                  uint8_t *outputs, uint32_t stride, uint8_t *ok)
{
    (void)isa, (void)keys, (void)inputs;
    memset(outputs, 0, (size_t)count * stride);
    for (uint32_t i = 0; i < count; i++)
        ok[i] = healthy || i % 3 != 0;
    return GPK_OK;
}

static const struct gpk_functions kernels = {GPK_ISA_PORTABLE, 4, key_new, key_free, key_is_locked, private_op, NULL};

static gp_request_handle submit(gp_client *client, gp_key_handle handle, const uint8_t *input)
{
    struct gp_waiter waiter = {.kind = GP_WAITER_THREAD, .key = handle};
    uint32_t bytes, slot = gp_client_claim(client, NULL);

    CHECK(gp_key_table_pin(gp_client_keys(client), handle, &bytes) && bytes == BYTES);
    return gp_client_put(client, slot, &waiter, bytes, input, 0);
}

/* Preparing thousands of keys in one batch would take longer than a watchdog waits. */
static void prepares_one_key_at_a_time(gp_client *client, EVP_PKEY *pkey)
{
    uint8_t inputs[3 * BYTES] = {2}, outputs[3 * BYTES], ok[3];
    gp_key *key[3];
    gp_key_handle handle[3];

    healthy = 1;
    for (int i = 0; i < 3; i++) {
        key[i] = gp_key_new(pkey);
        handle[i] = gp_key_table_add(gp_client_keys(client), key[i]);
    }
    CHECK(gp_cpu_private(gp_client_cpu(client), 1, handle, inputs, outputs, BYTES, ok) == 0);
    CHECK(keys_made == 0 && ok[0]); /* a lone row is OpenSSL's */
    for (int made = 1; made <= 3; made++) {
        CHECK(gp_cpu_private(gp_client_cpu(client), 3, handle, inputs, outputs, BYTES, ok) == 0);
        CHECK(keys_made == made && ok[0] && ok[1] && ok[2]);
    }
    for (int i = 0; i < 3; i++) {
        gp_client_remove_key(client, handle[i]);
        gp_key_free(key[i]);
    }
    CHECK(keys_made == 0);
}

int main(void)
{
    gp_client *client = gp_client_new(16);
    gp_consumer *consumer = gp_consumer_new(client);
    gp_cpu *cpu = gp_client_cpu(client);
    EVP_PKEY *pkey = EVP_PKEY_Q_keygen(gp_inner_libctx(), NULL, "RSA", (size_t)BITS);
    gp_key *key = gp_key_new(pkey);
    uint8_t inputs[ROWS * BYTES] = {0}, outputs[ROWS * BYTES], ok[ROWS];
    gp_key_handle handle, keys[ROWS];
    uint64_t oldest[GP_CLASSES];
    uint32_t waiting[GP_CLASSES];
    const struct gp_class_rule small[GP_CLASSES] = {
        {.small = 8}, {.small = 8}, {.small = 8}, {.small = 8}, {.small = 8}};
    struct gp_client_stats counters;
    struct gp_small_batch batches[GP_SMALL_BATCHES];

    healthy = 1; /* it fails later, or the key would not be given to it at all */
    gp_cpu_use_kernels(cpu, &kernels, 2);
    handle = gp_client_add_key(client, key);
    for (int i = 0; i < ROWS; i++) {
        inputs[i * BYTES] = (uint8_t)(i + 2);
        keys[i] = handle;
    }
    gp_client_get_stats(client, &counters);
    CHECK(keys_made == 1 && counters.keys == 1 && counters.kernel_keys == 1 && counters.locked_keys == 1);

    /* 8 rows in groups, and a rest of 3, which is enough for one more: rows 0, 3, 6, 9 fail. */
    healthy = 0;
    CHECK(gp_cpu_private(cpu, ROWS, keys, inputs, outputs, BYTES, ok) == 4);
    for (int i = 0; i < ROWS; i++)
        CHECK(ok[i] == (i % 3 != 0));
    /* A rest of one is OpenSSL's. */
    CHECK(gp_cpu_private(cpu, 5, keys, inputs, outputs, BYTES, ok) == 2 && ok[4]);
    CHECK(gp_libcrypto_verify(gp_client_keys(client), 1, keys, inputs + 4 * BYTES, outputs + 4 * BYTES, BYTES, ok + 4)
          == 0);

    for (int i = 0; i < 4; i++)
        CHECK(submit(client, handle, inputs + i * BYTES) != 0);
    gp_consumer_wait(consumer, 0, 1, small, waiting, oldest);
    CHECK(gp_consumer_small_batches(consumer, batches, 1) == 1 && batches[0].class_index == 0);
    CHECK(waiting[0] == 0 && batches[0].requests == 4 && batches[0].failed == 0 && batches[0].again == 2);

    /* No record is lost: while there is no room for one more, what is submitted is left to the caller. */
    for (uint32_t i = 0; i < GP_SMALL_BATCHES; i++) {
        gp_request_handle request = submit(client, handle, inputs);

        gp_consumer_wait(consumer, 0, 1, small, waiting, oldest);
        CHECK(waiting[0] == 0 && gp_client_collect(client, request, BYTES, NULL, 0) == 1);
    }
    CHECK(submit(client, handle, inputs) != 0);
    gp_consumer_wait(consumer, -1, 1, small, waiting, oldest);
    CHECK(waiting[0] == 1 && gp_consumer_small_batches(consumer, batches, 0) == GP_SMALL_BATCHES);
    CHECK(gp_consumer_small_batches(consumer, batches, 1) == GP_SMALL_BATCHES);
    gp_consumer_wait(consumer, 0, 1, small, waiting, oldest);
    CHECK(waiting[0] == 0 && gp_consumer_small_batches(consumer, batches, 1) == 1);

    /* A key that fails its trial is left to OpenSSL. */
    gp_client_remove_key(client, handle);
    gp_key_free(key);
    CHECK(keys_made == 0);
    key = gp_key_new(pkey);
    handle = gp_client_add_key(client, key);
    CHECK(keys_made == 0);
    CHECK(gp_cpu_private(cpu, 1, &handle, inputs, outputs, BYTES, ok) == 0 && ok[0]);

    prepares_one_key_at_a_time(client, pkey);
    gp_client_remove_key(client, handle);
    gp_key_free(key);
    EVP_PKEY_free(pkey);
    gp_client_close(client);
    gp_consumer_free(consumer);
    gp_client_free(client);
    return 0;
}
