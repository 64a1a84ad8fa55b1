#define _GNU_SOURCE
#include <errno.h>
#include <openssl/crypto.h>
#include <openssl/param_build.h>
#include <openssl/params.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "service/messages.h"
#include "service/remote.h"

#define AT_ONCE 8 /* messages of one process, before it is another's turn */

/* ---- its keys ---- */

static EVP_PKEY *key_of(const struct gp_message *message)
{
    OSSL_PARAM_BLD *builder = OSSL_PARAM_BLD_new();
    EVP_PKEY_CTX *context = EVP_PKEY_CTX_new_from_name(gp_inner_libctx(), "RSA", NULL);
    BIGNUM *numbers[GP_KEY_NUMBERS] = {NULL};
    OSSL_PARAM *params = NULL;
    EVP_PKEY *pkey = NULL;
    const uint8_t *next = message->numbers;
    int ok = builder != NULL && context != NULL;

    for (uint32_t i = 0; ok && i < GP_KEY_NUMBERS; i++) {
        numbers[i] = BN_secure_new();
        ok = numbers[i] != NULL && BN_bin2bn(next, message->sizes[i], numbers[i]) != NULL
             && OSSL_PARAM_BLD_push_BN(builder, gp_key_number_names[i], numbers[i]);
        next += message->sizes[i];
    }
    if (ok && (params = OSSL_PARAM_BLD_to_param(builder)) != NULL && EVP_PKEY_fromdata_init(context) == 1)
        (void)EVP_PKEY_fromdata(context, &pkey, EVP_PKEY_KEYPAIR, params);
    OSSL_PARAM_free(params);
    for (uint32_t i = 0; i < GP_KEY_NUMBERS; i++)
        BN_clear_free(numbers[i]);
    EVP_PKEY_CTX_free(context);
    OSSL_PARAM_BLD_free(builder);
    return pkey;
}

static uint32_t free_place(const gp_remote *remote)
{
    uint32_t place = 0;

    while (place < remote->limits.keys && remote->keys[place].handle != 0)
        place++;
    return place;
}

/* Its handle, or 0. */
static gp_key_handle keep_key(gp_remote *remote, uint32_t place, gp_key_handle own, int is_named)
{
    gp_key_handle handle;

    if (own == 0 || place >= remote->limits.keys)
        return 0;
    pthread_mutex_lock(&remote->lock);
    handle = ++remote->key_serial << 16 | place;
    remote->keys[place] = (struct remote_key){.handle = handle, .own = own, .is_named = is_named};
    remote->key_count++;
    pthread_mutex_unlock(&remote->lock);
    return handle;
}

static gp_key_handle add_key(gp_remote *remote, const struct gp_message *message)
{
    EVP_PKEY *pkey = key_of(message);
    gp_key *key = pkey != NULL ? gp_key_new(pkey) : NULL;
    const uint32_t place = free_place(remote);
    gp_key_handle own = 0;

    EVP_PKEY_free(pkey);
    if (key != NULL && gp_key_is_batchable(key) && place < remote->limits.keys)
        own = gp_client_add_key(gp_remotes_client(remote->remotes), key);
    gp_key_free(key);
    return keep_key(remote, place, own, 0);
}

/* Its public part. 0: out of memory. */
static int put_public_numbers(const gp_key *key, struct gp_message *message)
{
    uint8_t *next = message->numbers;
    int ok = 1;

    for (uint32_t i = 0; ok && i < GP_PUBLIC_NUMBERS; i++) {
        BIGNUM *number = NULL;

        ok = EVP_PKEY_get_bn_param(key->pkey, gp_key_number_names[i], &number)
             && BN_num_bytes(number) <= (int)GP_MAX_BYTES;
        if (ok) {
            message->sizes[i] = (uint16_t)BN_num_bytes(number);
            next += BN_bn2bin(number, next);
        }
        BN_free(number);
    }
    return ok;
}

static int find_key(gp_remote *remote, const struct gp_message *message)
{
    gp_client *client = gp_remotes_client(remote->remotes);
    gp_key_handle own = gp_remotes_find_key(remote->remotes, (const char *)message->numbers, message->sizes[0]);
    gp_key *key = own != 0 ? gp_key_table_get(gp_client_keys(client), own) : NULL;
    struct gp_message found = {.type = GP_FOUND_KEY, .key_number = message->key_number};

    if (key != NULL && put_public_numbers(key, &found))
        found.handle = keep_key(remote, free_place(remote), own, 1);
    gp_key_free(key);
    if (found.handle == 0)
        found.type = GP_KEY;
    return gp_message_send(remote->socket, &found, NULL, 0);
}

