/* RSA key management: every function hands over to the default provider's key object. */
#include <openssl/core_names.h>
#include <openssl/core_object.h>
#include <openssl/crypto.h>
#include <openssl/param_build.h>
#include <openssl/params.h>
#include <string.h>

#include "provider/provider.h"

typedef struct generation {
    gp_provider *provider;
    const gp_default_rsa *rsa;
    void *inner;
} generation;

/* ---- the key object ---- */

gp_rsa_key *gp_rsa_key_up_ref(gp_rsa_key *key)
{
    atomic_fetch_add_explicit(&key->references, 1, memory_order_relaxed);
    return key;
}

static void free_batched(gp_batched_key *batched)
{
    if (batched->handle != 0)
        gp_client_remove_key(batched->client, batched->handle);
    gp_client_free(batched->client);
    gp_key_free(batched->key);
    OPENSSL_free(batched);
}

/* What is known of the private key besides `inner`. */
static void forget(gp_rsa_key *key)
{
    gp_batched_key *batched = atomic_exchange(&key->batched, NULL), *older;
    gp_attached_key_forget(&key->attached);
    for (; batched != NULL; batched = older) {
        older = batched->older;
        free_batched(batched);
    }
    OPENSSL_free(key->modulus);
    key->modulus = NULL;
    key->bits = key->bytes = 0;
}

void gp_rsa_key_free(gp_rsa_key *key)
{
    if (key == NULL || atomic_fetch_sub_explicit(&key->references, 1, memory_order_acq_rel) != 1)
        return;
    forget(key);
    key->rsa->keymgmt.free(key->inner);
    OPENSSL_free(key);
}

static void key_free(void *key)
{
    gp_rsa_key_free(key);
}

/* A number of the key in `size` bytes, most significant byte first. 0 if it is longer. */
static int get_number(const gp_rsa_key *key, const char *name, uint8_t *number, size_t size)
{
    OSSL_PARAM params[] = {OSSL_PARAM_construct_BN(name, number, size), OSSL_PARAM_construct_end()};
    if (!key->rsa->keymgmt.get_params(key->inner, params))
        return 0;
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    for (size_t i = 0; i < size / 2; i++) {
        uint8_t swapped = number[i];
        number[i] = number[size - 1 - i];
        number[size - 1 - i] = swapped;
    }
#endif
    return 1;
}

int gp_rsa_key_private_exponent(const gp_rsa_key *key, uint8_t *exponent)
{
    return get_number(key, OSSL_PKEY_PARAM_RSA_D, exponent, key->bytes);
}

int gp_rsa_key_read_numbers(const void *private_key, struct gp_message *message)
{
    const gp_rsa_key *key = private_key;
    uint8_t *next = message->numbers;
    for (uint32_t i = 0; i < (gp_rsa_key_is_of_service(key) ? GP_PUBLIC_NUMBERS : GP_KEY_NUMBERS); i++) {
        if (!get_number(key, gp_key_number_names[i], next, key->bytes))
            return 0;
        message->sizes[i] = (uint16_t)key->bytes;
        next += key->bytes;
    }
    return 1;
}

/* ---- keys of a batching provider ---- */

static int import_batched(const OSSL_PARAM params[], void *argument)
{
    EVP_PKEY_CTX *context = EVP_PKEY_CTX_new_from_name(gp_inner_libctx(), "RSA", NULL);
    if (context != NULL && EVP_PKEY_fromdata_init(context) == 1) {
        /* The parameters are only read; EVP_PKEY_fromdata() lacks the const. */
        (void)EVP_PKEY_fromdata(context, argument, EVP_PKEY_KEYPAIR, (OSSL_PARAM *)params);
    }
    EVP_PKEY_CTX_free(context);
    return *(EVP_PKEY **)argument != NULL;
}

int gp_rsa_key_is_batchable(const gp_rsa_key *key)
{
    return key->bits >= GP_MIN_BITS && key->bits <= GP_MAX_BITS && (key->modulus[key->bytes - 1] & 1) != 0;
}

