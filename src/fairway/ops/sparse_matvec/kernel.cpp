// A sparse matrix times a vector: see naive.py for the definition and native.py for the packing.
//
// Sixteen rows go side by side through tiles of 32 columns, four tiles at a time: the numbers of a tile lie in two registers,
// where one instruction looks up sixteen of them, and so do up to 32 shared weights. An entry is a column in its tile, and a
// code eight bits above it; behind the last entry of a row stand entries of weight zero, and what a row holds beyond its steps
// is added up at the end. A row's entries in two tiles share a word, since a look-up leaves all but the lowest five bits out.

#include "../kernel/scratch.h"
#include "../kernel/vector.h"

namespace {

constexpr long tile = 32, rows = 16, side_by_side = 4;

// Tiles of one block of rows with about as many entries, and how many of each row.
struct Four {
    int32_t count, at[side_by_side];
};

#if defined(__AVX512F__)

struct Table {
    __m512 low, high;
    explicit Table(const float* from) : low(_mm512_loadu_ps(from)), high(_mm512_loadu_ps(from + 16)) {}
    // Of each place the five lowest bits count.
    Floats operator[](__m512i place) const { return (Floats)_mm512_permutex2var_ps(low, place, high); }
};

template <bool coded>
void block(const Four*& four, long fours, const uint16_t*& entry, const float*& value, const float* table, const float* x, float* y) {
    Table weights(table);
    Floats a{}, b{}, c{}, d{};
    for (long n = 0; n < fours; n++, four++) {
        Table xa(x + tile * four->at[0]), xb(x + tile * four->at[1]), xc(x + tile * four->at[2]), xd(x + tile * four->at[3]);
        for (int i = 0; i < four->count; i++, entry += 64, value += coded ? 0 : 64) {
            auto add = [&](Floats& low, const Table& of_low, Floats& high, const Table& of_high, long j) {
                __m512i word = _mm512_loadu_si512(entry + 32 * j), upper = _mm512_maskz_srli_epi32(0xffff, word, 16);
                auto weight = [&](__m512i half, long v) {
                    return coded ? weights[_mm512_maskz_srli_epi32(0xffff, half, 8)] : load(value + 32 * j + v);
                };
                low += weight(word, 0) * of_low[word];
                high += weight(upper, 16) * of_high[upper];
            };
            add(a, xa, b, xb, 0), add(c, xc, d, xd, 1);
        }
    }
    store(y, a + b + (c + d));
}

#else

template <bool coded>
void block(const Four*& four, long fours, const uint16_t*& entry, const float*& value, const float* table, const float* x, float* y) {
    for (long r = 0; r < rows; r++) y[r] = 0;
    for (long n = 0; n < fours; n++, four++)
        for (int i = 0; i < four->count; i++)
            for (long j = 0; j < side_by_side; j++, entry += j % 2 ? 0 : 2 * rows, value += coded ? 0 : rows)
                for (long r = 0; r < rows; r++) {
                    uint16_t e = entry[2 * r + j % 2];
                    y[r] += (coded ? table[e >> 8] : value[r]) * x[tile * four->at[j] + (e & 31)];
                }
}

#endif

}  // namespace

// A row above as many bits as the columns take.
struct Entry {
    uint32_t place;
    float value;
};

struct Matrix {
    const int32_t *first, *fours;
    const uint16_t* entry;
    const float *value, *table;
    const Entry* rest;
    int64_t blocks, columns, column_bits, rest_count;
};

// first: of each block its first four tiles, and one more for the end. table: 32 weights, or null, and then `value` holds one
// for each entry. y: room for whole blocks of sixteen rows.
// The rest are entries that stand in no tile.
FAIRWAY_EXPORT(sparse_matvec)(const Matrix* matrix, const float* x, float* y) {
    Matrix m = *matrix;
    Scratch<float> padded(m.columns % tile ? m.columns + tile : 0);
    if (m.columns % tile) {
        std::memcpy(padded.data(), x, (size_t)m.columns * sizeof(float));
        x = padded.data();
    }
    float unused[32] = {};
    const Four* four = (const Four*)m.fours;
    for (long b = 0; b < m.blocks; b++) {
        long count = m.first[b + 1] - m.first[b];
        if (m.table) block<true>(four, count, m.entry, m.value, m.table, x, y + rows * b);
        else block<false>(four, count, m.entry, m.value, unused, x, y + rows * b);
    }
    uint32_t column = (1u << m.column_bits) - 1;
    for (long i = 0; i < m.rest_count; i++) {
        Entry e = m.rest[i];
        y[e.place >> m.column_bits] += e.value * x[e.place & column];
    }
}
