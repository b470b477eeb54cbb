// Interleaved asymmetric numeral systems: see fairway/artifact/lanes.py for the definition.

#include "../../ops/kernel/scratch.h"
#include "../../ops/kernel/vector.h"

namespace {

constexpr uint32_t first_state = 1u << 16;

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
    int bits;
    uint32_t low;
    Scratch<uint16_t> holder;
    Scratch<uint32_t> entry;

    Coding(const uint32_t* span, long symbols, int bits)
        : symbols(symbols), bits(bits), low((1u << bits) - 1), holder(1L << bits), entry(symbols) {
        long slot = 0;
        for (long s = 0; s < symbols; s++) {
            entry[s] = span[s] << 16 | (uint32_t)slot;
            for (uint32_t k = 0; k < span[s]; k++) holder[slot++] = (uint16_t)s;
        }
    }

    int32_t step(uint32_t& x) const {
        uint32_t place = holder[x & low], e = entry[place];
        x = (e >> 16) * (x >> bits) + (x & low) - (e & 0xffff);
        return (int32_t)place;
    }

#if defined(__AVX512F__)
    // The last place is read with two bytes behind it, which Scratch has.
    template <bool few>
    Words step(Words& x, const Lookup<few>& entries) const {
        Words slot = x & low, place = gathered<2>(slot, holder.data()) & 0xffffu;
        Words e = entries[place];
        x = (e >> 16) * (x >> bits) + slot - (e & 0xffffu);
        return place;
    }
#endif
};

// Symbols [from, count), one lane after another; returns the words taken, or -1 where they run out.
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
            __mmask16 low = _mm512_cmplt_epu32_mask((__m512i)x[j], _mm512_set1_epi32((int)first_state));
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

// Rare places share the entry of the one that stands for them, and are handed out from the last to the first. No entry is 0,
// which says that there are none.
struct Rare {
    uint32_t entry;
    int32_t* to;
};

// Symbols [from, count) from the last to the first, one lane after another; returns where the words now begin.
uint16_t* encode_one_by_one(const uint32_t* entry, const int32_t* places, uint32_t* state, uint16_t* to, Rare& rare,
                            long from, long count, long lane_count, int bits) {
    for (long i = count - 1; i >= from; i--) {
        uint32_t x = state[i % lane_count], e = entry[places[i]], f = e >> 16;
        if (e == rare.entry) *--rare.to = places[i];
        if (x >> (32 - bits) >= f) {
            *--to = (uint16_t)x;
            x >>= 16;
        }
        state[i % lane_count] = ((x / f) << bits) + x % f + (e & 0xffff);
    }
    return to;
}

#if defined(__AVX512F__)
// Quotient and remainder by a reciprocal, for quotients below 2^20: six roundings of 2^-24 at most, each way, and 2^-21
// less on purpose, so the first guess is right or one too small.
inline Words quotient(Words a, Words b, Floats reciprocal, Words& rest) {
    Floats ratio = (Floats)_mm512_maskz_cvtepu32_ps(0xffff, (__m512i)a) * reciprocal;
    __m512i q = _mm512_maskz_cvttps_epu32(0xffff, (__m512)ratio);
    rest = a - (Words)q * b;
    __mmask16 more = _mm512_cmpge_epu32_mask((__m512i)rest, (__m512i)b);
    rest = (Words)_mm512_mask_sub_epi32((__m512i)rest, more, (__m512i)rest, (__m512i)b);
    return (Words)_mm512_mask_add_epi32(q, more, q, _mm512_set1_epi32(1));
}

inline Floats reciprocal_of(Words span) {
    Floats f = (Floats)_mm512_maskz_cvtepu32_ps(0xffff, (__m512i)span);
    Floats r = (Floats)_mm512_maskz_rcp14_ps(0xffff, (__m512)f);
    return r * (2.0f - f * r) * (1.0f - 0x1p-21f);
}

// Apart from the loop, whose registers it would take.
__attribute__((noinline)) void hand_out(Rare& rare, __mmask16 odd, __m512i places) {
    int count = __builtin_popcount(odd);
    rare.to -= count;
    _mm512_mask_storeu_epi32(rare.to, (__mmask16)((1u << count) - 1), _mm512_maskz_compress_epi32(odd, places));
}

