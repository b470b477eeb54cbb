// Tokens of a piece as operands of small products, and these products.
//
// A matrix of tokens is an operand in up to three ways: `along` its features (rows are tokens), `turned` (rows are
// features), and `across` the tokens (rows are tokens, or pairs of them). Operands of floats are the same along and across.

#pragma once

#include <utility>

#include "../kernel/operands.h"
#include "../kernel/product.h"

namespace {

constexpr long piece = 32;
// Rows of a tile: as many as there are registers for with two vectors each.
constexpr long strip = lanes == 16 ? 8 : 4;

template <bool paired>
constexpr long depth = Product<paired>::depth;

// Rows of tokens, some of which are asked for before every tile of a product: they lie too far apart for the processor to
// guess the next one, and all at once would keep it waiting.
struct Ahead {
    struct Rows {
        const char* at;
        long stride, count, bytes;
    } given[8];
    int used = 0, now = 0;

    // Never faults, also where there are no such rows.
    template <class T>
    void add(const T* from, long stride, long count, long width) {
        given[used++] = {(const char*)from, stride * (long)sizeof(T), count, width * (long)sizeof(T)};
    }
    void fetch() {
        for (int many = 6; many > 0 && now < used; many--) {
            Rows& rows = given[now];
            for (long n = 0; n < rows.bytes; n += 64) __builtin_prefetch(rows.at + n, 0, 2);
            rows.at += rows.stride;
            if (--rows.count <= 0) now++;
        }
    }
};

// c = scales c + a b for a strip of rows and `wide` vectors; scales lie `every` apart, and what is scaled by 0 is not read.
template <bool paired, bool turned, int wide>
inline void tile_product(const uint32_t* a, long lda, const uint32_t* b, long ldb, float* c, long ldc, long inner,
                         const float* scales, long every) {
    Floats sums[strip][wide];
    for (long m = 0; m < strip; m++) {
        float scale = scales ? scales[m * every] : 0.0f;
        for (int j = 0; j < wide; j++) sums[m][j] = scale == 0 ? Floats{} : load(c + m * ldc + j * lanes) * scale;
    }
    for (long r = 0; r < inner; r++) {
#pragma GCC unroll 8
        for (long m = 0; m < strip; m++) {
            uint32_t left = turned ? a[r * lda + m] : a[m * lda + r];
#pragma GCC unroll 8
            for (int j = 0; j < wide; j++) sums[m][j] = Product<paired>::add(sums[m][j], b + r * ldb + j * lanes, left);
        }
    }
    for (long m = 0; m < strip; m++)
        for (int j = 0; j < wide; j++) store(c + m * ldc + j * lanes, sums[m][j]);
}

// The same for rows that are whole strips and columns that are whole vectors.
template <bool paired, bool turned = false>
void multiply(Ahead& ahead, const uint32_t* a, long lda, const uint32_t* b, long ldb, float* c, long ldc, long rows,
              long columns, long inner, const float* scales = nullptr, long every = 1) {
    for (long m = 0; m < rows; m += strip) {
        const uint32_t* left = a + (turned ? m : m * lda);
        const float* own = scales ? scales + m * every : nullptr;
        long n = 0;
        for (; n + 2 * lanes <= columns; n += 2 * lanes) {
            ahead.fetch();
            tile_product<paired, turned, 2>(left, lda, b + n, ldb, c + m * ldc + n, ldc, inner, own, every);
        }
        for (; n < columns; n += lanes)
            tile_product<paired, turned, 1>(left, lda, b + n, ldb, c + m * ldc + n, ldc, inner, own, every);
    }
}

// Rows of floats as operands along each row.
template <bool paired>
void rows_along(const float* from, long row, uint32_t* to, long rows) {
    for (long n = 0; n < rows * row; n += depth<paired> * lanes)
        put_along<paired>(to + n / depth<paired>, load(from + n), paired ? load(from + n + lanes) : Floats{});
}

// Two rows as operands across them; one where operands are floats.
template <bool paired>
inline void put_across(uint32_t* to, Floats low, [[maybe_unused]] Floats high) {
#if defined(__AVX512BF16__)
    if (paired) {
        __m512i both = (__m512i)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low);
        const __m512i turns = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                                               21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
        _mm512_storeu_si512(to, _mm512_permutexvar_epi16(turns, both));
        return;
    }
#endif
    store((float*)to, low);
}

template <bool paired>
void rows_across(const float* from, long row, uint32_t* to, long rows) {
    for (long i = 0; i < rows; i += depth<paired>, from += depth<paired> * row, to += row)
        for (long n = 0; n < row; n += lanes)
            put_across<paired>(to + n, load(from + n), paired ? load(from + row + n) : Floats{});
}

// Tokens times a scale each, across; what is scaled by 0 is 0 whatever it was.
template <bool paired, class T>
void tokens_across(const T* from, long stride, uint32_t* to, long row, const float* scales, long tokens, long width) {
    auto scaled = [&](long t, long n) {
        return t < tokens && scales[t] != 0 ? load_part(from + t * stride + n, width - n) * scales[t] : Floats{};
    };
    for (long t = 0; t < piece; t += depth<paired>, to += row)
        for (long n = 0; n < width; n += lanes)
            put_across<paired>(to + n, scaled(t, n), paired ? scaled(t + 1, n) : Floats{});
}

// Tokens as operands along their features; missing tokens are zeros.
template <bool paired, class T>
void tokens_along(const T* from, long stride, uint32_t* to, long words, long tokens, long width) {
    constexpr long each = depth<paired>, many = each * lanes;
    for (long t = 0; t < tokens; t++) {
        long n = 0;
        if (sizeof(T) * each == 4)
            for (; n + many <= width; n += many)
                std::memcpy(to + t * words + n / each, from + t * stride + n, 4 * lanes);
        widen_row<paired>(from + t * stride + n, to + t * words + n / each, width - n);
    }
    std::memset(to + tokens * words, 0, 4 * (size_t)((piece - tokens) * words));
}

// Operands with rows and columns changed about; both counts are multiples of 16.
inline void turn(const uint32_t* from, long columns, uint32_t* to, long rows) {
    if (lanes < 16) return transposed((const float*)from, columns, (float*)to, rows, rows, columns);
    for (long i = 0; i < rows; i += 16)
        for (long j = 0; j < columns; j += 16) turn16(from + i * columns + j, columns, 16, to + j * rows + i, rows, 16);
}

// Padded rows of floats to where they belong.
template <class T>
void put_rows(const float* from, long row, T* to, long stride, long rows, long width) {
    for (long i = 0; i < rows; i++)
        for (long n = 0; n < width; n += lanes) store_part(to + i * stride + n, load(from + i * row + n), width - n);
}

// Working memory of a thread, given out in parts of whole cache lines.
struct Room {
    Scratch<uint32_t> words;
    long used = 0;
    explicit Room(long count) : words(count) {}
    uint32_t* take(long count) { return words.data() + std::exchange(used, used + rounded_up(count, 16)); }
    float* floats(long count) { return (float*)take(count); }
};

}  // namespace
