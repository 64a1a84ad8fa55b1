#include "provider/embedded.h"

#include <openssl/bio.h>
#include <openssl/bn.h>
#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/decoder.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/provider.h>
#include <stdatomic.h>
#include <string.h>

#include "keys/check.h"
#include "provider/provider.h"
#include "queue/counts.h"

/* Library contexts are never freed, but used again. OpenSSL keeps, for every thread that used a context's random
 * numbers, a handler that looks at the context when the thread ends; a thread may well outlive a provider, and no call
 * tells whether one does. So there are as many as there ever were providers at the same time. The list only grows. */
struct application {
    OSSL_LIB_CTX *libctx;
    gp_provider *provider;
    atomic_int in_use;
    struct application *next;
};

static _Atomic(struct application *) applications;

static struct application *make_application(void)
{
    struct application *application = OPENSSL_zalloc(sizeof(*application));
    OSSL_LIB_CTX *libctx = OSSL_LIB_CTX_new();
    OSSL_PROVIDER *own = NULL, *other = NULL;

    if (application != NULL && libctx != NULL && OSSL_PROVIDER_add_builtin(libctx, GP_PROVIDER_NAME, gp_provider_init)
        && (own = OSSL_PROVIDER_load(libctx, GP_PROVIDER_NAME)) != NULL
        && (other = OSSL_PROVIDER_load(libctx, "default")) != NULL
        && EVP_set_default_properties(libctx, GP_PREFERENCE)) {
        application->libctx = libctx;
        application->provider = OSSL_PROVIDER_get0_provider_ctx(own);
        atomic_init(&application->in_use, 1);
        application->next = atomic_load(&applications);
        while (!atomic_compare_exchange_weak(&applications, &application->next, application))
            ;
        return application;
    }
    if (other != NULL)
        OSSL_PROVIDER_unload(other);
    if (own != NULL)
        OSSL_PROVIDER_unload(own);
    OSSL_LIB_CTX_free(libctx); /* no other thread has used it */
    OPENSSL_free(application);
    return NULL;
}

/* One that is free, or a new one. */
static struct application *take_application(void)
{
    struct application *application = atomic_load(&applications);
    int in_use = 0;

    while (application != NULL && !atomic_compare_exchange_strong(&application->in_use, &in_use, 1)) {
        in_use = 0;
        application = application->next;
    }
    return application != NULL ? application : make_application();
}

OSSL_LIB_CTX *gp_embedded_libctx_new(gp_client *client)
{
    struct application *application = take_application();

    if (application == NULL)
        return NULL;
    application->provider->client = gp_client_up_ref(client);
    return application->libctx;
}

static struct gp_service_settings service_settings(const char *path, uint32_t timeout_ms)
{
    return (struct gp_service_settings){.path = path,
                                        .timeout_ns = 1000000u * (uint64_t)timeout_ms,
                                        .key_timeout_ns = 1000000u * (uint64_t)GP_SERVICE_KEY_TIMEOUT_MS};
}

OSSL_LIB_CTX *gp_embedded_libctx_of_service(const char *path, uint32_t timeout_ms)
{
    struct application *application = take_application();

    if (application == NULL)
        return NULL;
    application->provider->service = service_settings(path, timeout_ms);
    return application->libctx;
}

int gp_embedded_callbacks_descriptor(const char *path, uint32_t timeout_ms)
{
    const struct gp_service_settings settings = service_settings(path, timeout_ms);

    return gp_attachment_callbacks_descriptor(&settings);
}

void gp_embedded_fire_callbacks(void)
{
    gp_attachment_fire();
}

void gp_embedded_counts(uint64_t *by_service, uint64_t *alone)
{
    *by_service = *alone = 0;
    for (uint32_t i = 0; i < GP_CLASSES; i++) {
        *by_service += atomic_load(&gp_counts_of(i)->served);
        *alone += atomic_load(&gp_counts_of(i)->singles);
    }
}

