#include "keys/libcrypto.h"

#include <openssl/crypto.h>
#include <openssl/err.h>
#include <string.h>

#include "keys/key.h"

/* Neighbours in a batch often share a key: one look-up serves a run of them. */
struct key_cache {
    gp_key_handle handle;
    gp_key *key;
};

static const gp_key *cached(struct key_cache *cache, gp_key_table *keys, gp_key_handle handle)
{
    if (cache->key == NULL || cache->handle != handle) {
        gp_key_free(cache->key);
        cache->key = gp_key_table_get(keys, handle);
        cache->handle = handle;
    }
    return cache->key;
}

static void reverse(uint8_t *to, const uint8_t *from, uint32_t bytes)
{
    for (uint32_t i = 0; i < bytes; i++)
        to[i] = from[bytes - 1 - i];
}

void gp_libcrypto_private(gp_key_table *keys, uint32_t count, const gp_key_handle *handles, const uint8_t *inputs,
                          uint8_t *outputs, uint32_t stride, uint8_t *ok)
{
    struct key_cache cache = {0};
    uint8_t input[GP_MAX_BYTES], output[GP_MAX_BYTES];

    for (uint32_t i = 0; i < count; i++) {
        const gp_key *key = cached(&cache, keys, handles[i]);
        uint8_t *row = outputs + (size_t)i * stride;

        ok[i] = 0;
        memset(row, 0, stride);
        if (key == NULL || key->bytes > stride)
            continue;
        reverse(input, inputs + (size_t)i * stride, key->bytes);
        if (gp_key_private(key, input, output)) {
            reverse(row, output, key->bytes);
            ok[i] = 1;
        }
    }
    OPENSSL_cleanse(output, sizeof(output));
    gp_key_free(cache.key);
    ERR_clear_error(); /* this thread serves everyone: what failed is told by ok[] alone */
}

uint32_t gp_libcrypto_verify(gp_key_table *keys, uint32_t count, const gp_key_handle *handles, const uint8_t *inputs,
                             const uint8_t *outputs, uint32_t stride, uint8_t *ok)
{
    struct key_cache cache = {0};
    uint8_t result[GP_MAX_BYTES], power[GP_MAX_BYTES], expected[GP_MAX_BYTES];
    uint32_t cleared = 0;

    for (uint32_t i = 0; i < count; i++) {
        const gp_key *key;

        if (!ok[i])
            continue;
        key = cached(&cache, keys, handles[i]);
        if (key != NULL && key->bytes <= stride) {
            reverse(result, outputs + (size_t)i * stride, key->bytes);
            reverse(expected, inputs + (size_t)i * stride, key->bytes);
            if (gp_key_in_range(key, result) && gp_key_public(key, result, power)
                && CRYPTO_memcmp(power, expected, key->bytes) == 0)
                continue;
        }
        ok[i] = 0;
        cleared++;
    }
    OPENSSL_cleanse(result, sizeof(result));
    gp_key_free(cache.key);
    ERR_clear_error();
    return cleared;
}
