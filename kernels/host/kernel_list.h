/* The host build's kernels: each radix has a file that compiles its own, and threads.cpp finds them here. */
#ifndef GPK_HOST_KERNEL_LIST_H
#define GPK_HOST_KERNEL_LIST_H

#include "host/threads.h"

namespace gpk {

struct HostKernel {
    gpk_host_kernel about;
    int table_bytes; /* limbs of 32 bits take 64 */
    void (*run)(const void *launch, void *table);
};

struct HostKernels {
    const HostKernel *first;
    int count;
};

HostKernels host_kernels32();
HostKernels host_kernels52();

} // namespace gpk

#endif
