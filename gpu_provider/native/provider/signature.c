/* RSA signatures. The default provider's operation context, `inner`, receives all parameters and does everything but
 * signing with PKCS#1 v1.5, PSS or no padding: that is encoded here and goes to gp_private_op(). Where there is
 * something to refuse, the default provider does that too. */
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

typedef struct signature_context {
    gp_provider *provider;
    const gp_default_rsa *rsa; /* whose context `inner` is */
    void *inner;
    gp_rsa_key *key;
    EVP_MD_CTX *hash; /* the message so far, while it is being signed; NULL otherwise */
} signature_context;

/* Owns inner in any case. NULL also if inner is. */
static signature_context *new_context(gp_provider *provider, const gp_default_rsa *rsa, void *inner)
{
    if (inner == NULL)
        return NULL;
    signature_context *context = OPENSSL_zalloc(sizeof(*context));
    if (context == NULL) {
        GP_RAISE(provider, GP_R_OUT_OF_MEMORY);
        rsa->signature.freectx(inner);
        return NULL;
    }
    context->provider = provider;
    context->rsa = rsa;
    context->inner = inner;
    return context;
}

static void context_free(void *argument)
{
    signature_context *context = argument;
    if (context != NULL) {
        context->rsa->signature.freectx(context->inner);
        EVP_MD_CTX_free(context->hash);
        gp_rsa_key_free(context->key);
        OPENSSL_free(context);
    }
}

/* The default provider looks digests up with the query that chose the signature's provider. One that only we satisfy
 * would leave it none. */
static const char *digest_query(const gp_default_rsa *rsa, const char *query)
{
    if (query == NULL)
        return NULL;
    ERR_set_mark();
    EVP_MD *md = EVP_MD_fetch(rsa->libctx, "SHA2-256", query);
    ERR_pop_to_mark();
    EVP_MD_free(md);
    return md != NULL ? query : NULL;
}

static void *context_new(void *provider, const char *property_query)
{
    const gp_default_rsa *rsa = gp_provider_default_rsa(provider);
    if (rsa == NULL)
        return NULL;
    return new_context(provider, rsa, rsa->signature.newctx(rsa->context, digest_query(rsa, property_query)));
}

/* EVP_DigestSignFinal() finishes a copy, so that the application may go on with the original. */
static void *context_dup(void *argument)
{
    const signature_context *from = argument;
    signature_context *context = new_context(from->provider, from->rsa, from->rsa->signature.dupctx(from->inner));
    if (context == NULL)
        return NULL;
    if (from->key != NULL)
        context->key = gp_rsa_key_up_ref(from->key);
    if (from->hash != NULL
        && ((context->hash = EVP_MD_CTX_new()) == NULL || EVP_MD_CTX_copy_ex(context->hash, from->hash) != 1)) {
        context_free(context);
        return NULL;
    }
    return context;
}

/* ---- parameters ---- */

static int get_context_params(void *argument, OSSL_PARAM params[])
{
    const signature_context *context = argument;
    return context->rsa->signature.get_ctx_params(context->inner, params);
}

static const OSSL_PARAM *gettable_context_params(void *argument, void *provider)
{
    const signature_context *context = argument;
    const gp_default_rsa *rsa = context != NULL ? context->rsa : gp_provider_default_rsa(provider);
    return rsa != NULL ? rsa->signature.gettable_ctx_params(context != NULL ? context->inner : NULL, rsa->context)
                       : NULL;
}

static const OSSL_PARAM *settable_context_params(void *argument, void *provider)
{
    const signature_context *context = argument;
    const gp_default_rsa *rsa = context != NULL ? context->rsa : gp_provider_default_rsa(provider);
    return rsa != NULL ? rsa->signature.settable_ctx_params(context != NULL ? context->inner : NULL, rsa->context)
                       : NULL;
}

static int set_context_params(void *argument, const OSSL_PARAM params[])
{
    const signature_context *context = argument;
    return context->rsa->signature.set_ctx_params(context->inner, params);
}

static int get_hash_params(void *argument, OSSL_PARAM params[])
{
    const signature_context *context = argument;
    return context->rsa->signature.get_ctx_md_params(context->inner, params);
}

