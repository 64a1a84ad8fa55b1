/* Loading and unloading, what the provider offers, and its errors. */
#include "provider/provider.h"

#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/params.h>
#include <stdarg.h>
#include <string.h>

_Thread_local gp_client *gp_provider_pending_client;

static const OSSL_ITEM reasons[] = {
    {GP_R_INCONSISTENT_KEY, "the key's private part does not belong to its public part"},
    {GP_R_OUT_OF_MEMORY, "out of memory"},
    {GP_R_UNKNOWN_DIGEST, "unknown digest"},
    {GP_R_IMPLICIT_REJECTION_REQUIRED, "this provider is set to reject implicitly always"},
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

static const OSSL_ALGORITHM *query_operation(void *context, int operation, int *no_cache)
{
    const gp_provider *provider = context;
    *no_cache = 0;
    if (!provider->same_libcrypto)
        return NULL;
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
        OSSL_PARAM_utf8_ptr(OSSL_PROV_PARAM_BUILDINFO, NULL, 0),
        OSSL_PARAM_int(OSSL_PROV_PARAM_STATUS, NULL),
        OSSL_PARAM_END,
    };
    (void)provider;
    return gettable;
}

static int get_params(void *context, OSSL_PARAM params[])
{
    const gp_provider *provider = context;
    const char *build = provider->same_libcrypto ? "computes with the program's libcrypto"
                                                 : "offers nothing: the program has another libcrypto than this module";
    OSSL_PARAM *name = OSSL_PARAM_locate(params, OSSL_PROV_PARAM_NAME);
    OSSL_PARAM *version = OSSL_PARAM_locate(params, OSSL_PROV_PARAM_VERSION);
    OSSL_PARAM *build_info = OSSL_PARAM_locate(params, OSSL_PROV_PARAM_BUILDINFO);
    OSSL_PARAM *status = OSSL_PARAM_locate(params, OSSL_PROV_PARAM_STATUS);
    return (name == NULL || OSSL_PARAM_set_utf8_ptr(name, GP_PROVIDER_NAME))
           && (version == NULL || OSSL_PARAM_set_utf8_ptr(version, GP_PROVIDER_VERSION))
           && (build_info == NULL || OSSL_PARAM_set_utf8_ptr(build_info, build))
           && (status == NULL || OSSL_PARAM_set_int(status, provider->same_libcrypto));
}

/* Only when it is needed: while providers are being activated, the default one may not be there yet. */
const gp_default_rsa *gp_provider_default_rsa(gp_provider *provider)
{
    gp_default_rsa *found = atomic_load(&provider->rsa), *made;
    if (found != NULL)
        return found;
    made = gp_default_rsa_new(provider->libctx);
    if (made == NULL) {
        const gp_default_rsa *own = gp_default_rsa_of_process();
        if (own == NULL)
            GP_RAISE(provider, GP_R_OUT_OF_MEMORY);
        return own;
    }
    if (atomic_compare_exchange_strong(&provider->rsa, &found, made))
        return made;
    gp_default_rsa_free(made); /* another thread was first */
    return found;
}

static void teardown(void *context)
{
    gp_provider *provider = context;
    gp_default_rsa_free(atomic_load(&provider->rsa));
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

/* From the provider's section of openssl.cnf. OpenSSL goes on without a provider that can't be loaded, so a value that
 * makes no sense must not be an error: any but 0 is taken as the strict one. */
static void read_setting(gp_provider *provider, OSSL_FUNC_core_get_params_fn *get_core_params)
{
    char *value = NULL;
    OSSL_PARAM params[] = {
        OSSL_PARAM_construct_utf8_ptr("implicit-rejection", &value, 0),
        OSSL_PARAM_construct_end(),
    };
    provider->always_reject_implicitly =
        get_core_params(provider->handle, params) && value != NULL && strcmp(value, "0") != 0;
}

int gp_provider_init(const OSSL_CORE_HANDLE *handle, const OSSL_DISPATCH *in, const OSSL_DISPATCH **out,
                     void **provider_context)
{
    OSSL_FUNC_core_get_libctx_fn *get_libctx = NULL;
    OSSL_FUNC_core_get_params_fn *get_core_params = NULL;
    OSSL_FUNC_CRYPTO_realloc_fn *core_realloc = NULL;
    gp_provider *provider = OPENSSL_zalloc(sizeof(*provider));
    if (provider == NULL)
        return 0;
    provider->handle = handle;
    for (; in->function_id != 0; in++) {
        switch (in->function_id) {
        case OSSL_FUNC_CORE_GET_LIBCTX:
            get_libctx = OSSL_FUNC_core_get_libctx(in);
            break;
        case OSSL_FUNC_CORE_GET_PARAMS:
            get_core_params = OSSL_FUNC_core_get_params(in);
            break;
        case OSSL_FUNC_CORE_NEW_ERROR:
            provider->new_error = OSSL_FUNC_core_new_error(in);
            break;
        case OSSL_FUNC_CORE_SET_ERROR_DEBUG:
            provider->set_error_debug = OSSL_FUNC_core_set_error_debug(in);
            break;
        case OSSL_FUNC_CORE_VSET_ERROR:
            provider->vset_error = OSSL_FUNC_core_vset_error(in);
            break;
        case OSSL_FUNC_CRYPTO_REALLOC:
            core_realloc = OSSL_FUNC_CRYPTO_realloc(in);
            break;
        default:
            break;
        }
    }
    /* With another copy of libcrypto in this process than the one that loaded us, the program's default provider,
     * current job and error queue would all be out of reach. Then nothing is offered, and the program works as it would
     * without us. */
    if (get_libctx != NULL && core_realloc == CRYPTO_realloc) {
        provider->same_libcrypto = 1;
        provider->libctx = (OSSL_LIB_CTX *)get_libctx(handle);
    }
    if (gp_provider_pending_client != NULL)
        provider->client = gp_client_up_ref(gp_provider_pending_client);
    if (get_core_params != NULL)
        read_setting(provider, get_core_params);
    *out = provider_functions;
    *provider_context = provider;
    return 1;
}
