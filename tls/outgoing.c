#include "outgoing.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/types.h>

/* Far more than one record. Beyond this, libssl has to wait for a peer that asks without reading the answers. */
#define KEPT_AT_MOST 65536

static pthread_once_t once = PTHREAD_ONCE_INIT;
static BIO_METHOD *method;
static int type;

/* Returns how many bytes were sent, 0 without room, or -1 with errno, which is otherwise unchanged. */
static ssize_t send_some(int descriptor, const unsigned char *data, size_t size)
{
    int before = errno;
    ssize_t sent;

    do
        sent = send(descriptor, data, size, MSG_NOSIGNAL);
    while (sent < 0 && errno == EINTR);
    if (sent >= 0)
        return sent;
    if (errno != EAGAIN && errno != EWOULDBLOCK)
        return -1;
    errno = before;
    return 0;
}

int gp_outgoing_send(struct gp_outgoing *outgoing)
{
    while (outgoing->kept != NULL) {
        ssize_t sent =
            send_some(outgoing->descriptor, outgoing->kept + outgoing->begin, outgoing->end - outgoing->begin);
        if (sent <= 0)
            return (int)sent;
        outgoing->begin += (size_t)sent;
        if (outgoing->begin == outgoing->end) {
            free(outgoing->kept);
            outgoing->kept = NULL;
            outgoing->begin = outgoing->end = 0;
        }
    }
    return 1;
}

static int keep(struct gp_outgoing *outgoing, const unsigned char *data, size_t size)
{
    size_t before = outgoing->end - outgoing->begin;
    unsigned char *kept = malloc(before + size);

    if (kept == NULL) {
        errno = ENOMEM;
        return 0;
    }
    if (before > 0)
        memcpy(kept, outgoing->kept + outgoing->begin, before);
    memcpy(kept + before, data, size);
    free(outgoing->kept);
    outgoing->kept = kept;
    outgoing->begin = 0;
    outgoing->end = before + size;
    return 1;
}

static int take(BIO *bio, const char *bytes, int size)
{
    struct gp_outgoing *outgoing = BIO_get_data(bio);
    const unsigned char *data = (const unsigned char *)bytes;
    size_t left = size > 0 ? (size_t)size : 0;
    int all_sent = gp_outgoing_send(outgoing);

    BIO_clear_retry_flags(bio);
    if (all_sent < 0)
        return -1;
    if (all_sent) {
        ssize_t sent = send_some(outgoing->descriptor, data, left);
        if (sent < 0)
            return -1;
        data += sent;
        left -= (size_t)sent;
    } else if (outgoing->end - outgoing->begin + left > KEPT_AT_MOST) {
        BIO_set_retry_write(bio);
        return -1;
    }
    return left == 0 || keep(outgoing, data, left) ? size : -1;
}

static long control(BIO *bio, int command, long number, void *pointer)
{
    (void)bio, (void)number, (void)pointer;
    return command == BIO_CTRL_FLUSH;
}

static int release(BIO *bio)
{
    struct gp_outgoing *outgoing = BIO_get_data(bio);

    if (outgoing != NULL)
        free(outgoing->kept);
    free(outgoing);
    return 1;
}

static void make_method(void)
{
    type = BIO_get_new_index() | BIO_TYPE_SOURCE_SINK;
    method = BIO_meth_new(type, "records for a socket");
    if (method != NULL) {
        BIO_meth_set_write(method, take);
        BIO_meth_set_ctrl(method, control);
        BIO_meth_set_destroy(method, release);
    }
}

BIO *gp_outgoing_new(int descriptor)
{
    pthread_once(&once, make_method);
    struct gp_outgoing *outgoing = calloc(1, sizeof(*outgoing));
    BIO *bio = method != NULL && outgoing != NULL ? BIO_new(method) : NULL;
    if (bio == NULL) {
        free(outgoing);
        return NULL;
    }
    outgoing->descriptor = descriptor;
    BIO_set_data(bio, outgoing);
    BIO_set_init(bio, 1);
    return bio;
}

struct gp_outgoing *gp_outgoing_of(SSL *ssl)
{
    BIO *bio = SSL_get_wbio(ssl);
    return bio != NULL && method != NULL && BIO_method_type(bio) == type ? BIO_get_data(bio) : NULL;
}
