/* RSA encryption. The default provider's operation context, `inner`, receives all parameters, encrypts, and refuses
 * what is to be refused. Decryption goes to gp_private_op() and is decoded in padding.c. */
#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/err.h>
#include <openssl/params.h>
#include <openssl/rsa.h>
#include <string.h>

#include "provider/padding.h"
#include "provider/private_op.h"
#include "provider/provider.h"

#define NAME_BYTES 64
#define REJECTION_KEY_BYTES 32
/* Since OpenSSL 3.2, and in what some distributions call 3.0: */
#define IMPLICIT_REJECTION "implicit-rejection" /* OSSL_ASYM_CIPHER_PARAM_IMPLICIT_REJECTION */
#define NO_IMPLICIT_REJECT_PADDING 8            /* RSA_PKCS1_NO_IMPLICIT_REJECT_PADDING */

typedef struct cipher_context {
    gp_provider *provider;
    const gp_default_rsa *rsa; /* whose context `inner` is */
    void *inner;
    gp_rsa_key *key;
    OSSL_FUNC_asym_cipher_decrypt_init_fn *inner_init; /* the last one called; NULL: none */
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
    unsigned int implicit_rejection;
    int has_implicit_rejection; /* the default provider of this OpenSSL */
} settings;

/* Owns inner in any case. NULL also if inner is. */
static cipher_context *new_context(gp_provider *provider, const gp_default_rsa *rsa, void *inner)
{
    if (inner == NULL)
        return NULL;
    cipher_context *context = OPENSSL_zalloc(sizeof(*context));
    if (context == NULL) {
        GP_RAISE(provider, GP_R_OUT_OF_MEMORY);
        rsa->asym_cipher.freectx(inner);
        return NULL;
    }
    context->provider = provider;
    context->rsa = rsa;
    context->inner = inner;
    return context;
}

static void context_free(void *argument)
{
    cipher_context *context = argument;
    if (context != NULL) {
        context->rsa->asym_cipher.freectx(context->inner);
        gp_rsa_key_free(context->key);
        OPENSSL_free(context);
    }
}

static void *context_new(void *provider)
{
    const gp_default_rsa *rsa = gp_provider_default_rsa(provider);
    return rsa != NULL ? new_context(provider, rsa, rsa->asym_cipher.newctx(rsa->context)) : NULL;
}

/* ---- parameters ---- */

static int get_context_params(void *argument, OSSL_PARAM params[])
{
    const cipher_context *context = argument;
    return context->rsa->asym_cipher.get_ctx_params(context->inner, params);
}

static const OSSL_PARAM *gettable_context_params(void *argument, void *provider)
{
    const cipher_context *context = argument;
    const gp_default_rsa *rsa = context != NULL ? context->rsa : gp_provider_default_rsa(provider);
    return rsa != NULL ? rsa->asym_cipher.gettable_ctx_params(context != NULL ? context->inner : NULL, rsa->context)
                       : NULL;
}

static const OSSL_PARAM *settable_context_params(void *argument, void *provider)
{
    const cipher_context *context = argument;
    const gp_default_rsa *rsa = context != NULL ? context->rsa : gp_provider_default_rsa(provider);
    return rsa != NULL ? rsa->asym_cipher.settable_ctx_params(context != NULL ? context->inner : NULL, rsa->context)
                       : NULL;
}

/* Whether the setting in openssl.cnf allows what the program asks for. */
static int may_set(const cipher_context *context, const OSSL_PARAM params[])
{
    unsigned int reject = 1;
    const OSSL_PARAM *rejection = params != NULL ? OSSL_PARAM_locate_const(params, IMPLICIT_REJECTION) : NULL;
    if (!context->provider->always_reject_implicitly || rejection == NULL
        || (OSSL_PARAM_get_uint(rejection, &reject) && reject != 0))
        return 1;
    GP_RAISE(context->provider, GP_R_IMPLICIT_REJECTION_REQUIRED);
    return 0;
}

