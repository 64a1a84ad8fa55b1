/* The OpenSSL provider: RSA key management, signature and asymmetric cipher over gp_client_private_op().
 *
 * What is not the private operation (hashing, public operations, key generation, parameter checks) is done by OpenSSL's
 * default provider in the inner library context. Threads and fibres: DESIGN.md.
 */
#ifndef GP_PROVIDER_H
#define GP_PROVIDER_H

#include <openssl/core.h>
#include <openssl/core_dispatch.h>
#include <openssl/evp.h>

#include "client.h"

#define GP_PROVIDER_NAME "gpu_provider"
#define GP_PROVIDER_VERSION "0.1.0"
#define GP_PROVIDER_PROPERTIES "provider=" GP_PROVIDER_NAME
#define GP_RSA_NAMES "RSA:rsaEncryption:1.2.840.113549.1.1.1"
#define GP_REJECTION_KEY_BYTES 32

/* One per loaded provider. client is NULL in programs without a batching provider: operations are computed at once. It may
 * change (embedded.c): a key keeps the client that it was imported with. */
typedef struct gp_provider {
    const OSSL_CORE_HANDLE *handle;
    gp_inner *inner;
    OSSL_LIB_CTX *libctx; /* inner's */
    gp_client *client;
    OSSL_FUNC_core_new_error_fn *new_error;
    OSSL_FUNC_core_set_error_debug_fn *set_error_debug;
    OSSL_FUNC_core_vset_error_fn *vset_error;
    /* The default provider's RSA, asked for the parameters that it knows. */
    EVP_KEYMGMT *keymgmt;
    EVP_SIGNATURE *signature;
    EVP_ASYM_CIPHER *cipher;
} gp_provider;

/* Set by gp_application_libctx_new() around OSSL_PROVIDER_load(), which calls gp_provider_init() on the same thread: the
 * only way to hand a built-in provider an argument. */
extern _Thread_local gp_client *gp_provider_pending_client;

OSSL_provider_init_fn gp_provider_init;

extern const OSSL_DISPATCH gp_rsa_keymgmt_functions[];
extern const OSSL_DISPATCH gp_rsa_signature_functions[];
extern const OSSL_DISPATCH gp_rsa_cipher_functions[];

/* Reasons of the errors raised here. Those of OpenSSL's own code are in the queue before them. */
enum gp_reason {
    GP_R_NO_KEY = 1,
    GP_R_NOT_A_PRIVATE_KEY,
    GP_R_INCONSISTENT_KEY,
    GP_R_OUT_OF_MEMORY,
    GP_R_UNKNOWN_DIGEST,
    GP_R_DIGEST_FIXED,
    GP_R_WRONG_DIGEST_LENGTH,
    GP_R_DATA_TOO_LONG,
    GP_R_DATA_NOT_BELOW_MODULUS,
    GP_R_WRONG_LENGTH,
    GP_R_BUFFER_TOO_SMALL,
    GP_R_SALT_LENGTH,
    GP_R_KEY_TOO_SMALL,
    GP_R_DECRYPTION_FAILED,
    GP_R_TLS_VERSION_MISSING,
    GP_R_IMPLICIT_REJECTION_REQUIRED,
    GP_R_UNSUPPORTED_PADDING,
    GP_R_OPERATION_FAILED,
};

void gp_raise(const gp_provider *provider, enum gp_reason reason, const char *file, int line, const char *function);
#define GP_RAISE(provider, reason) gp_raise(provider, reason, __FILE__, __LINE__, __func__)

/* The provider's key object (OpenSSL calls it keydata). Counted: operation contexts outlive the EVP_PKEY that they were
 * made from. Immutable once it has a key. */
typedef struct gp_rsa_key {
    atomic_int references;
    gp_provider *provider;
    gp_key *key;     /* NULL until imported or generated */
    gp_client *client; /* has it in its key table as `handle`; NULL: operations are computed at once, by OpenSSL */
    uint64_t handle;
    EVP_PKEY_CTX *signing; /* an inner context ready to sign, to be copied: that saves 5 µs of look-ups per signature */
    /* A number came back through d and e unchanged. Otherwise nothing is computed with d: OpenSSL checks its CRT results with
     * e, but not those of a plain power. */
    int consistent;
    /* SHA-256(d): the secret behind the messages that PKCS#1 v1.5 decryption invents; private keys only. */
    uint8_t rejection_key[GP_REJECTION_KEY_BYTES];
} gp_rsa_key;

gp_rsa_key *gp_rsa_key_up_ref(gp_rsa_key *key);
void gp_rsa_key_free(gp_rsa_key *key);

/* 1 if private operations are possible; otherwise 0 with an error raised. To be asked before one is started. */
int gp_rsa_key_may_compute(const gp_rsa_key *key);

/* output = input^d mod n, both key->key->bytes long, most significant byte first. In an async job this is where the job
 * pauses. An error is raised when it returns 0. */
int gp_rsa_key_private_op(gp_rsa_key *key, const uint8_t *input, uint8_t *output);

/* An operation context of the default provider for this key, for the calls that are delegated. NULL: an error is queued. */
EVP_PKEY_CTX *gp_rsa_key_inner_context(const gp_rsa_key *key);

#endif
