/* The kernels' entries on a device. A unit is this file, compiled for the arithmetic, class, number of threads and
 * window that macros name (cubins.py). The entries have the same names in every unit.
 *
 * A block is one warp, with table_bytes() of dynamic shared memory.
 */
#include "gpu/warp_kernels.h"

using namespace gpk;

namespace {

constexpr int RADIX = GPK_CUDA_RADIX, CLASS = GPK_CUDA_CLASS, LIMBS = GPK_CUDA_LIMBS, THREADS = GPK_CUDA_THREADS;
constexpr int WINDOW = GPK_CUDA_WINDOW;

/* Blocks per multiprocessor, whose four schedulers have registers for two, three or four warps each: about as many as
 * the tables leave room for on a data-centre GPU. For more, the compiler would spill registers. */
constexpr int BLOCKS = RADIX == 52 && LIMBS >= 8 ? 8 : RADIX == 52 || LIMBS > 8 ? 12 : 16;
#define GPK_BOUNDS __launch_bounds__(WARP, BLOCKS)

extern __shared__ uint4 table[];

} // namespace

extern "C" __global__ void GPK_BOUNDS gpk_private(gpk_private_launch launch)
{
    private_warp<RADIX, CLASS, LIMBS, THREADS, WINDOW>(launch, blockIdx.x, table);
}

extern "C" __global__ void GPK_BOUNDS gpk_make_pairs(gpk_private_launch launch)
{
    make_pairs_warp<RADIX, CLASS, LIMBS, THREADS, WINDOW>(launch, blockIdx.x, table);
}

extern "C" __global__ void GPK_BOUNDS gpk_modexp(gpk_modexp_launch launch)
{
    modexp_warp<RADIX, CLASS, LIMBS, THREADS, WINDOW>(launch, blockIdx.x, table);
}
