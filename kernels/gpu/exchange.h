/* Exchanges among the T threads of each group of a warp, which must be converged. */
#ifndef GPK_GPU_EXCHANGE_H
#define GPK_GPU_EXCHANGE_H

#include "gpu/elements.h"

namespace gpk {
namespace {

/* The element of the group's thread `source`, a number that is public and the same for all groups. */
template <int T, class V> GPK_INLINE V from_thread(V a, int source)
{
    V r;
#ifdef __CUDACC__
    Inside::of(r)[0] = __shfl_sync(0xffffffff, Inside::of(a)[0], source, T);
#else
    for (int group = 0; group < WARP; group += T) {
        const auto x = Inside::get(a, group + source);
        for (int i = 0; i < T; i++)
            Inside::set(r, group + i, x);
    }
#endif
    return r;
}

/* The next thread's element; zero in the group's last thread. */
template <int T, class V> GPK_INLINE V from_next(V a)
{
    V r;
#ifdef __CUDACC__
    Inside::of(r)[0] = __shfl_down_sync(0xffffffff, Inside::of(a)[0], 1, T);
    return keep(Where::less(Public::thread() % T, T - 1), r);
#else
    for (int i = 0; i < WARP; i++)
        Inside::set(r, i, (i + 1) % T != 0 ? Inside::get(a, (i + 1) % WARP) : 0);
    return r;
#endif
}

/* The previous thread's element; zero in the group's first thread. */
template <int T, class V> GPK_INLINE V from_previous(V a)
{
    V r;
#ifdef __CUDACC__
    Inside::of(r)[0] = __shfl_up_sync(0xffffffff, Inside::of(a)[0], 1, T);
    return keep(Where::less((Public::thread() + (T - 1)) % T, T - 1), r);
#else
    for (int i = 0; i < WARP; i++)
        Inside::set(r, i, i % T != 0 ? Inside::get(a, (i + WARP - 1) % WARP) : 0);
    return r;
#endif
}

/* The element of the same thread in the group's lower or upper half. */
template <int T, class V> GPK_INLINE V from_half(V a, int upper)
{
    V r;
#ifdef __CUDACC__
    Inside::of(r)[0] = __shfl_sync(0xffffffff, Inside::of(a)[0], threadIdx.x % (T / 2) + upper * (T / 2), T);
#else
    for (int i = 0; i < WARP; i++)
        Inside::set(r, i, Inside::get(a, i / T * T + i % (T / 2) + upper * (T / 2)));
#endif
    return r;
}

/* The carry into each thread, 0 or 1, when threads generate a carry where `generates` is set and pass one on where
 * `propagates` is, never both: ((G << 1) + P) ^ P over the group's bits. No carry enters the first thread. */
template <int T> GPK_INLINE Word32 carry_into(Mask generates, Mask propagates)
{
    Word32 r;
#ifdef __CUDACC__
    const uint32_t first = threadIdx.x % WARP / T * T, members = T == 32 ? 0xffffffff : (1U << T % 32) - 1;
    const uint32_t g = __ballot_sync(0xffffffff, Inside::of(generates)[0] & 1) >> first & members;
    const uint32_t p = __ballot_sync(0xffffffff, Inside::of(propagates)[0] & 1) >> first & members;
    Inside::of(r)[0] = (((g << 1) + p) ^ p) >> threadIdx.x % T & 1;
#else
    uint64_t carry = 0;
    for (int i = 0; i < WARP; i++) {
        carry = i % T == 0 ? 0 : carry;
        Inside::set(r, i, carry & 1);
        carry = Inside::get(generates, i) | (Inside::get(propagates, i) & carry);
    }
#endif
    return r;
}

/* Whether the mask is set in all of the group's threads. */
template <int T> GPK_INLINE Mask all_of(Mask mask)
{
#ifdef __CUDACC__
    const uint32_t first = threadIdx.x % WARP / T * T, members = T == 32 ? 0xffffffff : (1U << T % 32) - 1;
    const uint32_t missing = (__ballot_sync(0xffffffff, ~Inside::of(mask)[0] & 1) >> first) & members;
    Inside::of(mask)[0] = (missing | (0 - missing)) >> 31 ? 0 : ~0U;
#else
    for (int group = 0; group < WARP; group += T) {
        uint64_t all = ~UINT64_C(0);
        for (int i = 0; i < T; i++)
            all &= Inside::get(mask, group + i);
        for (int i = 0; i < T; i++)
            Inside::set(mask, group + i, all);
    }
#endif
    return mask;
}

} // namespace
} // namespace gpk

#endif
