/* Feeds the request queue from OpenSSL ASYNC jobs, as thousands of TLS connections would, without TLS or arithmetic.
 *
 * Every job has a wait context of its own with a callback, as every new connection has, and makes one private operation
 * through the function it was given; without a function it does nothing, which is what the cost is compared with.
 * One thread makes all calls but the callback, since OpenSSL's jobs belong to the thread that started them.
 */
#define _GNU_SOURCE
#include <openssl/async.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <time.h>

#define MAX_BYTES 512

typedef int private_op_fn(void *client, void *key, uint64_t handle, const uint8_t *input, uint8_t *output);

struct job {
    struct feeder *feeder;
    ASYNC_JOB *job;
    ASYNC_WAIT_CTX *context; /* NULL: not in flight */
    atomic_int is_ready;     /* is in feeder->ready */
    struct job *next;        /* there */
};

struct feeder {
    private_op_fn *private_op;
    void *client, *key;
    uint64_t handle;
    const uint8_t *input;
    uint32_t size;
    struct job *jobs;  /* [size] */
    struct job **free; /* [size] jobs that are not in flight */
    uint32_t free_count;
    uint64_t failed;
    /* Written by whoever completes a batch, without a lock, as a server's event loop would take it: several threads
     * complete at once, and what is to be measured is not how they wait for one another here. */
    _Atomic(struct job *) ready; /* a stack of the jobs whose callback has fired, each once; some have ended meanwhile,
                                  * because they found their request done before they paused */
    _Atomic uint32_t ready_count;
    _Atomic uint32_t awaited; /* wake the feeder when so many are ready */
    pthread_mutex_t lock;
    pthread_cond_t woken;
};

static int on_ready(void *argument)
{
    struct job *job = argument;
    struct feeder *feeder = job->feeder;
    if (atomic_exchange(&job->is_ready, 1))
        return 1;
    job->next = atomic_load(&feeder->ready);
    while (!atomic_compare_exchange_weak(&feeder->ready, &job->next, job))
        ;
    if (atomic_fetch_add(&feeder->ready_count, 1) + 1 == atomic_load(&feeder->awaited)) {
        pthread_mutex_lock(&feeder->lock);
        pthread_cond_signal(&feeder->woken);
        pthread_mutex_unlock(&feeder->lock);
    }
    return 1;
}

static int body(void *argument)
{
    struct feeder *feeder = *(struct feeder **)argument;
    uint8_t output[MAX_BYTES];
    if (feeder->private_op == NULL)
        return 1;
    return feeder->private_op(feeder->client, feeder->key, feeder->handle, feeder->input, output);
}

struct feeder *feeder_new(private_op_fn *private_op, void *client, void *key, uint64_t handle, const uint8_t *input,
                          uint32_t size)
{
    struct feeder *feeder = calloc(1, sizeof *feeder);
    if (feeder == NULL)
        return NULL;
    *feeder = (struct feeder){.private_op = private_op,
                              .client = client,
                              .key = key,
                              .handle = handle,
                              .input = input,
                              .size = size,
                              .jobs = calloc(size, sizeof *feeder->jobs),
                              .free = calloc(size, sizeof(struct job *))};
    pthread_mutex_init(&feeder->lock, NULL);
    pthread_cond_init(&feeder->woken, NULL);
    if (feeder->jobs == NULL || feeder->free == NULL)
        abort();
    for (struct job *job = feeder->jobs; job < feeder->jobs + size; job++) {
        job->feeder = feeder;
        feeder->free[feeder->free_count++] = job;
    }
    return feeder;
}

/* Nothing may be in flight. */
void feeder_free(struct feeder *feeder)
{
    pthread_mutex_destroy(&feeder->lock);
    pthread_cond_destroy(&feeder->woken);
    free(feeder->jobs);
    free(feeder->free);
    free(feeder);
}

/* Starts or resumes a job; returns 1 if it has ended. */
static uint32_t step(struct feeder *feeder, struct job *job)
{
    int result = 0;
    switch (ASYNC_start_job(&job->job, job->context, &result, body, &feeder, sizeof feeder)) {
    case ASYNC_PAUSE:
        return 0;
    case ASYNC_FINISH:
        break;
    default:
        result = 0;
    }
    if (result != 1)
        feeder->failed++;
    ASYNC_WAIT_CTX_free(job->context);
    job->context = NULL;
    feeder->free[feeder->free_count++] = job;
    return 1;
}

/* Starts up to `count` jobs, as many as are free; returns how many. `ended` counts those that did not pause. */
static uint32_t start(struct feeder *feeder, uint64_t count, uint64_t *ended)
{
    uint32_t started = 0;
    while (started < count && feeder->free_count > 0) {
        struct job *job = feeder->free[--feeder->free_count];
        job->job = NULL;
        job->context = ASYNC_WAIT_CTX_new();
        if (job->context == NULL || !ASYNC_WAIT_CTX_set_callback(job->context, on_ready, job))
            abort();
        *ended += step(feeder, job);
        started++;
    }
    return started;
}

/* Sleeps until `count` jobs are ready. */
static void await(struct feeder *feeder, uint32_t count)
{
    pthread_mutex_lock(&feeder->lock);
    atomic_store(&feeder->awaited, count); /* before the count is looked at: it can't be reached unseen in between */
    while (atomic_load(&feeder->ready_count) < count)
        pthread_cond_wait(&feeder->woken, &feeder->lock);
    atomic_store(&feeder->awaited, 0);
    pthread_mutex_unlock(&feeder->lock);
}

/* Empties the stack of ready jobs and resumes those in flight, the first one first; returns how many have ended. */
static uint64_t resume(struct feeder *feeder)
{
    struct job *first = NULL, *next;
    uint64_t ended = 0;
    uint32_t count = 0;
    for (struct job *job = atomic_exchange(&feeder->ready, NULL); job != NULL; job = next) {
        next = job->next;
        job->next = first;
        first = job;
        count++;
    }
    atomic_fetch_sub(&feeder->ready_count, count);
    for (struct job *job = first; job != NULL; job = next) {
        next = job->next;                   /* from when is_ready is cleared, it may be pushed again */
        atomic_exchange(&job->is_ready, 0); /* sees what was done before a callback that found it set */
        if (job->context != NULL)
            ended += step(feeder, job);
    }
    return ended;
}

/* Runs `requests` jobs, always `size` of them in flight while there are enough left. Returns how many have failed since
 * the feeder was made. */
uint64_t feeder_run(struct feeder *feeder, uint64_t requests)
{
    uint64_t started = 0, ended = 0;
    while (ended < requests) {
        started += start(feeder, requests - started, &ended);
        if (ended == started)
            continue;
        await(feeder, 1);
        ended += resume(feeder);
    }
    return feeder->failed;
}

/* Starts `size` jobs and leaves them paused. None may be in flight, and none may be completed meanwhile. */
void feeder_fill(struct feeder *feeder)
{
    uint64_t ended = 0;
    resume(feeder); /* whose callback fired after they had ended */
    start(feeder, feeder->size, &ended);
}

/* Sleeps until the callback of every paused job has fired; returns CLOCK_MONOTONIC then, in nanoseconds. */
uint64_t feeder_await_all(struct feeder *feeder)
{
    struct timespec now;
    await(feeder, feeder->size - feeder->free_count);
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * UINT64_C(1000000000) + (uint64_t)now.tv_nsec;
}

/* Resumes them; returns how many have failed since the feeder was made. */
uint64_t feeder_finish(struct feeder *feeder)
{
    resume(feeder);
    return feeder->failed;
}
