/* What a request costs on its way to the service and back, without its computation: the kernels return at once.
 *
 *   transport hops DEPTH ROUNDS
 *       One thread is the program and the service in turn. Each step is taken for DEPTH requests before the next.
 *   transport requests SOCKET jobs|threads DEPTH REQUESTS
 *       A program and a service, each a process: the CPU time of both. DEPTH requests are under way at any time.
 *
 * Prints a JSON object: µs of CPU for each request.
 */
#define _GNU_SOURCE
#include <openssl/async.h>
#include <openssl/core_names.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "keys/cpu.h"
#include "process.h"
#include "queue/consumer.h"
#include "queue/descriptors.h"
#include "service/attachment.h"
#include "service/service.h"

#define BITS 2048
#define BYTES (BITS / 8)
#define MOST 1024       /* requests at once */
#define SERVICE_ROOM 64 /* as the service has it without a GPU */
#define TIMEOUT_NS 10000000000u
#define REQUIRE(condition) require(condition, #condition, __LINE__)

static EVP_PKEY *pkey;
static gp_client *client; /* the service's */
static gp_consumer *consumer;
static gp_remotes *remotes;
static const uint8_t input[BYTES];

static void require(int condition, const char *what, int line)
{
    if (!condition) {
        fprintf(stderr, "transport: line %d: not true: %s\n", line, what);
        exit(1);
    }
}

static double cpu_us(clockid_t clock)
{
    struct timespec time;

    clock_gettime(clock, &time);
    return 1e6 * (double)time.tv_sec + 1e-3 * (double)time.tv_nsec;
}

/* ---- kernels that cost nothing ---- */

static enum gpk_status key_new(struct gpk_key **key, struct gpk_number n, struct gpk_number e, struct gpk_number p,
                               struct gpk_number q, struct gpk_number dp, struct gpk_number dq, struct gpk_number qinv)
{
    (void)n, (void)e, (void)p, (void)q, (void)dp, (void)dq, (void)qinv;
    *key = malloc(1);
    return *key != NULL ? GPK_OK : GPK_NO_MEMORY;
}

static void key_free(struct gpk_key *key)
{
    free(key);
}

static int key_is_locked(const struct gpk_key *key)
{
    (void)key;
    return 0;
}

static enum gpk_status private_op(enum gpk_isa isa, uint32_t count, struct gpk_key *const *keys, const uint8_t *inputs,
                                  uint8_t *outputs, uint32_t stride, uint8_t *ok)
{
    (void)isa, (void)keys, (void)inputs, (void)outputs, (void)stride;
    memset(ok, 1, count);
    return GPK_OK;
}

static int call_apart(void (*function)(void *argument), void *argument)
{
    function(argument);
    return 1;
}

static const struct gpk_functions kernels = {GPK_ISA_PORTABLE, 8,          key_new,   key_free,
                                             key_is_locked,    private_op, call_apart};

/* ---- both ---- */

static int read_numbers(const void *key, struct gp_message *message)
{
    uint8_t *next = message->numbers;

    for (uint32_t i = 0; i < GP_KEY_NUMBERS; i++) {
        BIGNUM *number = NULL;

        REQUIRE(EVP_PKEY_get_bn_param(key, gp_key_number_names[i], &number));
        message->sizes[i] = (uint16_t)BN_num_bytes(number);
        next += BN_bn2bin(number, next);
        BN_clear_free(number);
    }
    return 1;
}

static void make_service(uint32_t room)
{
    client = gp_client_new(2 * room);
    consumer = client != NULL ? gp_consumer_new(client) : NULL;
    remotes = consumer != NULL ? gp_remotes_new(client, room) : NULL;
    REQUIRE(remotes != NULL);
    gp_cpu_use_kernels(gp_client_cpu(client), &kernels, 1);
}

