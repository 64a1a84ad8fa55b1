/* Modular exponentiation by OpenSSL, for any modulus, and modular inverses.
 *
 * Any thread; no lock is held while anything is computed. Rows are least significant byte first, a multiple of 8 bytes
 * and at most GP_MAX_MODEXP_BYTES. Constant time in bases, and in exponents unless they are public;
 * moduli and sizes are.
 */
#ifndef GP_MODEXP_H
#define GP_MODEXP_H

#include <stdint.h>

/* cffi: */
#define GP_MAX_MODEXP_BYTES 1024

/* outputs[i] = bases[i]^exponents[i] mod moduli[i], moduli from 1. Fixed window over the whole exponent length, unless
 * public_exponents is 1. Rows of `stride` and `exponent_stride` bytes. 1, or 0: out of memory. */
int gp_libcrypto_modexp(uint32_t count, const uint8_t *bases, const uint8_t *exponents, uint32_t exponent_stride,
                        const uint8_t *moduli, uint8_t *outputs, uint32_t stride, int public_exponents);

/* outputs[i] = 1 / numbers[i] mod moduli[i]. Returns `count`, or the first row whose number has none, or -1: out of
 * memory. */
int64_t gp_libcrypto_inverse(uint32_t count, const uint8_t *numbers, const uint8_t *moduli, uint8_t *outputs,
                             uint32_t stride);
/* :cffi */

#endif
