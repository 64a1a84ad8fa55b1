/* Rows of RSA operations across the threads of a warp, as rsa.h asks: each row has 2 T threads. The lower T compute mod
 * p, the upper T mod q, and all of them mod n, always with the same number of limbs in each. */
#ifndef GPK_GPU_ROWS_H
#define GPK_GPU_ROWS_H

#include "arithmetic/rsa.h"
#include "gpu/launch.h"
#include "gpu/memory.h"
#include "gpu/montgomery_threads.h"
#include "gpu/threads32.h"
#include "gpu/threads52.h"

namespace gpk {
namespace {

template <int BITS, int L, int T> struct RadixOf;
template <int L, int T> struct RadixOf<32, L, T> {
    using Type = MontgomeryThreads<Threads32, L, T>;
};
template <int L, int T> struct RadixOf<52, L, T> {
    using Type = MontgomeryThreads<Threads52, L, T>;
};
template <int BITS, int L, int T> using ThreadArithmetic = typename RadixOf<BITS, L, T>::Type;

/* An exponent in 32-bit words, of which the low `bits` bits count. begin: the index of each thread's first word. */
class ThreadExponent {
  public:
    GPK_INLINE ThreadExponent(const uint32_t *words, Public begin, int bits) : words(words), begin(begin), bits(bits) {}

    template <int WINDOW, class V> GPK_INLINE Selector<WINDOW, V> select(int digit) const
    {
        const int bit = digit * WINDOW, at = bit / 32, left = bits - bit;
        const Word32 low = Memory::load(words, begin + (uint32_t)at);
        Word64 both = widen(low);

        if (bit % 32 + WINDOW > 32 && 32 * (at + 1) < bits)
            both = join(low, Memory::load(words, begin + (uint32_t)(at + 1)));
        const uint64_t counts = (UINT64_C(1) << (left < WINDOW ? left : WINDOW)) - 1;
        return Selector<WINDOW, V>((both >> bit % 32) & Splat<Word64>::of(counts), 0);
    }

