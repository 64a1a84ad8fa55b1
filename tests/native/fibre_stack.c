/* How much of an async job's 32 KiB stack the provider needs, OpenSSL's own private operation included. The stacks are
 * painted when OpenSSL allocates them, and looked at afterwards. */
#include <openssl/async.h>
#include <openssl/crypto.h>
#include <stdint.h>
#include <string.h>

#include "check.h"
#include "provider/embedded.h"

#define STACK_BYTES 32768u
#define PAINT 0xa5

static uint8_t *painted[8];
static unsigned count;

static void *allocate(size_t size, const char *file, int line)
{
    uint8_t *memory = malloc(size);

    (void)file, (void)line;
    if (size == STACK_BYTES && memory != NULL && count < 8) {
        memset(memory, PAINT, size);
        painted[count++] = memory;
    }
    return memory;
}

static void *reallocate(void *memory, size_t size, const char *file, int line)
{
    (void)file, (void)line;
    return realloc(memory, size);
}

static void release(void *memory, const char *file, int line)
{
    (void)file, (void)line;
    for (unsigned i = 0; i < count; i++)
        if (painted[i] == memory)
            return; /* to be looked at */
    free(memory);
}

struct work {
    OSSL_LIB_CTX *libctx;
    EVP_PKEY *pkey;
};

static void decrypt(const struct work *work, const char *padding)
{
    EVP_PKEY_CTX *context = EVP_PKEY_CTX_new_from_pkey(work->libctx, work->pkey, NULL);
    static uint8_t ciphertext[GP_MAX_BYTES], message[GP_MAX_BYTES];
    size_t size = sizeof(ciphertext), message_size = sizeof(message);

    CHECK(EVP_PKEY_encrypt_init(context) > 0 && EVP_PKEY_CTX_ctrl_str(context, "rsa_padding_mode", padding) > 0);
    CHECK(EVP_PKEY_encrypt(context, ciphertext, &size, (const uint8_t *)"message", 7) > 0);
    CHECK(EVP_PKEY_decrypt_init(context) > 0 && EVP_PKEY_CTX_ctrl_str(context, "rsa_padding_mode", padding) > 0);
    CHECK(EVP_PKEY_decrypt(context, message, &message_size, ciphertext, size) > 0);
    CHECK(message_size == 7 && memcmp(message, "message", 7) == 0);
    EVP_PKEY_CTX_free(context);
}

static int job(void *argument)
{
    const struct work *work = *(struct work *const *)argument;
    EVP_MD_CTX *context = EVP_MD_CTX_new();
    EVP_PKEY_CTX *options;
    static uint8_t signature[GP_MAX_BYTES];
    size_t size = sizeof(signature);

    CHECK(EVP_DigestSignInit_ex(context, &options, "SHA512", work->libctx, NULL, work->pkey, NULL) > 0);
    CHECK(EVP_PKEY_CTX_ctrl_str(options, "rsa_padding_mode", "pss") > 0);
    CHECK(EVP_DigestSign(context, signature, &size, (const uint8_t *)"message", 7) > 0);
    EVP_MD_CTX_free(context);
    decrypt(work, "pkcs1");
    decrypt(work, "oaep");
    return 1;
}

int main(void)
{
    struct work work, *argument = &work;
    gp_client *client;
    ASYNC_JOB *started = NULL;
    ASYNC_WAIT_CTX *wait;
    uint32_t used = 0;
    int result;

    CHECK(CRYPTO_set_mem_functions(allocate, reallocate, release));
    client = gp_client_new(1);
    CHECK(client != NULL);
    gp_client_close(client); /* computed at once, on the job's stack */
    work.libctx = gp_embedded_libctx_new(client);
    work.pkey = EVP_PKEY_Q_keygen(work.libctx, NULL, "RSA", (size_t)4096);
    wait = ASYNC_WAIT_CTX_new();
    CHECK(work.pkey != NULL && wait != NULL);
    CHECK(ASYNC_start_job(&started, wait, &result, job, &argument, sizeof(argument)) == ASYNC_FINISH && result == 1);
    CHECK(count > 0);
    for (unsigned i = 0; i < count; i++) {
        uint32_t untouched = 0;

        while (untouched < STACK_BYTES && painted[i][untouched] == PAINT)
            untouched++;
        if (STACK_BYTES - untouched > used)
            used = STACK_BYTES - untouched;
    }
    printf("%u\n", used);
    return 0;
}
