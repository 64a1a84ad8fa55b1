/* RSA key management: every function hands over to the default provider's key object. */
#include <openssl/bn.h>
#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/err.h>
#include <openssl/params.h>
#include <openssl/rsa.h>
#include <string.h>

#include "provider.h"

typedef struct generation {
    gp_provider *provider;
    EVP_PKEY_CTX *inner;
    OSSL_CALLBACK *callback;
    void *callback_argument;
} generation;

/* ---- the key object ---- */

static void *key_new(void *provider)
{
    gp_rsa_key *key = OPENSSL_zalloc(sizeof(*key));
    if (key == NULL) {
        GP_RAISE(provider, GP_R_OUT_OF_MEMORY);
        return NULL;
    }
    atomic_init(&key->references, 1);
    key->provider = provider;
    return key;
}

gp_rsa_key *gp_rsa_key_up_ref(gp_rsa_key *key)
{
    atomic_fetch_add_explicit(&key->references, 1, memory_order_relaxed);
    return key;
}

void gp_rsa_key_free(gp_rsa_key *key)
{
    if (key == NULL || atomic_fetch_sub_explicit(&key->references, 1, memory_order_acq_rel) != 1)
        return;
    if (key->client != NULL) {
        gp_client_remove_key(key->client, key->handle);
        gp_client_free(key->client);
    }
    EVP_PKEY_CTX_free(key->signing);
    gp_key_free(key->key);
    OPENSSL_clear_free(key, sizeof(*key));
}

static void key_free(void *key)
{
    gp_rsa_key_free(key);
}

static int set_rejection_key(gp_rsa_key *key)
{
    BIGNUM *d = NULL;
    uint8_t *bytes = OPENSSL_malloc(key->key->bytes);
    int ok = bytes != NULL && EVP_PKEY_get_bn_param(key->key->pkey, OSSL_PKEY_PARAM_RSA_D, &d)
             && BN_bn2binpad(d, bytes, (int)key->key->bytes) >= 0
             && EVP_Q_digest(key->provider->libctx, "SHA2-256", NULL, bytes, key->key->bytes, key->rejection_key, NULL);
    OPENSSL_clear_free(bytes, key->key->bytes);
    BN_clear_free(d);
    return ok;
}

/* A key of which OpenSSL can't compute at all counts as consistent: its operations fail by themselves. */
static int set_consistent(gp_rsa_key *key)
{
    size_t size = key->key->bytes;
    uint8_t *numbers = OPENSSL_zalloc(3 * size), *input = numbers, *power = numbers + size, *back = numbers + 2 * size;
    if (numbers == NULL) {
        GP_RAISE(key->provider, GP_R_OUT_OF_MEMORY);
        return 0;
    }
    input[size - 1] = 2;
    ERR_set_mark();
    key->consistent = !gp_key_private(key->key, input, power) || !gp_key_public(key->key, power, back)
                      || memcmp(input, back, size) == 0;
    ERR_pop_to_mark();
    OPENSSL_clear_free(numbers, 3 * size);
    return 1;
}

/* Makes `key` the holder of `pkey`, an RSA key of the inner library context. 1, or 0 with an error queued. */
static int adopt(gp_rsa_key *key, EVP_PKEY *pkey)
{
    gp_client *client = key->provider->client;
    key->key = gp_key_new(key->provider->inner, pkey);
    if (key->key == NULL)
        return 0;
    if (key->key->is_private) {
        key->signing = gp_rsa_key_inner_context(key);
        if (key->signing == NULL || EVP_PKEY_sign_init(key->signing) != 1 || !set_rejection_key(key)
            || !set_consistent(key))
            return 0;
    }
    if (client != NULL && gp_key_is_batchable(key->key)) {
        key->handle = gp_client_add_key(client, key->key);
        if (key->handle == 0) {
            GP_RAISE(key->provider, GP_R_OUT_OF_MEMORY);
            return 0;
        }
        key->client = gp_client_up_ref(client);
    }
    return 1;
}

int gp_rsa_key_may_compute(const gp_rsa_key *key)
{
    if (!key->key->is_private) {
        GP_RAISE(key->provider, GP_R_NOT_A_PRIVATE_KEY);
        return 0;
    }
    if (!key->consistent) {
        GP_RAISE(key->provider, GP_R_INCONSISTENT_KEY);
        return 0;
    }
    return 1;
}

int gp_rsa_key_private_op(gp_rsa_key *key, const uint8_t *input, uint8_t *output)
{
    if (!gp_client_private_op(key->client, key->key, key->handle, input, output)) {
        GP_RAISE(key->provider, GP_R_OPERATION_FAILED);
        return 0;
    }
    return 1;
}

