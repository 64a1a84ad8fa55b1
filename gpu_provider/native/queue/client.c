#define _GNU_SOURCE
#include "queue/client.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <openssl/async.h>
#include <openssl/crypto.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "process.h"
#include "queue/callbacks.h"
#include "queue/descriptors.h"
#include "queue/slot_list.h"

struct wait_queue {
    struct gp_queued *first, *last;
    uint32_t count;
};

struct gp_client {
    atomic_int references;
    gp_queue queue;
    uint32_t fork_epoch;
    gp_key_table *keys;
    gp_cpu *cpu;
    struct gp_waiter *waiters; /* [depth] */
    struct gp_groups *groups;
    void (*drop_orphans)(gp_client *client);
    struct gp_source source;
    _Atomic int has_source;
    struct gp_descriptors *descriptors; /* NULL: the consumer is in this process */
    int peer;                           /* its socket; -1 */
    uint64_t timeout_ns;
    _Atomic uint64_t last_result_ns;
    struct gp_callbacks *callbacks; /* NULL: there are none */
    int callbacks_fd;               /* signalled for all of them; -1 */
    uint32_t callbacks_number;

    pthread_mutex_t lock;
    int closed;
    uint32_t *free_slots; /* a stack: the slot used last is warm in the cache */
    uint32_t free_count;
    uint32_t *orphans; /* a consumer in another process will make them free */
    uint32_t orphan_count;
    struct wait_queue wait_queue;
    struct gp_slot_list finished; /* TAG requests that are done */
    struct wait_queue dropped;    /* TAG requests in the wait queue when the client was closed */
    struct gp_errand *errands;    /* linked; each with a reference to its wait */

    atomic_int wake_requested;
    _Atomic uint32_t held_classes; /* gp_client_hold_turns() */
    _Atomic uint64_t submitted, retries, orphaned, direct;
};

/* ---- making and freeing ---- */

static void free_memory(gp_client *client)
{
    gp_cpu_free(client->cpu);
    gp_key_table_free(client->keys);
    if (client->callbacks_fd >= 0 && !gp_client_is_forked(client))
        gp_callbacks_unwatch(client->callbacks, client->callbacks_fd);
    gp_descriptors_free(client->descriptors);
    gp_client_hang_up(client);
    free(client->finished.slots);
    free(client->orphans);
    free(client->free_slots);
    free(client->waiters);
    free(client);
}

/* Owns the queue in any case. */
static gp_client *client_of(const gp_queue *queue, struct gp_descriptors *descriptors)
{
    gp_client *client = calloc(1, sizeof(*client));
    gp_queue mapped = *queue;
    uint32_t depth = queue->depth;

    if (client == NULL) {
        gp_queue_unmap(&mapped);
        gp_descriptors_free(descriptors);
        return NULL;
    }
    gp_watch_forks();
    atomic_init(&client->references, 1);
    client->fork_epoch = gp_fork_epoch();
    client->queue = mapped;
    client->peer = client->callbacks_fd = -1;
    client->descriptors = descriptors;
    client->free_slots = calloc(depth, sizeof(*client->free_slots));
    client->orphans = calloc(depth, sizeof(*client->orphans));
    client->finished.slots = calloc(depth, sizeof(uint32_t));
    client->waiters = calloc(depth, sizeof(*client->waiters));
    client->keys = gp_key_table_new();
    client->cpu = gp_cpu_new(client->keys);
    if (client->free_slots == NULL || client->orphans == NULL || client->finished.slots == NULL
        || client->waiters == NULL || client->keys == NULL || client->cpu == NULL) {
        gp_queue_unmap(&client->queue);
        free_memory(client);
        errno = ENOMEM;
        return NULL;
    }
    for (uint32_t i = 0; i < depth; i++)
        client->free_slots[i] = depth - 1 - i;
    client->free_count = depth;
    pthread_mutex_init(&client->lock, NULL);
    return client;
}

gp_client *gp_client_new(uint32_t depth)
{
    gp_queue queue;
    int error = gp_queue_create(&queue, depth);

    if (error == 0)
        return client_of(&queue, NULL);
    errno = error;
    return NULL;
}

