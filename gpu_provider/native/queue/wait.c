/* The three ways in which a caller of gp_wait_private_op() waits: a paused job with a callback, a paused job with a
 * wait fd, and a sleeping thread. DESIGN.md tells the whole story; the rules that this file keeps are:
 *
 * - Every pause is in a loop on the request's own state: a job can be resumed at any time, for any reason.
 * - Nothing points into the job's stack: the connection may be freed while the request is in a batch, and the stack
 *   goes with it. What outlives the job is the slot and the gp_wait, which is counted.
 * - The application may free the connection while another thread is about to fire its callback. libssl's callback
 *   dereferences the SSL, so the hook that OpenSSL calls when the wait context is freed waits until a callback that is
 *   under way has returned (unless it is called from within that callback).
 */
#define _GNU_SOURCE
#include "queue/wait.h"

#include <openssl/async.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "process.h"

/* One per ASYNC_WAIT_CTX, that is per connection; registered in it under `wait_key`, with an eventfd of its own or,
 * when the application has a callback, with `silent_fd`, which is never signalled: OpenSSL offers its cleanup hook only
 * to wait fds. */
struct gp_wait {
    /* One cache line, which is all that a completion touches: it is cold then. */
    _Alignas(64) atomic_int references;
    int fd; /* -1: callback mode */
    pthread_mutex_t lock;
    _Atomic(ASYNC_WAIT_CTX *) context; /* NULL once OpenSSL has freed it; changed under the lock */
    unsigned firing;                   /* callbacks under way */

    pthread_cond_t fired;
    gp_client *client;
    gp_request_handle in_flight; /* or 0 */
    int queued;
    pthread_t thread; /* of the job that is in flight or in the wait queue */
    struct gp_queued entry;
    struct gp_errand retry; /* to tell RETRY */
};

static const char wait_key; /* its address is the key */
static int silent_fd = -1;
static pthread_once_t silent_once = PTHREAD_ONCE_INIT;
static _Thread_local struct gp_wait *firing_here;

/* Jobs of this thread that hold a slot or a place in the wait queue. Only this thread can resume them, so while there
 * are any it must not sleep for a free slot: they may hold them all. */
static _Thread_local unsigned waiting_jobs;

static void make_silent_fd(void)
{
    silent_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
}

void gp_wait_free(struct gp_wait *wait)
{
    if (wait == NULL || atomic_fetch_sub_explicit(&wait->references, 1, memory_order_acq_rel) != 1)
        return;
    if (!gp_client_is_forked(wait->client)) {
        pthread_mutex_destroy(&wait->lock);
        pthread_cond_destroy(&wait->fired);
    }
    gp_client_free(wait->client);
    free(wait);
}

static struct gp_wait *up_ref(struct gp_wait *wait)
{
    atomic_fetch_add_explicit(&wait->references, 1, memory_order_relaxed);
    return wait;
}

static void notify_and_free(struct gp_wait *wait)
{
    gp_wait_notify(wait);
    gp_wait_free(wait);
}

/* OpenSSL frees the wait context: the connection is gone. */
static void context_freed(ASYNC_WAIT_CTX *context, const void *key, OSSL_ASYNC_FD fd, void *custom)
{
    struct gp_wait *wait = custom;
    gp_request_handle in_flight;
    int queued;

    (void)context, (void)key, (void)fd;
    if (gp_client_is_forked(wait->client)) {
        /* A child has its own copy of the descriptor, and nothing else here is its own: leave the memory. */
        if (wait->fd >= 0)
            close(wait->fd);
        return;
    }
    pthread_mutex_lock(&wait->lock);
    wait->context = NULL;
    while (wait->firing > (firing_here == wait ? 1u : 0u))
        pthread_cond_wait(&wait->fired, &wait->lock);
    in_flight = wait->in_flight;
    queued = wait->queued;
    if ((queued || in_flight != 0) && pthread_equal(wait->thread, pthread_self()))
        waiting_jobs--;
    if (wait->fd >= 0)
        close(wait->fd);
    wait->fd = -1;
    pthread_mutex_unlock(&wait->lock);
    if (queued && gp_client_leave_wait_queue(wait->client, &wait->entry))
        gp_wait_free(wait);
    if (in_flight != 0)
        gp_client_orphan(wait->client, in_flight);
    gp_wait_free(wait);
}

static int has_callback(ASYNC_WAIT_CTX *context)
{
    ASYNC_callback_fn callback = NULL;
    void *argument;

    return ASYNC_WAIT_CTX_get_callback(context, &callback, &argument) && callback != NULL;
}

/* The connection's gp_wait, made at the first operation; the context has the reference. NULL: no fd or memory. */
static struct gp_wait *wait_of(gp_client *client, ASYNC_WAIT_CTX *context)
{
    struct gp_wait *wait;
    OSSL_ASYNC_FD fd;
    void *custom;

