/* The host build's units: each radix has a file that compiles its own, and threads.cpp finds them here. */
#ifndef GPK_HOST_KERNEL_LIST_H
#define GPK_HOST_KERNEL_LIST_H

#include "gpu/launch.h"

namespace gpk {

struct HostUnit {
    gpk_unit about;
    int table_bytes; /* limbs of 32 bits take 64 */
    /* By gpk_operation. */
    void (*run[3])(const void *launch, void *table);
};

struct HostUnits {
    const HostUnit *first;
    int count;
};

HostUnits host_units32();
HostUnits host_units52();

} // namespace gpk

#endif