gp_client *gp_client_of_service(int memfd, int doorbell, int socket, struct gp_descriptors *descriptors,
                                uint64_t timeout_ns)
{
    gp_client *client;
    gp_queue queue;
    int error = gp_queue_map(&queue, memfd, doorbell);

    if (error != 0) {
        close(memfd);
        close(doorbell);
        gp_descriptors_free(descriptors);
        errno = error;
        return NULL;
    }
    client = client_of(&queue, descriptors);
    if (client != NULL) {
        client->timeout_ns = timeout_ns;
        client->peer = fcntl(socket, F_DUPFD_CLOEXEC, 0); /* the caller may close it at any time */
    }
    return client;
}

void gp_client_hang_up(gp_client *client)
{
    if (client->peer >= 0)
        close(client->peer);
    client->peer = -1;
}

gp_client *gp_client_up_ref(gp_client *client)
{
    atomic_fetch_add_explicit(&client->references, 1, memory_order_relaxed);
    return client;
}

void gp_client_free(gp_client *client)
{
    struct gp_queued *entry, *next;

    if (client == NULL || atomic_fetch_sub_explicit(&client->references, 1, memory_order_acq_rel) != 1)
        return;
    for (entry = client->dropped.first; entry != NULL; entry = next) {
        next = entry->next;
        free(entry);
    }
    gp_queue_unmap(&client->queue);
    if (!gp_client_is_forked(client))
        pthread_mutex_destroy(&client->lock);
    free_memory(client);
}

int gp_client_is_forked(const gp_client *client)
{
    return client->fork_epoch != gp_fork_epoch();
}

int gp_client_is_usable(gp_client *client)
{
    int usable;

    if (client == NULL || gp_client_is_forked(client))
        return 0;
    pthread_mutex_lock(&client->lock);
    usable = !client->closed;
    pthread_mutex_unlock(&client->lock);
    return usable;
}

void gp_client_get_stats(gp_client *client, struct gp_client_stats *stats)
{
    struct gp_key_counts counts;

    *stats = (struct gp_client_stats){
        .submitted = atomic_load(&client->submitted),
        .retries = atomic_load(&client->retries),
        .orphaned = atomic_load(&client->orphaned),
        .direct = atomic_load(&client->direct),
    };
    if (gp_client_is_forked(client))
        return;
    pthread_mutex_lock(&client->lock);
    stats->in_use = client->queue.depth - client->free_count;
    stats->queued = client->wait_queue.count;
    pthread_mutex_unlock(&client->lock);
    gp_key_table_count(client->keys, &counts);
    stats->keys = counts.keys;
    stats->kernel_keys = counts.kernel_keys;
    stats->locked_keys = counts.locked_keys;
}

void gp_client_count_direct(gp_client *client)
{
    atomic_fetch_add_explicit(&client->direct, 1, memory_order_relaxed);
}

gp_queue *gp_client_queue(gp_client *client)
{
    return &client->queue;
}

struct gp_waiter *gp_client_waiters(const gp_client *client)
{
    return client->waiters;
}

void gp_client_set_groups(gp_client *client, struct gp_groups *groups, void (*drop_orphans)(gp_client *client))
{
    client->groups = groups;
    client->drop_orphans = drop_orphans;
}

struct gp_groups *gp_client_groups(const gp_client *client)
{
    return client->groups;
}

void gp_client_set_source(gp_client *client, const struct gp_source *source)
{
    client->source = *source;
    atomic_store(&client->has_source, 1);
}

const struct gp_source *gp_client_source(const gp_client *client)
{
    return atomic_load(&client->has_source) ? &client->source : NULL;
}

struct gp_descriptors *gp_client_descriptors(const gp_client *client)
{
    return client->descriptors;
}

#define MOST_TIMEOUTS 25u

uint64_t gp_client_give_up_ns(const gp_client *client, uint64_t began_ns)
{
    uint64_t last_ns = atomic_load_explicit(&client->last_result_ns, memory_order_relaxed);

    if (client->descriptors == NULL)
        return GP_NO_DEADLINE;
    if (last_ns < began_ns)
        return began_ns + client->timeout_ns;
    return last_ns - began_ns < (MOST_TIMEOUTS - 1) * client->timeout_ns
               ? last_ns + client->timeout_ns
               : began_ns + MOST_TIMEOUTS * client->timeout_ns;
}

int gp_client_use_callbacks(gp_client *client, struct gp_callbacks *callbacks)
{
    client->callbacks_fd = gp_descriptors_take(client->descriptors, &client->callbacks_number);
    if (client->callbacks_fd < 0)
        return 0;
    if (!gp_callbacks_watch(callbacks, client->callbacks_fd)) {
        gp_descriptors_give(client->descriptors, client->callbacks_number);
        client->callbacks_fd = -1;
        return 0;
    }
    client->callbacks = callbacks;
    return 1;
}