static gp_remote *new_remote(int socket)
{
    const struct gp_remote_limits limits = {.requests = MOST, .keys = 8, .descriptors = 2 * MOST};
    gp_remote *remote = gp_remote_new(remotes, socket, &limits);

    REQUIRE(remote != NULL);
    return remote;
}

/* ---- hops ---- */

enum hop { SUBMIT, DOORBELL, TAKE, COMPLETE, WAKE_JOB, WAKE_THREAD, COLLECT, DRAIN, HOPS };
static const char *const hop_names[HOPS] = {"submit",   "doorbell",    "take",    "complete",
                                            "wake_job", "wake_thread", "collect", "drain"};

static gp_request_handle handles[MOST], own_handles[MOST];
static int wait_fds[GP_DESCRIPTORS_AT_ONCE];

/* A program that has said hello and brought its key: its client, and the key's handle. */
static gp_client *attach(gp_key_handle *key)
{
    static struct gp_message message = {.type = GP_HELLO, .version = GP_PROTOCOL_VERSION};
    int sockets[2], queue[GP_DESCRIPTORS_AT_ONCE], none[GP_DESCRIPTORS_AT_ONCE];
    struct gp_descriptors *descriptors = gp_descriptors_new();
    gp_client *program;
    gp_remote *remote;
    uint32_t count;

    REQUIRE(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, sockets) == 0);
    remote = new_remote(sockets[0]);
    REQUIRE(gp_message_send(sockets[1], &message, NULL, 0) == 0 && gp_remote_serve(remote) == 0);
    REQUIRE(gp_message_receive(sockets[1], &message, 0, queue, &count) == 0 && count == 2);
    REQUIRE(gp_message_receive(sockets[1], &message, 0, wait_fds, &count) == 0 && count == GP_DESCRIPTORS_AT_ONCE);
    REQUIRE(descriptors != NULL && gp_descriptors_add(descriptors, wait_fds, count));
    memset(&message, 0, sizeof(message));
    message.type = GP_ADD_KEY;
    REQUIRE(read_numbers(pkey, &message));
    REQUIRE(gp_message_send(sockets[1], &message, NULL, 0) == 0 && gp_remote_serve(remote) == 0);
    REQUIRE(gp_message_receive(sockets[1], &message, 0, none, &count) == 0 && message.handle != 0);
    *key = message.handle;
    program = gp_client_of_service(queue[0], queue[1], sockets[1], descriptors, TIMEOUT_NS);
    REQUIRE(program != NULL);
    return program;
}

static void take(uint32_t depth)
{
    static gp_key_handle keys[MOST];
    static uint8_t inputs[MOST * BYTES];
    static uint64_t submitted_ns[MOST];
    uint32_t waiting[GP_CLASSES], taken = 0;
    uint64_t oldest_ns[GP_CLASSES];

    while (taken < depth) {
        gp_consumer_wait(consumer, 0, 1, NULL, waiting, oldest_ns);
        taken += gp_consumer_take(consumer, 0, depth - taken, own_handles + taken, keys, inputs, submitted_ns);
    }
}