static int set_context_params(void *argument, const OSSL_PARAM params[])
{
    const cipher_context *context = argument;
    return may_set(context, params) ? context->rsa->asym_cipher.set_ctx_params(context->inner, params) : 0;
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
        OSSL_PARAM_construct_uint(IMPLICIT_REJECTION, &settings->implicit_rejection),
        OSSL_PARAM_construct_end(),
    };
    if (!get_context_params((void *)context, params))
        return 0;
    settings->label_size = settings->label != NULL ? params[3].return_size : 0;
    settings->has_implicit_rejection = OSSL_PARAM_modified(&params[6]);
    return 1;
}

/* ---- starting ---- */

static int start(cipher_context *context, gp_rsa_key *key, const OSSL_PARAM params[],
                 OSSL_FUNC_asym_cipher_decrypt_init_fn *inner_init)
{
    if (!may_set(context, params))
        return 0;
    if (key != NULL) {
        gp_rsa_key_up_ref(key);
        gp_rsa_key_free(context->key);
        context->key = key;
    }
    context->inner_init = inner_init;
    return inner_init(context->inner, key != NULL ? key->inner : NULL, params);
}

static int encrypt_init(void *argument, void *key, const OSSL_PARAM params[])
{
    cipher_context *context = argument;
    return start(context, key, params, context->rsa->asym_cipher.encrypt_init);
}

static int decrypt_init(void *argument, void *key, const OSSL_PARAM params[])
{
    cipher_context *context = argument;
    return start(context, key, params, context->rsa->asym_cipher.decrypt_init);
}

/* Old versions' own copy of a context shares the OAEP label, which is then freed twice. */
static void *copy_with_label(const cipher_context *from, settings *settings)
{
    const OSSL_PARAM params[] = {
        OSSL_PARAM_construct_int(OSSL_ASYM_CIPHER_PARAM_PAD_MODE, &settings->padding),
        OSSL_PARAM_construct_octet_string(OSSL_ASYM_CIPHER_PARAM_OAEP_LABEL, settings->label, settings->label_size),
        OSSL_PARAM_construct_uint(OSSL_ASYM_CIPHER_PARAM_TLS_CLIENT_VERSION, &settings->client_version),
        OSSL_PARAM_construct_uint(OSSL_ASYM_CIPHER_PARAM_TLS_NEGOTIATED_VERSION, &settings->negotiated_version),
        OSSL_PARAM_construct_uint(IMPLICIT_REJECTION, &settings->implicit_rejection),
        OSSL_PARAM_construct_end(),
    };
    const OSSL_PARAM oaep[] = {
        OSSL_PARAM_construct_utf8_string(OSSL_ASYM_CIPHER_PARAM_OAEP_DIGEST, settings->oaep_digest, 0),
        OSSL_PARAM_construct_utf8_string(OSSL_ASYM_CIPHER_PARAM_MGF1_DIGEST, settings->mgf1_digest, 0),
        OSSL_PARAM_construct_end(),
    };
    void *inner = from->rsa->asym_cipher.newctx(from->rsa->context);
    if (inner != NULL
        && ((from->inner_init != NULL && from->inner_init(inner, from->key->inner, NULL) <= 0)
            || (settings->oaep_digest[0] != '\0' && from->rsa->asym_cipher.set_ctx_params(inner, oaep) <= 0)
            || from->rsa->asym_cipher.set_ctx_params(inner, params) <= 0)) {
        from->rsa->asym_cipher.freectx(inner);
        inner = NULL;
    }
    return inner;
}

static void *context_dup(void *argument)
{
    const cipher_context *from = argument;
    settings settings;
    if (!get_settings(from, &settings))
        return NULL;
    void *inner =
        settings.label_size != 0 ? copy_with_label(from, &settings) : from->rsa->asym_cipher.dupctx(from->inner);
    cipher_context *context = new_context(from->provider, from->rsa, inner);
    if (context == NULL)
        return NULL;
    context->inner_init = from->inner_init;
    if (from->key != NULL)
        context->key = gp_rsa_key_up_ref(from->key);
    return context;
}

/* ---- the operations ---- */

static int encrypt(void *argument, uint8_t *out, size_t *out_size, size_t capacity, const uint8_t *in, size_t in_size)
{
    const cipher_context *context = argument;
    return context->rsa->asym_cipher.encrypt(context->inner, out, out_size, capacity, in, in_size);
}