struct gp_callbacks *gp_client_callbacks(const gp_client *client)
{
    return client->callbacks;
}

uint32_t gp_client_callbacks_number(const gp_client *client)
{
    return client->callbacks_number;
}

/* ---- keys ---- */

gp_key_table *gp_client_keys(const gp_client *client)
{
    return client->keys;
}

gp_cpu *gp_client_cpu(const gp_client *client)
{
    return client->cpu;
}

gp_key_handle gp_client_add_key(gp_client *client, gp_key *key)
{
    gp_key_handle handle = gp_key_table_add(client->keys, key);

    /* In a job or in a process without a batching thread not yet: an event loop would stand still, for a key that may
     * have no second request. */
    if (handle != 0 && client->groups == NULL && ASYNC_get_current_job() == NULL)
        gp_cpu_prepare(client->cpu, key);
    return handle;
}

void gp_client_remove_key(gp_client *client, gp_key_handle handle)
{
    if (gp_key_table_remove(client->keys, handle))
        gp_client_wake_consumer(client);
}

void gp_client_unpin_key(gp_client *client, gp_key_handle handle, uint32_t pins)
{
    if (gp_key_table_unpin(client->keys, handle, pins))
        gp_client_wake_consumer(client);
}

/* ---- telling the consumer ---- */

void gp_client_wake_consumer(gp_client *client)
{
    if (gp_client_is_forked(client))
        return;
    atomic_store(&client->wake_requested, 1);
    gp_queue_ring_doorbell(&client->queue);
}

/* This thread's turn. A job is never resumed on another thread. */
static _Thread_local struct {
    int holding;
    gp_client *client; /* a reference, while requests are held back */
    uint32_t held;
    uint64_t since_ns; /* when the first of them was submitted */
} turn;

void gp_turn_begin(void)
{
    turn.holding = 1;
}

uint32_t gp_turn_suspend(void)
{
    turn.holding = 0;
    return turn.held;
}

void gp_turn_end(void)
{
    gp_client *client = turn.client;

    turn.client = NULL;
    turn.held = 0;
    if (client == NULL)
        return;
    if (!gp_client_is_forked(client))
        gp_queue_wake_consumer(&client->queue);
    gp_client_free(client);
}

void gp_client_hold_turns(gp_client *client, uint32_t classes)
{
    atomic_store_explicit(&client->held_classes, classes, memory_order_relaxed);
}

static void wake_for_request(gp_client *client, uint32_t bytes, uint64_t submitted_ns)
{
    uint32_t held_classes = atomic_load_explicit(&client->held_classes, memory_order_relaxed);

    if (!turn.holding || (held_classes & 1u << GP_CLASS_OF(bytes)) == 0) {
        gp_queue_wake_consumer(&client->queue);
        return;
    }
    if (turn.client != client) {
        gp_turn_end();
        turn.client = gp_client_up_ref(client);
        turn.since_ns = submitted_ns;
    }
    turn.held++;
    if (turn.held >= GP_TURN_REQUESTS || submitted_ns - turn.since_ns >= GP_TURN_NS)
        gp_turn_end();
}

int gp_client_take_wake(gp_client *client)
{
    return atomic_exchange(&client->wake_requested, 0);
}

int gp_client_post(gp_client *client, struct gp_errand *errand)
{
    int posted;

    pthread_mutex_lock(&client->lock);
    posted = !errand->posted;
    if (posted) {
        errand->posted = 1;
        errand->next = client->errands;
        client->errands = errand;
    }
    pthread_mutex_unlock(&client->lock);
    gp_queue_ring_doorbell(&client->queue);
    return posted;
}

void gp_client_run_errands(gp_client *client)
{
    struct gp_errand *errand, *next;

    pthread_mutex_lock(&client->lock);
    errand = client->errands;
    client->errands = NULL;
    pthread_mutex_unlock(&client->lock);
    while (errand != NULL) {
        pthread_mutex_lock(&client->lock);
        next = errand->next; /* before it may be posted again */
        errand->posted = 0;
        pthread_mutex_unlock(&client->lock);
        errand->run(errand->wait); /* which may free it */
        errand = next;
    }
}

/* ---- the wait queue ---- */

static void append(struct wait_queue *queue, struct gp_queued *entry)
{
    entry->next = NULL;
    entry->previous = queue->last;
    if (queue->last != NULL)
        queue->last->next = entry;
    else
        queue->first = entry;
    queue->last = entry;
    queue->count++;
}

