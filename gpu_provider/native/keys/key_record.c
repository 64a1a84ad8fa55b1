#include "keys/key_record.h"

#include <openssl/bn.h>
#include <openssl/crypto.h>
#include <openssl/err.h>

#include "keys/key.h"

enum { N, E, P, Q, DP, DQ, QINV, NUMBERS };

/* 1 if a b = 1 mod m, or, where `less` is set, mod m - 1. */
static int is_one(const BIGNUM *a, const BIGNUM *b, BIGNUM *modulus, int less, BN_CTX *context)
{
    BIGNUM *product = BN_CTX_get(context);
    int one = product != NULL && (!less || BN_sub_word(modulus, 1)) && BN_mod_mul(product, a, b, modulus, context)
              && BN_is_one(product);

    if (less)
        BN_add_word(modulus, 1);
    return one;
}

/* Whether p q = n, e dP = 1 mod p - 1, e dQ = 1 mod q - 1 and q qInv = 1 mod p: if not, the device would fail every
 * check of this key's results, and seem broken. */
static int belong_together(const struct gp_key_numbers *numbers)
{
    BN_CTX *context = BN_CTX_new();
    BIGNUM *number[NUMBERS], *product = NULL;
    int right = context != NULL;

    for (int i = 0; i < NUMBERS; i++) {
        number[i] = BN_lebin2bn(numbers->number[i].bytes, (int)numbers->number[i].size, NULL);
        if (number[i] == NULL)
            right = 0;
        else
            BN_set_flags(number[i], BN_FLG_CONSTTIME);
    }
    if (right) {
        BN_CTX_start(context);
        product = BN_CTX_get(context);
        right = product != NULL && BN_mul(product, number[P], number[Q], context) && BN_cmp(product, number[N]) == 0
                && is_one(number[E], number[DP], number[P], 1, context)
                && is_one(number[E], number[DQ], number[Q], 1, context)
                && is_one(number[Q], number[QINV], number[P], 0, context);
        BN_CTX_end(context);
    }
    for (int i = 0; i < NUMBERS; i++)
        BN_clear_free(number[i]);
    BN_CTX_free(context); /* clears what it lent */
    return right;
}

/* Neither is secret: the length of a factor, and the public exponent. */
static uint32_t bits_of(const struct gpk_number *number)
{
    return (uint32_t)number->size * 8 + 24 - (uint32_t)__builtin_clz(number->bytes[number->size - 1]);
}

static uint64_t small_number(const struct gpk_number *number)
{
    uint64_t value = 0;

    for (size_t i = 0; i < number->size && i < 8; i++)
        value |= (uint64_t)number->bytes[i] << 8 * i;
    return value;
}

enum gpk_status gp_key_record_fill(gp_key_table *keys, gp_key_handle handle, gp_key_record_writer *write,
                                   int radix_bits, int class_bytes, void *memory, struct gp_key_record *record)
{
    gp_key *key = gp_key_table_get(keys, handle);
    struct gp_key_numbers numbers;
    const struct gpk_number *number = numbers.number;
    enum gpk_status status = GPK_UNSUPPORTED;

    if (key == NULL)
        return GPK_INVALID;
    ERR_set_mark(); /* a key without factors is no error: OpenSSL computes with it */
    if (gp_key_read_numbers(key, &numbers) && belong_together(&numbers)
        && write(radix_bits, class_bytes, memory, number[N], number[E], number[P], number[Q], number[DP], number[DQ],
                 number[QINV])
               == GPK_OK) {
        const uint32_t p_bits = bits_of(&number[P]), q_bits = bits_of(&number[Q]);

        record->prime_bits = p_bits > q_bits ? p_bits : q_bits;
        record->e = small_number(&number[E]);
        status = GPK_OK;
    }
    ERR_pop_to_mark();
    OPENSSL_cleanse(&numbers, sizeof(numbers));
    gp_key_free(key);
    return status;
}
