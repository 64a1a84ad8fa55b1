/* The submitter's side of the queue in one process: free slots, the wait queue of those whom the full queue turned
 * away, who waits for which slot, and the keys that requests name. Needs no consumer in this process: to wake it, it
 * rings.
 *
 * Locks, in the order in which they may be taken: gp_wait.lock, gp_client.lock, gp_key_table.lock. None is held while a
 * callback of the application runs, a thread sleeps on a slot, or OpenSSL computes. Fork and lifetimes: DESIGN.md.
 */
#ifndef GP_CLIENT_H
#define GP_CLIENT_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>

#include "keys/cpu.h"
#include "keys/key_table.h"
#include "queue/queue.h"
#include "types.h"

/* cffi: */
typedef struct gp_client gp_client;

/* NULL with errno set. */
gp_client *gp_client_new(uint32_t depth);
void gp_client_free(gp_client *client);

/* From now on operations are computed at once by OpenSSL, those in the wait queue included, and nothing is submitted.
 * What was submitted before stays, visible to the next gp_consumer_wait(); the consumer must still complete it. */
void gp_client_close(gp_client *client);

/* Any thread: makes the consumer's next wait, or the one that it is in, return. Does nothing in a forked child. */
void gp_client_wake_consumer(gp_client *client);

/* For a thread that has more to submit, as an event loop has that handles all that is ready, so that one turn makes one
 * batch. Between gp_turn_begin() and gp_turn_suspend() its requests don't wake the consumer where they would wait for
 * company anyway (gp_client_hold_turns()); gp_turn_end() does. So does the one that makes GP_TURN_REQUESTS, or that
 * comes GP_TURN_NS after the first. It is a hint: the requests are in the queue, and whatever else wakes the consumer
 * finds them. gp_turn_suspend() returns how many are held back; until gp_turn_end() the turn may go on with
 * gp_turn_begin(). */
#define GP_TURN_REQUESTS 8u
#define GP_TURN_NS 2000000u
void gp_turn_begin(void);
uint32_t gp_turn_suspend(void);
void gp_turn_end(void);

/* Counters, all since the client was made. */
struct gp_client_stats {
    uint64_t submitted;   /* requests put into the queue */
    uint64_t retries;     /* times the queue was full: RETRY */
    uint64_t orphaned;    /* requests whose waiter went away */
    uint64_t direct;      /* computed at once by OpenSSL: provider closed, forked child, or no descriptor left */
    uint32_t in_use;      /* slots not free now */
    uint32_t queued;      /* requests waiting for a free slot now */
    uint32_t keys;        /* in the table now */
    uint32_t kernel_keys; /* of those, with constants for the kernels */
    uint32_t locked_keys; /* of those, in locked memory */
};
void gp_client_get_stats(gp_client *client, struct gp_client_stats *stats);

/* Its keys, and the processor's arithmetic over them. Both live as long as the client. */
gp_key_table *gp_client_keys(const gp_client *client);
gp_cpu *gp_client_cpu(const gp_client *client);

/* Both wake the consumer when a key has left the table for good. */
void gp_client_remove_key(gp_client *client, gp_key_handle handle);
void gp_client_unpin_key(gp_client *client, gp_key_handle handle, uint32_t pins);

/* For callers that are told of the end through gp_client_take_finished() instead of waiting: Python's futures.
 * input is `bytes` long, least significant byte first. GP_SUBMIT_FULL unless `wait_for_room`, which joins the wait
 * queue. */
enum gp_submit { GP_SUBMIT_FAILED = 0, GP_SUBMIT_OK = 1, GP_SUBMIT_FULL = 2, GP_SUBMIT_CLOSED = 3 };
enum gp_submit gp_client_submit(gp_client *client, gp_key_handle handle, const uint8_t *input, uint64_t tag,
                                int wait_for_room);

/* Any thread. Up to `count` finished requests of gp_client_submit(): their tags, ok (enum gp_finished) and outputs
 * [count][GP_MAX_BYTES], least significant byte first. Returns how many. */
enum gp_finished { GP_FINISHED_ERR = 0, GP_FINISHED_OK = 1, GP_FINISHED_CLOSED = 2 /* was still in the wait queue */ };
uint32_t gp_client_take_finished(gp_client *client, uint32_t count, uint64_t *tags, uint8_t *ok, uint8_t *outputs);
/* :cffi */

