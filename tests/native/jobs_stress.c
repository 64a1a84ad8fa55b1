/* Stress of the three ways of waiting with real OpenSSL async jobs: callback and wait fd, full queue, early resumes,
 * blocked pauses, connections freed at any moment, and a fork. The "backend" returns its input, so every result can be
 * checked. */
#define _GNU_SOURCE
#include <openssl/async.h>
#include <poll.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"
#include "queue/consumer.h"
#include "queue/request.h"

#define JOBS 64

enum mode { CALLBACK, WAIT_FD, BLOCKED };

struct world {
    gp_client *client;
    gp_consumer *consumer;
    gp_key *key;
    gp_key_handle key_handle;
    atomic_int stop;
    atomic_int hold; /* the backend holds what it took */
    const struct gp_class_rule *rules;
};

struct connection {
    struct world *world;
    ASYNC_WAIT_CTX *context;
    ASYNC_JOB *job;
    atomic_int fired;
    enum mode mode;
    int number;
    int done;
};

static void *backend(void *argument)
{
    struct world *world = argument;
    uint32_t waiting[GP_CLASSES], stride = GP_CLASS_BYTES(0), count;
    uint64_t oldest[GP_CLASSES], submitted[8];
    gp_request_handle handles[8];
    gp_key_handle keys[8];
    struct gp_small_batch taken[GP_SMALL_BATCHES];
    uint8_t *inputs = malloc((size_t)8 * stride), ok[8];

    memset(ok, 1, sizeof(ok));
    while (!atomic_load(&world->stop)) {
        gp_consumer_wait(world->consumer, 1000000, 1, atomic_load(&world->hold) ? NULL : world->rules, waiting, oldest);
        gp_consumer_small_batches(world->consumer, taken, 1);
        count = gp_consumer_take(world->consumer, 0, 8, handles, keys, inputs, submitted);
        while (atomic_load(&world->hold) && !atomic_load(&world->stop))
            gp_consumer_wait(world->consumer, 1000000, 0, NULL, waiting, oldest);
        gp_consumer_complete(world->consumer, count, handles, inputs, stride, ok);
    }
    free(inputs);
    return NULL;
}

static int on_fired(void *argument)
{
    struct connection *connection = argument;

    atomic_store(&connection->fired, 1);
    return 1;
}

static int operation(void *argument)
{
    struct connection *connection = *(struct connection **)argument;
    struct world *world = connection->world;
    uint8_t input[GP_MAX_BYTES] = {0}, output[GP_MAX_BYTES];
    int result;

    memcpy(input + 8, &connection->number, sizeof(connection->number));
    if (connection->mode == BLOCKED)
        ASYNC_block_pause();
    result = gp_request_private_op(world->client, world->key, world->key_handle, input, output);
    if (connection->mode == BLOCKED)
        ASYNC_unblock_pause();
    /* The backend's answer, or OpenSSL's own where the job had to compute at once. */
    return result
           && (memcmp(input, output, world->key->bytes) == 0
               || (gp_key_public(world->key, output, output) && memcmp(input, output, world->key->bytes) == 0));
}

static void open_connection(struct connection *connection, struct world *world, enum mode mode, int number)
{
    *connection = (struct connection){.world = world, .mode = mode, .number = number};
    connection->context = ASYNC_WAIT_CTX_new();
    CHECK(connection->context != NULL);
    if (mode == CALLBACK)
        CHECK(ASYNC_WAIT_CTX_set_callback(connection->context, on_fired, connection));
}

static void step(struct connection *connection)
{
    int result = 0;

    atomic_store(&connection->fired, 0);
    switch (ASYNC_start_job(&connection->job, connection->context, &result, operation, &connection,
                            sizeof(connection))) {
    case ASYNC_FINISH:
        CHECK(result == 1);
        connection->done = 1;
        break;
    case ASYNC_PAUSE:
        CHECK(connection->mode != BLOCKED);
        break;
    default:
        CHECK(!"ASYNC_start_job");
    }
}

static int is_ready(struct connection *connection)
{
    OSSL_ASYNC_FD fd;
    size_t count = 0;

    if (connection->mode == CALLBACK)
        return atomic_load(&connection->fired);
    CHECK(ASYNC_WAIT_CTX_get_all_fds(connection->context, NULL, &count) && count == 1);
    CHECK(ASYNC_WAIT_CTX_get_all_fds(connection->context, &fd, &count));
    return poll(&(struct pollfd){.fd = fd, .events = POLLIN}, 1, 0) == 1;
}

/* Every connection does `operations` requests one after the other; with `early`, some are resumed though nothing is
 * ready. */
static void run_jobs(struct world *world, enum mode mode, int operations, int early)
{
    struct connection connections[JOBS];
    int left[JOBS], open = JOBS, turn = 0;

    for (int i = 0; i < JOBS; i++) {
        open_connection(&connections[i], world, mode, i + 1);
        left[i] = operations;
        step(&connections[i]);
    }
    while (open > 0) {
        for (int i = 0; i < JOBS; i++) {
            if (left[i] == 0)
                continue;
            if (!connections[i].done && (is_ready(&connections[i]) || (early && ++turn % 5 == 0)))
                step(&connections[i]);
            while (connections[i].done && left[i] > 0) {
                connections[i].done = 0;
                if (--left[i] > 0)
                    step(&connections[i]);
                else
                    open--;
            }
        }
    }
    for (int i = 0; i < JOBS; i++) {
        int status = ASYNC_WAIT_CTX_get_status(connections[i].context);

        CHECK(status == ASYNC_STATUS_OK);
        ASYNC_WAIT_CTX_free(connections[i].context);
    }
}

