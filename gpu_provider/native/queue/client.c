#define _GNU_SOURCE
#include "queue/client.h"

#include <errno.h>
#include <linux/futex.h>
#include <openssl/crypto.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "queue/client_internal.h"

/* ---- fork ---- */

static _Atomic uint32_t fork_epoch;
static pthread_once_t fork_once = PTHREAD_ONCE_INIT;

static void in_forked_child(void)
{
    atomic_fetch_add_explicit(&fork_epoch, 1, memory_order_relaxed);
}

static void watch_forks(void)
{
    pthread_atfork(NULL, NULL, in_forked_child);
}

uint32_t gp_fork_epoch(void)
{
    return atomic_load_explicit(&fork_epoch, memory_order_relaxed);
}

/* ---- making and freeing ---- */

void gp_slot_list_push(struct gp_slot_list *list, uint32_t depth, uint32_t slot)
{
    list->slots[(list->first + list->count++) % depth] = slot;
}

uint32_t gp_slot_list_pop(struct gp_slot_list *list, uint32_t depth)
{
    uint32_t slot = list->slots[list->first];

    list->first = (list->first + 1) % depth;
    list->count--;
    return slot;
}

static void free_memory(gp_client *client)
{
    for (uint32_t i = 0; i < client->key_count; i++)
        gp_key_free(client->keys[i].key);
    for (uint32_t i = 0; i < GP_CLASSES; i++)
        free(client->waiting[i].slots);
    free(client->finished.slots);
    free(client->free_slots);
    free(client->waiters);
    free(client->keys);
    free(client);
}

gp_client *gp_client_new(uint32_t depth)
{
    gp_client *client = calloc(1, sizeof(*client));
    int error;

    if (client == NULL)
        return NULL;
    pthread_once(&fork_once, watch_forks);
    atomic_init(&client->references, 1);
    client->fork_epoch = gp_fork_epoch();
    error = gp_queue_create(&client->queue, depth);
    if (error != 0) {
        free(client);
        errno = error;
        return NULL;
    }
    client->free_slots = calloc(depth, sizeof(*client->free_slots));
    client->finished.slots = calloc(depth, sizeof(uint32_t));
    client->waiters = calloc(depth, sizeof(*client->waiters));
    for (uint32_t i = 0; i < GP_CLASSES; i++) {
        client->waiting[i].slots = calloc(depth, sizeof(uint32_t));
        if (client->waiting[i].slots == NULL)
            error = ENOMEM;
    }
    if (gp_inner_libctx() == NULL || client->free_slots == NULL || client->finished.slots == NULL
        || client->waiters == NULL || error != 0) {
        gp_queue_unmap(&client->queue);
        free_memory(client);
        errno = ENOMEM;
        return NULL;
    }
    for (uint32_t i = 0; i < depth; i++)
        client->free_slots[i] = depth - 1 - i;
    client->free_count = depth;
    pthread_mutex_init(&client->lock, NULL);
    pthread_mutex_init(&client->keys_lock, NULL);
    pthread_mutex_init(&client->small_lock, NULL);
    return client;
}

gp_client *gp_client_up_ref(gp_client *client)
{
    atomic_fetch_add_explicit(&client->references, 1, memory_order_relaxed);
    return client;
}

void gp_client_free(gp_client *client)
{
    struct gp_in_line *entry, *next;

    if (client == NULL || atomic_fetch_sub_explicit(&client->references, 1, memory_order_acq_rel) != 1)
        return;
    for (entry = client->dropped.first; entry != NULL; entry = next) {
        next = entry->next;
        free(entry);
    }
    gp_queue_unmap(&client->queue);
    if (client->fork_epoch == gp_fork_epoch()) {
        pthread_mutex_destroy(&client->lock);
        pthread_mutex_destroy(&client->keys_lock);
        pthread_mutex_destroy(&client->small_lock);
    }
    free_memory(client);
}

int gp_client_is_usable(gp_client *client)
{
    int usable;

    if (client == NULL || client->fork_epoch != gp_fork_epoch())
        return 0;
    pthread_mutex_lock(&client->lock);
    usable = !client->closed;
    pthread_mutex_unlock(&client->lock);
    return usable;
}