static void take_out(struct wait_queue *queue, struct gp_queued *entry)
{
    if (entry->previous != NULL)
        entry->previous->next = entry->next;
    else
        queue->first = entry->next;
    if (entry->next != NULL)
        entry->next->previous = entry->previous;
    else
        queue->last = entry->previous;
    queue->count--;
}

/* What is to be done for an entry that left the wait queue with a slot, once gp_client.lock is released. */
struct served {
    struct gp_queued *entry; /* TAG */
    gp_tell *reserved;       /* JOB */
    struct gp_wait *wait;    /* for that: one reference */
    uint32_t slot;
};

static void change_word(gp_client *client, uint32_t slot, uint32_t generation_step, uint32_t state)
{
    uint32_t word = atomic_load_explicit(&client->queue.word[slot], memory_order_relaxed);

    atomic_store_explicit(&client->queue.word[slot], GP_WORD(GP_GENERATION(word) + generation_step, state),
                          memory_order_release);
}

/* With gp_client.lock: takes the first out of the wait queue and reserves `slot` for it. */
static struct served serve_first(gp_client *client, uint32_t slot)
{
    struct served served = {.slot = slot};
    struct gp_queued *entry = client->wait_queue.first;

    take_out(&client->wait_queue, entry);
    if (slot != GP_CLOSED_SLOT)
        change_word(client, slot, 1, GP_CLAIMED);
    if (entry->kind == GP_WAITER_TAG)
        served.entry = entry;
    served.reserved = entry->reserved;
    served.wait = entry->wait; /* the wait queue's reference */
    atomic_store_explicit(&entry->slot, slot, memory_order_release);
    if (entry->sleeper != NULL)
        pthread_cond_signal(entry->sleeper);
    return served;
}

static void finish_serving(gp_client *client, struct served *served)
{
    struct gp_queued *entry = served->entry;

    if (served->reserved != NULL)
        served->reserved(served->wait);
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
        append(&client->dropped, entry);
        pthread_mutex_unlock(&client->lock);
        gp_client_wake_consumer(client);
    }
}

void gp_client_close(gp_client *client)
{
    int more = 1;

    if (gp_client_is_forked(client))
        return;
    pthread_mutex_lock(&client->lock);
    client->closed = 1;
    pthread_mutex_unlock(&client->lock);
    while (more) {
        struct served served;

        pthread_mutex_lock(&client->lock);
        more = client->wait_queue.count > 0;
        if (more)
            served = serve_first(client, GP_CLOSED_SLOT);
        pthread_mutex_unlock(&client->lock);
        if (more)
            finish_serving(client, &served);
    }
    if (client->descriptors != NULL) { /* nobody will tell those whose requests are in flight */
        for (uint32_t slot = 0; slot < client->queue.depth; slot++)
            gp_client_wake_thread(client, slot);
        gp_descriptors_signal_all(client->descriptors);
        if (client->callbacks != NULL)
            gp_callbacks_wake(client->callbacks);
    }
    gp_client_wake_consumer(client);
}

/* With gp_client.lock: orphans that another process has made free. */
static void reap_orphans(gp_client *client)
{
    uint32_t left = 0;

    for (uint32_t i = 0; i < client->orphan_count; i++) {
        uint32_t slot = client->orphans[i];

        if (GP_STATE(atomic_load_explicit(&client->queue.word[slot], memory_order_acquire)) == GP_FREE)
            client->free_slots[client->free_count++] = slot;
        else
            client->orphans[left++] = slot;
    }
    client->orphan_count = left;
}

/* They go to the wait queue: another process tells nobody that it has made one free. */
static void pass_orphans_on(gp_client *client)
{
    int more;

    do {
        struct served served;

        pthread_mutex_lock(&client->lock);
        reap_orphans(client);
        more = client->free_count > 0 && client->wait_queue.count > 0;
        if (more)
            served = serve_first(client, client->free_slots[--client->free_count]);
        pthread_mutex_unlock(&client->lock);
        if (more)
            finish_serving(client, &served);
    } while (more);
}

void gp_client_look(gp_client *client)
{
    struct pollfd peer = {.fd = client->peer};

    if (client->descriptors == NULL || gp_client_is_forked(client))
        return;
    if (poll(&peer, 1, 0) > 0 && (peer.revents & (POLLHUP | POLLERR)) != 0)
        gp_client_close(client);
    else
        pass_orphans_on(client);
}

