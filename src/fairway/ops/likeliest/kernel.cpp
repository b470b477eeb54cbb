// The likeliest tokens of each row of soft-capped logits: see naive.py for the definition.
//
// The row is dealt to at least twice as many piles as tokens are wanted. As many piles as tokens hold something at least as
// large as the piles' k-th largest maximum, so nothing below that can be among the k largest; the few that are left are
// ranked by a heap.

#include "../kernel/point.h"
#include "../kernel/scratch.h"

namespace {

// An order of numbers as one of integers, the greater number first, of equal ones the smaller index; NaN before all.
inline uint64_t rank_of(float x, long index) {
    uint32_t bits;
    x = x == 0 ? 0.0f : x;
    std::memcpy(&bits, &x, 4);
    uint32_t rising = x != x ? 0xffffffffu : bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return (uint64_t)rising << 32 | (uint32_t)~(uint32_t)index;
}

inline long index_of(uint64_t rank) { return (long)(uint32_t)~(uint32_t)rank; }

// The greatest rank on top.
struct Heap {
    uint64_t* rank;
    long size;

    void sink(long i) {
        for (long child; (child = 2 * i + 1) < size; i = child) {
            if (child + 1 < size && rank[child + 1] > rank[child]) child++;
            if (rank[child] < rank[i]) return;
            uint64_t held = rank[i];
            rank[i] = rank[child], rank[child] = held;
        }
    }
    void build() {
        for (long i = size / 2 - 1; i >= 0; i--) sink(i);
    }
    uint64_t pop() {
        uint64_t top = rank[0];
        rank[0] = rank[--size];
        sink(0);
        return top;
    }
};

struct Row {
    float *logits, *piles;
    uint64_t* ranks;
    long width, few, pile_count;

    // Logits as they are before the cap; minus infinity behind the last one up to a whole vector.
    template <class T>
    void read(const T* z) const {
        for (long i = 0; i < width; i += lanes) {
            store(logits + i, load_part(z + i, width - i));
            if (width - i < lanes)
                for (long j = width; j < i + lanes; j++) logits[j] = -INFINITY;
        }
    }

    // A number that at least `few` of the row are not below.
    float bound() const {
        for (long i = 0; i < pile_count; i += lanes) store(piles + i, all(-INFINITY));
        for (long i = 0, pile = 0; i < width; i += lanes) {
            store(piles + pile, larger(load(logits + i), load(piles + pile)));
            if ((pile += lanes) == pile_count) pile = 0;
        }
        for (long i = 0; i < pile_count; i++) ranks[i] = rank_of(piles[i], i);
        Heap heap{ranks, pile_count};
        heap.build();
        for (long i = 0; i < few - 1; i++) heap.pop();
        return piles[index_of(heap.pop())];
    }

    // Ranks of all that are not below a bound, NaN among them.
    long left(float bound) const {
        long count = 0;
        for (long i = 0; i < width; i += lanes) {
#if defined(__AVX512F__)
            // Bits of what is not less than the bound.
            unsigned bits = _mm512_cmp_ps_mask((__m512)load(logits + i), (__m512)all(bound), _CMP_NLT_UQ);
            if (width - i < lanes) bits &= (1u << (width - i)) - 1;
            for (; bits; bits &= bits - 1) {
                long at = i + __builtin_ctz(bits);
                ranks[count++] = rank_of(logits[at], at);
            }
#else
            for (long at = i; at < i + lanes && at < width; at++)
                if (!(logits[at] < bound)) ranks[count++] = rank_of(logits[at], at);
#endif
        }
        return count;
    }

    void choose(int64_t* index) const {
        Heap heap{ranks, left(pile_count < width ? bound() : -INFINITY)};
        heap.build();
        for (long j = 0; j < few; j++) index[j] = index_of(heap.pop());
    }

    void name(const int64_t* index, float* log_p, float cap, float cold) const {
        Floats most = all(-INFINITY), sums{};
        for (long i = 0; i < width; i += lanes) {
            Floats l = load(logits + i);
            l = (cap > 0 ? cap * tanh_of(l / cap) : l) * cold;
            if (width - i < lanes)
                for (long j = width - i; j < lanes; j++) l[j] = -INFINITY;
            store(logits + i, l);
            most = larger(l, most);
        }
        float top = largest(most);
        for (long i = 0; i < width; i += lanes) sums += power_of_e(load(logits + i) - top);
        float normaliser = top + std::log(sum(sums));
        for (long j = 0; j < few; j++) log_p[j] = logits[index[j]] - normaliser;
    }
};

template <class T>
void rows(const T* z, float* log_p, int64_t* index, long count, long width, long few, float cap, float cold) {
    long piles = (2 * few + lanes - 1) / lanes * lanes, ranks = piles > width ? piles : width;
#pragma omp parallel
    {
        Scratch<float> logits(width + lanes), held(piles);
        Scratch<uint64_t> ranked(ranks);
        Row row{logits.data(), held.data(), ranked.data(), width, few, piles};
#pragma omp for schedule(static)
        for (long n = 0; n < count; n++) {
            row.read(z + n * width);
            row.choose(index + n * few);
            row.name(index + n * few, log_p + n * few, cap, cold);
        }
    }
}

}  // namespace

// z: (count, width); log_p, index: (count, few), few at most the width. cap: 0 for none.
FAIRWAY_EXPORT(likeliest)
(const void* z, float* log_p, int64_t* index, long count, long width, long few, float cap, float cold, int half) {
    if (half)
        rows((const Bfloat*)z, log_p, index, count, width, few, cap, cold);
    else
        rows((const float*)z, log_p, index, count, width, few, cap, cold);
}
