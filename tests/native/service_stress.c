/* Stress of the service's transport: threads of a program whose service hangs up again and again, one of which has jobs
 * with callbacks and fires these itself, and another one jobs with wait descriptors; and beside them processes that
 * write random bytes over all that the service shares with them, and send it nonsense. */
#define _GNU_SOURCE
#include <errno.h>
#include <openssl/async.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "keys/cpu.h"
#include "queue/consumer.h"
#include "returning_kernels.h"
#include "service/attachment.h"
#include "service/service.h"

#ifndef __SANITIZE_THREAD__ /* which can't follow a job from stack to stack */
#define WITH_JOBS
#endif

#define THREADS 6
#define JOBS 12
#define SCRIBBLERS 2
#define MOST 32 /* processes at a time */

static const struct gp_remote_limits limits = {.requests = 16, .keys = 8, .descriptors = 96};
static struct sockaddr_un address = {.sun_family = AF_UNIX};
static gp_client *client;
static gp_consumer *consumer;
static gp_remotes *remotes;
#define NAMED 2 /* the last key is the service's, and used by its name */
static gp_key *keys[NAMED + 1];
static struct gp_attached_key attached[NAMED + 1] = {[NAMED].name = "named"};
static struct gp_service_settings settings = {
    .path = address.sun_path, .timeout_ns = 2000000000, .key_timeout_ns = 60000000000};
static gp_attachment *attachment;
static atomic_int stop_serving, stop_computing, rounds_left;
static atomic_ulong served, served_by_name, served_in_jobs, computed_here, lies;

/* ---- the service ---- */

static void *batching_thread(void *argument)
{
    struct gp_class_rule rules[GP_CLASSES];
    struct gp_small_batch batches[GP_SMALL_BATCHES];
    struct gp_group *group = malloc(sizeof(*group));

    (void)argument;
    CHECK(group != NULL);
    for (uint32_t i = 0; i < GP_CLASSES; i++)
        rules[i] = (struct gp_class_rule){.small = GP_SMALL_BATCH};
    while (!atomic_load(&stop_computing)) {
        uint32_t waiting[GP_CLASSES];
        uint64_t oldest_ns[GP_CLASSES];

        gp_consumer_wait(consumer, 10000000, 1, rules, waiting, oldest_ns);
        (void)gp_consumer_small_batches(consumer, batches, 1);
        for (uint32_t i = 0; i < GP_CLASSES; i++) {
            gp_consumer_take_group(consumer, i, GP_SMALL_BATCH, group);
            if (group->requests == 0)
                continue;
            gp_consumer_compute_group(consumer, group);
            gp_consumer_complete_group(consumer, group);
        }
    }
    free(group);
    return NULL;
}

static void *socket_thread(void *argument)
{
    struct pollfd polled[MOST + 1] = {{.fd = *(int *)argument, .events = POLLIN}};
    gp_remote *connected[MOST + 1];
    nfds_t count = 1;

    for (unsigned turn = 1; !atomic_load(&stop_serving) || count > 1; turn++) {
        (void)poll(polled, count, 5);
        for (nfds_t i = 1; i < count; i++) {
            int error = polled[i].revents != 0 ? gp_remote_serve(connected[i]) : 0;

            atomic_fetch_add(&lies, error == EPROTO);
            if (error == 0 && turn % 400 != 0 && !atomic_load(&stop_serving))
                continue;
            gp_remote_close(connected[i]);
            connected[i] = connected[--count];
            polled[i] = polled[count];
            i--;
        }
        if (polled[0].revents != 0 && count <= MOST) {
            int accepted = accept(polled[0].fd, NULL, NULL);

            CHECK(accepted >= 0);
            connected[count] = gp_remote_new(remotes, accepted, &limits);
            CHECK(connected[count] != NULL);
            polled[count++] = (struct pollfd){.fd = accepted, .events = POLLIN};
        }
    }
    return NULL;
}

/* ---- a program ---- */

