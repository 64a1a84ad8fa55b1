#include "connection.h"

#include "alerts.h"
#include "flood.h"
#include "outgoing.h"
#include "tickets.h"

#include <errno.h>
#include <fcntl.h>
#include <openssl/err.h>

SSL *gp_connection_new(SSL_CTX *ctx, int descriptor)
{
    ERR_clear_error();
    SSL *ssl = SSL_new(ctx);
    if (ssl == NULL || !gp_tickets_inherit(ssl) || !gp_flood_watch(ssl) || !gp_alerts_watch(ssl)) {
        SSL_free(ssl);
        return NULL;
    }
    if (descriptor >= 0) {
        BIO *outgoing = gp_outgoing_new(descriptor);
        if (outgoing != NULL && SSL_set_rfd(ssl, descriptor) == 1) {
            SSL_set0_wbio(ssl, outgoing);
            return ssl;
        }
        BIO_free(outgoing);
        SSL_free(ssl);
        return NULL;
    }
    BIO *input = BIO_new(BIO_s_mem()), *output = BIO_new(BIO_s_mem());
    if (input == NULL || output == NULL) {
        BIO_free(input);
        BIO_free(output);
        SSL_free(ssl);
        return NULL;
    }
    /* An empty input means "not yet", not "the end". */
    BIO_set_mem_eof_return(input, -1);
    BIO_set_mem_eof_return(output, -1);
    SSL_set_bio(ssl, input, output);
    return ssl;
}

/* Records and messages that one read handles before others get their turn, even if the buffer is not full. To fill a
 * large one with records of one byte would take tens of milliseconds. */
#define READ_AT_ONCE 64

/* Whether to look for another record after the first. Not on a blocking socket, where that could wait for ever with
 * bytes in hand, and not in a job, whose arguments must not change. *blocks is -1 before the first call. */
static int may_go_on(SSL *ssl, int *blocks)
{
    if (SSL_get_mode(ssl) & SSL_MODE_ASYNC)
        return 0;
    if (*blocks < 0) {
        int descriptor = SSL_get_rfd(ssl);
        *blocks = descriptor >= 0 && (fcntl(descriptor, F_GETFL) & O_NONBLOCK) == 0;
    }
    return !*blocks || SSL_pending(ssl) > 0;
}

/* Continues to write after the first *done bytes. */
static int write_records(SSL *ssl, struct gp_outgoing *outgoing, const char *buffer, size_t size, size_t *done)
{
    struct gp_flood *flood = gp_flood_of(ssl);
    int one_record = (SSL_get_mode(ssl) & SSL_MODE_ASYNC) != 0, result = 1;
    size_t bytes;

    if (outgoing != NULL && outgoing->unreported > 0) {
        *done = outgoing->unreported < size ? outgoing->unreported : size;
        outgoing->unreported -= *done;
        if (one_record)
            return 1;
    }
    while (*done < size) {
        result = SSL_write_ex(ssl, buffer + *done, size - *done, &bytes);
        if (result <= 0)
            break;
        gp_flood_earn(flood);
        if (outgoing != NULL && outgoing->kept != NULL) {
            outgoing->unreported = bytes;
            break;
        }
        *done += bytes;
        if (one_record)
            break;
    }
    return result;
}

/* SSL_shutdown; but it is not called again if its alert was kept and has been sent since: a second call would read. */
static int shut_down(SSL *ssl, struct gp_outgoing *outgoing)
{
    if (outgoing == NULL)
        return SSL_shutdown(ssl);
    int result = outgoing->shut_down > 0 ? outgoing->shut_down - 1 : SSL_shutdown(ssl);
    outgoing->shut_down = result >= 0 && outgoing->kept != NULL ? result + 1 : 0;
    return result;
}

uint64_t gp_connection_operate(SSL *ssl, int operation, void *buffer, size_t size)
{
    struct gp_flood *flood = gp_flood_of(ssl);
    struct gp_outgoing *outgoing = gp_outgoing_of(ssl);
    size_t done = 0, bytes;
    int result, error, blocks = -1;

    ERR_clear_error();
    flood->spent = 0;
    int sent = outgoing == NULL || operation == GP_READ ? 1 : gp_outgoing_send(outgoing);
    if (sent <= 0 && !SSL_waiting_for_async(ssl))
        return sent == 0 ? SSL_ERROR_WANT_WRITE : SSL_ERROR_SYSCALL;
    errno = 0;
    switch (operation) {
    case GP_HANDSHAKE:
        result = SSL_do_handshake(ssl);
        break;
    case GP_READ:
        do {
            result = SSL_read_ex(ssl, (char *)buffer + done, size - done, &bytes);
            if (result > 0) {
                done += bytes;
                gp_flood_earn(flood);
            }
        } while (result > 0 && done < size && flood->spent < READ_AT_ONCE && may_go_on(ssl, &blocks));
        break;
    case GP_WRITE:
        result = write_records(ssl, outgoing, buffer, size, &done);
        break;
    default:
        result = shut_down(ssl, outgoing);
        if (result >= 0) {
            done = (size_t)result;
            result = 1;
        }
        break;
    }
    int saved = errno;
    error = result > 0 ? SSL_ERROR_NONE : SSL_get_error(ssl, result);
    if (flood->exceeded && error != SSL_ERROR_WANT_ASYNC && error != SSL_ERROR_WANT_ASYNC_JOB
        && (error != SSL_ERROR_NONE || operation == GP_SHUTDOWN)) {
        done = operation == GP_SHUTDOWN ? 0 : done;
        error = GP_ERROR_FLOOD;
    }
    if (operation != GP_READ && outgoing != NULL && outgoing->kept != NULL
        && (error == SSL_ERROR_NONE || error == SSL_ERROR_WANT_READ)) {
        done = operation == GP_WRITE ? done : 0;
        error = SSL_ERROR_WANT_WRITE;
    }
    errno = saved;
    return (uint64_t)done << 8 | (uint64_t)error;
}

int gp_connection_cut_off(SSL *ssl)
{
    BIO *nothing = BIO_new(BIO_s_null());
    if (nothing == NULL)
        return 0;
    SSL_set_bio(ssl, nothing, nothing);
    return 1;
}
