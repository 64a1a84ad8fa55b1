/* The OpenSSL provider: RSA key management, signature and asymmetric cipher over gp_client_private_op().
 * What is not the private operation (hashing, public operations, key generation, parameter checks) is done by OpenSSL's
 * default provider in the inner library context. */
#ifndef GP_PROVIDER_H
#define GP_PROVIDER_H

#include <openssl/core.h>
#include <openssl/core_dispatch.h>

#include "client.h"

#define GP_PROVIDER_NAME "gpu_provider"
#define GP_PROVIDER_PROPERTIES "provider=" GP_PROVIDER_NAME

/* One per loaded provider. client is NULL in programs without a batching provider: operations are computed at once. */
typedef struct gp_provider {
    const OSSL_CORE_HANDLE *handle;
    gp_inner *inner;
    gp_client *client;
    /* core functions for raising errors and the like: the provider's sources add what they use */
    OSSL_FUNC_core_new_error_fn *new_error;
    OSSL_FUNC_core_set_error_debug_fn *set_error_debug;
    OSSL_FUNC_core_vset_error_fn *vset_error;
} gp_provider;

/* Set by gp_application_libctx_new() around OSSL_PROVIDER_load(), which calls gp_provider_init() on the same thread: the
 * only way to hand a built-in provider an argument. */
extern _Thread_local gp_client *gp_provider_pending_client;

OSSL_provider_init_fn gp_provider_init;

#endif
