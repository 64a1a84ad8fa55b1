/* The multi-thread kernels: what one warp of a launch computes. On a device each kernel's entry calls it with the
 * warp's number in the grid; on a processor a loop does (host/run_warps.h). `table` has table_bytes() for this warp
 * alone. */
#ifndef GPK_GPU_WARP_KERNELS_H
#define GPK_GPU_WARP_KERNELS_H

#include "gpu/rows.h"

namespace gpk {
namespace {

template <int BITS, int CLASS, int L, int THREADS, int WINDOW>
GPK_FUNCTION void private_warp(const gpk_private_launch &launch, uint32_t warp, void *table)
{
    RsaPrivate<ThreadRows<BITS, CLASS, L, THREADS / 2, WINDOW>> rsa(launch, warp, table);
    rsa.private_operation();
}

template <int BITS, int CLASS, int L, int THREADS, int WINDOW>
GPK_FUNCTION void make_pairs_warp(const gpk_private_launch &launch, uint32_t warp, void *table)
{
    RsaPrivate<ThreadRows<BITS, CLASS, L, THREADS / 2, WINDOW>> rsa(launch, warp, table);
    rsa.make_pair();
}

template <int BITS, int CLASS, int L, int T, int WINDOW>
GPK_FUNCTION void modexp_warp(const gpk_modexp_launch &launch, uint32_t warp, void *table)
{
    using Arithmetic = ThreadArithmetic<BITS, L, T>;
    using V = typename Arithmetic::Vector;
    using Layout = ModulusLayout<BITS, L * T>;
    using Bytes = ByteRows<BITS, L, T>;
    constexpr int ROWS = WARP / T, WORDS = CLASS / 4;
    const Public place = Public::thread() / T + warp * ROWS, row = place.at_most(launch.count - 1);
    const typename V::Element *moduli = static_cast<const typename V::Element *>(launch.moduli);
    const Public record = Public::load(launch.modulus_of_row, row) * Layout::limbs;
    const Public own = record + Public::thread() % T * L;
    Arithmetic arithmetic;
    V number[L], one[L], r2[L];

    GPK_UNROLL
    for (int i = 0; i < L; i++) {
        arithmetic.modulus[i] = Memory::load(moduli, own + (uint32_t)(Layout::modulus + i));
        one[i] = Memory::load(moduli, own + (uint32_t)(Layout::one + i));
        r2[i] = Memory::load(moduli, own + (uint32_t)(Layout::r2 + i));
    }
    arithmetic.k0 = Memory::load(moduli, record + Layout::k0);
    Bytes::load(number, reinterpret_cast<const uint32_t *>(launch.bases), row, WORDS);
    mod_exp<WINDOW>(arithmetic, number, one, r2,
                    ThreadExponent(reinterpret_cast<const uint32_t *>(launch.exponents),
                                   row * (launch.exponent_stride / 4), (int)launch.exponent_bits),
                    Digits<WINDOW>::count((int)launch.exponent_bits), WarpTable<V>::in(table));
    Bytes::store(reinterpret_cast<uint32_t *>(launch.outputs), row, WORDS, number, Where::less(place, launch.count),
                 table);
}

} // namespace
} // namespace gpk

#endif