uint32_t gp_client_claim(gp_client *client, struct gp_queued *entry)
{
    uint32_t slot = GP_NO_SLOT;
    int is_free;

    pthread_mutex_lock(&client->lock);
    if (client->free_count == 0)
        reap_orphans(client);
    if (client->closed) {
        slot = GP_CLOSED_SLOT;
    } else if (client->free_count > 0 && client->wait_queue.count == 0) {
        slot = client->free_slots[--client->free_count];
        change_word(client, slot, 1, GP_CLAIMED);
    } else if (entry != NULL) {
        atomic_store_explicit(&entry->slot, GP_NO_SLOT, memory_order_relaxed);
        append(&client->wait_queue, entry);
    }
    is_free = slot == GP_NO_SLOT && client->free_count > 0;
    pthread_mutex_unlock(&client->lock);
    if (is_free)
        pass_orphans_on(client);
    if (slot == GP_NO_SLOT && entry != NULL)
        atomic_fetch_add_explicit(&client->retries, 1, memory_order_relaxed);
    return slot;
}

void gp_client_release(gp_client *client, uint32_t slot)
{
    struct served served = {.slot = GP_NO_SLOT};

    pthread_mutex_lock(&client->lock);
    if (client->wait_queue.count > 0) {
        served = serve_first(client, slot);
    } else {
        change_word(client, slot, 0, GP_FREE);
        client->free_slots[client->free_count++] = slot;
    }
    pthread_mutex_unlock(&client->lock);
    finish_serving(client, &served);
}

uint32_t gp_client_claim_asleep(gp_client *client)
{
    pthread_cond_t reserved = PTHREAD_COND_INITIALIZER;
    struct gp_queued entry = {.kind = GP_WAITER_THREAD, .sleeper = &reserved};
    uint32_t slot = gp_client_claim(client, &entry);

    if (slot == GP_NO_SLOT) {
        pthread_mutex_lock(&client->lock);
        while ((slot = atomic_load_explicit(&entry.slot, memory_order_acquire)) == GP_NO_SLOT)
            pthread_cond_wait(&reserved, &client->lock);
        pthread_mutex_unlock(&client->lock);
    }
    pthread_cond_destroy(&reserved);
    return slot;
}

