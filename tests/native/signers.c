/* A program like others that OpenSSL gives to: it signs the same bytes again and again, with one of three ways of
 * waiting, and compares the signatures.
 *
 *   signers KEY fds|callbacks|threads AT_ONCE SIGNATURES ABANDON
 *
 * Every ABANDON-th job (0: none) is left behind at its first or its second pause, as a server does whose client has
 * gone; those come on top. Prints the signature in hex.
 */
#define _GNU_SOURCE
#include <openssl/async.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "check.h"

#define MOST 512
#define BYTES 512

static EVP_PKEY *key;
static uint8_t right[BYTES];
static size_t size;
static int with_callback, woken;
static atomic_int left;

struct job {
    ASYNC_JOB *job;
    ASYNC_WAIT_CTX *context; /* NULL: not in flight */
    int pauses_left;         /* until it is abandoned */
    atomic_int called;
};

static struct job jobs[MOST];

static size_t sign(uint8_t *signature)
{
    static const uint8_t digest[32] = "what every signature is of.....";
    EVP_PKEY_CTX *context = EVP_PKEY_CTX_new_from_pkey(NULL, key, NULL);
    size_t length = BYTES;

    CHECK(context != NULL && EVP_PKEY_sign_init(context) == 1);
    CHECK(EVP_PKEY_sign(context, signature, &length, digest, sizeof(digest)) == 1);
    EVP_PKEY_CTX_free(context);
    return length;
}

static void sign_and_compare(void)
{
    uint8_t signature[BYTES];

    CHECK(sign(signature) == size && memcmp(signature, right, size) == 0);
}

static int body(void *argument)
{
    (void)argument;
    sign_and_compare();
    return 1;
}

static void *thread(void *argument)
{
    while (atomic_fetch_sub(&left, 1) > 0)
        sign_and_compare();
    return argument;
}

static int on_ready(void *argument)
{
    struct job *job = argument;

    atomic_store(&job->called, 1);
    CHECK(eventfd_write(woken, 1) == 0);
    return 1;
}

/* Watches what the job has shown at its pause. */
static void watch(int epoll, struct job *job)
{
    OSSL_ASYNC_FD added[4];
    size_t added_count, deleted_count;

    if (with_callback)
        return;
    CHECK(ASYNC_WAIT_CTX_get_changed_fds(job->context, NULL, &added_count, NULL, &deleted_count));
    CHECK(added_count <= 4 && deleted_count == 0);
    CHECK(ASYNC_WAIT_CTX_get_changed_fds(job->context, added, &added_count, NULL, &deleted_count));
    for (size_t i = 0; i < added_count; i++) {
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = job};

        CHECK(epoll_ctl(epoll, EPOLL_CTL_ADD, added[i], &event) == 0);
    }
}

static void release(int epoll, struct job *job)
{
    OSSL_ASYNC_FD fds[4];
    size_t count = 4;

    if (!with_callback && ASYNC_WAIT_CTX_get_all_fds(job->context, NULL, &count) && count <= 4
        && ASYNC_WAIT_CTX_get_all_fds(job->context, fds, &count))
        for (size_t i = 0; i < count; i++)
            CHECK(epoll_ctl(epoll, EPOLL_CTL_DEL, fds[i], NULL) == 0);
    ASYNC_WAIT_CTX_free(job->context);
    job->job = NULL;
    job->context = NULL;
}

/* Starts or resumes it. */
static void step(int epoll, struct job *job)
{
    int result = 0;

    switch (ASYNC_start_job(&job->job, job->context, &result, body, NULL, 0)) {
    case ASYNC_PAUSE:
        watch(epoll, job);
        if (job->pauses_left > 0 && --job->pauses_left == 0)
            release(epoll, job);
        break;
    case ASYNC_FINISH:
        CHECK(result == 1);
        release(epoll, job);
        break;
    default:
        CHECK(0);
    }
}

static void run_jobs(int at_once, int abandon)
{
    struct epoll_event events[MOST], wake = {.events = EPOLLIN};
    int epoll = epoll_create1(0), started = 0, in_flight;

    woken = eventfd(0, EFD_NONBLOCK);
    CHECK(epoll >= 0 && woken >= 0 && epoll_ctl(epoll, EPOLL_CTL_ADD, woken, &wake) == 0);
    do {
        in_flight = 0;
        for (struct job *job = jobs; job < jobs + at_once; job++) {
            while (job->context == NULL && atomic_load(&left) > 0) {
                started++;
                job->pauses_left = abandon > 0 && started % abandon == 0 ? 1 + started / abandon % 2 : 0;
                if (job->pauses_left == 0)
                    atomic_fetch_sub(&left, 1);
                job->context = ASYNC_WAIT_CTX_new();
                CHECK(job->context != NULL);
                if (with_callback)
                    CHECK(ASYNC_WAIT_CTX_set_callback(job->context, on_ready, job));
                step(epoll, job);
            }
            in_flight += job->context != NULL;
        }
        if (in_flight > 0) {
            int count = epoll_wait(epoll, events, MOST, -1);
            eventfd_t value;

            (void)eventfd_read(woken, &value);
            for (int i = 0; i < count; i++)
                if (events[i].data.ptr != NULL)
                    step(epoll, events[i].data.ptr);
            for (struct job *job = jobs; job < jobs + at_once; job++)
                if (atomic_exchange(&job->called, 0) && job->context != NULL)
                    step(epoll, job);
        }
    } while (in_flight > 0 || atomic_load(&left) > 0);
}

int main(int argc, char **argv)
{
    BIO *file = argc == 6 ? BIO_new_file(argv[1], "r") : NULL;
    int at_once = argc == 6 ? atoi(argv[3]) : 0;
    pthread_t threads[MOST];

    CHECK(file != NULL && at_once > 0 && at_once <= MOST);
    key = PEM_read_bio_PrivateKey(file, NULL, NULL, NULL);
    BIO_free(file);
    CHECK(key != NULL);
    size = sign(right);
    atomic_store(&left, atoi(argv[4]));
    with_callback = strcmp(argv[2], "callbacks") == 0;
    if (strcmp(argv[2], "threads") != 0) {
        run_jobs(at_once, atoi(argv[5]));
    } else {
        for (int i = 0; i < at_once; i++)
            CHECK(pthread_create(&threads[i], NULL, thread, NULL) == 0);
        for (int i = 0; i < at_once; i++)
            CHECK(pthread_join(threads[i], NULL) == 0);
    }
    for (size_t i = 0; i < size; i++)
        printf("%02x", right[i]);
    printf("\n");
    EVP_PKEY_free(key);
    return 0;
}
