/* Loading and unloading, what the provider offers, and its errors. */
#include "provider.h"

#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/params.h>
#include <stdarg.h>

_Thread_local gp_client *gp_provider_pending_client;

static const OSSL_ITEM reasons[] = {
    {GP_R_NO_KEY, "no key set"},
    {GP_R_NOT_A_PRIVATE_KEY, "the key has no private part"},
    {GP_R_INCONSISTENT_KEY, "the key's private part does not belong to its public part"},
    {GP_R_OUT_OF_MEMORY, "out of memory"},
    {GP_R_UNKNOWN_DIGEST, "unknown digest"},
    {GP_R_DIGEST_FIXED, "the digest can't be changed in a digest-sign or digest-verify operation"},
    {GP_R_WRONG_DIGEST_LENGTH, "the data is not as long as the digest"},
    {GP_R_DATA_TOO_LONG, "the data is too long for the key"},
    {GP_R_DATA_NOT_BELOW_MODULUS, "the data is not below the modulus"},
    {GP_R_WRONG_LENGTH, "the data is not as long as the modulus"},
    {GP_R_BUFFER_TOO_SMALL, "the output buffer is too small"},
    {GP_R_SALT_LENGTH, "the key has no room for a salt of this length"},
    {GP_R_KEY_TOO_SMALL, "the key is too small for this padding"},
    {GP_R_DECRYPTION_FAILED, "decryption failed"},
    {GP_R_TLS_VERSION_MISSING, "TLS padding needs the client's protocol version"},
    {GP_R_IMPLICIT_REJECTION_REQUIRED, "PKCS#1 v1.5 decryption without implicit rejection is not offered"},
    {GP_R_UNSUPPORTED_PADDING, "unsupported padding"},
    {GP_R_OPERATION_FAILED, "the RSA private operation failed"},
    {0, NULL},
};

static void set_error(const gp_provider *provider, enum gp_reason reason, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    provider->vset_error(provider->handle, reason, format, arguments);
    va_end(arguments);
}

void gp_raise(const gp_provider *provider, enum gp_reason reason, const char *file, int line, const char *function)
{
    if (provider->new_error == NULL || provider->set_error_debug == NULL || provider->vset_error == NULL)
        return;
    provider->new_error(provider->handle);
    provider->set_error_debug(provider->handle, file, line, function);
    set_error(provider, reason, NULL);
}

static const OSSL_ALGORITHM keymgmt[] = {
    {GP_RSA_NAMES, GP_PROVIDER_PROPERTIES, gp_rsa_keymgmt_functions, "RSA keys for batched operations"},
    {NULL, NULL, NULL, NULL},
};
static const OSSL_ALGORITHM signature[] = {
    {GP_RSA_NAMES, GP_PROVIDER_PROPERTIES, gp_rsa_signature_functions, "batched RSA signatures"},
    {NULL, NULL, NULL, NULL},
};
static const OSSL_ALGORITHM cipher[] = {
    {GP_RSA_NAMES, GP_PROVIDER_PROPERTIES, gp_rsa_cipher_functions, "batched RSA decryption"},
    {NULL, NULL, NULL, NULL},
};

static const OSSL_ALGORITHM *query_operation(void *provider, int operation, int *no_cache)
{
    (void)provider;
    *no_cache = 0;
    switch (operation) {
    case OSSL_OP_KEYMGMT:
        return keymgmt;
    case OSSL_OP_SIGNATURE:
        return signature;
    case OSSL_OP_ASYM_CIPHER:
        return cipher;
    default:
        return NULL;
    }
}

static const OSSL_ITEM *get_reason_strings(void *provider)
{
    (void)provider;
    return reasons;
}

static const OSSL_PARAM *gettable_params(void *provider)
{
    static const OSSL_PARAM gettable[] = {
        OSSL_PARAM_utf8_ptr(OSSL_PROV_PARAM_NAME, NULL, 0),
        OSSL_PARAM_utf8_ptr(OSSL_PROV_PARAM_VERSION, NULL, 0),
        OSSL_PARAM_int(OSSL_PROV_PARAM_STATUS, NULL),
        OSSL_PARAM_END,
    };
    (void)provider;
    return gettable;
}

