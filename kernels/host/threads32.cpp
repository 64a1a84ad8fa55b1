/* Radix 2^32 of the multi-thread kernels on a processor: of each class the kernel for throughput, and one for
 * latency. */
#include "host/run_warps.h"

namespace gpk {

static constexpr HostKernel kernels[] = {
    GPK_HOST_PRIVATE(32, 256, 8, 8, 4)
    GPK_HOST_PRIVATE(32, 256, 4, 16, 4)
    GPK_HOST_PRIVATE(32, 384, 12, 8, 4)
    GPK_HOST_PRIVATE(32, 512, 8, 16, 4)
    GPK_HOST_MODEXP(32, 256, 8, 8, 4)
    GPK_HOST_MODEXP(32, 384, 12, 8, 4)
    GPK_HOST_MODEXP(32, 512, 8, 16, 4)
};

HostKernels host_kernels32() { return {kernels, (int)(sizeof(kernels) / sizeof(kernels[0]))}; }

} // namespace gpk
