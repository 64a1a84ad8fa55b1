/* RSA signatures. The default provider's operation context, `inner`, receives and checks all parameters and does everything
 * but signing with PKCS#1 v1.5, PSS or no padding: those are encoded here and go to gp_rsa_key_private_op(). */
#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/params.h>
#include <openssl/rsa.h>
#include <string.h>

#include "padding.h"
#include "provider.h"

#define NAME_BYTES 64

typedef struct signature_context {
    gp_provider *provider;
    gp_rsa_key *key;
    EVP_PKEY_CTX *inner; /* NULL until an init function was called */
    EVP_MD *md;          /* of a digest-sign or digest-verify operation; NULL otherwise */
    EVP_MD_CTX *hash;    /* the message so far */
    int hash_finished;   /* the next message starts anew */
} signature_context;

typedef int inner_init_fn(EVP_PKEY_CTX *inner);

static void *context_new(void *provider, const char *property_query)
{
    /* The query chooses among the application's providers; the inner context has one. */
    (void)property_query;
    signature_context *context = OPENSSL_zalloc(sizeof(*context));
    if (context == NULL) {
        GP_RAISE(provider, GP_R_OUT_OF_MEMORY);
        return NULL;
    }
    context->provider = provider;
    return context;
}

static void context_free(void *argument)
{
    signature_context *context = argument;
    if (context != NULL) {
        EVP_PKEY_CTX_free(context->inner);
        EVP_MD_CTX_free(context->hash);
        EVP_MD_free(context->md);
        gp_rsa_key_free(context->key);
        OPENSSL_free(context);
    }
}

/* EVP_DigestSignFinal() finishes a copy, so that the application may go on with the original. */
static void *context_dup(void *argument)
{
    const signature_context *from = argument;
    signature_context *context = context_new(from->provider, NULL);
    if (context == NULL)
        return NULL;
    context->hash_finished = from->hash_finished;
    if (from->key != NULL)
        context->key = gp_rsa_key_up_ref(from->key);
    if (from->md != NULL && EVP_MD_up_ref(from->md) == 1)
        context->md = from->md;
    if ((from->inner != NULL && (context->inner = EVP_PKEY_CTX_dup(from->inner)) == NULL)
        || (from->hash != NULL
            && ((context->hash = EVP_MD_CTX_new()) == NULL || EVP_MD_CTX_copy_ex(context->hash, from->hash) != 1))) {
        context_free(context);
        return NULL;
    }
    return context;
}

/* ---- parameters ---- */

static int get_context_params(void *argument, OSSL_PARAM params[])
{
    signature_context *context = argument;
    return context->inner != NULL && EVP_PKEY_CTX_get_params(context->inner, params) > 0;
}

static const OSSL_PARAM *gettable_context_params(void *argument, void *provider)
{
    (void)argument;
    return EVP_SIGNATURE_gettable_ctx_params(((gp_provider *)provider)->signature);
}

static const OSSL_PARAM *settable_context_params(void *argument, void *provider)
{
    (void)argument;
    return EVP_SIGNATURE_settable_ctx_params(((gp_provider *)provider)->signature);
}

static int set_context_params(void *argument, const OSSL_PARAM params[])
{
    signature_context *context = argument;
    if (params == NULL)
        return 1;
    if (context->inner == NULL) {
        GP_RAISE(context->provider, GP_R_NO_KEY);
        return 0;
    }
    const OSSL_PARAM *digest = OSSL_PARAM_locate_const(params, OSSL_SIGNATURE_PARAM_DIGEST);
    const char *name = NULL;
    /* The inner context knows nothing of our hashing, so what it would forbid is forbidden here. */
    if (digest != NULL && context->md != NULL
        && (!OSSL_PARAM_get_utf8_string_ptr(digest, &name) || !EVP_MD_is_a(context->md, name))) {
        GP_RAISE(context->provider, GP_R_DIGEST_FIXED);
        return 0;
    }
    /* Only read; the const is missing. */
    return EVP_PKEY_CTX_set_params(context->inner, (OSSL_PARAM *)params) > 0;
}

static int get_hash_params(void *argument, OSSL_PARAM params[])
{
    signature_context *context = argument;
    return context->hash != NULL && EVP_MD_CTX_get_params(context->hash, params) == 1;
}

static const OSSL_PARAM *gettable_hash_params(void *argument)
{
    signature_context *context = argument;
    return context->md != NULL ? EVP_MD_gettable_ctx_params(context->md) : NULL;
}

static int set_hash_params(void *argument, const OSSL_PARAM params[])
{
    signature_context *context = argument;
    return context->hash != NULL && EVP_MD_CTX_set_params(context->hash, params) == 1;
}

