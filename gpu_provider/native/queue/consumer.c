#define _GNU_SOURCE
#include "queue/consumer.h"

#include <limits.h>
#include <linux/futex.h>
#include <openssl/crypto.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "keys/cpu.h"
#include "keys/libcrypto.h"
#include "process.h"
#include "queue/slot_list.h"
#include "queue/wait.h"

struct gp_consumer {
    gp_client *client;
    gp_queue *queue;
    struct gp_waiter *waiters;
    _Atomic uint64_t completed, failed;
    _Atomic uint64_t completed_ns; /* when a batch was completed last */

    /* the one thread of gp_consumer_wait() */
    struct gp_slot_list waiting[GP_CLASSES];
    uint64_t last_ns[GP_CLASSES];       /* the last submission */
    uint64_t silence_ns[GP_CLASSES];    /* before the oldest that waits */
    uint8_t awaited[GP_CLASSES];        /* in this wait: something was submitted, or waited for company */
    uint64_t held_since_ns[GP_CLASSES]; /* what waits for company has done so since; 0: nothing does */
    uint64_t held_ns[GP_CLASSES];       /* how long what is ready did */

    struct gp_crowd_counts crowd;

    pthread_mutex_t small_lock; /* never held together with another */
    struct gp_small_batch small[GP_SMALL_BATCHES];
    uint32_t small_count;
};

gp_consumer *gp_consumer_new(gp_client *client)
{
    gp_consumer *consumer = calloc(1, sizeof(*consumer));
    int made = 1;

    if (consumer == NULL)
        return NULL;
    consumer->client = gp_client_up_ref(client);
    consumer->queue = gp_client_queue(client);
    consumer->waiters = gp_client_waiters(client);
    pthread_mutex_init(&consumer->small_lock, NULL);
    for (uint32_t i = 0; i < GP_CLASSES; i++) {
        consumer->waiting[i].slots = calloc(consumer->queue->depth, sizeof(uint32_t));
        made &= consumer->waiting[i].slots != NULL;
    }
    if (made)
        return consumer;
    gp_consumer_free(consumer);
    return NULL;
}

void gp_consumer_free(gp_consumer *consumer)
{
    if (consumer == NULL)
        return;
    if (!gp_client_is_forked(consumer->client))
        pthread_mutex_destroy(&consumer->small_lock);
    gp_client_free(consumer->client);
    for (uint32_t i = 0; i < GP_CLASSES; i++)
        free(consumer->waiting[i].slots);
    free(consumer);
}

void gp_consumer_get_stats(const gp_consumer *consumer, struct gp_consumer_stats *stats)
{
    stats->completed = atomic_load(&consumer->completed);
    stats->failed = atomic_load(&consumer->failed);
}

static void drop_waiter(gp_consumer *consumer, uint32_t slot)
{
    struct gp_waiter *waiter = &consumer->waiters[slot];

    if (waiter->kind == GP_WAITER_JOB)
        gp_wait_free(waiter->wait);
    gp_client_unpin_key(consumer->client, waiter->key, 1);
}

/* An orphaned request ends here. One thread wins the slot; the word tells. */
static void free_orphan(gp_consumer *consumer, uint32_t class_index, uint32_t slot, uint32_t generation)
{
    uint32_t orphaned = GP_WORD(generation, GP_ORPHANED);

    if (!atomic_compare_exchange_strong_explicit(&consumer->queue->word[slot], &orphaned,
                                                 GP_WORD(generation, GP_CLAIMED), memory_order_acq_rel,
                                                 memory_order_acquire))
        return;
    gp_crowd_ends(&consumer->crowd, class_index);
    drop_waiter(consumer, slot);
    OPENSSL_cleanse(consumer->queue->output + (size_t)slot * GP_MAX_BYTES, GP_MAX_BYTES);
    gp_client_release(consumer->client, slot);
}

