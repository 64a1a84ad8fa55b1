#include "keys/key_record.h"

#include <openssl/crypto.h>
#include <openssl/err.h>

#include "keys/check.h"
#include "keys/key.h"

enum { N, E, P, Q, DP, DQ, QINV };

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
    /* If the numbers didn't fit, the device would fail every check of this key's results, and seem broken. */
    if (gp_key_read_numbers(key, &numbers) && gp_key_numbers_fit(key)
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
