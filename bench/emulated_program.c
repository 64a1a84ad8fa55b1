/* A program whose connections each need one private operation, with the groups of the provider module and operations
 * that cost what they are told to, in processor time: how the module's policy does on any machine.
 *
 *   emulated_program jobs|threads THREADS CLIENTS BITS SINGLE_US GROUP_US OTHER_US THINK_US SECONDS module|none
 *
 * jobs: THREADS event loops, over which CLIENTS connections are spread, each in an OpenSSL async job. threads: CLIENTS
 * threads, each with one connection after the other. A connection takes OTHER_US of processor time besides the
 * operation; its client opens the next one after THINK_US. Prints one JSON object.
 */
#define _GNU_SOURCE
#include <openssl/async.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "process.h"
#include "queue/counts.h"
#include "queue/groups.h"
#include "queue/request.h"

#define MOST_LATENCIES (1u << 20)

static double single_us, group_us, other_us, think_us;
static int with_module;
static gp_groups *groups;
static gp_key *key;
static pthread_once_t handle_once = PTHREAD_ONCE_INIT;
static gp_key_handle handle;
static atomic_int measures;
static _Atomic uint64_t done;
static uint64_t latencies_ns[MOST_LATENCIES];

static void die(const char *what)
{
    fprintf(stderr, "emulated_program: %s\n", what);
    exit(1);
}

