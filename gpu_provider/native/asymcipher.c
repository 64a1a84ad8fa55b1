/* RSA encryption. The default provider's operation context, `inner`, receives and checks all parameters and encrypts;
 * decryption goes to gp_rsa_key_private_op() and is decoded in padding.c. */
#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/params.h>
#include <openssl/rsa.h>
#include <string.h>

#include "padding.h"
#include "provider.h"

#define NAME_BYTES 64
#define IMPLICIT_REJECTION "implicit-rejection" /* OSSL_ASYM_CIPHER_PARAM_IMPLICIT_REJECTION since OpenSSL 3.2 */

typedef int inner_init_fn(EVP_PKEY_CTX *inner);

typedef struct cipher_context {
    gp_provider *provider;
    gp_rsa_key *key;
    EVP_PKEY_CTX *inner; /* NULL until an init function was called */
    inner_init_fn *inner_init;
} cipher_context;

/* What the inner context holds. Empty names: not set. */
typedef struct settings {
    int padding;
    char oaep_digest[NAME_BYTES];
    char mgf1_digest[NAME_BYTES];
    uint8_t *label; /* the inner context's */
    size_t label_size;
    unsigned int client_version;
    unsigned int negotiated_version;
} settings;

static void *context_new(void *provider)
{
    cipher_context *context = OPENSSL_zalloc(sizeof(*context));
    if (context == NULL) {
        GP_RAISE(provider, GP_R_OUT_OF_MEMORY);
        return NULL;
    }
    context->provider = provider;
    return context;
}

static void context_free(void *argument)
{
    cipher_context *context = argument;
    if (context != NULL) {
        EVP_PKEY_CTX_free(context->inner);
        gp_rsa_key_free(context->key);
        OPENSSL_free(context);
    }
}

/* ---- parameters ---- */

static int get_context_params(void *argument, OSSL_PARAM params[])
{
    cipher_context *context = argument;
    return context->inner != NULL && EVP_PKEY_CTX_get_params(context->inner, params) > 0;
}

static const OSSL_PARAM *gettable_context_params(void *argument, void *provider)
{
    (void)argument;
    return EVP_ASYM_CIPHER_gettable_ctx_params(((gp_provider *)provider)->cipher);
}

static const OSSL_PARAM *settable_context_params(void *argument, void *provider)
{
    (void)argument;
    return EVP_ASYM_CIPHER_settable_ctx_params(((gp_provider *)provider)->cipher);
}

static int set_context_params(void *argument, const OSSL_PARAM params[])
{
    cipher_context *context = argument;
    unsigned int reject = 1;
    if (params == NULL)
        return 1;
    if (context->inner == NULL) {
        GP_RAISE(context->provider, GP_R_NO_KEY);
        return 0;
    }
    const OSSL_PARAM *rejection = OSSL_PARAM_locate_const(params, IMPLICIT_REJECTION);
    if (rejection != NULL && (!OSSL_PARAM_get_uint(rejection, &reject) || reject == 0)) {
        GP_RAISE(context->provider, GP_R_IMPLICIT_REJECTION_REQUIRED);
        return 0;
    }
    /* Only read; the const is missing. */
    return EVP_PKEY_CTX_set_params(context->inner, (OSSL_PARAM *)params) > 0;
}

static int get_settings(const cipher_context *context, settings *settings)
{
    memset(settings, 0, sizeof(*settings));
    OSSL_PARAM params[] = {
        OSSL_PARAM_construct_int(OSSL_ASYM_CIPHER_PARAM_PAD_MODE, &settings->padding),
        OSSL_PARAM_construct_utf8_string(OSSL_ASYM_CIPHER_PARAM_OAEP_DIGEST, settings->oaep_digest, NAME_BYTES),
        OSSL_PARAM_construct_utf8_string(OSSL_ASYM_CIPHER_PARAM_MGF1_DIGEST, settings->mgf1_digest, NAME_BYTES),
        OSSL_PARAM_construct_octet_ptr(OSSL_ASYM_CIPHER_PARAM_OAEP_LABEL, (void **)&settings->label, 0),
        OSSL_PARAM_construct_uint(OSSL_ASYM_CIPHER_PARAM_TLS_CLIENT_VERSION, &settings->client_version),
        OSSL_PARAM_construct_uint(OSSL_ASYM_CIPHER_PARAM_TLS_NEGOTIATED_VERSION, &settings->negotiated_version),
        OSSL_PARAM_construct_end(),
    };
    if (EVP_PKEY_CTX_get_params(context->inner, params) <= 0)
        return 0;
    settings->label_size = settings->label != NULL ? params[3].return_size : 0;
    return 1;
}

