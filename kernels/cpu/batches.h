/* The batches, in a translation unit for each ISA. */
#ifndef GPK_CPU_BATCHES_H
#define GPK_CPU_BATCHES_H

#include "kernels.h"

namespace gpk {

struct PrivateBatch {
    uint32_t count, stride;
    gpk_key *const *keys;
    const uint8_t *inputs;
    uint8_t *outputs, *ok;
};

struct ModexpBatch {
    uint32_t count, stride, exponent_stride, exponent_bits;
    const uint8_t *bases, *exponents, *moduli;
    uint8_t *outputs, *ok;
    int public_exponents;
};

void private_portable(void *workspace, const PrivateBatch &batch);
void modexp_portable(void *workspace, const ModexpBatch &batch);
#if defined(__x86_64__)
void private_ifma(void *workspace, const PrivateBatch &batch);
void modexp_ifma(void *workspace, const ModexpBatch &batch);
#endif

} // namespace gpk

#endif
