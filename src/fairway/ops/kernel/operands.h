// Small matrix products, and rows of tokens packed as their operands.
//
// An operand is a 32-bit word: a float, or (`paired`, where the level has dot instructions for it) two bfloat16 that are
// multiplied and added together. Matrices are padded so that whole vectors can be read and written.

#pragma once

#include <algorithm>

#include "point.h"
#include "scratch.h"

namespace {

constexpr long tile = 8;
constexpr long pair = 2 * lanes;
// Widths of padded matrices are multiples of this.
constexpr long step = pair > 16 ? pair : 16;
// Products have a multiple of this many columns.
#if defined(__AMX_BF16__)
constexpr long grain = 32;
#else
constexpr long grain = 16;
#endif

inline long rounded_up(long n, long to) { return (n + to - 1) / to * to; }

// What an operand's words hold.
template <bool paired>
struct Word {
    using Type = float;
};
template <>
struct Word<true> {
    using Type = Bfloat;
};

// One 32-bit operand of a product: a float, or a pair of bfloat16 that are multiplied and added together.
template <bool paired>
struct Product {
    static constexpr long depth = 1;
    static Floats add(Floats sum, const uint32_t* b, uint32_t a) {
        Floats left;
        std::memcpy(&left, b, sizeof left);
        float right;
        std::memcpy(&right, &a, 4);
        return sum + left * right;
    }
};

#if defined(__AVX512BF16__)
template <>
struct Product<true> {
    static constexpr long depth = 2;
    static Floats add(Floats sum, const uint32_t* b, uint32_t a) {
        return (Floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_loadu_si512(b), (__m512bh)_mm512_set1_epi32((int)a));
    }
};
constexpr bool has_pairs = true;
#else
constexpr bool has_pairs = false;
#endif

// c[m][n] (+)= sum_r a[m][r] b[r][n] for m < rows, n < columns (a multiple of `wide` vectors); a `turned` left side is a[r][m].
template <bool paired, long rows, bool turned = false, long wide = 2>
void multiply_tile(const uint32_t* a, long lda, const uint32_t* b, long ldb, float* c, long ldc, long columns, long depth,
                   bool accumulate) {
    for (long n = 0; n < columns; n += wide * lanes) {
        Floats sums[rows][wide];
        for (long m = 0; m < rows; m++)
            for (long j = 0; j < wide; j++) sums[m][j] = accumulate ? load(c + m * ldc + n + j * lanes) : Floats{};
        for (long r = 0; r < depth; r++) {
            const uint32_t* line = b + r * ldb + n;
#pragma GCC unroll 8
            for (long m = 0; m < rows; m++) {
                uint32_t left = turned ? a[r * lda + m] : a[m * lda + r];
                for (long j = 0; j < wide; j++) sums[m][j] = Product<paired>::add(sums[m][j], line + j * lanes, left);
            }
        }
        for (long m = 0; m < rows; m++)
            for (long j = 0; j < wide; j++) store(c + m * ldc + n + j * lanes, sums[m][j]);
    }
}

#if defined(__AMX_BF16__)
// The same for 16 rows and 32 columns at a time by matrix tiles; every tile is 16 rows of 64 bytes.
void multiply_by_tiles(const uint32_t* a, long lda, const uint32_t* b, long ldb, float* c, long ldc, long rows, long columns,
                       long depth, bool accumulate) {
    for (long m = 0; m < rows; m += 16)
        for (long n = 0; n < columns; n += 32) {
            float* to = c + m * ldc + n;
            if (accumulate) {
                _tile_loadd(0, to, 4 * ldc);
                _tile_loadd(1, to + 16, 4 * ldc);
            } else {
                _tile_zero(0);
                _tile_zero(1);
            }
            for (long r = 0; r < depth; r += 16) {
                _tile_loadd(2, a + m * lda + r, 4 * lda);
                _tile_loadd(3, b + r * ldb + n, 4 * ldb);
                _tile_loadd(4, b + r * ldb + n + 16, 4 * ldb);
                _tile_dpbf16ps(0, 2, 3);
                _tile_dpbf16ps(1, 2, 4);
            }
            _tile_stored(0, to, 4 * ldc);
            _tile_stored(1, to + 16, 4 * ldc);
        }
}

// Sets the thread's tiles up, and puts back what another library had set when it ends.
struct Tiles {
    alignas(64) unsigned char before[64];
    Tiles() {
        alignas(64) unsigned char wanted[64] = {1};
        for (int tile = 0; tile < 8; tile++) {
            wanted[16 + 2 * tile] = 64;
            wanted[48 + tile] = 16;
        }
        _tile_storeconfig(before);
        _tile_loadconfig(wanted);
    }
    ~Tiles() {
        if (before[0])
            _tile_loadconfig(before);
        else
            _tile_release();
    }
};
#else
struct Tiles {
    Tiles() {}
};
#endif

// c[m][n] (+)= sum_r a[m][r] b[r][n] by tiles for n < columns, a multiple of `grain`. Operands beyond `rows` are readable up to
// the next multiple of 8, and results there writable.
template <bool paired, bool turned>
void multiply_by_vectors(const uint32_t* a, long lda, const uint32_t* b, long ldb, float* c, long ldc, long rows, long columns,
                         long depth, bool accumulate) {
    long whole = columns / pair * pair;
    for (long m = 0; m < rows; m += tile) {
        const uint32_t* left = turned ? a + m : a + m * lda;
        multiply_tile<paired, tile, turned>(left, lda, b, ldb, c + m * ldc, ldc, whole, depth, accumulate);
        if (pair > grain && whole < columns)
            multiply_tile<paired, tile, turned, 1>(left, lda, b + whole, ldb, c + m * ldc + whole, ldc, lanes, depth, accumulate);
    }
}

// The same; operands beyond `rows` are readable up to the next multiple of 16, and results there writable.
template <bool paired>
void multiply(const uint32_t* a, long lda, const uint32_t* b, long ldb, float* c, long ldc, long rows, long columns,
              long depth, bool accumulate) {
#if defined(__AMX_BF16__)
    if (paired && depth % 16 == 0) {
        multiply_by_tiles(a, lda, b, ldb, c, ldc, rows, columns, depth, accumulate);
        return;
    }
#endif
    multiply_by_vectors<paired, false>(a, lda, b, ldb, c, ldc, rows, columns, depth, accumulate);
}

inline uint32_t word(float x) {
    uint32_t w;
    std::memcpy(&w, &x, 4);
    return w;
}

inline uint32_t bits(Bfloat x) { return x.bits; }

inline uint32_t bits(float x) { return word(x); }

// Operand p of a token: its features p depth .. p depth + depth - 1.
template <bool paired>
inline uint32_t operand(const Bfloat* x, long p) {
    uint32_t w = 0;
    if (paired)
        std::memcpy(&w, x + 2 * p, 4);
    else
        w = (uint32_t)x[p].bits << 16;
    return w;
}

template <bool paired>
inline uint32_t operand(const float* x, long p) {
    return word(x[p]);
}

// Words of 16 lines turned: to[c][r] = from[r][c]. Lines from `count` on are zeros.
inline void turn16(const uint32_t* from, long ld, long count, uint32_t* to, long ldt, long columns) {
#if defined(__AVX512F__)
    if (columns == 16) {
        __m512i a[16], b[16];
        for (long r = 0; r < 16; r++) a[r] = r < count ? _mm512_loadu_si512(from + r * ld) : _mm512_setzero_si512();
        for (long r = 0; r < 16; r += 2) {
            b[r] = _mm512_maskz_unpacklo_epi32(0xffff, a[r], a[r + 1]);
            b[r + 1] = _mm512_maskz_unpackhi_epi32(0xffff, a[r], a[r + 1]);
        }
        for (long r = 0; r < 16; r += 4)
            for (long i = 0; i < 2; i++) {
                a[r + 2 * i] = _mm512_maskz_unpacklo_epi64(0xff, b[r + i], b[r + 2 + i]);
                a[r + 2 * i + 1] = _mm512_maskz_unpackhi_epi64(0xff, b[r + i], b[r + 2 + i]);
            }
        for (long r = 0; r < 4; r++)
            for (long i = 0; i < 2; i++) {
                b[8 * i + r] = _mm512_maskz_shuffle_i32x4(0xffff, a[8 * i + r], a[8 * i + 4 + r], 0x88);
                b[8 * i + 4 + r] = _mm512_maskz_shuffle_i32x4(0xffff, a[8 * i + r], a[8 * i + 4 + r], 0xdd);
            }
        for (long r = 0; r < 8; r++) {
            _mm512_storeu_si512(to + r * ldt, _mm512_maskz_shuffle_i32x4(0xffff, b[r], b[8 + r], 0x88));
            _mm512_storeu_si512(to + (r + 8) * ldt, _mm512_maskz_shuffle_i32x4(0xffff, b[r], b[8 + r], 0xdd));
        }
        return;
    }
#endif
    for (long c = 0; c < columns; c++)
        for (long r = 0; r < 16; r++) to[c * ldt + r] = r < count ? from[r * ld + c] : 0u;
}

// As `multiply`, with a left side that lies across: a[r][m].
template <bool paired>
void multiply_turned(const uint32_t* a, long lda, const uint32_t* b, long ldb, float* c, long ldc, long rows, long columns,
                     long depth, bool accumulate) {
#if defined(__AMX_BF16__)
    if (paired && depth % 16 == 0) {
        alignas(64) uint32_t left[16 * 16];
        for (long m = 0; m < rows; m += 16)
            for (long r = 0; r < depth; r += 16) {
                turn16(a + r * lda + m, lda, 16, left, 16, 16);
                multiply_by_tiles(left, 16, b + r * ldb, ldb, c + m * ldc, ldc, 16, columns, 16, accumulate || r > 0);
            }
        return;
    }
#endif
    multiply_by_vectors<paired, true>(a, lda, b, ldb, c, ldc, rows, columns, depth, accumulate);
}

// One token's features as operands along the width.
template <bool paired>
inline void widen_row(const float* from, uint32_t* to, long width) {
    std::memcpy(to, from, 4 * width);
}

template <bool paired>
inline void widen_row(const Bfloat* from, uint32_t* to, long width) {
    long i = 0;
    if (paired) {
        for (; i + pair <= width; i += pair) std::memcpy(to + i / 2, from + i, 4 * lanes);
        if (i < width) std::memcpy(to + i / 2, from + i, 2 * (width - i));
        return;
    }
    for (; i + lanes <= width; i += lanes) store((float*)to + i, load(from + i));
    for (; i < width; i++) to[i] = operand<false>(from, i);
}

// Up to 16 tokens (token, width) as a matrix whose rows run over the width and columns over the tokens. `lines` has room for
// 16 rows of operands.
template <bool paired, class T>
void pack_turned16(const T* from, long stride, uint32_t* to, long tokens, long padded, long width, uint32_t* lines) {
    long depth = width / Product<paired>::depth, count = std::max(0L, std::min(16L, tokens));
    for (long t = 0; t < count; t++) widen_row<paired>(from + t * stride, lines + t * depth, width);
    for (long p = 0; p < depth; p += 16) turn16(lines + p, depth, count, to + p * padded, padded, std::min(16L, depth - p));
}

// Tokens (token, width) as a matrix whose rows run over the width and columns over the tokens.
template <bool paired, class T>
void pack_turned(const T* from, long stride, uint32_t* to, long tokens, long padded, long width) {
    Growing<uint32_t> lines;
    lines.resize(16 * width / Product<paired>::depth);
    for (long t = 0; t < padded; t += 16)
        pack_turned16<paired>(from + t * stride, stride, to + t, tokens - t, padded, width, lines.data());
}

// Two tokens' features side by side in one word each; a missing second token is zeros.
inline void interleave(const Bfloat* low, const Bfloat* high, uint32_t* to, long width) {
    long i = 0;
    for (; high && i + lanes <= width; i += lanes) {
        Halves first, second;
        std::memcpy(&first, low + i, sizeof first);
        std::memcpy(&second, high + i, sizeof second);
        Words both = __builtin_convertvector(first, Words) | (__builtin_convertvector(second, Words) << 16);
        std::memcpy(to + i, &both, sizeof both);
    }
    for (; i < width; i++) to[i] = bits(low[i]) | (high ? bits(high[i]) << 16 : 0u);
}

inline void interleave(const float*, const float*, uint32_t*, long) {}

// Tokens (token, width) as a matrix whose rows run over the tokens and columns over the width.
template <bool paired, class T>
void pack_tokens(const T* from, long stride, uint32_t* to, long tokens, long padded, long width, long columns) {
    constexpr long depth = Product<paired>::depth;
    for (long t = 0; t < padded; t += depth) {
        uint32_t* line = to + t / depth * columns;
        long filled = t < tokens ? width : 0;
        if (filled && paired)
            interleave(from + t * stride, t + 1 < tokens ? from + (t + 1) * stride : nullptr, line, width);
        else if (filled)
            widen_row<false>(from + t * stride, line, width);
        std::memset(line + filled, 0, 4 * (columns - filled));
    }
}

// Two vectors of a row, one behind the other, as operands along the row.
template <bool paired>
inline void put_along(uint32_t* to, Floats a, Floats b) {
#if defined(__AVX512BF16__)
    if (paired) {
        _mm512_storeu_si512(to, (__m512i)_mm512_cvtne2ps_pbh((__m512)b, (__m512)a));
        return;
    }
#endif
    store((float*)to, a);
    store((float*)to + lanes, b);
}

// One vector of a row as operands along the row.
template <bool paired>
inline void put_along(uint32_t* to, Floats a) {
#if defined(__AVX512BF16__)
    if (paired) {
        _mm256_storeu_si256((__m256i*)to, (__m256i)_mm512_cvtneps_pbh((__m512)a));
        return;
    }
#endif
    store((float*)to, a);
}

// 2^x: to 3e-6 where the result is rounded to bfloat16, else to float32's precision.
template <bool paired>
inline Floats power(Floats x) {
#if defined(__AVX512BF16__)
    if (paired) {
        Floats n = (Floats)_mm512_maskz_roundscale_ps(0xffff, (__m512)x, 8), f = x - n;
        Floats p = all(9.582852198e-3f);
        p = p * f + 5.590642550e-2f;
        p = p * f + 2.402409864e-1f;
        p = p * f + 6.931241933e-1f;
        p = p * f + 1.0f;
        return (Floats)_mm512_maskz_scalef_ps(0xffff, (__m512)p, (__m512)n);
    }
#endif
    return exponential2(x);
}

}  // namespace
