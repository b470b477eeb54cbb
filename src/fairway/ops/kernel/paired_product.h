// Products of small matrices of floats, by pairs of bfloat16 where that is asked for.
//
// What is `paired` rounds both sides to bfloat16, multiplies two numbers of each at a time and sums in float32 (operands.h).
// Rows then hold whole pairs of vectors: their lengths are multiples of `row_step<true>`. What is not paired is product.h.

#pragma once

#include "operands.h"
#include "product.h"

namespace {

template <bool paired>
constexpr long row_step = paired ? 2 * lanes : lanes;

// One side of a product: numbers, or words of two that follow each other along the inner dimension.
struct Side {
    const float* at;
    long row, column;
    Side turned() const { return {at, column, row}; }
    Side from(long rows) const { return {at + rows * row, row, column}; }
};

// Words along the inner dimension.
template <bool paired>
constexpr long words(long count) {
    return paired ? (count + 1) / 2 : count;
}

// Rows whose columns are the inner dimension.
template <bool paired>
inline Side along(const float* x, long row, long rows, [[maybe_unused]] float* room) {
    if constexpr (!paired) return {x, row, 1};
    for (long n = 0; n < rows * row; n += 2 * lanes)
        put_along<paired>((uint32_t*)room + n / 2, load(x + n), load(x + n + lanes));
    return {room, row / 2, 1};
}

// Rows that are the inner dimension themselves; the last one of an odd number is paired with zeros.
template <bool paired>
inline Side across(const float* x, long row, [[maybe_unused]] long rows, [[maybe_unused]] float* room) {
#if defined(__AVX512BF16__)
    if constexpr (paired) {
        const __m512i zip = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5,
                                             20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
        for (long i = 0; i < rows; i += 2)
            for (long n = 0; n < row; n += lanes) {
                Floats low = load(x + i * row + n), high = i + 1 < rows ? load(x + (i + 1) * row + n) : Floats{};
                __m512i both = (__m512i)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low);
                _mm512_storeu_si512(room + i / 2 * row + n, _mm512_maskz_permutexvar_epi16(0xffffffff, zip, both));
            }
        return {room, row, 1};
    }
#endif
    return {x, row, 1};
}

// The same of rows that are operands along their columns already.
template <bool paired>
inline Side along_to_across(const float* x, long row, [[maybe_unused]] long rows, [[maybe_unused]] float* room) {
#if defined(__AVX512BF16__)
    if constexpr (paired) {
        const __m512i low = (__m512i)(counting() | (counting() + 2 * lanes) << 16);
        const __m512i high = (__m512i)((Ints)low + (lanes | lanes << 16));
        for (long i = 0; i < rows; i += 2)
            for (long n = 0; n < row; n += lanes) {
                __m512i first = _mm512_loadu_si512(x + i * row + n), second{};
                if (i + 1 < rows) second = _mm512_loadu_si512(x + (i + 1) * row + n);
                float* to = room + i * row + 2 * n;
                _mm512_storeu_si512(to, _mm512_permutex2var_epi16(first, low, second));
                _mm512_storeu_si512(to + lanes, _mm512_permutex2var_epi16(first, high, second));
            }
        return {room, 2 * row, 1};
    }
#endif
    return {x, row, 1};
}

template <int rows, int wide>
__attribute__((always_inline)) inline void paired_tile(Side a, Side b, float* c, long c_row, long inner, float scale) {
    const uint32_t *left = (const uint32_t*)a.at, *right = (const uint32_t*)b.at;
    Floats sums[rows][wide] = {};
    for (long n = 0; n < inner; n++)
#pragma GCC unroll 16
        for (int i = 0; i < rows; i++)
#pragma GCC unroll 8
            for (int j = 0; j < wide; j++)
                sums[i][j] = Product<has_pairs>::add(sums[i][j], right + n * b.row + j * lanes,
                                                     left[i * a.row + n * a.column]);
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 8
        for (int j = 0; j < wide; j++) {
            float* to = c + i * c_row + j * lanes;
            store(to, scale == 0 ? sums[i][j] : load(to) * scale + sums[i][j]);
        }
}