static gp_batched_key *new_batched(gp_rsa_key *key, gp_client *client)
{
    gp_batched_key *batched = OPENSSL_zalloc(sizeof(*batched));
    EVP_PKEY *pkey = NULL;
    if (batched == NULL)
        return NULL;
    batched->client = gp_client_up_ref(client);
    if (key->rsa->keymgmt.export(key->inner, OSSL_KEYMGMT_SELECT_KEYPAIR, import_batched, &pkey))
        batched->key = gp_key_new(pkey);
    EVP_PKEY_free(pkey);
    if (batched->key != NULL)
        batched->handle = gp_client_add_key(client, batched->key);
    if (batched->handle != 0)
        return batched;
    free_batched(batched);
    return NULL;
}

const gp_batched_key *gp_rsa_key_batched(gp_rsa_key *key, gp_client *client)
{
    gp_batched_key *newest = atomic_load(&key->batched), *made;
    if (newest != NULL && newest->client == client)
        return newest;
    made = new_batched(key, client);
    if (made == NULL)
        return NULL;
    made->older = newest;
    if (atomic_compare_exchange_strong(&key->batched, &newest, made))
        return made;
    free_batched(made); /* another thread was first */
    return newest;
}

/* To be called once `inner` has its numbers. 1, or 0 with an error queued. */
static int adopt(gp_rsa_key *key)
{
    gp_client *client = key->provider->client;
    int bits = 0, bytes = 0;
    OSSL_PARAM params[] = {
        OSSL_PARAM_construct_int(OSSL_PKEY_PARAM_BITS, &bits),
        OSSL_PARAM_construct_int(OSSL_PKEY_PARAM_MAX_SIZE, &bytes),
        OSSL_PARAM_construct_end(),
    };
    forget(key);
    if ((!gp_rsa_key_is_of_service(key) && !key->rsa->keymgmt.has(key->inner, OSSL_KEYMGMT_SELECT_PRIVATE_KEY))
        || !key->rsa->keymgmt.get_params(key->inner, params) || bytes <= 0)
        return 1;
    key->bits = (uint32_t)bits;
    key->bytes = (uint32_t)bytes;
    key->modulus = OPENSSL_malloc(key->bytes);
    if (key->modulus == NULL || !get_number(key, OSSL_PKEY_PARAM_RSA_N, key->modulus, key->bytes)) {
        GP_RAISE(key->provider, GP_R_OUT_OF_MEMORY);
        return 0;
    }
    if (client == NULL || !gp_rsa_key_is_batchable(key) || gp_rsa_key_batched(key, client) != NULL)
        return 1;
    GP_RAISE(key->provider, GP_R_OUT_OF_MEMORY);
    return 0;
}

/* ---- making one ---- */

/* Owns inner in any case. NULL also if inner is. `name`: of a key that only the service has, or "". */
static gp_rsa_key *new_key(gp_provider *provider, const gp_default_rsa *rsa, void *inner, const char *name)
{
    if (inner == NULL)
        return NULL;
    gp_rsa_key *key = OPENSSL_zalloc(sizeof(*key));
    if (key == NULL) {
        GP_RAISE(provider, GP_R_OUT_OF_MEMORY);
        rsa->keymgmt.free(inner);
        return NULL;
    }
    atomic_init(&key->references, 1);
    key->provider = provider;
    key->rsa = rsa;
    key->inner = inner;
    strcpy(key->name, name);
    key->attached.name = gp_rsa_key_is_of_service(key) ? key->name : NULL;
    if (!adopt(key)) {
        gp_rsa_key_free(key);
        key = NULL;
    }
    return key;
}

static void *key_new(void *provider)
{
    const gp_default_rsa *rsa = gp_provider_default_rsa(provider);
    return rsa != NULL ? new_key(provider, rsa, rsa->keymgmt.new(rsa->context), "") : NULL;
}

/* ---- import, export, copy ---- */

static int key_import(void *context, int selection, const OSSL_PARAM params[])
{
    gp_rsa_key *key = context;
    return key->rsa->keymgmt.import(key->inner, selection, params) && adopt(key);
}