void gp_client_get_stats(gp_client *client, struct gp_client_stats *stats)
{
    stats->submitted = atomic_load(&client->submitted);
    stats->completed = atomic_load(&client->completed);
    stats->failed = atomic_load(&client->failed);
    stats->retries = atomic_load(&client->retries);
    stats->orphaned = atomic_load(&client->orphaned);
    stats->direct = atomic_load(&client->direct);
    stats->in_use = 0;
    stats->in_line = 0;
    stats->keys = stats->kernel_keys = stats->locked_keys = 0;
    if (client->fork_epoch != gp_fork_epoch())
        return;
    pthread_mutex_lock(&client->lock);
    stats->in_use = client->queue.depth - client->free_count;
    stats->in_line = client->line.count;
    pthread_mutex_unlock(&client->lock);
    gp_client_count_keys(client, stats);
}

/* ---- the line ---- */

static void line_append(struct gp_line *line, struct gp_in_line *entry)
{
    entry->next = NULL;
    entry->previous = line->last;
    if (line->last != NULL)
        line->last->next = entry;
    else
        line->first = entry;
    line->last = entry;
    line->count++;
}

static void line_remove(struct gp_line *line, struct gp_in_line *entry)
{
    if (entry->previous != NULL)
        entry->previous->next = entry->next;
    else
        line->first = entry->next;
    if (entry->next != NULL)
        entry->next->previous = entry->previous;
    else
        line->last = entry->previous;
    line->count--;
}

/* What is to be done for an entry that left the line with a slot, once gp_client.lock is released. */
struct served {
    struct gp_in_line *entry; /* TAG */
    struct gp_wait *wait;     /* JOB: one reference */
    uint32_t slot;
};

static void change_word(gp_client *client, uint32_t slot, uint32_t generation_step, uint32_t state)
{
    uint32_t word = atomic_load_explicit(&client->queue.word[slot], memory_order_relaxed);

    atomic_store_explicit(&client->queue.word[slot], GP_WORD(GP_GENERATION(word) + generation_step, state),
                          memory_order_release);
}

/* With gp_client.lock: takes the first out of the line and reserves `slot` for it. */
static struct served serve_first(gp_client *client, uint32_t slot)
{
    struct served served = {.slot = slot};
    struct gp_in_line *entry = client->line.first;

    line_remove(&client->line, entry);
    if (slot != GP_CLOSED_SLOT)
        change_word(client, slot, 1, GP_CLAIMED);
    if (entry->kind == GP_WAITER_TAG)
        served.entry = entry;
    else if (entry->wait != NULL)
        served.wait = entry->wait; /* the line's reference */
    atomic_store_explicit(&entry->slot, slot, memory_order_release);
    if (entry->reserved != NULL)
        pthread_cond_signal(entry->reserved);
    return served;
}

static void finish_serving(gp_client *client, struct served *served)
{
    struct gp_in_line *entry = served->entry;

    if (served->wait != NULL) {
        gp_wait_notify(served->wait);
        gp_wait_free(served->wait);
    }
    if (entry != NULL && served->slot != GP_CLOSED_SLOT) {
        const struct gp_waiter waiter = {.kind = GP_WAITER_TAG, .tag = entry->tag, .key = entry->key};

        if (gp_client_put(client, served->slot, &waiter, entry->bytes, entry->input, 0) != 0) {
            free(entry);
            entry = NULL;
        }
    }
    if (entry != NULL) { /* closed */
        gp_client_unpin_key(client, entry->key, 1);
        pthread_mutex_lock(&client->lock);
        line_append(&client->dropped, entry);
        pthread_mutex_unlock(&client->lock);
        gp_consumer_wake(client);
    }
}

