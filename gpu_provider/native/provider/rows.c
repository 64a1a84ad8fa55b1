#include "provider/rows.h"

#include <openssl/bn.h>
#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <string.h>

#include "keys/key.h"
#include "provider/padding.h"

#define WIDEST 1024u /* bytes of the longest modulus that a signature is checked with */

struct digests {
    EVP_MD *md; /* NULL: the scheme has none */
    EVP_MD *mgf1_md;
};

static void free_digests(struct digests *digests)
{
    EVP_MD_free(digests->md);
    EVP_MD_free(digests->mgf1_md);
    ERR_clear_error(); /* what failed is told by the result alone */
}

static EVP_MD *fetch_digest(const char *name)
{
    EVP_MD *md = EVP_MD_fetch(gp_inner_libctx(), name, NULL);
    if (md != NULL && EVP_MD_get_size(md) <= 0) {
        EVP_MD_free(md);
        md = NULL;
    }
    return md;
}

static int fetch_digests(const struct gp_rows_scheme *scheme, struct digests *digests)
{
    digests->md = scheme->digest != NULL ? fetch_digest(scheme->digest) : NULL;
    digests->mgf1_md = scheme->mgf1_digest != NULL ? fetch_digest(scheme->mgf1_digest) : NULL;
    if ((scheme->digest != NULL && digests->md == NULL) || (scheme->mgf1_digest != NULL && digests->mgf1_md == NULL)) {
        free_digests(digests);
        return 0;
    }
    return 1;
}

static void reverse(uint8_t *to, const uint8_t *from, uint32_t bytes)
{
    for (uint32_t i = 0; i < bytes; i++)
        to[i] = from[bytes - 1 - i];
}

/* ---- signatures ---- */

static int encode(const struct gp_rows_scheme *scheme, const struct digests *digests, uint8_t *encoded, uint32_t bits,
                  const uint8_t *data, uint32_t size)
{
    size_t bytes = (bits + 7) / 8;
    if (scheme->padding == GP_ROWS_PSS)
        return gp_pss_encode(gp_inner_libctx(), encoded, bytes, bits, digests->md, digests->mgf1_md,
                             scheme->salt_length, data, size);
    return gp_pkcs1_encode(encoded, bytes, digests->md, data, size);
}

static int is_encoding(const struct gp_rows_scheme *scheme, const struct digests *digests, uint8_t *encoded,
                       uint32_t bits, const uint8_t *data, uint32_t size)
{
    uint8_t expected[WIDEST];
    uint32_t bytes = (bits + 7) / 8;
    if (scheme->padding == GP_ROWS_PSS)
        return gp_pss_check(encoded, bytes, bits, digests->md, digests->mgf1_md, scheme->salt_length, data, size);
    return gp_pkcs1_encode(expected, bytes, digests->md, data, size) && memcmp(expected, encoded, bytes) == 0;
}

/* gp_pkcs1_encode() doesn't tell an unknown digest from one that does not fit. */
static int digest_is_known(const struct gp_rows_scheme *scheme, const struct digests *digests)
{
    uint8_t encoded[WIDEST], digest[EVP_MAX_MD_SIZE] = {0};
    return scheme->padding != GP_ROWS_PKCS1 || digests->md == NULL
           || gp_pkcs1_encode(encoded, sizeof(encoded), digests->md, digest, (size_t)EVP_MD_get_size(digests->md));
}

enum gp_rows_result gp_rows_encode(const struct gp_rows_scheme *scheme, uint32_t count, const uint32_t *bits,
                                   const uint8_t *data, const uint32_t *sizes, uint8_t *rows, uint32_t stride,
                                   uint8_t *ok)
{
    struct digests digests;
    uint8_t encoded[WIDEST];
    if (!fetch_digests(scheme, &digests))
        return GP_ROWS_UNKNOWN_DIGEST;
    int known = digest_is_known(scheme, &digests);
    for (uint32_t i = 0; known && i < count; i++) {
        uint32_t bytes = (bits[i] + 7) / 8;
        uint8_t *row = rows + (size_t)i * stride;
        memset(row, 0, stride);
        ok[i] = bytes <= stride && bytes <= WIDEST && encode(scheme, &digests, encoded, bits[i], data, sizes[i]);
        if (ok[i])
            reverse(row, encoded, bytes);
        data += sizes[i];
    }
    free_digests(&digests);
    return known ? GP_ROWS_OK : GP_ROWS_UNKNOWN_DIGEST;
}