struct gp_groups;

gp_client *gp_client_up_ref(gp_client *client);

int gp_client_is_forked(const gp_client *client); /* a copy, in a child of the process that made it */
int gp_client_is_usable(gp_client *client);       /* not NULL, not closed, of this process */

/* Takes a reference, and may prepare the key for the kernels. Never 0 but out of memory or in a forked child. */
gp_key_handle gp_client_add_key(gp_client *client, gp_key *key);

/* Counts an operation that was computed at once. */
void gp_client_count_direct(gp_client *client);

/* ---- a request's slot: wait.c ---- */

#define GP_NO_SLOT UINT32_MAX
#define GP_CLOSED_SLOT (UINT32_MAX - 1) /* instead of a slot: the client was closed, compute at once */

struct gp_wait;
/* Owns the reference to `wait` that it is given. No lock is held. */
typedef void gp_tell(struct gp_wait *wait);

enum gp_waiter_kind {
    GP_WAITER_JOB,    /* a paused job: its callback or wait fd */
    GP_WAITER_THREAD, /* a thread that sleeps */
    GP_WAITER_TAG,    /* gp_client_take_finished() */
    GP_WAITER_REMOTE  /* a request of another process: struct gp_source */
};

/* Who waits for a slot. Written by the producer before SUBMITTED, read by the consumer that claimed FINISHING. */
struct gp_waiter {
    enum gp_waiter_kind kind;
    struct gp_wait *wait; /* JOB: one reference, passed to the consumer */
    void *remote;         /* REMOTE: likewise */
    uint64_t tag;         /* TAG and REMOTE */
    gp_key_handle key;    /* pinned until the request is done; of another process's consumer: as that knows it */
    uint32_t waits;       /* groups.c has counted it among those that wait for company */
};

/* A place in the wait queue; first in, first out. All under gp_client.lock, but for `slot`, which the owner may look at
 * without it. */
struct gp_queued {
    struct gp_queued *next, *previous;
    _Atomic uint32_t slot; /* GP_NO_SLOT until one is reserved for this entry */
    enum gp_waiter_kind kind;
    gp_tell *reserved;       /* JOB: to be called when a slot is reserved, or the client closed */
    struct gp_wait *wait;    /* for that; the entry is part of it */
    pthread_cond_t *sleeper; /* THREAD: sleeps here */
    /* TAG: the entry is on the heap and carries the request, because nobody comes back to submit it */
    uint64_t tag;
    gp_key_handle key;
    uint32_t bytes;
    const uint8_t *input;
};

/* Takes a free slot (state CLAIMED), or joins the wait queue and returns GP_NO_SLOT, or GP_CLOSED_SLOT. entry may be
 * NULL: do not join. Newcomers do not overtake those in the wait queue. */
uint32_t gp_client_claim(gp_client *client, struct gp_queued *entry);

/* The same, but the thread sleeps until there is a slot or the client is closed. */
uint32_t gp_client_claim_asleep(gp_client *client);

/* Gives a slot back: to the first in the wait queue, who is told, or to the free ones. Runs callbacks; hold no lock. */
void gp_client_release(gp_client *client, uint32_t slot);

/* Leaves the wait queue; 1 if the entry's reference to `wait` is the caller's again. If a slot was reserved meanwhile,
 * it is given back. */
int gp_client_leave_wait_queue(gp_client *client, struct gp_queued *entry);

/* Writes the request into a CLAIMED slot and submits it; returns its handle, or 0 if the client was closed (the slot is
 * given back). On success the waiter's reference to `wait` and the key's pin belong to the queue. */
gp_request_handle gp_client_put(gp_client *client, uint32_t slot, const struct gp_waiter *waiter, uint32_t bytes,
                                const uint8_t *input, int big_endian);

/* The request is done (state DONE_*): copies the result out (output may be NULL), wipes it and releases the slot.
 * 1 if it was DONE_OK. */
int gp_client_collect(gp_client *client, gp_request_handle handle, uint32_t bytes, uint8_t *output, int big_endian);

/* Nobody waits for the request any more. */
void gp_client_orphan(gp_client *client, gp_request_handle handle);

/* GP_DONE_OK, GP_DONE_ERR, or 0 while it is not done. */
uint32_t gp_client_poll(const gp_client *client, gp_request_handle handle);