void gp_client_close(gp_client *client)
{
    int more = 1;

    if (client->fork_epoch != gp_fork_epoch())
        return;
    pthread_mutex_lock(&client->lock);
    client->closed = 1;
    pthread_mutex_unlock(&client->lock);
    while (more) {
        struct served served;

        pthread_mutex_lock(&client->lock);
        more = client->line.count > 0;
        if (more)
            served = serve_first(client, GP_CLOSED_SLOT);
        pthread_mutex_unlock(&client->lock);
        if (more)
            finish_serving(client, &served);
    }
    gp_consumer_wake(client);
}

uint32_t gp_client_claim(gp_client *client, struct gp_in_line *entry)
{
    uint32_t slot = GP_NO_SLOT;

    pthread_mutex_lock(&client->lock);
    if (client->closed) {
        slot = GP_CLOSED_SLOT;
    } else if (client->free_count > 0 && client->line.count == 0) {
        slot = client->free_slots[--client->free_count];
        change_word(client, slot, 1, GP_CLAIMED);
    } else if (entry != NULL) {
        atomic_store_explicit(&entry->slot, GP_NO_SLOT, memory_order_relaxed);
        line_append(&client->line, entry);
    }
    pthread_mutex_unlock(&client->lock);
    if (slot == GP_NO_SLOT && entry != NULL)
        atomic_fetch_add_explicit(&client->retries, 1, memory_order_relaxed);
    return slot;
}

void gp_client_release(gp_client *client, uint32_t slot)
{
    struct served served = {.slot = GP_NO_SLOT};

    pthread_mutex_lock(&client->lock);
    if (client->line.count > 0) {
        served = serve_first(client, slot);
    } else {
        change_word(client, slot, 0, GP_FREE);
        client->free_slots[client->free_count++] = slot;
    }
    pthread_mutex_unlock(&client->lock);
    finish_serving(client, &served);
}

void gp_client_leave_line(gp_client *client, struct gp_in_line *entry)
{
    struct gp_wait *wait = NULL;
    uint32_t slot;

    pthread_mutex_lock(&client->lock);
    slot = atomic_load_explicit(&entry->slot, memory_order_relaxed);
    if (slot == GP_NO_SLOT) {
        line_remove(&client->line, entry);
        wait = entry->wait; /* the line's reference */
    }
    pthread_mutex_unlock(&client->lock);
    gp_wait_free(wait);
    if (slot < client->queue.depth)
        gp_client_release(client, slot);
}

/* ---- requests ---- */

static void copy(uint8_t *to, const uint8_t *from, uint32_t bytes, int reversed)
{
    if (!reversed) {
        memcpy(to, from, bytes);
        return;
    }
    for (uint32_t i = 0; i < bytes; i++)
        to[i] = from[bytes - 1 - i];
}

uint64_t gp_client_put(gp_client *client, uint32_t slot, const struct gp_waiter *waiter, uint32_t bytes,
                       const uint8_t *input, int big_endian)
{
    gp_queue *queue = &client->queue;
    struct gp_waiter *own = &client->waiters[slot];
    uint32_t generation = GP_GENERATION(atomic_load_explicit(&queue->word[slot], memory_order_relaxed));
    int closed;

    own->kind = waiter->kind;
    own->wait = waiter->wait;
    own->tag = waiter->tag;
    own->key = waiter->key;
    atomic_store_explicit(&own->asleep, 0, memory_order_relaxed);
    queue->key[slot] = waiter->key;
    queue->bytes[slot] = bytes;
    queue->submitted_ns[slot] = gp_now_ns();
    copy(queue->input + (size_t)slot * GP_MAX_BYTES, input, bytes, big_endian);

    /* Under the lock, so that after gp_client_close() nothing more is submitted that nobody would take. */
    pthread_mutex_lock(&client->lock);
    closed = client->closed;
    if (!closed) {
        atomic_store_explicit(&queue->word[slot], GP_WORD(generation, GP_SUBMITTED), memory_order_release);
        gp_queue_push(queue, slot);
    }
    pthread_mutex_unlock(&client->lock);
    if (closed) {
        gp_client_release(client, slot);
        return 0;
    }
    atomic_fetch_add_explicit(&client->submitted, 1, memory_order_relaxed);
    gp_queue_wake_consumer(queue);
    return (uint64_t)generation << 32 | slot;
}

