// Interleaved asymmetric numeral systems: see lanes.py for the definition.

#include <vector>

#include "../../ops/kernel/vector.h"

namespace {

constexpr uint32_t first_state = 1u << 16;

struct Model {
    const uint32_t* span;
    long symbols;
    int bits;
};

std::vector<uint32_t> starts_of(Model m) {
    std::vector<uint32_t> start((size_t)m.symbols);
    uint32_t at = 0;
    for (long s = 0; s < m.symbols; s++) {
        start[(size_t)s] = at;
        at += m.span[s];
    }
    return start;
}

// For each number below 2^bits, the place whose span holds it; one more at the end, as wide loads reach beyond it.
std::vector<uint16_t> holders_of(Model m) {
    std::vector<uint16_t> holder;
    holder.reserve(((size_t)1 << m.bits) + 1);
    for (long s = 0; s < m.symbols; s++) holder.insert(holder.end(), m.span[s], (uint16_t)s);
    holder.push_back(0);
    return holder;
}

// At most 256 places on a grid of 2^12: place, span - 1 and distance from the span's start in one word.
struct Narrow {
    std::vector<uint32_t> entry;

    explicit Narrow(Model m) {
        for (long s = 0; s < m.symbols; s++)
            for (uint32_t k = 0; k < m.span[s]; k++) entry.push_back((uint32_t)s | (m.span[s] - 1) << 8 | k << 20);
    }

    int32_t step(uint32_t& x) const {
        uint32_t e = entry[x & 4095];
        x = (((e >> 8) & 4095) + 1) * (x >> 12) + (e >> 20);
        return (int32_t)(e & 255);
    }

#if defined(__AVX512F__)
    __m512i step(__m512i& x) const {
        const __m512i low = _mm512_set1_epi32(4095);
        __m512i e = _mm512_mask_i32gather_epi32(low, 0xffff, _mm512_and_si512(x, low), entry.data(), 4);
        __m512i span = _mm512_add_epi32(_mm512_and_si512(_mm512_srli_epi32(e, 8), low), _mm512_set1_epi32(1));
        x = _mm512_add_epi32(_mm512_mullo_epi32(_mm512_srli_epi32(x, 12), span), _mm512_srli_epi32(e, 20));
        return _mm512_and_si512(e, _mm512_set1_epi32(255));
    }
#endif
};

// Any number of places up to 2^16 on a grid of 2^16: first the place, then its span and start.
struct Wide {
    std::vector<uint16_t> holder;
    std::vector<uint32_t> entry;

    explicit Wide(Model m) : holder(holders_of(m)) {
        std::vector<uint32_t> start = starts_of(m);
        for (long s = 0; s < m.symbols; s++) entry.push_back(m.span[s] << 16 | start[(size_t)s]);
    }

    int32_t step(uint32_t& x) const {
        uint32_t place = holder[x & 0xffff], e = entry[place];
        x = (e >> 16) * (x >> 16) + (x & 0xffff) - (e & 0xffff);
        return (int32_t)place;
    }

#if defined(__AVX512F__)
    __m512i step(__m512i& x) const {
        const __m512i low = _mm512_set1_epi32(0xffff);
        __m512i slot = _mm512_and_si512(x, low);
        __m512i place = _mm512_and_si512(_mm512_mask_i32gather_epi32(low, 0xffff, slot, holder.data(), 2), low);
        __m512i e = _mm512_mask_i32gather_epi32(low, 0xffff, place, entry.data(), 4);
        __m512i base = _mm512_sub_epi32(slot, _mm512_and_si512(e, low));
        x = _mm512_add_epi32(_mm512_mullo_epi32(_mm512_srli_epi32(x, 16), _mm512_srli_epi32(e, 16)), base);
        return place;
    }
#endif
};

// Symbols [from, count), one lane after another; returns the words taken, or -1 where they run out.
template <class Coding>
long one_by_one(const Coding& coding, const uint16_t* words, long available, uint32_t* state, int32_t* places, long from,
                long count, long lane_count, long taken) {
    for (long i = from; i < count; i++) {
        uint32_t& x = state[i % lane_count];
        places[i] = coding.step(x);
        if (x < first_state) {
            if (taken == available) return -1;
            x = x << 16 | words[taken++];
        }
    }
    return taken;
}

#if defined(__AVX512F__)
// Sixteen lanes in one register, while whole rounds of symbols and enough words are left; returns the symbols decoded.
template <int registers, class Coding>
long together(const Coding& coding, const uint16_t* words, long available, uint32_t* state, int32_t* places, long count,
              long& taken) {
    __m512i x[registers];
    for (int j = 0; j < registers; j++) x[j] = _mm512_loadu_si512(state + 16 * j);
    const __m512i limit = _mm512_set1_epi32((int)first_state);
    long i = 0;
    for (; i + 16 * registers <= count && taken + 16 * registers <= available; i += 16 * registers) {
#pragma GCC unroll 4
        for (int j = 0; j < registers; j++) {
            _mm512_storeu_si512(places + i + 16 * j, coding.step(x[j]));
            __mmask16 low = _mm512_cmplt_epu32_mask(x[j], limit);
            __m512i next = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)(words + taken)));
            next = _mm512_maskz_expand_epi32(low, next);
            x[j] = _mm512_mask_or_epi32(x[j], low, _mm512_maskz_slli_epi32(0xffff, x[j], 16), next);
            taken += __builtin_popcount(low);
        }
    }
    for (int j = 0; j < registers; j++) _mm512_storeu_si512(state + 16 * j, x[j]);
    return i;
}
#endif

template <class Coding>
long decode(const Coding& coding, const uint16_t* words, long available, uint32_t* state, int32_t* places, long count,
            long lane_count) {
    long taken = 0, from = 0;
#if defined(__AVX512F__)
    if (lane_count == 64) from = together<4>(coding, words, available, state, places, count, taken);
    if (lane_count == 32) from = together<2>(coding, words, available, state, places, count, taken);
    if (lane_count == 16) from = together<1>(coding, words, available, state, places, count, taken);
#endif
    return one_by_one(coding, words, available, state, places, from, count, lane_count, taken);
}

}  // namespace

// words: room for `count` of them, filled from the end; `used` receives how many. state: `lane_count` times 2^16.
FAIRWAY_EXPORT(rans_encode)
(const int32_t* places, const uint32_t* span, uint32_t* state, uint16_t* words, long* used, long count, long lane_count,
 long symbols, int bits) {
    std::vector<uint32_t> start = starts_of({span, symbols, bits});
    uint16_t* to = words + count;
    for (long i = count - 1; i >= 0; i--) {
        uint32_t x = state[i % lane_count], s = (uint32_t)places[i], f = span[s];
        if ((uint64_t)x >= (uint64_t)f << (32 - bits)) {
            *--to = (uint16_t)x;
            x >>= 16;
        }
        state[i % lane_count] = ((x / f) << bits) + x % f + start[s];
    }
    *used = words + count - to;
}

// `taken` receives the words used, or -1 where there are too few; `state` is overwritten by the last states.
FAIRWAY_EXPORT(rans_decode)
(const uint16_t* words, const uint32_t* span, uint32_t* state, int32_t* places, long* taken, long count, long lane_count,
 long symbols, long available, int bits) {
    Model m{span, symbols, bits};
    *taken = bits == 12 ? decode(Narrow(m), words, available, state, places, count, lane_count)
                        : decode(Wide(m), words, available, state, places, count, lane_count);
}