static void measure_round(gp_client *program, gp_key_handle key, uint32_t depth, enum hop waker, double *us)
{
    static uint8_t outputs[MOST * BYTES], ok[MOST], output[BYTES];
    const struct gp_waiter waiter = {.kind = GP_WAITER_THREAD, .key = key};
    gp_queue *queue = gp_client_queue(program);
    double times[7];

    memset(ok, 1, depth);
    atomic_store(&queue->header->sleeping, 0);
    times[0] = cpu_us(CLOCK_THREAD_CPUTIME_ID);
    for (uint32_t i = 0; i < depth; i++)
        handles[i] = gp_client_put(program, gp_client_claim(program, NULL), &waiter, BYTES, input, 1);
    times[1] = cpu_us(CLOCK_THREAD_CPUTIME_ID);
    atomic_store(&queue->header->sleeping, 1);
    gp_queue_wake_consumer(queue);
    times[2] = cpu_us(CLOCK_THREAD_CPUTIME_ID);
    take(depth);
    for (uint32_t i = 0; i < depth && waker != COMPLETE; i++)
        atomic_store(&queue->wake[gp_request_slot(handles[i])],
                     waker == WAKE_THREAD ? GP_WAKE_THREAD : GP_WAKE_DESCRIPTORS + i % GP_DESCRIPTORS_AT_ONCE);
    times[3] = cpu_us(CLOCK_THREAD_CPUTIME_ID);
    gp_consumer_complete(consumer, depth, own_handles, outputs, BYTES, ok);
    times[4] = cpu_us(CLOCK_THREAD_CPUTIME_ID);
    for (uint32_t i = 0; i < depth && waker == WAKE_JOB; i++) {
        uint64_t ticks;

        (void)!read(wait_fds[i % GP_DESCRIPTORS_AT_ONCE], &ticks, sizeof(ticks));
    }
    times[5] = cpu_us(CLOCK_THREAD_CPUTIME_ID);
    for (uint32_t i = 0; i < depth; i++)
        REQUIRE(gp_client_poll(program, handles[i]) == GP_DONE_OK
                && gp_client_collect(program, handles[i], BYTES, output, 1));
    times[6] = cpu_us(CLOCK_THREAD_CPUTIME_ID);
    us[waker] += times[4] - times[3];
    if (waker == WAKE_JOB)
        us[DRAIN] += times[5] - times[4];
    if (waker != COMPLETE)
        return;
    us[SUBMIT] += times[1] - times[0];
    us[DOORBELL] += times[2] - times[1];
    us[TAKE] += times[3] - times[2];
    us[COLLECT] += times[6] - times[5];
}

static void measure_hops(uint32_t depth, int rounds)
{
    double us[HOPS] = {0}, clock;
    gp_key_handle key;
    gp_client *program;

    make_service(MOST);
    program = attach(&key);
    for (int i = 0; i < 10; i++)
        measure_round(program, key, depth, i % 2 ? WAKE_JOB : WAKE_THREAD, us); /* every page and line once */
    memset(us, 0, sizeof(us));
    for (int i = 0; i < rounds; i++) {
        measure_round(program, key, depth, COMPLETE, us);
        measure_round(program, key, depth, WAKE_JOB, us);
        measure_round(program, key, depth, WAKE_THREAD, us);
    }
    clock = cpu_us(CLOCK_THREAD_CPUTIME_ID);
    for (int i = 0; i < rounds; i++)
        (void)cpu_us(CLOCK_THREAD_CPUTIME_ID);
    clock = cpu_us(CLOCK_THREAD_CPUTIME_ID) - clock; /* what the clock itself costs in each step */
    us[WAKE_JOB] -= us[COMPLETE];
    us[WAKE_THREAD] -= us[COMPLETE];
    for (int i = 0; i < HOPS; i++) {
        const int is_difference = i == WAKE_JOB || i == WAKE_THREAD;

        us[i] = (us[i] - (is_difference ? 0 : clock)) / rounds / (i == DOORBELL ? 1 : depth);
        printf("%s\"%s\": %.3f", i == 0 ? "{" : ", ", hop_names[i], us[i]);
    }
    printf("}\n");
}

/* ---- a service, in a process of its own ---- */

static void *batching_thread(void *argument)
{
    struct gp_class_rule rules[GP_CLASSES];
    struct gp_small_batch batches[GP_SMALL_BATCHES];
    struct gp_group *group = malloc(sizeof(*group));

    REQUIRE(group != NULL);
    for (uint32_t i = 0; i < GP_CLASSES; i++)
        rules[i] = (struct gp_class_rule){.small = GP_SMALL_BATCH};
    for (;;) {
        uint32_t waiting[GP_CLASSES];
        uint64_t oldest_ns[GP_CLASSES];

        gp_consumer_wait(consumer, -1, 1, rules, waiting, oldest_ns);
        (void)gp_consumer_small_batches(consumer, batches, 1);
        for (;;) {
            gp_consumer_take_group(consumer, 0, GP_SMALL_BATCH, group);
            if (group->requests == 0)
                break;
            gp_consumer_compute_group(consumer, group);
            gp_consumer_complete_group(consumer, group);
        }
    }
    return argument;
}

