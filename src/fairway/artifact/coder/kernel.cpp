// Interleaved asymmetric numeral systems, decoding: see fairway/artifact/lanes.py for the definition.

#include "../../ops/kernel/scratch.h"
#include "../../ops/kernel/vector.h"

namespace {

constexpr uint32_t least_state = 1u << 16;

#if defined(__AVX512F__)
template <int bytes>
inline Words gathered(Words at, const void* from) {
    return (Words)_mm512_mask_i32gather_epi32(_mm512_setzero_si512(), 0xffff, (__m512i)at, from, bytes);
}

// Numbers of 32 bits by place: in two registers where there are few, else in memory. A Scratch is long enough for both.
constexpr long few_symbols = 32;

template <bool few>
struct Lookup {
    const void* from;
    __m512i low, high;

    explicit Lookup(const void* from) : from(from) {
        low = _mm512_loadu_si512(from);
        high = _mm512_loadu_si512((const uint32_t*)from + 16);
    }
    Words operator[](Words place) const {
        return few ? (Words)_mm512_permutex2var_epi32(low, (__m512i)place, high) : gathered<4>(place, from);
    }
};
#endif

// For each number below 2^bits the place whose span holds it, then that place's span and start in one word.
struct Coding {
    long symbols;
    int32_t first;
    int bits;
    uint32_t low;
    Scratch<uint16_t> holder;
    Scratch<uint32_t> entry;

    Coding(const uint32_t* span, long symbols, long first, int bits)
        : symbols(symbols), first((int32_t)first), bits(bits), low((1u << bits) - 1), holder(1L << bits), entry(symbols) {
        long slot = 0;
        for (long s = 0; s < symbols; s++) {
            entry[s] = span[s] << 16 | (uint32_t)slot;
            for (uint32_t k = 0; k < span[s]; k++) holder[slot++] = (uint16_t)s;
        }
    }