/* Not by EVP_PKEY_CTX_dup(): in OpenSSL 3.0 both copies of the inner context would free the same OAEP label. */
static int copy_settings(const cipher_context *from, cipher_context *to)
{
    settings settings;
    OSSL_PARAM params[7], *next = params;
    if (!get_settings(from, &settings))
        return 0;
    *next++ = OSSL_PARAM_construct_int(OSSL_ASYM_CIPHER_PARAM_PAD_MODE, &settings.padding);
    if (settings.oaep_digest[0] != '\0')
        *next++ = OSSL_PARAM_construct_utf8_string(OSSL_ASYM_CIPHER_PARAM_OAEP_DIGEST, settings.oaep_digest, 0);
    if (settings.mgf1_digest[0] != '\0')
        *next++ = OSSL_PARAM_construct_utf8_string(OSSL_ASYM_CIPHER_PARAM_MGF1_DIGEST, settings.mgf1_digest, 0);
    if (settings.label_size != 0) {
        *next++ = OSSL_PARAM_construct_octet_string(OSSL_ASYM_CIPHER_PARAM_OAEP_LABEL, settings.label,
                                                    settings.label_size);
    }
    *next++ = OSSL_PARAM_construct_uint(OSSL_ASYM_CIPHER_PARAM_TLS_CLIENT_VERSION, &settings.client_version);
    *next++ = OSSL_PARAM_construct_uint(OSSL_ASYM_CIPHER_PARAM_TLS_NEGOTIATED_VERSION, &settings.negotiated_version);
    *next = OSSL_PARAM_construct_end();
    return set_context_params(to, params);
}

/* ---- starting ---- */

/* key NULL: the one set before. */
static int start(cipher_context *context, void *key, const OSSL_PARAM params[], inner_init_fn *inner_init)
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
    context->inner_init = inner_init;
    context->inner = gp_rsa_key_inner_context(context->key);
    return context->inner != NULL && inner_init(context->inner) == 1 && set_context_params(context, params);
}

static int encrypt_init(void *context, void *key, const OSSL_PARAM params[])
{
    return start(context, key, params, EVP_PKEY_encrypt_init);
}

static int decrypt_init(void *argument, void *key, const OSSL_PARAM params[])
{
    cipher_context *context = argument;
    return start(context, key, params, EVP_PKEY_decrypt_init) && gp_rsa_key_may_compute(context->key);
}

static void *context_dup(void *argument)
{
    const cipher_context *from = argument;
    cipher_context *context = context_new(from->provider);
    if (context != NULL && from->inner != NULL
        && !(start(context, from->key, NULL, from->inner_init) && copy_settings(from, context))) {
        context_free(context);
        return NULL;
    }
    return context;
}

/* ---- the operations ---- */

static int encrypt(void *argument, uint8_t *out, size_t *out_size, size_t capacity, const uint8_t *in, size_t in_size)
{
    cipher_context *context = argument;
    *out_size = capacity;
    return context->inner != NULL && EVP_PKEY_encrypt(context->inner, out, out_size, in, in_size) == 1;
}

/* The digests of OAEP, RFC 8017: SHA-1 where none is set, and MGF1 with the same one. */
static int decode_oaep(const cipher_context *context, const settings *settings, uint8_t *encoded, uint8_t *message,
                       size_t *message_size)
{
    OSSL_LIB_CTX *libctx = context->provider->libctx;
    const char *digest = settings->oaep_digest[0] != '\0' ? settings->oaep_digest : "SHA1";
    EVP_MD *md = EVP_MD_fetch(libctx, digest, NULL);
    EVP_MD *mgf1_md = EVP_MD_fetch(libctx, settings->mgf1_digest[0] != '\0' ? settings->mgf1_digest : digest, NULL);
    int ok = md != NULL && mgf1_md != NULL
             && gp_oaep_decode(md, mgf1_md, settings->label, settings->label_size, encoded, context->key->key->bytes,
                            message, message_size);
    EVP_MD_free(md);
    EVP_MD_free(mgf1_md);
    return ok;
}

static int decode(const cipher_context *context, const settings *settings, const uint8_t *ciphertext, uint8_t *encoded,
                  uint8_t *message, size_t *message_size)
{
    OSSL_LIB_CTX *libctx = context->provider->libctx;
    size_t size = context->key->key->bytes;
    switch (settings->padding) {
    case RSA_NO_PADDING:
        memcpy(message, encoded, size);
        *message_size = size;
        return 1;
    case RSA_PKCS1_OAEP_PADDING:
        return decode_oaep(context, settings, encoded, message, message_size);
    case RSA_PKCS1_WITH_TLS_PADDING:
        *message_size = GP_PREMASTER_BYTES;
        return gp_premaster_decode(libctx, encoded, size, settings->client_version, settings->negotiated_version,
                                   message);
    default:
        return gp_pkcs1_decode(libctx, context->key->rejection_key, ciphertext, encoded, size, message, message_size);
    }
}

