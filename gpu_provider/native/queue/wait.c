/* The rules that this file keeps:
 *
 * - Nothing points into the job's stack: the connection may be freed while the request is in a batch, and the stack
 *   goes with it. What outlives the job is the slot and the gp_wait, which is counted.
 * - The application may free the connection while another thread is about to fire its callback. libssl's callback
 *   dereferences the SSL, so the hook that OpenSSL calls when the wait context is freed waits until a callback that is
 *   under way has returned (unless it is called from within that callback).
 */
#define _GNU_SOURCE
#include "queue/wait.h"

#include <errno.h>
#include <openssl/async.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#include "process.h"
#include "queue/callbacks.h"
#include "queue/descriptors.h"

/* One per ASYNC_WAIT_CTX, that is per connection; registered in it when its job first pauses, with a
 * timerfd of its own or, when the application has a callback, with `silent_fd`, which is never signalled: OpenSSL
 * offers its cleanup hook only to wait fds. Not before: HAProxy 2.6 adopts the descriptors when a handshake pauses, and
 * ends when a connection is closed that has one which it never saw. */
struct gp_wait {
    /* One cache line, which is all that a completion touches: it is cold then. */
    _Alignas(64) atomic_int references;
    int fd;          /* -1: callback mode, or not registered */
    int watched;     /* by the program: the same, or one that becomes readable with it */
    uint32_t number; /* of `fd` among those that another process has too */
    pthread_mutex_t lock;
    _Atomic(ASYNC_WAIT_CTX *) context; /* NULL once OpenSSL has freed it; changed under the lock */
    unsigned short firing;             /* callbacks under way */
    unsigned short paused;             /* the job has, or is about to: whoever completes it tells */

    pthread_cond_t fired;
    int has_callback;
    int registered;
    uint64_t armed_ns; /* until when its descriptor stays silent by itself; GP_NO_DEADLINE: for ever */
    uint32_t fork_epoch;
    gp_client *client;           /* NULL: none yet */
    gp_client *lender;           /* of whose descriptors `fd` is; NULL: it is its own */
    gp_request_handle in_flight; /* or 0 */
    int queued;
    pthread_t thread; /* of the job that is in flight or in the wait queue */
    struct gp_queued entry;
    struct gp_errand retry; /* to tell RETRY */
    struct gp_callback callback;
};

static const char wait_key; /* its address is the key. One: `openssl speed` can't wait for two descriptors of a job */
static int silent_fd = -1;
static pthread_once_t silent_once = PTHREAD_ONCE_INIT;
static _Thread_local struct gp_wait *firing_here;

/* Jobs of this thread that hold a slot or a place in the wait queue. Only this thread can resume them, so while there
 * are any it must not sleep for a free slot: they may hold them all. */
static _Thread_local unsigned waiting_jobs;

static int is_forked(const struct gp_wait *wait)
{
    return wait->fork_epoch != gp_fork_epoch();
}

static void make_silent_fd(void)
{
    silent_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
}

void gp_wait_free(struct gp_wait *wait)
{
    if (wait == NULL || atomic_fetch_sub_explicit(&wait->references, 1, memory_order_acq_rel) != 1)
        return;
    if (!is_forked(wait)) {
        pthread_mutex_destroy(&wait->lock);
        pthread_cond_destroy(&wait->fired);
    }
    gp_client_free(wait->client);
    gp_client_free(wait->lender);
    free(wait);
}

struct gp_wait *gp_wait_up_ref(struct gp_wait *wait)
{
    atomic_fetch_add_explicit(&wait->references, 1, memory_order_relaxed);
    return wait;
}

static void notify_and_free(struct gp_wait *wait)
{
    gp_wait_notify(wait);
    gp_wait_free(wait);
}

/* With the lock. */
static void close_descriptor(struct gp_wait *wait)
{
    if (wait->fd < 0)
        return;
    close(wait->watched);
    if (wait->lender != NULL)
        gp_descriptors_give(gp_client_descriptors(wait->lender), wait->number);
    wait->fd = -1;
}

static int is_over(const struct gp_callback *callback)
{
    return !gp_client_is_usable(callback->client)
           || (callback->handle != 0 && gp_client_poll(callback->client, callback->handle) != 0);
}

static void leave_callbacks(struct gp_wait *wait)
{
    struct gp_callbacks *callbacks = wait->client != NULL ? gp_client_callbacks(wait->client) : NULL;

    if (callbacks != NULL && gp_callbacks_leave(callbacks, &wait->callback))
        gp_wait_free(wait);
}

