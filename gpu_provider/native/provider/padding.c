#include "provider/padding.h"

#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/obj_mac.h>
#include <openssl/params.h>
#include <openssl/rand.h>
#include <openssl/rsa.h>
#include <string.h>

#include "provider/constant_time.h"

/* ---- EMSA-PKCS1-v1_5 ---- */

#define SHA2_SHA3_PREFIX 19u
#define SHA1_PREFIX 15u

/* DER of DigestInfo up to the digest's value (RFC 8017, appendix A.2.4, and RFC 8702). Returns its length; -1 if md is
 * unknown. */
static int digest_info(const EVP_MD *md, uint8_t prefix[SHA2_SHA3_PREFIX])
{
    static const uint8_t sha1[SHA1_PREFIX] = {0x30, 0x21, 0x30, 0x09, 0x06, 0x05, 0x2b, 0x0e,
                                              0x03, 0x02, 0x1a, 0x05, 0x00, 0x04, 0x14};
    /* nistAlgorithm.hashAlgs, 2.16.840.1.101.3.4.2.x: only x and the lengths differ */
    static const struct {
        int nid;
        uint8_t last_arc;
    } nist[] = {
        {NID_sha256, 1},     {NID_sha384, 2},   {NID_sha512, 3},   {NID_sha224, 4},   {NID_sha512_224, 5},
        {NID_sha512_256, 6}, {NID_sha3_224, 7}, {NID_sha3_256, 8}, {NID_sha3_384, 9}, {NID_sha3_512, 10},
    };
    int nid = EVP_MD_get_type(md);
    uint8_t size = (uint8_t)EVP_MD_get_size(md);
    if (nid == NID_md5_sha1)
        return 0;
    if (nid == NID_sha1) {
        memcpy(prefix, sha1, sizeof(sha1));
        return sizeof(sha1);
    }
    for (size_t i = 0; i < sizeof(nist) / sizeof(nist[0]); i++) {
        if (nist[i].nid == nid) {
            const uint8_t der[SHA2_SHA3_PREFIX] = {
                0x30, (uint8_t)(17 + size), 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04,
                0x02, nist[i].last_arc,     0x05, 0x00, 0x04, size};
            memcpy(prefix, der, sizeof(der));
            return sizeof(der);
        }
    }
    return -1;
}

int gp_pkcs1_encode(uint8_t *encoded, size_t size, const EVP_MD *md, const uint8_t *data, size_t data_size)
{
    uint8_t prefix[SHA2_SHA3_PREFIX];
    int prefix_size = md == NULL ? 0 : digest_info(md, prefix);
    if (prefix_size < 0 || (md != NULL && data_size != (size_t)EVP_MD_get_size(md)))
        return 0;
    size_t content = (size_t)prefix_size + data_size;
    if (content < data_size || size < GP_PKCS1_OVERHEAD || content > size - GP_PKCS1_OVERHEAD)
        return 0;
    size_t separator = size - content - 1;
    encoded[0] = 0;
    encoded[1] = 1;
    memset(encoded + 2, 0xff, separator - 2);
    encoded[separator] = 0;
    memcpy(encoded + separator + 1, prefix, (size_t)prefix_size);
    if (data_size != 0)
        memcpy(encoded + size - data_size, data, data_size);
    return 1;
}

/* ---- MGF1 and EMSA-PSS ---- */

/* target ^= MGF1(seed), RFC 8017 appendix B.2.1. */
static int mgf1_xor(const EVP_MD *md, const uint8_t *seed, size_t seed_size, uint8_t *target, size_t target_size)
{
    EVP_MD_CTX *hash = EVP_MD_CTX_new();
    size_t md_size = (size_t)EVP_MD_get_size(md);
    uint8_t block[EVP_MAX_MD_SIZE];
    int ok = hash != NULL;
    for (uint32_t counter = 0; ok && target_size > 0; counter++) {
        const uint8_t number[4] = {(uint8_t)(counter >> 24), (uint8_t)(counter >> 16), (uint8_t)(counter >> 8),
                                   (uint8_t)counter};
        size_t count = target_size < md_size ? target_size : md_size;
        ok = EVP_DigestInit_ex2(hash, md, NULL) && EVP_DigestUpdate(hash, seed, seed_size)
             && EVP_DigestUpdate(hash, number, sizeof(number)) && EVP_DigestFinal_ex(hash, block, NULL);
        for (size_t i = 0; ok && i < count; i++)
            target[i] ^= block[i];
        target += count;
        target_size -= count;
    }
    OPENSSL_cleanse(block, sizeof(block));
    EVP_MD_CTX_free(hash);
    return ok;
}