// Tiles are inlined here and nowhere else: a call for each costs a fifth of the time of a short one.
template <int high, int wide>
__attribute__((noinline)) void paired_columns(Side a, Side b, float* c, long c_row, long rows, long inner, float scale) {
    long i = 0;
    for (; i + high <= rows; i += high) paired_tile<high, wide>(a.from(i), b, c + i * c_row, c_row, inner, scale);
    for (; i + 4 <= rows; i += 4) paired_tile<4, wide>(a.from(i), b, c + i * c_row, c_row, inner, scale);
    for (; i < rows; i++) paired_tile<1, wide>(a.from(i), b, c + i * c_row, c_row, inner, scale);
}

// c = scale c + a b, with c not read where the scale is 0. a is (rows, inner), b (inner, columns).
template <bool paired>
void product(Side a, Side b, float* c, long c_row, long rows, long inner, long columns, float scale) {
    if constexpr (!paired) {
        product(a.at, a.row, a.column, b.at, b.row, c, c_row, rows, inner, columns, scale);
        return;
    }
    inner = words<paired>(inner);
    long j = 0;
    for (; j + 4 * lanes <= columns; j += 4 * lanes)
        paired_columns<4, 4>(a, {b.at + j, b.row, 1}, c + j, c_row, rows, inner, scale);
    for (; j + 2 * lanes <= columns; j += 2 * lanes)
        paired_columns<8, 2>(a, {b.at + j, b.row, 1}, c + j, c_row, rows, inner, scale);
    for (; j < columns; j += lanes) paired_columns<16, 1>(a, {b.at + j, b.row, 1}, c + j, c_row, rows, inner, scale);
}

// Numbers n of the inner dimension of what stands across it, from the column i on.
template <bool paired>
inline Floats part(const float* x, long row, long n, long i) {
    if constexpr (!paired) return load(x + n * row + i);
    Words both;
    std::memcpy(&both, x + n / 2 * row + i, sizeof both);
    return (Floats)(n % 2 ? both & 0xffff0000u : both << 16);
}

// The sums of as many vectors as there are lanes, one in each lane.
inline Floats totals(const Floats* vectors) {
    Ints low, high;
    Floats held[lanes];
    for (int i = 0; i < lanes; i++) {
        low[i] = i / 2 + (i % 2) * lanes;
        high[i] = low[i] + lanes / 2;
        held[i] = vectors[i];
    }
    for (int left = lanes / 2; left > 0; left /= 2)
        for (int n = 0; n < left; n++)
            held[n] = __builtin_shuffle(held[n], held[n + left], low) + __builtin_shuffle(held[n], held[n + left], high);
    return held[0];
}

// The sum of products of two long rows, a multiple of `lanes` of them.
inline float inner_product(const float* a, const float* b, long count) {
    Floats sums[4] = {};
    for (long n = 0; n < count; n += lanes) sums[n / lanes % 4] += load(a + n) * load(b + n);
    return total(sums[0] + sums[1] + (sums[2] + sums[3]));
}

inline void rows_in(const Bfloat* from, long row, float* to, long to_row, long rows, long count) {
    for (long i = 0; i < rows; i++)
        for (long n = 0; n < to_row; n += lanes)
            store(to + i * to_row + n, n < count ? load_part(from + i * row + n, count - n) : Floats{});
}

// Rows of numbers into rows of `to_row` words: operands along their columns, zeros behind the last number.
template <bool paired, class T>
inline void operands_in(const T* from, long row, float* to, long to_row, long rows, long count) {
    if constexpr (!paired) return rows_in(from, row, to, to_row, rows, count);
    for (long i = 0; i < rows; i++) {
        char* line = (char*)(to + i * to_row);
        std::memcpy(line, from + i * row, sizeof(T) * (size_t)count);
        std::memset(line + sizeof(T) * (size_t)count, 0, 4 * (size_t)to_row - sizeof(T) * (size_t)count);
    }
}

inline void rows_out(const float* from, long from_row, Bfloat* to, long row, long rows, long count) {
    for (long i = 0; i < rows; i++)
        for (long n = 0; n < count; n += lanes) store_part(to + i * row + n, load(from + i * from_row + n), count - n);
}

// Asks for rows that will be wanted in a few microseconds, so that they wait in the second cache.
template <class T>
inline void ask_for(const T* from, long row, long rows, long count) {
    constexpr long line = 64 / sizeof(T);
    for (long i = 0; i < rows; i++)
        for (long n = 0; n < count; n += line) __builtin_prefetch(from + i * row + n, 0, 2);
}

}  // namespace