static int key_export(void *context, int selection, OSSL_CALLBACK *callback, void *argument)
{
    const gp_rsa_key *key = context;
    if (gp_rsa_key_is_of_service(key) && (selection & OSSL_KEYMGMT_SELECT_PRIVATE_KEY) != 0) {
        GP_RAISE_ABOUT(key->provider, GP_R_NOT_EXPORTABLE, key->name);
        return 0;
    }
    return key->rsa->keymgmt.export(key->inner, selection, callback, argument);
}

/* OpenSSL asks without a provider context, for a list that is the same in every library context. */
static const OSSL_PARAM *import_types(int selection)
{
    const gp_default_rsa *rsa = gp_default_rsa_of_process();
    return rsa != NULL ? rsa->keymgmt.import_types(selection) : NULL;
}

static const OSSL_PARAM *export_types(int selection)
{
    const gp_default_rsa *rsa = gp_default_rsa_of_process();
    return rsa != NULL ? rsa->keymgmt.export_types(selection) : NULL;
}

static void *key_dup(const void *context, int selection)
{
    const gp_rsa_key *from = context;
    return new_key(from->provider, from->rsa, from->rsa->keymgmt.dup(from->inner, selection),
                   (selection & OSSL_KEYMGMT_SELECT_PRIVATE_KEY) != 0 ? from->name : "");
}

/* ---- keys that only the service has ---- */

static void *import_public(gp_provider *provider, const gp_default_rsa *rsa, const struct gp_public_key *public_key)
{
    BIGNUM *n = BN_bin2bn(public_key->modulus, public_key->modulus_size, NULL);
    BIGNUM *e = BN_bin2bn(public_key->exponent, public_key->exponent_size, NULL);
    OSSL_PARAM_BLD *builder = OSSL_PARAM_BLD_new();
    OSSL_PARAM *params = NULL;
    void *inner = rsa->keymgmt.new(rsa->context);
    if (n == NULL || e == NULL || builder == NULL || inner == NULL
        || !OSSL_PARAM_BLD_push_BN(builder, OSSL_PKEY_PARAM_RSA_N, n)
        || !OSSL_PARAM_BLD_push_BN(builder, OSSL_PKEY_PARAM_RSA_E, e)
        || (params = OSSL_PARAM_BLD_to_param(builder)) == NULL
        || !rsa->keymgmt.import(inner, OSSL_KEYMGMT_SELECT_PUBLIC_KEY, params)) {
        GP_RAISE(provider, GP_R_OUT_OF_MEMORY);
        rsa->keymgmt.free(inner);
        inner = NULL;
    }
    OSSL_PARAM_free(params);
    OSSL_PARAM_BLD_free(builder);
    BN_free(e);
    BN_free(n);
    return inner;
}

gp_rsa_key *gp_rsa_key_of_service(gp_provider *provider, const char *name, const struct gp_public_key *public_key)
{
    const gp_default_rsa *rsa = gp_provider_default_rsa(provider);
    gp_rsa_key *key = NULL;
    if (provider->service.path == NULL)
        GP_RAISE_ABOUT(provider, GP_R_NO_SERVICE_SET, name);
    else if (rsa != NULL)
        key = new_key(provider, rsa, import_public(provider, rsa, public_key), name);
    if (key != NULL && !gp_rsa_key_is_batchable(key)) {
        GP_RAISE_ABOUT(provider, GP_R_BAD_REFERENCE, name);
        gp_rsa_key_free(key);
        key = NULL;
    }
    return key;
}

int gp_rsa_key_hand_over(gp_rsa_key *key, OSSL_CALLBACK *callback, void *argument)
{
    static char type[] = "RSA";
    int object = OSSL_OBJECT_PKEY, ok;
    const OSSL_PARAM params[] = {
        OSSL_PARAM_construct_int(OSSL_OBJECT_PARAM_TYPE, &object),
        OSSL_PARAM_construct_utf8_string(OSSL_OBJECT_PARAM_DATA_TYPE, type, 0),
        OSSL_PARAM_construct_octet_string(OSSL_OBJECT_PARAM_REFERENCE, &key, sizeof(key)),
        OSSL_PARAM_construct_end(),
    };
    ok = callback(params, argument);
    gp_rsa_key_free(key); /* if it was not taken */
    return ok;
}