/* What is wrong with a call as anybody can see it; 0 if nothing is. */
static enum gp_reason public_error(const cipher_context *context, const settings *settings, size_t capacity,
                                   const uint8_t *ciphertext, size_t ciphertext_size)
{
    const gp_key *key = context->key->key;
    int tls = settings->padding == RSA_PKCS1_WITH_TLS_PADDING;
    switch (settings->padding) {
    case RSA_NO_PADDING:
    case RSA_PKCS1_OAEP_PADDING:
    case RSA_PKCS1_PADDING:
    case RSA_PKCS1_WITH_TLS_PADDING:
        break;
    default:
        return GP_R_UNSUPPORTED_PADDING;
    }
    /* As in the default provider, the buffer must hold the longest message, so that its size tells nothing. */
    if (capacity < (tls ? GP_PREMASTER_BYTES : key->bytes))
        return GP_R_BUFFER_TOO_SMALL;
    if (key->bytes < GP_PKCS1_OVERHEAD + (tls ? GP_PREMASTER_BYTES : 0))
        return GP_R_KEY_TOO_SMALL;
    if (tls && settings->client_version == 0)
        return GP_R_TLS_VERSION_MISSING;
    if (ciphertext_size != key->bytes)
        return GP_R_WRONG_LENGTH;
    return gp_key_in_range(key, ciphertext) ? 0 : GP_R_DATA_NOT_BELOW_MODULUS;
}

static int decrypt(void *argument, uint8_t *message, size_t *message_size, size_t capacity, const uint8_t *ciphertext,
                   size_t ciphertext_size)
{
    cipher_context *context = argument;
    settings settings;
    if (context->inner == NULL) {
        GP_RAISE(context->provider, GP_R_NO_KEY);
        return 0;
    }
    if (!get_settings(context, &settings))
        return 0;
    size_t size = context->key->key->bytes;
    if (message == NULL) {
        *message_size = settings.padding == RSA_PKCS1_WITH_TLS_PADDING ? GP_PREMASTER_BYTES : size;
        return 1;
    }
    enum gp_reason reason = public_error(context, &settings, capacity, ciphertext, ciphertext_size);
    if (reason != 0) {
        GP_RAISE(context->provider, reason);
        return 0;
    }
    uint8_t *encoded = OPENSSL_malloc(size);
    if (encoded == NULL) {
        GP_RAISE(context->provider, GP_R_OUT_OF_MEMORY);
        return 0;
    }
    int ok = gp_rsa_key_private_op(context->key, ciphertext, encoded);
    if (ok && !decode(context, &settings, ciphertext, encoded, message, message_size)) {
        GP_RAISE(context->provider, GP_R_DECRYPTION_FAILED);
        ok = 0;
    }
    OPENSSL_clear_free(encoded, size);
    return ok;
}

const OSSL_DISPATCH gp_rsa_cipher_functions[] = {
    {OSSL_FUNC_ASYM_CIPHER_NEWCTX, (void (*)(void))context_new},
    {OSSL_FUNC_ASYM_CIPHER_FREECTX, (void (*)(void))context_free},
    {OSSL_FUNC_ASYM_CIPHER_DUPCTX, (void (*)(void))context_dup},
    {OSSL_FUNC_ASYM_CIPHER_ENCRYPT_INIT, (void (*)(void))encrypt_init},
    {OSSL_FUNC_ASYM_CIPHER_ENCRYPT, (void (*)(void))encrypt},
    {OSSL_FUNC_ASYM_CIPHER_DECRYPT_INIT, (void (*)(void))decrypt_init},
    {OSSL_FUNC_ASYM_CIPHER_DECRYPT, (void (*)(void))decrypt},
    {OSSL_FUNC_ASYM_CIPHER_GET_CTX_PARAMS, (void (*)(void))get_context_params},
    {OSSL_FUNC_ASYM_CIPHER_GETTABLE_CTX_PARAMS, (void (*)(void))gettable_context_params},
    {OSSL_FUNC_ASYM_CIPHER_SET_CTX_PARAMS, (void (*)(void))set_context_params},
    {OSSL_FUNC_ASYM_CIPHER_SETTABLE_CTX_PARAMS, (void (*)(void))settable_context_params},
    {0, NULL},
};