/* Sleeps until the request is done, until its thread is woken, or until deadline_ns (CLOCK_MONOTONIC): the caller looks
 * which it is. */
#define GP_NO_DEADLINE UINT64_MAX
void gp_client_sleep_until_done(gp_client *client, gp_request_handle handle, uint64_t deadline_ns);

/* Wakes the thread that sleeps for the request in this slot, if one does. */
void gp_client_wake_thread(gp_client *client, uint32_t slot);

/* ---- a consumer in another process: service/ ---- */

/* A client over a queue that the other process made, and owns both descriptors in any case; NULL with errno set. Its
 * requests wait until for timeout_ns none was done, or the other process has hung up on `socket`, and then their owners
 * compute them. Whoever is to be told through a descriptor gets one of `descriptors`, which become the client's. Keys
 * are not in its key table. */
struct gp_descriptors;
gp_client *gp_client_of_service(int memfd, int doorbell, int socket, struct gp_descriptors *descriptors,
                                uint64_t timeout_ns);

/* Whoever waits calls this as often, for all others too: closes the client if the other process has hung up, and has
 * the wait queue told of slots that the other process has made free. */
#define GP_LOOK_NS 50000000u
void gp_client_look(gp_client *client);

void gp_client_hang_up(gp_client *client); /* in a forked child: closes its copy of the socket */

/* NULL: the consumer is in this process. */
struct gp_descriptors *gp_client_descriptors(const gp_client *client);

/* When its owner is to give up a request that began at began_ns; GP_NO_DEADLINE: never. Results of others put it off,
 * but not for ever: who waits in a long queue need not fear that nobody is there. */
uint64_t gp_client_give_up_ns(const gp_client *client, uint64_t began_ns);

/* From now on, jobs with a callback are told by `callbacks`, which lives longer. Once, before it is used. 0: there is
 * no descriptor for it. */
struct gp_callbacks;
int gp_client_use_callbacks(gp_client *client, struct gp_callbacks *callbacks);
struct gp_callbacks *gp_client_callbacks(const gp_client *client); /* NULL: such jobs can't be told */
uint32_t gp_client_callbacks_number(const gp_client *client);      /* of the descriptor that is signalled for them */

/* Something to be told by the consumer's thread: a job's stack is no place for foreign code. Zeros at first. */
struct gp_errand {
    struct gp_errand *next;
    int posted;
    gp_tell *run;
    struct gp_wait *wait;
};

/* 1, or 0 if it is posted already: the reference to its `wait` stays the caller's then. */
int gp_client_post(gp_client *client, struct gp_errand *errand);

/* ---- a consumer in the same process: consumer.c, groups.c ---- */

/* Those who compute the client's requests where no thread of their own does; NULL: one does. Set once, before the
 * client is used. drop_orphans is called when a request was orphaned. */
void gp_client_set_groups(gp_client *client, struct gp_groups *groups, void (*drop_orphans)(gp_client *client));
struct gp_groups *gp_client_groups(const gp_client *client);

/* Where a consumer's requests come from besides its own process. */
struct gp_source {
    int descriptor;                                   /* readable when there are any */
    void (*submit)(void *context, gp_client *client); /* submits them. The thread of gp_consumer_wait() */
    /* A request with GP_WAITER_REMOTE is done, and its slot is free again. Any thread; no lock is held. output: least
     * significant byte first. */
    void (*finish)(void *remote, uint64_t tag, const uint8_t *output, uint32_t bytes, int ok);
    void *context;
};
void gp_client_set_source(gp_client *client, const struct gp_source *source); /* once; copied */
const struct gp_source *gp_client_source(const gp_client *client);            /* NULL: none */

gp_queue *gp_client_queue(gp_client *client);
struct gp_waiter *gp_client_waiters(const gp_client *client); /* [depth] */

/* Whether gp_client_wake_consumer() was called since the last time. */
int gp_client_take_wake(gp_client *client);

void gp_client_run_errands(gp_client *client);

/* classes: bit i is set if requests of size class i are to wait for their turn's end. */
void gp_client_hold_turns(gp_client *client, uint32_t classes);

/* A request of gp_client_submit() is done. */
void gp_client_finish(gp_client *client, uint32_t slot);

#endif
