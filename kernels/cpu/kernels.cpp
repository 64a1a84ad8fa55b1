/* The C interface of the kernels for the CPU, and the choice of an ISA. */
#include "kernels.h"

#include "arithmetic/limbs.h"
#include "cpu/batches.h"
#include "cpu/memory.h"

using namespace gpk;

static int have_ifma(void)
{
#if defined(__x86_64__)
    /* This also checks that the system saves the registers. */
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq")
           && __builtin_cpu_supports("avx512ifma");
#else
    return 0;
#endif
}

enum gpk_isa gpk_resolve_isa(enum gpk_isa isa)
{
    const enum gpk_isa best = have_ifma() ? GPK_ISA_IFMA : GPK_ISA_PORTABLE;

    if (isa == GPK_ISA_BEST)
        return best;
    return isa == GPK_ISA_PORTABLE || isa == best ? isa : GPK_ISA_BEST;
}

uint32_t gpk_lanes(enum gpk_isa isa) { return gpk_resolve_isa(isa) == GPK_ISA_IFMA ? 8 : 1; }

enum gpk_status gpk_private(enum gpk_isa isa, uint32_t count, gpk_key *const *keys, const uint8_t *inputs,
                            uint8_t *outputs, uint32_t stride, uint8_t *ok)
{
    const PrivateBatch batch = {count, stride, keys, inputs, outputs, ok};

    isa = gpk_resolve_isa(isa);
    if (isa == GPK_ISA_BEST)
        return GPK_NO_ISA;
    if (stride == 0 || stride > MAX_BYTES)
        return GPK_UNSUPPORTED;
    if (count == 0)
        return GPK_OK;
    const auto compute = [&](void *workspace) {
#if defined(__x86_64__)
        if (isa == GPK_ISA_IFMA)
            return private_ifma(workspace, batch);
#endif
        private_portable(workspace, batch);
    };
    return in_workspace(compute) ? GPK_OK : GPK_NO_MEMORY;
}

enum gpk_status gpk_modexp(enum gpk_isa isa, uint32_t count, const uint8_t *bases, const uint8_t *exponents,
                           uint32_t exponent_stride, uint32_t exponent_bits, const uint8_t *moduli, uint8_t *outputs,
                           uint32_t stride, uint8_t *ok, int public_exponents)
{
    const ModexpBatch batch = {count,   stride, exponent_stride, exponent_bits, bases, exponents, moduli,
                               outputs, ok,     public_exponents};

    isa = gpk_resolve_isa(isa);
    if (isa == GPK_ISA_BEST)
        return GPK_NO_ISA;
    if (stride == 0 || stride > MAX_MODEXP_BYTES || exponent_stride > MAX_MODEXP_BYTES || exponent_bits == 0
        || exponent_bits > 8 * exponent_stride)
        return GPK_UNSUPPORTED;
    if (count == 0)
        return GPK_OK;
    const auto compute = [&](void *workspace) {
#if defined(__x86_64__)
        if (isa == GPK_ISA_IFMA)
            return modexp_ifma(workspace, batch);
#endif
        modexp_portable(workspace, batch);
    };
    return in_workspace(compute) ? GPK_OK : GPK_NO_MEMORY;
}

int gpk_call_apart(void (*function)(void *argument), void *argument)
{
    return in_workspace([=](void *) { function(argument); });
}

const struct gpk_functions *gpk_functions_of(enum gpk_isa isa)
{
    static const struct gpk_functions functions[] = {
        {GPK_ISA_PORTABLE, 1, gpk_key_new, gpk_key_free, gpk_key_is_locked, gpk_private, gpk_call_apart},
        {GPK_ISA_IFMA, 8, gpk_key_new, gpk_key_free, gpk_key_is_locked, gpk_private, gpk_call_apart},
    };

    switch (gpk_resolve_isa(isa)) {
    case GPK_ISA_PORTABLE:
        return &functions[0];
    case GPK_ISA_IFMA:
        return &functions[1];
    default:
        return NULL;
    }
}
