/* The rate of independent 512-bit VPMADD52LUQ, per second: the limit that the kernels are measured against. */
#define _POSIX_C_SOURCE 200809L
#include <stdint.h>
#include <time.h>

#define MAD(register) "vpmadd52luq %%zmm30, %%zmm31, %%zmm" #register "\n\t"

/* Sixteen chains: four cycles of latency on two ports need eight. */
double mad52_rate(uint64_t rounds)
{
    struct timespec from, to;
    uint64_t left = rounds;

    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &from);
    __asm__ volatile("vpxorq %%zmm30, %%zmm30, %%zmm30\n\t"
                     "vpxorq %%zmm31, %%zmm31, %%zmm31\n\t"
                     ".p2align 6\n"
                     "1:\n\t" MAD(0) MAD(1) MAD(2) MAD(3) MAD(4) MAD(5) MAD(6) MAD(7) MAD(8) MAD(9) MAD(10) MAD(11)
                         MAD(12) MAD(13) MAD(14) MAD(15) "dec %0\n\t"
                                                         "jnz 1b\n\t"
                                                         "vzeroupper"
                     : "+r"(left)
                     :
                     : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11",
                       "xmm12", "xmm13", "xmm14", "xmm15", "cc");
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &to);
    return 16.0 * (double)rounds / ((double)(to.tv_sec - from.tv_sec) + 1e-9 * (double)(to.tv_nsec - from.tv_nsec));
}
