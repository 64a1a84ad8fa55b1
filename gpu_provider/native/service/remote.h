/* One process that is connected to the service, as remotes.c (its requests) and remote_messages.c (what it says over
 * its socket) share it. For nobody else. */
#ifndef GP_REMOTE_H
#define GP_REMOTE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>

#include "queue/queue.h"
#include "service/service.h"

/* `handle`, by which the process knows it, is serial << 16 | its place; 0: the place is free. */
struct remote_key {
    gp_key_handle handle, own;
    int is_named; /* it is the service's: it stays in the table when the process is gone */
};

struct gp_remote {
    atomic_int references;
    gp_remotes *remotes;
    int socket;
    struct gp_remote_limits limits;
    gp_queue queue;
    int greeted;
    _Atomic uint64_t requests, failed;
    atomic_int malformed; /* what is in its queue makes no sense: its socket's thread ends it */

    /* the socket's thread */
    int *descriptors; /* [limits.descriptors] */
    _Atomic uint32_t descriptor_count;

    pthread_mutex_t lock;
    struct remote_key *keys; /* [limits.keys] */
    uint32_t key_count;
    uint64_t key_serial;

    /* under gp_remotes.lock */
    int active; /* its queue may have something */
    int closed;
    gp_remote *next; /* active */
};

/* The service's client, whose keys those of all processes are. */
gp_client *gp_remotes_client(const gp_remotes *remotes);

/* The client's handle of a key that the service has; 0: there is none of this name. The socket's thread. */
gp_key_handle gp_remotes_find_key(const gp_remotes *remotes, const char *name, size_t size);

/* Its last keys leave the client. */
void gp_remote_remove_keys(gp_remote *remote);

#endif
