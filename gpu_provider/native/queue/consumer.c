/* The consumer's half of the queue: takes requests in batches, publishes results, wakes who waits. */
#define _GNU_SOURCE
#include <limits.h>
#include <linux/futex.h>
#include <openssl/crypto.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "queue/client_internal.h"

void gp_consumer_wake(gp_client *client)
{
    if (client->fork_epoch != gp_fork_epoch())
        return;
    atomic_store(&client->wake_requested, 1);
    gp_queue_ring_doorbell(&client->queue);
}

static void drop_waiter(gp_client *client, uint32_t slot)
{
    struct gp_waiter *waiter = &client->waiters[slot];

    if (waiter->kind == GP_WAITER_JOB)
        gp_wait_free(waiter->wait);
    gp_client_unpin_key(client, waiter->key, 1);
}

/* An orphaned request ends here. One thread wins the slot; the word tells. */
static void free_orphan(gp_client *client, uint32_t slot, uint32_t generation)
{
    uint32_t orphaned = GP_WORD(generation, GP_ORPHANED);

    if (!atomic_compare_exchange_strong_explicit(&client->queue.word[slot], &orphaned,
                                                 GP_WORD(generation, GP_CLAIMED), memory_order_acq_rel,
                                                 memory_order_acquire))
        return;
    drop_waiter(client, slot);
    OPENSSL_cleanse(client->queue.output + (size_t)slot * GP_MAX_BYTES, GP_MAX_BYTES);
    gp_client_release(client, slot);
}

static int change_state(gp_client *client, uint32_t slot, uint32_t generation, uint32_t from, uint32_t to)
{
    uint32_t expected = GP_WORD(generation, from);

    /* Sequentially consistent: gp_client_sleep_until_done() depends on the order with `asleep`. */
    return atomic_compare_exchange_strong(&client->queue.word[slot], &expected, GP_WORD(generation, to));
}

/* Moves what was submitted into the size classes; returns how many. */
static uint32_t drain_ring(gp_client *client)
{
    gp_queue *queue = &client->queue;
    uint32_t slot, drained = 0;

    while (gp_queue_pop(queue, &slot)) {
        uint32_t bytes = queue->bytes[slot];

        if (bytes > 3 * 64 && bytes <= GP_MAX_BYTES && client->waiting[GP_CLASS_OF(bytes)].count < queue->depth)
            gp_slot_list_push(&client->waiting[GP_CLASS_OF(bytes)], queue->depth, slot);
        drained++;
    }
    return drained;
}

const uint64_t gp_time_bounds_ns[GP_TIME_BOUNDS] = {
    100000,   300000,   1000000,   2000000,   3000000,    5000000,    10000000,
    20000000, 50000000, 100000000, 300000000, 1000000000, 3000000000,
};

static uint32_t time_bucket(uint64_t ns)
{
    uint32_t bucket = 0;

    while (bucket < GP_TIME_BOUNDS && ns > gp_time_bounds_ns[bucket])
        bucket++;
    return bucket;
}

static void count_small(gp_client *client, uint32_t class_index, uint32_t count, uint32_t again, const uint8_t *ok,
                        uint64_t waited_ns, uint64_t executed_ns)
{
    struct gp_small_stats *small = &client->small[class_index];

    pthread_mutex_lock(&client->small_lock);
    small->requests += count;
    small->again += again;
    for (uint32_t i = 0; i < count; i++)
        small->failed += !ok[i];
    small->sizes[count - 1]++;
    small->waited[time_bucket(waited_ns)]++;
    small->waited_ns += waited_ns;
    small->executed[time_bucket(executed_ns)]++;
    small->executed_ns += executed_ns;
    pthread_mutex_unlock(&client->small_lock);
}

void gp_client_get_small_stats(gp_client *client, struct gp_small_stats *stats)
{
    memset(stats, 0, GP_CLASSES * sizeof(*stats));
    if (client->fork_epoch != gp_fork_epoch())
        return;
    pthread_mutex_lock(&client->small_lock);
    memcpy(stats, client->small, sizeof(client->small));
    pthread_mutex_unlock(&client->small_lock);
}