EVP_PKEY_CTX *gp_rsa_key_inner_context(const gp_rsa_key *key)
{
    return EVP_PKEY_CTX_new_from_pkey(key->provider->libctx, key->key->pkey, NULL);
}

/* ---- import, export, copy ---- */

#define NUMBER(name) OSSL_PARAM_BN(name, NULL, 0)
static const OSSL_PARAM public_types[] = {
    NUMBER(OSSL_PKEY_PARAM_RSA_N),
    NUMBER(OSSL_PKEY_PARAM_RSA_E),
    OSSL_PARAM_END,
};
static const OSSL_PARAM pair_types[] = {
    NUMBER(OSSL_PKEY_PARAM_RSA_N),
    NUMBER(OSSL_PKEY_PARAM_RSA_E),
    NUMBER(OSSL_PKEY_PARAM_RSA_D),
    NUMBER(OSSL_PKEY_PARAM_RSA_FACTOR1),
    NUMBER(OSSL_PKEY_PARAM_RSA_FACTOR2),
    NUMBER(OSSL_PKEY_PARAM_RSA_FACTOR3),
    NUMBER(OSSL_PKEY_PARAM_RSA_FACTOR4),
    NUMBER(OSSL_PKEY_PARAM_RSA_FACTOR5),
    NUMBER(OSSL_PKEY_PARAM_RSA_FACTOR6),
    NUMBER(OSSL_PKEY_PARAM_RSA_FACTOR7),
    NUMBER(OSSL_PKEY_PARAM_RSA_FACTOR8),
    NUMBER(OSSL_PKEY_PARAM_RSA_FACTOR9),
    NUMBER(OSSL_PKEY_PARAM_RSA_FACTOR10),
    NUMBER(OSSL_PKEY_PARAM_RSA_EXPONENT1),
    NUMBER(OSSL_PKEY_PARAM_RSA_EXPONENT2),
    NUMBER(OSSL_PKEY_PARAM_RSA_EXPONENT3),
    NUMBER(OSSL_PKEY_PARAM_RSA_EXPONENT4),
    NUMBER(OSSL_PKEY_PARAM_RSA_EXPONENT5),
    NUMBER(OSSL_PKEY_PARAM_RSA_EXPONENT6),
    NUMBER(OSSL_PKEY_PARAM_RSA_EXPONENT7),
    NUMBER(OSSL_PKEY_PARAM_RSA_EXPONENT8),
    NUMBER(OSSL_PKEY_PARAM_RSA_EXPONENT9),
    NUMBER(OSSL_PKEY_PARAM_RSA_EXPONENT10),
    NUMBER(OSSL_PKEY_PARAM_RSA_COEFFICIENT1),
    NUMBER(OSSL_PKEY_PARAM_RSA_COEFFICIENT2),
    NUMBER(OSSL_PKEY_PARAM_RSA_COEFFICIENT3),
    NUMBER(OSSL_PKEY_PARAM_RSA_COEFFICIENT4),
    NUMBER(OSSL_PKEY_PARAM_RSA_COEFFICIENT5),
    NUMBER(OSSL_PKEY_PARAM_RSA_COEFFICIENT6),
    NUMBER(OSSL_PKEY_PARAM_RSA_COEFFICIENT7),
    NUMBER(OSSL_PKEY_PARAM_RSA_COEFFICIENT8),
    NUMBER(OSSL_PKEY_PARAM_RSA_COEFFICIENT9),
    OSSL_PARAM_END,
};

/* OpenSSL asks without a provider context, so this list can't come from the default provider. */
static const OSSL_PARAM *key_types(int selection)
{
    if (selection & OSSL_KEYMGMT_SELECT_PRIVATE_KEY)
        return pair_types;
    return selection & OSSL_KEYMGMT_SELECT_PUBLIC_KEY ? public_types : NULL;
}

/* An RSA key of the inner library context, or NULL with an error queued. */
static EVP_PKEY *inner_key(gp_provider *provider, int selection, const OSSL_PARAM params[])
{
    EVP_PKEY *pkey = NULL;
    EVP_PKEY_CTX *inner = EVP_PKEY_CTX_new_from_name(provider->libctx, "RSA", NULL);
    if (inner != NULL && EVP_PKEY_fromdata_init(inner) == 1) {
        /* The parameters are only read; EVP_PKEY_fromdata() lacks the const. */
        (void)EVP_PKEY_fromdata(inner, &pkey, selection, (OSSL_PARAM *)params);
    }
    EVP_PKEY_CTX_free(inner);
    return pkey;
}

