/* Loading and unloading, what the provider offers, and its errors. */
#include "provider/provider.h"

#include <errno.h>
#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/params.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "queue/consumer.h"
#include "queue/counts.h"

#define DEFAULT_MAX_WAIT_US 20000u
#define DEFAULT_SERVICE_TIMEOUT_MS 200u

struct gp_provider_kernels gp_provider_kernels;

static const OSSL_ITEM reasons[] = {
    {GP_R_INCONSISTENT_KEY, "the key's private part does not belong to its public part"},
    {GP_R_OUT_OF_MEMORY, "out of memory"},
    {GP_R_UNKNOWN_DIGEST, "unknown digest"},
    {GP_R_IMPLICIT_REJECTION_REQUIRED, "this provider is set to reject implicitly always"},
    {GP_R_OPERATION_FAILED, "the RSA private operation failed"},
    {GP_R_BAD_REFERENCE, "not a reference to a key of gpu-provider service"},
    {GP_R_BAD_KEY_NAME, "a key's name is letters, digits, dots, underscores and hyphens, at most 64"},
    {GP_R_NO_SERVICE_SET, "the key is in gpu-provider service, but no 'service' is set in openssl.cnf"},
    {GP_R_SERVICE_NOT_REACHED, "the key is in gpu-provider service, which is not reached"},
    {GP_R_NO_SUCH_KEY, "gpu-provider service has no key of this name"},
    {GP_R_OTHER_KEY, "gpu-provider service has another key of this name than the reference is for"},
    {GP_R_NOT_EXPORTABLE, "the private key is in gpu-provider service, which does not give it away"},
    {0, NULL},
};

static void set_error(const gp_provider *provider, enum gp_reason reason, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    provider->vset_error(provider->handle, reason, format, arguments);
    va_end(arguments);
}

void gp_raise(const gp_provider *provider, enum gp_reason reason, const char *about, const char *file, int line,
              const char *function)
{
    if (provider->new_error == NULL || provider->set_error_debug == NULL || provider->vset_error == NULL)
        return;
    provider->new_error(provider->handle);
    provider->set_error_debug(provider->handle, file, line, function);
    set_error(provider, reason, about != NULL ? "%s" : NULL, about);
}

void gp_raise_not_reached(const gp_provider *provider, const char *name)
{
    char about[256];
    snprintf(about, sizeof(about), "%s: %s", name, strerror(errno));
    GP_RAISE_ABOUT(provider, GP_R_SERVICE_NOT_REACHED, about);
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

static const OSSL_ALGORITHM decoders[] = {
    {"DER", GP_PROVIDER_PROPERTIES ",input=pem", gp_reference_pem_functions, "references to keys of the service"},
    {GP_RSA_NAMES, GP_PROVIDER_PROPERTIES ",input=der,structure=" GP_REFERENCE_STRUCTURE, gp_reference_der_functions,
     "references to keys of the service"},
    {NULL, NULL, NULL, NULL},
};
static const OSSL_ALGORITHM store[] = {
    {GP_STORE_SCHEME, GP_PROVIDER_PROPERTIES, gp_store_functions, "keys of the service"},
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
    case OSSL_OP_DECODER:
        return decoders;
    case OSSL_OP_STORE:
        return store;
    default:
        return NULL;
    }
}

static const OSSL_ITEM *get_reason_strings(void *provider)
{
    (void)provider;
    return reasons;
}

/* Of what this process and those that it was forked from have computed, by key size. Sizes in between count as the next
 * larger one. */
#define COUNTS_OF(X, bits, class_index)            \
    X("singles-" bits, singles, class_index)       \
    X("groups-" bits, groups, class_index)         \
    X("grouped-" bits, grouped, class_index)       \
    X("waits-" bits, waits, class_index)           \
    X("waits-in-vain-" bits, in_vain, class_index) \
    X("served-" bits, served, class_index)
#define COUNTS(X)           \
    COUNTS_OF(X, "2048", 0) \
    COUNTS_OF(X, "2560", 1) COUNTS_OF(X, "3072", 2) COUNTS_OF(X, "3584", 3) COUNTS_OF(X, "4096", 4)

