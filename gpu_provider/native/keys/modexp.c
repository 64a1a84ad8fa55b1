#include "keys/modexp.h"

#include <openssl/bn.h>
#include <openssl/crypto.h>
#include <openssl/err.h>
#include <string.h>

#define MAX_WORDS (GP_MAX_MODEXP_BYTES / 8)

/* Numbers of 64-bit words, least significant first, modulo powers of 2^64: for the power of two in an even modulus. */
typedef uint64_t words_t[MAX_WORDS];

static void words_from_bytes(uint64_t *to, const uint8_t *bytes, uint32_t words)
{
    for (uint32_t i = 0; i < words; i++) {
        to[i] = 0;
        for (int byte = 7; byte >= 0; byte--)
            to[i] = to[i] << 8 | bytes[8 * (size_t)i + (size_t)byte];
    }
}

static void words_to_bytes(uint8_t *bytes, const uint64_t *from, uint32_t words)
{
    for (size_t i = 0; i < 8 * (size_t)words; i++)
        bytes[i] = (uint8_t)(from[i / 8] >> 8 * (i % 8));
}

/* product = a b; it is neither of them */
static void multiply(uint64_t *product, const uint64_t *a, const uint64_t *b, uint32_t words)
{
    memset(product, 0, words * sizeof(*product));
    for (uint32_t i = 0; i < words; i++) {
        uint64_t carry = 0;
        for (uint32_t j = 0; j < words - i; j++) {
            const unsigned __int128 sum = (unsigned __int128)a[i] * b[j] + product[i + j] + carry;
            product[i + j] = (uint64_t)sum;
            carry = (uint64_t)(sum >> 64);
        }
    }
}

static void add(uint64_t *sum, const uint64_t *a, const uint64_t *b, uint32_t words)
{
    unsigned __int128 carry = 0;

    for (uint32_t i = 0; i < words; i++) {
        carry += (unsigned __int128)a[i] + b[i];
        sum[i] = (uint64_t)carry;
        carry >>= 64;
    }
}

/* difference = a - b */
static void subtract(uint64_t *difference, const uint64_t *a, const uint64_t *b, uint32_t words)
{
    uint64_t borrow = 0;

    for (uint32_t i = 0; i < words; i++) {
        const unsigned __int128 d = (unsigned __int128)a[i] - b[i] - borrow;
        difference[i] = (uint64_t)d;
        borrow = (uint64_t)(d >> 64) & 1;
    }
}

/* inverse = 1 / a for odd a, by Newton's iteration: each step doubles the correct bits. */
static void invert(uint64_t *inverse, const uint64_t *a, uint32_t words)
{
    words_t product, two = {2};

    memcpy(inverse, a, words * sizeof(*inverse)); /* correct mod 8 */
    for (uint32_t bits = 3; bits < 64 * words; bits *= 2) {
        multiply(product, a, inverse, words);
        subtract(product, two, product, words);
        words_t next;
        multiply(next, inverse, product, words);
        memcpy(inverse, next, words * sizeof(*inverse));
    }
}

/* result = base^exponent, a product for every bit of the exponent's whole length, which is kept or not */
static void power(uint64_t *result, const uint64_t *base, const uint8_t *exponent, uint32_t exponent_bytes,
                  uint32_t words)
{
    words_t square, product;

    memset(result, 0, words * sizeof(*result));
    result[0] = 1;
    for (uint32_t bit = 8 * exponent_bytes; bit-- > 0;) {
        uint64_t keep = 0 - (uint64_t)(exponent[bit / 8] >> bit % 8 & 1);
        __asm__("" : "+r"(keep)); /* or the compiler may make a branch of it */
        multiply(square, result, result, words);
        multiply(product, square, base, words);
        for (uint32_t i = 0; i < words; i++)
            result[i] = square[i] ^ (keep & (square[i] ^ product[i]));
    }
    OPENSSL_cleanse(square, sizeof(square));
    OPENSSL_cleanse(product, sizeof(product));
}

struct numbers {
    BN_CTX *context;
    BIGNUM *result, *base, *exponent, *modulus;
    BN_MONT_CTX *montgomery;    /* of modulus, if that is odd */
    const uint8_t *modulus_row; /* what modulus and montgomery are made of, if that is not NULL */
    int public_exponents;
};

/* montgomery: NULL if it is not known for the modulus */
static int odd_row(const struct numbers *numbers, BN_MONT_CTX *montgomery, uint8_t *output, uint32_t stride)
{
    int (*const compute)(BIGNUM *, const BIGNUM *, const BIGNUM *, const BIGNUM *, BN_CTX *, BN_MONT_CTX *) =
        numbers->public_exponents ? BN_mod_exp_mont : BN_mod_exp_mont_consttime;

    return compute(numbers->result, numbers->base, numbers->exponent, numbers->modulus, numbers->context, montgomery)
           && BN_bn2lebinpad(numbers->result, output, (int)stride) == (int)stride;
}

/* For m = 2^k q with an odd q: x = base^exponent is known mod q and mod 2^k, so x = (x mod q) + q y, where
 * y = (x - (x mod q)) / q mod 2^k (Koc, "Montgomery reduction with even modulus", IEE Proceedings 141, 1994). */
