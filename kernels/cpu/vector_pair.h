/* Two vectors as one: every operation is issued for both.
 *
 * The multiply-add has a latency of four cycles, which two independent streams of instructions fill. In an RSA
 * operation the two are (mod p, mod q), elsewhere two groups of a batch. The layers above see one vector.
 */
#ifndef GPK_CPU_VECTOR_PAIR_H
#define GPK_CPU_VECTOR_PAIR_H

#include "arithmetic/compiler.h"

namespace gpk {

template <class V> struct VectorPair {
    V first, second;
    static constexpr int lanes = 2 * V::lanes;
    static constexpr bool long_blocks = false;
};

template <class V> struct VectorPairBit {
    typename V::Bit first, second;
};

template <class V> GPK_INLINE VectorPair<V> mad52lo(VectorPair<V> c, VectorPair<V> a, VectorPair<V> b)
{
    return {mad52lo(c.first, a.first, b.first), mad52lo(c.second, a.second, b.second)};
}

template <class V> GPK_INLINE VectorPair<V> mad52hi(VectorPair<V> c, VectorPair<V> a, VectorPair<V> b)
{
    return {mad52hi(c.first, a.first, b.first), mad52hi(c.second, a.second, b.second)};
}

template <class V> GPK_INLINE VectorPair<V> operator+(VectorPair<V> a, VectorPair<V> b)
{
    return {a.first + b.first, a.second + b.second};
}

template <class V> GPK_INLINE VectorPair<V> operator-(VectorPair<V> a, VectorPair<V> b)
{
    return {a.first - b.first, a.second - b.second};
}

template <class V> GPK_INLINE VectorPair<V> operator&(VectorPair<V> a, VectorPair<V> b)
{
    return {a.first & b.first, a.second & b.second};
}

template <int K, class V> GPK_INLINE VectorPair<V> operator>>(VectorPair<V> a, Constant<K> k)
{
    return {a.first >> k, a.second >> k};
}

template <class V> GPK_INLINE VectorPair<V> blend(VectorPairBit<V> bit, VectorPair<V> if_clear, VectorPair<V> if_set)
{
    return {blend(bit.first, if_clear.first, if_set.first), blend(bit.second, if_clear.second, if_set.second)};
}

template <class V> GPK_INLINE VectorPairBit<V> bit_of(VectorPair<V> a, int position)
{
    return {bit_of(a.first, position), bit_of(a.second, position)};
}

template <class V> struct Splat<VectorPair<V>> {
    static GPK_INLINE VectorPair<V> of(uint64_t x) { return {Splat<V>::of(x), Splat<V>::of(x)}; }
};

template <int BITS, class V> class Selector<BITS, VectorPair<V>> {
  public:
    GPK_INLINE Selector(VectorPair<V> word, int position) : first(word.first, position), second(word.second, position)
    {
    }

    GPK_INLINE VectorPair<V> pick(const VectorPair<V> *table) const
    {
        return {first.template pick<2>(&table->first), second.template pick<2>(&table->second)};
    }

  private:
    Selector<BITS, V> first, second;
};

} // namespace gpk

#endif
