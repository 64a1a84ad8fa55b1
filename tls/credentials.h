/* Certificates and private keys, read from PEM or DER. */
#ifndef GP_TLS_CREDENTIALS_H
#define GP_TLS_CREDENTIALS_H

#include <openssl/ssl.h>
#include <stddef.h>
#include <stdint.h>

/* cffi: */
/* Adds the PEM certificates in `pem`, the leaf first. Returns how many, or -1 with an error queued. */
int gp_credentials_use_certificates(SSL_CTX *ctx, OSSL_LIB_CTX *libctx, const char *pem, size_t size);

/* Adds the PEM file's certificate revocation lists. Returns how many, or -1 with an error queued. *end: the Unix time
 * at which the first of them is out of date; INT64_MAX if none says. */
int gp_credentials_add_crls(SSL_CTX *ctx, OSSL_LIB_CTX *libctx, const char *path, int64_t *end);

/* Reads a private key from the file, or from data if path is NULL; PEM, or DER if `der`. password may be NULL. *asked
 * becomes 1 if a password was needed. On failure NULL, with an error queued. */
EVP_PKEY *gp_credentials_load_key(OSSL_LIB_CTX *libctx, const char *path, const void *data, size_t size, int der,
                                  const char *password, int *asked);
/* :cffi */

#endif