enum gp_rows_result gp_rows_check(const struct gp_rows_scheme *scheme, uint32_t count, const uint32_t *bits,
                                  const uint8_t *data, const uint32_t *sizes, const uint8_t *rows, uint32_t stride,
                                  uint8_t *ok)
{
    struct digests digests;
    uint8_t encoded[WIDEST];
    if (!fetch_digests(scheme, &digests))
        return GP_ROWS_UNKNOWN_DIGEST;
    int known = digest_is_known(scheme, &digests);
    for (uint32_t i = 0; known && i < count; i++) {
        uint32_t bytes = (bits[i] + 7) / 8;
        ok[i] = 0;
        if (bytes <= stride && bytes <= WIDEST) {
            reverse(encoded, rows + (size_t)i * stride, bytes);
            ok[i] = (uint8_t)is_encoding(scheme, &digests, encoded, bits[i], data, sizes[i]);
        }
        data += sizes[i];
    }
    free_digests(&digests);
    return known ? GP_ROWS_OK : GP_ROWS_UNKNOWN_DIGEST;
}

/* ---- decryption ---- */

/* What rows with one key have in common; they often come one after the other. */
struct decoder {
    gp_key *key;
    gp_key_handle handle;
    uint8_t rejection_key[32]; /* of PKCS #1 v1.5: SHA-256 of d */
    uint8_t ciphertext[GP_MAX_BYTES], encoded[GP_MAX_BYTES];
};

static int make_rejection_key(struct decoder *decoder)
{
    uint8_t exponent[GP_MAX_BYTES];
    BIGNUM *d = NULL;
    int bytes = (int)decoder->key->bytes;
    int ok =
        EVP_PKEY_get_bn_param(decoder->key->pkey, OSSL_PKEY_PARAM_RSA_D, &d)
        && BN_bn2binpad(d, exponent, bytes) == bytes
        && EVP_Q_digest(gp_inner_libctx(), "SHA2-256", NULL, exponent, (size_t)bytes, decoder->rejection_key, NULL);
    BN_clear_free(d);
    OPENSSL_cleanse(exponent, sizeof(exponent));
    return ok;
}

static int use_key(struct decoder *decoder, gp_key_table *keys, gp_key_handle handle, enum gp_rows_padding padding)
{
    if (decoder->key != NULL && decoder->handle == handle)
        return 1;
    gp_key_free(decoder->key);
    decoder->key = gp_key_table_get(keys, handle);
    decoder->handle = handle;
    return decoder->key != NULL && (padding != GP_ROWS_PKCS1 || make_rejection_key(decoder));
}

static int decode(const struct gp_rows_scheme *scheme, const struct digests *digests, struct decoder *decoder,
                  uint8_t *message, size_t *size)
{
    if (scheme->padding == GP_ROWS_OAEP)
        return gp_oaep_decode(digests->md, digests->mgf1_md, scheme->label, scheme->label_size, decoder->encoded,
                              decoder->key->bytes, message, size);
    return gp_pkcs1_decode_implicitly(gp_inner_libctx(), decoder->rejection_key, decoder->ciphertext, decoder->encoded,
                                      decoder->key->bytes, message, size);
}

enum gp_rows_result gp_rows_decode(const struct gp_rows_scheme *scheme, gp_key_table *keys, uint32_t count,
                                   const gp_key_handle *handles, const uint8_t *ciphertexts, const uint8_t *rows,
                                   uint32_t stride, uint8_t *messages, uint32_t *sizes, uint8_t *ok)
{
    struct decoder decoder = {0};
    struct digests digests;
    enum gp_rows_result result = GP_ROWS_OK;
    if (!fetch_digests(scheme, &digests))
        return GP_ROWS_UNKNOWN_DIGEST;
    for (uint32_t i = 0; result == GP_ROWS_OK && i < count; i++) {
        size_t size = 0;
        if (use_key(&decoder, keys, handles[i], scheme->padding) && decoder.key->bytes <= stride) {
            reverse(decoder.ciphertext, ciphertexts + (size_t)i * stride, decoder.key->bytes);
            reverse(decoder.encoded, rows + (size_t)i * stride, decoder.key->bytes);
            ok[i] = (uint8_t)decode(scheme, &digests, &decoder, messages + (size_t)i * stride, &size);
            sizes[i] = (uint32_t)size;
        } else {
            result = GP_ROWS_MEMORY;
        }
    }
    gp_key_free(decoder.key);
    OPENSSL_cleanse(&decoder, sizeof(decoder));
    free_digests(&digests);
    return result;
}
