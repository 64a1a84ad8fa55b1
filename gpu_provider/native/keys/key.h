/* An RSA key as the C core holds it: a counted reference to OpenSSL's own key object in a library context of ours.
 *
 * Thread-safe; the key does not change once made, but for what the kernels need of it, which comes later. Memory:
 * OpenSSL keeps the numbers in its heap and wipes them when the key is freed (DESIGN.md says what that does and does
 * not protect).
 */
#ifndef GP_KEY_H
#define GP_KEY_H

#include <openssl/evp.h>
#include <stdatomic.h>
#include <stdint.h>

#include "kernels.h"
#include "types.h"

/* The inner library context: the default provider alone, apart from the application's, so that our own calls never come
 * back to us through its property query. One per process, never freed: see "Library contexts" in DESIGN.md. NULL: out
 * of memory. */
OSSL_LIB_CTX *gp_inner_libctx(void);

/* cffi: */
typedef struct gp_key gp_key;
void gp_key_free(gp_key *key);
/* :cffi */

struct gp_key {
    atomic_int references;
    EVP_PKEY *pkey; /* belongs to the inner library context */
    /* Set up for the raw operation and copied for each: looking RSA up in OpenSSL's tables costs more than the copy. */
    EVP_PKEY_CTX *private_context; /* NULL: a public key */
    EVP_PKEY_CTX *public_context;
    uint32_t bits;
    uint32_t bytes; /* of the modulus */
    uint32_t is_private;
    uint8_t *modulus; /* [bytes], most significant byte first */
    /* Its constants for the kernels, once gp_cpu_prepare() has made them; NULL: OpenSSL computes. */
    _Atomic(struct gpk_key *) kernel_key;
    const struct gpk_functions *kernels; /* of kernel_key */
    atomic_int preparation;
};

/* Takes a reference of its own. NULL with an OpenSSL error queued if pkey is not RSA. */
gp_key *gp_key_new(EVP_PKEY *pkey);
gp_key *gp_key_up_ref(gp_key *key);

/* 1 if the batching provider supports this key: private, odd modulus of GP_MIN_BITS to GP_MAX_BITS. */
int gp_key_is_batchable(const gp_key *key);

/* input < modulus; both `bytes` long, most significant byte first. Public values only (not constant time). */
int gp_key_in_range(const gp_key *key, const uint8_t *input);

/* output = input^d mod n by OpenSSL: constant time, blinded, and verified with e. OpenSSL verifies what it computes
 * with the factors, but neither what it computes with d alone nor what it computes again when a result was wrong. input
 * < modulus; input and output are `bytes` long, most significant byte first, and do not overlap. 1, or 0 with an
 * OpenSSL error queued if there is one; output is zeros then. */
int gp_key_private(const gp_key *key, const uint8_t *input, uint8_t *output);

/* output = input^e mod n. */
int gp_key_public(const gp_key *key, const uint8_t *input, uint8_t *output);

int gp_key_has_third_factor(const gp_key *key);

/* A key's numbers as the kernels take them: n, e, p, q, dP, dQ, qInv. One block, wiped after use. */
struct gp_key_numbers {
    uint8_t bytes[7][GP_MAX_BYTES];
    struct gpk_number number[7];
};

/* 1 if the key has all of them, and no third prime, with which the five would give wrong results. */
int gp_key_read_numbers(const gp_key *key, struct gp_key_numbers *numbers);

#endif
