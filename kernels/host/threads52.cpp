/* Radix 2^52 of the multi-thread kernels on a processor. */
#include "host/run_warps.h"

namespace gpk {

HostUnits host_units52()
{
    static constexpr HostList<52> list;
    return list.all();
}

} // namespace gpk
