/* Radix 2^52 of the multi-thread kernels on a processor: of each class the kernel for throughput, and one for
 * latency. */
#include "host/run_warps.h"

namespace gpk {

static constexpr HostKernel kernels[] = {
    GPK_HOST_PRIVATE(52, 256, 10, 4, 3)
    GPK_HOST_PRIVATE(52, 256, 5, 8, 4)
    GPK_HOST_PRIVATE(52, 384, 8, 8, 3)
    GPK_HOST_PRIVATE(52, 512, 10, 8, 3)
    GPK_HOST_MODEXP(52, 256, 10, 4, 3)
    GPK_HOST_MODEXP(52, 384, 8, 8, 3)
    GPK_HOST_MODEXP(52, 512, 10, 8, 3)
};

HostKernels host_kernels52() { return {kernels, (int)(sizeof(kernels) / sizeof(kernels[0]))}; }

} // namespace gpk
