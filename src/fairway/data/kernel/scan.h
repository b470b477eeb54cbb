// Where the words of a text begin, as data/words.py says, found for sixty-four bytes at a time.

#pragma once

#include "../../ops/kernel/vector.h"

namespace {

constexpr long longest_run = 63, longest_word = 64;

enum Kind : uint8_t { letter, mark, digit, blank, lonely };

// One bit for each of sixty-four bytes: the three bits of its kind, and whether it is the space character.
struct Classes {
    uint64_t kind[3], space;
};

class Splitter {
   public:
    Splitter(const uint8_t* kinds, long digits, long prefix) : digits(digits), prefix(prefix != 0) {
        std::memcpy(kind, kinds, sizeof kind);
        for (int byte = 0; byte < 256; byte++) {
            for (int bit = 0; bit < 3; bit++) {
                uint8_t set = (uint8_t)((kinds[byte] >> bit & 1) << (byte >> 4 & 7));
                rows[byte >> 7][bit][byte & 15] |= set;
            }
        }
    }

    // Where the word that begins at `at` ends.
    long end(const uint8_t* text, long at, long size) const {
        long from = at;
        if (prefix && text[at] == ' ' && at + 1 < size && kind[text[at + 1]] <= mark) from++;
        uint8_t k = kind[text[from]];
        long most = k == digit ? digits : k == lonely ? 1 : longest_run;
        long stop = size < from + most ? size : from + most, i = from + 1;
        while (i < stop && kind[text[i]] == k) i++;
        bool whole = k != blank || !prefix || i == size || kind[text[i]] == blank || text[i - 1] != ' ' || i - at == 1;
        return whole ? i : i - 1;
    }

    // Whether words of some bytes in a row of kinds may be more than one, so that `end` must cut them.
    bool too_long(const uint8_t* text, long at, long size) const {
        return size > longest_run || (digits > 1 && size > digits && kind[text[at]] == digit);
    }

    // Where words begin among sixty-four bytes by their kinds alone. `before`: the classes of the byte in front in the
    // lowest bits. `blank_next`, `last`: whether the byte behind is blank, and the place of the text's last byte.
    uint64_t starts(const Classes& now, const Classes& before, bool blank_next, long last) const {
        uint64_t change = 0;
        for (int bit = 0; bit < 3; bit++) change |= now.kind[bit] ^ (now.kind[bit] << 1 | before.kind[bit]);
        uint64_t lone = now.kind[2], blanks = now.kind[0] & now.kind[1], numbers = now.kind[1] & ~now.kind[0];
        uint64_t always = lone | (digits == 1 ? numbers : 0);
        if (!prefix) return change | always;
        uint64_t led = now.space << 1 | before.space, words = ~(now.kind[1] | lone);
        uint64_t ended = blanks >> 1 | (uint64_t)blank_next << 63 | (last < 64 ? ~0ull << last : 0);
        return always | (change & ~(led & words)) | (now.space & ~ended);
    }

    Classes classes(const uint8_t* text) const;

    // Whether several digits make a word.
    bool counts_digits() const { return digits > 1; }

    bool is_blank(uint8_t byte) const { return kind[byte] == blank; }

