/* Stress of groups without a batching thread, with real OpenSSL async jobs on several threads: wait fds that are
 * polled, early resumes, blocked pauses, callbacks, connections freed at any moment, sleeping threads among them, and
 * forks. */
#define _GNU_SOURCE
#include <openssl/async.h>
#include <poll.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "queue/counts.h"
#include "queue/groups.h"
#include "queue/request.h"
#include "returning_kernels.h"

#define THREADS 3
#define JOBS 24

enum mode { WAIT_FD, CALLBACK, BLOCKED, MODES };

static const struct gp_group_settings settings = {
    .kernels = &returning_kernels, .pretend = 1, .most = 8, .max_wait_ns = 5000000};
static gp_key *shared_key;
static gp_key
    *own_key; /* the main thread's, since a child may find OpenSSL's lock of another thread's key taken for ever */

struct connection {
    ASYNC_WAIT_CTX *context;
    ASYNC_JOB *job;
    atomic_int fired;
    enum mode mode;
    gp_key *key;
    int number;
    int done;
};

/* As gp_private_op() does it. */
static int private_operation(gp_key *key, const uint8_t *input, uint8_t *output)
{
    gp_groups *groups = gp_groups_of_process(&settings);
    uint64_t began = gp_now_ns();
    gp_key_handle handle;
    gp_client *client;
    int ok;

    if (gp_groups_is_alone(groups, key->bytes, GP_PAUSES, began)) {
        ok = gp_key_private(key, input, output);
        gp_groups_computed_alone(groups, key->bytes, began);
        return ok;
    }
    client = gp_groups_client(groups);
    handle = gp_client_add_key(client, key);
    ok = gp_request_private_op(client, key, handle, input, output);
    gp_client_remove_key(client, handle);
    return ok;
}

static int is_right(gp_key *key, int number)
{
    uint8_t input[GP_MAX_BYTES] = {0}, output[GP_MAX_BYTES];

    memcpy(input + 8, &number, sizeof(number));
    return private_operation(key, input, output) && is_result(key, input, output);
}

static int operation(void *argument)
{
    const struct connection *connection = *(struct connection **)argument;
    int right;

    if (connection->mode == BLOCKED)
        ASYNC_block_pause();
    right = is_right(connection->key, connection->number);
    if (connection->mode == BLOCKED)
        ASYNC_unblock_pause();
    return right;
}

static int on_fired(void *argument)
{
    struct connection *connection = argument;

    atomic_store(&connection->fired, 1);
    return 1;
}

static void open_connection(struct connection *connection, enum mode mode, gp_key *key, int number)
{
    *connection = (struct connection){.mode = mode, .key = key, .number = number};
    connection->context = ASYNC_WAIT_CTX_new();
    CHECK(connection->context != NULL);
    if (mode == CALLBACK)
        CHECK(ASYNC_WAIT_CTX_set_callback(connection->context, on_fired, connection));
}

static OSSL_ASYNC_FD wait_fd(struct connection *connection)
{
    OSSL_ASYNC_FD fd = -1;
    size_t count = 0;

    CHECK(ASYNC_WAIT_CTX_get_all_fds(connection->context, NULL, &count) && count <= 1);
    if (count == 1)
        CHECK(ASYNC_WAIT_CTX_get_all_fds(connection->context, &fd, &count));
    return fd;
}

static void step(struct connection *connection)
{
    int had_fd = wait_fd(connection) >= 0, result = 0;

    atomic_store(&connection->fired, 0);
    switch (ASYNC_start_job(&connection->job, connection->context, &result, operation, &connection,
                            sizeof(connection))) {
    case ASYNC_FINISH:
        CHECK(result == 1);
        /* HAProxy ends if there is a descriptor of which no pause told. */
        CHECK(connection->mode == BLOCKED || had_fd || wait_fd(connection) < 0);
        connection->done = 1;
        break;
    case ASYNC_PAUSE:
        CHECK(connection->mode != BLOCKED && wait_fd(connection) >= 0);
        break;
    default:
        CHECK(!"ASYNC_start_job");
    }
}

static int is_ready(struct connection *connection)
{
    struct pollfd descriptor = {.fd = wait_fd(connection), .events = POLLIN};

    return connection->mode == CALLBACK ? atomic_load(&connection->fired) : poll(&descriptor, 1, 0) == 1;
}