static int pss_hash(const EVP_MD *md, const uint8_t *digest, const uint8_t *salt, size_t salt_size, uint8_t *out)
{
    static const uint8_t zeros[8];
    EVP_MD_CTX *hash = EVP_MD_CTX_new();
    int ok = hash != NULL && EVP_DigestInit_ex2(hash, md, NULL) && EVP_DigestUpdate(hash, zeros, sizeof(zeros))
             && EVP_DigestUpdate(hash, digest, (size_t)EVP_MD_get_size(md)) && EVP_DigestUpdate(hash, salt, salt_size)
             && EVP_DigestFinal_ex(hash, out, NULL);
    EVP_MD_CTX_free(hash);
    return ok;
}

enum { SALT_AS_DIGEST = -1, SALT_AUTO = -2, SALT_LONGEST = -3, SALT_LONGEST_UP_TO_DIGEST = -4 };

/* Bytes of salt, if at most `longest` fit; more than that if the length makes no sense. */
static size_t pss_salt_size(int salt_length, size_t longest, size_t md_size)
{
    switch (salt_length) {
    case SALT_AS_DIGEST:
        return md_size;
    case SALT_AUTO:
    case SALT_LONGEST:
        return longest;
    case SALT_LONGEST_UP_TO_DIGEST:
        return longest < md_size ? longest : md_size;
    default:
        return salt_length < 0 ? longest + 1 : (size_t)salt_length;
    }
}

int gp_pss_encode(OSSL_LIB_CTX *libctx, uint8_t *encoded, size_t size, uint32_t bits, const EVP_MD *md,
                  const EVP_MD *mgf1_md, int salt_length, const uint8_t *digest, size_t digest_size)
{
    size_t md_size = (size_t)EVP_MD_get_size(md);
    uint32_t top_bits = (bits - 1) & 7; /* in use in the first byte; 0: that byte is not part of the encoding */
    if (digest_size != md_size)
        return 0;
    if (top_bits == 0) {
        *encoded++ = 0;
        size--;
    }
    if (size < md_size + 2)
        return 0;
    size_t longest = size - md_size - 2, salt_size = pss_salt_size(salt_length, longest, md_size);
    if (salt_size > longest)
        return 0;
    size_t block_size = size - md_size - 1; /* of DB = zeros, 1, salt */
    uint8_t *salt = encoded + block_size - salt_size, *hash = encoded + block_size;
    memset(encoded, 0, block_size - salt_size - 1);
    salt[-1] = 1;
    if ((salt_size > 0 && RAND_bytes_ex(libctx, salt, salt_size, 0) != 1)
        || !pss_hash(md, digest, salt, salt_size, hash) || !mgf1_xor(mgf1_md, hash, md_size, encoded, block_size))
        return 0;
    if (top_bits != 0)
        encoded[0] &= (uint8_t)(0xff >> (8 - top_bits));
    encoded[size - 1] = 0xbc;
    return 1;
}

int gp_pss_check(uint8_t *encoded, size_t size, uint32_t bits, const EVP_MD *md, const EVP_MD *mgf1_md, int salt_length,
                 const uint8_t *digest, size_t digest_size)
{
    size_t md_size = (size_t)EVP_MD_get_size(md), zeros = 0;
    uint32_t top_bits = (bits - 1) & 7; /* as in gp_pss_encode() */
    uint8_t expected[EVP_MAX_MD_SIZE], unused = top_bits != 0 ? (uint8_t)(0xff << top_bits) : 0;
    if (top_bits == 0) {
        if (*encoded++ != 0)
            return 0;
        size--;
    }
    if (digest_size != md_size || size < md_size + 2 || encoded[size - 1] != 0xbc || (encoded[0] & unused) != 0)
        return 0;
    size_t block_size = size - md_size - 1;
    const uint8_t *hash = encoded + block_size;
    if (!mgf1_xor(mgf1_md, hash, md_size, encoded, block_size))
        return 0;
    encoded[0] &= (uint8_t)~unused;
    while (zeros < block_size && encoded[zeros] == 0)
        zeros++;
    if (zeros == block_size || encoded[zeros] != 1)
        return 0;
    size_t salt_size = block_size - zeros - 1;
    return (salt_length == SALT_AUTO || salt_size == pss_salt_size(salt_length, block_size - 1, md_size))
           && pss_hash(md, digest, encoded + zeros + 1, salt_size, expected) && memcmp(expected, hash, md_size) == 0;
}