static int change_state(gp_consumer *consumer, uint32_t slot, uint32_t generation, uint32_t from, uint32_t to)
{
    uint32_t expected = GP_WORD(generation, from);

    /* Sequentially consistent: gp_client_sleep_until_done() depends on the order with `wake`. */
    return atomic_compare_exchange_strong(&consumer->queue->word[slot], &expected, GP_WORD(generation, to));
}

/* Where nothing of a class waits, how long nothing was submitted until now. The time in which we computed is none in
 * which others could have submitted: they may have had no processor. */
static uint64_t silence_before(const gp_consumer *consumer, uint32_t class_index, uint64_t submitted_ns)
{
    uint64_t last_ns = consumer->last_ns[class_index], completed_ns = atomic_load(&consumer->completed_ns);

    if (completed_ns > last_ns)
        last_ns = completed_ns;
    return submitted_ns > last_ns ? submitted_ns - last_ns : 0;
}

void gp_consumer_drain(gp_consumer *consumer)
{
    const struct gp_source *source = gp_client_source(consumer->client);
    gp_queue *queue = consumer->queue;
    uint32_t slot;

    if (source != NULL)
        source->submit(source->context, consumer->client);
    while (gp_queue_pop(queue, &slot) > 0) {
        uint32_t bytes = queue->bytes[slot], class_index = GP_CLASS_OF(bytes);
        uint64_t submitted_ns = queue->submitted_ns[slot];

        if (bytes <= 3 * 64 || bytes > GP_MAX_BYTES || consumer->waiting[class_index].count == queue->depth)
            continue;
        if (consumer->waiting[class_index].count == 0)
            consumer->silence_ns[class_index] = silence_before(consumer, class_index, submitted_ns);
        consumer->last_ns[class_index] = submitted_ns;
        gp_slot_list_push(&consumer->waiting[class_index], queue->depth, slot);
        consumer->awaited[class_index] = 1;
        gp_crowd_begins(&consumer->crowd, class_index, submitted_ns > atomic_load(&consumer->completed_ns));
    }
    gp_crowd_looked(&consumer->crowd);
}

/* ---- waiting for company ---- */

static const struct gp_class_rule no_rules[GP_CLASSES];

int gp_consumer_is_alone(const gp_consumer *consumer, uint32_t class_index, uint64_t wait_ns)
{
    return consumer->waiting[class_index].count == 1 && consumer->silence_ns[class_index] > wait_ns;
}

/* Until when the requests of a class wait for company; 0: no longer. */
static uint64_t due_ns(const gp_consumer *consumer, uint32_t class_index, const struct gp_class_rule *rule)
{
    const struct gp_slot_list *list = &consumer->waiting[class_index];

    if (list->count >= rule->least || gp_consumer_is_alone(consumer, class_index, rule->wait_ns))
        return 0;
    return consumer->queue->submitted_ns[list->slots[list->first]] + rule->wait_ns;
}

/* Whether a class has something to launch. If not, and it has anything, it waits for company from now on. */
static int is_ready(gp_consumer *consumer, uint32_t class_index, const struct gp_class_rule *rules, uint64_t now)
{
    uint64_t *since_ns = &consumer->held_since_ns[class_index];

    if (consumer->waiting[class_index].count == 0)
        return 0;
    if (due_ns(consumer, class_index, &rules[class_index]) > now) {
        consumer->awaited[class_index] = 1;
        if (*since_ns == 0)
            *since_ns = now;
        return 0;
    }
    if (*since_ns != 0)
        consumer->held_ns[class_index] += now - *since_ns;
    *since_ns = 0;
    return 1;
}

/* Whether there is something to launch that was not there, or not ready, when the wait began. */
static int has_news(gp_consumer *consumer, const struct gp_class_rule *rules, uint64_t now)
{
    int news = 0;

    for (uint32_t i = 0; i < GP_CLASSES; i++)
        news |= is_ready(consumer, i, rules, now) && consumer->awaited[i];
    return news;
}

