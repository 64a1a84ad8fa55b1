/* The consumer's side of the queue: takes requests in batches, publishes results, wakes who waits.
 *
 * Runs in the batching provider, over a client of the same process.
 */
#ifndef GP_CONSUMER_H
#define GP_CONSUMER_H

#include <stdint.h>

#include "queue/client.h"
#include "queue/crowd.h"
#include "types.h"

/* cffi: */
typedef struct gp_consumer gp_consumer;

/* Takes a reference to the client. NULL: out of memory. One per client. */
gp_consumer *gp_consumer_new(gp_client *client);
void gp_consumer_free(gp_consumer *consumer);

struct gp_consumer_stats {
    uint64_t completed; /* requests whose result was delivered (OK or ERR) */
    uint64_t failed;    /* of those, ERR */
};
void gp_consumer_get_stats(const gp_consumer *consumer, struct gp_consumer_stats *stats);

/* What gp_consumer_wait() may do by itself with the requests of one size class. */
struct gp_class_rule {
    uint32_t small;   /* the largest batch that it computes, GP_SMALL_BATCH at most; 0: none */
    uint32_t least;   /* fewer requests than these wait for company, … */
    uint64_t wait_ns; /* … until the oldest has waited so long; but not one that comes after as long a silence */
};

/* One thread only. Sleeps until gp_client_wake_consumer() is called, timeout_ns passes (negative: no limit) or, with
 * `watch_submissions`, something new is submitted that is not to wait for company; pass 0 for that while no worker is
 * free, or every submission of a busy moment would wake the thread for nothing. Then moves what was submitted into the
 * size classes. waiting[GP_CLASSES]: requests not yet taken; oldest_ns: when the first of them was submitted
 * (CLOCK_MONOTONIC), 0 if none. Also fires the callbacks of those that the full queue turned away. Returns how many
 * keys have left the key table for good, each of which wakes it.
 *
 * rules[GP_CLASSES]; NULL: all zero. Small batches are computed here, by gp_cpu_private(), before anything is returned,
 * if nothing else waits but for company: to hand a few short operations to another thread costs about as much as to
 * compute them. All `small` must be 0 unless the processor's backend is in use and idle. What arrives meanwhile waits
 * for that batch. Requests of gp_client_submit() are never computed here. */
uint64_t gp_consumer_wait(gp_consumer *consumer, int64_t timeout_ns, int watch_submissions,
                          const struct gp_class_rule *rules, uint32_t *waiting, uint64_t *oldest_ns);

/* Takes up to `count` requests of a class, first come first served, and copies them out: handles[i]; keys[i] its key's
 * handle; inputs is [count][GP_CLASS_BYTES(class)], zero-padded, least significant byte first; submitted_ns[i]. Returns
 * how many (orphaned ones are dropped). The thread of gp_consumer_wait only. */
uint32_t gp_consumer_take(gp_consumer *consumer, uint32_t class_index, uint32_t count, gp_request_handle *handles,
                          gp_key_handle *keys, uint8_t *inputs, uint64_t *submitted_ns);

/* Whether one request of a class waits that came after a silence longer than wait_ns, so that it need not wait for
 * company. The thread of gp_consumer_wait only. */
int gp_consumer_is_alone(const gp_consumer *consumer, uint32_t class_index, uint64_t wait_ns);

/* How long what gp_consumer_take() would take of a class has waited for company, though it could have been computed.
 * The thread of gp_consumer_wait only. */
uint64_t gp_consumer_held_ns(const gp_consumer *consumer, uint32_t class_index);

/* How many requests were under way at the same time before gp_consumer_take(). The thread of gp_consumer_wait only. */
struct gp_crowd gp_consumer_crowd(const gp_consumer *consumer, uint32_t class_index);

/* Any thread. outputs: [count][stride]. ok[i]: 1 for a result, 0 for ERR. Wakes every waiter; no lock is held then.
 * Completing a handle twice, or one that was orphaned, does nothing. */
void gp_consumer_complete(gp_consumer *consumer, uint32_t count, const gp_request_handle *handles,
                          const uint8_t *outputs, uint32_t stride, const uint8_t *ok);

/* A batch that gp_consumer_wait() computed. */
#define GP_SMALL_BATCH 8u
struct gp_small_batch {
    uint32_t class_index;
    uint32_t requests;
    uint32_t failed;    /* of those, ERR */
    uint32_t again;     /* of those, computed again by OpenSSL because the kernels failed */
    uint64_t newest_ns; /* when the last of them was submitted */
    uint64_t held_ns;   /* how long they waited for company, though they could have been computed */
    uint64_t waited_ns; /* from the submission of the oldest request to the launch */
    uint64_t executed_ns;
    struct gp_crowd crowd; /* before it was taken */
};

/* Any thread. Copies the records of the small batches that were not taken yet, oldest first, and with `take` takes
 * them. Returns how many. A batch has its record before its results are delivered. gp_consumer_wait() returns when half
 * of GP_SMALL_BATCHES are there and nothing waits, or when a request has waited for company in vain, and computes no
 * more when all are there. None in a forked child. */
#define GP_SMALL_BATCHES 64u
uint32_t gp_consumer_small_batches(gp_consumer *consumer, struct gp_small_batch batches[GP_SMALL_BATCHES], int take);
/* :cffi */

/* ---- one group at a time, for gp_consumer_wait() and for groups.c instead of it ---- */

/* Requests of one size class that are computed together. About 9 KiB. */
struct gp_group {
    uint32_t class_index;
    uint32_t requests;
    uint32_t failed; /* of those, ERR */
    uint32_t again;  /* of those, computed again by OpenSSL because the kernels failed */
    gp_request_handle handles[GP_SMALL_BATCH];
    gp_key_handle keys[GP_SMALL_BATCH];
    uint64_t submitted_ns[GP_SMALL_BATCH];
    uint8_t ok[GP_SMALL_BATCH];
    uint8_t inputs[GP_SMALL_BATCH * GP_MAX_BYTES], outputs[GP_SMALL_BATCH * GP_MAX_BYTES];
};

/* One thread at a time: these and gp_consumer_take(). */
void gp_consumer_drain(gp_consumer *consumer); /* moves what was submitted into the size classes */
uint32_t gp_consumer_waiting(const gp_consumer *consumer, uint32_t class_index, uint32_t *first_slot); /* how many */
void gp_consumer_drop_orphans(gp_consumer *consumer, uint32_t class_index);
void gp_consumer_take_group(gp_consumer *consumer, uint32_t class_index, uint32_t most, struct gp_group *group);

/* Any thread. The second also wipes the outputs. */
void gp_consumer_compute_group(gp_consumer *consumer, struct gp_group *group);
void gp_consumer_complete_group(gp_consumer *consumer, struct gp_group *group);

#endif
