/* Runs the decoders under valgrind with the decrypted data marked as undefined: memcheck then reports every branch and
 * every address that depends on it. What a caller learns anyway (the message, its length, OAEP's verdict) is declared
 * public only after the decoder has returned. */
#include <string.h>
#include <valgrind/memcheck.h>

#include "check.h"
#include "provider/padding.h"

#define BYTES 128u /* a small key: valgrind makes it slowly */
#define SECRET(memory, size) VALGRIND_MAKE_MEM_UNDEFINED(memory, size)
#define PUBLIC(memory, size) VALGRIND_MAKE_MEM_DEFINED(memory, size)

static void fill(uint8_t encoded[BYTES], uint32_t separator)
{
    memset(encoded, 0x5a, BYTES);
    encoded[0] = 0;
    encoded[1] = 2;
    encoded[separator] = 0;
}

static void check_pkcs1(uint32_t separator, size_t expected)
{
    uint8_t encoded[BYTES], message[BYTES], ciphertext[BYTES] = {1}, rejection_key[32] = {2};
    size_t size;
    int ok;

    fill(encoded, separator);
    SECRET(encoded, BYTES);
    SECRET(rejection_key, sizeof(rejection_key));
    CHECK(gp_pkcs1_decode_implicitly(NULL, rejection_key, ciphertext, encoded, BYTES, message, &size) == 1);
    PUBLIC(&size, sizeof(size));
    CHECK(size < BYTES && (expected == 0 || size == expected));

    /* Without implicit rejection the verdict is public, once it is returned. */
    fill(encoded, separator);
    SECRET(encoded, BYTES);
    size = BYTES;
    ok = gp_pkcs1_decode(encoded, BYTES, message, &size);
    PUBLIC(&ok, sizeof(ok));
    PUBLIC(&size, sizeof(size));
    CHECK(ok == (expected != 0) && size == (ok ? expected : BYTES));
}

static void check_premaster(uint32_t separator, int good)
{
    uint8_t encoded[BYTES], premaster[GP_PREMASTER_BYTES], expected[GP_PREMASTER_BYTES];

    fill(encoded, separator);
    encoded[BYTES - 48] = encoded[BYTES - 47] = 3;
    memcpy(expected, encoded + BYTES - 48, sizeof(expected));
    SECRET(encoded, BYTES);
    CHECK(gp_premaster_decode(NULL, encoded, BYTES, 0x0303, 0x0302, premaster) == 1);
    PUBLIC(premaster, sizeof(premaster));
    CHECK((memcmp(premaster, expected, sizeof(expected)) == 0) == good);
}

static void check_oaep(EVP_PKEY *pkey, EVP_MD *md, int spoil)
{
    EVP_PKEY_CTX *context = EVP_PKEY_CTX_new_from_pkey(NULL, pkey, NULL);
    uint8_t ciphertext[BYTES], encoded[BYTES], message[BYTES];
    size_t size = BYTES;
    int ok;

    /* OpenSSL encodes; raw decryption gives the encoded message. */
    CHECK(EVP_PKEY_encrypt_init(context) > 0 && EVP_PKEY_CTX_ctrl_str(context, "rsa_padding_mode", "oaep") > 0);
    CHECK(EVP_PKEY_encrypt(context, ciphertext, &size, (const uint8_t *)"message", 7) > 0);
    CHECK(EVP_PKEY_decrypt_init(context) > 0 && EVP_PKEY_CTX_ctrl_str(context, "rsa_padding_mode", "none") > 0);
    CHECK(EVP_PKEY_decrypt(context, encoded, &size, ciphertext, BYTES) > 0);
    EVP_PKEY_CTX_free(context);

    if (spoil >= 0)
        encoded[spoil] ^= 1;
    SECRET(encoded, BYTES);
    size = 0;
    ok = gp_oaep_decode(md, md, NULL, 0, encoded, BYTES, message, &size);
    PUBLIC(&ok, sizeof(ok));
    PUBLIC(&size, sizeof(size));
    PUBLIC(message, sizeof(message));
    CHECK(ok == (spoil < 0) && size == (ok ? 7u : 0u) && (!ok || memcmp(message, "message", 7) == 0));
}

int main(void)
{
    EVP_PKEY *pkey = EVP_PKEY_Q_keygen(NULL, NULL, "RSA", (size_t)(8 * BYTES));
    EVP_MD *md = EVP_MD_fetch(NULL, "SHA1", NULL);

    CHECK(RUNNING_ON_VALGRIND && pkey != NULL && md != NULL);
    check_pkcs1(BYTES - 33, 32);
    check_pkcs1(10, BYTES - 11);
    check_pkcs1(9, 0);
    check_pkcs1(1, 0);
    check_premaster(BYTES - 49, 1);
    check_premaster(BYTES - 50, 0);
    check_oaep(pkey, md, -1);
    check_oaep(pkey, md, 0);
    check_oaep(pkey, md, 5);
    check_oaep(pkey, md, 100);
    EVP_MD_free(md);
    EVP_PKEY_free(pkey);
    return 0;
}
