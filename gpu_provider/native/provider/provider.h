/* The OpenSSL provider: RSA key management, signature and asymmetric cipher over gp_request_private_op().
 *
 * What is not the private operation is done by OpenSSL's default provider (default_rsa.h). Threads and fibres:
 * DESIGN.md.
 */
#ifndef GP_PROVIDER_H
#define GP_PROVIDER_H

#include <openssl/core.h>
#include <openssl/core_dispatch.h>
#include <openssl/evp.h>

#include "provider/default_rsa.h"
#include "queue/groups.h"
#include "service/attachment.h"
#include "service/lookup.h"

#define GP_PROVIDER_NAME "gpu_provider"
#define GP_PROVIDER_VERSION "0.1.0"
/* A program that asks for a provider by name ("provider!=fips") replaces every preference that names the same property,
 * so the preference for our algorithms is by a property of our own. OpenSSL 3.0 wants the dot in it. */
#define GP_PROVIDER_PROPERTIES "provider=" GP_PROVIDER_NAME "," GP_PROVIDER_NAME ".batched=yes"
#define GP_PREFERENCE "?" GP_PROVIDER_NAME ".batched=yes"
#define GP_RSA_NAMES "RSA:rsaEncryption:1.2.840.113549.1.1.1"
#define GP_REFERENCE_STRUCTURE "gpu-provider-key-reference"
#define GP_STORE_SCHEME "gpu-provider"

/* One per loaded provider. client is NULL in programs without a batching provider, which may have groups instead. It
 * may change (embedded.c): a key keeps the client that it was imported with. */
typedef struct gp_provider {
    const OSSL_CORE_HANDLE *handle;
    int same_libcrypto;   /* the application's and this module's; otherwise nothing is offered */
    OSSL_LIB_CTX *libctx; /* the application's; NULL: OpenSSL's default one */
    gp_client *client;
    struct gp_group_settings groups; /* kernels is NULL: operations are computed at once */
    struct gp_service_settings service;
    int always_reject_implicitly;  /* the setting: not even where the program or an old OpenSSL would not */
    _Atomic(gp_default_rsa *) rsa; /* of libctx, once it was needed and there */
    OSSL_FUNC_core_new_error_fn *new_error;
    OSSL_FUNC_core_set_error_debug_fn *set_error_debug;
    OSSL_FUNC_core_vset_error_fn *vset_error;
    OSSL_FUNC_BIO_read_ex_fn *bio_read_ex;
    OSSL_FUNC_BIO_gets_fn *bio_gets;
} gp_provider;

/* The kernels that a provider without a client may use: set by the module, which is linked with them, before
 * gp_provider_init(). NULL: none. */
struct gp_provider_kernels {
    const struct gpk_functions *fast;     /* of this processor; NULL where OpenSSL is faster */
    const struct gpk_functions *portable; /* of any */
};
extern struct gp_provider_kernels gp_provider_kernels;

OSSL_provider_init_fn gp_provider_init;

/* The application's default provider, or one of our own if it has none. NULL with an error raised. */
const gp_default_rsa *gp_provider_default_rsa(gp_provider *provider);

extern const OSSL_DISPATCH gp_rsa_keymgmt_functions[];
extern const OSSL_DISPATCH gp_rsa_signature_functions[];
extern const OSSL_DISPATCH gp_rsa_cipher_functions[];
extern const OSSL_DISPATCH gp_reference_pem_functions[];
extern const OSSL_DISPATCH gp_reference_der_functions[];
extern const OSSL_DISPATCH gp_store_functions[];

/* Reasons of the errors raised here. All others are the default provider's. */
enum gp_reason {
    GP_R_INCONSISTENT_KEY = 1,
    GP_R_OUT_OF_MEMORY,
    GP_R_UNKNOWN_DIGEST,
    GP_R_IMPLICIT_REJECTION_REQUIRED,
    GP_R_OPERATION_FAILED,
    GP_R_BAD_REFERENCE,
    GP_R_BAD_KEY_NAME,
    GP_R_NO_SERVICE_SET,
    GP_R_SERVICE_NOT_REACHED,
    GP_R_NO_SUCH_KEY,
    GP_R_OTHER_KEY,
    GP_R_NOT_EXPORTABLE,
};

/* `about`: a key's name, or NULL. */
void gp_raise(const gp_provider *provider, enum gp_reason reason, const char *about, const char *file, int line,
              const char *function);
#define GP_RAISE(provider, reason) gp_raise(provider, reason, NULL, __FILE__, __LINE__, __func__)
#define GP_RAISE_ABOUT(provider, reason, about) gp_raise(provider, reason, about, __FILE__, __LINE__, __func__)

/* The service is not reached, for a key of this name; errno says why. */
void gp_raise_not_reached(const gp_provider *provider, const char *name);

/* A key as a client has it in its key table. */
typedef struct gp_batched_key {
    gp_client *client;
    gp_key *key;
    gp_key_handle handle;
    struct gp_batched_key *older; /* of another client: that of the process that this one was forked from */
} gp_batched_key;

/* The provider's key object (OpenSSL calls it keydata). Counted: operation contexts outlive the EVP_PKEY that they were
 * made from. Immutable once it has a key, but for `batched`. */
typedef struct gp_rsa_key {
    atomic_int references;
    gp_provider *provider;
    const gp_default_rsa *rsa; /* whose key `inner` is */
    void *inner;
    char name[GP_MAX_NAME + 1]; /* of a key that only the service has, and `inner` its public part; "": of no such */
    /* Of a private key; 0 and NULL otherwise, and the default provider does whatever is asked. */
    uint32_t bits;
    uint32_t bytes;
    uint8_t *modulus;                  /* [bytes], most significant byte first */
    _Atomic(gp_batched_key *) batched; /* the newest; NULL: no client has it */
    struct gp_attached_key attached;
} gp_rsa_key;

gp_rsa_key *gp_rsa_key_up_ref(gp_rsa_key *key);
void gp_rsa_key_free(gp_rsa_key *key);

/* A key that only the service has. NULL with an error raised. */
gp_rsa_key *gp_rsa_key_of_service(gp_provider *provider, const char *name, const struct gp_public_key *public_key);

static inline int gp_rsa_key_is_of_service(const gp_rsa_key *key)
{
    return key->name[0] != '\0';
}

/* Gives it to OpenSSL, as a decoder and a store do with what they have found. Owns it. */
int gp_rsa_key_hand_over(gp_rsa_key *key, OSSL_CALLBACK *callback, void *argument);

/* Whether the kernels may support it: a private key of GP_MIN_BITS to GP_MAX_BITS with an odd modulus. */
int gp_rsa_key_is_batchable(const gp_rsa_key *key);

/* The key in this client's table, where it is put if it is not there. NULL: out of memory. */
const gp_batched_key *gp_rsa_key_batched(gp_rsa_key *key, gp_client *client);

/* gp_read_numbers of a gp_rsa_key: only the public ones, if the service has the others. */
int gp_rsa_key_read_numbers(const void *key, struct gp_message *message);

/* key->bytes of d, most significant byte first. 0 if it is longer. */
int gp_rsa_key_private_exponent(const gp_rsa_key *key, uint8_t *exponent);

#endif
