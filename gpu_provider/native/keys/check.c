#include "keys/check.h"

#include <openssl/bn.h>
#include <openssl/core_names.h>
#include <openssl/crypto.h>

enum { N, E, D, P, Q, DP, DQ, QINV, NUMBERS };

static const char *const names[NUMBERS] = {
    OSSL_PKEY_PARAM_RSA_N,         OSSL_PKEY_PARAM_RSA_E,
    OSSL_PKEY_PARAM_RSA_D,         OSSL_PKEY_PARAM_RSA_FACTOR1,
    OSSL_PKEY_PARAM_RSA_FACTOR2,   OSSL_PKEY_PARAM_RSA_EXPONENT1,
    OSSL_PKEY_PARAM_RSA_EXPONENT2, OSSL_PKEY_PARAM_RSA_COEFFICIENT1,
};

/* 1 if a b = 1 mod m. */
static int are_inverse(const BIGNUM *a, const BIGNUM *b, const BIGNUM *m, BN_CTX *context)
{
    BIGNUM *product = BN_CTX_get(context);

    return product != NULL && BN_mod_mul(product, a, b, m, context) && BN_is_one(product);
}

static int belong_together(BIGNUM *const number[NUMBERS], BN_CTX *context)
{
    BIGNUM *product = BN_CTX_get(context), *below_p = BN_CTX_get(context), *below_q = BN_CTX_get(context);

    if (below_q == NULL || !BN_mul(product, number[P], number[Q], context) || BN_cmp(product, number[N]) != 0
        || !BN_sub(below_p, number[P], BN_value_one()) || !BN_sub(below_q, number[Q], BN_value_one()))
        return 0;
    BN_set_flags(below_p, BN_FLG_CONSTTIME);
    BN_set_flags(below_q, BN_FLG_CONSTTIME);
    return are_inverse(number[E], number[D], below_p, context) && are_inverse(number[E], number[D], below_q, context)
           && are_inverse(number[E], number[DP], below_p, context)
           && are_inverse(number[E], number[DQ], below_q, context)
           && are_inverse(number[Q], number[QINV], number[P], context);
}

int gp_key_numbers_fit(const gp_key *key)
{
    BN_CTX *context = BN_CTX_secure_new();
    BIGNUM *number[NUMBERS] = {NULL};
    int fit = context != NULL;

    for (int i = 0; fit && i < NUMBERS; i++) {
        fit = EVP_PKEY_get_bn_param(key->pkey, names[i], &number[i]);
        if (fit)
            BN_set_flags(number[i], BN_FLG_CONSTTIME);
    }
    if (fit) {
        BN_CTX_start(context);
        fit = belong_together(number, context);
        BN_CTX_end(context);
    }
    for (int i = 0; i < NUMBERS; i++)
        BN_clear_free(number[i]);
    BN_CTX_free(context); /* clears what it lent */
    return fit;
}

/* With a factor that is no prime, the numbers may fit and results be wrong all the same. */
static int computes(const gp_key *key)
{
    uint8_t two[GP_MAX_BYTES] = {0}, power[GP_MAX_BYTES];
    int right;

    two[key->bytes - 1] = 2;
    right = gp_key_private(key, two, power);
    OPENSSL_cleanse(power, sizeof(power));
    return right;
}

static int passes_openssl(const gp_key *key)
{
    EVP_PKEY_CTX *context = EVP_PKEY_CTX_new_from_pkey(gp_inner_libctx(), key->pkey, NULL);
    int valid = context != NULL && EVP_PKEY_private_check(context) > 0 && EVP_PKEY_pairwise_check(context) > 0;

    EVP_PKEY_CTX_free(context);
    return valid;
}

int gp_key_check(const gp_key *key, enum gp_key_checks checks)
{
    if (checks == GP_CHECK_NOTHING)
        return 1;
    if (checks == GP_CHECK_PRIMES || gp_key_has_third_factor(key))
        return passes_openssl(key);
    return gp_key_numbers_fit(key) && computes(key);
}
