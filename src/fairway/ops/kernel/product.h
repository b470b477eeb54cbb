// Products of small matrices of floats that lie in the nearest caches, and their transposes.
//
// Rows of what is read or written as vectors hold whole vectors: their lengths are multiples of `lanes`.

#pragma once

#include "point.h"

namespace {

// Numbers of a row that fills whole vectors.
inline long filled(long count) { return (count + lanes - 1) / lanes * lanes; }

template <int rows, int wide>
inline void product_tile(const float* a, long a_row, long a_column, const float* b, long b_row, float* c, long c_row,
                         long inner, float scale) {
    Floats sums[rows][wide] = {};
    for (long n = 0; n < inner; n++) {
        Floats right[wide];
#pragma GCC unroll 8
        for (int j = 0; j < wide; j++) right[j] = load(b + n * b_row + j * lanes);
#pragma GCC unroll 8
        for (int i = 0; i < rows; i++) {
            float left = a[i * a_row + n * a_column];
#pragma GCC unroll 8
            for (int j = 0; j < wide; j++) sums[i][j] += right[j] * left;
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 8
        for (int j = 0; j < wide; j++) {
            float* to = c + i * c_row + j * lanes;
            store(to, scale == 0 ? sums[i][j] : load(to) * scale + sums[i][j]);
        }
}

template <int wide>
inline void product_columns(const float* a, long a_row, long a_column, const float* b, long b_row, float* c, long c_row,
                            long rows, long inner, float scale) {
    long i = 0;
    for (; i + 4 <= rows; i += 4)
        product_tile<4, wide>(a + i * a_row, a_row, a_column, b, b_row, c + i * c_row, c_row, inner, scale);
    const float* rest = a + i * a_row;
    float* to = c + i * c_row;
    if (rows - i == 3) product_tile<3, wide>(rest, a_row, a_column, b, b_row, to, c_row, inner, scale);
    if (rows - i == 2) product_tile<2, wide>(rest, a_row, a_column, b, b_row, to, c_row, inner, scale);
    if (rows - i == 1) product_tile<1, wide>(rest, a_row, a_column, b, b_row, to, c_row, inner, scale);
}

// c = scale c + a b, with c not read where the scale is 0. a is (rows, inner) at any strides, so its transpose costs nothing;
// b is (inner, columns).
void product(const float* a, long a_row, long a_column, const float* b, long b_row, float* c, long c_row, long rows,
             long inner, long columns, float scale) {
    constexpr int wide = lanes == 16 ? 4 : 2;
    long j = 0;
    for (; j + wide * lanes <= columns; j += wide * lanes)
        product_columns<wide>(a, a_row, a_column, b + j, b_row, c + j, c_row, rows, inner, scale);
    for (; j + 2 * lanes <= columns; j += 2 * lanes)
        product_columns<2>(a, a_row, a_column, b + j, b_row, c + j, c_row, rows, inner, scale);
    for (; j < columns; j += lanes)
        product_columns<1>(a, a_row, a_column, b + j, b_row, c + j, c_row, rows, inner, scale);
}

// Rows of `from` as columns of `to`. Both have room for whole tiles of lanes x lanes: what lies behind the last row of `from`
// is read and ends up behind the last column of `to`.
inline void transposed(const float* from, long from_row, float* to, long to_row, long rows, long columns) {
    Ints low, high;
    for (int i = 0; i < lanes; i++) {
        low[i] = i / 2 + (i % 2) * lanes;
        high[i] = low[i] + lanes / 2;
    }
    for (long i = 0; i < rows; i += lanes)
        for (long j = 0; j < columns; j += lanes) {
            Floats held[lanes], next[lanes];
            for (int n = 0; n < lanes; n++) held[n] = load(from + (i + n) * from_row + j);
            for (int left = lanes; left > 1; left /= 2) {
                for (int n = 0; n < lanes / 2; n++) {
                    next[2 * n] = __builtin_shuffle(held[n], held[n + lanes / 2], low);
                    next[2 * n + 1] = __builtin_shuffle(held[n], held[n + lanes / 2], high);
                }
                for (int n = 0; n < lanes; n++) held[n] = next[n];
            }
            for (int n = 0; n < lanes; n++) store(to + (j + n) * to_row + i, held[n]);
        }
}

// Rows of `count` numbers into rows of whole vectors, zeros behind the last number; `row` 0 reads one row again and again.
inline void rows_in(const float* from, long row, float* to, long to_row, long rows, long count) {
    for (long i = 0; i < rows; i++)
        for (long n = 0; n < to_row; n += lanes) store(to + i * to_row + n, n < count ? load_part(from + i * row + n, count - n) : Floats{});
}

inline void rows_out(const float* from, long from_row, float* to, long row, long rows, long count) {
    for (long i = 0; i < rows; i++) std::memcpy(to + i * row, from + i * from_row, 4 * (size_t)count);
}

// The sum of products of two rows.
inline float dot(const float* a, const float* b, long columns) {
    Floats sums{};
    for (long n = 0; n < columns; n += lanes) sums += load(a + n) * load(b + n);
    return total(sums);
}

}  // namespace