/* Serves one program until that has measured itself; what this process used meanwhile. */
static double serve(int listener, int program, double *programs)
{
    struct pollfd polled[] = {{.fd = listener, .events = POLLIN}, {.fd = program, .events = POLLIN}, {.fd = -1}};
    double before = 0, now;
    pthread_t thread;
    gp_remote *remote = NULL;
    char word;

    make_service(SERVICE_ROOM);
    REQUIRE(pthread_create(&thread, NULL, batching_thread, NULL) == 0);
    for (;;) {
        REQUIRE(poll(polled, 3, -1) > 0);
        if (polled[0].revents != 0) {
            polled[2] = (struct pollfd){.fd = accept(listener, NULL, NULL), .events = POLLIN};
            remote = new_remote(polled[2].fd);
        }
        if (polled[2].revents != 0)
            REQUIRE(remote != NULL && gp_remote_serve(remote) == 0);
        if (polled[1].revents != 0) {
            now = cpu_us(CLOCK_PROCESS_CPUTIME_ID);
            REQUIRE(read(program, &word, 1) == 1 && write(program, &word, 1) == 1);
            if (word == 'e')
                break;
            before = now;
        }
    }
    REQUIRE(read(program, programs, sizeof(*programs)) == sizeof(*programs));
    return now - before;
}

/* ---- a program ---- */

struct job {
    ASYNC_JOB *job;
    ASYNC_WAIT_CTX *context; /* NULL: not in flight */
    OSSL_ASYNC_FD fd;        /* that is watched; -1 */
};

static struct job jobs[MOST];
static gp_attachment *attachment;
static struct gp_attached_key attached;
static int does_nothing;
static atomic_int left, not_served;

static int request(void *argument)
{
    uint8_t output[BYTES];

    (void)argument;
    if (!does_nothing
        && gp_attachment_private_op(attachment, &attached, read_numbers, pkey, BYTES, input, output) != GP_ATTACHED)
        atomic_fetch_add(&not_served, 1);
    return 1;
}

static void *thread(void *argument)
{
    while (atomic_fetch_sub(&left, 1) > 0)
        (void)request(NULL);
    return argument;
}

/* Starts or resumes it, and watches the descriptor that it shows at its first pause. */
static void step(int epoll, struct job *job)
{
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = job};
    size_t added = 1, deleted = 0;
    int result;

    if (ASYNC_start_job(&job->job, job->context, &result, request, NULL, 0) == ASYNC_PAUSE) {
        if (job->fd >= 0)
            return;
        REQUIRE(ASYNC_WAIT_CTX_get_changed_fds(job->context, &job->fd, &added, NULL, &deleted) && added == 1);
        REQUIRE(epoll_ctl(epoll, EPOLL_CTL_ADD, job->fd, &event) == 0);
        return;
    }
    if (job->fd >= 0)
        REQUIRE(epoll_ctl(epoll, EPOLL_CTL_DEL, job->fd, NULL) == 0);
    ASYNC_WAIT_CTX_free(job->context);
    *job = (struct job){.fd = -1};
}

static void run_jobs(uint32_t depth)
{
    static struct epoll_event events[MOST];
    static int epoll = -1;
    uint32_t in_flight;

    if (epoll < 0)
        epoll = epoll_create1(0);
    do {
        in_flight = 0;
        for (struct job *job = jobs; job < jobs + depth; job++) {
            while (job->context == NULL && atomic_fetch_sub(&left, 1) > 0) {
                job->context = ASYNC_WAIT_CTX_new();
                step(epoll, job);
            }
            in_flight += job->context != NULL;
        }
        for (int i = in_flight > 0 ? epoll_wait(epoll, events, MOST, -1) : 0; i > 0; i--)
            step(epoll, events[i - 1].data.ptr);
    } while (in_flight > 0);
}

