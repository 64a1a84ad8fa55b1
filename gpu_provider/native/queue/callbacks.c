#define _GNU_SOURCE
#include "queue/callbacks.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "process.h"
#include "queue/descriptors.h"

#define AT_ONCE 64
#define NEVER UINT64_MAX

struct gp_callbacks {
    int epoll;
    int timer; /* readable at armed_ns, or when gp_callbacks_wake() was called */
    pthread_mutex_t lock;
    struct gp_callback *first, *last;
    uint64_t armed_ns;
};

struct gp_callbacks *gp_callbacks_new(void)
{
    struct gp_callbacks *callbacks = calloc(1, sizeof(*callbacks));

    if (callbacks == NULL)
        return NULL;
    callbacks->epoll = epoll_create1(EPOLL_CLOEXEC);
    callbacks->timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    callbacks->armed_ns = NEVER;
    pthread_mutex_init(&callbacks->lock, NULL);
    if (callbacks->epoll < 0 || callbacks->timer < 0 || !gp_callbacks_watch(callbacks, callbacks->timer)) {
        int error = errno;

        gp_callbacks_abandon(callbacks);
        free(callbacks);
        errno = error;
        return NULL;
    }
    return callbacks;
}

void gp_callbacks_abandon(struct gp_callbacks *callbacks)
{
    if (callbacks->epoll >= 0)
        close(callbacks->epoll);
    if (callbacks->timer >= 0)
        close(callbacks->timer);
    callbacks->epoll = callbacks->timer = -1;
}

int gp_callbacks_descriptor(const struct gp_callbacks *callbacks)
{
    return callbacks->epoll;
}

/* Edge-triggered: a timerfd need not be read, and a socket is read to its end. */
int gp_callbacks_watch(struct gp_callbacks *callbacks, int descriptor)
{
    struct epoll_event event = {.events = EPOLLIN | EPOLLRDHUP | EPOLLET};

    return epoll_ctl(callbacks->epoll, EPOLL_CTL_ADD, descriptor, &event) == 0;
}

void gp_callbacks_unwatch(struct gp_callbacks *callbacks, int descriptor)
{
    (void)epoll_ctl(callbacks->epoll, EPOLL_CTL_DEL, descriptor, NULL);
}

void gp_callbacks_wake(struct gp_callbacks *callbacks)
{
    pthread_mutex_lock(&callbacks->lock);
    callbacks->armed_ns = 0; /* or arm() would make the timer forget it */
    gp_descriptor_signal(callbacks->timer);
    pthread_mutex_unlock(&callbacks->lock);
}

void gp_callbacks_drain(struct gp_callbacks *callbacks)
{
    struct epoll_event events[AT_ONCE];

    while (epoll_wait(callbacks->epoll, events, AT_ONCE, 0) == AT_ONCE)
        ;
}

/* With the lock. */
static void arm(struct gp_callbacks *callbacks, uint64_t deadline_ns)
{
    if (deadline_ns >= callbacks->armed_ns)
        return;
    callbacks->armed_ns = deadline_ns;
    gp_descriptor_set(callbacks->timer, deadline_ns);
}

/* With the lock. */
static void take_out(struct gp_callbacks *callbacks, struct gp_callback *callback)
{
    if (callback->previous != NULL)
        callback->previous->next = callback->next;
    else
        callbacks->first = callback->next;
    if (callback->next != NULL)
        callback->next->previous = callback->previous;
    else
        callbacks->last = callback->previous;
    callback->is_listed = 0;
}

int gp_callbacks_join(struct gp_callbacks *callbacks, struct gp_callback *callback, gp_request_handle handle,
                      uint64_t deadline_ns)
{
    int was_listed;

    pthread_mutex_lock(&callbacks->lock);
    was_listed = callback->is_listed;
    callback->handle = handle;
    if (!was_listed || deadline_ns < callback->deadline_ns)
        callback->deadline_ns = deadline_ns;
    if (!was_listed) {
        callback->is_listed = 1;
        callback->next = NULL;
        callback->previous = callbacks->last;
        if (callbacks->last != NULL)
            callbacks->last->next = callback;
        else
            callbacks->first = callback;
        callbacks->last = callback;
    }
    arm(callbacks, deadline_ns);
    pthread_mutex_unlock(&callbacks->lock);
    return was_listed;
}

int gp_callbacks_leave(struct gp_callbacks *callbacks, struct gp_callback *callback)
{
    int was_listed;

    pthread_mutex_lock(&callbacks->lock);
    was_listed = callback->is_listed;
    if (was_listed)
        take_out(callbacks, callback);
    pthread_mutex_unlock(&callbacks->lock);
    return was_listed;
}

static int is_due(const struct gp_callback *callback, uint64_t now)
{
    return callback->deadline_ns <= now || callback->is_over(callback);
}

/* Up to AT_ONCE of those that are due leave the list. */
static int take_due(struct gp_callbacks *callbacks, const struct gp_callback **due, struct gp_wait **waits)
{
    struct gp_callback *callback, *next;
    uint64_t now = gp_now_ns(), earliest_ns = NEVER;
    int count = 0;

    pthread_mutex_lock(&callbacks->lock);
    if (callbacks->armed_ns <= now)
        callbacks->armed_ns = NEVER; /* it has fired, or is about to */
    for (callback = callbacks->first; callback != NULL && count < AT_ONCE; callback = next) {
        next = callback->next;
        if (is_due(callback, now)) {
            take_out(callbacks, callback);
            due[count] = callback;
            waits[count++] = callback->wait;
        } else if (callback->deadline_ns < earliest_ns) {
            earliest_ns = callback->deadline_ns;
        }
    }
    arm(callbacks, earliest_ns);
    pthread_mutex_unlock(&callbacks->lock);
    return count;
}

void gp_callbacks_fire(struct gp_callbacks *callbacks)
{
    const struct gp_callback *due[AT_ONCE];
    struct gp_wait *waits[AT_ONCE];
    int count;

    do {
        count = take_due(callbacks, due, waits);
        for (int i = 0; i < count; i++)
            due[i]->fire(waits[i]); /* frees the reference, and perhaps the callback with it */
    } while (count == AT_ONCE);
}