static int key_import(void *context, int selection, const OSSL_PARAM params[])
{
    gp_rsa_key *key = context;
    if (key->key != NULL || (selection & OSSL_KEYMGMT_SELECT_KEYPAIR) == 0)
        return 0;
    EVP_PKEY *pkey = inner_key(key->provider, selection, params);
    int ok = pkey != NULL && adopt(key, pkey);
    EVP_PKEY_free(pkey);
    return ok;
}

static int key_export(void *context, int selection, OSSL_CALLBACK *callback, void *argument)
{
    gp_rsa_key *key = context;
    return key->key != NULL && (selection & OSSL_KEYMGMT_SELECT_KEYPAIR) != 0
           && EVP_PKEY_export(key->key->pkey, selection, callback, argument) == 1;
}

struct public_copy {
    gp_provider *provider;
    EVP_PKEY *pkey;
};

static int import_public(const OSSL_PARAM params[], void *argument)
{
    struct public_copy *copy = argument;
    copy->pkey = inner_key(copy->provider, EVP_PKEY_PUBLIC_KEY, params);
    return copy->pkey != NULL;
}

static void *key_dup(const void *context, int selection)
{
    const gp_rsa_key *from = context;
    struct public_copy copy = {from->provider, NULL};
    if (from->key == NULL || (selection & OSSL_KEYMGMT_SELECT_KEYPAIR) == 0)
        return NULL;
    /* Keys don't change, so a full copy shares OpenSSL's object. */
    if ((selection & OSSL_KEYMGMT_SELECT_PRIVATE_KEY) != 0 || !from->key->is_private) {
        copy.pkey = EVP_PKEY_up_ref(from->key->pkey) == 1 ? from->key->pkey : NULL;
    } else {
        (void)EVP_PKEY_export(from->key->pkey, EVP_PKEY_PUBLIC_KEY, import_public, &copy);
    }
    gp_rsa_key *key = copy.pkey != NULL ? key_new(from->provider) : NULL;
    if (key != NULL && !adopt(key, copy.pkey)) {
        gp_rsa_key_free(key);
        key = NULL;
    }
    EVP_PKEY_free(copy.pkey);
    return key;
}

/* ---- questions ---- */

static int key_has(const void *context, int selection)
{
    const gp_rsa_key *key = context;
    if (key == NULL)
        return 0;
    if ((selection & OSSL_KEYMGMT_SELECT_PRIVATE_KEY) != 0)
        return key->key != NULL && key->key->is_private;
    return (selection & OSSL_KEYMGMT_SELECT_PUBLIC_KEY) == 0 || key->key != NULL;
}

static int key_match(const void *left, const void *right, int selection)
{
    const gp_rsa_key *a = left, *b = right;
    if ((selection & OSSL_KEYMGMT_SELECT_KEYPAIR) == 0)
        return 1;
    return a->key != NULL && b->key != NULL && EVP_PKEY_eq(a->key->pkey, b->key->pkey) == 1;
}

static int key_validate(const void *context, int selection, int check)
{
    const gp_rsa_key *key = context;
    int ok;
    if ((selection & OSSL_KEYMGMT_SELECT_KEYPAIR) == 0)
        return 1;
    EVP_PKEY_CTX *inner = key->key != NULL ? gp_rsa_key_inner_context(key) : NULL;
    if (inner == NULL)
        return 0;
    if ((selection & OSSL_KEYMGMT_SELECT_KEYPAIR) == OSSL_KEYMGMT_SELECT_KEYPAIR) {
        ok = EVP_PKEY_pairwise_check(inner) == 1;
    } else if ((selection & OSSL_KEYMGMT_SELECT_PRIVATE_KEY) != 0) {
        ok = EVP_PKEY_private_check(inner) == 1;
    } else if (check == OSSL_KEYMGMT_VALIDATE_QUICK_CHECK) {
        ok = EVP_PKEY_public_check_quick(inner) == 1;
    } else {
        ok = EVP_PKEY_public_check(inner) == 1;
    }
    EVP_PKEY_CTX_free(inner);
    return ok;
}

static int key_get_params(void *context, OSSL_PARAM params[])
{
    gp_rsa_key *key = context;
    return key->key != NULL && EVP_PKEY_get_params(key->key->pkey, params) == 1;
}

static const OSSL_PARAM *key_gettable_params(void *provider)
{
    return EVP_KEYMGMT_gettable_params(((gp_provider *)provider)->keymgmt);
}

/* ---- generation ---- */

