// A matrix times one vector: weights as integers with a step for each row, or as floats.
//
// Rows lie in panels of up to four blocks of sixteen. For integers a panel holds, for every four columns (eight where codes
// have four bits), the blocks one after another, each 64 bytes: sixteen rows of four columns, which one instruction
// multiplies by four numbers of the vector, so that nothing is ever summed across a register. Codes of sixteen bits are
// 256 high + low, their low bytes first. Bytes are stored with 128 added, codes of four bits with 8. Where there is VNNI the
// vector is brought to 24-bit integers over its largest magnitude and split into three digits of eight bits: the products
// are exact, so what is lost is the rounding of the vector, 2^-24 of its largest number, and that of the last few sums.
// Elsewhere integers become floats on the way.

#pragma once

#include "scratch.h"
#include "vector.h"

namespace {

constexpr long block_rows = 16, panel_blocks = 4, panel_rows = block_rows * panel_blocks;
constexpr int vectors = block_rows / lanes;

enum Format : long { format_float, format_int4, format_int8, format_int16 };

// step: one for each row, padded to whole blocks; null for floats.
struct Matrix {
    long rows, columns, format;
    const uint8_t* data;
    const float* step;

    long blocks() const { return (rows + block_rows - 1) / block_rows; }
    long panels() const { return (blocks() + panel_blocks - 1) / panel_blocks; }
    // Columns come in whole groups.
    long group() const { return format == format_float ? 1 : format == format_int4 ? 8 : 4; }
    // Bytes of a group of columns in one block.
    long bytes() const { return format == format_int16 ? 128 : 64; }
    long groups() const { return (columns + group() - 1) / group(); }
    const uint8_t* block_at(long block, long column_group) const {
        long panel = block / panel_blocks, first = panel * panel_blocks;
        long width = blocks() - first < panel_blocks ? blocks() - first : panel_blocks;
        return data + bytes() * (first * groups() + column_group * width + block - first);
    }
};

// A row as floats.
inline void read_row(const Matrix& m, long row, float* to) {
    long lane = row % block_rows;
    for (long c = 0; c < m.columns; c++) {
        const uint8_t* at = m.block_at(row / block_rows, c / m.group());
        int low = at[4 * lane + c % 4];
        if (m.format == format_float)
            std::memcpy(to + c, at + 4 * lane, 4);
        else if (m.format == format_int4)
            to[c] = (float)((low >> (c % 8 < 4 ? 0 : 4) & 15) - 8) * m.step[row];
        else if (m.format == format_int8)
            to[c] = (float)(low - 128) * m.step[row];
        else
            to[c] = (float)(256 * (at[64 + 4 * lane + c % 4] - 128) + low - 128) * m.step[row];
    }
}

// 127 * 256^2 + 127 * 256: half a step more, as rounding may add, still has three digits.
constexpr float largest_integer = 8355584.0f;

// The vector as the matrices read it. Floats are followed by zeros up to whole groups of eight columns.
class Operand {
   public:
    const float* x = nullptr;
    float unit = 0;
    int32_t sums[3];
    const int8_t* digit(int place) const { return digits.data() + place * padded; }

    void take(const float* from, long columns) {
        padded = columns / 64 * 64 + 64;
        copy.resize(padded);
        float* to = copy.data();
        std::memcpy(to, from, (size_t)columns * sizeof(float));
        std::memset(to + columns, 0, (size_t)(padded - columns) * sizeof(float));
        x = to;
#if defined(__AVX512VNNI__)
        split();
#endif
    }