  private:
    const uint32_t *words;
    Public begin;
    int bits;
};

/* Numbers as rows of little-endian bytes, in 32-bit words. Of a row's THREADS, t has the limbs t L to t L + L - 1. */
template <int BITS, int L, int THREADS> struct ByteRows;

template <int L, int THREADS> struct ByteRows<32, L, THREADS> {
    static GPK_NOINLINE void load(Word32 *to, const uint32_t *rows, Public row, int words)
    {
        const Public first = once_more(Public::thread()) % THREADS * L, begin = once_more(row) * (uint32_t)words;

        GPK_UNROLL
        for (int i = 0; i < L; i++)
            to[i] = Memory::load(rows, begin + first + (uint32_t)i, Where::less(first + (uint32_t)i, (uint32_t)words));
    }

    static GPK_NOINLINE void store(uint32_t *rows, Public row, int words, const Word32 *from, Where where, void *)
    {
        const Public first = Public::thread() % THREADS * L;

        GPK_UNROLL
        for (int i = 0; i < L; i++)
            Memory::store(rows, row * (uint32_t)words + first + (uint32_t)i, from[i],
                          where & Where::less(first + (uint32_t)i, (uint32_t)words));
    }
};

template <int L, int THREADS> struct ByteRows<52, L, THREADS> {
    static GPK_NOINLINE void load(Real *to, const uint32_t *rows, Public row, int words)
    {
        const Public first = once_more(Public::thread()) % THREADS * L, begin = once_more(row) * (uint32_t)words;

        GPK_UNROLL
        for (int i = 0; i < L; i++) {
            const Public bit = (first + (uint32_t)i) * 52, shift = bit % 32;
            Word32 word[3];
            GPK_UNROLL
            for (int j = 0; j < 3; j++) {
                const Public at = bit / 32 + (uint32_t)j;
                word[j] = Memory::load(rows, begin + at, Where::less(at, (uint32_t)words));
            }
            to[i] = Threads52<L, THREADS>::real(shift_right(join(word[0], word[1]), widen(word[2]), shift));
        }
    }

    /* scratch: N limbs of 64 bits for each row of the warp, through which threads exchange limbs. */
    static GPK_NOINLINE void store(uint32_t *rows, Public row, int words, const Real *from, Where where, void *scratch)
    {
        constexpr int N = L * THREADS, WORDS = (52 * N + 31) / 32, EACH = (WORDS + THREADS - 1) / THREADS;
        const Public thread = Public::thread() % THREADS, own = Public::thread() / THREADS * N;
        uint64_t *limbs = static_cast<uint64_t *>(scratch);

        Memory::synchronize();
        GPK_UNROLL
        for (int i = 0; i < L; i++)
            Memory::store(limbs, own + thread * L + (uint32_t)i, Threads52<L, THREADS>::integer(from[i]),
                          Where::less(thread, THREADS));
        Memory::synchronize();
        GPK_LOOP
        for (int i = 0; i < EACH; i++) {
            const Public word = thread + (uint32_t)(i * THREADS), limb = word * 32 / 52, shift = word * 32 % 52;
            const Word64 low = Memory::load(limbs, own + limb, Where::less(limb, N));
            const Word64 high = Memory::load(limbs, own + limb + 1, Where::less(limb + 1, N));
            Memory::store(rows, row * (uint32_t)words + word,
                          low_half(shift_right(low | high << 52, high >> 12, shift)),
                          where & Where::less(word, (uint32_t)words));
        }
        Memory::synchronize();
    }
};

/* PRIME_THREADS is T. */
template <int BITS, int CLASS, int L, int PRIME_THREADS, int WINDOW_BITS> class ThreadRows {
  public:
    static constexpr int T = PRIME_THREADS, WINDOW = WINDOW_BITS, N = L * T, WORDS = CLASS / 4;
    using Half = ThreadArithmetic<BITS, L, T>;
    using Full = ThreadArithmetic<BITS, L, 2 * T>;
    using V = typename Half::Vector;
    using Limb = typename V::Element;
    using Layout = RecordLayout<BITS, N>;
    using Bytes = ByteRows<BITS, L, 2 * T>;
    static constexpr int ROWS = WARP / (2 * T); /* per warp */

    GPK_INLINE ThreadRows(const gpk_private_launch &launch, uint32_t warp, void *table)
        : launch(launch), table_memory(table), place(Public::thread() / (2 * T) + warp * ROWS),
          record(Public::load(launch.record_of_row, row()) * (Layout::words * 4 / sizeof(Limb)))
    {
    }

    GPK_NOINLINE void load(Half &half) const
    {
        load(half.modulus, HalfNumber::modulus);
        half.k0 = Memory::load(limbs(), record + Layout::k0 + Public::thread() % (2 * T) / T);
    }

    GPK_NOINLINE void load(Full &full) const
    {
        load(full.modulus, FullNumber::modulus);
        full.k0 = Memory::load(limbs(), record + (Layout::k0 + 2));
    }

    GPK_NOINLINE void load(V *to, HalfNumber number) const { load(to, Layout::half_number((int)number)); }
    GPK_NOINLINE void load(V *to, FullNumber number) const { load(to, Layout::full_number((int)number)); }

    GPK_NOINLINE void load_input(V *to) const
    {
        Bytes::load(to, once_more(reinterpret_cast<const uint32_t *>(launch.inputs)), row(), WORDS);
    }

    GPK_INLINE void load_blinding(V *to) const { load_pair(to, 0); }
    GPK_INLINE void load_unblinding(V *to) const { load_pair(to, 2 * N); }
    GPK_INLINE void store_blinding(const V *from) const { store_pair(from, 0); }
    GPK_INLINE void store_unblinding(const V *from) const { store_pair(from, 2 * N); }

    GPK_NOINLINE void settle(const V *number, const V *power) const
    {
        V input[L];
        load_input(input);
        const Mask right = all_of<2 * T>(equal(power, input, Splat<V>::of(0)));

        GPK_UNROLL
        for (int i = 0; i < L; i++)
            input[i] = blend(right, Splat<V>::of(0), number[i]);
        Bytes::store(reinterpret_cast<uint32_t *>(launch.outputs), row(), WORDS, input, real_row(), table_memory);
        Memory::store(launch.ok, row(), right, real_row() & Where::less(Public::thread() % (2 * T), 1));
    }

    GPK_INLINE ThreadExponent exponent(HalfExponent which) const
    {
        return ThreadExponent(static_cast<const uint32_t *>(launch.records),
                              record * (sizeof(Limb) / 4) + Layout::exponent((int)which)
                                  + Public::thread() % (2 * T) / T * Layout::exponent_words,
                              (int)launch.exponent_bits);
    }

    GPK_INLINE int digits() const { return Digits<WINDOW>::count((int)launch.exponent_bits); }
    GPK_INLINE WarpTable<V> table() const { return WarpTable<V>::in(table_memory); }
    GPK_INLINE uint64_t any_e() const { return launch.any_e; }

    GPK_INLINE Mask e_has(int position) const
    {
        const Word32 word = Memory::load(static_cast<const uint32_t *>(launch.records),
                                         record * (sizeof(Limb) / 4) + (uint32_t)(Layout::e + position / 32));
        return bit_of(word, position % 32);
    }

    static GPK_NOINLINE void halves(V *low, V *high, const V *number)
    {
        GPK_UNROLL
        for (int i = 0; i < L; i++) {
            const V limb = number[i];
            low[i] = from_half<2 * T>(limb, 0);
            high[i] = from_half<2 * T>(limb, 1);
        }
    }

    static GPK_NOINLINE void second(V *to, const V *from)
    {
        GPK_UNROLL
        for (int i = 0; i < L; i++)
            to[i] = from_half<2 * T>(from[i], 1);
    }

    static GPK_NOINLINE void join(V *first, V *second, const V *a, const V *b)
    {
        const Where lower = Where::less(Public::thread() % (2 * T), T);

        GPK_UNROLL
        for (int i = 0; i < L; i++) {
            first[i] = keep(lower, a[i]);
            second[i] = keep(lower, from_half<2 * T>(b[i], 1));
        }
    }

  private:
    const gpk_private_launch &launch;
    void *table_memory;
    Public place;  /* of the row in the launch; the last warp may have places without a row */
    Public record; /* the index of its first limb */

    GPK_INLINE Public row() const { return place.at_most(launch.count - 1); }
    GPK_INLINE Where real_row() const { return Where::less(place, launch.count); }

    GPK_INLINE const Limb *limbs() const { return once_more(static_cast<const Limb *>(launch.records)); }

    /* The index of the first limb of the thread's part of the row's pair. */
    GPK_INLINE Public pair() const
    {
        return Public::load(once_more(launch.pair_of_row), row()) * Layout::pair_limbs + Public::thread() % (2 * T) * L;
    }

    GPK_NOINLINE void load(V *to, int offset) const
    {
        const Public begin = record + (uint32_t)offset + Public::thread() % (2 * T) * L;
        const Limb *from = limbs();

        GPK_UNROLL
        for (int i = 0; i < L; i++)
            to[i] = Memory::load(from, begin + (uint32_t)i);
    }

    GPK_NOINLINE void load_pair(V *to, int offset) const
    {
        const Limb *from = once_more(static_cast<const Limb *>(launch.pairs));
        const Public begin = pair() + (uint32_t)offset;

        GPK_UNROLL
        for (int i = 0; i < L; i++)
            to[i] = Memory::load(from, begin + (uint32_t)i);
    }

    GPK_NOINLINE void store_pair(const V *from, int offset) const
    {
        const Public begin = pair() + (uint32_t)offset;

        GPK_UNROLL
        for (int i = 0; i < L; i++)
            Memory::store(static_cast<Limb *>(launch.pairs), begin + (uint32_t)i, from[i], real_row());
    }

    /* Whether a thread's limbs are equal, and `difference` zero. */
    static GPK_INLINE Mask equal(const Word32 *a, const Word32 *b, Word32 difference)
    {
        GPK_UNROLL
        for (int i = 0; i < L; i++)
            difference = difference | (a[i] ^ b[i]);
        return is_zero(widen(difference));
    }

    static GPK_INLINE Mask equal(const Real *a, const Real *b, Real)
    {
        Word64 difference = Splat<Word64>::of(0);
        GPK_UNROLL
        for (int i = 0; i < L; i++)
            difference = difference | (bits_of_real(a[i]) ^ bits_of_real(b[i]));
        return is_zero(difference);
    }
};

} // namespace
} // namespace gpk

#endif
