/* The client's side of the queue in one process: free slots, the line of those the full queue turned away, who waits for
 * which slot, the key table, and the three ways of waiting.
 *
 * The consumer's half (gp_consumer_*) runs in the batching provider. In one process both work on the same gp_client.
 * Locks, fork and lifetimes: DESIGN.md.
 */
#ifndef GP_CLIENT_H
#define GP_CLIENT_H

#include <openssl/types.h>
#include <stdint.h>

#include "keys/key.h"
#include "queue/queue.h"

typedef struct gp_client gp_client;

/* Upper bounds, in nanoseconds, of the time distributions; what is above the last is in bucket GP_TIME_BOUNDS. */
#define GP_TIME_BOUNDS 13u
extern const uint64_t gp_time_bounds_ns[GP_TIME_BOUNDS];

/* Batches of one size class that gp_consumer_wait() computed itself. */
#define GP_SMALL_BATCH 8u
struct gp_small_stats {
    uint64_t requests;
    uint64_t failed;                     /* of those, ERR */
    uint64_t again;                      /* of those, computed again by OpenSSL because the kernels failed */
    uint64_t sizes[GP_SMALL_BATCH];      /* batches by size: [0] counts those of one request */
    uint64_t waited[GP_TIME_BOUNDS + 1]; /* batches by the time from submission to launch of their oldest request */
    uint64_t waited_ns;
    uint64_t executed[GP_TIME_BOUNDS + 1]; /* batches by the time that they took */
    uint64_t executed_ns;
};

/* Counters, all since the client was made. */
struct gp_client_stats {
    uint64_t submitted;   /* requests put into the queue */
    uint64_t completed;   /* requests whose result was delivered (OK or ERR) */
    uint64_t failed;      /* of those, ERR */
    uint64_t retries;     /* times the queue was full: RETRY */
    uint64_t orphaned;    /* requests whose waiter went away */
    uint64_t direct;      /* computed at once by OpenSSL: provider closed, forked child, or no descriptor left */
    uint32_t in_use;      /* slots not free now */
    uint32_t in_line;     /* requests waiting for a free slot now */
    uint32_t keys;        /* in the table now */
    uint32_t kernel_keys; /* of those, with constants for the kernels */
    uint32_t locked_keys; /* of those, in locked memory */
};

/* NULL with errno set. */
gp_client *gp_client_new(uint32_t depth);
gp_client *gp_client_up_ref(gp_client *client);
void gp_client_free(gp_client *client);

/* From now on operations are computed at once by OpenSSL, those in line included, and nothing is submitted. What was
 * submitted before stays, visible to the next gp_consumer_wait(); the consumer must still complete it. */
void gp_client_close(gp_client *client);
void gp_client_get_stats(gp_client *client, struct gp_client_stats *stats);
void gp_client_get_small_stats(gp_client *client, struct gp_small_stats *stats); /* [GP_CLASSES] */

/* The key table. A handle is never 0 and never used twice. Adding takes a reference; a removed key lives until the
 * requests that use it are done. 0: out of memory. */
uint64_t gp_client_add_key(gp_client *client, gp_key *key);
void gp_client_remove_key(gp_client *client, uint64_t handle);
gp_key *gp_client_get_key(gp_client *client, uint64_t handle); /* a new reference, or NULL */
/* Pins a key for one request or call: it stays in the table, removed or not. 0 if there is no such key. bytes: of its
 * modulus. */
int gp_client_pin_key(gp_client *client, uint64_t handle, uint32_t *bytes);
void gp_client_unpin_key(gp_client *client, uint64_t handle, uint32_t pins);

/* Reads an unencrypted private key (PEM or DER), checks it and adds it to the table: the library's load_key(). */
typedef struct gp_key_info {
    uint64_t handle;
    uint32_t bits;
    uint32_t bytes;          /* of the modulus */
    uint32_t exponent_bytes; /* of e */
    uint8_t modulus[GP_MAX_BYTES];  /* least significant byte first */
    uint8_t exponent[GP_MAX_BYTES]; /* least significant byte first */
} gp_key_info;

enum gp_load {
    GP_LOAD_OK = 0,
    GP_LOAD_UNREADABLE, /* neither PEM nor DER, or encrypted */
    GP_LOAD_NOT_RSA,
    GP_LOAD_NOT_PRIVATE,
    GP_LOAD_SIZE,    /* not GP_MIN_BITS to GP_MAX_BITS; info->bits says what */
    GP_LOAD_INVALID, /* even or tiny exponent, even modulus, p·q ≠ n, … */
    GP_LOAD_MEMORY
};
enum gp_load gp_client_load_key(gp_client *client, const uint8_t *der_or_pem, size_t size, gp_key_info *info);

/* output = input^d mod n, both key->bytes long, most significant byte first, input < n.
 *
 * In an OpenSSL async job the job pauses and the connection's callback, or its wait fd, tells when to go on; outside a job
 * the thread sleeps. client may be NULL, closed, or from before a fork: OpenSSL computes at once then.
 * 1, or 0 if the request failed. */
int gp_client_private_op(gp_client *client, gp_key *key, uint64_t handle, const uint8_t *input, uint8_t *output);

/* For callers that are told of the end through gp_consumer_take_finished() instead of waiting: Python's futures.
 * input is `bytes` long, least significant byte first. GP_SUBMIT_FULL unless `wait_for_room`, which joins the line. */