/* What gp_rsa_key_hand_over() gave to OpenSSL, which is the caller's from now on. */
static void *key_load(const void *reference, size_t size)
{
    gp_rsa_key **given = (gp_rsa_key **)reference, *key = NULL;
    if (size == sizeof(key)) {
        key = *given;
        *given = NULL;
    }
    return key;
}

/* ---- questions ---- */

/* What can be asked of the inner key. The service has the private part, which belongs to the public one: results are
 * verified with that. */
static int inner_selection(const gp_rsa_key *key, int selection)
{
    if (!gp_rsa_key_is_of_service(key) || (selection & OSSL_KEYMGMT_SELECT_PRIVATE_KEY) == 0)
        return selection;
    return (selection & ~OSSL_KEYMGMT_SELECT_PRIVATE_KEY) | OSSL_KEYMGMT_SELECT_PUBLIC_KEY;
}

static int key_has(const void *context, int selection)
{
    const gp_rsa_key *key = context;
    return key != NULL && key->rsa->keymgmt.has(key->inner, inner_selection(key, selection));
}

static int key_match(const void *left, const void *right, int selection)
{
    const gp_rsa_key *a = left, *b = right;
    return a->rsa->keymgmt.match(a->inner, b->inner, inner_selection(a, inner_selection(b, selection)));
}

static int key_validate(const void *context, int selection, int check)
{
    const gp_rsa_key *key = context;
    return key->rsa->keymgmt.validate(key->inner, inner_selection(key, selection), check);
}

static int key_get_params(void *context, OSSL_PARAM params[])
{
    const gp_rsa_key *key = context;
    return key->rsa->keymgmt.get_params(key->inner, params);
}

static const OSSL_PARAM *key_gettable_params(void *provider)
{
    const gp_default_rsa *rsa = gp_provider_default_rsa(provider);
    return rsa != NULL ? rsa->keymgmt.gettable_params(rsa->context) : NULL;
}

/* ---- generation ---- */

static void *generation_new(void *provider, int selection, const OSSL_PARAM params[])
{
    const gp_default_rsa *rsa = gp_provider_default_rsa(provider);
    generation *state = rsa != NULL ? OPENSSL_malloc(sizeof(*state)) : NULL;
    if (state == NULL)
        return NULL;
    *state = (generation){provider, rsa, rsa->keymgmt.gen_init(rsa->context, selection, params)};
    if (state->inner == NULL) {
        OPENSSL_free(state);
        return NULL;
    }
    return state;
}

static void generation_free(void *context)
{
    generation *state = context;
    if (state != NULL) {
        state->rsa->keymgmt.gen_cleanup(state->inner);
        OPENSSL_free(state);
    }
}

static int set_generation_params(void *context, const OSSL_PARAM params[])
{
    const generation *state = context;
    return state->rsa->keymgmt.gen_set_params(state->inner, params);
}

static const OSSL_PARAM *settable_generation_params(void *context, void *provider)
{
    const generation *state = context;
    const gp_default_rsa *rsa = state != NULL ? state->rsa : gp_provider_default_rsa(provider);
    return rsa != NULL ? rsa->keymgmt.gen_settable_params(state != NULL ? state->inner : NULL, rsa->context) : NULL;
}

static void *generate(void *context, OSSL_CALLBACK *callback, void *argument)
{
    const generation *state = context;
    return new_key(state->provider, state->rsa, state->rsa->keymgmt.gen(state->inner, callback, argument), "");
}

const OSSL_DISPATCH gp_rsa_keymgmt_functions[] = {
    {OSSL_FUNC_KEYMGMT_NEW, (void (*)(void))key_new},
    {OSSL_FUNC_KEYMGMT_FREE, (void (*)(void))key_free},
    {OSSL_FUNC_KEYMGMT_LOAD, (void (*)(void))key_load},
    {OSSL_FUNC_KEYMGMT_IMPORT, (void (*)(void))key_import},
    {OSSL_FUNC_KEYMGMT_IMPORT_TYPES, (void (*)(void))import_types},
    {OSSL_FUNC_KEYMGMT_EXPORT, (void (*)(void))key_export},
    {OSSL_FUNC_KEYMGMT_EXPORT_TYPES, (void (*)(void))export_types},
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
