/* Fires async callbacks in a program whose requests another process computes, where no thread of ours could: the program
 * watches one descriptor, and has them fired on its own thread.
 *
 * One lock, which is the last to be taken but gp_client.lock. Thread-safe.
 */
#ifndef GP_CALLBACKS_H
#define GP_CALLBACKS_H

#include <stdint.h>

#include "queue/client.h"

struct gp_callbacks;

/* A paused job's place in the list; zeros at first but for `fire`, `wait` and `client`. */
struct gp_callback {
    struct gp_callback *next, *previous;
    int is_listed;
    gp_request_handle handle; /* 0: it waits for a slot */
    uint64_t deadline_ns;     /* when it is due if nothing comes before */
    gp_client *client;
    gp_tell *fire;
    struct gp_wait *wait; /* a reference, while it is in the list */
};

/* Never freed. NULL with errno set. */
struct gp_callbacks *gp_callbacks_new(void);

/* Readable when some may be due. */
int gp_callbacks_descriptor(const struct gp_callbacks *callbacks);

/* Another descriptor at whose signal some may be due: a timerfd, or a socket. 0: no memory. */
int gp_callbacks_watch(struct gp_callbacks *callbacks, int descriptor);
void gp_callbacks_unwatch(struct gp_callbacks *callbacks, int descriptor); /* before it is closed */

/* Joins the list, with the caller's reference to `wait`. 1: it was there already, and the reference is the caller's
 * again; of two deadlines the earlier counts. */
int gp_callbacks_join(struct gp_callbacks *callbacks, struct gp_callback *callback, gp_request_handle handle,
                      uint64_t deadline_ns);

/* 1: it was there, and the reference is the caller's again. */
int gp_callbacks_leave(struct gp_callbacks *callbacks, struct gp_callback *callback);

/* Makes the descriptor readable. */
void gp_callbacks_wake(struct gp_callbacks *callbacks);

/* For whoever finds the descriptor readable, before it looks why. */
void gp_callbacks_drain(struct gp_callbacks *callbacks);

/* Fires those whose request is done, or whose client is closed, or whose time has come; they leave the list. */
void gp_callbacks_fire(struct gp_callbacks *callbacks);

/* In a forked child: closes its copies. */
void gp_callbacks_abandon(struct gp_callbacks *callbacks);

#endif