/* ---- EME-PKCS1-v1_5 with implicit rejection ---- */

#define LENGTH_TRIES 128u

/* The draft's PRF: HMAC-SHA256(key, I2OSP(i, 2) || label || I2OSP(bits, 2)) for i = 0, 1, …; out_size < 8192. */
static int rejection_prf(EVP_MAC_CTX *mac, const uint8_t key[32], const char *label, uint8_t *out, size_t out_size)
{
    const uint8_t bits[2] = {(uint8_t)(out_size * 8 >> 8), (uint8_t)(out_size * 8)};
    uint8_t block[32];
    int ok = 1;
    for (uint32_t counter = 0; ok && out_size > 0; counter++) {
        const uint8_t number[2] = {(uint8_t)(counter >> 8), (uint8_t)counter};
        size_t count = out_size < sizeof(block) ? out_size : sizeof(block);
        ok = EVP_MAC_init(mac, key, 32, NULL) && EVP_MAC_update(mac, number, sizeof(number))
             && EVP_MAC_update(mac, (const uint8_t *)label, strlen(label)) && EVP_MAC_update(mac, bits, sizeof(bits))
             && EVP_MAC_final(mac, block, NULL, sizeof(block));
        memcpy(out, block, count);
        out += count;
        out_size -= count;
    }
    OPENSSL_cleanse(block, sizeof(block));
    return ok;
}

/* The message that stands in for one with bad padding: `size` bytes, of which the last *length count. */
static int rejection_message(OSSL_LIB_CTX *libctx, const uint8_t rejection_key[32], const uint8_t *ciphertext,
                             size_t size, uint8_t *synthetic, uint32_t *length)
{
    uint8_t key[32], candidates[2 * LENGTH_TRIES];
    char sha256[] = "SHA2-256";
    const OSSL_PARAM params[] = {OSSL_PARAM_construct_utf8_string(OSSL_MAC_PARAM_DIGEST, sha256, 0),
                                 OSSL_PARAM_construct_end()};
    EVP_MAC *hmac = EVP_MAC_fetch(libctx, "HMAC", NULL);
    EVP_MAC_CTX *mac = EVP_MAC_CTX_new(hmac);
    int ok = mac != NULL && EVP_MAC_init(mac, rejection_key, 32, params) && EVP_MAC_update(mac, ciphertext, size)
             && EVP_MAC_final(mac, key, NULL, sizeof(key)) && rejection_prf(mac, key, "message", synthetic, size)
             && rejection_prf(mac, key, "length", candidates, sizeof(candidates));
    uint32_t limit = (uint32_t)size - 10, mask = limit; /* 10: two leading bytes and eight of padding */
    for (uint32_t shift = 1; shift < 16; shift <<= 1)
        mask |= mask >> shift;
    *length = 0;
    for (size_t i = 0; ok && i < sizeof(candidates); i += 2) {
        uint32_t candidate = ((uint32_t)candidates[i] << 8 | candidates[i + 1]) & mask;
        *length = ct_select(ct_less(candidate, limit), candidate, *length);
    }
    EVP_MAC_CTX_free(mac);
    EVP_MAC_free(hmac);
    OPENSSL_cleanse(key, sizeof(key));
    OPENSSL_cleanse(candidates, sizeof(candidates));
    return ok;
}

/* All ones if the padding is right; *separator is then where it ends. */
static uint32_t find_separator(const uint8_t *encoded, size_t size, uint32_t *separator)
{
    uint32_t found = 0;
    *separator = 0;
    for (uint32_t i = 2; i < size; i++) {
        uint32_t zero = ct_is_zero(encoded[i]);
        *separator = ct_select(~found & zero, i, *separator);
        found |= zero;
    }
    /* The separator stays 0 where there was none, which is too early as well. */
    return ct_is_zero(encoded[0]) & ct_equal(encoded[1], 2) & ~ct_less(*separator, 2 + 8);
}

/* message = encoded[start …], length bytes. encoded is overwritten; what lies beyond message stays as it was. */
static void take_message(uint8_t *encoded, size_t size, uint32_t start, uint32_t length, uint8_t *message)
{
    ct_shift_left(encoded, size, start);
    for (uint32_t i = 0; i < size; i++)
        message[i] = ct_select_byte(ct_less(i, length), encoded[i], message[i]);
}