   private:
    Growing<float> copy;
    Growing<int8_t> digits;
    long padded = 0;

#if defined(__AVX512VNNI__)
    void split() {
        digits.resize(3 * padded);
        __m512i most = _mm512_setzero_si512();
        for (long i = 0; i < padded; i += 16)
            most = _mm512_maskz_max_epi32(0xffff, most, (__m512i)((Ints)load(x + i) & 0x7fffffff));
        Ints held = (Ints)most;
        int32_t bits = 0;
        for (int i = 0; i < 16; i++) bits = held[i] > bits ? held[i] : bits;
        float largest;
        std::memcpy(&largest, &bits, 4);
        bool finite = bits < 0x7f800000;
        float scale = finite && largest > 1e-30f ? largest_integer / largest : 0.0f;
        unit = !finite ? NAN : scale == 0 ? 0 : largest / largest_integer;
        Ints total[3] = {};
        for (long i = 0; i < padded; i += 16) {
            Ints left = finite ? (Ints)_mm512_maskz_cvtps_epi32(0xffff, (__m512)(load(x + i) * scale)) : Ints{};
            for (int place = 0; place < 3; place++) {
                Ints low = place < 2 ? (left << 24) >> 24 : left;
                left = (left - low) >> 8;
                total[place] += low;
                __m128i bytes = _mm512_maskz_cvtepi32_epi8(0xffff, (__m512i)low);
                std::memcpy(digits.data() + place * padded + i, &bytes, 16);
            }
        }
        for (int place = 0; place < 3; place++) {
            sums[place] = 0;
            for (int i = 0; i < 16; i++) sums[place] += total[place][i];
        }
    }
#endif
};

// What the rows of one block have added up to. Named variables and no arrays, which compilers would keep in memory.
#if defined(__AVX512VNNI__)

struct Digits {
    __m512i d0, d1, d2;
    Digits(const Operand& in, long column) : d0(four(in.digit(0) + column)), d1(four(in.digit(1) + column)), d2(four(in.digit(2) + column)) {}

    static __m512i four(const int8_t* digits) {
        int32_t word;
        std::memcpy(&word, digits, 4);
        return _mm512_set1_epi32(word);
    }
};

template <long format>
struct CodeSums {
    static constexpr bool wide = format == format_int16, narrow = format == format_int4;
    __m512i s0, s1, s2, s3;

    void begin(const Operand& in) {
        const int32_t* sums = in.sums;
        s0 = offset(sums[0], 0);
        s1 = offset(sums[1], sums[0]);
        s2 = offset(sums[2], sums[1]);
        s3 = offset(0, sums[2]);
    }
    static __m512i offset(int32_t low, int32_t high) {
        return _mm512_set1_epi32((int32_t)(-(narrow ? 8u : 128u) * ((uint32_t)low + (wide ? (uint32_t)high : 0u))));
    }
    void add(const uint8_t* data, const Digits& d, const Digits& next) {
        __m512i w = _mm512_loadu_si512(data);
        if (narrow) {
            const __m512i low = _mm512_set1_epi8(15);
            products(_mm512_and_si512(w, low), d);
            products(_mm512_and_si512((__m512i)((Words)w >> 4), low), next);
        } else {
            products(w, d);
        }
        if (wide) {
            w = _mm512_loadu_si512(data + 64);
            s1 = _mm512_dpbusd_epi32(s1, w, d.d0);
            s2 = _mm512_dpbusd_epi32(s2, w, d.d1);
            s3 = _mm512_dpbusd_epi32(s3, w, d.d2);
        }
    }
    void products(__m512i w, const Digits& d) {
        s0 = _mm512_dpbusd_epi32(s0, w, d.d0);
        s1 = _mm512_dpbusd_epi32(s1, w, d.d1);
        s2 = _mm512_dpbusd_epi32(s2, w, d.d2);
    }
    void end(const Operand& in, const float* step, float* y) const {
        Floats sum = __builtin_convertvector((Ints)s1, Floats) * 256.0f + __builtin_convertvector((Ints)s0, Floats);
        sum += __builtin_convertvector((Ints)s2, Floats) * 65536.0f;
        if (wide) sum += __builtin_convertvector((Ints)s3, Floats) * 16777216.0f;
        store(y, sum * in.unit * load(step));
    }
};

#else

struct Digits {
    const float* x;
    Digits(const Operand& in, long column) : x(in.x + column) {}
};

template <long format>
struct CodeSums {
    Floats sum[vectors];

