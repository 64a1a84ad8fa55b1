/* The batching provider in the application's own process: its library context, and keys loaded without TLS. */
#ifndef GP_EMBEDDED_H
#define GP_EMBEDDED_H

#include <openssl/types.h>
#include <stddef.h>
#include <stdint.h>

#include "keys/check.h"
#include "queue/client.h"
#include "types.h"

/* cffi: */
/* A library context for an application (libssl) whose RSA goes through `client`: the default provider and ours, with
 * GP_PREFERENCE as default property query. NULL with an error queued. When nothing uses it any more,
 * gp_embedded_libctx_free() lets go of the client and keeps the context for the next client. Any thread. */
OSSL_LIB_CTX *gp_embedded_libctx_new(gp_client *client);
void gp_embedded_libctx_free(OSSL_LIB_CTX *libctx);

/* The same, but RSA is computed by the service that listens at `path`, or at once by OpenSSL while it can't be reached.
 * `path` must live as long as the context is used. A process has one service: the first path and timeout count. */
OSSL_LIB_CTX *gp_embedded_libctx_of_service(const char *path, uint32_t timeout_ms);

/* For such a context's connections that have an async callback, before their first operation: watch this descriptor and
 * call gp_embedded_fire_callbacks() on the thread that runs them when it is readable. -1: no memory or descriptor. */
int gp_embedded_callbacks_descriptor(const char *path, uint32_t timeout_ms);
void gp_embedded_fire_callbacks(void);

/* How many operations of this process a service computed, and how many OpenSSL. */
void gp_embedded_counts(uint64_t *by_service, uint64_t *alone);

typedef struct gp_key_info {
    gp_key_handle handle;
    uint32_t bits;
    uint32_t bytes;                 /* of the modulus */
    uint32_t exponent_bytes;        /* of e */
    uint8_t modulus[GP_MAX_BYTES];  /* least significant byte first */
    uint8_t exponent[GP_MAX_BYTES]; /* least significant byte first */
} gp_key_info;

enum gp_load {
    GP_LOAD_OK = 0,
    GP_LOAD_UNREADABLE, /* neither PEM nor DER, or encrypted */
    GP_LOAD_NOT_RSA,
    GP_LOAD_NOT_PRIVATE,
    GP_LOAD_SIZE,    /* not GP_MIN_BITS to GP_MAX_BITS; info->bits says what */
    GP_LOAD_INVALID, /* even or tiny exponent, even modulus, p·q ≠ n, … */
    GP_LOAD_MEMORY
};

/* Reads an unencrypted private key (PEM or DER), checks it and adds it to the client's key table: the library's
 * load_key(). */
enum gp_load gp_embedded_load_key(gp_client *client, const uint8_t *der_or_pem, size_t size, enum gp_key_checks checks,
                                  gp_key_info *info);
/* :cffi */

#endif
