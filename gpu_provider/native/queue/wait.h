/* How a paused job is told to go on.
 *
 * A gp_wait belongs to one ASYNC_WAIT_CTX, that is to one connection. It is counted: the wait context has a reference
 * once the job has paused, and so has each request and each place in the wait queue.
 */
#ifndef GP_WAIT_H
#define GP_WAIT_H

#include <openssl/async.h>
#include <stdint.h>

#include "queue/client.h"

struct gp_wait *gp_wait_up_ref(struct gp_wait *wait);
void gp_wait_free(struct gp_wait *wait);

/* ---- any thread ---- */

/* Fetches from memory what gp_wait_notify() will need soon. */
void gp_wait_prefetch(const struct gp_wait *wait);

/* Fires the callback of a job's connection, or signals its wait fd, if the job has paused. Hold no lock. */
void gp_wait_notify(struct gp_wait *wait);

/* The request failed: to be called before it is published as done, since afterwards the job may have gone on. */
void gp_wait_set_error(struct gp_wait *wait);

/* ---- the job's own thread ---- */

/* Whether the caller is a job, and whether its connection has a callback: no deadline can wake it. */
int gp_wait_in_job(int *has_callback);

/* The connection's gp_wait: the one that is registered, or a new one, whose reference is the caller's. NULL: no memory,
 * or none that can be told of an end. To be followed by gp_wait_leave() when the operation is over: one whose job never
 * paused is gone then. */
struct gp_wait *gp_wait_of(gp_client *client, ASYNC_WAIT_CTX *context);
void gp_wait_leave(struct gp_wait *wait);

/* The same for who can't do without: one that belongs to another client is this one's from now on. Its descriptor
 * stays, and where the service doesn't have that, the job looks for itself, once in a millisecond. NULL also if the
 * connection has a callback that nobody would fire. */
struct gp_wait *gp_wait_moved_to(gp_client *client, ASYNC_WAIT_CTX *context);

/* Waits until then for nothing else: pauses the job if it can be, or sleeps. */
void gp_wait_nap(uint64_t until_ns);

/* Which request is given up if the connection is freed; 0: none. */
void gp_wait_set_request(struct gp_wait *wait, gp_request_handle handle);

/* How many jobs of this thread have a request, or a place in the wait queue. Only this thread can resume them. */
unsigned gp_wait_jobs_of_thread(void);

/* How long to wait for a request: what the client says, or until then if nobody else can compute it. */
struct gp_term {
    uint64_t began_ns;
    uint64_t must_until_ns; /* 0: somebody can */
};
uint64_t gp_term_ends_ns(const gp_client *client, struct gp_term term);

struct gp_pauser {
    struct gp_wait *wait;
    struct gp_term term;
    unsigned at_once; /* times that it came back at once */
};

/* To be called before a last look at what the job waits for, and that before gp_wait_pause(): makes the wait fd
 * readable at deadline_ns, and forgets what was signalled before. */
enum gp_pausing { GP_MAY_PAUSE, GP_PAUSING_IS_BLOCKED, GP_NO_DESCRIPTOR };
enum gp_pausing gp_wait_prepare_to_pause(struct gp_pauser *pauser, uint64_t deadline_ns);

/* Pauses the job. In a forked child nothing that it waits for will come. Not paused: out of memory. */
enum gp_pause { GP_RESUMED, GP_FORKED, GP_NOT_PAUSED };
enum gp_pause gp_wait_pause(struct gp_pauser *pauser);

void gp_wait_arm(struct gp_wait *wait, uint64_t deadline_ns);

/* Joins the wait queue, and pauses until it has a slot. Or GP_CLOSED_SLOT: compute at once. */
uint32_t gp_wait_for_slot(struct gp_pauser *pauser);

#endif
