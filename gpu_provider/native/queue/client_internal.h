/* What client.c, key_table.c, cpu.c, wait.c and consumer.c share. Locks, in the order in which they may be taken:
 *
 *   gp_wait.lock → gp_client.lock → gp_client.keys_lock
 *
 * No lock is held while a callback of the application runs, while a thread sleeps on a slot, or while OpenSSL computes.
 */
#ifndef GP_CLIENT_INTERNAL_H
#define GP_CLIENT_INTERNAL_H

#include <openssl/async.h>
#include <pthread.h>

#include "queue/client.h"

#define GP_NO_SLOT UINT32_MAX
#define GP_CLOSED_SLOT (UINT32_MAX - 1) /* instead of a slot: the client was closed, compute at once */
#define GP_MAX_KEYS 65536u              /* in the table; a key handle is serial << 16 | index */

struct gp_wait;

enum gp_waiter_kind {
    GP_WAITER_JOB,    /* a paused job: its callback or wait fd */
    GP_WAITER_THREAD, /* a thread asleep on the slot's word */
    GP_WAITER_TAG     /* gp_consumer_take_finished() */
};

/* Who waits for a slot. Written by the producer before SUBMITTED, read by the consumer that claimed FINISHING. */
struct gp_waiter {
    enum gp_waiter_kind kind;
    struct gp_wait *wait;    /* JOB: one reference, passed to the consumer */
    uint64_t tag;            /* TAG */
    uint64_t key;            /* pinned until the request is done */
    _Atomic uint32_t asleep; /* a thread sleeps on the word: wake it */
};

/* A place in the line of those whom the full queue turned away; first in, first out. All under gp_client.lock, but for
 * `slot`, which the owner may look at without it. */
struct gp_in_line {
    struct gp_in_line *next, *previous;
    _Atomic uint32_t slot; /* GP_NO_SLOT until one is reserved for this entry */
    enum gp_waiter_kind kind;
    struct gp_wait *wait;    /* JOB; the entry is part of it */
    pthread_cond_t *reserved; /* a thread sleeps here */
    /* TAG: the entry is on the heap and carries the request, because nobody comes back to submit it */
    uint64_t tag;
    uint64_t key;
    uint32_t bytes;
    const uint8_t *input;
};

struct gp_line {
    struct gp_in_line *first, *last;
    uint32_t count;
};

/* First in, first out list of slots in memory of the consumer; holds every slot at most once. */
struct gp_slot_list {
    uint32_t *slots; /* [depth] */
    uint32_t first, count;
};

struct gp_key_entry {
    gp_key *key;
    uint64_t handle; /* 0: free */
    uint32_t pins;   /* requests that use it */
    uint32_t removed;
};

struct gp_client {
    atomic_int references;
    gp_queue queue;
    uint32_t fork_epoch;

    pthread_mutex_t lock;
    int closed;
    uint32_t *free_slots; /* a stack: the slot used last is warm in the cache */
    uint32_t free_count;
    struct gp_line line;
    struct gp_wait *to_announce; /* jobs in callback mode to be told RETRY; linked, one reference each */
    struct gp_slot_list finished; /* TAG requests that are done */
    struct gp_line dropped;       /* TAG requests in line when the client was closed */

    struct gp_waiter *waiters; /* [depth] */

    pthread_mutex_t keys_lock;
    struct gp_key_entry *keys;
    uint32_t key_count;
    uint64_t key_serial;
    _Atomic uint64_t removed_keys; /* that have left the table for good */

    _Atomic(const struct gpk_functions *) kernels; /* NULL: OpenSSL computes everything */
    _Atomic uint32_t smallest[GP_CLASSES]; /* rows of a group from which on the kernels are faster; 0: not measured yet */

    /* the consumer's one thread */
    struct gp_slot_list waiting[GP_CLASSES];
    atomic_int wake_requested;
    pthread_mutex_t small_lock; /* never held together with another */
    struct gp_small_stats small[GP_CLASSES];

