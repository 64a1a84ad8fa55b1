#define _GNU_SOURCE
#include "service/messages.h"

#include <errno.h>
#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

const char *const gp_key_number_names[GP_KEY_NUMBERS] = {
    OSSL_PKEY_PARAM_RSA_N,         OSSL_PKEY_PARAM_RSA_E,
    OSSL_PKEY_PARAM_RSA_D,         OSSL_PKEY_PARAM_RSA_FACTOR1,
    OSSL_PKEY_PARAM_RSA_FACTOR2,   OSSL_PKEY_PARAM_RSA_EXPONENT1,
    OSSL_PKEY_PARAM_RSA_EXPONENT2, OSSL_PKEY_PARAM_RSA_COEFFICIENT1,
};

/* How much of a message of this type is sent; 0: there is no such type. `numbers_size`: all sizes together. */
static size_t message_size(uint32_t type, size_t numbers_size)
{
    switch (type) {
    case GP_HELLO:
    case GP_WELCOME:
    case GP_DESCRIPTORS:
    case GP_KEY:
    case GP_REMOVE_KEY:
    case GP_MORE_DESCRIPTORS:
        return offsetof(struct gp_message, sizes);
    case GP_ADD_KEY:
        return offsetof(struct gp_message, numbers) + numbers_size;
    default:
        return 0;
    }
}

static int comes_from(uint32_t type, int client)
{
    return client == (type == GP_HELLO || type == GP_ADD_KEY || type == GP_REMOVE_KEY || type == GP_MORE_DESCRIPTORS);
}

int gp_message_is_valid(const struct gp_message *message, size_t size, int from_client)
{
    size_t numbers_size = 0;

    if (size < offsetof(struct gp_message, sizes) || !comes_from(message->type, from_client))
        return 0;
    if (message->type == GP_ADD_KEY) {
        if (size < offsetof(struct gp_message, numbers))
            return 0;
        for (uint32_t i = 0; i < GP_KEY_NUMBERS; i++) {
            if (message->sizes[i] == 0 || message->sizes[i] > GP_MAX_BYTES)
                return 0;
            numbers_size += message->sizes[i];
        }
    }
    return size == message_size(message->type, numbers_size);
}

union control {
    char bytes[CMSG_SPACE(GP_DESCRIPTORS_AT_ONCE * sizeof(int))];
    struct cmsghdr aligned;
};

int gp_message_send(int socket, const struct gp_message *message, const int *descriptors, uint32_t count)
{
    size_t numbers_size = 0;
    union control control;
    struct iovec iovec = {.iov_base = (void *)message};
    struct msghdr header = {.msg_iov = &iovec, .msg_iovlen = 1};

    for (uint32_t i = 0; i < GP_KEY_NUMBERS && message->type == GP_ADD_KEY; i++)
        numbers_size += message->sizes[i];
    iovec.iov_len = message_size(message->type, numbers_size);
    if (count > 0) {
        struct cmsghdr *rights;

        memset(&control, 0, sizeof(control));
        header.msg_control = &control;
        header.msg_controllen = CMSG_SPACE(count * sizeof(int));
        rights = CMSG_FIRSTHDR(&header);
        rights->cmsg_level = SOL_SOCKET;
        rights->cmsg_type = SCM_RIGHTS;
        rights->cmsg_len = CMSG_LEN(count * sizeof(int));
        memcpy(CMSG_DATA(rights), descriptors, count * sizeof(int));
    }
    return sendmsg(socket, &header, MSG_DONTWAIT | MSG_NOSIGNAL) < 0 ? errno : 0;
}

/* What came with a message, wanted or not. */
static void collect(struct msghdr *header, int *descriptors, uint32_t *count)
{
    for (struct cmsghdr *part = CMSG_FIRSTHDR(header); part != NULL; part = CMSG_NXTHDR(header, part)) {
        if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS)
            continue;
        for (size_t i = 0; i < (part->cmsg_len - CMSG_LEN(0)) / sizeof(int); i++) {
            int descriptor;

            memcpy(&descriptor, CMSG_DATA(part) + i * sizeof(int), sizeof(int));
            if (*count < GP_DESCRIPTORS_AT_ONCE)
                descriptors[(*count)++] = descriptor;
            else
                close(descriptor);
        }
    }
}

int gp_message_receive(int socket, struct gp_message *message, int from_client, int *descriptors, uint32_t *count)
{
    union control control;
    struct iovec iovec = {.iov_base = message, .iov_len = sizeof(*message)};
    struct msghdr header = {
        .msg_iov = &iovec, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control)};
    ssize_t size;

    *count = 0;
    size = recvmsg(socket, &header, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (size < 0)
        return errno;
    if (size == 0)
        return ECONNRESET;
    collect(&header, descriptors, count);
    if ((header.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) == 0 && gp_message_is_valid(message, (size_t)size, from_client)
        && (!from_client || *count == 0))
        return 0;
    OPENSSL_cleanse(message, sizeof(*message));
    for (uint32_t i = 0; i < *count; i++)
        close(descriptors[i]);
    *count = 0;
    return EPROTO;
}