/* When the next class will be ready that waits for company; UINT64_MAX: none does. */
static uint64_t next_due_ns(const gp_consumer *consumer, const struct gp_class_rule *rules)
{
    uint64_t next = UINT64_MAX;

    for (uint32_t i = 0; i < GP_CLASSES; i++)
        if (consumer->held_since_ns[i] != 0 && due_ns(consumer, i, &rules[i]) < next)
            next = due_ns(consumer, i, &rules[i]);
    return next;
}

uint64_t gp_consumer_held_ns(const gp_consumer *consumer, uint32_t class_index)
{
    return consumer->held_ns[class_index];
}

struct gp_crowd gp_consumer_crowd(const gp_consumer *consumer, uint32_t class_index)
{
    return gp_crowd_of(&consumer->crowd, class_index);
}

/* ---- small batches ---- */

static uint32_t count_small(gp_consumer *consumer)
{
    uint32_t count;

    pthread_mutex_lock(&consumer->small_lock);
    count = consumer->small_count;
    pthread_mutex_unlock(&consumer->small_lock);
    return count;
}

static void record_small(gp_consumer *consumer, const struct gp_small_batch *batch)
{
    pthread_mutex_lock(&consumer->small_lock);
    consumer->small[consumer->small_count++] = *batch;
    pthread_mutex_unlock(&consumer->small_lock);
}

uint32_t gp_consumer_small_batches(gp_consumer *consumer, struct gp_small_batch batches[GP_SMALL_BATCHES], int take)
{
    uint32_t count;

    if (gp_client_is_forked(consumer->client))
        return 0;
    pthread_mutex_lock(&consumer->small_lock);
    count = consumer->small_count;
    memcpy(batches, consumer->small, count * sizeof(*batches));
    if (take)
        consumer->small_count = 0;
    pthread_mutex_unlock(&consumer->small_lock);
    return count;
}

/* The class of all that is ready, if it is one class and no more than its limit; GP_CLASSES otherwise. */
static uint32_t small_class(gp_consumer *consumer, const struct gp_class_rule *rules, uint64_t now)
{
    uint32_t class_index = GP_CLASSES;
    const struct gp_slot_list *list;

    for (uint32_t i = 0; i < GP_CLASSES; i++) {
        if (!is_ready(consumer, i, rules, now))
            continue;
        if (class_index != GP_CLASSES || consumer->waiting[i].count > rules[i].small
            || consumer->waiting[i].count > GP_SMALL_BATCH)
            return GP_CLASSES;
        class_index = i;
    }
    if (class_index == GP_CLASSES)
        return GP_CLASSES;
    /* A future has no callback: who takes the finished ones must hear of it. */
    list = &consumer->waiting[class_index];
    for (uint32_t i = 0; i < list->count; i++)
        if (consumer->waiters[list->slots[(list->first + i) % consumer->queue->depth]].kind == GP_WAITER_TAG)
            return GP_CLASSES;
    return class_index;
}

enum served { NOTHING, SERVED, IN_VAIN /* it was one request, and its time had come */ };

/* Computes what is ready, if it is a small batch. */
static enum served serve_small(gp_consumer *consumer, const struct gp_class_rule *rules)
{
    uint64_t start = gp_now_ns();
    struct gp_small_batch batch = {.class_index = small_class(consumer, rules, start)};
    struct gp_group group;
    int overdue;

    if (batch.class_index == GP_CLASSES)
        return NOTHING;
    overdue = due_ns(consumer, batch.class_index, &rules[batch.class_index]) != 0;
    batch.held_ns = gp_consumer_held_ns(consumer, batch.class_index);
    batch.crowd = gp_consumer_crowd(consumer, batch.class_index);
    gp_consumer_take_group(consumer, batch.class_index, GP_SMALL_BATCH, &group);
    if (group.requests == 0)
        return SERVED; /* they were orphans */
    gp_consumer_compute_group(consumer, &group);
    batch.requests = group.requests;
    batch.failed = group.failed;
    batch.again = group.again;
    batch.newest_ns = group.submitted_ns[group.requests - 1];
    batch.waited_ns = start - group.submitted_ns[0];
    batch.executed_ns = gp_now_ns() - start;
    record_small(consumer, &batch); /* first: who gets a result sees it counted */
    gp_consumer_complete_group(consumer, &group);
    return overdue && batch.requests == 1 ? IN_VAIN : SERVED;
}