static uint64_t processor_ns(clockid_t clock)
{
    struct timespec time;

    clock_gettime(clock, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static void work(double us)
{
    const uint64_t until = processor_ns(CLOCK_THREAD_CPUTIME_ID) + (uint64_t)(us * 1000);

    while (processor_ns(CLOCK_THREAD_CPUTIME_ID) < until)
        ;
}

/* ---- kernels that take their time ---- */

static enum gpk_status key_new(struct gpk_key **made, struct gpk_number n, struct gpk_number e, struct gpk_number p,
                               struct gpk_number q, struct gpk_number dp, struct gpk_number dq, struct gpk_number qinv)
{
    (void)n, (void)e, (void)p, (void)q, (void)dp, (void)dq, (void)qinv;
    *made = malloc(1);
    return *made != NULL ? GPK_OK : GPK_NO_MEMORY;
}

static void key_free(struct gpk_key *made)
{
    free(made);
}

static int key_is_locked(const struct gpk_key *made)
{
    return made != NULL;
}

static enum gpk_status private_op(enum gpk_isa isa, uint32_t count, struct gpk_key *const *keys, const uint8_t *inputs,
                                  uint8_t *outputs, uint32_t stride, uint8_t *ok)
{
    (void)isa, (void)keys;
    memcpy(outputs, inputs, (size_t)count * stride);
    memset(ok, 1, count);
    work(group_us);
    return GPK_OK;
}

static int call_apart(void (*function)(void *argument), void *argument)
{
    function(argument);
    return 1;
}

static const struct gpk_functions kernels = {GPK_ISA_PORTABLE, 8,          key_new,   key_free,
                                             key_is_locked,    private_op, call_apart};

/* ---- one operation, as gp_private_op() has it done ---- */

static void add_key(void)
{
    handle = gp_client_add_key(gp_groups_client(groups), key);
}

static void operation(enum gp_waits waits)
{
    const uint8_t input[GP_MAX_BYTES] = {0};
    uint8_t output[GP_MAX_BYTES];
    uint64_t began_ns = gp_now_ns();

    if (!with_module) {
        work(single_us);
    } else if (gp_groups_is_alone(groups, key->bytes, waits, began_ns)) {
        gp_count(&gp_counts_of(GP_CLASS_OF(key->bytes))->singles, 1);
        work(single_us);
        gp_groups_computed_alone(groups, key->bytes, began_ns);
    } else {
        pthread_once(&handle_once, add_key);
        if (!gp_request_private_op(gp_groups_client(groups), key, handle, input, output))
            die("an operation failed");
    }
}

static void end_connection(uint64_t opened_ns)
{
    if (atomic_load(&measures))
        latencies_ns[atomic_fetch_add(&done, 1) % MOST_LATENCIES] = gp_now_ns() - opened_ns;
}

static void *run_thread(void *argument)
{
    (void)argument;
    for (;;) {
        uint64_t opened_ns = gp_now_ns();

        work(other_us / 2);
        operation(GP_SLEEPS);
        work(other_us / 2);
        end_connection(opened_ns);
        usleep((useconds_t)think_us);
    }
    return NULL;
}

/* ---- event loops ---- */

struct connection {
    ASYNC_WAIT_CTX *context;
    ASYNC_JOB *job;
    OSSL_ASYNC_FD fd; /* -1: not paused */
    uint64_t opens_ns;
};

static int job(void *argument)
{
    (void)argument;
    operation(GP_PAUSES);
    return 1;
}

static void step(struct connection *connection)
{
    size_t count = 1;
    int result;

    if (ASYNC_start_job(&connection->job, connection->context, &result, job, NULL, 0) == ASYNC_PAUSE) {
        if (!ASYNC_WAIT_CTX_get_all_fds(connection->context, &connection->fd, &count))
            die("no wait fd");
        return;
    }
    connection->fd = -1;
    work(other_us / 2);
    end_connection(connection->opens_ns);
    connection->opens_ns = gp_now_ns() + (uint64_t)(think_us * 1000);
}

static void *run_event_loop(void *argument)
{
    const int clients = *(int *)argument;
    struct connection *connections = calloc((size_t)clients, sizeof(*connections));
    struct pollfd *polled = calloc((size_t)clients, sizeof(*polled));

    if (connections == NULL || polled == NULL)
        die("out of memory");
    for (int i = 0; i < clients; i++)
        connections[i] = (struct connection){.context = ASYNC_WAIT_CTX_new(), .fd = -1, .opens_ns = gp_now_ns()};
    for (;;) {
        uint64_t now = gp_now_ns(), next_ns = now + 100000000u;
        struct timespec timeout;

        for (int i = 0; i < clients; i++) {
            polled[i] = (struct pollfd){.fd = connections[i].fd, .events = POLLIN};
            if (connections[i].fd < 0 && connections[i].opens_ns < next_ns)
                next_ns = connections[i].opens_ns;
        }
        timeout = (struct timespec){.tv_nsec = next_ns > now ? (long)(next_ns - now) : 0};
        if (ppoll(polled, (nfds_t)clients, &timeout, NULL) < 0)
            die("ppoll failed");
        now = gp_now_ns();
        for (int i = 0; i < clients; i++) {
            if (polled[i].fd < 0 && connections[i].opens_ns <= now) {
                work(other_us / 2);
                step(&connections[i]);
            } else if (polled[i].fd >= 0 && polled[i].revents != 0) {
                step(&connections[i]);
            }
        }
    }
    return NULL;
}

/* ---- measuring ---- */

static int compare(const void *left, const void *right)
{
    const uint64_t a = *(const uint64_t *)left, b = *(const uint64_t *)right;

    return (a > b) - (a < b);
}

int main(int argc, char **argv)
{
    static struct gp_group_settings settings = {.kernels = &kernels, .most = 8, .max_wait_ns = 20000000};
    uint64_t cpu_ns, began_ns, count, singles, grouped, formed, total = 0;
    double seconds;
    int is_jobs, threads, clients, each;
    struct gp_counts *counts;
    EVP_PKEY *pkey;

    if (argc != 11)
        die("usage: jobs|threads THREADS CLIENTS BITS SINGLE_US GROUP_US OTHER_US THINK_US SECONDS module|none");
    is_jobs = strcmp(argv[1], "jobs") == 0;
    clients = atoi(argv[3]);
    threads = is_jobs ? atoi(argv[2]) : clients;
    each = is_jobs ? (clients + threads - 1) / threads : 1;
    single_us = atof(argv[5]);
    group_us = atof(argv[6]);
    other_us = atof(argv[7]);
    think_us = atof(argv[8]);
    seconds = atof(argv[9]);
    with_module = strcmp(argv[10], "module") == 0;
    pkey = EVP_PKEY_Q_keygen(gp_inner_libctx(), NULL, "RSA", (size_t)atoi(argv[4]));
    key = pkey != NULL ? gp_key_new(pkey) : NULL;
    groups = gp_groups_of_process(&settings);
    if (key == NULL || groups == NULL)
        die("no key");
    counts = gp_counts_of(GP_CLASS_OF(key->bytes));
    for (int i = 0; i < threads; i++) {
        pthread_t thread;

        if (pthread_create(&thread, NULL, is_jobs ? run_event_loop : run_thread, &each) != 0)
            die("no thread");
    }
    usleep(500000); /* until it has learned its costs and its pace */
    singles = counts->singles;
    grouped = counts->grouped;
    formed = counts->groups;
    cpu_ns = processor_ns(CLOCK_PROCESS_CPUTIME_ID);
    began_ns = gp_now_ns();
    atomic_store(&measures, 1);
    usleep((useconds_t)(seconds * 1e6));
    atomic_store(&measures, 0);
    seconds = (double)(gp_now_ns() - began_ns) / 1e9;
    cpu_ns = processor_ns(CLOCK_PROCESS_CPUTIME_ID) - cpu_ns;
    count = done < MOST_LATENCIES ? done : MOST_LATENCIES;
    if (count == 0)
        die("no connection ended");
    singles = counts->singles - singles;
    grouped = counts->grouped - grouped;
    formed = counts->groups - formed;
    qsort(latencies_ns, count, sizeof(*latencies_ns), compare);
    for (uint64_t i = 0; i < count; i++)
        total += latencies_ns[i];
    printf("{\"rate\": %g, \"cpu_us\": %g, \"mean_us\": %g, \"median_us\": %g, \"p99_us\": %g, \"singles\": %g, "
           "\"group_size\": %g}\n",
           (double)done / seconds, (double)cpu_ns / 1e3 / (double)done, (double)total / 1e3 / (double)count,
           (double)latencies_ns[count / 2] / 1e3, (double)latencies_ns[count * 99 / 100] / 1e3,
           singles + grouped > 0 ? (double)singles / (double)(singles + grouped) : 1,
           formed > 0 ? (double)grouped / (double)formed : 0);
    fflush(stdout);
    _exit(0);
}
