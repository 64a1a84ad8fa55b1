/* Two independent elements as one lane: every operation is issued for both.
 *
 * The multiply-add has a latency of four cycles; two instruction streams that do not wait for one another fill it. The
 * pair of an RSA operation is (mod p, mod q); elsewhere it is two numbers of a batch. The layers above see a lane.
 */
#ifndef GPK_CPU_VECTOR_PAIR_H
#define GPK_CPU_VECTOR_PAIR_H

#include "arithmetic/compiler.h"

namespace gpk {

template <class V> struct Pair {
    V first, second;
    static constexpr int width = 2 * V::width;
    static constexpr bool long_blocks = false;
};

template <class V> struct PairBit {
    typename V::Bit first, second;
};

template <class V> GPK_INLINE Pair<V> mad52lo(Pair<V> c, Pair<V> a, Pair<V> b)
{
    return {mad52lo(c.first, a.first, b.first), mad52lo(c.second, a.second, b.second)};
}

template <class V> GPK_INLINE Pair<V> mad52hi(Pair<V> c, Pair<V> a, Pair<V> b)
{
    return {mad52hi(c.first, a.first, b.first), mad52hi(c.second, a.second, b.second)};
}

template <class V> GPK_INLINE Pair<V> operator+(Pair<V> a, Pair<V> b)
{
    return {a.first + b.first, a.second + b.second};
}

template <class V> GPK_INLINE Pair<V> operator-(Pair<V> a, Pair<V> b)
{
    return {a.first - b.first, a.second - b.second};
}

template <class V> GPK_INLINE Pair<V> operator&(Pair<V> a, Pair<V> b)
{
    return {a.first & b.first, a.second & b.second};
}

template <int K, class V> GPK_INLINE Pair<V> operator>>(Pair<V> a, Constant<K> k)
{
    return {a.first >> k, a.second >> k};
}

template <class V> GPK_INLINE Pair<V> blend(PairBit<V> bit, Pair<V> if_clear, Pair<V> if_set)
{
    return {blend(bit.first, if_clear.first, if_set.first), blend(bit.second, if_clear.second, if_set.second)};
}

template <class V> GPK_INLINE PairBit<V> bit_of(Pair<V> a, int position)
{
    return {bit_of(a.first, position), bit_of(a.second, position)};
}

template <class V> struct Splat<Pair<V>> {
    static GPK_INLINE Pair<V> of(uint64_t x) { return {Splat<V>::of(x), Splat<V>::of(x)}; }
};

template <int BITS, class V> class Selector<BITS, Pair<V>> {
  public:
    GPK_INLINE Selector(Pair<V> word, int position) : first(word.first, position), second(word.second, position) {}

    GPK_INLINE Pair<V> pick(const Pair<V> *table) const
    {
        return {first.template pick<2>(&table->first), second.template pick<2>(&table->second)};
    }

  private:
    Selector<BITS, V> first, second;
};

} // namespace gpk

#endif