// Whole rounds of symbols, sixteen lanes in one register. Sixteen words in front of `to` may be overwritten at any time.
template <int registers, bool few, bool some_rare>
uint16_t* encode_together(const uint32_t* entry, const int32_t* places, uint32_t* state, uint16_t* to, Rare& rare, long rounds,
                          int bits) {
    const Words counting = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    alignas(64) float inverse[few_symbols];
    Lookup<few> entries(entry);
    store(inverse, reciprocal_of((Words)entries.low >> 16));
    store(inverse + 16, reciprocal_of((Words)entries.high >> 16));
    Lookup<few> inverses(inverse);
    const __m512i stand_in = _mm512_set1_epi32((int)rare.entry);
    Words x[registers];
    std::memcpy(x, state, sizeof x);
    for (long i = 16 * registers * (rounds - 1); i >= 0; i -= 16 * registers) {
#pragma GCC unroll 4
        for (int j = registers - 1; j >= 0; j--) {
            Words place, rest;
            std::memcpy(&place, places + i + 16 * j, sizeof place);
            Words e = entries[place], f = e >> 16;
            if (some_rare) {
                __mmask16 odd = _mm512_cmpeq_epi32_mask((__m512i)e, stand_in);
                if (__builtin_expect(odd, 0)) hand_out(rare, odd, (__m512i)place);
            }
            __mmask16 full = _mm512_cmpge_epu32_mask((__m512i)(x[j] >> (32 - bits)), (__m512i)f);
            uint32_t written = (uint32_t)__builtin_popcount(full);
            __m512i out = _mm512_maskz_compress_epi32(full, (__m512i)x[j]);
            out = _mm512_maskz_permutexvar_epi32(0xffff, (__m512i)(counting + written), out);
            _mm256_storeu_si256((__m256i*)(to - 16), _mm512_maskz_cvtepi32_epi16(0xffff, out));
            to -= written;
            x[j] = (Words)_mm512_mask_srli_epi32((__m512i)x[j], full, (__m512i)x[j], 16);
            Words q = quotient(x[j], f, few ? (Floats)inverses[place] : reciprocal_of(f), rest);
            x[j] = (q << bits) + rest + (e & 0xffffu);
        }
    }
    std::memcpy(state, x, sizeof x);
    return to;
}

template <bool few, bool some_rare>
uint16_t* encode_rounds(const uint32_t* entry, const int32_t* places, uint32_t* state, uint16_t* to, Rare& rare, long rounds,
                        long lane_count, int bits) {
    if (lane_count == 64) return encode_together<4, few, some_rare>(entry, places, state, to, rare, rounds, bits);
    if (lane_count == 32) return encode_together<2, few, some_rare>(entry, places, state, to, rare, rounds, bits);
    return encode_together<1, few, some_rare>(entry, places, state, to, rare, rounds, bits);
}
#endif

uint16_t* encode(const uint32_t* entry, [[maybe_unused]] long symbols, const int32_t* places, uint32_t* state, uint16_t* to,
                 Rare& rare, long count, long lane_count, int bits) {
#if defined(__AVX512F__)
    long rounds = count / lane_count;
    if (lane_count >= 16 && lane_count <= 64) {
        to = encode_one_by_one(entry, places, state, to, rare, rounds * lane_count, count, lane_count, bits);
        bool few = symbols <= few_symbols;
        auto* run = few ? (rare.entry ? encode_rounds<true, true> : encode_rounds<true, false>)
                        : (rare.entry ? encode_rounds<false, true> : encode_rounds<false, false>);
        return run(entry, places, state, to, rare, rounds, lane_count, bits);
    }
#endif
    return encode_one_by_one(entry, places, state, to, rare, 0, count, lane_count, bits);
}

}  // namespace

// words: room for sixteen more than `count`, filled from the end; `used` receives how many, and how many places were rare.
// state: `lane_count` times 2^16. Places without a span are rare, and so is `stand_in`, if not negative, whose span is theirs
// together; rare: room for `count`, filled from the end.
FAIRWAY_EXPORT(rans_encode)
(const int32_t* places, const uint32_t* span, uint32_t* state, uint16_t* words, int32_t* rare, long* used, long count,
 long lane_count, long symbols, long stand_in, int bits) {
    Scratch<uint32_t> entry(symbols);
    for (long s = 0, start = 0; s < symbols; start += span[s++]) entry[s] = span[s] << 16 | (uint32_t)start;
    for (long s = 0; s < symbols && stand_in >= 0; s++)
        if (!span[s]) entry[s] = entry[stand_in];
    uint16_t* end = words + 16 + count;
    Rare found{stand_in < 0 ? 0 : entry[stand_in], rare + count};
    used[0] = end - encode(entry.data(), symbols, places, state, end, found, count, lane_count, bits);
    used[1] = rare + count - found.to;
}

// `taken` receives the words used, or -1 where there are too few, and the rare places put where `stand_in` was found, or -1
// where there are too few; `state` is overwritten by the last states.
FAIRWAY_EXPORT(rans_decode)
(const uint16_t* words, const uint32_t* span, uint32_t* state, int32_t* places, const int32_t* rare, long* taken, long count,
 long lane_count, long symbols, long available, long rare_count, long stand_in, int bits) {
    taken[0] = decode(Coding(span, symbols, bits), words, available, state, places, count, lane_count);
    taken[1] = stand_in < 0 ? 0 : put_rare(places, count, rare, rare_count, (int32_t)stand_in);
}

// How often each number from `low` on stands among the symbols; none is smaller, and none `range` or more above it. Four
// tables, as the same number often follows itself.
FAIRWAY_EXPORT(count_symbols)(const int32_t* symbols, int64_t* counts, long low, long count, long range) {
    Scratch<uint32_t> found(4 * range);
    long i = 0;
    for (; i + 4 <= count; i += 4)
        for (long j = 0; j < 4; j++) found[j * range + symbols[i + j] - low]++;
    for (; i < count; i++) found[symbols[i] - low]++;
    for (long s = 0; s < range; s++) {
        counts[s] = 0;
        for (long j = 0; j < 4; j++) counts[s] += found[j * range + s];
    }
}