    _Atomic uint64_t submitted, completed, failed, retries, orphaned, direct;
};

/* The process's fork epoch: changes in every forked child. What was made in another epoch belongs to the parent: its
 * threads don't exist here and its locks may be held for ever, so nothing of it is touched. */
uint32_t gp_fork_epoch(void);
int gp_client_is_usable(gp_client *client); /* not NULL, not closed, of this process */

/* Takes a free slot (state CLAIMED), or joins the line and returns GP_NO_SLOT, or GP_CLOSED_SLOT. entry may be NULL: do not
 * join. Newcomers do not overtake the line. */
uint32_t gp_client_claim(gp_client *client, struct gp_in_line *entry);

/* Gives a slot back: to the first in line, who is told, or to the free ones. Runs callbacks; hold no lock. */
void gp_client_release(gp_client *client, uint32_t slot);

/* Leaves the line; if a slot was reserved meanwhile, it is given back. */
void gp_client_leave_line(gp_client *client, struct gp_in_line *entry);

/* Writes the request into a CLAIMED slot and submits it; returns its handle, or 0 if the client was closed (the slot is
 * given back). On success the waiter's reference to `wait` and the key's pin belong to the queue. */
uint64_t gp_client_put(gp_client *client, uint32_t slot, const struct gp_waiter *waiter, uint32_t bytes,
                       const uint8_t *input, int big_endian);

/* The request is done (state DONE_*): copies the result out (output may be NULL), wipes it and releases the slot.
 * 1 if it was DONE_OK. */
int gp_client_collect(gp_client *client, uint64_t handle, uint32_t bytes, uint8_t *output, int big_endian);

/* Nobody waits for the request any more. */
void gp_client_orphan(gp_client *client, uint64_t handle);

/* GP_DONE_OK, GP_DONE_ERR, or 0 while it is not done. */
uint32_t gp_client_poll(const gp_client *client, uint64_t handle);

/* Sleeps until the request is done. */
void gp_client_sleep_until_done(gp_client *client, uint64_t handle);

void gp_client_count_keys(gp_client *client, struct gp_client_stats *stats);
/* A key's numbers as the kernels take them: n, e, p, q, dP, dQ, qInv. One block, wiped after use. */
struct gp_key_numbers {
    uint8_t bytes[7][GP_MAX_BYTES];
    struct gpk_number number[7];
};
/* 1 if the key has all of them, and no third prime, with which the five would give wrong results. */
int gp_key_read_numbers(const EVP_PKEY *pkey, struct gp_key_numbers *numbers);

/* Prepares every key that was added before the kernels were known. */
void gp_client_prepare_keys(gp_client *client);
/* Gives the key its constants for the kernels, unless it was tried before, they can't take it, or would never be faster. */
void gp_cpu_prepare(gp_client *client, gp_key *key);

/* wait.c: fetches from memory what gp_wait_notify() will need soon. */
void gp_wait_prefetch(const struct gp_wait *wait);
/* Fires the callback of a job's connection, or signals its wait fd. Hold no lock. */
void gp_wait_notify(struct gp_wait *wait);
/* The request failed: to be called before it is published as done, since afterwards the job may have gone on. */
void gp_wait_set_error(struct gp_wait *wait);
void gp_wait_free(struct gp_wait *wait);
/* Tells RETRY to those who have not been told yet. Consumer only. */
void gp_wait_announce_retries(gp_client *client);

/* lists */
void gp_slot_list_push(struct gp_slot_list *list, uint32_t depth, uint32_t slot);
uint32_t gp_slot_list_pop(struct gp_slot_list *list, uint32_t depth);

static inline uint32_t gp_handle_slot(uint64_t handle)
{
    return (uint32_t)handle;
}

static inline uint32_t gp_handle_generation(uint64_t handle)
{
    return (uint32_t)(handle >> 32);
}

#endif
