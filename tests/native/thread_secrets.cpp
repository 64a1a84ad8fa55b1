/* The multi-thread kernels on the processor, with everything secret marked undefined, like kernel_secrets.cpp, with the
 * same input. Runs a kernel in radix 2^32, then one in radix 2^52. valgrind does not round toward zero, so the results
 * in radix 2^52 are wrong; the path through the code is the same.
 * usage: valgrind thread_secrets: exit status 3 if a result of radix 2^32 is wrong.
 */
#include <initializer_list>
#include <stdlib.h>
#include <string.h>
#include <valgrind/memcheck.h>

#include "cpu/memory.h"
#include "gpu/warp_kernels.h"
#include "records.h"

#include "key_on_stdin.h"

using namespace gpk;

template <int BITS, int L, int THREADS> static bool run(void)
{
    constexpr int CLASS = 256, WINDOW = 4, ROWS = 2;
    using Layout = RecordLayout<BITS, L * THREADS / 2>;
    using Limb = typename Layout::Limb;
    const size_t pair_bytes = sizeof(Limb) * Layout::pair_limbs;
    alignas(16) static uint8_t inputs[ROWS][CLASS], outputs[ROWS][CLASS], ok[ROWS];
    uint8_t *record = (uint8_t *)aligned_alloc(64, (4 * Layout::words + 63) / 64 * 64);
    uint8_t *pairs = (uint8_t *)aligned_alloc(64, (ROWS * pair_bytes + 63) / 64 * 64);
    void *table = aligned_alloc(64, 2 * table_bytes<BITS, L, WINDOW>());
    alignas(16) const uint32_t records[ROWS] = {0, 0}, places[ROWS] = {0, 1};
    uint64_t e = 0;

    if (gpk_thread_record(BITS, CLASS, record, numbers[N], numbers[E], numbers[P], numbers[Q], numbers[DP], numbers[DQ],
                          numbers[QINV])
        != GPK_OK)
        exit(2);
    memcpy(&e, bytes[E], sizeof(e));
    const gpk_private_launch launch = {
        ROWS, (uint32_t)numbers[P].size * 8, e, records, places, record, pairs, inputs[0], outputs[0], ok};
    inputs[0][0] = 3;
    inputs[1][7] = 5;
    VALGRIND_MAKE_MEM_UNDEFINED(inputs, sizeof(inputs));
    make_pairs_warp<BITS, CLASS, L, THREADS, WINDOW>(launch, 0, table);
    private_warp<BITS, CLASS, L, THREADS, WINDOW>(launch, 0, table);
    VALGRIND_MAKE_MEM_DEFINED(ok, sizeof(ok));
    free(record);
    free(pairs);
    free(table);
    return ok[0] == 1 && ok[1] == 1;
}

int main(void)
{
    read_key();
    /* The size of each secret number is public; its top byte, which gives it, stays defined. */
    for (int i : {P, Q, DP, DQ, QINV})
        VALGRIND_MAKE_MEM_UNDEFINED(bytes[i], numbers[i].size - 1);
    VALGRIND_MAKE_MEM_DEFINED(bytes[P], 1); /* odd */
    VALGRIND_MAKE_MEM_DEFINED(bytes[Q], 1);
    const bool right = run<32, 8, 8>();
    run<52, 10, 4>();
    return right ? 0 : 3;
}