int gp_pkcs1_decode(uint8_t *encoded, size_t size, uint8_t *message, size_t *message_size)
{
    uint32_t separator, good = find_separator(encoded, size, &separator);
    uint32_t start = separator + 1, length = ct_select(good, (uint32_t)size - start, 0);
    take_message(encoded, size, start, length, message);
    *message_size = ct_select_size(good, length, *message_size);
    return (int)(good & 1);
}

int gp_pkcs1_decode_implicitly(OSSL_LIB_CTX *libctx, const uint8_t rejection_key[32], const uint8_t *ciphertext,
                               uint8_t *encoded, size_t size, uint8_t *message, size_t *message_size)
{
    uint32_t rejected_length, separator;
    uint8_t *synthetic = OPENSSL_malloc(size);
    if (synthetic == NULL || !rejection_message(libctx, rejection_key, ciphertext, size, synthetic, &rejected_length)) {
        OPENSSL_clear_free(synthetic, size);
        return 0;
    }
    uint32_t good = find_separator(encoded, size, &separator);
    uint32_t start = ct_select(good, separator + 1, (uint32_t)size - rejected_length);
    for (size_t i = 0; i < size; i++)
        encoded[i] = ct_select_byte(good, encoded[i], synthetic[i]);
    take_message(encoded, size, start, (uint32_t)size - start, message);
    *message_size = size - start;
    OPENSSL_clear_free(synthetic, size);
    return 1;
}

/* ---- the TLS premaster secret ---- */

static uint32_t is_version(const uint8_t *premaster, uint32_t version)
{
    return ct_equal(premaster[0], version >> 8 & 0xff) & ct_equal(premaster[1], version & 0xff);
}

int gp_premaster_decode(OSSL_LIB_CTX *libctx, const uint8_t *encoded, size_t size, uint32_t client_version,
                        uint32_t alternative_version, uint8_t premaster[GP_PREMASTER_BYTES])
{
    size_t separator = size - GP_PREMASTER_BYTES - 1;
    const uint8_t *content = encoded + separator + 1;
    if (RAND_priv_bytes_ex(libctx, premaster, GP_PREMASTER_BYTES, 0) != 1)
        return 0;
    uint32_t good = ct_is_zero(encoded[0]) & ct_equal(encoded[1], 2) & ct_is_zero(encoded[separator]);
    for (size_t i = 2; i < separator; i++)
        good &= ~ct_is_zero(encoded[i]);
    uint32_t version = is_version(content, client_version);
    if (alternative_version != 0)
        version |= is_version(content, alternative_version);
    good &= version;
    for (size_t i = 0; i < GP_PREMASTER_BYTES; i++)
        premaster[i] = ct_select_byte(good, content[i], premaster[i]);
    return 1;
}

/* ---- EME-OAEP ---- */

int gp_oaep_decode(const EVP_MD *md, const EVP_MD *mgf1_md, const uint8_t *label, size_t label_size, uint8_t *encoded,
                   size_t size, uint8_t *message, size_t *message_size)
{
    size_t md_size = (size_t)EVP_MD_get_size(md);
    uint8_t label_hash[EVP_MAX_MD_SIZE];
    if (size < 2 * md_size + 2)
        return 0;
    uint8_t *seed = encoded + 1, *block = seed + md_size; /* block: label hash, zeros, 1, message */
    size_t block_size = size - md_size - 1;
    if (!mgf1_xor(mgf1_md, block, block_size, seed, md_size) || !mgf1_xor(mgf1_md, seed, md_size, block, block_size)
        || !EVP_Digest(label, label_size, label_hash, NULL, md, NULL))
        return 0;
    uint32_t good = ct_is_zero(encoded[0]) & ct_is_zero((uint32_t)CRYPTO_memcmp(block, label_hash, md_size));
    uint32_t found = 0, separator = 0;
    for (uint32_t i = (uint32_t)md_size; i < block_size; i++) {
        uint32_t one = ct_equal(block[i], 1);
        separator = ct_select(~found & one, i, separator);
        found |= one;
        good &= found | ct_is_zero(block[i]);
    }
    good &= found;
    uint32_t start = separator + 1, length = ct_select(good, (uint32_t)block_size - start, 0);
    take_message(block, block_size, start, length, message);
    *message_size = ct_select_size(good, length, *message_size);
    return (int)(good & 1);
}