/* Connections freed while in a batch, while done but not resumed, and while in the wait queue. OpenSSL leaks the job;
 * we nothing. */
static void run_vanishing(struct world *world, enum mode mode, int hold)
{
    struct connection *connections = calloc(JOBS, sizeof(*connections));
    struct gp_client_stats stats;

    atomic_store(&world->hold, hold);
    for (int i = 0; i < JOBS; i++) {
        open_connection(&connections[i], world, mode, i + 1);
        step(&connections[i]);
    }
    for (int i = 0; i < JOBS; i++)
        ASYNC_WAIT_CTX_free(connections[i].context);
    atomic_store(&world->hold, 0);
    gp_client_wake_consumer(world->client);
    do
        gp_client_get_stats(world->client, &stats);
    while (stats.in_use > 0);
    CHECK(stats.queued == 0);
    free(connections); /* no callback fires after the context was freed */
}

/* The parent's threads are not in the child: jobs under way there, and new operations, compute for themselves. */
static void run_fork(struct world *world)
{
    struct connection paused;
    pid_t child;
    int status;

    atomic_store(&world->hold, 1);
    open_connection(&paused, world, CALLBACK, 1);
    step(&paused);
    while (paused.done) { /* it was answered before it could pause, by a wait that began before the hold */
        paused.done = 0;
        step(&paused);
    }
    child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        uint8_t input[GP_MAX_BYTES] = {0}, output[GP_MAX_BYTES], back[GP_MAX_BYTES];
        int result = 0;

        input[100] = 7;
        alarm(20);
        if (ASYNC_start_job(&paused.job, paused.context, &result, operation, NULL, 0) != ASYNC_FINISH || result != 1)
            _exit(1);
        ASYNC_WAIT_CTX_free(paused.context);
        if (!gp_request_private_op(world->client, world->key, world->key_handle, input, output)
            || !gp_key_public(world->key, output, back) || memcmp(back, input, world->key->bytes) != 0)
            _exit(2);
        _exit(0);
    }
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
    atomic_store(&world->hold, 0);
    gp_client_wake_consumer(world->client);
    while (!paused.done)
        if (is_ready(&paused))
            step(&paused);
    ASYNC_WAIT_CTX_free(paused.context);
}

static void run(uint32_t depth, int operations, const struct gp_class_rule *rules)
{
    struct world world = {.client = gp_client_new(depth), .rules = rules};
    struct gp_client_stats stats;
    struct gp_consumer_stats consumed;
    EVP_PKEY *pkey;
    pthread_t thread;

    world.consumer = world.client != NULL ? gp_consumer_new(world.client) : NULL;
    CHECK(world.consumer != NULL);
    pkey = EVP_PKEY_Q_keygen(gp_inner_libctx(), NULL, "RSA", (size_t)2048);
    CHECK(pkey != NULL);
    world.key = gp_key_new(pkey);
    EVP_PKEY_free(pkey);
    world.key_handle = gp_client_add_key(world.client, world.key);
    pthread_create(&thread, NULL, backend, &world);
    for (int mode = CALLBACK; mode <= WAIT_FD; mode++) {
        run_jobs(&world, (enum mode)mode, operations, 0);
        run_jobs(&world, (enum mode)mode, operations, 1);
        run_vanishing(&world, (enum mode)mode, 1);
        run_vanishing(&world, (enum mode)mode, 0);
    }
    run_jobs(&world, BLOCKED, operations, 0);
    run_fork(&world);
    gp_client_get_stats(world.client, &stats);
    gp_consumer_get_stats(world.consumer, &consumed);
    CHECK(stats.in_use == 0 && consumed.failed == 0);
    printf("depth %u: %llu submitted, %llu orphaned, %llu retries, %llu direct\n", depth,
           (unsigned long long)stats.submitted, (unsigned long long)stats.orphaned, (unsigned long long)stats.retries,
           (unsigned long long)stats.direct);
    gp_client_close(world.client);
    atomic_store(&world.stop, 1);
    gp_client_wake_consumer(world.client);
    pthread_join(thread, NULL);
    gp_client_remove_key(world.client, world.key_handle);
    gp_key_free(world.key);
    gp_consumer_free(world.consumer);
    gp_client_free(world.client);
}

int main(int argc, char **argv)
{
    int operations = argc > 1 ? atoi(argv[1]) : 50;

    const struct gp_class_rule small[GP_CLASSES] = {{.small = 2}};

    run(1, operations / 5 + 1, NULL);
    run(8, operations, NULL);
    run(256, operations, NULL);
    run(8, operations / 10 + 1, small);
    ASYNC_cleanup_thread();
    puts("jobs_stress: passed");
    return 0;
}
