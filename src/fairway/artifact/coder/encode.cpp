// Interleaved asymmetric numeral systems, encoding: see fairway/artifact/lanes.py for the definition.

#include "../../ops/kernel/scratch.h"
#include "../../ops/kernel/vector.h"

namespace {

// A span and its start in one word for each place from `first` on. Rare places share the entry of the one that stands for
// them; no entry is 0, which says that there are none.
struct Spans {
    const uint32_t* entry;
    long count;
    int32_t first;
    uint32_t rare;
    int bits;
};

// Words and rare places are handed out from the last to the first.
struct Ends {
    uint16_t* words;
    int32_t* rare;
};

// Symbols [from, count) from the last to the first, one lane after another.
void one_by_one(const Spans& spans, const int32_t* places, uint32_t* state, Ends& to, long from, long count, long lane_count) {
    for (long i = count - 1; i >= from; i--) {
        uint32_t x = state[i % lane_count], e = spans.entry[places[i] - spans.first], f = e >> 16;
        if (e == spans.rare) *--to.rare = places[i];
        if (x >> (32 - spans.bits) >= f) {
            *--to.words = (uint16_t)x;
            x >>= 16;
        }
        state[i % lane_count] = ((x / f) << spans.bits) + x % f + (e & 0xffff);
    }
}

#if defined(__AVX512F__)

// A little less than 1 / span: by 2^-21 on purpose, give or take three roundings of 2^-24 and the square of 2^-14.
inline Floats reciprocal_of(Words span) {
    Floats f = (Floats)_mm512_maskz_cvtepu32_ps(0xffff, (__m512i)span);
    Floats r = (Floats)_mm512_maskz_rcp14_ps(0xffff, (__m512)f);
    return r * (2.0f - 0x1p-21f - f * r);
}

// What a symbol of each lane needs, sixteen lanes to a register.
template <int registers>
struct Round {
    Words place[registers], span[registers], start[registers];
    Floats reciprocal[registers];
};

// Three ways to look a round up. Up to 32 places: entries and reciprocals in registers, found by the lowest bits of a place.
struct Few {
    static constexpr long most = 32;
    __m512i entry[2], reciprocal[2];

    explicit Few(const Spans& spans) {
        uint32_t by_bits[most] = {};
        for (long s = 0; s < spans.count; s++) by_bits[(spans.first + s) & (most - 1)] = spans.entry[s];
        std::memcpy(entry, by_bits, sizeof entry);
        for (int i = 0; i < 2; i++) reciprocal[i] = (__m512i)reciprocal_of((Words)entry[i] >> 16);
    }
    template <int registers>
    void find(Round<registers>& round) const {
#pragma GCC unroll 4
        for (int j = 0; j < registers; j++) {
            __m512i place = (__m512i)round.place[j];
            Words e = (Words)_mm512_permutex2var_epi32(entry[0], place, entry[1]);
            round.span[j] = e >> 16;
            round.start[j] = e & 0xffffu;
            round.reciprocal[j] = (Floats)_mm512_permutex2var_epi32(reciprocal[0], place, reciprocal[1]);
        }
    }
};

// Numbers of 16 bits in registers, 64 to a pair; 32 are found at once, by the lowest bits of a place.
template <int pairs>
struct Shelf {
    __m512i part[2 * pairs];

    __m512i pair(int i, __m512i place) const { return _mm512_permutex2var_epi16(part[2 * i], place, part[2 * i + 1]); }

    __m512i operator[](__m512i place) const {
        if (pairs == 1) return pair(0, place);
        __mmask32 odd = _mm512_test_epi16_mask(place, _mm512_set1_epi16(64));
        __m512i found = _mm512_mask_mov_epi16(pair(0, place), odd, pair(1, place));
        if (pairs == 2) return found;
        __mmask32 upper = _mm512_test_epi16_mask(place, _mm512_set1_epi16(128));
        return _mm512_mask_mov_epi16(found, upper, _mm512_mask_mov_epi16(pair(2, place), odd, pair(3, place)));
    }
};

// Up to 64, 128 or 256 places: spans and starts on shelves, where the places of two registers are found together.
template <int pairs>
struct Wide {
    static constexpr long most = 64 * pairs;
    Shelf<pairs> span, start;

