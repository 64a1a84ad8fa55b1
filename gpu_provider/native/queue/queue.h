/* The request queue: struct-of-arrays in memory that processes can share.
 *
 * One memfd per client process holds a versioned header, the submission ring and one array per field of a request.
 * The client (producer) owns the free slots and writes requests; the batching provider (consumer) takes them in batches
 * and writes results. This file knows nothing of TLS, keys or callbacks; client.h does.
 *
 * Every slot's life is one word, generation << 4 | state, changed by compare-and-swap alone:
 *
 *   FREE ─client→ CLAIMED ─client→ SUBMITTED ─consumer→ RUNNING ─consumer→ FINISHING ─consumer→ DONE ─client→ FREE
 *                                      └─────────client──────┴───────client─────┴──→ ORPHANED ─consumer→ FREE
 *
 * FINISHING: one thread of the consumer has claimed the completion; a second one of the same handle does nothing.
 * ORPHANED: nobody waits any more (the connection was freed). The consumer finishes silently and frees the slot.
 * The generation changes when a slot is claimed, so a late completion can't hit a new request in the same slot.
 */
#ifndef GP_QUEUE_H
#define GP_QUEUE_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include "types.h"

#define GP_QUEUE_MAGIC UINT64_C(0x3165756575517067) /* "gpQueue1" */

/* cffi: */
#define GP_QUEUE_VERSION 1u
#define GP_MAX_DEPTH 65536u
/* :cffi */

enum gp_state {
    GP_FREE = 0,
    GP_CLAIMED = 1,
    GP_SUBMITTED = 2,
    GP_RUNNING = 3,
    GP_FINISHING = 4,
    GP_DONE_OK = 5,
    GP_DONE_ERR = 6,
    GP_ORPHANED = 7
};

/* What a slot's `wake` says: who is to be told when the request is done. */
#define GP_WAKE_NOBODY 0u
#define GP_WAKE_THREAD 1u      /* one that sleeps on it */
#define GP_WAKE_DESCRIPTORS 2u /* and more: a wait descriptor that both processes have, by its number */

#define GP_STATE(word) ((word) & 15u)
#define GP_GENERATION(word) ((word) >> 4)
#define GP_WORD(generation, state) ((uint32_t)(generation) << 4 | (uint32_t)(state))

static inline gp_request_handle gp_request_handle_of(uint32_t slot, uint32_t generation)
{
    return (gp_request_handle)generation << 32 | slot;
}

static inline uint32_t gp_request_slot(gp_request_handle handle)
{
    return (uint32_t)handle;
}

static inline uint32_t gp_request_generation(gp_request_handle handle)
{
    return (uint32_t)(handle >> 32);
}

/* What lies at offset 0 of the shared memory. Offsets are in bytes from its start. The first cache line is written
 * once, before the memory is shared; `tail` and `sleeping` have cache lines of their own as producers hammer them. */
struct gp_queue_header {
    uint64_t magic;
    uint32_t version;
    uint32_t depth;     /* slots */
    uint32_t ring_size; /* submission ring cells: the power of two ≥ depth, at least 2 */
    uint32_t max_bytes; /* GP_MAX_BYTES of the writer */
    uint64_t total_size;
    uint8_t pad0[32];
    _Atomic uint32_t tail; /* submission ring: next cell to write */
    uint8_t pad1[60];
    _Atomic uint32_t sleeping; /* 1 while the consumer sleeps, or is about to: ring the doorbell */
    uint8_t pad2[60];
};

struct gp_ring_cell {
    _Atomic uint32_t sequence;
    uint32_t slot;
};

/* One process's view of the queue: what was validated at mapping time is kept here and never read from the shared
 * memory again. */
typedef struct gp_queue {
    struct gp_queue_header *header;
    struct gp_ring_cell *ring;
    _Atomic uint32_t *word; /* [depth] generation << 4 | state */
    _Atomic uint32_t *wake; /* [depth] GP_WAKE_… */
    gp_key_handle *key;     /* [depth] */
    uint64_t *submitted_ns; /* [depth] CLOCK_MONOTONIC */
    uint32_t *bytes;        /* [depth] length of the modulus in bytes */
    uint8_t *input;         /* [depth][GP_MAX_BYTES], least significant byte first */
    uint8_t *output;        /* [depth][GP_MAX_BYTES], least significant byte first */
    uint32_t depth;
    uint32_t ring_mask;
    uint32_t head; /* the consumer's place in the ring */
    size_t size;
    int memfd;
    int doorbell; /* eventfd */
} gp_queue;

/* Makes a queue of 1 ≤ depth ≤ GP_MAX_DEPTH slots in a sealed memfd and maps it; the pages are locked if the process
 * may and kept out of core dumps. Returns 0, or an errno value. */
int gp_queue_create(gp_queue *queue, uint32_t depth);

/* Maps the queue behind `memfd` after checking seals, header and size (the other side is not trusted); owns both
 * descriptors from then on. Returns 0, or an errno: EPROTO for another version, EINVAL for what is inconsistent. */
int gp_queue_map(gp_queue *queue, int memfd, int doorbell);

void gp_queue_unmap(gp_queue *queue);

/* Any thread. The slot must be SUBMITTED already. Afterwards the producer calls gp_queue_wake_consumer(), outside its
 * locks. */
void gp_queue_push(gp_queue *queue, uint32_t slot);

/* Any thread: rings the doorbell if the consumer sleeps and watches for submissions. */
void gp_queue_wake_consumer(gp_queue *queue);

/* The consumer's one thread. Returns 1 and a slot number < depth, 0 when the ring is empty, or -1 for a slot that does
 * not exist: a producer in another process lies. */
int gp_queue_pop(gp_queue *queue, uint32_t *slot);

/* Any thread: wakes the consumer, or makes its next sleep return at once. */
void gp_queue_ring_doorbell(gp_queue *queue);

/* The consumer's one thread: sleeps until the doorbell rings or timeout_ns passes (negative: no limit). With
 * `watch_submissions` it returns at once when there is something to pop, and producers ring; without, they do not. Nor
 * does it return when `other` becomes readable, a descriptor that tells of other submissions, or -1. */
void gp_queue_sleep(gp_queue *queue, int64_t timeout_ns, int watch_submissions, int other);

/* Any thread of the consumer's process: says whether there is nothing to pop, and that the next producer is to ring. */
int gp_queue_watch(gp_queue *queue);

#endif
