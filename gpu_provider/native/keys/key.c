#include "keys/key.h"

#include <openssl/bn.h>
#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/err.h>
#include <openssl/provider.h>
#include <openssl/rsa.h>
#include <pthread.h>
#include <string.h>

static OSSL_LIB_CTX *inner;
static pthread_once_t inner_once = PTHREAD_ONCE_INIT;

static void make_inner(void)
{
    inner = OSSL_LIB_CTX_new();
    if (inner != NULL && OSSL_PROVIDER_load(inner, "default") == NULL) {
        OSSL_LIB_CTX_free(inner);
        inner = NULL;
    }
}

OSSL_LIB_CTX *gp_inner_libctx(void)
{
    pthread_once(&inner_once, make_inner);
    return inner;
}

typedef int init_fn(EVP_PKEY_CTX *);
typedef int crypt_fn(EVP_PKEY_CTX *, unsigned char *, size_t *, const unsigned char *, size_t);

static EVP_PKEY_CTX *raw_context(EVP_PKEY *pkey, init_fn *init)
{
    EVP_PKEY_CTX *context = EVP_PKEY_CTX_new_from_pkey(inner, pkey, NULL);

    if (context != NULL && init(context) > 0 && EVP_PKEY_CTX_set_rsa_padding(context, RSA_NO_PADDING) > 0)
        return context;
    EVP_PKEY_CTX_free(context);
    return NULL;
}

static int fill(gp_key *key, const BIGNUM *n)
{
    key->bits = (uint32_t)BN_num_bits(n);
    key->bytes = (uint32_t)BN_num_bytes(n);
    key->modulus = OPENSSL_malloc(key->bytes);
    key->public_context = raw_context(key->pkey, EVP_PKEY_encrypt_init);
    if (key->is_private)
        key->private_context = raw_context(key->pkey, EVP_PKEY_decrypt_init);
    return key->modulus != NULL && BN_bn2binpad(n, key->modulus, (int)key->bytes) >= 0 && key->public_context != NULL
           && (!key->is_private || key->private_context != NULL);
}

gp_key *gp_key_new(EVP_PKEY *pkey)
{
    BIGNUM *n = NULL, *d = NULL;
    gp_key *key = NULL;

    if (!EVP_PKEY_get_bn_param(pkey, OSSL_PKEY_PARAM_RSA_N, &n))
        return NULL;
    key = OPENSSL_zalloc(sizeof(*key));
    if (key == NULL)
        goto done;
    atomic_init(&key->references, 1);
    EVP_PKEY_up_ref(pkey);
    key->pkey = pkey;
    ERR_set_mark(); /* a public key has no d: not an error */
    key->is_private = (uint32_t)EVP_PKEY_get_bn_param(pkey, OSSL_PKEY_PARAM_RSA_D, &d);
    ERR_pop_to_mark();
    if (!fill(key, n)) {
        gp_key_free(key);
        key = NULL;
    }
done:
    BN_free(n);
    BN_clear_free(d);
    return key;
}

gp_key *gp_key_up_ref(gp_key *key)
{
    atomic_fetch_add_explicit(&key->references, 1, memory_order_relaxed);
    return key;
}

void gp_key_free(gp_key *key)
{
    if (key == NULL || atomic_fetch_sub_explicit(&key->references, 1, memory_order_acq_rel) != 1)
        return;
    if (atomic_load(&key->kernel_key) != NULL)
        key->kernels->key_free(atomic_load(&key->kernel_key));
    EVP_PKEY_CTX_free(key->private_context);
    EVP_PKEY_CTX_free(key->public_context);
    EVP_PKEY_free(key->pkey);
    OPENSSL_free(key->modulus);
    OPENSSL_free(key);
}

int gp_key_is_batchable(const gp_key *key)
{
    return key->is_private && key->bits >= GP_MIN_BITS && key->bits <= GP_MAX_BITS
           && (key->modulus[key->bytes - 1] & 1) != 0;
}

int gp_key_in_range(const gp_key *key, const uint8_t *input)
{
    return memcmp(input, key->modulus, key->bytes) < 0;
}

static int raw_operation(const gp_key *key, const EVP_PKEY_CTX *prepared, crypt_fn *crypt, const uint8_t *input,
                         uint8_t *output)
{
    EVP_PKEY_CTX *context = prepared != NULL ? EVP_PKEY_CTX_dup(prepared) : NULL;
    size_t length = key->bytes;
    int ok = context != NULL && crypt(context, output, &length, input, key->bytes) > 0 && length == key->bytes;

    EVP_PKEY_CTX_free(context);
    return ok;
}

int gp_key_private(const gp_key *key, const uint8_t *input, uint8_t *output)
{
    uint8_t *power = OPENSSL_malloc(key->bytes);
    int ok = power != NULL && raw_operation(key, key->private_context, EVP_PKEY_decrypt, input, output)
             && gp_key_public(key, output, power) && CRYPTO_memcmp(power, input, key->bytes) == 0;

    if (!ok)
        OPENSSL_cleanse(output, key->bytes);
    OPENSSL_free(power);
    return ok;
}

int gp_key_public(const gp_key *key, const uint8_t *input, uint8_t *output)
{
    return raw_operation(key, key->public_context, EVP_PKEY_encrypt, input, output);
}

int gp_key_has_third_factor(const gp_key *key)
{
    BIGNUM *third = NULL;

    ERR_set_mark(); /* most have none: not an error */
    (void)EVP_PKEY_get_bn_param(key->pkey, OSSL_PKEY_PARAM_RSA_FACTOR3, &third);
    ERR_pop_to_mark();
    BN_clear_free(third);
    return third != NULL;
}

int gp_key_read_numbers(const gp_key *key, struct gp_key_numbers *numbers)
{
    static const char *const names[] = {
        OSSL_PKEY_PARAM_RSA_N,
        OSSL_PKEY_PARAM_RSA_E,
        OSSL_PKEY_PARAM_RSA_FACTOR1,
        OSSL_PKEY_PARAM_RSA_FACTOR2,
        OSSL_PKEY_PARAM_RSA_EXPONENT1,
        OSSL_PKEY_PARAM_RSA_EXPONENT2,
        OSSL_PKEY_PARAM_RSA_COEFFICIENT1,
    };
    int complete = !gp_key_has_third_factor(key);

    for (int i = 0; complete && i < 7; i++) {
        BIGNUM *number = NULL;

        complete = EVP_PKEY_get_bn_param(key->pkey, names[i], &number) && BN_num_bytes(number) <= (int)GP_MAX_BYTES
                   && BN_bn2lebinpad(number, numbers->bytes[i], GP_MAX_BYTES) >= 0;
        if (complete)
            numbers->number[i] = (struct gpk_number){numbers->bytes[i], (size_t)BN_num_bytes(number)};
        BN_clear_free(number);
    }
    return complete;
}
