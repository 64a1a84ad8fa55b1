/* From a request's submission to its result, in the three ways in which its caller may wait: a paused job with a
 * callback, a paused job with a wait fd, and a sleeping thread. DESIGN.md tells the whole story. Every pause is in a
 * loop on the request's own state: a job can be resumed at any time, for any reason. */
#define _GNU_SOURCE
#include "queue/request.h"

#include <openssl/async.h>

#include "process.h"
#include "queue/groups.h"
#include "queue/wait.h"

enum outcome { FAILED = 0, DONE = 1, COMPUTE_DIRECTLY = 2, GAVE_UP = 3 /* the request goes on, without us */ };

/* Until when to wait for the request; GP_NO_MEMORY: no longer. Computes, where nobody else does. */
static uint64_t serve(gp_client *client, gp_request_handle handle, enum gp_waits waits, struct gp_term term, int again)
{
    const uint64_t give_up_ns = gp_term_ends_ns(client, term);
    uint64_t now;

    if (give_up_ns == GP_NO_DEADLINE)
        return gp_groups_serve(client, handle, waits);
    now = gp_now_ns();
    if (again && gp_client_poll(client, handle) == 0)
        gp_client_look(client);
    if (now >= give_up_ns || !gp_client_is_usable(client))
        return GP_NO_MEMORY;
    if (waits == GP_CANT_WAIT) /* whoever fires its callback watches the service */
        return give_up_ns;
    return now + GP_LOOK_NS < give_up_ns ? now + GP_LOOK_NS : give_up_ns;
}

/* Until the request is done. */
static enum outcome wait_for_end(gp_client *client, gp_request_handle handle, struct gp_pauser *pauser)
{
    for (int again = 0;; again = 1) {
        int has_callback, in_job = gp_wait_in_job(&has_callback);
        enum gp_waits waits = !in_job ? GP_SLEEPS : has_callback ? GP_CANT_WAIT : GP_PAUSES;
        uint64_t deadline_ns = serve(client, handle, waits, pauser->term, again);
        enum gp_pause pause;

        if (gp_client_poll(client, handle) != 0)
            return DONE;
        if (deadline_ns == GP_NO_MEMORY)
            return GAVE_UP;
        switch (gp_wait_prepare_to_pause(pauser, deadline_ns)) {
        case GP_MAY_PAUSE:
            if (gp_client_poll(client, handle) != 0)
                return DONE;
            pause = gp_wait_pause(pauser);
            if (pause != GP_RESUMED)
                return pause == GP_FORKED ? COMPUTE_DIRECTLY : GAVE_UP;
            break;
        case GP_PAUSING_IS_BLOCKED:
            gp_client_sleep_until_done(client, handle, deadline_ns);
            break;
        case GP_NO_DESCRIPTOR: /* a job that can't be told of the end must not hold up an event loop */
            return GAVE_UP;
        }
    }
}

static enum outcome wait_in_job(gp_client *client, struct gp_wait *wait, ASYNC_WAIT_CTX *context, uint32_t bytes,
                                gp_key_handle key_handle, const uint8_t *input, uint8_t *output, struct gp_term term)
{
    struct gp_waiter waiter = {.kind = GP_WAITER_JOB, .key = key_handle};
    struct gp_pauser pauser = {.wait = wait, .term = term};
    uint32_t slot = gp_client_claim(client, NULL);
    gp_request_handle handle;
    enum outcome outcome;

    if (slot == GP_NO_SLOT && gp_client_groups(client) == NULL)
        slot = gp_wait_for_slot(&pauser);
    ASYNC_WAIT_CTX_set_status(context, ASYNC_STATUS_OK);
    if (slot == GP_NO_SLOT || slot == GP_CLOSED_SLOT)
        return COMPUTE_DIRECTLY;
    if (gp_client_descriptors(client) == NULL) /* another process has no use for it */
        waiter.wait = gp_wait_up_ref(wait);
    handle = gp_client_put(client, slot, &waiter, bytes, input, 1);
    if (handle == 0) {
        gp_wait_free(waiter.wait);
        return COMPUTE_DIRECTLY;
    }
    gp_wait_set_request(wait, handle);
    outcome = wait_for_end(client, handle, &pauser);
    if (outcome == COMPUTE_DIRECTLY)
        return outcome;
    gp_wait_set_request(wait, 0);
    gp_wait_arm(wait, GP_NO_DEADLINE);
    if (outcome == GAVE_UP) {
        gp_client_orphan(client, handle);
        return outcome;
    }
    return gp_client_collect(client, handle, bytes, output, 1) ? DONE : FAILED;
}