/* The class of all that waits, if it is one class and no more than its limit; GP_CLASSES otherwise. */
static uint32_t small_class(const gp_client *client, const uint32_t *small)
{
    uint32_t class_index = GP_CLASSES;
    const struct gp_slot_list *list;

    for (uint32_t i = 0; i < GP_CLASSES; i++) {
        if (client->waiting[i].count == 0)
            continue;
        if (class_index != GP_CLASSES || client->waiting[i].count > small[i]
            || client->waiting[i].count > GP_SMALL_BATCH)
            return GP_CLASSES;
        class_index = i;
    }
    if (class_index == GP_CLASSES)
        return GP_CLASSES;
    /* A future has no callback: who takes the finished ones must hear of it. */
    list = &client->waiting[class_index];
    for (uint32_t i = 0; i < list->count; i++)
        if (client->waiters[list->slots[(list->first + i) % client->queue.depth]].kind == GP_WAITER_TAG)
            return GP_CLASSES;
    return class_index;
}

/* Computes what waits, if it is a small batch. 1 if it did. */
static int serve_small(gp_client *client, const uint32_t *small)
{
    uint8_t inputs[GP_SMALL_BATCH * GP_MAX_BYTES], outputs[GP_SMALL_BATCH * GP_MAX_BYTES], ok[GP_SMALL_BATCH];
    uint64_t handles[GP_SMALL_BATCH], keys[GP_SMALL_BATCH], submitted_ns[GP_SMALL_BATCH], start;
    uint32_t class_index = small_class(client, small), count, stride, again;

    if (class_index == GP_CLASSES)
        return 0;
    count = gp_consumer_take(client, class_index, GP_SMALL_BATCH, handles, keys, inputs, submitted_ns);
    if (count == 0)
        return 1; /* they were orphans */
    stride = GP_CLASS_BYTES(class_index);
    start = gp_now_ns();
    again = gp_cpu_private(client, count, keys, inputs, outputs, stride, ok);
    for (uint32_t i = 0; again > 0 && i < count; i++)
        if (!ok[i])
            gp_libcrypto_private(client, 1, keys + i, inputs + (size_t)i * stride, outputs + (size_t)i * stride, stride,
                                 ok + i);
    /* Counted first: who gets a result sees it counted. */
    count_small(client, class_index, count, again, ok, start - submitted_ns[0], gp_now_ns() - start);
    gp_consumer_complete(client, count, handles, outputs, stride, ok);
    OPENSSL_cleanse(outputs, (size_t)count * stride);
    return 1;
}

uint64_t gp_consumer_wait(gp_client *client, int64_t timeout_ns, int watch_submissions, const uint32_t *small,
                          uint32_t *waiting, uint64_t *oldest_ns)
{
    uint64_t deadline = timeout_ns < 0 ? UINT64_MAX : gp_now_ns() + (uint64_t)timeout_ns;
    uint32_t drained = drain_ring(client);

    for (;;) {
        uint64_t now;

        gp_wait_announce_retries(client);
        if (atomic_exchange(&client->wake_requested, 0))
            break;
        while (small != NULL && serve_small(client, small))
            drained = drain_ring(client);
        if (watch_submissions && drained > 0)
            break;
        now = deadline == UINT64_MAX ? 0 : gp_now_ns();
        if (now >= deadline)
            break;
        gp_queue_sleep(&client->queue, deadline == UINT64_MAX ? -1 : (int64_t)(deadline - now), watch_submissions);
        drained += drain_ring(client);
    }
    for (uint32_t i = 0; i < GP_CLASSES; i++) {
        const struct gp_slot_list *list = &client->waiting[i];

        waiting[i] = list->count;
        oldest_ns[i] = list->count > 0 ? client->queue.submitted_ns[list->slots[list->first]] : 0;
    }
    return atomic_load(&client->removed_keys);
}

/* The slots of a large batch are cold, and so are the connections that wait for them: they are fetched some requests
 * ahead. */
enum { AHEAD = 24, WAITER_AHEAD = 16, CONTEXT_AHEAD = 8 };

