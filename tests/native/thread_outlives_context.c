/* A thread that used a library context, gave it up with OPENSSL_thread_stop_ex(), and ends after it was freed.
 * Arguments: the module's directory, and the provider of OpenSSL's own that is loaded beside it. On stdin: a key. */
#define _GNU_SOURCE
#include <openssl/crypto.h>
#include <openssl/pem.h>
#include <openssl/provider.h>
#include <openssl/rsa.h>
#include <pthread.h>

#include "check.h"

static OSSL_LIB_CTX *libctx;
static EVP_PKEY *pkey;
static pthread_barrier_t barrier;

static void *sign(void *argument)
{
    EVP_MD_CTX *hash = EVP_MD_CTX_new();
    EVP_PKEY_CTX *options;
    unsigned char signature[512];
    size_t size = sizeof(signature);

    CHECK(EVP_DigestSignInit_ex(hash, &options, "SHA256", libctx, NULL, pkey, NULL) > 0);
    CHECK(EVP_PKEY_CTX_set_rsa_padding(options, RSA_PKCS1_PSS_PADDING) > 0);
    CHECK(EVP_DigestSign(hash, signature, &size, (const unsigned char *)"a", 1) > 0);
    EVP_MD_CTX_free(hash);
    OPENSSL_thread_stop_ex(libctx);
    pthread_barrier_wait(&barrier); /* used */
    pthread_barrier_wait(&barrier); /* freed */
    return argument;
}

int main(int count, char **arguments)
{
    BIO *input = BIO_new_fp(stdin, BIO_NOCLOSE);
    OSSL_PROVIDER *module, *other;
    pthread_t thread;

    libctx = OSSL_LIB_CTX_new();
    CHECK(libctx != NULL);
    CHECK(count == 3 && OSSL_PROVIDER_set_default_search_path(libctx, arguments[1]));
    module = OSSL_PROVIDER_load(libctx, "gpu_provider");
    other = OSSL_PROVIDER_load(libctx, arguments[2]);
    CHECK(module != NULL && other != NULL && EVP_set_default_properties(libctx, "?gpu_provider.batched=yes"));
    pkey = PEM_read_bio_PrivateKey_ex(input, NULL, NULL, NULL, libctx, NULL);
    CHECK(pkey != NULL);
    BIO_free(input);

    pthread_barrier_init(&barrier, NULL, 2);
    CHECK(pthread_create(&thread, NULL, sign, NULL) == 0);
    pthread_barrier_wait(&barrier);
    EVP_PKEY_free(pkey);
    OSSL_PROVIDER_unload(module);
    OSSL_PROVIDER_unload(other);
    OSSL_LIB_CTX_free(libctx);
    pthread_barrier_wait(&barrier);
    CHECK(pthread_join(thread, NULL) == 0);
    return 0;
}