static enum outcome wait_in_thread(gp_client *client, uint32_t bytes, gp_key_handle key_handle, const uint8_t *input,
                                   uint8_t *output, struct gp_term term)
{
    const struct gp_waiter waiter = {.kind = GP_WAITER_THREAD, .key = key_handle};
    const int may_sleep =
        gp_wait_jobs_of_thread() == 0 && gp_client_groups(client) == NULL && gp_client_descriptors(client) == NULL;
    uint32_t slot = may_sleep ? gp_client_claim_asleep(client) : gp_client_claim(client, NULL);
    gp_request_handle handle;
    int again = 0;

    if (slot == GP_NO_SLOT || slot == GP_CLOSED_SLOT)
        return COMPUTE_DIRECTLY;
    handle = gp_client_put(client, slot, &waiter, bytes, input, 1);
    if (handle == 0)
        return COMPUTE_DIRECTLY;
    do {
        uint64_t deadline_ns = serve(client, handle, GP_SLEEPS, term, again++);

        if (deadline_ns == GP_NO_MEMORY) {
            gp_client_orphan(client, handle);
            return GAVE_UP;
        }
        gp_client_sleep_until_done(client, handle, deadline_ns);
    } while (gp_client_poll(client, handle) == 0);
    return gp_client_collect(client, handle, bytes, output, 1) ? DONE : FAILED;
}

/* The keys of a service are in its own table. */
static int pin(gp_client *client, gp_key_handle handle)
{
    uint32_t bytes;

    return gp_client_descriptors(client) != NULL || gp_key_table_pin(gp_client_keys(client), handle, &bytes);
}

static void unpin(gp_client *client, gp_key_handle handle)
{
    if (gp_client_descriptors(client) == NULL && !gp_client_is_forked(client))
        gp_client_unpin_key(client, handle, 1);
}

/* By the client's consumer. `must_until_ns`: nobody else can compute it, so a job that can't pause sleeps; 0: somebody
 * can. */
static enum outcome request(gp_client *client, uint32_t bytes, gp_key_handle handle, const uint8_t *input,
                            uint8_t *output, uint64_t must_until_ns)
{
    const struct gp_term term = {.began_ns = gp_now_ns(), .must_until_ns = must_until_ns};
    enum outcome outcome = COMPUTE_DIRECTLY;
    ASYNC_JOB *job = ASYNC_get_current_job();
    struct gp_wait *wait = NULL;
    int has_callback;

    (void)gp_wait_in_job(&has_callback);
    if (!gp_client_is_usable(client)
        || (has_callback && gp_client_descriptors(client) != NULL && gp_client_callbacks(client) == NULL
            && must_until_ns == 0))
        return COMPUTE_DIRECTLY; /* without a thread here, nobody could fire the callback for a service */
    if (job != NULL)
        wait = (must_until_ns != 0 ? gp_wait_moved_to : gp_wait_of)(client, ASYNC_get_wait_ctx(job));
    if ((job == NULL || wait != NULL || must_until_ns != 0) && pin(client, handle)) {
        outcome = wait != NULL ? wait_in_job(client, wait, ASYNC_get_wait_ctx(job), bytes, handle, input, output, term)
                               : wait_in_thread(client, bytes, handle, input, output, term);
        if (outcome == COMPUTE_DIRECTLY)
            unpin(client, handle);
    }
    if (wait != NULL && !gp_client_is_forked(client))
        gp_wait_leave(wait);
    return outcome;
}

int gp_request_private_op(gp_client *client, gp_key *key, gp_key_handle handle, const uint8_t *input, uint8_t *output)
{
    enum outcome outcome = request(client, key->bytes, handle, input, output, 0);

    if (outcome == COMPUTE_DIRECTLY || outcome == GAVE_UP) {
        if (client != NULL)
            gp_client_count_direct(client);
        outcome = gp_key_private(key, input, output) ? DONE : FAILED;
    }
    return outcome == DONE;
}

enum gp_served gp_request_of_service(gp_client *client, gp_key_handle handle, uint32_t bytes, const uint8_t *input,
                                     uint8_t *output, uint64_t must_until_ns)
{
    switch (request(client, bytes, handle, input, output, must_until_ns)) {
    case DONE:
        return GP_SERVED;
    case GAVE_UP:
        return GP_GAVE_UP;
    case FAILED:
        return GP_FAILED;
    default:
        return GP_NOT_SERVED;
    }
}