uint64_t gp_consumer_wait(gp_consumer *consumer, int64_t timeout_ns, int watch_submissions,
                          const struct gp_class_rule *rules, uint32_t *waiting, uint64_t *oldest_ns)
{
    const struct gp_source *source = gp_client_source(consumer->client);
    uint64_t deadline = timeout_ns < 0 ? UINT64_MAX : gp_now_ns() + (uint64_t)timeout_ns;
    uint32_t held = 0, small = 0;

    if (rules == NULL)
        rules = no_rules;
    for (uint32_t i = 0; i < GP_CLASSES; i++) {
        held |= (uint32_t)(rules[i].least > 1) << i;
        small |= rules[i].small;
    }
    gp_client_hold_turns(consumer->client, held);
    memset(consumer->awaited, 0, sizeof(consumer->awaited));
    gp_consumer_drain(consumer);
    for (;;) {
        enum served served = SERVED;
        uint64_t now, until;

        gp_client_run_errands(consumer->client);
        if (gp_client_take_wake(consumer->client))
            break;
        while (small && served == SERVED && count_small(consumer) < GP_SMALL_BATCHES
               && (served = serve_small(consumer, rules)) != NOTHING)
            gp_consumer_drain(consumer);
        now = gp_now_ns();
        if (served == IN_VAIN || (watch_submissions && has_news(consumer, rules, now)))
            break;
        if (count_small(consumer) >= GP_SMALL_BATCHES / 2) /* a quiet moment to have them counted */
            break;
        if (now >= deadline)
            break;
        until = watch_submissions ? next_due_ns(consumer, rules) : UINT64_MAX;
        if (until > deadline)
            until = deadline;
        gp_queue_sleep(consumer->queue, until == UINT64_MAX ? -1 : (int64_t)(until - now), watch_submissions,
                       source != NULL ? source->descriptor : -1);
        gp_consumer_drain(consumer);
    }
    for (uint32_t i = 0; i < GP_CLASSES; i++) {
        const struct gp_slot_list *list = &consumer->waiting[i];

        waiting[i] = list->count;
        oldest_ns[i] = list->count > 0 ? consumer->queue->submitted_ns[list->slots[list->first]] : 0;
    }
    return gp_key_table_removed(gp_client_keys(consumer->client));
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

uint32_t gp_consumer_take(gp_consumer *consumer, uint32_t class_index, uint32_t count, gp_request_handle *handles,
                          gp_key_handle *keys, uint8_t *inputs, uint64_t *submitted_ns)
{
    gp_queue *queue = consumer->queue;
    struct gp_slot_list *list = &consumer->waiting[class_index];
    uint32_t stride = GP_CLASS_BYTES(class_index), taken = 0;

    while (taken < count && list->count > 0) {
        if (list->count > AHEAD)
            prefetch_input(queue, list, stride);
        uint32_t slot = gp_slot_list_pop(list, queue->depth);
        uint32_t generation = GP_GENERATION(atomic_load_explicit(&queue->word[slot], memory_order_acquire));
        uint32_t bytes = queue->bytes[slot];
        uint8_t *input = inputs + (size_t)taken * stride;

        if (!change_state(consumer, slot, generation, GP_SUBMITTED, GP_RUNNING)) {
            free_orphan(consumer, class_index, slot, generation);
            continue;
        }
        if (bytes > stride)
            bytes = stride; /* changed since it was sorted: a hostile client harms its own request */
        handles[taken] = gp_request_handle_of(slot, generation);
        keys[taken] = queue->key[slot];
        submitted_ns[taken] = queue->submitted_ns[slot];
        memcpy(input, queue->input + (size_t)slot * GP_MAX_BYTES, bytes);
        memset(input + bytes, 0, stride - bytes);
        taken++;
    }
    consumer->silence_ns[class_index] = 0; /* those that are left had company */
    consumer->held_since_ns[class_index] = consumer->held_ns[class_index] = 0;
    gp_crowd_taken(&consumer->crowd, class_index);
    return taken;
}

static void wake(gp_consumer *consumer, uint32_t slot, const struct gp_waiter *waiter)
{
    switch (waiter->kind) {
    case GP_WAITER_JOB:
        gp_wait_notify(waiter->wait);
        gp_wait_free(waiter->wait);
        break;
    case GP_WAITER_TAG:
        gp_client_finish(consumer->client, slot);
        break;
    case GP_WAITER_THREAD:
    case GP_WAITER_REMOTE:
        break;
    }
    /* Any kind: a job that may not pause sleeps too. If the slot is another request's by now, a sleeper looks once in
     * vain. */
    gp_client_wake_thread(consumer->client, slot);
}

/* Requests in a row with the same key: it is unpinned for all of them at once. */
struct pinned {
    gp_key_handle key;
    uint32_t pins;
};

static void collect_pin(gp_consumer *consumer, struct pinned *pinned, gp_key_handle key)
{
    if (pinned->key != key && pinned->pins > 0) {
        gp_client_unpin_key(consumer->client, pinned->key, pinned->pins);
        pinned->pins = 0;
    }
    pinned->key = key;
    pinned->pins++;
}

static void complete(gp_consumer *consumer, gp_request_handle handle, const uint8_t *output, uint32_t stride, int ok,
                     struct pinned *pinned)
{
    uint32_t slot = gp_request_slot(handle), generation = gp_request_generation(handle);
    struct gp_waiter waiter;

    if (slot >= consumer->queue->depth)
        return;
    if (!change_state(consumer, slot, generation, GP_RUNNING, GP_FINISHING)) {
        free_orphan(consumer, GP_CLASS_OF(stride), slot, generation);
        return;
    }
    /* A copy: as soon as DONE is published the slot may be someone else's. */
    waiter.kind = consumer->waiters[slot].kind;
    waiter.wait = consumer->waiters[slot].wait;
    waiter.remote = consumer->waiters[slot].remote;
    waiter.tag = consumer->waiters[slot].tag;
    waiter.key = consumer->waiters[slot].key;
    if (ok && waiter.kind != GP_WAITER_REMOTE)
        memcpy(consumer->queue->output + (size_t)slot * GP_MAX_BYTES, output, stride);
    else if (waiter.kind == GP_WAITER_JOB)
        gp_wait_set_error(waiter.wait);
    /* Counted first: who gets a result sees it counted. */
    atomic_fetch_add_explicit(&consumer->completed, 1, memory_order_relaxed);
    gp_crowd_ends(&consumer->crowd, GP_CLASS_OF(stride));
    if (!ok)
        atomic_fetch_add_explicit(&consumer->failed, 1, memory_order_relaxed);
    if (!change_state(consumer, slot, generation, GP_FINISHING, ok ? GP_DONE_OK : GP_DONE_ERR)) {
        free_orphan(consumer, GP_CLASS_OF(stride), slot, generation);
        return;
    }
    collect_pin(consumer, pinned, waiter.key);
    if (waiter.kind == GP_WAITER_REMOTE) { /* nobody here comes for the result */
        gp_client_collect(consumer->client, handle, 0, NULL, 0);
        gp_client_source(consumer->client)->finish(waiter.remote, waiter.tag, output, stride, ok);
    } else {
        wake(consumer, slot, &waiter);
    }
}

static void prefetch_slot(const gp_consumer *consumer, gp_request_handle handle, uint32_t stride)
{
    const uint32_t slot = gp_request_slot(handle);

    if (slot >= consumer->queue->depth)
        return;
    __builtin_prefetch(&consumer->queue->word[slot], 1);
    __builtin_prefetch(&consumer->waiters[slot]);
    for (uint32_t byte = 0; byte < stride; byte += 64)
        __builtin_prefetch(consumer->queue->output + (size_t)slot * GP_MAX_BYTES + byte, 1);
}

/* Who waits for a slot; NULL if that is no job. The slot is RUNNING, so nobody changes it. */
static struct gp_wait *wait_of(const gp_consumer *consumer, gp_request_handle handle)
{
    const uint32_t slot = gp_request_slot(handle);

    if (slot >= consumer->queue->depth || consumer->waiters[slot].kind != GP_WAITER_JOB)
        return NULL;
    return consumer->waiters[slot].wait;
}

void gp_consumer_complete(gp_consumer *consumer, uint32_t count, const gp_request_handle *handles,
                          const uint8_t *outputs, uint32_t stride, const uint8_t *ok)
{
    struct pinned pinned = {0};

    atomic_store(&consumer->completed_ns, gp_now_ns());
    for (uint32_t i = 0; i < count; i++) {
        if (i + AHEAD < count)
            prefetch_slot(consumer, handles[i + AHEAD], stride);
        if (i + WAITER_AHEAD < count)
            __builtin_prefetch(wait_of(consumer, handles[i + WAITER_AHEAD]), 1);
        if (i + CONTEXT_AHEAD < count && wait_of(consumer, handles[i + CONTEXT_AHEAD]) != NULL)
            gp_wait_prefetch(wait_of(consumer, handles[i + CONTEXT_AHEAD]));
        complete(consumer, handles[i], outputs + (size_t)i * stride, stride, ok[i], &pinned);
    }
    if (pinned.pins > 0)
        gp_client_unpin_key(consumer->client, pinned.key, pinned.pins);
}

/* ---- one group ---- */

uint32_t gp_consumer_waiting(const gp_consumer *consumer, uint32_t class_index, uint32_t *first_slot)
{
    const struct gp_slot_list *list = &consumer->waiting[class_index];

    if (list->count > 0)
        *first_slot = list->slots[list->first];
    return list->count;
}

void gp_consumer_drop_orphans(gp_consumer *consumer, uint32_t class_index)
{
    gp_queue *queue = consumer->queue;
    struct gp_slot_list *list = &consumer->waiting[class_index];

    for (uint32_t left = list->count; left > 0; left--) {
        uint32_t slot = gp_slot_list_pop(list, queue->depth);
        uint32_t word = atomic_load_explicit(&queue->word[slot], memory_order_acquire);

        if (GP_STATE(word) == GP_ORPHANED)
            free_orphan(consumer, class_index, slot, GP_GENERATION(word));
        else
            gp_slot_list_push(list, queue->depth, slot);
    }
}

void gp_consumer_take_group(gp_consumer *consumer, uint32_t class_index, uint32_t most, struct gp_group *group)
{
    group->class_index = class_index;
    group->failed = group->again = 0;
    group->requests =
        gp_consumer_take(consumer, class_index, most, group->handles, group->keys, group->inputs, group->submitted_ns);
}

void gp_consumer_compute_group(gp_consumer *consumer, struct gp_group *group)
{
    uint32_t stride = GP_CLASS_BYTES(group->class_index);

    group->again = gp_cpu_private(gp_client_cpu(consumer->client), group->requests, group->keys, group->inputs,
                                  group->outputs, stride, group->ok);
    for (uint32_t i = 0; i < group->requests; i++) {
        if (group->again > 0 && !group->ok[i])
            gp_libcrypto_private(gp_client_keys(consumer->client), 1, group->keys + i,
                                 group->inputs + (size_t)i * stride, group->outputs + (size_t)i * stride, stride,
                                 group->ok + i);
        group->failed += !group->ok[i];
    }
}

void gp_consumer_complete_group(gp_consumer *consumer, struct gp_group *group)
{
    uint32_t stride = GP_CLASS_BYTES(group->class_index);

    gp_consumer_complete(consumer, group->requests, group->handles, group->outputs, stride, group->ok);
    OPENSSL_cleanse(group->outputs, (size_t)group->requests * stride);
}