static int set_generation_params(void *context, const OSSL_PARAM params[])
{
    generation *state = context;
    /* Only read; the const is missing. */
    return params == NULL || EVP_PKEY_CTX_set_params(state->inner, (OSSL_PARAM *)params) > 0;
}

static void generation_free(void *context)
{
    generation *state = context;
    if (state != NULL) {
        EVP_PKEY_CTX_free(state->inner);
        OPENSSL_free(state);
    }
}

static void *generation_new(void *context, int selection, const OSSL_PARAM params[])
{
    gp_provider *provider = context;
    if ((selection & OSSL_KEYMGMT_SELECT_KEYPAIR) == 0)
        return NULL;
    generation *state = OPENSSL_zalloc(sizeof(*state));
    if (state == NULL) {
        GP_RAISE(provider, GP_R_OUT_OF_MEMORY);
        return NULL;
    }
    state->provider = provider;
    state->inner = EVP_PKEY_CTX_new_from_name(provider->libctx, "RSA", NULL);
    if (state->inner == NULL || EVP_PKEY_keygen_init(state->inner) != 1 || !set_generation_params(state, params)) {
        generation_free(state);
        return NULL;
    }
    return state;
}

static const OSSL_PARAM *settable_generation_params(void *state, void *provider)
{
    (void)state;
    return EVP_KEYMGMT_gen_settable_params(((gp_provider *)provider)->keymgmt);
}

static int report_progress(EVP_PKEY_CTX *inner)
{
    generation *state = EVP_PKEY_CTX_get_app_data(inner);
    int potential = EVP_PKEY_CTX_get_keygen_info(inner, 0);
    int iteration = EVP_PKEY_CTX_get_keygen_info(inner, 1);
    OSSL_PARAM progress[] = {
        OSSL_PARAM_construct_int(OSSL_GEN_PARAM_POTENTIAL, &potential),
        OSSL_PARAM_construct_int(OSSL_GEN_PARAM_ITERATION, &iteration),
        OSSL_PARAM_construct_end(),
    };
    return state->callback(progress, state->callback_argument);
}

static void *generate(void *context, OSSL_CALLBACK *callback, void *argument)
{
    generation *state = context;
    EVP_PKEY *pkey = NULL;
    gp_rsa_key *key = NULL;
    if (callback != NULL) {
        state->callback = callback;
        state->callback_argument = argument;
        EVP_PKEY_CTX_set_app_data(state->inner, state);
        EVP_PKEY_CTX_set_cb(state->inner, report_progress);
    }
    if (EVP_PKEY_generate(state->inner, &pkey) == 1)
        key = key_new(state->provider);
    if (key != NULL && !adopt(key, pkey)) {
        gp_rsa_key_free(key);
        key = NULL;
    }
    EVP_PKEY_free(pkey);
    return key;
}

const OSSL_DISPATCH gp_rsa_keymgmt_functions[] = {
    {OSSL_FUNC_KEYMGMT_NEW, (void (*)(void))key_new},
    {OSSL_FUNC_KEYMGMT_FREE, (void (*)(void))key_free},
    {OSSL_FUNC_KEYMGMT_IMPORT, (void (*)(void))key_import},
    {OSSL_FUNC_KEYMGMT_IMPORT_TYPES, (void (*)(void))key_types},
    {OSSL_FUNC_KEYMGMT_EXPORT, (void (*)(void))key_export},
    {OSSL_FUNC_KEYMGMT_EXPORT_TYPES, (void (*)(void))key_types},
    {OSSL_FUNC_KEYMGMT_DUP, (void (*)(void))key_dup},
    {OSSL_FUNC_KEYMGMT_HAS, (void (*)(void))key_has},
    {OSSL_FUNC_KEYMGMT_MATCH, (void (*)(void))key_match},
    {OSSL_FUNC_KEYMGMT_VALIDATE, (void (*)(void))key_validate},
    {OSSL_FUNC_KEYMGMT_GET_PARAMS, (void (*)(void))key_get_params},
    {OSSL_FUNC_KEYMGMT_GETTABLE_PARAMS, (void (*)(void))key_gettable_params},
    {OSSL_FUNC_KEYMGMT_GEN_INIT, (void (*)(void))generation_new},
    {OSSL_FUNC_KEYMGMT_GEN_SET_PARAMS, (void (*)(void))set_generation_params},
    {OSSL_FUNC_KEYMGMT_GEN_SETTABLE_PARAMS, (void (*)(void))settable_generation_params},
    {OSSL_FUNC_KEYMGMT_GEN, (void (*)(void))generate},
    {OSSL_FUNC_KEYMGMT_GEN_CLEANUP, (void (*)(void))generation_free},
    {0, NULL},
};
