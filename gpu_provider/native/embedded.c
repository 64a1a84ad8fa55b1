/* The batching provider in the application's own process: its library context, and keys loaded without TLS. */
#include <openssl/bio.h>
#include <openssl/bn.h>
#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/decoder.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/provider.h>
#include <string.h>

#include "client.h"
#include "provider.h"

OSSL_LIB_CTX *gp_application_libctx_new(gp_client *client)
{
    OSSL_LIB_CTX *libctx = OSSL_LIB_CTX_new();
    int ok;

    if (libctx == NULL)
        return NULL;
    gp_provider_pending_client = client;
    ok = OSSL_PROVIDER_add_builtin(libctx, GP_PROVIDER_NAME, gp_provider_init)
         && OSSL_PROVIDER_load(libctx, GP_PROVIDER_NAME) != NULL && OSSL_PROVIDER_load(libctx, "default") != NULL
         && EVP_set_default_properties(libctx, "?" GP_PROVIDER_PROPERTIES);
    gp_provider_pending_client = NULL;
    if (ok)
        return libctx;
    OSSL_LIB_CTX_free(libctx);
    return NULL;
}

struct loaded {
    OSSL_PROVIDER *providers[2];
    int count;
};

static int remember(OSSL_PROVIDER *provider, void *argument)
{
    struct loaded *loaded = argument;

    if (loaded->count < 2)
        loaded->providers[loaded->count++] = provider;
    return 1;
}

void gp_application_libctx_free(OSSL_LIB_CTX *libctx)
{
    struct loaded loaded = {.count = 0};

    if (libctx == NULL)
        return;
    /* Freeing the context does not drop the references of OSSL_PROVIDER_load(). */
    OSSL_PROVIDER_do_all(libctx, remember, &loaded);
    while (loaded.count > 0)
        OSSL_PROVIDER_unload(loaded.providers[--loaded.count]);
    OSSL_LIB_CTX_free(libctx);
}

static int no_password(char *buffer, size_t size, size_t *length, const OSSL_PARAM parameters[], void *argument)
{
    (void)buffer, (void)size, (void)length, (void)parameters, (void)argument;
    return 0; /* never ask on the terminal */
}

static EVP_PKEY *decode(OSSL_LIB_CTX *libctx, const uint8_t *data, size_t size)
{
    EVP_PKEY *pkey = NULL;
    OSSL_DECODER_CTX *decoder = OSSL_DECODER_CTX_new_for_pkey(&pkey, NULL, NULL, NULL, 0, libctx, NULL);

    if (decoder == NULL || !OSSL_DECODER_CTX_set_passphrase_cb(decoder, no_password, NULL)
        || !OSSL_DECODER_from_data(decoder, &data, &size)) {
        EVP_PKEY_free(pkey);
        pkey = NULL;
    }
    OSSL_DECODER_CTX_free(decoder);
    return pkey;
}

static int pair_is_valid(OSSL_LIB_CTX *libctx, EVP_PKEY *pkey)
{
    EVP_PKEY_CTX *context = EVP_PKEY_CTX_new_from_pkey(libctx, pkey, NULL);
    int valid = context != NULL && EVP_PKEY_private_check(context) > 0 && EVP_PKEY_pairwise_check(context) > 0;

    EVP_PKEY_CTX_free(context);
    return valid;
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

enum gp_load gp_client_load_key(gp_client *client, const uint8_t *der_or_pem, size_t size, gp_key_info *info)
{
    OSSL_LIB_CTX *libctx = gp_inner_libctx(gp_client_inner(client));
    EVP_PKEY *pkey = decode(libctx, der_or_pem, size);
    enum gp_load result = GP_LOAD_OK;
    gp_key *key = NULL;

    memset(info, 0, sizeof(*info));
    if (pkey == NULL)
        result = GP_LOAD_UNREADABLE;
    else if (!EVP_PKEY_is_a(pkey, "RSA"))
        result = GP_LOAD_NOT_RSA;
    else if ((key = gp_key_new(gp_client_inner(client), pkey)) == NULL)
        result = GP_LOAD_MEMORY;
    else if (!key->is_private)
        result = GP_LOAD_NOT_PRIVATE;
    if (key != NULL)
        info->bits = key->bits;
    if (result == GP_LOAD_OK && (key->bits < GP_MIN_BITS || key->bits > GP_MAX_BITS))
        result = GP_LOAD_SIZE;
    if (result == GP_LOAD_OK)
        result = fill_info(key, info);
    if (result == GP_LOAD_OK && (!gp_key_is_batchable(key) || !pair_is_valid(libctx, pkey)))
        result = GP_LOAD_INVALID;
    if (result == GP_LOAD_OK && (info->handle = gp_client_add_key(client, key)) == 0)
        result = GP_LOAD_MEMORY;
    gp_key_free(key);
    EVP_PKEY_free(pkey);
    ERR_clear_error();
    return result;
}
