/* Radix 2^32 of the multi-thread kernels on a processor. */
#include "host/run_warps.h"

namespace gpk {

HostUnits host_units32()
{
    static constexpr HostList<32> list;
    return list.all();
}

} // namespace gpk