static const OSSL_PARAM *gettable_hash_params(void *argument)
{
    const signature_context *context = argument;
    return context->rsa->signature.gettable_ctx_md_params(context->inner);
}

static int set_hash_params(void *argument, const OSSL_PARAM params[])
{
    const signature_context *context = argument;
    int ok = context->rsa->signature.set_ctx_md_params(context->inner, params);
    return ok && context->hash != NULL ? EVP_MD_CTX_set_params(context->hash, params) : ok;
}

static const OSSL_PARAM *settable_hash_params(void *argument)
{
    const signature_context *context = argument;
    return context->rsa->signature.settable_ctx_md_params(context->inner);
}

/* What the inner context holds for a signature. */
typedef struct settings {
    int padding;
    int salt_length;
    char digest[NAME_BYTES]; /* empty: none set, the data is signed as it is */
    char mgf1_digest[NAME_BYTES];
} settings;

static int get_settings(const signature_context *context, settings *settings)
{
    memset(settings, 0, sizeof(*settings));
    OSSL_PARAM params[] = {
        OSSL_PARAM_construct_int(OSSL_SIGNATURE_PARAM_PAD_MODE, &settings->padding),
        OSSL_PARAM_construct_int(OSSL_SIGNATURE_PARAM_PSS_SALTLEN, &settings->salt_length),
        OSSL_PARAM_construct_utf8_string(OSSL_SIGNATURE_PARAM_DIGEST, settings->digest, NAME_BYTES),
        OSSL_PARAM_construct_utf8_string(OSSL_SIGNATURE_PARAM_MGF1_DIGEST, settings->mgf1_digest, NAME_BYTES),
        OSSL_PARAM_construct_end(),
    };
    return get_context_params((void *)context, params);
}

/* ---- starting ---- */

/* key NULL: the one set before. */
static void *inner_key(signature_context *context, gp_rsa_key *key)
{
    EVP_MD_CTX_free(context->hash);
    context->hash = NULL;
    if (key == NULL)
        return NULL;
    gp_rsa_key_up_ref(key);
    gp_rsa_key_free(context->key);
    context->key = key;
    return key->inner;
}

static int sign_init(void *argument, void *key, const OSSL_PARAM params[])
{
    signature_context *context = argument;
    return context->rsa->signature.sign_init(context->inner, inner_key(context, key), params);
}

static int verify_init(void *argument, void *key, const OSSL_PARAM params[])
{
    signature_context *context = argument;
    return context->rsa->signature.verify_init(context->inner, inner_key(context, key), params);
}

static int verify_recover_init(void *argument, void *key, const OSSL_PARAM params[])
{
    signature_context *context = argument;
    return context->rsa->signature.verify_recover_init(context->inner, inner_key(context, key), params);
}

static int digest_verify_init(void *argument, const char *digest, void *key, const OSSL_PARAM params[])
{
    signature_context *context = argument;
    return context->rsa->signature.digest_verify_init(context->inner, digest, inner_key(context, key), params);
}

/* The inner context would keep the digest's value to itself, so the message is hashed here. */
static int start_hash(signature_context *context, const OSSL_PARAM params[])
{
    settings settings;
    EVP_MD *md = NULL;
    if (!get_settings(context, &settings) || (md = EVP_MD_fetch(context->rsa->libctx, settings.digest, NULL)) == NULL) {
        GP_RAISE(context->provider, GP_R_UNKNOWN_DIGEST);
        return 0;
    }
    context->hash = EVP_MD_CTX_new();
    int ok = context->hash != NULL && EVP_DigestInit_ex2(context->hash, md, params) == 1;
    EVP_MD_free(md);
    return ok;
}

static int digest_sign_init(void *argument, const char *digest, void *key, const OSSL_PARAM params[])
{
    signature_context *context = argument;
    int ok = context->rsa->signature.digest_sign_init(context->inner, digest, inner_key(context, key), params);
    return ok > 0 && context->key->modulus != NULL ? start_hash(context, params) : ok;
}

/* ---- signing ---- */