    explicit Wide(const Spans& spans) {
        uint16_t span_of[most] = {}, start_of[most] = {};
        for (long s = 0; s < spans.count; s++) {
            long at = (spans.first + s) & (most - 1);
            span_of[at] = (uint16_t)(spans.entry[s] >> 16);
            start_of[at] = (uint16_t)spans.entry[s];
        }
        std::memcpy(&span, span_of, sizeof span_of);
        std::memcpy(&start, start_of, sizeof start_of);
    }
    template <int registers>
    void find(Round<registers>& round) const {
#pragma GCC unroll 2
        for (int j = 0; j < registers; j += 2) {
            __m512i upper = (__m512i)(round.place[j + 1] << 16);
            __m512i both = _mm512_mask_mov_epi16((__m512i)round.place[j], 0xaaaaaaaa, upper);
            Words f = (Words)span[both], c = (Words)start[both];
            round.span[j] = f & 0xffffu, round.span[j + 1] = f >> 16;
            round.start[j] = c & 0xffffu, round.start[j + 1] = c >> 16;
            round.reciprocal[j] = reciprocal_of(round.span[j]);
            round.reciprocal[j + 1] = reciprocal_of(round.span[j + 1]);
        }
    }
};

// Any number of places: entries in memory.
struct Many {
    const uint32_t* entry;
    uint32_t first;