static const OSSL_PARAM *settable_hash_params(void *argument)
{
    signature_context *context = argument;
    return context->md != NULL ? EVP_MD_settable_ctx_params(context->md) : NULL;
}

/* ---- starting ---- */

/* key NULL: the one set before. inner_init NULL: for signing. The inner context starts anew, so padding and salt length are
 * the default ones again. */
static int start(signature_context *context, void *key, inner_init_fn *inner_init)
{
    if (key != NULL && key != context->key) {
        gp_rsa_key_free(context->key);
        context->key = gp_rsa_key_up_ref(key);
    }
    if (context->key == NULL || context->key->key == NULL) {
        GP_RAISE(context->provider, GP_R_NO_KEY);
        return 0;
    }
    EVP_PKEY_CTX_free(context->inner);
    context->inner = NULL;
    if (inner_init == NULL) {
        if (gp_rsa_key_may_compute(context->key))
            context->inner = EVP_PKEY_CTX_dup(context->key->signing);
        return context->inner != NULL;
    }
    context->inner = gp_rsa_key_inner_context(context->key);
    return context->inner != NULL && inner_init(context->inner) == 1;
}

static int start_plain(signature_context *context, void *key, const OSSL_PARAM params[], inner_init_fn *inner_init)
{
    EVP_MD_free(context->md);
    context->md = NULL;
    return start(context, key, inner_init) && set_context_params(context, params);
}

static int sign_init(void *context, void *key, const OSSL_PARAM params[])
{
    return start_plain(context, key, params, NULL);
}

static int verify_init(void *context, void *key, const OSSL_PARAM params[])
{
    return start_plain(context, key, params, EVP_PKEY_verify_init);
}

static int verify_recover_init(void *context, void *key, const OSSL_PARAM params[])
{
    return start_plain(context, key, params, EVP_PKEY_verify_recover_init);
}

/* digest NULL: the one of the operation before. */
static int start_digest(signature_context *context, const char *digest, void *key, const OSSL_PARAM params[],
                        inner_init_fn *inner_init)
{
    if (digest != NULL) {
        EVP_MD_free(context->md);
        context->md = EVP_MD_fetch(context->provider->libctx, digest, NULL);
    }
    if (context->md == NULL) {
        GP_RAISE(context->provider, GP_R_UNKNOWN_DIGEST);
        return 0;
    }
    if (context->hash == NULL && (context->hash = EVP_MD_CTX_new()) == NULL) {
        GP_RAISE(context->provider, GP_R_OUT_OF_MEMORY);
        return 0;
    }
    /* Only read; the const is missing. */
    OSSL_PARAM inner_digest[] = {
        OSSL_PARAM_construct_utf8_string(OSSL_SIGNATURE_PARAM_DIGEST, (char *)EVP_MD_get0_name(context->md), 0),
        OSSL_PARAM_construct_end(),
    };
    context->hash_finished = 0;
    return start(context, key, inner_init)
           && EVP_PKEY_CTX_set_params(context->inner, inner_digest) > 0
           && EVP_DigestInit_ex2(context->hash, context->md, NULL) == 1 && set_context_params(context, params);
}

static int digest_sign_init(void *context, const char *digest, void *key, const OSSL_PARAM params[])
{
    return start_digest(context, digest, key, params, NULL);
}

static int digest_verify_init(void *context, const char *digest, void *key, const OSSL_PARAM params[])
{
    return start_digest(context, digest, key, params, EVP_PKEY_verify_init);
}

/* ---- signing ---- */

/* What the inner context holds for a signature. */
typedef struct settings {
    int padding;
    int salt_length;
    EVP_MD *md; /* NULL: none set, the data is signed as it is */
    EVP_MD *mgf1_md;
} settings;

static void settings_free(settings *settings)
{
    EVP_MD_free(settings->md);
    EVP_MD_free(settings->mgf1_md);
}

static int get_settings(signature_context *context, settings *settings)
{
    OSSL_LIB_CTX *libctx = context->provider->libctx;
    char digest[NAME_BYTES] = "", mgf1_digest[NAME_BYTES] = "";
    OSSL_PARAM params[] = {
        OSSL_PARAM_construct_int(OSSL_SIGNATURE_PARAM_PAD_MODE, &settings->padding),
        OSSL_PARAM_construct_int(OSSL_SIGNATURE_PARAM_PSS_SALTLEN, &settings->salt_length),
        OSSL_PARAM_construct_utf8_string(OSSL_SIGNATURE_PARAM_DIGEST, digest, sizeof(digest)),
        OSSL_PARAM_construct_utf8_string(OSSL_SIGNATURE_PARAM_MGF1_DIGEST, mgf1_digest, sizeof(mgf1_digest)),
        OSSL_PARAM_construct_end(),
    };
    settings->md = settings->mgf1_md = NULL;
    if (EVP_PKEY_CTX_get_params(context->inner, params) <= 0)
        return 0;
    if (digest[0] != '\0')
        settings->md = EVP_MD_fetch(libctx, digest, NULL);
    if (settings->padding == RSA_PKCS1_PSS_PADDING)
        settings->mgf1_md = EVP_MD_fetch(libctx, mgf1_digest[0] != '\0' ? mgf1_digest : digest, NULL);
    return (digest[0] == '\0' || settings->md != NULL)
           && (settings->padding != RSA_PKCS1_PSS_PADDING || (settings->md != NULL && settings->mgf1_md != NULL));
}

