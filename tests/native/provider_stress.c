/* Threads that share keys through the provider, for the sanitizers: signing in pieces and on copies, decryption, keys
 * that come and go, library contexts that come and go. The consumer computes by OpenSSL. */
#include <openssl/evp.h>
#include <pthread.h>
#include <string.h>

#include "check.h"
#include "keys/libcrypto.h"
#include "provider/embedded.h"
#include "queue/consumer.h"

#define THREADS 4
#define BATCH 8u

struct shared {
    gp_client *client;
    gp_consumer *consumer;
    OSSL_LIB_CTX *libctx;
    EVP_PKEY *pkey;
    int rounds;
    atomic_int stop;
};

static const uint8_t text[] = "message";

static void *consume(void *argument)
{
    struct shared *shared = argument;
    static uint8_t inputs[BATCH * GP_MAX_BYTES], outputs[BATCH * GP_MAX_BYTES], ok[BATCH];
    gp_request_handle handles[BATCH];
    gp_key_handle keys[BATCH];
    uint64_t submitted[BATCH], oldest[GP_CLASSES];
    uint32_t waiting[GP_CLASSES];

    while (!atomic_load(&shared->stop)) {
        gp_consumer_wait(shared->consumer, -1, 1, NULL, waiting, oldest);
        for (uint32_t i = 0; i < GP_CLASSES; i++) {
            uint32_t count = gp_consumer_take(shared->consumer, i, BATCH, handles, keys, inputs, submitted);

            gp_libcrypto_private(gp_client_keys(shared->client), count, keys, inputs, outputs, GP_CLASS_BYTES(i), ok);
            gp_consumer_complete(shared->consumer, count, handles, outputs, GP_CLASS_BYTES(i), ok);
            if (count == BATCH)
                gp_client_wake_consumer(shared->client); /* there may be more */
        }
    }
    return NULL;
}

static void sign(const struct shared *shared, EVP_PKEY *pkey, const char *padding)
{
    EVP_MD_CTX *context = EVP_MD_CTX_new(), *copy = EVP_MD_CTX_new();
    EVP_PKEY_CTX *options;
    uint8_t signature[GP_MAX_BYTES];
    size_t size = sizeof(signature);

    CHECK(EVP_DigestSignInit_ex(context, &options, "SHA256", shared->libctx, NULL, pkey, NULL) > 0);
    CHECK(EVP_PKEY_CTX_ctrl_str(options, "rsa_padding_mode", padding) > 0);
    CHECK(EVP_DigestSignUpdate(context, text, 4) > 0);
    CHECK(EVP_MD_CTX_copy_ex(copy, context) > 0);
    EVP_MD_CTX_free(context);
    CHECK(EVP_DigestSignUpdate(copy, text + 4, sizeof(text) - 4) > 0);
    CHECK(EVP_DigestSignFinal(copy, signature, &size) > 0);

    EVP_MD_CTX_reset(copy);
    CHECK(EVP_DigestVerifyInit_ex(copy, &options, "SHA256", shared->libctx, NULL, pkey, NULL) > 0);
    CHECK(EVP_PKEY_CTX_ctrl_str(options, "rsa_padding_mode", padding) > 0);
    CHECK(EVP_DigestVerify(copy, signature, size, text, sizeof(text)) == 1);
    EVP_MD_CTX_free(copy);
}

static void decrypt(const struct shared *shared, EVP_PKEY *pkey, const char *padding)
{
    EVP_PKEY_CTX *context = EVP_PKEY_CTX_new_from_pkey(shared->libctx, pkey, NULL);
    uint8_t ciphertext[GP_MAX_BYTES], message[GP_MAX_BYTES];
    size_t size = sizeof(ciphertext), message_size = sizeof(message);

    CHECK(EVP_PKEY_encrypt_init(context) > 0 && EVP_PKEY_CTX_ctrl_str(context, "rsa_padding_mode", padding) > 0);
    CHECK(EVP_PKEY_encrypt(context, ciphertext, &size, text, sizeof(text)) > 0);
    CHECK(EVP_PKEY_decrypt_init(context) > 0 && EVP_PKEY_CTX_ctrl_str(context, "rsa_padding_mode", padding) > 0);
    CHECK(EVP_PKEY_decrypt(context, message, &message_size, ciphertext, size) > 0);
    CHECK(message_size == sizeof(text) && memcmp(message, text, sizeof(text)) == 0);
    EVP_PKEY_CTX_free(context);
}

static void *application(void *argument)
{
    const struct shared *shared = argument;

    for (int i = 0; i < shared->rounds; i++) {
        EVP_PKEY *own = EVP_PKEY_dup(shared->pkey);

        CHECK(own != NULL);
        sign(shared, shared->pkey, "pkcs1");
        sign(shared, own, "pss");
        decrypt(shared, own, "oaep");
        EVP_PKEY_free(own);
        decrypt(shared, shared->pkey, "pkcs1");
    }
    return NULL;
}

static void run(int rounds)
{
    struct shared shared = {.client = gp_client_new(2), .rounds = rounds};
    pthread_t threads[THREADS], computing;

    shared.consumer = shared.client != NULL ? gp_consumer_new(shared.client) : NULL;
    CHECK(shared.consumer != NULL);
    shared.libctx = gp_embedded_libctx_new(shared.client);
    CHECK(shared.libctx != NULL);
    shared.pkey = EVP_PKEY_Q_keygen(shared.libctx, NULL, "RSA", (size_t)2048);
    CHECK(shared.pkey != NULL);
    CHECK(pthread_create(&computing, NULL, consume, &shared) == 0);
    for (int i = 0; i < THREADS; i++)
        CHECK(pthread_create(&threads[i], NULL, application, &shared) == 0);
    for (int i = 0; i < THREADS; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
    EVP_PKEY_free(shared.pkey);
    gp_embedded_libctx_free(shared.libctx);
    atomic_store(&shared.stop, 1);
    gp_client_wake_consumer(shared.client);
    CHECK(pthread_join(computing, NULL) == 0);
    gp_consumer_free(shared.consumer);
    gp_client_free(shared.client);
}

int main(int count, char **arguments)
{
    for (int i = 0; i < 3; i++)
        run(count > 1 ? atoi(arguments[1]) : 25);
    return 0;
}
