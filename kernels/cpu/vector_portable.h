/* The portable vector: one lane of 64 bits, on any processor whose 64 by 64 bit multiplication takes constant time.
 *
 * It also checks the layers above: it is no number, condition or index, and no operator makes one of it, so a secret
 * that is used as a condition or an address does not compile (tests/kernels/test_types.py). The only way out is
 * gather.h's, through memory.
 */
#ifndef GPK_CPU_VECTOR_PORTABLE_H
#define GPK_CPU_VECTOR_PORTABLE_H

#include "arithmetic/compiler.h"

namespace gpk {
namespace {

class Word {
  public:
    static constexpr int lanes = 1;
    static constexpr bool long_blocks = false;

    class Bit {
        friend class Word;
        uint64_t mask; /* all ones or zero */
    };

    friend GPK_INLINE Word mad52lo(Word c, Word a, Word b) { return make(c.v + ((a.v * b.v) & LOW)); }

    friend GPK_INLINE Word mad52hi(Word c, Word a, Word b)
    {
        return make(c.v + (uint64_t)(((Wide)(a.v & LOW) * (b.v & LOW)) >> 52));
    }

    friend GPK_INLINE Word operator+(Word a, Word b) { return make(a.v + b.v); }
    friend GPK_INLINE Word operator-(Word a, Word b) { return make(a.v - b.v); }
    friend GPK_INLINE Word operator&(Word a, Word b) { return make(a.v & b.v); }
    template <int K> friend GPK_INLINE Word operator>>(Word a, Constant<K>) { return make(a.v >> K); }

    friend GPK_INLINE Bit bit_of(Word a, int position) { return test(a, position); }
    friend GPK_INLINE Word blend(Bit bit, Word if_clear, Word if_set) { return choose(bit, if_clear, if_set); }

  private:
    template <class> friend struct gpk::Splat;
    __extension__ typedef unsigned __int128 Wide;

    static constexpr uint64_t LOW = (UINT64_C(1) << 52) - 1;

    uint64_t v;

    static GPK_INLINE Word make(uint64_t v)
    {
        Word word;
        word.v = v;
        return word;
    }

    static GPK_INLINE Bit test(Word a, int position)
    {
        Bit bit;
        bit.mask = 0 - opaque((a.v >> position) & 1);
        return bit;
    }

    static GPK_INLINE Word choose(Bit bit, Word if_clear, Word if_set)
    {
        return make(if_clear.v ^ (bit.mask & (if_clear.v ^ if_set.v)));
    }

    /* A compiler that knew that the mask has only two values might make a branch of the blend. */
    static GPK_INLINE uint64_t opaque(uint64_t x)
    {
        __asm__("" : "+r"(x));
        return x;
    }
};

} // namespace

template <> struct Splat<Word> {
    static GPK_INLINE Word of(uint64_t x) { return Word::make(x); }
};

} // namespace gpk

#endif
