/* Additions of many 32-bit words whose carries run from one to the next.
 *
 * On a device the carry is the thread's carry flag: the calls of a chain must follow one another with nothing between
 * them that could be compiled to an addition with carry. mad and madc name both halves of a product, which the
 * assembler fuses into one instruction (IMAD.WIDE.U32.X). On a processor the carries are a vector.
 * Constant time.
 */
#ifndef GPK_GPU_CARRY_CHAIN_H
#define GPK_GPU_CARRY_CHAIN_H

#include "gpu/elements.h"

namespace gpk {
namespace {

#ifdef __CUDACC__
class CarryChain {
  public:
    /* a + b: begins a chain, which addc continues. */
    GPK_INLINE Word32 add(Word32 a, Word32 b)
    {
        asm volatile("add.cc.u32 %0, %0, %1;" : "+r"(Inside::of(a)[0]) : "r"(Inside::of(b)[0]));
        return a;
    }
    GPK_INLINE Word32 addc(Word32 a, Word32 b)
    {
        asm volatile("addc.cc.u32 %0, %0, %1;" : "+r"(Inside::of(a)[0]) : "r"(Inside::of(b)[0]));
        return a;
    }
    /* sum + a b: begins a chain, which madc continues. */
    GPK_INLINE Word64 mad(Word64 sum, Word32 a, Word32 b)
    {
        asm volatile("{\n\t.reg .u32 l, h;\n\tmov.b64 {l, h}, %0;\n\t"
                     "mad.lo.cc.u32 l, %1, %2, l;\n\tmadc.hi.cc.u32 h, %1, %2, h;\n\tmov.b64 %0, {l, h};\n\t}"
                     : "+l"(Inside::of(sum)[0])
                     : "r"(Inside::of(a)[0]), "r"(Inside::of(b)[0]));
        return sum;
    }
    GPK_INLINE Word64 madc(Word64 sum, Word32 a, Word32 b)
    {
        asm volatile("{\n\t.reg .u32 l, h;\n\tmov.b64 {l, h}, %0;\n\t"
                     "madc.lo.cc.u32 l, %1, %2, l;\n\tmadc.hi.cc.u32 h, %1, %2, h;\n\tmov.b64 %0, {l, h};\n\t}"
                     : "+l"(Inside::of(sum)[0])
                     : "r"(Inside::of(a)[0]), "r"(Inside::of(b)[0]));
        return sum;
    }
};
#else
class CarryChain {
  public:
    GPK_INLINE Word32 add(Word32 a, Word32 b)
    {
        clear();
        return addc(a, b);
    }
    GPK_INLINE Word32 addc(Word32 a, Word32 b)
    {
        GPK_EACH_PART({
            const Slot64 sum = Inside::of(a)[k] + Inside::of(b)[k] - carry[k];
            carry[k] = 0 - (sum >> 32);
            Inside::of(a)[k] = sum & 0xffffffff;
        })
        return a;
    }
    GPK_INLINE Word64 mad(Word64 sum, Word32 a, Word32 b)
    {
        clear();
        return madc(sum, a, b);
    }
    GPK_INLINE Word64 madc(Word64 sum, Word32 a, Word32 b)
    {
        GPK_EACH_PART({
            Slot64 addend;
            multiply(addend, Inside::of(a)[k], Inside::of(b)[k]);
            addend -= carry[k]; /* below 2^64 */
            Inside::of(sum)[k] += addend;
            carry[k] = (Slot64)(Inside::of(sum)[k] < addend);
        })
        return sum;
    }

  private:
    Slot64 carry[PARTS]; /* all ones or zero */

    GPK_INLINE void clear() { GPK_EACH_PART(carry[k] = Slot64{}) }

    /* The upper halves of a and b must be zero. */
    static GPK_INLINE void multiply(Slot64 &product, const Slot64 &a, const Slot64 &b)
    {
#ifdef __AVX2__
        product = (Slot64)_mm256_mul_epu32((__m256i)a, (__m256i)b);
#else
        product = a * b;
#endif
    }
};
#endif

} // namespace
} // namespace gpk

#endif