static int get_params(void *provider, OSSL_PARAM params[])
{
    OSSL_PARAM *name = OSSL_PARAM_locate(params, OSSL_PROV_PARAM_NAME);
    OSSL_PARAM *version = OSSL_PARAM_locate(params, OSSL_PROV_PARAM_VERSION);
    OSSL_PARAM *status = OSSL_PARAM_locate(params, OSSL_PROV_PARAM_STATUS);
    (void)provider;
    return (name == NULL || OSSL_PARAM_set_utf8_ptr(name, GP_PROVIDER_NAME))
           && (version == NULL || OSSL_PARAM_set_utf8_ptr(version, GP_PROVIDER_VERSION))
           && (status == NULL || OSSL_PARAM_set_int(status, 1));
}

static void teardown(void *context)
{
    gp_provider *provider = context;
    EVP_KEYMGMT_free(provider->keymgmt);
    EVP_SIGNATURE_free(provider->signature);
    EVP_ASYM_CIPHER_free(provider->cipher);
    gp_inner_free(provider->inner);
    if (provider->client != NULL)
        gp_client_free(provider->client);
    OPENSSL_free(provider);
}

static const OSSL_DISPATCH provider_functions[] = {
    {OSSL_FUNC_PROVIDER_TEARDOWN, (void (*)(void))teardown},
    {OSSL_FUNC_PROVIDER_GETTABLE_PARAMS, (void (*)(void))gettable_params},
    {OSSL_FUNC_PROVIDER_GET_PARAMS, (void (*)(void))get_params},
    {OSSL_FUNC_PROVIDER_QUERY_OPERATION, (void (*)(void))query_operation},
    {OSSL_FUNC_PROVIDER_GET_REASON_STRINGS, (void (*)(void))get_reason_strings},
    {0, NULL},
};

int gp_provider_init(const OSSL_CORE_HANDLE *handle, const OSSL_DISPATCH *in, const OSSL_DISPATCH **out,
                     void **provider_context)
{
    gp_provider *provider = OPENSSL_zalloc(sizeof(*provider));
    if (provider == NULL)
        return 0;
    provider->handle = handle;
    for (; in->function_id != 0; in++) {
        switch (in->function_id) {
        case OSSL_FUNC_CORE_NEW_ERROR:
            provider->new_error = OSSL_FUNC_core_new_error(in);
            break;
        case OSSL_FUNC_CORE_SET_ERROR_DEBUG:
            provider->set_error_debug = OSSL_FUNC_core_set_error_debug(in);
            break;
        case OSSL_FUNC_CORE_VSET_ERROR:
            provider->vset_error = OSSL_FUNC_core_vset_error(in);
            break;
        default:
            break;
        }
    }
    /* The client's keys belong to its inner context, so a provider with a client must use the same one. */
    if (gp_provider_pending_client != NULL) {
        provider->client = gp_client_up_ref(gp_provider_pending_client);
        provider->inner = gp_inner_up_ref(gp_client_inner(provider->client));
    } else {
        provider->inner = gp_inner_new();
    }
    if (provider->inner != NULL) {
        provider->libctx = gp_inner_libctx(provider->inner);
        provider->keymgmt = EVP_KEYMGMT_fetch(provider->libctx, "RSA", NULL);
        provider->signature = EVP_SIGNATURE_fetch(provider->libctx, "RSA", NULL);
        provider->cipher = EVP_ASYM_CIPHER_fetch(provider->libctx, "RSA", NULL);
    }
    if (provider->keymgmt == NULL || provider->signature == NULL || provider->cipher == NULL) {
        teardown(provider);
        return 0;
    }
    *out = provider_functions;
    *provider_context = provider;
    return 1;
}
