/* Requests that wait for company, and submitters that say when they have no more. */
#include <openssl/evp.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

#include "check.h"
#include "keys/libcrypto.h"
#include "process.h"
#include "queue/consumer.h"

#define BITS 2048
#define BYTES (BITS / 8)
#define SECOND 1000000000
#define NEVER UINT64_MAX / 4

static gp_client *client;
static gp_consumer *consumer;
static gp_key_handle key_handle;
static uint32_t waiting[GP_CLASSES];

static gp_request_handle submit(void)
{
    const uint8_t input[BYTES] = {2};
    struct gp_waiter waiter = {.kind = GP_WAITER_THREAD, .key = key_handle};
    uint32_t bytes, slot = gp_client_claim(client, NULL);

    CHECK(gp_key_table_pin(gp_client_keys(client), key_handle, &bytes) && bytes == BYTES);
    return gp_client_put(client, slot, &waiter, bytes, input, 0);
}

/* Waits with a rule for the class of the key, and no longer than timeout_ns; whether it returned before. */
static int returns(int64_t timeout_ns, uint32_t small, uint32_t least, uint64_t wait_ns)
{
    const struct gp_class_rule rules[GP_CLASSES] = {{.small = small, .least = least, .wait_ns = wait_ns}};
    uint64_t oldest[GP_CLASSES], start = gp_now_ns();

    gp_consumer_wait(consumer, timeout_ns, 1, rules, waiting, oldest);
    return gp_now_ns() - start < (uint64_t)timeout_ns;
}

static void complete(uint32_t count)
{
    gp_request_handle handles[16];
    gp_key_handle keys[16];
    uint8_t numbers[16 * BYTES], ok[16];
    uint64_t submitted[16];

    memset(ok, 1, sizeof(ok));
    CHECK(gp_consumer_take(consumer, 0, 16, handles, keys, numbers, submitted) == count);
    gp_consumer_complete(consumer, count, handles, numbers, BYTES, ok);
    for (uint32_t i = 0; i < count; i++)
        CHECK(gp_client_collect(client, handles[i], BYTES, NULL, 0));
}

/* Whether the consumer, asleep and watching, was woken since the last call. */
static int was_woken(void)
{
    gp_queue *queue = gp_client_queue(client);
    struct pollfd descriptor = {.fd = queue->doorbell, .events = POLLIN};
    uint64_t rings;
    int woken = poll(&descriptor, 1, 0) == 1;

    CHECK(!woken || read(queue->doorbell, &rings, sizeof(rings)) == sizeof(rings));
    atomic_store(&queue->header->sleeping, 1);
    return woken;
}

static void check_waiting(void)
{
    struct gp_small_batch batches[GP_SMALL_BATCHES];
    gp_request_handle requests[3];

    /* The first after a silence goes at once, whatever the rule. */
    submit();
    CHECK(returns(60LL * SECOND, 0, 8, SECOND / 1000) && waiting[0] == 1 && gp_consumer_held_ns(consumer, 0) == 0);
    CHECK(gp_consumer_is_alone(consumer, 0, SECOND / 1000) && !gp_consumer_is_alone(consumer, 0, NEVER));
    complete(1);

    /* One that follows waits for another, … */
    submit();
    CHECK(!returns(SECOND / 100, 0, 2, NEVER) && waiting[0] == 1);
    submit();
    CHECK(returns(60LL * SECOND, 0, 2, NEVER) && waiting[0] == 2);
    CHECK(gp_consumer_held_ns(consumer, 0) >= SECOND / 100);
    complete(2);

    /* … but no longer than the rule says, … */
    submit();
    submit();
    CHECK(returns(60LL * SECOND, 0, 8, SECOND / 100) && waiting[0] == 2);

    /* … and what was left waiting on purpose does not come back for nothing, but when more has come. */
    CHECK(!returns(SECOND / 100, 0, 1, 0) && waiting[0] == 2);
    submit();
    CHECK(returns(60LL * SECOND, 0, 1, 0) && waiting[0] == 3);
    complete(3);

    /* Small batches wait likewise, and one that has waited in vain is reported at once. */
    requests[0] = submit();
    CHECK(!returns(SECOND / 100, 8, 2, NEVER) && gp_consumer_small_batches(consumer, batches, 1) == 0);
    requests[1] = submit();
    CHECK(!returns(SECOND / 100, 8, 2, NEVER) && waiting[0] == 0);
    CHECK(gp_consumer_small_batches(consumer, batches, 1) == 1 && batches[0].requests == 2);
    CHECK(batches[0].newest_ns <= gp_now_ns() && batches[0].waited_ns >= SECOND / 100);
    CHECK(0 < batches[0].held_ns && batches[0].held_ns <= batches[0].waited_ns);
    requests[2] = submit();
    CHECK(returns(60LL * SECOND, 8, 2, SECOND / 2) && waiting[0] == 0);
    CHECK(gp_consumer_small_batches(consumer, batches, 1) == 1 && batches[0].requests == 1);
    CHECK(batches[0].held_ns > 0);
    for (int i = 0; i < 3; i++)
        CHECK(gp_client_collect(client, requests[i], BYTES, NULL, 0));
}