typedef struct decryption {
    const cipher_context *context;
    settings settings;
    EVP_MD *md; /* of OAEP, like the next; NULL otherwise */
    EVP_MD *mgf1_md;
    size_t size;      /* of each of the following */
    uint8_t *number;  /* the ciphertext */
    uint8_t *encoded; /* what it decrypts to */
} decryption;

static EVP_MD *fetch_digest(const cipher_context *context, const char *name)
{
    ERR_set_mark();
    EVP_MD *md = EVP_MD_fetch(context->rsa->libctx, name, NULL);
    ERR_pop_to_mark();
    if (md != NULL && EVP_MD_get_size(md) <= 0) {
        EVP_MD_free(md);
        md = NULL;
    }
    return md;
}

/* RFC 8017: SHA-1 where no digest is set, and MGF1 with the same one. */
static int fetch_digests(decryption *decryption)
{
    const settings *settings = &decryption->settings;
    const char *digest = settings->oaep_digest[0] != '\0' ? settings->oaep_digest : "SHA1";
    decryption->md = fetch_digest(decryption->context, digest);
    decryption->mgf1_md =
        fetch_digest(decryption->context, settings->mgf1_digest[0] != '\0' ? settings->mgf1_digest : digest);
    return decryption->md != NULL && decryption->mgf1_md != NULL;
}

/* As in the default provider, the buffer must hold the longest message, so that its size tells nothing. */
static int padding_is_ours(decryption *decryption, size_t capacity)
{
    const settings *settings = &decryption->settings;
    size_t size = decryption->size;
    switch (settings->padding) {
    case RSA_PKCS1_WITH_TLS_PADDING:
        return capacity >= GP_PREMASTER_BYTES && size >= GP_PKCS1_OVERHEAD + GP_PREMASTER_BYTES
               && settings->client_version != 0;
    case RSA_PKCS1_OAEP_PADDING:
        return capacity >= size && fetch_digests(decryption);
    case NO_IMPLICIT_REJECT_PADDING:
        return settings->has_implicit_rejection && capacity >= size && size >= GP_PKCS1_OVERHEAD;
    case RSA_PKCS1_PADDING:
        return capacity >= size && size >= GP_PKCS1_OVERHEAD;
    case RSA_NO_PADDING:
        return capacity >= size;
    default:
        return 0;
    }
}

/* 1 if everything about the decryption that anybody may see is as it should be. If not, the default provider refuses
 * it. */
static int prepare(decryption *decryption, size_t capacity, const uint8_t *ciphertext, size_t ciphertext_size)
{
    const gp_rsa_key *key = decryption->context->key;
    if (key == NULL || key->modulus == NULL || !get_settings(decryption->context, &decryption->settings))
        return 0;
    decryption->size = key->bytes;
    /* Whether an empty one is the number 0 depends on the version of OpenSSL. */
    if (ciphertext_size == 0 || ciphertext_size > decryption->size || !padding_is_ours(decryption, capacity))
        return 0;
    decryption->number = OPENSSL_zalloc(2 * decryption->size);
    if (decryption->number == NULL)
        return 0;
    decryption->encoded = decryption->number + decryption->size;
    /* A shorter one is a smaller number: some programs cut leading zeros off. */
    memcpy(decryption->encoded - ciphertext_size, ciphertext, ciphertext_size);
    return memcmp(decryption->number, key->modulus, decryption->size) < 0;
}

static int decode_oaep(const decryption *decryption, uint8_t *message, size_t *message_size)
{
    const settings *settings = &decryption->settings;
    if (gp_oaep_decode(decryption->md, decryption->mgf1_md, settings->label, settings->label_size, decryption->encoded,
                       decryption->size, message, message_size))
        return 1;
    ERR_raise(ERR_LIB_RSA, RSA_R_OAEP_DECODING_ERROR);
    return 0;
}