static void prefetch_input(const gp_queue *queue, const struct gp_slot_list *list, uint32_t stride)
{
    const uint32_t slot = list->slots[(list->first + AHEAD) % queue->depth];

    __builtin_prefetch(&queue->word[slot], 1);
    for (uint32_t byte = 0; byte < stride; byte += 64)
        __builtin_prefetch(queue->input + (size_t)slot * GP_MAX_BYTES + byte);
}

uint32_t gp_consumer_take(gp_client *client, uint32_t class_index, uint32_t count, uint64_t *handles, uint64_t *keys,
                          uint8_t *inputs, uint64_t *submitted_ns)
{
    gp_queue *queue = &client->queue;
    struct gp_slot_list *list = &client->waiting[class_index];
    uint32_t stride = GP_CLASS_BYTES(class_index), taken = 0;

    while (taken < count && list->count > 0) {
        if (list->count > AHEAD)
            prefetch_input(queue, list, stride);
        uint32_t slot = gp_slot_list_pop(list, queue->depth);
        uint32_t generation = GP_GENERATION(atomic_load_explicit(&queue->word[slot], memory_order_acquire));
        uint32_t bytes = queue->bytes[slot];
        uint8_t *input = inputs + (size_t)taken * stride;

        if (!change_state(client, slot, generation, GP_SUBMITTED, GP_RUNNING)) {
            free_orphan(client, slot, generation);
            continue;
        }
        if (bytes > stride)
            bytes = stride; /* changed since it was sorted: a hostile client harms its own request */
        handles[taken] = (uint64_t)generation << 32 | slot;
        keys[taken] = queue->key[slot];
        submitted_ns[taken] = queue->submitted_ns[slot];
        memcpy(input, queue->input + (size_t)slot * GP_MAX_BYTES, bytes);
        memset(input + bytes, 0, stride - bytes);
        taken++;
    }
    return taken;
}