int gp_client_leave_wait_queue(gp_client *client, struct gp_queued *entry)
{
    uint32_t slot;

    pthread_mutex_lock(&client->lock);
    slot = atomic_load_explicit(&entry->slot, memory_order_relaxed);
    if (slot == GP_NO_SLOT)
        take_out(&client->wait_queue, entry);
    pthread_mutex_unlock(&client->lock);
    if (slot < client->queue.depth)
        gp_client_release(client, slot);
    return slot == GP_NO_SLOT;
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

gp_request_handle gp_client_put(gp_client *client, uint32_t slot, const struct gp_waiter *waiter, uint32_t bytes,
                                const uint8_t *input, int big_endian)
{
    gp_queue *queue = &client->queue;
    struct gp_waiter *own = &client->waiters[slot];
    uint32_t generation = GP_GENERATION(atomic_load_explicit(&queue->word[slot], memory_order_relaxed));
    uint64_t now = gp_now_ns();
    int closed;

    own->kind = waiter->kind;
    own->wait = waiter->wait;
    own->remote = waiter->remote;
    own->tag = waiter->tag;
    own->key = waiter->key;
    own->waits = 0;
    atomic_store_explicit(&queue->wake[slot], GP_WAKE_NOBODY, memory_order_relaxed);
    queue->key[slot] = waiter->key;
    queue->bytes[slot] = bytes;
    queue->submitted_ns[slot] = now;
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
    wake_for_request(client, bytes, now);
    return gp_request_handle_of(slot, generation);
}

uint32_t gp_client_poll(const gp_client *client, gp_request_handle handle)
{
    uint32_t word = atomic_load(&client->queue.word[gp_request_slot(handle)]);

    if (GP_STATE(word) == GP_DONE_OK || GP_STATE(word) == GP_DONE_ERR)
        return GP_STATE(word);
    return 0;
}

void gp_client_sleep_until_done(gp_client *client, gp_request_handle handle, uint64_t deadline_ns)
{
    _Atomic uint32_t *wake = &client->queue.wake[gp_request_slot(handle)];
    const struct timespec deadline = {.tv_sec = (time_t)(deadline_ns / 1000000000u),
                                      .tv_nsec = deadline_ns % 1000000000u};

    gp_turn_end();
    /* Sequentially consistent on both sides: either the consumer sees that we sleep, or we see its DONE. */
    atomic_store(wake, GP_WAKE_THREAD);
    while (atomic_load(wake) == GP_WAKE_THREAD && gp_client_poll(client, handle) == 0)
        if (syscall(SYS_futex, wake, FUTEX_WAIT_BITSET, GP_WAKE_THREAD,
                    deadline_ns == GP_NO_DEADLINE ? NULL : &deadline, NULL, FUTEX_BITSET_MATCH_ANY)
                != 0
            && errno == ETIMEDOUT)
            return;
}

void gp_client_wake_thread(gp_client *client, uint32_t slot)
{
    _Atomic uint32_t *wake = &client->queue.wake[slot];
    uint32_t expected = GP_WAKE_THREAD;

    if (atomic_load(wake) == GP_WAKE_THREAD && atomic_compare_exchange_strong(wake, &expected, GP_WAKE_NOBODY))
        syscall(SYS_futex, wake, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

int gp_client_collect(gp_client *client, gp_request_handle handle, uint32_t bytes, uint8_t *output, int big_endian)
{
    uint32_t slot = gp_request_slot(handle);
    uint8_t *result = client->queue.output + (size_t)slot * GP_MAX_BYTES;
    int ok = gp_client_poll(client, handle) == GP_DONE_OK;

    if (ok && output != NULL)
        copy(output, result, bytes, big_endian);
    if (client->descriptors != NULL)
        atomic_store_explicit(&client->last_result_ns, gp_now_ns(), memory_order_relaxed);
    OPENSSL_cleanse(result, GP_MAX_BYTES);
    gp_client_release(client, slot);
    return ok;
}

void gp_client_orphan(gp_client *client, gp_request_handle handle)
{
    _Atomic uint32_t *word = &client->queue.word[gp_request_slot(handle)];
    uint32_t now = atomic_load_explicit(word, memory_order_acquire);

    atomic_fetch_add_explicit(&client->orphaned, 1, memory_order_relaxed);
    while (GP_GENERATION(now) == gp_request_generation(handle)) {
        if (GP_STATE(now) == GP_DONE_OK || GP_STATE(now) == GP_DONE_ERR) {
            gp_client_collect(client, handle, 0, NULL, 0);
            return;
        }
        if (atomic_compare_exchange_weak_explicit(word, &now, GP_WORD(GP_GENERATION(now), GP_ORPHANED),
                                                  memory_order_acq_rel, memory_order_acquire)) {
            if (client->drop_orphans != NULL)
                client->drop_orphans(client);
            if (client->descriptors != NULL) {
                pthread_mutex_lock(&client->lock);
                client->orphans[client->orphan_count++] = gp_request_slot(handle);
                pthread_mutex_unlock(&client->lock);
            }
            return;
        }
    }
}

enum gp_submit gp_client_submit(gp_client *client, gp_key_handle handle, const uint8_t *input, uint64_t tag,
                                int wait_for_room)
{
    struct gp_waiter waiter = {.kind = GP_WAITER_TAG, .tag = tag, .key = handle};
    struct gp_queued *entry = NULL;
    uint32_t bytes, slot;

    if (!gp_client_is_usable(client))
        return GP_SUBMIT_CLOSED;
    if (!gp_key_table_pin(client->keys, handle, &bytes))
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

/* ---- finished requests of gp_client_submit() ---- */

void gp_client_finish(gp_client *client, uint32_t slot)
{
    pthread_mutex_lock(&client->lock);
    gp_slot_list_push(&client->finished, client->queue.depth, slot);
    pthread_mutex_unlock(&client->lock);
}

/* Once the client is closed nothing is released into the wait queue any more, so `dropped` only shrinks. */
static struct gp_queued *pop_dropped(gp_client *client)
{
    struct gp_queued *entry = client->dropped.first;

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

uint32_t gp_client_take_finished(gp_client *client, uint32_t count, uint64_t *tags, uint8_t *ok, uint8_t *outputs)
{
    gp_queue *queue = &client->queue;

    for (uint32_t taken = 0; taken < count; taken++) {
        struct gp_queued *dropped = NULL;
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
            ok[taken] = gp_client_collect(client, gp_request_handle_of(slot, GP_GENERATION(word)), GP_MAX_BYTES,
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
