/* Groups without a batching thread: those who wait for a request compute it, for themselves and for the others.
 *
 * The requests of one process wait in one list for each size class. Whoever makes a group full computes it in its own
 * call, and tells the others. Otherwise a request waits until its program has finished its turn, until a processor is
 * free, or for company where that is worth a wait (patience.h); then its owner computes what is there. No thread is
 * started, so a fork, a chroot and a limit of no processes cost nothing, and nothing is made before there is a second
 * request at the same time.
 *
 * Any thread. The lock is held for bookkeeping alone; it comes before those of client.h.
 */
#ifndef GP_GROUPS_H
#define GP_GROUPS_H

#include <stdint.h>

#include "kernels.h"
#include "queue/client.h"
#include "queue/patience.h"

typedef struct gp_groups gp_groups;

struct gp_group_settings {
    const struct gpk_functions *kernels;
    int pretend;          /* the kernels are taken to be as fast as on AVX-512 IFMA, not measured */
    uint32_t most;        /* requests in a group, GP_SMALL_BATCH at most */
    uint64_t max_wait_ns; /* of a request, for company */
};

/* The process's, made at the first call with the settings of whoever calls first; another one in a forked child. Never
 * freed. NULL: out of memory. */
gp_groups *gp_groups_of_process(const struct gp_group_settings *settings);

/* Whether a request of that size, which begins now, is to be computed by itself, because nobody waits and none is worth
 * waiting for, or can come. If so, gp_groups_computed_alone() must follow, and is told when that began. */
enum gp_waits {
    GP_CANT_WAIT, /* a job that no deadline can wake */
    GP_SLEEPS,    /* the thread, whose other requests can't come meanwhile */
    GP_PAUSES     /* a job */
};
int gp_groups_is_alone(gp_groups *groups, uint32_t bytes, enum gp_waits waits, uint64_t now_ns);
void gp_groups_computed_alone(gp_groups *groups, uint32_t bytes, uint64_t began_ns);

/* The queue for all others: gp_request_private_op(). Made at the first call. NULL: out of memory or descriptors. */
gp_client *gp_groups_client(gp_groups *groups);

/* To be called by the owner of a request when it has submitted it, and whenever it wakes up before the request is done:
 * computes its group if that is full or its time has come. Returns until when to wait: GP_NO_DEADLINE when the request
 * is done, or being computed by another; GP_NO_MEMORY: it can't be computed. A job that waits for the end of a turn is
 * to be told at once. Without groups it does nothing. */
#define GP_NO_MEMORY 0u
uint64_t gp_groups_serve(gp_client *client, gp_request_handle handle, enum gp_waits waits);

#endif
