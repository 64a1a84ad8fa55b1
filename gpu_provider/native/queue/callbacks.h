/* Fires async callbacks in a program whose requests another process computes, and where no thread is ours to do it: the
 * program watches one descriptor, and has them fired on its own thread.
 *
 * Thread-safe; gp_client.lock may be taken while its lock is held.
 */
#ifndef GP_CALLBACKS_H
#define GP_CALLBACKS_H

#include <stdint.h>

#include "queue/queue.h"

struct gp_callbacks;
struct gp_client;
struct gp_wait;

/* A paused job's place in the list; zeros at first but for what does not change. */
struct gp_callback {
    struct gp_callback *next, *previous;
    int is_listed;
    gp_request_handle handle; /* 0: it waits for a slot */
    uint64_t deadline_ns;     /* when it is due if nothing comes before */
    /* which do not change */
    struct gp_client *client;
    struct gp_wait *wait;                               /* a reference, while it is in the list */
    void (*fire)(struct gp_wait *wait);                 /* owns the reference; no lock is held */
    int (*is_over)(const struct gp_callback *callback); /* whether what it waits for is */
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

/* Fires those whose wait is over, or whose time has come; they leave the list. */
void gp_callbacks_fire(struct gp_callbacks *callbacks);

/* In a forked child: closes its copies. */
void gp_callbacks_abandon(struct gp_callbacks *callbacks);

#endif