static void wake(gp_client *client, uint32_t slot, const struct gp_waiter *waiter)
{
    switch (waiter->kind) {
    case GP_WAITER_JOB:
        gp_wait_notify(waiter->wait);
        gp_wait_free(waiter->wait);
        break;
    case GP_WAITER_TAG:
        pthread_mutex_lock(&client->lock);
        gp_slot_list_push(&client->finished, client->queue.depth, slot);
        pthread_mutex_unlock(&client->lock);
        break;
    case GP_WAITER_THREAD:
        break;
    }
    /* Any kind: a job that may not pause sleeps too. If the slot is another request's by now, a sleeper looks once in vain. */
    if (atomic_load(&client->waiters[slot].asleep))
        syscall(SYS_futex, &client->queue.word[slot], FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

/* Requests in a row with the same key: it is unpinned for all of them at once. */
struct pinned {
    uint64_t key;
    uint32_t pins;
};

static void collect_pin(gp_client *client, struct pinned *pinned, uint64_t key)
{
    if (pinned->key != key && pinned->pins > 0) {
        gp_client_unpin_key(client, pinned->key, pinned->pins);
        pinned->pins = 0;
    }
    pinned->key = key;
    pinned->pins++;
}

static void complete(gp_client *client, uint64_t handle, const uint8_t *output, uint32_t stride, int ok,
                     struct pinned *pinned)
{
    uint32_t slot = gp_handle_slot(handle), generation = gp_handle_generation(handle);
    struct gp_waiter waiter;

    if (slot >= client->queue.depth)
        return;
    if (!change_state(client, slot, generation, GP_RUNNING, GP_FINISHING)) {
        free_orphan(client, slot, generation);
        return;
    }
    /* A copy: as soon as DONE is published the slot may be someone else's. */
    waiter.kind = client->waiters[slot].kind;
    waiter.wait = client->waiters[slot].wait;
    waiter.key = client->waiters[slot].key;
    if (ok)
        memcpy(client->queue.output + (size_t)slot * GP_MAX_BYTES, output, stride);
    else if (waiter.kind == GP_WAITER_JOB)
        gp_wait_set_error(waiter.wait);
    /* Counted first: who gets a result sees it counted. */
    atomic_fetch_add_explicit(&client->completed, 1, memory_order_relaxed);
    if (!ok)
        atomic_fetch_add_explicit(&client->failed, 1, memory_order_relaxed);
    if (!change_state(client, slot, generation, GP_FINISHING, ok ? GP_DONE_OK : GP_DONE_ERR)) {
        free_orphan(client, slot, generation);
        return;
    }
    collect_pin(client, pinned, waiter.key);
    wake(client, slot, &waiter);
}

static void prefetch_slot(const gp_client *client, uint64_t handle, uint32_t stride)
{
    const uint32_t slot = gp_handle_slot(handle);

    if (slot >= client->queue.depth)
        return;
    __builtin_prefetch(&client->queue.word[slot], 1);
    __builtin_prefetch(&client->waiters[slot]);
    for (uint32_t byte = 0; byte < stride; byte += 64)
        __builtin_prefetch(client->queue.output + (size_t)slot * GP_MAX_BYTES + byte, 1);
}

/* Who waits for a slot; NULL if that is no job. The slot is RUNNING, so nobody changes it. */
static struct gp_wait *wait_of(const gp_client *client, uint64_t handle)
{
    const uint32_t slot = gp_handle_slot(handle);

    if (slot >= client->queue.depth || client->waiters[slot].kind != GP_WAITER_JOB)
        return NULL;
    return client->waiters[slot].wait;
}

void gp_consumer_complete(gp_client *client, uint32_t count, const uint64_t *handles, const uint8_t *outputs,
                          uint32_t stride, const uint8_t *ok)
{
    struct pinned pinned = {0};

    for (uint32_t i = 0; i < count; i++) {
        if (i + AHEAD < count)
            prefetch_slot(client, handles[i + AHEAD], stride);
        if (i + WAITER_AHEAD < count)
            __builtin_prefetch(wait_of(client, handles[i + WAITER_AHEAD]), 1);
        if (i + CONTEXT_AHEAD < count && wait_of(client, handles[i + CONTEXT_AHEAD]) != NULL)
            gp_wait_prefetch(wait_of(client, handles[i + CONTEXT_AHEAD]));
        complete(client, handles[i], outputs + (size_t)i * stride, stride, ok[i], &pinned);
    }
    if (pinned.pins > 0)
        gp_client_unpin_key(client, pinned.key, pinned.pins);
}

/* Once the client is closed nothing is released into the line any more, so `dropped` only shrinks. */
static struct gp_in_line *pop_dropped(gp_client *client)
{
    struct gp_in_line *entry = client->dropped.first;

    if (entry != NULL) {
        client->dropped.first = entry->next;
        client->dropped.count--;
        if (entry->next == NULL)
            client->dropped.last = NULL;
        else
            entry->next->previous = NULL;
    }
    return entry;
}

uint32_t gp_consumer_take_finished(gp_client *client, uint32_t count, uint64_t *tags, uint8_t *ok, uint8_t *outputs)
{
    gp_queue *queue = &client->queue;

    for (uint32_t taken = 0; taken < count; taken++) {
        struct gp_in_line *dropped = NULL;
        uint32_t slot = GP_NO_SLOT;

        pthread_mutex_lock(&client->lock);
        if (client->finished.count > 0)
            slot = gp_slot_list_pop(&client->finished, queue->depth);
        else
            dropped = pop_dropped(client);
        pthread_mutex_unlock(&client->lock);
        if (slot != GP_NO_SLOT) {
            uint32_t word = atomic_load_explicit(&queue->word[slot], memory_order_acquire);

            tags[taken] = client->waiters[slot].tag;
            ok[taken] = gp_client_collect(client, (uint64_t)GP_GENERATION(word) << 32 | slot, GP_MAX_BYTES,
                                          outputs + (size_t)taken * GP_MAX_BYTES, 0)
                            ? GP_FINISHED_OK
                            : GP_FINISHED_ERR;
        } else if (dropped != NULL) {
            tags[taken] = dropped->tag;
            ok[taken] = GP_FINISHED_CLOSED;
            free(dropped);
        } else {
            return taken;
        }
    }
    return count;
}