static int read_numbers(const void *key, struct gp_message *message)
{
    uint8_t *next = message->numbers;

    for (uint32_t i = 0; i < GP_KEY_NUMBERS; i++) {
        BIGNUM *number = NULL;

        CHECK(EVP_PKEY_get_bn_param(key, gp_key_number_names[i], &number));
        message->sizes[i] = (uint16_t)BN_num_bytes(number);
        next += BN_bn2bin(number, next);
        BN_clear_free(number);
    }
    return 1;
}

/* 1 if the service computed it. */
static int operate(int round)
{
    uint8_t input[GP_MAX_BYTES] = {0}, output[GP_MAX_BYTES];
    const int i = round % (NAMED + 1);

    memcpy(input + 8, &round, sizeof(round));
    if (i == NAMED) {
        CHECK(gp_attachment_named_op(&settings, &attached[i], read_numbers, keys[i]->pkey, keys[i]->bytes, input,
                                     output)
              == GP_COMPUTED);
        atomic_fetch_add(&served_by_name, 1);
    } else if (gp_attachment_private_op(attachment, &attached[i], read_numbers, keys[i]->pkey, keys[i]->bytes, input,
                                        output)
               != GP_ATTACHED) {
        atomic_fetch_add(&computed_here, 1);
        return 0;
    }
    CHECK(is_result(keys[i], input, output));
    atomic_fetch_add(&served, 1);
    return 1;
}

static void *caller(void *argument)
{
    (void)argument;
    for (int round; (round = atomic_fetch_sub(&rounds_left, 1)) > 0;)
        if (!operate(round))
            usleep(500);
    return NULL;
}

#ifdef WITH_JOBS
struct job {
    ASYNC_JOB *job;
    ASYNC_WAIT_CTX *context;
    int may_go_on, round;
};

static int on_callback(void *argument)
{
    ((struct job *)argument)->may_go_on = 1;
    return 1;
}

static int in_job(void *argument)
{
    atomic_fetch_add(&served_in_jobs, (unsigned long)operate(**(int **)argument));
    return 1;
}

static int in_job_without_callback(void *argument)
{
    return operate(**(int **)argument);
}

static void go_on(struct job *job, int (*run)(void *))
{
    int *round = &job->round, result = 0;

    job->may_go_on = 0;
    switch (ASYNC_start_job(&job->job, job->context, &result, run, &round, sizeof(round))) {
    case ASYNC_PAUSE:
        return;
    case ASYNC_FINISH:
        CHECK(result == 1);
        ASYNC_WAIT_CTX_free(job->context);
        job->context = NULL;
        return;
    default:
        CHECK(0);
    }
}

/* Its jobs are more than the queue has slots for its process, so some wait for one. */
static void *loop(void *argument)
{
    struct pollfd polled = {.fd = *(int *)argument, .events = POLLIN};
    struct job jobs[JOBS] = {{0}};
    const unsigned long wanted = (unsigned long)atomic_load(&rounds_left) / 4;
    unsigned running;
    int round = 0;

    CHECK(ASYNC_init_thread(JOBS, 0));
    do {
        running = 0;
        for (unsigned i = 0; i < JOBS; i++) {
            struct job *job = &jobs[i];

            if (job->context == NULL && served_in_jobs < wanted) {
                job->round = ++round;
                job->context = ASYNC_WAIT_CTX_new();
                CHECK(ASYNC_WAIT_CTX_set_callback(job->context, on_callback, job));
                job->may_go_on = 1;
            }
            if (job->may_go_on)
                go_on(job, in_job);
            running += job->context != NULL;
        }
        if (running == 0)
            usleep(500); /* the service is away */
        else if (poll(&polled, 1, 10000) == 0)
            CHECK(!"a callback is lost");
        gp_attachment_fire();
    } while (running > 0 || served_in_jobs < wanted);
    ASYNC_cleanup_thread();
    return NULL;
}

#define NAMED_JOBS 8u
#define NAMED_ROUNDS 300

/* Its jobs have no callback, and only use the service's key: they wait until that is back, on the descriptor that they
 * had before. Some connections are freed meanwhile. */
