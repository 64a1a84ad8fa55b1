/* The host build of the multi-thread kernels: the loop over a launch's warps, and the list of units. For the files of
 * one radix each, which are compiled with WARP of flags.mk. */
#ifndef GPK_HOST_RUN_WARPS_H
#define GPK_HOST_RUN_WARPS_H

#include <fenv.h>

#include "gpu/warp_kernels.h"
#include "host/kernel_list.h"

namespace gpk {

namespace {

/* Sets the rounding mode of the multiply-adds, as long as it lives. */
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

/* The units of one radix that the host build has. */
template <int BITS> class HostList {
  public:
    constexpr HostList()
    {
#define GPK_ADD(bits, bytes, l, threads, window, host) \
    if constexpr (bits == BITS && host)                \
        add<bytes, l, threads, window>();
        GPK_UNITS(GPK_ADD)
#undef GPK_ADD
    }

    HostUnits all() const { return {units, count}; }

  private:
    HostUnit units[8] = {};
    int count = 0;

    template <int CLASS, int L, int THREADS, int WINDOW> constexpr void add()
    {
        constexpr int ROWS = WARP / THREADS, TABLE = table_bytes<BITS, L, WINDOW>() * (BITS == 32 ? 2 : 1);

        units[count++] = {unit_of<BITS, CLASS, L, THREADS, WINDOW>(),
                          TABLE,
                          {run_warps<gpk_private_launch, private_warp<BITS, CLASS, L, THREADS, WINDOW>, ROWS>,
                           run_warps<gpk_private_launch, make_pairs_warp<BITS, CLASS, L, THREADS, WINDOW>, ROWS>,
                           run_warps<gpk_modexp_launch, modexp_warp<BITS, CLASS, L, THREADS, WINDOW>, ROWS>}};
    }
};

} // namespace

} // namespace gpk

#endif