static const enum gp_reason encoding_reasons[] = {
    [GP_DATA_TOO_LONG] = GP_R_DATA_TOO_LONG,
    [GP_WRONG_DIGEST_LENGTH] = GP_R_WRONG_DIGEST_LENGTH,
    [GP_SALT_TOO_LONG] = GP_R_SALT_LENGTH,
    [GP_ENCODING_FAILED] = GP_R_OPERATION_FAILED,
};

/* GP_DELEGATE: a padding or digest that is left to the default provider. */
enum { GP_FAILED = 0, GP_READY = 1, GP_DELEGATE = 2 };

static int encode(const signature_context *context, const settings *settings, uint8_t *encoded, const uint8_t *data,
                  size_t data_size)
{
    const gp_key *key = context->key->key;
    enum gp_encoded result = GP_ENCODED;
    switch (settings->padding) {
    case RSA_PKCS1_PADDING:
        result = gp_pkcs1_encode(encoded, key->bytes, settings->md, data, data_size);
        break;
    case RSA_PKCS1_PSS_PADDING:
        result = gp_pss_encode(context->provider->libctx, encoded, key->bytes, key->bits, settings->md,
                               settings->mgf1_md, settings->salt_length, data, data_size);
        break;
    case RSA_NO_PADDING:
        if (settings->md != NULL || data_size != key->bytes || !gp_key_in_range(key, data))
            return GP_DELEGATE; /* to be refused with OpenSSL's own words */
        memcpy(encoded, data, data_size);
        break;
    default:
        return GP_DELEGATE;
    }
    if (result == GP_ENCODED)
        return GP_READY;
    if (result == GP_NO_DIGEST_INFO)
        return GP_DELEGATE;
    GP_RAISE(context->provider, encoding_reasons[result]);
    return GP_FAILED;
}

static int sign(void *argument, uint8_t *signature, size_t *signature_size, size_t capacity, const uint8_t *data,
                size_t data_size)
{
    signature_context *context = argument;
    settings settings;
    if (context->inner == NULL) {
        GP_RAISE(context->provider, GP_R_NO_KEY);
        return 0;
    }
    size_t size = context->key->key->bytes;
    if (signature == NULL) {
        *signature_size = size;
        return 1;
    }
    if (capacity < size) {
        GP_RAISE(context->provider, GP_R_BUFFER_TOO_SMALL);
        return 0;
    }
    uint8_t *encoded = OPENSSL_malloc(size);
    if (encoded == NULL) {
        GP_RAISE(context->provider, GP_R_OUT_OF_MEMORY);
        return 0;
    }
    int result = get_settings(context, &settings) ? encode(context, &settings, encoded, data, data_size) : GP_FAILED;
    int ok = 0;
    settings_free(&settings);
    if (result == GP_READY) {
        ok = gp_rsa_key_private_op(context->key, encoded, signature);
        *signature_size = size;
    } else if (result == GP_DELEGATE) {
        *signature_size = capacity;
        ok = EVP_PKEY_sign(context->inner, signature, signature_size, data, data_size) == 1;
    }
    OPENSSL_clear_free(encoded, size);
    return ok;
}

static int digest_update(void *argument, const uint8_t *data, size_t size)
{
    signature_context *context = argument;
    if (context->hash == NULL || context->md == NULL) {
        GP_RAISE(context->provider, GP_R_NO_KEY);
        return 0;
    }
    if (context->hash_finished) {
        context->hash_finished = 0;
        if (EVP_DigestInit_ex2(context->hash, context->md, NULL) != 1)
            return 0;
    }
    return EVP_DigestUpdate(context->hash, data, size) == 1;
}

static int digest_finish(signature_context *context, uint8_t digest[EVP_MAX_MD_SIZE], unsigned int *size)
{
    if (!digest_update(context, NULL, 0))
        return 0;
    context->hash_finished = 1;
    return EVP_DigestFinal_ex(context->hash, digest, size) == 1;
}