    if (ASYNC_WAIT_CTX_get_fd(context, &wait_key, &fd, &custom)) {
        wait = custom;
        /* Another client: the connection was moved to a context of another provider. No callback and no fd of our own:
         * it had a callback when the gp_wait was made. Neither can be waited for by pausing. */
        return wait->client == client && (wait->fd >= 0 || has_callback(context)) ? wait : NULL;
    }
    wait = aligned_alloc(_Alignof(struct gp_wait), sizeof(*wait));
    if (wait == NULL)
        return NULL;
    memset(wait, 0, sizeof(*wait));
    wait->retry = (struct gp_errand){.run = notify_and_free, .wait = wait};
    wait->fd = -1;
    if (!has_callback(context)) {
        wait->fd = fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    } else {
        pthread_once(&silent_once, make_silent_fd);
        fd = silent_fd;
    }
    if (fd < 0 || !ASYNC_WAIT_CTX_set_wait_fd(context, &wait_key, fd, wait, context_freed)) {
        if (wait->fd >= 0)
            close(wait->fd);
        free(wait);
        return NULL;
    }
    atomic_init(&wait->references, 1);
    wait->client = gp_client_up_ref(client);
    wait->context = context;
    pthread_mutex_init(&wait->lock, NULL);
    pthread_cond_init(&wait->fired, NULL);
    return wait;
}

void gp_wait_prefetch(const struct gp_wait *wait)
{
    __builtin_prefetch(atomic_load_explicit(&wait->context, memory_order_relaxed));
}

void gp_wait_notify(struct gp_wait *wait)
{
    ASYNC_callback_fn callback = NULL;
    void *argument = NULL;
    struct gp_wait *outer;

    pthread_mutex_lock(&wait->lock);
    if (wait->context != NULL) {
        if (wait->fd >= 0) {
            const uint64_t one = 1;
            ssize_t written = write(wait->fd, &one, sizeof(one)); /* EAGAIN: signalled 2^64 times already */

            (void)written;
        } else if (ASYNC_WAIT_CTX_get_callback(wait->context, &callback, &argument) && callback != NULL) {
            wait->firing++;
        }
    }
    pthread_mutex_unlock(&wait->lock);
    if (callback == NULL)
        return;
    outer = firing_here;
    firing_here = wait;
    callback(argument);
    firing_here = outer;
    pthread_mutex_lock(&wait->lock);
    wait->firing--;
    if (wait->context == NULL) /* context_freed() may wait for this */
        pthread_cond_broadcast(&wait->fired);
    pthread_mutex_unlock(&wait->lock);
}

void gp_wait_set_error(struct gp_wait *wait)
{
    pthread_mutex_lock(&wait->lock);
    if (wait->context != NULL)
        ASYNC_WAIT_CTX_set_status(wait->context, ASYNC_STATUS_ERR);
    pthread_mutex_unlock(&wait->lock);
}

/* RETRY is told by the consumer, not here: this code runs on the job's 32 KiB stack, and the callback is not ours. */
static void ask_to_announce(struct gp_wait *wait)
{
    if (!gp_client_post(wait->client, &up_ref(wait)->retry))
        gp_wait_free(wait);
}

/* ---- pausing ---- */

/* ASYNC_pause_job() returns at once, without pausing, under ASYNC_block_pause(), and OpenSSL has no call that tells. A
 * real pause goes through the application's loop and back, so a run of returns faster than that means a blocked pause;
 * the job then sleeps as a thread would. Taken for blocked by mistake, a program that resumes in a tight loop is put to
 * sleep: right too. */
#define AT_ONCE_NS 1500u
#define AT_ONCE_LIMIT 32u

struct pauser {
    unsigned at_once;
};

/* 1 after a pause; 0 if this job can't pause. */
static int pause_job(struct pauser *pauser)
{
    uint64_t before;

    if (pauser->at_once >= AT_ONCE_LIMIT)
        return 0;
    before = gp_now_ns();
    if (!ASYNC_pause_job()) {
        pauser->at_once = AT_ONCE_LIMIT;
        return 0;
    }
    if (gp_now_ns() - before < AT_ONCE_NS)
        pauser->at_once++;
    return 1;
}

static void drain(int fd)
{
    uint64_t signals;

    if (fd >= 0 && read(fd, &signals, sizeof(signals)) < 0)
        return; /* EAGAIN: resumed early, nothing was signalled */
}

/* What context_freed() has to undo. A job is at most in one of the two places. */
static void set_place(struct gp_wait *wait, int queued, gp_request_handle in_flight)
{
    int was, is = queued || in_flight != 0;

    pthread_mutex_lock(&wait->lock);
    was = wait->queued || wait->in_flight != 0;
    wait->in_flight = in_flight;
    wait->queued = queued;
    wait->thread = pthread_self();
    pthread_mutex_unlock(&wait->lock);
    if (is && !was)
        waiting_jobs++;
    if (was && !is)
        waiting_jobs--;
}