static void check_crowd(void)
{
    struct gp_small_batch batches[GP_SMALL_BATCHES];
    gp_request_handle handles[16], requests[2];
    gp_key_handle keys[16];
    uint8_t numbers[16 * BYTES], ok[16] = {1, 1, 1, 1, 1};
    uint64_t submitted[16];

    /* Five are computed, and three wait: eight are under way, also if nobody looks before the five are completed. */
    for (int i = 0; i < 5; i++)
        submit();
    CHECK(returns(60LL * SECOND, 0, 1, 0) && gp_consumer_crowd(consumer, 0).of_class == 5);
    CHECK(gp_consumer_take(consumer, 0, 5, handles, keys, numbers, submitted) == 5);
    CHECK(gp_consumer_crowd(consumer, 0).of_class == 0 && gp_consumer_crowd(consumer, 0).of_all == 0);
    for (int i = 0; i < 3; i++)
        submit();
    gp_consumer_complete(consumer, 5, handles, numbers, BYTES, ok);
    for (int i = 0; i < 5; i++)
        CHECK(gp_client_collect(client, handles[i], BYTES, NULL, 0));
    CHECK(returns(60LL * SECOND, 0, 1, 0) && waiting[0] == 3);
    CHECK(gp_consumer_crowd(consumer, 0).of_class == 8 && gp_consumer_crowd(consumer, 0).of_all == 8);
    CHECK(gp_consumer_crowd(consumer, 1).of_class == 0 && gp_consumer_crowd(consumer, 1).of_all == 8);
    complete(3);

    /* Who comes back after that is no more than one. */
    requests[0] = submit();
    returns(0, 8, 1, 0);
    CHECK(gp_client_collect(client, requests[0], BYTES, NULL, 0));
    requests[1] = submit();
    returns(0, 8, 1, 0);
    CHECK(gp_client_collect(client, requests[1], BYTES, NULL, 0));
    CHECK(gp_consumer_small_batches(consumer, batches, 1) == 2);
    CHECK(batches[0].crowd.of_class == 1 && batches[1].crowd.of_class == 1 && batches[1].crowd.of_all == 1);
}

static void check_turns(void)
{
    was_woken();
    submit();
    CHECK(was_woken());

    /* Where nothing waits for company, a turn changes nothing. */
    gp_client_hold_turns(client, 0);
    gp_turn_begin();
    submit();
    CHECK(was_woken() && gp_turn_suspend() == 0);
    gp_client_hold_turns(client, 1);

    /* A turn's requests wake the consumer at its end, … */
    gp_turn_begin();
    submit();
    CHECK(gp_turn_suspend() == 1 && !was_woken());
    gp_turn_begin();
    submit();
    CHECK(gp_turn_suspend() == 2 && !was_woken());
    gp_turn_end();
    CHECK(was_woken());
    gp_turn_end();
    CHECK(!was_woken());

    /* … or when they make a group. */
    gp_turn_begin();
    for (uint32_t i = 1; i < GP_TURN_REQUESTS; i++)
        submit();
    CHECK(!was_woken());
    submit();
    CHECK(was_woken() && gp_turn_suspend() == 0);

    /* Nothing depends on the end: whatever else is submitted wakes the consumer for all. */
    gp_turn_begin();
    submit();
    CHECK(gp_turn_suspend() == 1 && !was_woken());
    submit();
    CHECK(was_woken());
    gp_turn_end();
    atomic_store(&gp_client_queue(client)->header->sleeping, 0);
    returns(0, 0, 1, 0);
    complete(14);
}

int main(void)
{
    EVP_PKEY *pkey = EVP_PKEY_Q_keygen(gp_inner_libctx(), NULL, "RSA", (size_t)BITS);
    gp_key *key = gp_key_new(pkey);

    client = gp_client_new(16);
    consumer = gp_consumer_new(client);
    key_handle = gp_client_add_key(client, key);
    check_waiting();
    check_crowd();
    check_turns();
    gp_client_remove_key(client, key_handle);
    gp_key_free(key);
    EVP_PKEY_free(pkey);
    gp_consumer_free(consumer);
    gp_client_free(client);
    return 0;
}