    int32_t step(uint32_t& x) const {
        uint32_t place = holder[x & low], e = entry[place];
        x = (e >> 16) * (x >> bits) + (x & low) - (e & 0xffff);
        return (int32_t)place + first;
    }

#if defined(__AVX512F__)
    // The last place is read with two bytes behind it, which Scratch has.
    template <bool few>
    Words step(Words& x, const Lookup<few>& entries) const {
        Words slot = x & low, place = gathered<2>(slot, holder.data()) & 0xffffu;
        Words e = entries[place];
        x = (e >> 16) * (x >> bits) + slot - (e & 0xffffu);
        return place + (uint32_t)first;
    }
#endif
};

// Symbols [from, count), one lane after another; returns the words taken, or -1 where they run out.
long one_by_one(const Coding& coding, const uint16_t* words, long available, uint32_t* state, int32_t* places, long from,
                long count, long lane_count, long taken) {
    for (long i = from; i < count; i++) {
        uint32_t& x = state[i % lane_count];
        places[i] = coding.step(x);
        if (x < least_state) {
            if (taken == available) return -1;
            x = x << 16 | words[taken++];
        }
    }
    return taken;
}

#if defined(__AVX512F__)
// Sixteen lanes in one register, while whole rounds of symbols and enough words are left; returns the symbols decoded.
template <int registers, bool few>
long together(const Coding& coding, const uint16_t* words, long available, uint32_t* state, int32_t* places, long count,
              long& taken) {
    Lookup<few> entries(coding.entry.data());
    Words x[registers];
    std::memcpy(x, state, sizeof x);
    long i = 0;
    for (; i + 16 * registers <= count && taken + 16 * registers <= available; i += 16 * registers) {
#pragma GCC unroll 4
        for (int j = 0; j < registers; j++) {
            Words place = coding.step(x[j], entries);
            std::memcpy(places + i + 16 * j, &place, sizeof place);
            __mmask16 low = _mm512_cmplt_epu32_mask((__m512i)x[j], _mm512_set1_epi32((int)least_state));
            Halves next;
            std::memcpy(&next, words + taken, sizeof next);
            __m512i spread = _mm512_maskz_expand_epi32(low, (__m512i)__builtin_convertvector(next, Words));
            x[j] = (Words)_mm512_mask_or_epi32((__m512i)x[j], low, (__m512i)(x[j] << 16), spread);
            taken += __builtin_popcount(low);
        }
    }
    std::memcpy(state, x, sizeof x);
    return i;
}

template <bool few>
long whole_rounds(const Coding& coding, const uint16_t* words, long available, uint32_t* state, int32_t* places, long count,
                  long lane_count, long& taken) {
    if (lane_count == 64) return together<4, few>(coding, words, available, state, places, count, taken);
    if (lane_count == 32) return together<2, few>(coding, words, available, state, places, count, taken);
    if (lane_count == 16) return together<1, few>(coding, words, available, state, places, count, taken);
    return 0;
}
#endif

long decode(const Coding& coding, const uint16_t* words, long available, uint32_t* state, int32_t* places, long count,
            long lane_count) {
    long taken = 0, from = 0;
#if defined(__AVX512F__)
    bool few = coding.symbols <= few_symbols;
    from = (few ? whole_rounds<true> : whole_rounds<false>)(coding, words, available, state, places, count, lane_count, taken);
#endif
    return one_by_one(coding, words, available, state, places, from, count, lane_count, taken);
}

// Puts rare places, in their order, where the one that stands for them is found; returns how many, or -1 where they run out.
long put_rare(int32_t* places, long count, const int32_t* rare, long rare_count, int32_t stand_in) {
    long used = 0;
    constexpr long block = 64;
    for (long start = 0; start < count; start += block) {
        long end = start + block < count ? start + block : count;
        int found = 0;
        for (long i = start; i < end; i++) found |= places[i] == stand_in;
        for (long i = start; i < end && found; i++) {
            if (places[i] != stand_in) continue;
            if (used == rare_count) return -1;
            places[i] = rare[used++];
        }
    }
    return used;
}

// Several tables, as the same number often follows itself, and two numbers to a load.
template <long tables>
void count_in(const int32_t* symbols, int64_t* counts, long low, long count, long range) {
    Scratch<uint32_t> found(tables * range);
    long i = 0;
    for (; i + tables <= count; i += tables)
#pragma GCC unroll 4
        for (long j = 0; j < tables; j += 2) {
            int32_t two[2];
            std::memcpy(two, symbols + i + j, sizeof two);
            found[j * range - low + two[0]]++;
            found[(j + 1) * range - low + two[1]]++;
        }
    for (; i < count; i++) found[symbols[i] - low]++;
    for (long j = 0; j < tables; j++)
        for (long s = 0; s < range; s++) counts[s] += found[j * range + s];
}

#if defined(__AVX512BW__)
// Each number is looked for among 256 symbols at once, packed to bytes in an order that does not matter.
void count_few(const int32_t* symbols, int64_t* counts, int32_t low, long count, long range) {
    const __m512i first = _mm512_set1_epi32(low);
    long i = 0;
    for (; i + 256 <= count; i += 256) {
        __m512i bytes[4];
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) {
            auto above = [&](int k) { return _mm512_sub_epi32(_mm512_loadu_si512(symbols + i + 64 * j + 16 * k), first); };
            __m512i halves = _mm512_packs_epi32(above(0), above(1));
            bytes[j] = _mm512_packus_epi16(halves, _mm512_packs_epi32(above(2), above(3)));
        }
        for (long s = 0; s < range; s++) {
            __m512i number = _mm512_set1_epi8((char)s);
#pragma GCC unroll 4
            for (int j = 0; j < 4; j++) counts[s] += __builtin_popcountll(_mm512_cmpeq_epi8_mask(bytes[j], number));
        }
    }
    for (; i < count; i++) counts[symbols[i] - low]++;
}
#endif

}  // namespace

// `taken` receives the words used, or -1 where there are too few, and the rare places put where `stand_in` was found, or -1
// where there are too few; `state` is overwritten by the last states.
FAIRWAY_EXPORT(rans_decode)
(const uint16_t* words, const uint32_t* span, uint32_t* state, int32_t* places, const int32_t* rare, long* taken, long count,
 long lane_count, long first, long reach, long available, long rare_count, long stand_in, int bits) {
    taken[0] = decode(Coding(span, reach, first, bits), words, available, state, places, count, lane_count);
    taken[1] = stand_in < 0 ? 0 : put_rare(places, count, rare, rare_count, (int32_t)(first + stand_in));
}

// How often each number from `low` on stands among the symbols; none is smaller, and none `range` or more above it.
FAIRWAY_EXPORT(count_symbols)(const int32_t* symbols, int64_t* counts, long low, long count, long range) {
    std::memset(counts, 0, (size_t)range * sizeof *counts);
#if defined(__AVX512BW__)
    if (range <= few_symbols) return count_few(symbols, counts, (int32_t)low, count, range);
#endif
    (range <= 4096 ? count_in<8> : count_in<4>)(symbols, counts, low, count, range);
}
