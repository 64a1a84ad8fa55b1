/* The processor's own backend: our kernels for whole groups of rows, OpenSSL for the few rows that it computes sooner.
 *
 * Any thread; no lock is held while anything is computed.
 */
#ifndef GP_CPU_H
#define GP_CPU_H

#include <stdint.h>

#include "keys/key_table.h"
#include "kernels.h"
#include "types.h"

/* cffi: */
typedef struct gp_cpu gp_cpu;

/* From now on gp_cpu_private() computes with these kernels (gpk_functions(), which outlives it). smallest: how many
 * rows must be left over for a group of their own; 0: measured with the first key of each size class. */
void gp_cpu_use_kernels(gp_cpu *cpu, const struct gpk_functions *kernels, uint32_t smallest);

/* As gp_libcrypto_private(). Returns how many results the kernels got wrong or could not compute for lack of memory;
 * those have ok[i] = 0, and the kernels are not to be trusted. */
uint32_t gp_cpu_private(gp_cpu *cpu, uint32_t count, const gp_key_handle *keys, const uint8_t *inputs, uint8_t *outputs,
                        uint32_t stride, uint8_t *ok);
/* :cffi */

/* Over the keys of a table that outlives it. Without kernels, OpenSSL computes everything. NULL: out of memory. */
gp_cpu *gp_cpu_new(gp_key_table *keys);
void gp_cpu_free(gp_cpu *cpu);

/* Gives a key in the table its constants for the kernels, unless it was tried before, they don't support it, or would
 * never win. That takes milliseconds. gp_cpu_private() does it for one key in 64 rows at most, and not for a few rows,
 * which are OpenSSL's anyway. */
void gp_cpu_prepare(gp_cpu *cpu, gp_key *key);
int gp_cpu_may_win(const gp_key *key); /* it has them, or was not tried yet */

/* How many rows of a size class must be left over for a group of their own. */
void gp_cpu_set_smallest(gp_cpu *cpu, uint32_t class_index, uint32_t smallest);

#endif
