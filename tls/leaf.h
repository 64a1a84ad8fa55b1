/* A certificate as OpenSSL reads it. OpenSSL serves some certificates that other parsers refuse. */
#ifndef GP_TLS_LEAF_H
#define GP_TLS_LEAF_H

#include <openssl/x509.h>
#include <stddef.h>
#include <stdint.h>

/* cffi: */
/* The DNS names or, if there are no subject alternative names, the common names, each ended by a 0. Names that contain
 * a 0 are left out. Returns how many bytes they need, or -1: they can't be read, or need more than `capacity`. */
int64_t gp_leaf_names(const X509 *certificate, char *names, size_t capacity);

/* The subject in the form of RFC 2253: printable ASCII, all else escaped. Returns its size, or -1: it can't be read, or
 * needs more than `capacity`. */
int64_t gp_leaf_subject(const X509 *certificate, char *text, size_t capacity);

/* The subject's first common name, as UTF-8 with whatever bytes it has. Returns its size, or -1: it has none, or one
 * that can't be read or needs more than `capacity`. */
int64_t gp_leaf_common_name(const X509 *certificate, char *text, size_t capacity);

/* SHA-256 of the public key. Returns 1, or 0: it can't be read. */
int gp_leaf_public_key(const X509 *certificate, unsigned char digest[32]);

/* SHA-256 of the whole certificate. Returns 1, or 0: out of memory. */
int gp_leaf_fingerprint(const X509 *certificate, unsigned char digest[32]);

/* Unix time; INT64_MIN: it can't be read. */
int64_t gp_leaf_not_after(const X509 *certificate);
/* :cffi */

#endif