static int encode(const signature_context *context, const settings *settings, uint8_t *encoded, const uint8_t *data,
                  size_t data_size)
{
    const gp_rsa_key *key = context->key;
    OSSL_LIB_CTX *libctx = context->rsa->libctx;
    EVP_MD *md = NULL, *mgf1_md = NULL;
    int ok = settings->digest[0] == '\0' || (md = EVP_MD_fetch(libctx, settings->digest, NULL)) != NULL;
    switch (settings->padding) {
    case RSA_PKCS1_PADDING:
        ok = ok && gp_pkcs1_encode(encoded, key->bytes, md, data, data_size);
        break;
    case RSA_PKCS1_PSS_PADDING:
        ok = ok && md != NULL && (mgf1_md = EVP_MD_fetch(libctx, settings->mgf1_digest, NULL)) != NULL
             && EVP_MD_get_size(md) > 0 && EVP_MD_get_size(mgf1_md) > 0
             && gp_pss_encode(libctx, encoded, key->bytes, key->bits, md, mgf1_md, settings->salt_length, data,
                              data_size);
        break;
    case RSA_NO_PADDING:
        ok = settings->digest[0] == '\0' && data_size == key->bytes && memcmp(data, key->modulus, data_size) < 0;
        if (ok)
            memcpy(encoded, data, data_size);
        break;
    default:
        ok = 0;
    }
    EVP_MD_free(md);
    EVP_MD_free(mgf1_md);
    return ok;
}

typedef int plain_init_fn(void *inner, void *key, const OSSL_PARAM params[]);

/* A copy of the inner context, initialized again for a digest's value. That resets the padding. */
static void *inner_copy(const signature_context *context, settings *settings, plain_init_fn *init)
{
    void *inner = context->rsa->signature.dupctx(context->inner);
    OSSL_PARAM params[] = {
        OSSL_PARAM_construct_int(OSSL_SIGNATURE_PARAM_PAD_MODE, &settings->padding),
        settings->padding == RSA_PKCS1_PSS_PADDING
            ? OSSL_PARAM_construct_int(OSSL_SIGNATURE_PARAM_PSS_SALTLEN, &settings->salt_length)
            : OSSL_PARAM_construct_end(),
        OSSL_PARAM_construct_end(),
    };
    if (inner != NULL && init(inner, context->key->inner, params) <= 0) {
        context->rsa->signature.freectx(inner);
        inner = NULL;
    }
    return inner;
}

/* 1 if the default provider's signature is one of `data`. */
static int is_right(const signature_context *context, settings *settings, const uint8_t *signature,
                    size_t signature_size, const uint8_t *data, size_t data_size)
{
    const gp_default_rsa *rsa = context->rsa;
    void *verifier = inner_copy(context, settings, rsa->signature.verify_init);
    int right = verifier != NULL && rsa->signature.verify(verifier, signature, signature_size, data, data_size) > 0;
    if (verifier != NULL)
        rsa->signature.freectx(verifier);
    return right;
}

/* By the default provider, with a padding or digest that is not ours: X9.31, or those without a DigestInfo in our
 * table. Or not at all: then this queues the reason. */
static int sign_by_default(const signature_context *context, settings *settings, uint8_t *signature,
                           size_t *signature_size, size_t capacity, const uint8_t *data, size_t data_size)
{
    const gp_default_rsa *rsa = context->rsa;
    void *signer = context->hash == NULL ? context->inner : inner_copy(context, settings, rsa->signature.sign_init);
    int result = signer != NULL ? rsa->signature.sign(signer, signature, signature_size, capacity, data, data_size) : 0;
    if (result > 0 && !is_right(context, settings, signature, *signature_size, data, data_size)) {
        OPENSSL_cleanse(signature, *signature_size);
        GP_RAISE(context->provider, GP_R_INCONSISTENT_KEY);
        result = 0;
    }
    if (signer != NULL && signer != context->inner)
        rsa->signature.freectx(signer);
    return result;
}