static const OSSL_PARAM *gettable_params(void *provider)
{
    static const OSSL_PARAM gettable[] = {
        OSSL_PARAM_utf8_ptr(OSSL_PROV_PARAM_NAME, NULL, 0),
        OSSL_PARAM_utf8_ptr(OSSL_PROV_PARAM_VERSION, NULL, 0),
        OSSL_PARAM_utf8_ptr(OSSL_PROV_PARAM_BUILDINFO, NULL, 0),
        OSSL_PARAM_int(OSSL_PROV_PARAM_STATUS, NULL),
#define GETTABLE(name, field, class_index) OSSL_PARAM_uint64(name, NULL),
        COUNTS(GETTABLE)
#undef GETTABLE
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
    OSSL_PARAM *status = OSSL_PARAM_locate(params, OSSL_PROV_PARAM_STATUS), *count;
#define SET_COUNT(name, field, class_index)                                                             \
    count = OSSL_PARAM_locate(params, name);                                                            \
    if (count != NULL && !OSSL_PARAM_set_uint64(count, atomic_load(&gp_counts_of(class_index)->field))) \
        return 0;
    COUNTS(SET_COUNT)
#undef SET_COUNT
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

/* A whole number of the configuration; `otherwise` for what is none, or not in the range. */
static uint32_t number(const char *value, uint32_t least, uint32_t most, uint32_t otherwise)
{
    uint64_t parsed = 0;
    if (value == NULL || *value == '\0')
        return otherwise;
    for (; *value >= '0' && *value <= '9' && parsed <= most; value++)
        parsed = parsed * 10 + (uint64_t)(*value - '0');
    return *value == '\0' && parsed >= least && parsed <= most ? (uint32_t)parsed : otherwise;
}

/* From the provider's section of openssl.cnf. OpenSSL goes on without a provider that can't be loaded, so a value that
 * makes no sense must not be an error ("gpu-provider check" tells): any implicit-rejection but 0 is taken as the strict
 * one, and instead of other such values the defaults hold. */
static void read_settings(gp_provider *provider, OSSL_FUNC_core_get_params_fn *get_core_params)
{
    char *reject = NULL, *kernels = NULL, *group = NULL, *wait = NULL, *directory = NULL, *service = NULL,
         *timeout = NULL, *key_timeout = NULL;
    OSSL_PARAM params[] = {
        OSSL_PARAM_construct_utf8_ptr("implicit-rejection", &reject, 0),
        OSSL_PARAM_construct_utf8_ptr("kernels", &kernels, 0),
        OSSL_PARAM_construct_utf8_ptr("max_group", &group, 0),
        OSSL_PARAM_construct_utf8_ptr("max_wait", &wait, 0),
        OSSL_PARAM_construct_utf8_ptr("counts_directory", &directory, 0),
        OSSL_PARAM_construct_utf8_ptr("service", &service, 0),
        OSSL_PARAM_construct_utf8_ptr("service_timeout", &timeout, 0),
        OSSL_PARAM_construct_utf8_ptr("service_key_timeout", &key_timeout, 0),
        OSSL_PARAM_construct_end(),
    };
    if (!get_core_params(provider->handle, params))
        return;
    provider->always_reject_implicitly = reject != NULL && strcmp(reject, "0") != 0;
    if (kernels != NULL && strcmp(kernels, "portable") == 0) {
        provider->groups.kernels = gp_provider_kernels.portable;
        provider->groups.pretend = 1;
    } else if (kernels == NULL || strcmp(kernels, "off") != 0) {
        provider->groups.kernels = gp_provider_kernels.fast;
    }
    if (directory != NULL)
        gp_counts_publish(directory);
    if (service != NULL && *service != '\0')
        provider->service.path = service; /* it lives as long as the provider */
    provider->service.timeout_ns = 1000000u * (uint64_t)number(timeout, 1, 60000, DEFAULT_SERVICE_TIMEOUT_MS);
    provider->service.key_timeout_ns = 1000000u * (uint64_t)number(key_timeout, 1, 600000, GP_SERVICE_KEY_TIMEOUT_MS);
    provider->groups.most = number(group, 2, GP_SMALL_BATCH, GP_SMALL_BATCH);
    provider->groups.max_wait_ns = 1000u * (uint64_t)number(wait, 0, 1000000, DEFAULT_MAX_WAIT_US);
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
        case OSSL_FUNC_BIO_READ_EX:
            provider->bio_read_ex = OSSL_FUNC_BIO_read_ex(in);
            break;
        case OSSL_FUNC_BIO_GETS:
            provider->bio_gets = OSSL_FUNC_BIO_gets(in);
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
    if (get_core_params != NULL)
        read_settings(provider, get_core_params);
    *out = provider_functions;
    *provider_context = provider;
    return 1;
}
