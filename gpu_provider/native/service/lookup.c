#define _GNU_SOURCE
#include "service/lookup.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "process.h"
#include "service/messages.h"

#define RETRY_NS 100000000u

/* One answer; its descriptors are of no use here. 0: the service is gone, or does not answer. */
static int receive(int socket, struct gp_message *message, uint64_t until_ns)
{
    int descriptors[GP_DESCRIPTORS_AT_ONCE], error;
    uint32_t count;

    while ((error = gp_message_receive(socket, message, 0, descriptors, &count)) == EAGAIN) {
        struct pollfd polled = {.fd = socket, .events = POLLIN};
        uint64_t now_ns = gp_now_ns();

        if (now_ns >= until_ns)
            return 0;
        (void)poll(&polled, 1, (int)((until_ns - now_ns) / 1000000u) + 1);
    }
    for (uint32_t i = 0; i < count; i++)
        close(descriptors[i]);
    return error == 0;
}

static void take(const struct gp_message *message, struct gp_public_key *found)
{
    found->modulus_size = message->sizes[0];
    found->exponent_size = message->sizes[1];
    memcpy(found->modulus, message->numbers, message->sizes[0]);
    memcpy(found->exponent, message->numbers + message->sizes[0], message->sizes[1]);
}

static enum gp_lookup ask(int socket, const char *name, uint64_t until_ns, struct gp_message *message,
                          struct gp_public_key *found)
{
    *message = (struct gp_message){.type = GP_HELLO, .version = GP_PROTOCOL_VERSION};
    if (gp_message_send(socket, message, NULL, 0) != 0)
        return GP_LOOKUP_NO_SERVICE;
    *message = (struct gp_message){.type = GP_FIND_KEY, .sizes = {(uint16_t)strlen(name)}};
    memcpy(message->numbers, name, message->sizes[0]);
    if (gp_message_send(socket, message, NULL, 0) != 0)
        return GP_LOOKUP_NO_SERVICE;
    while (receive(socket, message, until_ns)) {
        if (message->type == GP_FOUND_KEY)
            take(message, found);
        if (message->type == GP_FOUND_KEY || message->type == GP_KEY)
            return message->type == GP_FOUND_KEY ? GP_LOOKUP_FOUND : GP_LOOKUP_NO_KEY;
    }
    return GP_LOOKUP_NO_SERVICE;
}

enum gp_lookup gp_lookup(const char *path, const char *name, uint64_t timeout_ns, struct gp_public_key *found)
{
    static const struct timespec retry = {.tv_nsec = RETRY_NS};
    const uint64_t until_ns = gp_now_ns() + timeout_ns;
    struct gp_message *message;
    enum gp_lookup result = GP_LOOKUP_NO_SERVICE;
    int error = ENOMEM;

    if (!gp_key_name_is_valid(name, strlen(name)))
        return GP_LOOKUP_BAD_NAME;
    message = malloc(sizeof(*message));
    while (message != NULL && result == GP_LOOKUP_NO_SERVICE) {
        int socket = gp_service_connect(path);

        error = socket < 0 ? errno : ETIMEDOUT;
        if (socket >= 0) {
            result = ask(socket, name, until_ns, message, found);
            close(socket);
        }
        if (result == GP_LOOKUP_NO_SERVICE && gp_now_ns() + RETRY_NS >= until_ns)
            break;
        if (result == GP_LOOKUP_NO_SERVICE)
            (void)nanosleep(&retry, NULL);
    }
    free(message);
    errno = error;
    return result;
}