static int decode_premaster(const decryption *decryption, uint8_t *message, size_t *message_size)
{
    const cipher_context *context = decryption->context;
    *message_size = GP_PREMASTER_BYTES;
    if (gp_premaster_decode(context->rsa->libctx, decryption->encoded, decryption->size,
                            decryption->settings.client_version, decryption->settings.negotiated_version, message))
        return 1;
    GP_RAISE(context->provider, GP_R_OPERATION_FAILED);
    return 0;
}

static int decode_pkcs1(const decryption *decryption, uint8_t *message, size_t *message_size)
{
    if (gp_pkcs1_decode(decryption->encoded, decryption->size, message, message_size))
        return 1;
    ERR_raise(ERR_LIB_RSA, RSA_R_PKCS_DECODING_ERROR);
    ERR_raise(ERR_LIB_RSA, RSA_R_PADDING_CHECK_FAILED);
    return 0;
}

/* What synthetic messages depend on besides the ciphertext, key->bytes of it: d; or, where only the service has that, a
 * signature that nobody else can make, and that nothing else asks for. */
static int rejection_secret(gp_rsa_key *key, uint8_t *secret)
{
    static const uint8_t label[] = "gpu-provider implicit rejection";
    uint8_t *encoded;
    int ok;
    if (!gp_rsa_key_is_of_service(key))
        return gp_rsa_key_private_exponent(key, secret);
    encoded = OPENSSL_malloc(key->bytes);
    ok = encoded != NULL && gp_pkcs1_encode(encoded, key->bytes, NULL, label, sizeof(label))
         && gp_private_op(key, encoded, secret);
    OPENSSL_free(encoded);
    return ok;
}

static int decode_pkcs1_implicitly(const decryption *decryption, uint8_t *message, size_t *message_size)
{
    const cipher_context *context = decryption->context;
    size_t size = decryption->size;
    uint8_t *secret = OPENSSL_malloc(size), rejection_key[REJECTION_KEY_BYTES];
    int ok = secret != NULL && rejection_secret(context->key, secret)
             && EVP_Q_digest(context->rsa->libctx, "SHA2-256", NULL, secret, size, rejection_key, NULL)
             && gp_pkcs1_decode_implicitly(context->rsa->libctx, rejection_key, decryption->number, decryption->encoded,
                                           size, message, message_size);
    OPENSSL_clear_free(secret, size);
    OPENSSL_cleanse(rejection_key, sizeof(rejection_key));
    if (!ok)
        GP_RAISE(context->provider, GP_R_OPERATION_FAILED);
    return ok;
}

static int rejects_implicitly(const decryption *decryption)
{
    return decryption->context->provider->always_reject_implicitly
           || (decryption->settings.padding == RSA_PKCS1_PADDING && decryption->settings.implicit_rejection);
}

static int decode(const decryption *decryption, uint8_t *message, size_t *message_size)
{
    switch (decryption->settings.padding) {
    case RSA_NO_PADDING:
        memcpy(message, decryption->encoded, decryption->size);
        *message_size = decryption->size;
        return 1;
    case RSA_PKCS1_OAEP_PADDING:
        return decode_oaep(decryption, message, message_size);
    case RSA_PKCS1_WITH_TLS_PADDING:
        return decode_premaster(decryption, message, message_size);
    default:
        return rejects_implicitly(decryption) ? decode_pkcs1_implicitly(decryption, message, message_size)
                                              : decode_pkcs1(decryption, message, message_size);
    }
}

static int decrypt(void *argument, uint8_t *message, size_t *message_size, size_t capacity, const uint8_t *ciphertext,
                   size_t ciphertext_size)
{
    const cipher_context *context = argument;
    decryption decryption = {.context = context};
    int ok;
    if (message != NULL && prepare(&decryption, capacity, ciphertext, ciphertext_size))
        ok = gp_private_op(context->key, decryption.number, decryption.encoded)
             && decode(&decryption, message, message_size);
    else
        ok = context->rsa->asym_cipher.decrypt(context->inner, message, message_size, capacity, ciphertext,
                                               ciphertext_size);
    EVP_MD_free(decryption.md);
    EVP_MD_free(decryption.mgf1_md);
    OPENSSL_clear_free(decryption.number, 2 * decryption.size);
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
