/* The kernels' entries on a device. A unit is compiled for one arithmetic, class and number of threads, which macros name
 * (cubins.py); the entries have the same names in every unit.
 *
 * A block has 1 to 4 warps, which have nothing to do with one another, and for each of them table_bytes() of dynamic
 * shared memory. A warp without rows ends at once.
 */
#include "thread_kernels.h"

using namespace gpk;

namespace {

constexpr int RADIX = GPK_CUDA_RADIX, CLASS = GPK_CUDA_CLASS, LIMBS = GPK_CUDA_LIMBS, THREADS = GPK_CUDA_THREADS;
constexpr int WINDOW = GPK_CUDA_WINDOW;

/* Of what registers allow, two such blocks to a multiprocessor are enough: the tables' shared memory allows fewer still. For
 * more, the compiler would spill registers. */
#define GPK_BOUNDS __launch_bounds__(4 * WARP, 2)

extern __shared__ uint4 tables[];

GPK_INLINE uint32_t warp_of_grid() { return blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP; }

GPK_INLINE bool has_rows(uint32_t count) { return warp_of_grid() * (WARP / THREADS) < count; }

GPK_INLINE void *own_table()
{
    return reinterpret_cast<uint8_t *>(tables) + threadIdx.x / WARP * table_bytes<RADIX, LIMBS, WINDOW>();
}

} // namespace

extern "C" __global__ void GPK_BOUNDS gpk_private(gpk_private_launch launch)
{
    if (has_rows(launch.count))
        private_warp<RADIX, CLASS, LIMBS, THREADS, WINDOW>(launch, warp_of_grid(), own_table());
}

extern "C" __global__ void GPK_BOUNDS gpk_make_pairs(gpk_private_launch launch)
{
    if (has_rows(launch.count))
        make_pairs_warp<RADIX, CLASS, LIMBS, THREADS, WINDOW>(launch, warp_of_grid(), own_table());
}

#if GPK_CUDA_MODEXP
extern "C" __global__ void GPK_BOUNDS gpk_modexp(gpk_modexp_launch launch)
{
    if (has_rows(launch.count))
        modexp_warp<RADIX, CLASS, LIMBS, THREADS, WINDOW>(launch, warp_of_grid(), own_table());
}
#endif