/* With the lock. */
static void remove_key(gp_remote *remote, uint32_t place)
{
    if (!remote->keys[place].is_named)
        gp_client_remove_key(gp_remotes_client(remote->remotes), remote->keys[place].own);
    remote->keys[place] = (struct remote_key){0};
    remote->key_count--;
}

static void forget_key(gp_remote *remote, gp_key_handle handle)
{
    uint32_t place = handle & 0xffff;

    pthread_mutex_lock(&remote->lock);
    if (handle != 0 && place < remote->limits.keys && remote->keys[place].handle == handle)
        remove_key(remote, place);
    pthread_mutex_unlock(&remote->lock);
}

void gp_remote_remove_keys(gp_remote *remote)
{
    pthread_mutex_lock(&remote->lock);
    for (uint32_t i = 0; i < remote->limits.keys; i++)
        if (remote->keys[i].handle != 0)
            remove_key(remote, i);
    pthread_mutex_unlock(&remote->lock);
}

/* ---- what it says; the socket's thread ---- */

/* As many wait descriptors as go into a message, and as the limit allows. */
static int give_descriptors(gp_remote *remote)
{
    const struct gp_message message = {.type = GP_DESCRIPTORS};
    uint32_t first = atomic_load(&remote->descriptor_count), count = first;
    int error;

    while (count < remote->limits.descriptors && count - first < GP_DESCRIPTORS_AT_ONCE) {
        int descriptor = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);

        if (descriptor < 0)
            break;
        remote->descriptors[count++] = descriptor;
    }
    error = gp_message_send(remote->socket, &message, remote->descriptors + first, count - first);
    if (error == 0)
        atomic_store(&remote->descriptor_count, count);
    for (uint32_t i = first; i < count && error != 0; i++)
        close(remote->descriptors[i]);
    return error;
}

static int welcome(gp_remote *remote)
{
    const struct gp_message message = {.type = GP_WELCOME, .version = GP_PROTOCOL_VERSION};
    const int descriptors[] = {remote->queue.memfd, remote->queue.doorbell};
    int error = gp_message_send(remote->socket, &message, descriptors, 2);

    remote->greeted = 1;
    return error != 0 ? error : give_descriptors(remote);
}

static int answer(gp_remote *remote, const struct gp_message *message)
{
    struct gp_message key = {.type = GP_KEY, .key_number = message->key_number};

    if (remote->greeted != (message->type != GP_HELLO))
        return EPROTO;
    switch (message->type) {
    case GP_HELLO:
        return message->version == GP_PROTOCOL_VERSION ? welcome(remote) : EPROTO;
    case GP_ADD_KEY:
        key.handle = add_key(remote, message);
        return gp_message_send(remote->socket, &key, NULL, 0);
    case GP_FIND_KEY:
        return find_key(remote, message);
    case GP_REMOVE_KEY:
        forget_key(remote, message->handle);
        return 0;
    default: /* MORE_DESCRIPTORS */
        return give_descriptors(remote);
    }
}

static int serve(gp_remote *remote)
{
    int descriptors[GP_DESCRIPTORS_AT_ONCE], error;
    struct gp_message message;
    uint32_t count;

    for (int i = 0; i < AT_ONCE; i++) {
        error = gp_message_receive(remote->socket, &message, 1, descriptors, &count);
        if (error != 0)
            return error == EAGAIN ? 0 : error;
        error = answer(remote, &message);
        OPENSSL_cleanse(&message, sizeof(message));
        if (error != 0)
            return error == EAGAIN ? ENOBUFS : error;
    }
    return 0;
}

/* When the consumer's thread has found the queue malformed, it shuts the socket, which looks as if the process had
 * closed it. It may do so during this call. */
int gp_remote_serve(gp_remote *remote)
{
    int error = atomic_load(&remote->malformed) ? EPROTO : serve(remote);

    return error != 0 && atomic_load(&remote->malformed) ? EPROTO : error;
}
