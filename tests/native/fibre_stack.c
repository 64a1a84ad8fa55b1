/* How much of an async job's 32 KiB stack the provider needs, OpenSSL's own private operation included. The stacks are
 * painted when OpenSSL allocates them, and looked at afterwards. With a configuration as argument the provider is the
 * module that it loads, and jobs compute groups, those of others too. */
#include <openssl/async.h>
#include <openssl/crypto.h>
#include <stdint.h>
#include <string.h>

#include "check.h"
#include "provider/embedded.h"

#define STACK_BYTES 32768u
#define PAINT 0xa5

#define JOBS 24

static uint8_t *painted[JOBS];
static unsigned count;

static void *allocate(size_t size, const char *file, int line)
{
    uint8_t *memory = malloc(size);

    (void)file, (void)line;
    if (size == STACK_BYTES && memory != NULL && count < JOBS) {
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
    uint8_t *ciphertext = malloc(GP_MAX_BYTES), *message = malloc(GP_MAX_BYTES);
    size_t size = GP_MAX_BYTES, message_size = GP_MAX_BYTES;

    CHECK(EVP_PKEY_encrypt_init(context) > 0 && EVP_PKEY_CTX_ctrl_str(context, "rsa_padding_mode", padding) > 0);
    CHECK(EVP_PKEY_encrypt(context, ciphertext, &size, (const uint8_t *)"message", 7) > 0);
    CHECK(EVP_PKEY_decrypt_init(context) > 0 && EVP_PKEY_CTX_ctrl_str(context, "rsa_padding_mode", padding) > 0);
    CHECK(EVP_PKEY_decrypt(context, message, &message_size, ciphertext, size) > 0);
    CHECK(message_size == 7 && memcmp(message, "message", 7) == 0);
    EVP_PKEY_CTX_free(context);
    free(ciphertext);
    free(message);
}

static int job(void *argument)
{
    const struct work *work = *(struct work *const *)argument;
    EVP_MD_CTX *context = EVP_MD_CTX_new();
    EVP_PKEY_CTX *options;
    uint8_t *signature = malloc(GP_MAX_BYTES);
    size_t size = GP_MAX_BYTES;

    CHECK(EVP_DigestSignInit_ex(context, &options, "SHA512", work->libctx, NULL, work->pkey, NULL) > 0);
    CHECK(EVP_PKEY_CTX_ctrl_str(options, "rsa_padding_mode", "pss") > 0);
    CHECK(EVP_DigestSign(context, signature, &size, (const uint8_t *)"message", 7) > 0);
    EVP_MD_CTX_free(context);
    free(signature);
    decrypt(work, "pkcs1");
    decrypt(work, "oaep");
    return 1;
}

static OSSL_LIB_CTX *library_context(const char *configuration)
{
    OSSL_LIB_CTX *libctx;

    if (configuration == NULL) {
        gp_client *client = gp_client_new(1);

        CHECK(client != NULL);
        gp_client_close(client); /* computed at once, on the job's stack */
        return gp_embedded_libctx_new(client);
    }
    libctx = OSSL_LIB_CTX_new();
    CHECK(OSSL_LIB_CTX_load_config(libctx, configuration));
    return libctx;
}

static void run_jobs(const struct work *work, unsigned jobs)
{
    ASYNC_JOB *started[JOBS] = {NULL};
    ASYNC_WAIT_CTX *waits[JOBS];
    int results[JOBS];
    unsigned left = jobs;

    for (unsigned i = 0; i < jobs; i++) {
        waits[i] = ASYNC_WAIT_CTX_new();
        CHECK(waits[i] != NULL);
    }
    while (left > 0) {
        for (unsigned i = 0; i < jobs; i++) {
            if (waits[i] == NULL)
                continue;
            switch (ASYNC_start_job(&started[i], waits[i], &results[i], job, (void *)&work, sizeof(work))) {
            case ASYNC_FINISH:
                CHECK(results[i] == 1);
                ASYNC_WAIT_CTX_free(waits[i]);
                waits[i] = NULL;
                left--;
                break;
            case ASYNC_PAUSE:
                break;
            default:
                CHECK(!"ASYNC_start_job");
            }
        }
    }
}

int main(int argc, char **argv)
{
    struct work work;
    uint32_t used = 0;

    CHECK(CRYPTO_set_mem_functions(allocate, reallocate, release));
    work.libctx = library_context(argc > 1 ? argv[1] : NULL);
    work.pkey = EVP_PKEY_Q_keygen(work.libctx, NULL, "RSA", (size_t)4096);
    CHECK(work.pkey != NULL);
    run_jobs(&work, argc > 1 ? JOBS : 1);
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