/* data: a digest's value, or what is to be signed as it is. */
static int sign_value(const signature_context *context, uint8_t *signature, size_t *signature_size, size_t capacity,
                      const uint8_t *data, size_t data_size)
{
    gp_rsa_key *key = context->key;
    settings settings;
    if (!get_settings(context, &settings))
        return 0;
    uint8_t *encoded = OPENSSL_malloc(key->bytes);
    if (encoded == NULL) {
        GP_RAISE(context->provider, GP_R_OUT_OF_MEMORY);
        return 0;
    }
    ERR_set_mark();
    int ours = capacity >= key->bytes && encode(context, &settings, encoded, data, data_size), result;
    ERR_pop_to_mark();
    if (ours) {
        result = gp_private_op(key, encoded, signature);
        if (result)
            *signature_size = key->bytes;
    } else {
        result = sign_by_default(context, &settings, signature, signature_size, capacity, data, data_size);
    }
    OPENSSL_clear_free(encoded, key->bytes);
    return result;
}

static int sign(void *argument, uint8_t *signature, size_t *signature_size, size_t capacity, const uint8_t *data,
                size_t data_size)
{
    const signature_context *context = argument;
    if (signature == NULL || context->key == NULL || context->key->modulus == NULL)
        return context->rsa->signature.sign(context->inner, signature, signature_size, capacity, data, data_size);
    return sign_value(context, signature, signature_size, capacity, data, data_size);
}

/* With nothing to hash, the inner context still says whether it is the time to. */
static int digest_sign_update(void *argument, const uint8_t *data, size_t size)
{
    const signature_context *context = argument;
    if (context->hash == NULL)
        return context->rsa->signature.digest_sign_update(context->inner, data, size);
    return context->rsa->signature.digest_sign_update(context->inner, data, 0) > 0
           && EVP_DigestUpdate(context->hash, data, size) == 1;
}

static int digest_sign_final(void *argument, uint8_t *signature, size_t *signature_size, size_t capacity)
{
    const signature_context *context = argument;
    uint8_t digest[EVP_MAX_MD_SIZE];
    unsigned int digest_size;
    /* The inner context has no message: with a signature to make, it would make a wrong one. */
    if (context->hash == NULL || signature == NULL)
        return context->rsa->signature.digest_sign_final(context->inner, signature, signature_size, capacity);
    return context->rsa->signature.digest_sign_final(context->inner, NULL, signature_size, 0) > 0
           && EVP_DigestFinal_ex(context->hash, digest, &digest_size) == 1
           && sign_value(context, signature, signature_size, capacity, digest, digest_size) > 0;
}

/* ---- verifying ---- */

static int verify(void *argument, const uint8_t *signature, size_t signature_size, const uint8_t *data,
                  size_t data_size)
{
    const signature_context *context = argument;
    return context->rsa->signature.verify(context->inner, signature, signature_size, data, data_size);
}

static int verify_recover(void *argument, uint8_t *data, size_t *data_size, size_t capacity, const uint8_t *signature,
                          size_t signature_size)
{
    const signature_context *context = argument;
    return context->rsa->signature.verify_recover(context->inner, data, data_size, capacity, signature, signature_size);
}

static int digest_verify_update(void *argument, const uint8_t *data, size_t size)
{
    const signature_context *context = argument;
    return context->rsa->signature.digest_verify_update(context->inner, data, size);
}

static int digest_verify_final(void *argument, const uint8_t *signature, size_t signature_size)
{
    const signature_context *context = argument;
    return context->rsa->signature.digest_verify_final(context->inner, signature, signature_size);
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
    {OSSL_FUNC_SIGNATURE_DIGEST_SIGN_UPDATE, (void (*)(void))digest_sign_update},
    {OSSL_FUNC_SIGNATURE_DIGEST_SIGN_FINAL, (void (*)(void))digest_sign_final},
    {OSSL_FUNC_SIGNATURE_DIGEST_VERIFY_INIT, (void (*)(void))digest_verify_init},
    {OSSL_FUNC_SIGNATURE_DIGEST_VERIFY_UPDATE, (void (*)(void))digest_verify_update},
    {OSSL_FUNC_SIGNATURE_DIGEST_VERIFY_FINAL, (void (*)(void))digest_verify_final},
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