/* OpenSSL frees the wait context: the connection is gone. */
static void context_freed(ASYNC_WAIT_CTX *context, const void *key, OSSL_ASYNC_FD fd, void *custom)
{
    struct gp_wait *wait = custom;
    gp_request_handle in_flight;
    int queued;

    (void)context, (void)key, (void)fd;
    if (is_forked(wait)) {
        /* A child has its own copy of the descriptor, and nothing else here is its own: leave the memory. */
        if (wait->fd >= 0)
            close(wait->watched);
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
    close_descriptor(wait);
    pthread_mutex_unlock(&wait->lock);
    if (queued && gp_client_leave_wait_queue(wait->client, &wait->entry))
        gp_wait_free(wait);
    leave_callbacks(wait);
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

int gp_wait_in_job(int *job_has_callback)
{
    ASYNC_JOB *job = ASYNC_get_current_job();

    *job_has_callback = job != NULL && has_callback(ASYNC_get_wait_ctx(job));
    return job != NULL;
}

static struct gp_wait *registered(ASYNC_WAIT_CTX *context)
{
    OSSL_ASYNC_FD fd;
    void *custom;

    return ASYNC_WAIT_CTX_get_fd(context, &wait_key, &fd, &custom) ? custom : NULL;
}

static struct gp_wait *new_wait(gp_client *client, ASYNC_WAIT_CTX *context)
{
    struct gp_wait *wait = aligned_alloc(_Alignof(struct gp_wait), sizeof(*wait));
    if (wait == NULL)
        return NULL;
    memset(wait, 0, sizeof(*wait));
    wait->retry = (struct gp_errand){.run = notify_and_free, .wait = wait};
    wait->callback = (struct gp_callback){.client = client, .wait = wait, .fire = notify_and_free, .is_over = is_over};
    wait->fd = -1;
    wait->has_callback = has_callback(context);
    wait->armed_ns = GP_NO_DEADLINE;
    atomic_init(&wait->references, 1);
    wait->fork_epoch = gp_fork_epoch();
    if (client != NULL)
        wait->client = gp_client_up_ref(client);
    wait->context = context;
    pthread_mutex_init(&wait->lock, NULL);
    pthread_cond_init(&wait->fired, NULL);
    return wait;
}

struct gp_wait *gp_wait_of(gp_client *client, ASYNC_WAIT_CTX *context)
{
    struct gp_wait *wait = registered(context);

    if (wait == NULL)
        return new_wait(client, context);
    /* Another client: the connection was moved to a context of another provider. No callback and no fd of our own: it
     * had a callback when the gp_wait was made. Neither can be waited for by pausing. */
    return wait->client == client && (wait->fd >= 0 || has_callback(context)) ? wait : NULL;
}

struct gp_wait *gp_wait_moved_to(gp_client *client, ASYNC_WAIT_CTX *context)
{
    struct gp_wait *wait = registered(context);

    if (has_callback(context))
        return client != NULL && gp_client_callbacks(client) != NULL ? gp_wait_of(client, context) : NULL;
    if (wait == NULL)
        return new_wait(client, context);
    if (wait->fd < 0 || is_forked(wait))
        return NULL;
    if (client != NULL && wait->client != client) {
        gp_client_free(wait->client);
        wait->client = wait->callback.client = gp_client_up_ref(client);
    }
    return wait;
}

static int is_of_service(const struct gp_wait *wait)
{
    return wait->client != NULL && gp_client_descriptors(wait->client) != NULL;
}

/* Its descriptor. 0: there is none left. */
static int make_descriptor(struct gp_wait *wait)
{
    struct gp_descriptors *descriptors = is_of_service(wait) ? gp_client_descriptors(wait->client) : NULL;

    if (wait->has_callback) {
        pthread_once(&silent_once, make_silent_fd);
        return silent_fd >= 0;
    }
    if (wait->fd >= 0)
        return 1;
    if (descriptors == NULL) {
        wait->watched = wait->fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
        return wait->fd >= 0;
    }
    wait->fd = gp_descriptors_take(descriptors, &wait->number);
    wait->watched = wait->fd >= 0 ? gp_descriptor_watch(wait->fd) : -1;
    if (wait->watched >= 0) {
        wait->lender = gp_client_up_ref(wait->client);
    } else if (wait->fd >= 0) {
        gp_descriptors_give(descriptors, wait->number);
        wait->fd = -1;
    }
    return wait->fd >= 0;
}

/* From now on the wait context has the reference. 0: no memory. */
static int register_wait(struct gp_wait *wait)
{
    if (!wait->registered)
        wait->registered =
            ASYNC_WAIT_CTX_set_wait_fd(wait->context, &wait_key, wait->has_callback ? silent_fd : wait->watched, wait,
                                       context_freed);
    return wait->registered;
}

void gp_wait_leave(struct gp_wait *wait)
{
    if (wait->registered)
        return;
    pthread_mutex_lock(&wait->lock);
    wait->context = NULL;
    while (wait->firing > 0)
        pthread_cond_wait(&wait->fired, &wait->lock);
    close_descriptor(wait);
    pthread_mutex_unlock(&wait->lock);
    gp_wait_free(wait);
}

/* ---- its descriptor: readable when the request is done, or at a deadline ---- */

void gp_wait_arm(struct gp_wait *wait, uint64_t deadline_ns)
{
    const int is_armed = wait->armed_ns != GP_NO_DEADLINE;

    if (wait->fd < 0 || wait->armed_ns == deadline_ns)
        return;
    wait->armed_ns = deadline_ns;
    if (deadline_ns == GP_NO_DEADLINE)
        gp_descriptor_set(wait->fd, 0);
    else if (deadline_ns <= gp_now_ns() && !is_armed)
        gp_descriptor_signal(wait->fd);
    else
        gp_descriptor_set(wait->fd, deadline_ns);
}

static void drain(struct gp_wait *wait)
{
    uint64_t ticks;

    if (wait->fd >= 0 && read(wait->fd, &ticks, sizeof(ticks)) < 0)
        return; /* EAGAIN: resumed early, nothing was signalled */
    if (wait->armed_ns != GP_NO_DEADLINE && wait->armed_ns <= gp_now_ns())
        wait->armed_ns = GP_NO_DEADLINE; /* it fires once */
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
    if (wait->context != NULL && wait->paused) {
        if (wait->fd >= 0) {
            gp_descriptor_signal(wait->fd);
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

/* ---- pausing ---- */

/* ASYNC_pause_job() returns at once, without pausing, under ASYNC_block_pause(), and OpenSSL has no call that tells. A
 * real pause goes through the application's loop and back, so a run of returns faster than that means a blocked pause;
 * the job then sleeps as a thread would. Taken for blocked by mistake, a program that resumes in a tight loop is put to
 * sleep: right too. */
#define AT_ONCE_NS 1500u
#define AT_ONCE_LIMIT 32u

/* Where no consumer of this process fires it. */
static void list_callback(struct gp_wait *wait, uint64_t deadline_ns)
{
    struct gp_callbacks *callbacks = gp_client_callbacks(wait->client);

    if (callbacks == NULL)
        return;
    gp_wait_up_ref(wait);
    if (gp_callbacks_join(callbacks, &wait->callback, wait->in_flight, deadline_ns))
        gp_wait_free(wait);
}

/* As often a job looks whose descriptor the service does not have. */
#define POLL_NS 1000000u

/* Has the service tell of the end, or returns a deadline at which to look. */
static uint64_t ask_service_to_tell(struct gp_wait *wait, uint64_t deadline_ns)
{
    _Atomic uint32_t *wake = &gp_client_queue(wait->client)->wake[gp_request_slot(wait->in_flight)];

    if (wait->has_callback)
        atomic_store(wake, GP_WAKE_DESCRIPTORS + gp_client_callbacks_number(wait->client));
    else if (wait->lender == wait->client)
        atomic_store(wake, GP_WAKE_DESCRIPTORS + wait->number);
    else if (gp_now_ns() + POLL_NS < deadline_ns)
        return gp_now_ns() + POLL_NS;
    return deadline_ns;
}

enum gp_pausing gp_wait_prepare_to_pause(struct gp_pauser *pauser, uint64_t deadline_ns)
{
    struct gp_wait *wait = pauser->wait;

    if (pauser->at_once >= AT_ONCE_LIMIT)
        return GP_PAUSING_IS_BLOCKED;
    if (!make_descriptor(wait))
        return GP_NO_DESCRIPTOR;
    pthread_mutex_lock(&wait->lock);
    wait->paused = 1;
    pthread_mutex_unlock(&wait->lock);
    if (is_of_service(wait) && wait->in_flight != 0)
        deadline_ns = ask_service_to_tell(wait, deadline_ns);
    if (wait->has_callback)
        list_callback(wait, deadline_ns);
    gp_wait_arm(wait, deadline_ns);
    return GP_MAY_PAUSE;
}

enum gp_pause gp_wait_pause(struct gp_pauser *pauser)
{
    uint64_t before = gp_now_ns();

    if (!register_wait(pauser->wait))
        return GP_NOT_PAUSED;
    if (!ASYNC_pause_job())
        pauser->at_once = AT_ONCE_LIMIT;
    else if (gp_now_ns() - before < AT_ONCE_NS)
        pauser->at_once++;
    if (is_forked(pauser->wait))
        return GP_FORKED;
    drain(pauser->wait); /* before the caller looks: the end is published first, the signal follows */
    return GP_RESUMED;
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
    if (!is)
        wait->paused = 0;
    pthread_mutex_unlock(&wait->lock);
    if (!is)
        leave_callbacks(wait);
    if (is && !was)
        waiting_jobs++;
    if (was && !is)
        waiting_jobs--;
}

void gp_wait_set_request(struct gp_wait *wait, gp_request_handle handle)
{
    set_place(wait, 0, handle);
}

unsigned gp_wait_jobs_of_thread(void)
{
    return waiting_jobs;
}

void gp_wait_nap(uint64_t until_ns)
{
    const struct timespec until = {.tv_sec = (time_t)(until_ns / 1000000000u),
                                   .tv_nsec = (long)(until_ns % 1000000000u)};
    ASYNC_JOB *job = ASYNC_get_current_job();
    struct gp_pauser pauser = {.wait = job != NULL ? gp_wait_moved_to(NULL, ASYNC_get_wait_ctx(job)) : NULL};

    if (pauser.wait != NULL) {
        while (gp_now_ns() < until_ns && gp_wait_prepare_to_pause(&pauser, until_ns) == GP_MAY_PAUSE
               && gp_wait_pause(&pauser) == GP_RESUMED)
            ;
        if (!is_forked(pauser.wait)) {
            gp_wait_set_request(pauser.wait, 0);
            gp_wait_arm(pauser.wait, GP_NO_DEADLINE);
            gp_wait_leave(pauser.wait);
        }
    }
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL) == EINTR)
        ;
}

/* ---- the wait queue ---- */

/* RETRY is told by the consumer, not here: this code runs on the job's 32 KiB stack, and the callback is not ours. */
static void ask_to_announce(struct gp_wait *wait)
{
    if (gp_client_callbacks(wait->client) != NULL)
        list_callback(wait, 0);
    else if (!gp_client_post(wait->client, &gp_wait_up_ref(wait)->retry))
        gp_wait_free(wait);
}

uint64_t gp_term_ends_ns(const gp_client *client, struct gp_term term)
{
    return term.must_until_ns != 0 ? term.must_until_ns : gp_client_give_up_ns(client, term.began_ns);
}

/* When the job is to be resumed if nobody tells it. The callback of a consumer here is for RETRY and a slot alone. */
static uint64_t next_look_ns(const struct gp_pauser *pauser)
{
    const struct gp_wait *wait = pauser->wait;
    const uint64_t ends_ns = gp_term_ends_ns(wait->client, pauser->term), look_ns = gp_now_ns() + GP_LOOK_NS;

    return gp_client_descriptors(wait->client) == NULL || ends_ns < look_ns ? ends_ns : look_ns;
}

uint32_t gp_wait_for_slot(struct gp_pauser *pauser)
{
    struct gp_wait *wait = pauser->wait;
    struct gp_queued *entry = &wait->entry;
    enum gp_pausing pausing;
    uint32_t slot;

    ASYNC_WAIT_CTX_set_status(wait->context, ASYNC_STATUS_EAGAIN); /* before anyone can fire the callback */
    entry->kind = GP_WAITER_JOB;
    entry->reserved = notify_and_free;
    entry->wait = gp_wait_up_ref(wait);
    slot = gp_client_claim(wait->client, entry);
    if (slot != GP_NO_SLOT) {
        gp_wait_free(wait);
        return slot;
    }
    set_place(wait, 1, 0);
    pausing = gp_wait_prepare_to_pause(pauser, next_look_ns(pauser));
    if (pausing == GP_MAY_PAUSE && wait->fd < 0)
        ask_to_announce(wait);
    /* Looks after the deadline is set, which forgets what was signalled before. */
    while ((slot = atomic_load_explicit(&entry->slot, memory_order_acquire)) == GP_NO_SLOT) {
        enum gp_pause pause = GP_NOT_PAUSED;

        if (pausing == GP_MAY_PAUSE && gp_now_ns() < gp_term_ends_ns(wait->client, pauser->term))
            pause = gp_wait_pause(pauser);
        if (pause == GP_FORKED) /* everything in flight is the parent's: compute, and leave the queue alone */
            return GP_CLOSED_SLOT;
        if (pause == GP_NOT_PAUSED) {
            if (gp_client_leave_wait_queue(wait->client, entry))
                gp_wait_free(wait);
            slot = GP_CLOSED_SLOT;
            break;
        }
        gp_client_look(wait->client);
        pausing = gp_wait_prepare_to_pause(pauser, next_look_ns(pauser));
    }
    set_place(wait, 0, 0);
    return slot;
}