static void *loop_by_descriptors(void *argument)
{
    struct pollfd polled[NAMED_JOBS];
    struct job jobs[NAMED_JOBS] = {{0}};
    unsigned running;
    int round = 0;

    (void)argument;
    CHECK(ASYNC_init_thread(0, 0));
    do {
        running = 0;
        for (unsigned i = 0; i < NAMED_JOBS; i++) {
            struct job *job = &jobs[i];
            size_t count = 0;

            if (job->context != NULL && (polled[i].revents & POLLIN) != 0) {
                go_on(job, in_job_without_callback);
            } else if (job->context == NULL && round < NAMED_ROUNDS) {
                job->round = NAMED + (NAMED + 1) * ++round;
                job->job = NULL;
                job->context = ASYNC_WAIT_CTX_new();
                go_on(job, in_job_without_callback);
                if (job->context != NULL && round % 16 == 0) {
                    ASYNC_WAIT_CTX_free(job->context);
                    job->context = NULL;
                }
            }
            polled[i] = (struct pollfd){.fd = -1, .events = POLLIN};
            if (job->context == NULL)
                continue;
            running++;
            CHECK(ASYNC_WAIT_CTX_get_all_fds(job->context, NULL, &count) && count == 1);
            CHECK(ASYNC_WAIT_CTX_get_all_fds(job->context, &polled[i].fd, &count));
        }
        CHECK(running == 0 || poll(polled, NAMED_JOBS, 10000) > 0);
    } while (running > 0 || round < NAMED_ROUNDS);
    ASYNC_cleanup_thread();
    return NULL;
}
#endif

/* ---- a process that lies ---- */

static void receive(int socket, int *descriptors, uint32_t *count)
{
    static struct gp_message message;
    struct pollfd polled = {.fd = socket, .events = POLLIN};

    (void)poll(&polled, 1, 1000);
    if (gp_message_receive(socket, &message, 0, descriptors, count) != 0)
        *count = 0;
}

/* One connection. Mostly small numbers, as states, slots and sequences are, and mostly where they are. */
static void lie(unsigned *seed)
{
    static struct gp_message message;
    int queue[GP_DESCRIPTORS_AT_ONCE], others[GP_DESCRIPTORS_AT_ONCE];
    int connection = socket(AF_UNIX, SOCK_SEQPACKET, 0);
    uint32_t count, more;
    struct stat status;
    uint8_t *memory;

    CHECK(connect(connection, (struct sockaddr *)&address, sizeof(address)) == 0);
    message.type = GP_HELLO;
    message.version = GP_PROTOCOL_VERSION;
    CHECK(gp_message_send(connection, &message, NULL, 0) == 0);
    receive(connection, queue, &count);
    receive(connection, others, &more);
    if (count == 2) { /* it may have been closed by then */
        CHECK(fstat(queue[0], &status) == 0);
        memory = mmap(NULL, (size_t)status.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, queue[0], 0);
        CHECK(memory != MAP_FAILED);
        for (int i = 0; i < 1000; i++) {
            const uint64_t one = 1;
            size_t at = (size_t)rand_r(seed) % (size_t)status.st_size;

            memory[rand_r(seed) % 4 == 0 ? at : at % 4096] = (uint8_t)(rand_r(seed) % 8);
            if (i % 16 == 0)
                CHECK(write(queue[1], &one, sizeof(one)) == sizeof(one));
        }
        munmap(memory, (size_t)status.st_size);
    }
    message.type = (uint32_t)rand_r(seed) % 11;
    for (uint32_t i = 0; i < GP_KEY_NUMBERS; i++)
        message.sizes[i] = (uint16_t)(1 + rand_r(seed) % GP_MAX_BYTES);
    (void)gp_message_send(connection, &message, NULL, 0);
    for (uint32_t i = 0; i < count; i++)
        close(queue[i]);
    for (uint32_t i = 0; i < more; i++)
        close(others[i]);
    close(connection);
}

static void scribble(const char *path, unsigned seed)
{
    strcpy(address.sun_path, path);
    for (int i = 0; i < 100; i++)
        lie(&seed);
    exit(0);
}