static int even_row(const struct numbers *numbers, const uint8_t *base, const uint8_t *exponent,
                    uint32_t exponent_stride, uint8_t *output, uint32_t stride)
{
    const uint32_t words = stride / 8;
    words_t b, q, x, y, inverse;
    uint32_t k = 0;

    while (!BN_is_bit_set(numbers->modulus, (int)k))
        k++;
    if (!BN_rshift(numbers->modulus, numbers->modulus, (int)k)
        || BN_bn2lebinpad(numbers->modulus, output, (int)stride) != (int)stride
        || !BN_nnmod(numbers->base, numbers->base, numbers->modulus, numbers->context))
        return 0;
    words_from_bytes(q, output, words);
    if (!odd_row(numbers, NULL, output, stride))
        return 0;
    const uint32_t low = (k + 63) / 64; /* the words of a number mod 2^k */
    words_from_bytes(b, base, words);
    power(y, b, exponent, exponent_stride, low);
    words_from_bytes(x, output, words);
    subtract(y, y, x, low);
    invert(inverse, q, low);
    multiply(b, y, inverse, low);
    memset(b + low, 0, (words - low) * sizeof(*b));
    if (k % 64 != 0)
        b[low - 1] &= (UINT64_C(1) << k % 64) - 1;
    multiply(y, q, b, words); /* below the modulus */
    add(x, x, y, words);
    words_to_bytes(output, x, words);
    OPENSSL_cleanse(b, sizeof(b));
    OPENSSL_cleanse(x, sizeof(x));
    OPENSSL_cleanse(y, sizeof(y));
    return 1;
}

/* Neighbours often share a modulus, whose constants cost as much as short powers. */
static int set_modulus(struct numbers *numbers, const uint8_t *row, uint32_t stride)
{
    if (numbers->modulus_row != NULL && memcmp(row, numbers->modulus_row, stride) == 0)
        return 1;
    numbers->modulus_row = NULL;
    if (BN_lebin2bn(row, (int)stride, numbers->modulus) == NULL || BN_is_zero(numbers->modulus))
        return 0;
    if (BN_is_odd(numbers->modulus)) {
        if (!BN_MONT_CTX_set(numbers->montgomery, numbers->modulus, numbers->context))
            return 0;
        numbers->modulus_row = row; /* even_row() changes an even modulus */
    }
    return 1;
}

static int modexp_row(struct numbers *numbers, const uint8_t *base, const uint8_t *exponent, uint32_t exponent_stride,
                      const uint8_t *modulus, uint8_t *output, uint32_t stride)
{
    if (BN_lebin2bn(base, (int)stride, numbers->base) == NULL
        || BN_lebin2bn(exponent, (int)exponent_stride, numbers->exponent) == NULL
        || !set_modulus(numbers, modulus, stride))
        return 0;
    if (!numbers->public_exponents) {
        BN_set_flags(numbers->base, BN_FLG_CONSTTIME);
        BN_set_flags(numbers->exponent, BN_FLG_CONSTTIME);
    }
    if (BN_is_odd(numbers->modulus))
        return odd_row(numbers, numbers->montgomery, output, stride);
    return even_row(numbers, base, exponent, exponent_stride, output, stride);
}

static int numbers_new(struct numbers *numbers)
{
    *numbers = (struct numbers){BN_CTX_new(), BN_new(), BN_new(), BN_new(), BN_new(), BN_MONT_CTX_new(), NULL, 0};
    return numbers->context != NULL && numbers->result != NULL && numbers->base != NULL && numbers->exponent != NULL
           && numbers->modulus != NULL && numbers->montgomery != NULL;
}

static void numbers_free(struct numbers *numbers)
{
    BN_clear_free(numbers->result);
    BN_clear_free(numbers->base);
    BN_clear_free(numbers->exponent);
    BN_free(numbers->modulus);
    BN_MONT_CTX_free(numbers->montgomery);
    BN_CTX_free(numbers->context);
    ERR_clear_error();
}

int gp_libcrypto_modexp(uint32_t count, const uint8_t *bases, const uint8_t *exponents, uint32_t exponent_stride,
                        const uint8_t *moduli, uint8_t *outputs, uint32_t stride, int public_exponents)
{
    struct numbers numbers;
    int ok = numbers_new(&numbers);

    numbers.public_exponents = public_exponents;
    for (uint32_t i = 0; ok && i < count; i++)
        ok = modexp_row(&numbers, bases + (size_t)i * stride, exponents + (size_t)i * exponent_stride, exponent_stride,
                        moduli + (size_t)i * stride, outputs + (size_t)i * stride, stride);
    numbers_free(&numbers);
    return ok;
}

int64_t gp_libcrypto_inverse(uint32_t count, const uint8_t *rows, const uint8_t *moduli, uint8_t *outputs,
                             uint32_t stride)
{
    struct numbers numbers;
    int64_t done = numbers_new(&numbers) ? 0 : -1;

    while (done >= 0 && done < count) {
        const size_t at = (size_t)done * stride;
        if (BN_lebin2bn(rows + at, (int)stride, numbers.base) == NULL
            || BN_lebin2bn(moduli + at, (int)stride, numbers.modulus) == NULL) {
            done = -1;
            break;
        }
        BN_set_flags(numbers.base, BN_FLG_CONSTTIME);
        if (BN_is_one(numbers.modulus)) { /* where 0 is everything's inverse; OpenSSL finds none */
            BN_zero(numbers.result);
        } else if (BN_mod_inverse(numbers.result, numbers.base, numbers.modulus, numbers.context) == NULL) {
            done = ERR_GET_REASON(ERR_peek_last_error()) == BN_R_NO_INVERSE ? done : -1;
            break;
        }
        if (BN_bn2lebinpad(numbers.result, outputs + at, (int)stride) != (int)stride) {
            done = -1;
            break;
        }
        done++;
    }
    numbers_free(&numbers);
    return done;
}