static int digest_sign_final(void *argument, uint8_t *signature, size_t *signature_size, size_t capacity)
{
    uint8_t digest[EVP_MAX_MD_SIZE];
    unsigned int size = 0;
    return (signature == NULL || digest_finish(argument, digest, &size))
           && sign(argument, signature, signature_size, capacity, digest, size);
}

static int digest_sign(void *argument, uint8_t *signature, size_t *signature_size, size_t capacity, const uint8_t *data,
                       size_t size)
{
    return (signature == NULL || digest_update(argument, data, size))
           && digest_sign_final(argument, signature, signature_size, capacity);
}

/* ---- verifying ---- */

static int verify(void *argument, const uint8_t *signature, size_t signature_size, const uint8_t *data, size_t data_size)
{
    signature_context *context = argument;
    return context->inner != NULL && EVP_PKEY_verify(context->inner, signature, signature_size, data, data_size) == 1;
}

static int digest_verify_final(void *argument, const uint8_t *signature, size_t signature_size)
{
    uint8_t digest[EVP_MAX_MD_SIZE];
    unsigned int size;
    return digest_finish(argument, digest, &size) && verify(argument, signature, signature_size, digest, size);
}

static int digest_verify(void *argument, const uint8_t *signature, size_t signature_size, const uint8_t *data,
                         size_t size)
{
    return digest_update(argument, data, size) && digest_verify_final(argument, signature, signature_size);
}

static int verify_recover(void *argument, uint8_t *data, size_t *data_size, size_t capacity, const uint8_t *signature,
                          size_t signature_size)
{
    signature_context *context = argument;
    *data_size = capacity;
    return context->inner != NULL
           && EVP_PKEY_verify_recover(context->inner, data, data_size, signature, signature_size) == 1;
}

const OSSL_DISPATCH gp_rsa_signature_functions[] = {
    {OSSL_FUNC_SIGNATURE_NEWCTX, (void (*)(void))context_new},
    {OSSL_FUNC_SIGNATURE_FREECTX, (void (*)(void))context_free},
    {OSSL_FUNC_SIGNATURE_DUPCTX, (void (*)(void))context_dup},
    {OSSL_FUNC_SIGNATURE_SIGN_INIT, (void (*)(void))sign_init},
    {OSSL_FUNC_SIGNATURE_SIGN, (void (*)(void))sign},
    {OSSL_FUNC_SIGNATURE_VERIFY_INIT, (void (*)(void))verify_init},
    {OSSL_FUNC_SIGNATURE_VERIFY, (void (*)(void))verify},
    {OSSL_FUNC_SIGNATURE_VERIFY_RECOVER_INIT, (void (*)(void))verify_recover_init},
    {OSSL_FUNC_SIGNATURE_VERIFY_RECOVER, (void (*)(void))verify_recover},
    {OSSL_FUNC_SIGNATURE_DIGEST_SIGN_INIT, (void (*)(void))digest_sign_init},
    {OSSL_FUNC_SIGNATURE_DIGEST_SIGN_UPDATE, (void (*)(void))digest_update},
    {OSSL_FUNC_SIGNATURE_DIGEST_SIGN_FINAL, (void (*)(void))digest_sign_final},
    {OSSL_FUNC_SIGNATURE_DIGEST_SIGN, (void (*)(void))digest_sign},
    {OSSL_FUNC_SIGNATURE_DIGEST_VERIFY_INIT, (void (*)(void))digest_verify_init},
    {OSSL_FUNC_SIGNATURE_DIGEST_VERIFY_UPDATE, (void (*)(void))digest_update},
    {OSSL_FUNC_SIGNATURE_DIGEST_VERIFY_FINAL, (void (*)(void))digest_verify_final},
    {OSSL_FUNC_SIGNATURE_DIGEST_VERIFY, (void (*)(void))digest_verify},
    {OSSL_FUNC_SIGNATURE_GET_CTX_PARAMS, (void (*)(void))get_context_params},
    {OSSL_FUNC_SIGNATURE_GETTABLE_CTX_PARAMS, (void (*)(void))gettable_context_params},
    {OSSL_FUNC_SIGNATURE_SET_CTX_PARAMS, (void (*)(void))set_context_params},
    {OSSL_FUNC_SIGNATURE_SETTABLE_CTX_PARAMS, (void (*)(void))settable_context_params},
    {OSSL_FUNC_SIGNATURE_GET_CTX_MD_PARAMS, (void (*)(void))get_hash_params},
    {OSSL_FUNC_SIGNATURE_GETTABLE_CTX_MD_PARAMS, (void (*)(void))gettable_hash_params},
    {OSSL_FUNC_SIGNATURE_SET_CTX_MD_PARAMS, (void (*)(void))set_hash_params},
    {OSSL_FUNC_SIGNATURE_SETTABLE_CTX_MD_PARAMS, (void (*)(void))settable_hash_params},
    {0, NULL},
};