static pid_t start_scribbler(const char *program, unsigned seed)
{
    char number[16];
    pid_t child = fork();

    snprintf(number, sizeof(number), "%u", seed);
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        execl(program, program, "scribble", address.sun_path, number, (char *)NULL);
        _exit(1);
    }
    return child;
}

int main(int argc, char **argv)
{
    pthread_t threads[THREADS], batching, sockets;
#ifdef WITH_JOBS
    pthread_t looping, looping_by_descriptors;
#endif
    pid_t scribblers[SCRIBBLERS];
    struct gp_client_stats stats;
    int listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0), unexpected = 0, callbacks;
    uint64_t until;

    if (argc > 3 && strcmp(argv[1], "scribble") == 0)
        scribble(argv[2], (unsigned)atoi(argv[3]));
    atomic_store(&rounds_left, argc > 1 ? atoi(argv[1]) : 1500);
    snprintf(address.sun_path, sizeof(address.sun_path), "/tmp/gpu-provider-stress-%d", getpid());
    CHECK(bind(listener, (struct sockaddr *)&address, sizeof(address)) == 0 && listen(listener, 64) == 0);
    client = gp_client_new(64);
    consumer = client != NULL ? gp_consumer_new(client) : NULL;
    remotes = consumer != NULL ? gp_remotes_new(client, 24) : NULL;
    attachment = gp_attachment_of_process(&settings);
    callbacks = gp_attachment_callbacks_descriptor(&settings);
    CHECK(remotes != NULL && attachment != NULL && callbacks >= 0);
    gp_cpu_use_kernels(gp_client_cpu(client), &returning_kernels, 2);
    for (int i = 0; i <= NAMED; i++)
        keys[i] = make_key((size_t)(2048 + 512 * i));
    CHECK(gp_remotes_name_key(remotes, "named", gp_client_add_key(client, keys[NAMED])));
    for (unsigned i = 0; i < SCRIBBLERS; i++)
        scribblers[i] = start_scribbler(argv[0], i + 1);
    CHECK(pthread_create(&batching, NULL, batching_thread, NULL) == 0);
    CHECK(pthread_create(&sockets, NULL, socket_thread, &listener) == 0);
    for (int i = 0; i < THREADS; i++)
        CHECK(pthread_create(&threads[i], NULL, caller, NULL) == 0);
#ifdef WITH_JOBS
    CHECK(pthread_create(&looping, NULL, loop, &callbacks) == 0);
    CHECK(pthread_create(&looping_by_descriptors, NULL, loop_by_descriptors, NULL) == 0);
    pthread_join(looping, NULL);
    pthread_join(looping_by_descriptors, NULL);
#endif
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    for (int i = 0; i < SCRIBBLERS; i++) {
        int status;

        waitpid(scribblers[i], &status, 0);
        unexpected += !WIFEXITED(status) || WEXITSTATUS(status) != 0;
    }
    atomic_store(&stop_serving, 1);
    pthread_join(sockets, NULL);
    for (until = gp_now_ns() + 10000000000u; gp_now_ns() < until; usleep(1000)) {
        gp_client_get_stats(client, &stats);
        if (stats.in_use == 0 && stats.keys == 1)
            break;
    }
    atomic_store(&stop_computing, 1);
    gp_client_wake_consumer(client);
    pthread_join(batching, NULL);
    unlink(address.sun_path);
    printf("%lu served, %lu of them by name, %lu in jobs, %lu not; %lu connections cut off\n", (unsigned long)served,
           (unsigned long)served_by_name, (unsigned long)served_in_jobs, (unsigned long)computed_here,
           (unsigned long)lies);
    CHECK(unexpected == 0);
    CHECK(stats.in_use == 0 && stats.keys == 1); /* nothing is left of any process */
    CHECK(served > served_in_jobs && served_by_name > 0);
    for (int i = 0; i <= NAMED; i++)
        gp_key_free(keys[i]);
    puts("service_stress: passed");
    return 0;
}
