// Interleaved asymmetric numeral systems: see lanes.py for the definition.

#include "../../ops/kernel/scratch.h"
#include "../../ops/kernel/vector.h"

namespace {

constexpr uint32_t first_state = 1u << 16;

#if defined(__AVX512F__)
template <int bytes>
inline Words gathered(Words at, const void* from) {
    return (Words)_mm512_mask_i32gather_epi32(_mm512_setzero_si512(), 0xffff, (__m512i)at, from, bytes);
}
#endif

// For each number below 2^bits the place whose span holds it, then that place's span and start in one word.
struct Coding {
    int bits;
    uint32_t low;
    Scratch<uint16_t> holder;
    Scratch<uint32_t> entry;

    Coding(const uint32_t* span, long symbols, int bits)
        : bits(bits), low((1u << bits) - 1), holder(1L << bits), entry(symbols) {
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
    Words step(Words& x) const {
        Words slot = x & low, place = gathered<2>(slot, holder.data()) & 0xffffu;
        Words e = gathered<4>(place, entry.data());
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
template <int registers>
long together(const Coding& coding, const uint16_t* words, long available, uint32_t* state, int32_t* places, long count,
              long& taken) {
    Words x[registers];
    std::memcpy(x, state, sizeof x);
    long i = 0;
    for (; i + 16 * registers <= count && taken + 16 * registers <= available; i += 16 * registers) {
#pragma GCC unroll 4
        for (int j = 0; j < registers; j++) {
            Words place = coding.step(x[j]);
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
#endif

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

// Symbols [from, count) from the last to the first, one lane after another; returns where the words now begin.
uint16_t* encode_one_by_one(const uint32_t* entry, const int32_t* places, uint32_t* state, uint16_t* to, long from,
                            long count, long lane_count, int bits) {
    for (long i = count - 1; i >= from; i--) {
        uint32_t x = state[i % lane_count], e = entry[places[i]], f = e >> 16;
        if (x >> (32 - bits) >= f) {
            *--to = (uint16_t)x;
            x >>= 16;
        }
        state[i % lane_count] = ((x / f) << bits) + x % f + (e & 0xffff);
    }
    return to;
}

#if defined(__AVX512F__)
// Rounded down, by doubles: they hold 53 bits, and no quotient of numbers of 32 bits lies within 2^-32 below a whole one.
inline Words quotient(Words a, Words b) {
    typedef uint32_t Half __attribute__((vector_size(32)));
    typedef double Doubles __attribute__((vector_size(64)));
    Half parts[2], divisors[2];
    std::memcpy(parts, &a, sizeof a);
    std::memcpy(divisors, &b, sizeof b);
    for (int k = 0; k < 2; k++) {
        Doubles ratio = __builtin_convertvector(parts[k], Doubles) / __builtin_convertvector(divisors[k], Doubles);
        parts[k] = __builtin_convertvector(ratio, Half);
    }
    std::memcpy(&a, parts, sizeof a);
    return a;
}

// Whole rounds of symbols, sixteen lanes in one register.
template <int registers>
uint16_t* encode_together(const uint32_t* entry, const int32_t* places, uint32_t* state, uint16_t* to, long rounds,
                          int bits) {
    Words x[registers];
    std::memcpy(x, state, sizeof x);
    for (long i = 16 * registers * (rounds - 1); i >= 0; i -= 16 * registers) {
#pragma GCC unroll 4
        for (int j = registers - 1; j >= 0; j--) {
            Words place;
            std::memcpy(&place, places + i + 16 * j, sizeof place);
            Words e = gathered<4>(place, entry), f = e >> 16;
            __mmask16 full = _mm512_cmpge_epu32_mask((__m512i)(x[j] >> (32 - bits)), (__m512i)f);
            __m512i out = _mm512_maskz_compress_epi32(full, (__m512i)x[j]);
            int written = __builtin_popcount(full);
            to -= written;
            _mm256_mask_storeu_epi16(to, (__mmask16)((1u << written) - 1), _mm512_maskz_cvtepi32_epi16(0xffff, out));
            x[j] = (Words)_mm512_mask_srli_epi32((__m512i)x[j], full, (__m512i)x[j], 16);
            Words q = quotient(x[j], f);
            x[j] = (q << bits) + x[j] - q * f + (e & 0xffffu);
        }
    }
    std::memcpy(state, x, sizeof x);
    return to;
}
#endif

uint16_t* encode(const uint32_t* entry, const int32_t* places, uint32_t* state, uint16_t* to, long count, long lane_count,
                 int bits) {
#if defined(__AVX512F__)
    long rounds = count / lane_count;
    if (lane_count >= 16 && lane_count <= 64) {
        to = encode_one_by_one(entry, places, state, to, rounds * lane_count, count, lane_count, bits);
        if (lane_count == 64) return encode_together<4>(entry, places, state, to, rounds, bits);
        if (lane_count == 32) return encode_together<2>(entry, places, state, to, rounds, bits);
        return encode_together<1>(entry, places, state, to, rounds, bits);
    }
#endif
    return encode_one_by_one(entry, places, state, to, 0, count, lane_count, bits);
}

}  // namespace

// words: room for `count` of them, filled from the end; `used` receives how many. state: `lane_count` times 2^16.
FAIRWAY_EXPORT(rans_encode)
(const int32_t* places, const uint32_t* span, uint32_t* state, uint16_t* words, long* used, long count, long lane_count,
 long symbols, int bits) {
    Scratch<uint32_t> entry(symbols);
    for (long s = 0, start = 0; s < symbols; start += span[s++]) entry[s] = span[s] << 16 | (uint32_t)start;
    uint16_t* to = encode(entry.data(), places, state, words + count, count, lane_count, bits);
    *used = words + count - to;
}

// `taken` receives the words used, or -1 where there are too few; `state` is overwritten by the last states.
FAIRWAY_EXPORT(rans_decode)
(const uint16_t* words, const uint32_t* span, uint32_t* state, int32_t* places, long* taken, long count, long lane_count,
 long symbols, long available, int bits) {
    *taken = decode(Coding(span, symbols, bits), words, available, state, places, count, lane_count);
}