void gp_embedded_libctx_free(OSSL_LIB_CTX *libctx)
{
    struct application *application = atomic_load(&applications);

    while (application != NULL && application->libctx != libctx)
        application = application->next;
    if (application != NULL) {
        gp_client_free(application->provider->client);
        application->provider->client = NULL;
        application->provider->service.path = NULL;
        atomic_store(&application->in_use, 0);
    }
}

static int no_password(char *buffer, size_t size, size_t *length, const OSSL_PARAM parameters[], void *argument)
{
    (void)buffer, (void)size, (void)length, (void)parameters, (void)argument;
    return 0; /* never ask on the terminal */
}

/* `type`: of the key, or NULL for any. */
static EVP_PKEY *decode(OSSL_LIB_CTX *libctx, const char *type, const uint8_t *data, size_t size)
{
    EVP_PKEY *pkey = NULL;
    OSSL_DECODER_CTX *decoder = OSSL_DECODER_CTX_new_for_pkey(&pkey, NULL, NULL, type, 0, libctx, NULL);

    if (decoder == NULL || !OSSL_DECODER_CTX_set_passphrase_cb(decoder, no_password, NULL)
        || !OSSL_DECODER_from_data(decoder, &data, &size)) {
        EVP_PKEY_free(pkey);
        pkey = NULL;
    }
    OSSL_DECODER_CTX_free(decoder);
    return pkey;
}

static enum gp_load fill_info(const gp_key *key, gp_key_info *info)
{
    BIGNUM *e = NULL;
    enum gp_load result = GP_LOAD_INVALID;

    if (!EVP_PKEY_get_bn_param(key->pkey, OSSL_PKEY_PARAM_RSA_E, &e))
        return GP_LOAD_INVALID;
    info->bytes = key->bytes;
    info->exponent_bytes = (uint32_t)BN_num_bytes(e);
    for (uint32_t i = 0; i < key->bytes; i++)
        info->modulus[i] = key->modulus[key->bytes - 1 - i];
    /* Written before it is judged: the caller names the exponent that is wrong. */
    if (info->exponent_bytes <= GP_MAX_BYTES && BN_bn2lebinpad(e, info->exponent, GP_MAX_BYTES) >= 0 && BN_is_odd(e)
        && !BN_is_one(e))
        result = GP_LOAD_OK;
    BN_free(e);
    return result;
}

enum gp_load gp_embedded_load_key(gp_client *client, const uint8_t *der_or_pem, size_t size, enum gp_key_checks checks,
                                  gp_key_info *info)
{
    OSSL_LIB_CTX *libctx = gp_inner_libctx();
    EVP_PKEY *pkey = decode(libctx, "RSA", der_or_pem, size);
    enum gp_load result = GP_LOAD_OK;
    gp_key *key = NULL;

    memset(info, 0, sizeof(*info));
    if (pkey == NULL) /* to say that it is a key of another type; trying all takes five times as long */
        pkey = decode(libctx, NULL, der_or_pem, size);
    if (pkey == NULL)
        result = GP_LOAD_UNREADABLE;
    else if (!EVP_PKEY_is_a(pkey, "RSA"))
        result = GP_LOAD_NOT_RSA;
    else if ((key = gp_key_new(pkey)) == NULL)
        result = GP_LOAD_MEMORY;
    else if (!key->is_private)
        result = GP_LOAD_NOT_PRIVATE;
    if (key != NULL)
        info->bits = key->bits;
    if (result == GP_LOAD_OK && (key->bits < GP_MIN_BITS || key->bits > GP_MAX_BITS))
        result = GP_LOAD_SIZE;
    if (result == GP_LOAD_OK)
        result = fill_info(key, info);
    if (result == GP_LOAD_OK && (!gp_key_is_batchable(key) || !gp_key_check(key, checks)))
        result = GP_LOAD_INVALID;
    /* Without gp_client_add_key(), which prepares it: there may be thousands of keys, most of which are never used. */
    if (result == GP_LOAD_OK && (info->handle = gp_key_table_add(gp_client_keys(client), key)) == 0)
        result = GP_LOAD_MEMORY;
    gp_key_free(key);
    EVP_PKEY_free(pkey);
    ERR_clear_error();
    return result;
}
