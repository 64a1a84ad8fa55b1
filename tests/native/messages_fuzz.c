/* libFuzzer on what a process may say to the service over its socket. A packet for each length in the input: raw, or a
 * message whose header is right, so that numbers of keys are reached. */
#define _GNU_SOURCE
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "check.h"
#include "queue/consumer.h"
#include "service/messages.h"
#include "service/service.h"

static gp_remotes *remotes;
static gp_consumer *consumer;
static gp_client *client;
static gp_key_handle named; /* a key of the service's own */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void start(void)
{
    EVP_PKEY *pkey = EVP_PKEY_Q_keygen(gp_inner_libctx(), NULL, "RSA", (size_t)2048);
    gp_key *key = pkey != NULL ? gp_key_new(pkey) : NULL;

    CHECK(key != NULL);
    EVP_PKEY_free(pkey);
    client = gp_client_new(8);

    consumer = client != NULL ? gp_consumer_new(client) : NULL;
    CHECK(consumer != NULL);
    remotes = gp_remotes_new(client, 4);
    CHECK(remotes != NULL);
    named = gp_client_add_key(client, key);
    gp_key_free(key);
    CHECK(gp_remotes_name_key(remotes, "key", named));
}

/* How much of the input it takes. */
static size_t send_packet(int socket, const uint8_t *data, size_t size)
{
    static struct gp_message message;
    size_t length = size > 2 ? (size_t)(data[0] & 15) << 8 | data[1] : 0, taken, numbers_size = 0;

    taken = length + 2 < size ? length + 2 : size;
    if (size < 2)
        return size;
    if (data[0] & 128) {
        (void)send(socket, data + 2, taken - 2, MSG_DONTWAIT | MSG_NOSIGNAL);
        return taken;
    }
    memset(&message, 0, sizeof(message));
    message.type = (data[0] >> 4 & 7) + 1u; /* of those from a client, all */
    message.version = GP_PROTOCOL_VERSION;
    message.key_number = data[1];
    message.handle = (uint64_t)data[1] << 14;
    for (uint32_t i = 0; i < GP_KEY_NUMBERS; i++) {
        message.sizes[i] = (uint16_t)(1 + (taken - 2) / GP_KEY_NUMBERS % GP_MAX_BYTES);
        numbers_size += message.sizes[i];
    }
    memcpy(message.numbers, data + 2, taken - 2 < numbers_size ? taken - 2 : numbers_size);
    if (message.type == GP_FIND_KEY) {
        message.sizes[0] = (uint16_t)(taken - 2 < GP_MAX_BYTES ? taken - 2 : GP_MAX_BYTES);
        if (data[1] % 2 != 0) { /* or hardly any would be found */
            message.sizes[0] = 3;
            memcpy(message.numbers, "key", 3);
        }
    }
    (void)gp_message_send(socket, &message, NULL, 0);
    return taken;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const struct gp_remote_limits limits = {.requests = 4, .keys = 3, .descriptors = 5};
    static const struct gp_message hello = {.type = GP_HELLO, .version = GP_PROTOCOL_VERSION};
    struct gp_remote_stats stats;
    struct gp_client_stats after;
    gp_remote *remote;
    int ends[2];

    if (remotes == NULL)
        start();
    CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) == 0);
    remote = gp_remote_new(remotes, ends[0], &limits);
    CHECK(remote != NULL);
    if (size > 0 && data[0] % 8 != 0)
        CHECK(gp_message_send(ends[1], &hello, NULL, 0) == 0);
    while (size > 0) {
        size_t taken = send_packet(ends[1], data, size);

        data += taken;
        size -= taken;
        if (gp_remote_serve(remote) != 0)
            break;
    }
    gp_remote_get_stats(remote, &stats);
    CHECK(stats.keys <= limits.keys && stats.descriptors <= limits.descriptors);
    gp_remote_close(remote);
    gp_client_get_stats(client, &after);
    CHECK(after.keys == 1); /* its own, and no other */
    close(ends[1]);
    return 0;
}