/* Returns a slot, or GP_CLOSED_SLOT: compute at once. */
static uint32_t claim_in_job(gp_client *client, struct gp_wait *wait, struct pauser *pauser)
{
    struct gp_queued *entry = &wait->entry;
    uint32_t slot;

    slot = gp_client_claim(client, NULL);
    if (slot != GP_NO_SLOT)
        return slot;
    ASYNC_WAIT_CTX_set_status(wait->context, ASYNC_STATUS_EAGAIN); /* before anyone can fire the callback */
    entry->kind = GP_WAITER_JOB;
    entry->reserved = notify_and_free;
    entry->wait = up_ref(wait);
    slot = gp_client_claim(client, entry);
    if (slot != GP_NO_SLOT) {
        gp_wait_free(wait);
        return slot;
    }
    set_place(wait, 1, 0);
    if (wait->fd < 0)
        ask_to_announce(wait);
    while ((slot = atomic_load_explicit(&entry->slot, memory_order_acquire)) == GP_NO_SLOT) {
        if (!pause_job(pauser)) {
            if (gp_client_leave_wait_queue(client, entry))
                gp_wait_free(wait);
            slot = GP_CLOSED_SLOT;
            break;
        }
        if (gp_client_is_forked(client)) /* everything in flight is the parent's: compute, and leave the queue alone */
            return GP_CLOSED_SLOT;
        drain(wait->fd);
    }
    set_place(wait, 0, 0);
    return slot;
}

enum outcome { FAILED = 0, DONE = 1, COMPUTE_DIRECTLY = 2 };

static enum outcome wait_in_job(gp_client *client, struct gp_wait *wait, gp_key *key, gp_key_handle key_handle,
                                const uint8_t *input, uint8_t *output)
{
    struct gp_waiter waiter = {.kind = GP_WAITER_JOB, .key = key_handle};
    struct pauser pauser = {0};
    uint32_t slot = claim_in_job(client, wait, &pauser);
    gp_request_handle handle;

    ASYNC_WAIT_CTX_set_status(wait->context, ASYNC_STATUS_OK);
    if (slot == GP_CLOSED_SLOT)
        return COMPUTE_DIRECTLY;
    waiter.wait = up_ref(wait);
    handle = gp_client_put(client, slot, &waiter, key->bytes, input, 1);
    if (handle == 0) {
        gp_wait_free(wait);
        return COMPUTE_DIRECTLY;
    }
    set_place(wait, 0, handle);
    while (gp_client_poll(client, handle) == 0) {
        if (!pause_job(&pauser))
            gp_client_sleep_until_done(client, handle);
        if (gp_client_is_forked(client))
            return COMPUTE_DIRECTLY;
        drain(wait->fd); /* before looking: DONE is published first, the signal follows */
    }
    set_place(wait, 0, 0);
    return gp_client_collect(client, handle, key->bytes, output, 1) ? DONE : FAILED;
}

static enum outcome wait_in_thread(gp_client *client, gp_key *key, gp_key_handle key_handle, const uint8_t *input,
                                   uint8_t *output)
{
    const struct gp_waiter waiter = {.kind = GP_WAITER_THREAD, .key = key_handle};
    uint32_t slot = waiting_jobs == 0 ? gp_client_claim_asleep(client) : gp_client_claim(client, NULL);
    gp_request_handle handle;

    if (slot == GP_NO_SLOT || slot == GP_CLOSED_SLOT)
        return COMPUTE_DIRECTLY;
    handle = gp_client_put(client, slot, &waiter, key->bytes, input, 1);
    if (handle == 0)
        return COMPUTE_DIRECTLY;
    gp_client_sleep_until_done(client, handle);
    return gp_client_collect(client, handle, key->bytes, output, 1) ? DONE : FAILED;
}

int gp_wait_private_op(gp_client *client, gp_key *key, gp_key_handle handle, const uint8_t *input, uint8_t *output)
{
    enum outcome outcome = COMPUTE_DIRECTLY;
    uint32_t bytes;

    if (gp_client_is_usable(client)) {
        ASYNC_JOB *job = ASYNC_get_current_job();
        struct gp_wait *wait = job != NULL ? wait_of(client, ASYNC_get_wait_ctx(job)) : NULL;

        /* A job that can't be told of the end must not sleep in an event loop for a batch's time: it computes. */
        if ((job == NULL || wait != NULL) && gp_key_table_pin(gp_client_keys(client), handle, &bytes)) {
            outcome = wait != NULL ? wait_in_job(client, wait, key, handle, input, output)
                                   : wait_in_thread(client, key, handle, input, output);
            if (outcome == COMPUTE_DIRECTLY && !gp_client_is_forked(client))
                gp_client_unpin_key(client, handle, 1);
        }
    }
    if (outcome == COMPUTE_DIRECTLY) {
        if (client != NULL)
            gp_client_count_direct(client);
        outcome = gp_key_private(key, input, output) ? DONE : FAILED;
    }
    return outcome == DONE;
}
