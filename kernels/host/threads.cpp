/* The C interface of the multi-thread kernels' host build. */
#include "host/threads.h"

#include <initializer_list>

#include "cpu/memory.h"
#include "host/kernel_list.h"

using namespace gpk;

static int have_vectors(void)
{
#if defined(__x86_64__)
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
    return 1;
#endif
}

static const HostKernel *find(int index)
{
    if (index < 0 || !have_vectors())
        return NULL;
    for (const HostKernels kernels : {host_kernels32(), host_kernels52()}) {
        if (index < kernels.count)
            return kernels.first + index;
        index -= kernels.count;
    }
    return NULL;
}

const struct gpk_host_kernel *gpk_host_kernel_at(int index)
{
    const HostKernel *kernel = find(index);

    return kernel == NULL ? NULL : &kernel->about;
}

/* A warp's numbers are on the stack while it is computed: 14 limbs for each of 32 threads take 4 KiB. */
static __attribute__((noinline)) void wipe_deep_stack(void)
{
    uint8_t below[192 * 1024];

    wipe(below, sizeof(below));
}

enum gpk_status gpk_host_run(int index, const void *launch)
{
    const HostKernel *kernel = find(index);

    if (kernel == NULL)
        return GPK_NO_ISA;
    void *table = take_workspace();
    if (table == NULL)
        return GPK_NO_MEMORY;
    kernel->run(launch, table);
    wipe(table, (size_t)kernel->table_bytes);
    return_workspace(table);
    wipe_deep_stack();
    return GPK_OK;
}