   private:
    uint8_t kind[256];
    uint8_t rows[2][3][16] = {};  // for each half of the bytes, bit of the kind and low nibble: a bit for each high nibble
    long digits;
    bool prefix;
};

#if defined(__AVX512BW__)

inline Classes Splitter::classes(const uint8_t* text) const {
    __m512i v = _mm512_loadu_si512(text), nibble = _mm512_set1_epi8(15);
    __m512i low = _mm512_and_si512(v, nibble), high = _mm512_and_si512(_mm512_srli_epi16(v, 4), nibble);
    __m512i row = _mm512_shuffle_epi8(_mm512_set1_epi64((long long)0x8040201008040201), high);
    __mmask64 upper = _mm512_movepi8_mask(v);
    Classes found;
    for (int bit = 0; bit < 3; bit++) {
        __m512i first = _mm512_maskz_broadcast_i32x4(0xffff, _mm_loadu_si128((const __m128i*)rows[0][bit]));
        __m512i second = _mm512_maskz_broadcast_i32x4(0xffff, _mm_loadu_si128((const __m128i*)rows[1][bit]));
        __m512i sets = _mm512_mask_shuffle_epi8(_mm512_shuffle_epi8(first, low), upper, second, low);
        found.kind[bit] = _mm512_test_epi8_mask(sets, row);
    }
    found.space = _mm512_cmpeq_epi8_mask(v, _mm512_set1_epi8(' '));
    return found;
}

#elif defined(__AVX2__)

inline Classes Splitter::classes(const uint8_t* text) const {
    Classes found = {};
    __m256i nibble = _mm256_set1_epi8(15);
    for (int half = 0; half < 2; half++) {
        __m256i v = _mm256_loadu_si256((const __m256i*)(text + 32 * half));
        __m256i low = _mm256_and_si256(v, nibble), high = _mm256_and_si256(_mm256_srli_epi16(v, 4), nibble);
        __m256i row = _mm256_shuffle_epi8(_mm256_set1_epi64x((long long)0x8040201008040201), high);
        for (int bit = 0; bit < 3; bit++) {
            __m256i first = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)rows[0][bit]));
            __m256i second = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)rows[1][bit]));
            __m256i sets = _mm256_blendv_epi8(_mm256_shuffle_epi8(first, low), _mm256_shuffle_epi8(second, low), v);
            __m256i held = _mm256_cmpeq_epi8(_mm256_and_si256(sets, row), row);
            found.kind[bit] |= (uint64_t)(uint32_t)_mm256_movemask_epi8(held) << 32 * half;
        }
        __m256i space = _mm256_cmpeq_epi8(v, _mm256_set1_epi8(' '));
        found.space |= (uint64_t)(uint32_t)_mm256_movemask_epi8(space) << 32 * half;
    }
    return found;
}

#else

inline Classes Splitter::classes(const uint8_t* text) const {
    Classes found = {};
    for (int i = 0; i < 64; i++) {
        for (int bit = 0; bit < 3; bit++) found.kind[bit] |= (uint64_t)(kind[text[i]] >> bit & 1) << i;
        found.space |= (uint64_t)(text[i] == ' ') << i;
    }
    return found;
}

#endif

// Goes through a text once and gives its words some at a time.
class Scanner {
   public:
    static constexpr long enough = 64, most = 224, room = most + 9;

    Scanner(const Splitter& splitter, const uint8_t* text, long size) : splitter(splitter), text(text), size(size) {}

    // The next words: the i-th lies in [bounds[i], bounds[i + 1]); `bounds` has `room` places. Returns how many there are,
    // at most `most`; none are left where there are 0.
    long next(long* bounds) {
        to = bounds;
        *to = open;
        while (at < size && to - bounds < enough) block();
        if (at >= size) cut(size);
        return to - bounds;
    }

   private:
    const Splitter& splitter;
    const uint8_t* text;
    long size, at = 0, open = 0;
    long* to = nullptr;
    Classes before = {{1, 1, 1}, 0};  // no kind, so that the first byte begins a word

    void block() {
        uint8_t tail[64] = {};
        const uint8_t* here = text + at;
        long last = size - 1 - at;
        if (last < 63) {
            std::memcpy(tail, here, (size_t)(size - at));
            here = tail;
        }
        Classes now = splitter.classes(here);
        uint64_t starts = splitter.starts(now, before, last > 63 && splitter.is_blank(text[at + 64]), last);
        if (last < 63) starts &= ~0ull >> (63 - last);
        if (starts) {
            cut(at + __builtin_ctzll(starts));
            starts &= starts - 1;
        }
        if (splitter.counts_digits()) {
            for (; starts; starts &= starts - 1) cut(at + __builtin_ctzll(starts));
        } else {
            close_all(starts);  // words that begin within a block and end there are never too long
        }
        for (int bit = 0; bit < 3; bit++) before.kind[bit] = now.kind[bit] >> 63;
        before.space = now.space >> 63;
        at += 64;
        // The open word is never much longer than a block, so that the next one cannot end more words than there is room for.
        while (at < size && at - open > 64) close(splitter.end(text, open, size));
    }

    // The bytes from the open word's first to `stop` are whole words.
    void cut(long stop) {
        if (stop == open) return;
        if (!splitter.too_long(text, open, stop - open)) return close(stop);
        while (open < stop) close(splitter.end(text, open, size));
    }

    void close(long end) { *++to = open = end; }

    // Ends a word at each of some places of the block; the places are written eight at a time, and the surplus later over.
    void close_all(uint64_t places) {
        long count = __builtin_popcountll(places), *next = to + 1;
        for (long done = 0; done < count; done += 8) {
            for (int i = 0; i < 8; i++, places &= places - 1) *next++ = at + __builtin_ctzll(places | 1ull << 63);
        }
        to += count;
        open = *to;
    }
};

}  // namespace