    explicit Many(const Spans& spans) : entry(spans.entry), first((uint32_t)spans.first) {}
    template <int registers>
    void find(Round<registers>& round) const {
#pragma GCC unroll 4
        for (int j = 0; j < registers; j++) {
            __m512i at = (__m512i)(round.place[j] - first);
            Words e = (Words)_mm512_mask_i32gather_epi32(_mm512_setzero_si512(), 0xffff, at, entry, 4);
            round.span[j] = e >> 16;
            round.start[j] = e & 0xffffu;
            round.reciprocal[j] = reciprocal_of(round.span[j]);
        }
    }
};

// Apart from the loop, whose registers it would take. odd: a bit for each of the places.
__attribute__((noinline)) void hand_out(Ends& to, uint64_t odd, const int32_t* places) {
    to.rare -= __builtin_popcountll(odd);
    for (int32_t* rare = to.rare; odd; odd &= odd - 1) *rare++ = places[__builtin_ctzll(odd)];
}

// Puts the lower words of the states that are full in front of `to`, where sixteen words may be overwritten.
inline void shorten(Words& x, Words span, int bits, uint16_t*& to) {
    static const uint16_t counting[32] = {0,  1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12, 13, 14, 15,
                                          16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31};
    __mmask16 full = _mm512_cmpge_epu32_mask((__m512i)(x >> (32 - bits)), (__m512i)span);
    int written = __builtin_popcount(full);
    __m256i out = _mm512_maskz_cvtepi32_epi16(0xffff, _mm512_maskz_compress_epi32(full, (__m512i)x));
    __m256i turn = _mm256_loadu_si256((const __m256i*)(counting + written));
    _mm256_storeu_si256((__m256i*)(to - 16), _mm256_maskz_permutexvar_epi16(0xffff, turn, out));
    to -= written;
    x = (Words)_mm512_mask_srli_epi32((__m512i)x, full, (__m512i)x, 16);
}

// x = (x / span) 2^bits + x mod span + start. Quotients lie below 2^20; two roundings of 2^-24 more, and the guess by the
// reciprocal is right or one too small. One step after another in all registers, in the order in which they were shortened,
// so that none waits for long.
template <int registers>
inline void take_in(Words (&x)[registers], const Round<registers>& round, int bits) {
    Words quotient[registers], rest[registers];
#pragma GCC unroll 4
    for (int j = registers - 1; j >= 0; j--) {
        Floats ratio = (Floats)_mm512_maskz_cvtepu32_ps(0xffff, (__m512i)x[j]) * round.reciprocal[j];
        quotient[j] = (Words)_mm512_maskz_cvttps_epu32(0xffff, (__m512)ratio);
    }
#pragma GCC unroll 4
    for (int j = registers - 1; j >= 0; j--) {
        rest[j] = x[j] - quotient[j] * round.span[j];
        x[j] = (quotient[j] << bits) + round.start[j];
    }
#pragma GCC unroll 4
    for (int j = registers - 1; j >= 0; j--) {
        __mmask16 more = _mm512_cmpge_epu32_mask((__m512i)rest[j], (__m512i)round.span[j]);
        __m512i and_one = (__m512i)((1u << bits) - round.span[j]);
        x[j] += (Words)_mm512_mask_add_epi32((__m512i)rest[j], more, (__m512i)rest[j], and_one);
    }
}

template <int registers, class Table>
void together(const Spans& spans, const int32_t* places, uint32_t* state, Ends& to, long rounds) {
    Table table(spans);
    const __m512i stand_in = _mm512_set1_epi32((int)(spans.rare ? spans.rare & 0xffff : 0xffff));
    Words x[registers];
    std::memcpy(x, state, sizeof x);
    uint16_t* words = to.words;
    const int bits = spans.bits;
    for (long i = 16 * registers * (rounds - 1); i >= 0; i -= 16 * registers) {
        Round<registers> round;
        std::memcpy(round.place, places + i, sizeof round.place);
        table.find(round);
        uint64_t odd = 0;
#pragma GCC unroll 4
        for (int j = 0; j < registers; j++)
            odd |= (uint64_t)_mm512_cmpeq_epi32_mask((__m512i)round.start[j], stand_in) << 16 * j;
        if (__builtin_expect(odd != 0, 0)) hand_out(to, odd, places + i);
#pragma GCC unroll 4
        for (int j = registers - 1; j >= 0; j--) shorten(x[j], round.span[j], bits, words);
        take_in(x, round, bits);
    }
    std::memcpy(state, x, sizeof x);
    to.words = words;
}

// Whole rounds, by the smallest table that holds all places.
template <int registers>
void whole_rounds(const Spans& spans, const int32_t* places, uint32_t* state, Ends& to, long rounds) {
    if (spans.count <= Few::most) return together<registers, Few>(spans, places, state, to, rounds);
    if constexpr (registers > 1) {
        if (spans.count <= Wide<1>::most) return together<registers, Wide<1>>(spans, places, state, to, rounds);
        if (spans.count <= Wide<2>::most) return together<registers, Wide<2>>(spans, places, state, to, rounds);
        if (spans.count <= Wide<4>::most) return together<registers, Wide<4>>(spans, places, state, to, rounds);
    }
    together<registers, Many>(spans, places, state, to, rounds);
}
#endif

void encode(const Spans& spans, const int32_t* places, uint32_t* state, Ends& to, long count, long lane_count) {
    long rounds = 0;
#if defined(__AVX512F__)
    auto* run = lane_count == 64   ? whole_rounds<4>
                : lane_count == 32 ? whole_rounds<2>
                : lane_count == 16 ? whole_rounds<1>
                                   : nullptr;
    if (run) rounds = count / lane_count;
#endif
    one_by_one(spans, places, state, to, rounds * lane_count, count, lane_count);
#if defined(__AVX512F__)
    if (run) run(spans, places, state, to, rounds);
#endif
}

}  // namespace

// places: numbers from `first` on, fewer than `reach` above it. span: of each of these. words: room for sixteen more than
// `count`, filled from the end; `used` receives how many, and how many places were rare. state: `lane_count` times 2^16.
// `stand_in`: which span, if not negative, belongs to its own place and all without one together: these are rare, and handed
// out into `rare`, which has room for `count`, from the end.
FAIRWAY_EXPORT(rans_encode)
(const int32_t* places, const uint32_t* span, uint32_t* state, uint16_t* words, int32_t* rare, long* used, long count,
 long lane_count, long first, long reach, long stand_in, int bits) {
    Scratch<uint32_t> entry(reach);
    for (long s = 0, start = 0; s < reach; start += span[s++]) entry[s] = span[s] << 16 | (uint32_t)start;
    for (long s = 0; s < reach && stand_in >= 0; s++)
        if (!span[s]) entry[s] = entry[stand_in];
    Ends to{words + 16 + count, rare + count};
    Spans spans{entry.data(), reach, (int32_t)first, stand_in < 0 ? 0 : entry[stand_in], bits};
    encode(spans, places, state, to, count, lane_count);
    used[0] = words + 16 + count - to.words;
    used[1] = rare + count - to.rare;
}
