/* A request that another thread completes just as its job is about to pause. That moment is made to last: the job makes
 * its descriptor then. */
#define _GNU_SOURCE
#include <openssl/async.h>
#include <openssl/evp.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "check.h"
#include "keys/libcrypto.h"
#include "queue/consumer.h"
#include "queue/request.h"

#define BITS 2048
#define BYTES (BITS / 8)

static gp_client *client;
static gp_consumer *consumer;
static gp_key *key;
static gp_key_handle key_handle;
static int is_completed_meanwhile, descriptor;

static void complete_request(void)
{
    uint32_t waiting[GP_CLASSES];
    uint64_t oldest[GP_CLASSES];
    struct gp_group group;

    gp_consumer_wait(consumer, 0, 1, NULL, waiting, oldest);
    gp_consumer_take_group(consumer, GP_CLASS_OF(BYTES), GP_SMALL_BATCH, &group);
    CHECK(group.requests == 1);
    gp_consumer_compute_group(consumer, &group);
    gp_consumer_complete_group(consumer, &group);
}

/* Instead of the C library's. */
int timerfd_create(clockid_t clock, int flags)
{
    if (is_completed_meanwhile)
        complete_request();
    descriptor = (int)syscall(SYS_timerfd_create, clock, flags);
    return descriptor;
}

static int job(void *argument)
{
    const uint8_t one[BYTES] = {[BYTES - 1] = 1};
    uint8_t output[BYTES];

    (void)argument;
    return gp_request_private_op(client, key, key_handle, one, output) && memcmp(output, one, BYTES) == 0;
}

static size_t registered(ASYNC_WAIT_CTX *context)
{
    size_t count = 0;

    CHECK(ASYNC_WAIT_CTX_get_all_fds(context, NULL, &count));
    return count;
}

int main(void)
{
    EVP_PKEY *pkey = EVP_PKEY_Q_keygen(gp_inner_libctx(), NULL, "RSA", (size_t)BITS);
    ASYNC_WAIT_CTX *context = ASYNC_WAIT_CTX_new();
    ASYNC_JOB *started = NULL;
    int result = 0;

    key = gp_key_new(pkey);
    client = gp_client_new(4);
    consumer = gp_consumer_new(client);
    key_handle = gp_client_add_key(client, key);

    /* HAProxy ends at close if a descriptor is there that it has not been told of by a pause. */
    is_completed_meanwhile = 1;
    for (int i = 0; i < 3; i++) {
        CHECK(ASYNC_start_job(&started, context, &result, job, NULL, 0) == ASYNC_FINISH && result == 1);
        CHECK(registered(context) == 0);
        CHECK(close(descriptor) != 0); /* it is closed already */
    }

    is_completed_meanwhile = 0;
    CHECK(ASYNC_start_job(&started, context, &result, job, NULL, 0) == ASYNC_PAUSE && registered(context) == 1);
    complete_request();
    CHECK(ASYNC_start_job(&started, context, &result, job, NULL, 0) == ASYNC_FINISH && result == 1);
    CHECK(registered(context) == 1);

    ASYNC_WAIT_CTX_free(context);
    gp_client_remove_key(client, key_handle);
    gp_key_free(key);
    EVP_PKEY_free(pkey);
    gp_consumer_free(consumer);
    gp_client_free(client);
    return 0;
}
