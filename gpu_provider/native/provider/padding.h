/* RSA paddings around the private operation: what signing encodes, what decryption decodes.
 *
 * An encoded message is `size` bytes, as long as the modulus, most significant byte first. Digests must have a size,
 * which extendable-output functions have not in every version of OpenSSL. What else is needed is fetched from `libctx`.
 * Functions return 1, or 0. Everything secret that they make is wiped before they return.
 *
 * The decoders are branch-free on secret data: neither the branches taken nor the addresses accessed depend on the
 * encoded message. They depend on the sizes of key, digest and label, and on the verdict that is returned.
 */
#ifndef GP_PADDING_H
#define GP_PADDING_H

#include <openssl/evp.h>
#include <stddef.h>
#include <stdint.h>

#define GP_PKCS1_OVERHEAD 11u
#define GP_PREMASTER_BYTES 48u

/* EMSA-PKCS1-v1_5, RFC 8017 section 9.2. `data` is the digest's value; with md NULL it is put in as it is, without a
 * DigestInfo. 0: it does not fit, or md is not in the table (MD5-SHA1 is; it has an empty DigestInfo, as TLS before 1.2
 * uses it). Public data only. */
int gp_pkcs1_encode(uint8_t *encoded, size_t size, const EVP_MD *md, const uint8_t *data, size_t data_size);

/* EMSA-PSS, RFC 8017 section 9.1.1, for a modulus of `bits` bits. salt_length is a number of bytes or one of OpenSSL's:
 * RSA_PSS_SALTLEN_DIGEST (-1), _AUTO (-2) and _MAX (-3): the longest; _AUTO_DIGEST_MAX (-4): that, but at most the
 * digest's. 0: it does not fit. Public data only. */
int gp_pss_encode(OSSL_LIB_CTX *libctx, uint8_t *encoded, size_t size, uint32_t bits, const EVP_MD *md,
                  const EVP_MD *mgf1_md, int salt_length, const uint8_t *digest, size_t digest_size);

/* EMSA-PSS, RFC 8017 section 9.1.2: 1 if encoded, which is overwritten, is an encoding of the digest. salt_length as
 * above, except that _AUTO is any. Public data only. */
int gp_pss_check(uint8_t *encoded, size_t size, uint32_t bits, const EVP_MD *md, const EVP_MD *mgf1_md, int salt_length,
                 const uint8_t *digest, size_t digest_size);

/* A decoder's message buffer holds `size` bytes, of which those beyond the message keep their values. */

/* EME-PKCS1-v1_5, RFC 8017 section 7.2.2. encoded is overwritten. Returns 0 for every kind of bad padding alike;
 * message and message_size keep their values then. size ≥ GP_PKCS1_OVERHEAD. Branch-free. */
int gp_pkcs1_decode(uint8_t *encoded, size_t size, uint8_t *message, size_t *message_size);

/* The same with implicit rejection: draft-irtf-cfrg-rsa-guidance, section 7, as in OpenSSL since 3.2. Bad padding is
 * not an error: the message is then one that rejection_key (SHA-256 of the private exponent) and the ciphertext
 * determine. */
int gp_pkcs1_decode_implicitly(OSSL_LIB_CTX *libctx, const uint8_t rejection_key[32], const uint8_t *ciphertext,
                               uint8_t *encoded, size_t size, uint8_t *message, size_t *message_size);

/* The premaster secret of TLS before 1.3: RFC 5246 section 7.4.7.1. If the padding or the version in it is wrong,
 * premaster is random, and the handshake fails later. alternative_version: another one that is accepted, 0 for none.
 * size ≥ GP_PKCS1_OVERHEAD + GP_PREMASTER_BYTES. Branch-free. */
int gp_premaster_decode(OSSL_LIB_CTX *libctx, const uint8_t *encoded, size_t size, uint32_t client_version,
                        uint32_t alternative_version, uint8_t premaster[GP_PREMASTER_BYTES]);

/* EME-OAEP, RFC 8017 section 7.1.2. encoded is overwritten. Returns 0 for every kind of bad padding alike; message
 * and message_size keep their values then. Branch-free. */
int gp_oaep_decode(const EVP_MD *md, const EVP_MD *mgf1_md, const uint8_t *label, size_t label_size, uint8_t *encoded,
                   size_t size, uint8_t *message, size_t *message_size);

#endif