    void begin(const Operand&) {
        for (int j = 0; j < vectors; j++) sum[j] = Floats{};
    }
    void add(const uint8_t* data, const Digits& d, const Digits& next) {
        for (int j = 0; j < vectors; j++) {
            Words w, high = {};
            std::memcpy(&w, data + 4 * lanes * j, sizeof w);
            if (format == format_int16) std::memcpy(&high, data + 64 + 4 * lanes * j, sizeof high);
#pragma GCC unroll 4
            for (int c = 0; c < 4; c++) {
                if (format == format_int4) {
                    sum[j] += floats((w >> (8 * c)) & 15u, 8) * d.x[c];
                    sum[j] += floats((w >> (8 * c + 4)) & 15u, 8) * next.x[c];
                } else if (format == format_int8) {
                    sum[j] += floats((w >> (8 * c)) & 255u, 128) * d.x[c];
                } else {
                    sum[j] += floats((w >> (8 * c) & 255u) + ((high >> (8 * c) & 255u) << 8), 128 * 257) * d.x[c];
                }
            }
        }
    }
    static Floats floats(Words code, int offset) { return __builtin_convertvector((Ints)code - offset, Floats); }
    void end(const Operand&, const float* step, float* y) const {
        for (int j = 0; j < vectors; j++) store(y + j * lanes, sum[j] * load(step + j * lanes));
    }
};

#endif

template <int blocks, long format>
inline void panel_of_codes(const Matrix& m, const uint8_t* data, const Operand& in, const float* step, float* y) {
    constexpr int columns = format == format_int4 ? 8 : 4, bytes = format == format_int16 ? 128 : 64;
    CodeSums<format> a, b, c, d;
    a.begin(in), b.begin(in), c.begin(in), d.begin(in);
    for (long g = 0; g < m.groups(); g++, data += bytes * blocks) {
        Digits now(in, columns * g), next(in, columns * g + 4);
        a.add(data, now, next);
        if (blocks > 1) b.add(data + bytes, now, next);
        if (blocks > 2) c.add(data + 2 * bytes, now, next);
        if (blocks > 3) d.add(data + 3 * bytes, now, next);
    }
    a.end(in, step, y);
    if (blocks > 1) b.end(in, step + 16, y + 16);
    if (blocks > 2) c.end(in, step + 32, y + 32);
    if (blocks > 3) d.end(in, step + 48, y + 48);
}

struct FloatSums {
    Floats sum[vectors] = {};
    void add(const float* w, Floats x) {
        for (int j = 0; j < vectors; j++) sum[j] += load(w + j * lanes) * x;
    }
    void end(const FloatSums& other, float* y) const {
        for (int j = 0; j < vectors; j++) store(y + j * lanes, sum[j] + other.sum[j]);
    }
};

template <int blocks>
inline void panel_of_floats(const Matrix& m, const uint8_t* data, const Operand& in, float* y) {
    FloatSums a, b, c, d, a2, b2, c2, d2;
    const float* w = (const float*)data;
    for (long k = 0; k + 2 <= m.columns; k += 2, w += 2 * 16 * blocks) {
        Floats x = all(in.x[k]), x2 = all(in.x[k + 1]);
        a.add(w, x), a2.add(w + 16 * blocks, x2);
        if (blocks > 1) b.add(w + 16, x), b2.add(w + 16 * blocks + 16, x2);
        if (blocks > 2) c.add(w + 32, x), c2.add(w + 16 * blocks + 32, x2);
        if (blocks > 3) d.add(w + 48, x), d2.add(w + 16 * blocks + 48, x2);
    }
    if (m.columns % 2) {
        Floats x = all(in.x[m.columns - 1]);
        a.add(w, x);
        if (blocks > 1) b.add(w + 16, x);
        if (blocks > 2) c.add(w + 32, x);
        if (blocks > 3) d.add(w + 48, x);
    }
    a.end(a2, y);
    if (blocks > 1) b.end(b2, y + 16);
    if (blocks > 2) c.end(c2, y + 32);
    if (blocks > 3) d.end(d2, y + 48);
}

template <int blocks>
inline void one_panel(const Matrix& m, long panel, const Operand& in, float* y) {
    long row = panel * panel_rows;
    const uint8_t* data = m.data + m.bytes() * m.groups() * panel * panel_blocks;
    switch (m.format) {
        case format_float: return panel_of_floats<blocks>(m, data, in, y + row);
        case format_int4: return panel_of_codes<blocks, format_int4>(m, data, in, m.step + row, y + row);
        case format_int8: return panel_of_codes<blocks, format_int8>(m, data, in, m.step + row, y + row);
        case format_int16: return panel_of_codes<blocks, format_int16>(m, data, in, m.step + row, y + row);
    }
}

// The share of one of several workers in y = W x; y has room for whole blocks of rows.
inline void multiply(const Matrix& m, const Operand& in, float* y, long worker, long workers) {
    long panels = m.panels();
    for (long panel = panels * worker / workers; panel < panels * (worker + 1) / workers; panel++) {
        long blocks = m.blocks() - panel * panel_blocks;
        if (blocks >= 4) one_panel<4>(m, panel, in, y);
        else if (blocks == 3) one_panel<3>(m, panel, in, y);
        else if (blocks == 2) one_panel<2>(m, panel, in, y);
        else one_panel<1>(m, panel, in, y);
    }
}

}  // namespace
