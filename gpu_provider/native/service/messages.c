#define _GNU_SOURCE
#include "service/messages.h"

#include <errno.h>
#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

const char *const gp_key_number_names[GP_KEY_NUMBERS] = {
    OSSL_PKEY_PARAM_RSA_N,         OSSL_PKEY_PARAM_RSA_E,
    OSSL_PKEY_PARAM_RSA_D,         OSSL_PKEY_PARAM_RSA_FACTOR1,
    OSSL_PKEY_PARAM_RSA_FACTOR2,   OSSL_PKEY_PARAM_RSA_EXPONENT1,
    OSSL_PKEY_PARAM_RSA_EXPONENT2, OSSL_PKEY_PARAM_RSA_COEFFICIENT1,
};

int gp_key_name_is_valid(const char *name, size_t size)
{
    static const char allowed[] = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz._-";

    if (size == 0 || size > GP_MAX_NAME || strchr("._-", name[0]) != NULL)
        return 0;
    for (size_t i = 0; i < size; i++)
        if (memchr(allowed, name[i], sizeof(allowed) - 1) == NULL)
            return 0;
    return 1;
}

/* How many of its sizes a message of this type has. */
static uint32_t sizes_of(uint32_t type)
{
    switch (type) {
    case GP_ADD_KEY:
        return GP_KEY_NUMBERS;
    case GP_FOUND_KEY:
        return GP_PUBLIC_NUMBERS;
    case GP_FIND_KEY:
        return 1;
    default:
        return 0;
    }
}

/* How much of it is sent. */
static size_t message_size(const struct gp_message *message)
{
    const uint32_t count = sizes_of(message->type);
    size_t size = count > 0 ? offsetof(struct gp_message, numbers) : offsetof(struct gp_message, sizes);

    for (uint32_t i = 0; i < count; i++)
        size += message->sizes[i];
    return size;
}

static int comes_from(uint32_t type, int client)
{
    switch (type) {
    case GP_HELLO:
    case GP_ADD_KEY:
    case GP_REMOVE_KEY:
    case GP_MORE_DESCRIPTORS:
    case GP_FIND_KEY:
        return client;
    case GP_WELCOME:
    case GP_DESCRIPTORS:
    case GP_KEY:
    case GP_FOUND_KEY:
        return !client;
    default:
        return 0;
    }
}

int gp_message_is_valid(const struct gp_message *message, size_t size, int from_client)
{
    if (size < offsetof(struct gp_message, sizes) || !comes_from(message->type, from_client))
        return 0;
    if (sizes_of(message->type) > 0 && size < offsetof(struct gp_message, numbers))
        return 0;
    for (uint32_t i = 0; i < sizes_of(message->type); i++)
        if (message->sizes[i] == 0 || message->sizes[i] > GP_MAX_BYTES)
            return 0;
    return size == message_size(message)
           && (message->type != GP_FIND_KEY || gp_key_name_is_valid((const char *)message->numbers, message->sizes[0]));
}

int gp_service_connect(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    const size_t length = strlen(path);
    int connection, error;

    if (length >= sizeof(address.sun_path)) {
        errno = ENAMETOOLONG;
        return -1;
    }
    memcpy(address.sun_path, path, length);
    connection = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (connection >= 0 && connect(connection, (const struct sockaddr *)&address, sizeof(address)) != 0) {
        error = errno;
        close(connection);
        errno = error;
        connection = -1;
    }
    return connection;
}

union control {
    char bytes[CMSG_SPACE(GP_DESCRIPTORS_AT_ONCE * sizeof(int))];
    struct cmsghdr aligned;
};

int gp_message_send(int socket, const struct gp_message *message, const int *descriptors, uint32_t count)
{
    union control control;
    struct iovec iovec = {.iov_base = (void *)message, .iov_len = message_size(message)};
    struct msghdr header = {.msg_iov = &iovec, .msg_iovlen = 1};

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