uint32_t gp_client_poll(const gp_client *client, uint64_t handle)
{
    uint32_t word = atomic_load_explicit(&client->queue.word[gp_handle_slot(handle)], memory_order_acquire);

    if (GP_STATE(word) == GP_DONE_OK || GP_STATE(word) == GP_DONE_ERR)
        return GP_STATE(word);
    return 0;
}

void gp_client_sleep_until_done(gp_client *client, uint64_t handle)
{
    _Atomic uint32_t *word = &client->queue.word[gp_handle_slot(handle)];
    uint32_t now;

    /* Sequentially consistent on both sides: either the consumer sees `asleep`, or we see its DONE. */
    atomic_store(&client->waiters[gp_handle_slot(handle)].asleep, 1);
    for (;;) {
        now = atomic_load(word);
        if (GP_STATE(now) == GP_DONE_OK || GP_STATE(now) == GP_DONE_ERR)
            return;
        syscall(SYS_futex, word, FUTEX_WAIT, now, NULL, NULL, 0);
    }
}

int gp_client_collect(gp_client *client, uint64_t handle, uint32_t bytes, uint8_t *output, int big_endian)
{
    uint32_t slot = gp_handle_slot(handle);
    uint8_t *result = client->queue.output + (size_t)slot * GP_MAX_BYTES;
    int ok = gp_client_poll(client, handle) == GP_DONE_OK;

    if (ok && output != NULL)
        copy(output, result, bytes, big_endian);
    OPENSSL_cleanse(result, GP_MAX_BYTES);
    gp_client_release(client, slot);
    return ok;
}

void gp_client_orphan(gp_client *client, uint64_t handle)
{
    _Atomic uint32_t *word = &client->queue.word[gp_handle_slot(handle)];
    uint32_t now = atomic_load_explicit(word, memory_order_acquire);

    atomic_fetch_add_explicit(&client->orphaned, 1, memory_order_relaxed);
    while (GP_GENERATION(now) == gp_handle_generation(handle)) {
        if (GP_STATE(now) == GP_DONE_OK || GP_STATE(now) == GP_DONE_ERR) {
            gp_client_collect(client, handle, 0, NULL, 0);
            return;
        }
        if (atomic_compare_exchange_weak_explicit(word, &now, GP_WORD(GP_GENERATION(now), GP_ORPHANED),
                                                  memory_order_acq_rel, memory_order_acquire))
            return;
    }
}

enum gp_submit gp_client_submit(gp_client *client, uint64_t handle, const uint8_t *input, uint64_t tag,
                                int wait_for_room)
{
    struct gp_waiter waiter = {.kind = GP_WAITER_TAG, .tag = tag, .key = handle};
    struct gp_in_line *entry = NULL;
    uint32_t bytes, slot;

    if (!gp_client_is_usable(client))
        return GP_SUBMIT_CLOSED;
    if (!gp_client_pin_key(client, handle, &bytes))
        return GP_SUBMIT_FAILED;
    slot = gp_client_claim(client, NULL);
    if (slot == GP_NO_SLOT && wait_for_room) {
        entry = calloc(1, sizeof(*entry) + bytes);
        if (entry == NULL) {
            gp_client_unpin_key(client, handle, 1);
            return GP_SUBMIT_FAILED;
        }
        entry->kind = GP_WAITER_TAG;
        entry->tag = tag;
        entry->key = handle;
        entry->bytes = bytes;
        entry->input = memcpy(entry + 1, input, bytes);
        slot = gp_client_claim(client, entry);
        if (slot == GP_NO_SLOT)
            return GP_SUBMIT_OK;
        free(entry);
    }
    if (slot < client->queue.depth && gp_client_put(client, slot, &waiter, bytes, input, 0) != 0)
        return GP_SUBMIT_OK;
    gp_client_unpin_key(client, handle, 1);
    if (slot != GP_NO_SLOT)
        return GP_SUBMIT_CLOSED;
    atomic_fetch_add_explicit(&client->retries, 1, memory_order_relaxed);
    return GP_SUBMIT_FULL;
}