/* An event loop: each connection does `operations` requests; every fifth look resumes one that is not ready, and now
 * and then one is freed and another opened in its place. */
static void *event_loop(void *argument)
{
    const int operations = *(int *)argument;
    struct connection connections[JOBS];
    int left[JOBS], open = JOBS, turn = 0;

    for (int i = 0; i < JOBS; i++) {
        open_connection(&connections[i], i % 8 == 7 ? CALLBACK : i % 8 == 6 ? BLOCKED : WAIT_FD, shared_key, i + 1);
        left[i] = operations;
        step(&connections[i]);
    }
    while (open > 0) {
        for (int i = 0; i < JOBS; i++) {
            struct connection *connection = &connections[i];

            if (left[i] == 0)
                continue;
            if (!connection->done && ++turn % 41 == 0) {
                enum mode mode = connection->mode;

                ASYNC_WAIT_CTX_free(connection->context); /* OpenSSL leaks the job; we nothing */
                open_connection(connection, mode, shared_key, i + 1);
                step(connection);
            } else if (!connection->done && (is_ready(connection) || turn % 5 == 0)) {
                step(connection);
            }
            if (connection->done) {
                connection->done = 0;
                if (--left[i] > 0)
                    step(connection);
                else
                    open--;
            }
        }
    }
    for (int i = 0; i < JOBS; i++)
        ASYNC_WAIT_CTX_free(connections[i].context);
    ASYNC_cleanup_thread();
    return NULL;
}

static void *sleeper(void *argument)
{
    const int operations = *(int *)argument;

    for (int i = 0; i < operations * 4; i++)
        CHECK(is_right(shared_key, i + 1));
    return NULL;
}

/* A child begins with nothing: what waits is its parent's. Jobs that were forked with it compute for themselves. */
static void check_fork(struct connection *paused)
{
    pid_t child = fork();
    int status, result = 0;

    CHECK(child >= 0);
    if (child == 0) {
        alarm(30);
        for (int i = 0; i < 3; i++)
            if (!is_right(own_key, i + 1))
                _exit(1);
        if (!paused->done
            && (ASYNC_start_job(&paused->job, paused->context, &result, operation, NULL, 0) != ASYNC_FINISH
                || result != 1))
            _exit(2);
        ASYNC_WAIT_CTX_free(paused->context);
        _exit(0);
    }
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

int main(int argc, char **argv)
{
    int operations = argc > 1 ? atoi(argv[1]) : 12;
    uint64_t groups, grouped;
    struct gp_client_stats stats;
    pthread_t threads[THREADS + 1];

    alarm(240);
    shared_key = make_key(2048);
    own_key = make_key(2048);
    for (int i = 0; i < THREADS; i++)
        CHECK(pthread_create(&threads[i], NULL, event_loop, &operations) == 0);
    CHECK(pthread_create(&threads[THREADS], NULL, sleeper, &operations) == 0);
    for (int i = 0; i < operations; i++) {
        struct connection paused;

        open_connection(&paused, WAIT_FD, own_key, i + 1);
        step(&paused);
        check_fork(&paused);
        while (!paused.done)
            if (poll(&(struct pollfd){.fd = wait_fd(&paused), .events = POLLIN}, 1, 20000) == 1)
                step(&paused);
        ASYNC_WAIT_CTX_free(paused.context);
    }
    for (int i = 0; i <= THREADS; i++)
        pthread_join(threads[i], NULL);
    groups = atomic_load(&gp_counts_of(0)->groups);
    grouped = atomic_load(&gp_counts_of(0)->grouped);
    gp_client_get_stats(gp_groups_client(gp_groups_of_process(&settings)), &stats);
    printf("%llu in %llu groups, %llu orphaned, %llu at once\n", (unsigned long long)grouped,
           (unsigned long long)groups, (unsigned long long)stats.orphaned, (unsigned long long)stats.direct);
    CHECK(stats.in_use == 0);
    ASYNC_cleanup_thread();
    gp_key_free(shared_key);
    gp_key_free(own_key);
    puts("jobs_in_groups_stress: passed");
    return 0;
}