static void run_threads(uint32_t depth)
{
    static pthread_t threads[MOST];

    for (uint32_t i = 0; i < depth; i++)
        REQUIRE(pthread_create(&threads[i], NULL, thread, NULL) == 0);
    for (uint32_t i = 0; i < depth; i++)
        REQUIRE(pthread_join(threads[i], NULL) == 0);
}

/* What this process used for so many. */
static double run(int in_jobs, uint32_t depth, int requests)
{
    double before = cpu_us(CLOCK_PROCESS_CPUTIME_ID);

    atomic_store(&left, requests);
    if (in_jobs)
        run_jobs(depth);
    else
        run_threads(depth);
    return cpu_us(CLOCK_PROCESS_CPUTIME_ID) - before;
}

static void say(int service, char word)
{
    REQUIRE(write(service, &word, 1) == 1 && read(service, &word, 1) == 1);
}

static void be_program(const char *path, int service, int in_jobs, uint32_t depth, int requests)
{
    struct gp_service_settings settings = {.path = path, .timeout_ns = TIMEOUT_NS};
    double us, nothing;

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (struct job *job = jobs; job < jobs + MOST; job++)
        job->fd = -1;
    attachment = gp_attachment_of_process(&settings);
    REQUIRE(attachment != NULL);
    do { /* until it is attached, and has enough descriptors */
        atomic_store(&not_served, 0);
        (void)run(in_jobs, depth, (int)(4 * depth));
    } while (atomic_load(&not_served) > 0);
    does_nothing = 1;
    nothing = run(in_jobs, depth, requests);
    does_nothing = 0;
    say(service, 'b');
    us = run(in_jobs, depth, requests) - nothing;
    say(service, 'e');
    REQUIRE(atomic_load(&not_served) == 0 && write(service, &us, sizeof(us)) == sizeof(us));
    exit(0);
}

static void measure_requests(char **arguments)
{
    const int in_jobs = strcmp(arguments[1], "jobs") == 0, requests = atoi(arguments[3]);
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int listener = socket(AF_UNIX, SOCK_SEQPACKET, 0), sockets[2], status;
    double of_program, of_service;
    pid_t program;

    strncpy(address.sun_path, arguments[0], sizeof(address.sun_path) - 1);
    (void)unlink(address.sun_path);
    REQUIRE(bind(listener, (struct sockaddr *)&address, sizeof(address)) == 0 && listen(listener, 8) == 0);
    REQUIRE(socketpair(AF_UNIX, SOCK_STREAM, 0, sockets) == 0);
    program = fork();
    if (program == 0)
        be_program(address.sun_path, sockets[1], in_jobs, (uint32_t)atoi(arguments[2]), requests);
    close(sockets[1]);
    of_service = serve(listener, sockets[0], &of_program);
    REQUIRE(waitpid(program, &status, 0) == program && status == 0);
    printf("{\"program\": %.3f, \"service\": %.3f}\n", of_program / requests, of_service / requests);
}

int main(int argc, char **argv)
{
    const int depth = argc == 4 ? atoi(argv[2]) : argc == 6 ? atoi(argv[4]) : 0;

    if (depth < 1 || depth > MOST) {
        fprintf(stderr, "usage: transport hops DEPTH ROUNDS | requests SOCKET jobs|threads DEPTH REQUESTS\n");
        return 2;
    }
    pkey = EVP_PKEY_Q_keygen(NULL, NULL, "RSA", (size_t)BITS);
    REQUIRE(pkey != NULL);
    if (argc == 4)
        measure_hops((uint32_t)depth, atoi(argv[3]));
    else
        measure_requests(argv + 2);
    return 0;
}
