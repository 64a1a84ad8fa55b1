/* Paddings over the rows of a library call: what its signatures encode, and what its decryptions decode.
 *
 * Any thread; nothing is kept. Rows are as backends take them: `stride` bytes, least significant byte first.
 */
#ifndef GP_ROWS_H
#define GP_ROWS_H

#include <stdint.h>

#include "keys/key_table.h"
#include "types.h"

/* cffi: */
enum gp_rows_padding {
    GP_ROWS_PKCS1,
    GP_ROWS_PSS,
    GP_ROWS_OAEP,
};

struct gp_rows_scheme {
    enum gp_rows_padding padding;
    const char *digest;      /* its name in OpenSSL; NULL: none, for PKCS #1 v1.5 */
    const char *mgf1_digest; /* of PSS and OAEP */
    int salt_length;         /* of PSS: as gp_pss_encode() has it */
    const uint8_t *label;    /* of OAEP */
    uint32_t label_size;
};

enum gp_rows_result {
    GP_ROWS_OK,
    GP_ROWS_UNKNOWN_DIGEST, /* to this OpenSSL, or to PKCS #1 v1.5 */
    GP_ROWS_MEMORY,
};

/* rows[i] = the encoding of the next sizes[i] bytes of `data` (a digest, or anything if there is none) for a modulus of
 * bits[i] bits; ok[i] = 0 if they don't fit. */
enum gp_rows_result gp_rows_encode(const struct gp_rows_scheme *scheme, uint32_t count, const uint32_t *bits,
                                   const uint8_t *data, const uint32_t *sizes, uint8_t *rows, uint32_t stride,
                                   uint8_t *ok);

/* The same for verification: ok[i] = 1 if rows[i], which is a signature raised to e, is an encoding of them. */
enum gp_rows_result gp_rows_check(const struct gp_rows_scheme *scheme, uint32_t count, const uint32_t *bits,
                                  const uint8_t *data, const uint32_t *sizes, const uint8_t *rows, uint32_t stride,
                                  uint8_t *ok);

/* messages[i], of `stride` bytes, begins with the sizes[i] bytes that rows[i] decodes to; ok[i] = 0 if the padding is
 * bad, which with PKCS #1 v1.5 never shows: see gp_pkcs1_decode_implicitly(). ciphertexts[i] was raised to d by the key
 * with handles[i]. The caller wipes rows and messages. */
enum gp_rows_result gp_rows_decode(const struct gp_rows_scheme *scheme, gp_key_table *keys, uint32_t count,
                                   const gp_key_handle *handles, const uint8_t *ciphertexts, const uint8_t *rows,
                                   uint32_t stride, uint8_t *messages, uint32_t *sizes, uint8_t *ok);
/* :cffi */

#endif
