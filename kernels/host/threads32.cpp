/* Radix 2^32 of the multi-thread kernels on a processor. */
#include "host/run_warps.h"

namespace gpk {

HostKernels host_kernels32()
{
    static constexpr HostList<32> list;
    return list.all();
}

} // namespace gpk
