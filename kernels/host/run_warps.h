/* The host build of the multi-thread kernels: the table entry of one, and the loop over a launch's warps. For the files of
 * one radix each, compiled with WARP of flags.mk. */
#ifndef GPK_HOST_RUN_WARPS_H
#define GPK_HOST_RUN_WARPS_H

#include <fenv.h>

#include "gpu/warp_kernels.h"
#include "host/kernel_list.h"

namespace gpk {

namespace {

/* The rounding mode of the multiply-adds, for as long as this lives. */
class RoundTowardZero {
  public:
    RoundTowardZero() : before(fegetround()) { fesetround(FE_TOWARDZERO); }
    ~RoundTowardZero() { fesetround(before); }

  private:
    int before;
};

template <class Launch, void (*WARP_OF)(const Launch &, uint32_t, void *), int ROWS>
void run_warps(const void *memory, void *table)
{
    const Launch &launch = *static_cast<const Launch *>(memory);
    const RoundTowardZero mode;

    for (uint32_t warp = 0; warp * ROWS < launch.count; warp++)
        WARP_OF(launch, warp, table);
}

template <int BITS, int CLASS, int L, int THREADS, int WINDOW>
constexpr HostKernel host_private(const char *name, gpk_operation operation)
{
    using Layout = RecordLayout<BITS, L * THREADS / 2>;
    constexpr int LIMB = (int)sizeof(typename Layout::Limb);

    return {{name, operation, BITS, CLASS, THREADS, WINDOW, WARP / THREADS, table_bytes<BITS, L, WINDOW>(),
             4 * Layout::words, LIMB * Layout::pair_limbs},
            operation == GPK_MAKE_PAIRS
                ? run_warps<gpk_private_launch, make_pairs_warp<BITS, CLASS, L, THREADS, WINDOW>, WARP / THREADS>
                : run_warps<gpk_private_launch, private_warp<BITS, CLASS, L, THREADS, WINDOW>, WARP / THREADS>};
}

template <int BITS, int CLASS, int L, int THREADS, int WINDOW> constexpr HostKernel host_modexp(const char *name)
{
    using Layout = ModulusLayout<BITS, L * THREADS>;
    constexpr int LIMB = (int)sizeof(typename Layout::Limb);

    return {{name, GPK_MODEXP, BITS, CLASS, THREADS, WINDOW, WARP / THREADS, table_bytes<BITS, L, WINDOW>(),
             LIMB * Layout::limbs, 0},
            run_warps<gpk_modexp_launch, modexp_warp<BITS, CLASS, L, THREADS, WINDOW>, WARP / THREADS>};
}

#define GPK_HOST_NAME(operation, bits, bytes, threads, window) \
    "gpk_" operation "_r" #bits "_" #bytes "_t" #threads "_w" #window
#define GPK_HOST_PRIVATE(bits, bytes, l, threads, window)                                                             \
    host_private<bits, bytes, l, threads, window>(GPK_HOST_NAME("private", bits, bytes, threads, window),             \
                                                  GPK_PRIVATE_OPERATION),                                             \
        host_private<bits, bytes, l, threads, window>(GPK_HOST_NAME("make_pairs", bits, bytes, threads, window),      \
                                                      GPK_MAKE_PAIRS),
#define GPK_HOST_MODEXP(bits, bytes, l, threads, window) \
    host_modexp<bits, bytes, l, threads, window>(GPK_HOST_NAME("modexp", bits, bytes, threads, window)),

} // namespace

} // namespace gpk

#endif
