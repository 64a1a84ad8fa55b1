/* The client processes of a service, for gpu_provider/service/processes.py. Each has a queue of its own, which the
 * service makes and then shares with a process that it does not trust: whatever is there is copied before it is
 * checked, and a process that lies harms itself alone.
 *
 * Their requests become requests of the service's own client, so that one batching provider computes all of them. They
 * stay in their queues as long as that has enough to compute, and are taken from one after the other in turn: who
 * floods its own queue delays others by what is computed just now.
 */
#ifndef GP_SERVICE_H
#define GP_SERVICE_H

#include <stdint.h>

#include "queue/client.h"

/* cffi: */
typedef struct gp_remotes gp_remotes;
typedef struct gp_remote gp_remote;

/* For a client whose consumer is in this process; once for each, and never freed. `room`: requests that it has at a
 * time, of all processes together; it needs twice as many slots. NULL with errno set. */
gp_remotes *gp_remotes_new(gp_client *client, uint32_t room);
void gp_remotes_set_room(gp_remotes *remotes, uint32_t room);

/* A key of the client's table, which processes use by this name from now on. By the thread that serves them. The key
 * stays the caller's: once it has left the table, they can no longer use it. 0: out of memory, or not a name. */
int gp_remotes_name_key(gp_remotes *remotes, const char *name, gp_key_handle handle);

struct gp_remote_limits {
    uint32_t requests;    /* in the queue */
    uint32_t keys;        /* that it brings, or uses by name */
    uint32_t descriptors; /* connections that wait at the same time */
};

/* One process, which has connected. Owns the socket in any case. NULL with errno set. */
gp_remote *gp_remote_new(gp_remotes *remotes, int socket, const struct gp_remote_limits *limits);

/* To be called when the socket is readable, by one thread for all: reads messages and answers them; adding a key takes
 * a moment. 0: none is left; otherwise an errno, and the process is to be closed: ECONNRESET, it has ended; EPROTO, it
 * does not keep to the protocol; ENOBUFS, it does not read its answers. */
int gp_remote_serve(gp_remote *remote);

/* Ends it. What is being computed for it goes nowhere. */
void gp_remote_close(gp_remote *remote);

struct gp_remote_stats {
    uint64_t requests;
    uint64_t failed; /* of those: not valid, or the operation failed */
    uint32_t keys;
    uint32_t descriptors;
};
void gp_remote_get_stats(gp_remote *remote, struct gp_remote_stats *stats);
/* :cffi */

#endif
