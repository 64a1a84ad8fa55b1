/* Memory of a warp's threads: loads and stores by public indices, and the warp's table. */
#ifndef GPK_GPU_MEMORY_H
#define GPK_GPU_MEMORY_H

#include "gpu/elements.h"

namespace gpk {
namespace {

/* The same address, hidden from a device's compiler. Otherwise it would load only once what is needed at the beginning
 * and at the end, and spill it in between. */
template <class E> GPK_INLINE E *once_more(E *memory)
{
#ifdef __CUDACC__
    asm volatile("" : "+l"(memory));
#endif
    return memory;
}

/* The same number, likewise hidden. Otherwise every address computed from it would take a register from beginning to
 * end. */
GPK_INLINE Public once_more(Public number)
{
#ifdef __CUDACC__
    asm volatile("" : "+r"(number.element[0]));
#endif
    return number;
}

/* Memory, by public indices. A thread that is not in `where` does not touch it. */
struct Memory {
    static GPK_INLINE Word32 load(const uint32_t *from, Public index, Where where)
    {
        return as<Word32>(from, index, where);
    }
    static GPK_INLINE Word64 load(const uint64_t *from, Public index, Where where)
    {
        return as<Word64>(from, index, where);
    }
    static GPK_INLINE Real load(const double *from, Public index, Where where) { return as<Real>(from, index, where); }
    template <class E> static GPK_INLINE auto load(const E *from, Public index)
    {
        return load(from, index, Where::less(Public::same(0), 1));
    }

    template <class E, class V> static GPK_INLINE void store(E *to, Public index, V a, Where where)
    {
#ifdef __CUDACC__
        if (Inside::of(where)[0])
            to[index.element[0]] = (E)Inside::of(a)[0];
#else
        for (int i = 0; i < WARP; i++)
            if (Inside::get(where, i))
                to[index.element[i]] = (E)Inside::get(a, i);
#endif
    }

    /* Stores a verdict, 1 or 0, which becomes public. */
    static GPK_INLINE void store(uint8_t *to, Public index, Mask a, Where where)
    {
        store<uint8_t>(to, index, one_where(a), where);
    }

    /* Lets the warp's threads load what the others have stored. */
    static GPK_INLINE void synchronize()
    {
#ifdef __CUDACC__
        __syncwarp();
#endif
    }

  private:
    template <class V, class E> static GPK_INLINE V as(const E *from, Public index, Where where)
    {
        V r;
#ifdef __CUDACC__
        Inside::of(r)[0] = 0;
        if (Inside::of(where)[0])
            Inside::of(r)[0] = from[index.element[0]];
#else
        for (int i = 0; i < WARP; i++)
            Inside::set(r, i, Inside::get(where, i) ? from[index.element[i]] : (E)0);
#endif
        return r;
    }
};

/* A warp's table, whose entries are vectors. In memory the elements of the 32 threads are side by side, so that on a
 * device each thread has a column of its own, and banks do not conflict. Indexed and advanced like a V *. */
#ifdef __CUDACC__
template <class V> class WarpTable {
  public:
    using Element = typename V::Element;

    class Entry {
      public:
        explicit GPK_INLINE Entry(Element *at) : at(at) {}
        GPK_INLINE operator V() const
        {
            V r;
            /* volatile: otherwise the compiler would load entries ahead of a loop of scans, and spill them. */
            Inside::of(r)[0] = *(volatile const Element *)at;
            return r;
        }
        GPK_INLINE void operator=(V a) const { *at = Inside::of(a)[0]; }

      private:
        Element *at;
    };

    static GPK_INLINE WarpTable in(void *memory)
    {
        return WarpTable(static_cast<Element *>(memory) + threadIdx.x % WARP);
    }
    GPK_INLINE WarpTable operator+(int count) const { return WarpTable(column + count * WARP); }
    GPK_INLINE Entry operator[](int index) const { return Entry(column + index * WARP); }

  private:
    explicit GPK_INLINE WarpTable(Element *column) : column(column) {}
    Element *column;
};
#else
template <class V> class WarpTable {
  public:
    static WarpTable in(void *memory) { return WarpTable(static_cast<V *>(memory)); }
    GPK_INLINE WarpTable operator+(int count) const { return WarpTable(entries + count); }
    GPK_INLINE V &operator[](int index) const { return entries[index]; }

  private:
    explicit GPK_INLINE WarpTable(V *entries) : entries(entries) {}
    V *entries;
};
#endif

} // namespace
} // namespace gpk

#endif
