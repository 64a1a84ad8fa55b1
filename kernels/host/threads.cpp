/* The host build's C interface, which bench/gpu/host_device.py loads: a function call computes what a device launches
 * (gpu/launch.h), from the same source, for tests and benches where there is no GPU. All functions may be called from
 * any number of threads at once, as long as no two launches share a blinding pair. */
#include <initializer_list>

#include "cpu/memory.h"
#include "host/kernel_list.h"
#include "kernels.h"

using namespace gpk;

static int have_vectors(void)
{
#if defined(__x86_64__)
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
    return 1;
#endif
}

static const HostUnit *find(int index)
{
    if (index < 0 || !have_vectors())
        return NULL;
    for (const HostUnits units : {host_units32(), host_units52()}) {
        if (index < units.count)
            return units.first + index;
        index -= units.count;
    }
    return NULL;
}

/* A warp's numbers are on the stack while it is computed: 14 limbs for each of 32 threads take 4 KiB. */
static __attribute__((noinline)) void wipe_deep_stack(void)
{
    uint8_t below[192 * 1024];

    wipe(below, sizeof(below));
}

#pragma GCC visibility push(default)
extern "C" {

/* The host build's units, fewer than a device's; NULL after the last. None where an x86-64 processor lacks AVX2 or
 * FMA. */
const struct gpk_unit *gpk_host_unit_at(int index)
{
    const HostUnit *unit = find(index);

    return unit == NULL ? NULL : &unit->about;
}

/* Computes all rows with a kernel of unit `index`: launch is a gpk_private_launch or a gpk_modexp_launch, whose memory
 * must fit the kernel; nothing is checked. Leaves the thread's rounding mode as it was. */
enum gpk_status gpk_host_run(int index, enum gpk_operation operation, const void *launch)
{
    const HostUnit *unit = find(index);

    if (unit == NULL)
        return GPK_NO_ISA;
    void *table = take_workspace();
    if (table == NULL)
        return GPK_NO_MEMORY;
    unit->run[operation](launch, table);
    wipe(table, (size_t)unit->table_bytes);
    return_workspace(table);
    wipe_deep_stack();
    return GPK_OK;
}

} /* extern "C" */