enum gp_submit { GP_SUBMIT_FAILED = 0, GP_SUBMIT_OK = 1, GP_SUBMIT_FULL = 2, GP_SUBMIT_CLOSED = 3 };
enum gp_submit gp_client_submit(gp_client *client, uint64_t handle, const uint8_t *input, uint64_t tag,
                                int wait_for_room);

/* ---- the consumer ---- */

/* One thread only. Sleeps until gp_consumer_wake() is called, timeout_ns passes (negative: no limit) or, with
 * `watch_submissions`, something new is submitted; pass 0 for that while no worker is free, or every submission of a busy
 * moment would wake the thread for nothing. Then moves what was submitted into the size classes. waiting[GP_CLASSES]: requests
 * not yet taken; oldest_ns: when the first of them was submitted (CLOCK_MONOTONIC), 0 if none. Also fires the callbacks of
 * those that the full queue turned away. Returns how many keys have left the key table for good, each of which wakes it.
 *
 * small[GP_CLASSES]: a batch of class i of at most small[i] requests (and GP_SMALL_BATCH) is computed here, by gp_cpu_private(), before
 * anything is returned, if nothing else waits: to hand a few short operations to another thread costs about as much as to
 * compute them. NULL unless the processor's backend is in use and idle. What arrives meanwhile waits for that batch. Requests of
 * gp_client_submit() are never computed here. */
uint64_t gp_consumer_wait(gp_client *client, int64_t timeout_ns, int watch_submissions, const uint32_t *small,
                          uint32_t *waiting, uint64_t *oldest_ns);
void gp_consumer_wake(gp_client *client); /* any thread */

/* Takes up to `count` requests of a class, first come first served, and copies them out: handles[i] is the request's
 * (slot, generation); keys[i] its key handle; inputs is [count][GP_CLASS_BYTES(class)], zero-padded, least significant
 * byte first; submitted_ns[i]. Returns how many (orphaned ones are dropped). The thread of gp_consumer_wait only. */
uint32_t gp_consumer_take(gp_client *client, uint32_t class_index, uint32_t count, uint64_t *handles, uint64_t *keys,
                          uint8_t *inputs, uint64_t *submitted_ns);

/* Any thread. outputs: [count][stride]. ok[i]: 1 for a result, 0 for ERR. Wakes every waiter; no lock is held then.
 * Completing a handle twice, or one that was orphaned, does nothing. */
void gp_consumer_complete(gp_client *client, uint32_t count, const uint64_t *handles, const uint8_t *outputs,
                          uint32_t stride, const uint8_t *ok);

/* Any thread. Up to `count` finished requests of gp_client_submit(): their tags, ok (enum gp_finished) and outputs
 * [count][GP_MAX_BYTES], least significant byte first. Returns how many. */
enum gp_finished { GP_FINISHED_ERR = 0, GP_FINISHED_OK = 1, GP_FINISHED_CLOSED = 2 /* was still in line */ };
uint32_t gp_consumer_take_finished(gp_client *client, uint32_t count, uint64_t *tags, uint8_t *ok, uint8_t *outputs);

/* ---- the processor's arithmetic over a batch: our kernels, or OpenSSL where that is faster ----
 *
 * No lock is held; any thread. */

/* From now on gp_cpu_private() and small batches compute with these kernels (gpk_functions(), which outlives the client).
 * smallest: how many rows must be left over for a group of their own; 0: measured with the first key of each size class. */
void gp_client_use_kernels(gp_client *client, const struct gpk_functions *kernels, uint32_t smallest);

/* As gp_libcrypto_private(). Returns how many results the kernels got wrong or could not compute for lack of memory; those
 * have ok[i] = 0, and the kernels are not to be trusted. */
uint32_t gp_cpu_private(gp_client *client, uint32_t count, const uint64_t *keys, const uint8_t *inputs, uint8_t *outputs,
                        uint32_t stride, uint8_t *ok);

/* ---- OpenSSL's arithmetic over a batch; no lock is held, any thread ---- */

/* ok[i] = 1 where outputs[i] = inputs[i]^d mod n. Rows are `stride` bytes, least significant byte first. */
void gp_libcrypto_private(gp_client *client, uint32_t count, const uint64_t *keys, const uint8_t *inputs,
                          uint8_t *outputs, uint32_t stride, uint8_t *ok);

/* Clears ok[i] where outputs[i]^e mod n is not inputs[i]. Returns how many it cleared. */
uint32_t gp_libcrypto_verify(gp_client *client, uint32_t count, const uint64_t *keys, const uint8_t *inputs,
                             const uint8_t *outputs, uint32_t stride, uint8_t *ok);

/* outputs[i] = bases[i]^exponents[i] mod moduli[i], odd moduli, constant time in bases and exponents (fixed window over the
 * whole exponent length). Rows of `stride` and `exponent_stride` bytes, least significant byte first. 1, or 0: out of memory. */
int gp_libcrypto_modexp(uint32_t count, const uint8_t *bases, const uint8_t *exponents, uint32_t exponent_stride,
                        const uint8_t *moduli, uint8_t *outputs, uint32_t stride);

/* A library context for an application (libssl) whose RSA goes through `client`: the default provider and ours, with
 * GP_PREFERENCE as default property query. NULL with an error queued. When nothing uses it any more,
 * gp_application_libctx_free() lets go of the client and keeps the context for the next client. Any thread. */
OSSL_LIB_CTX *gp_application_libctx_new(gp_client *client);
void gp_application_libctx_free(OSSL_LIB_CTX *libctx);

#endif
