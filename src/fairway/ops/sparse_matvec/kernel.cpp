// A sparse matrix times a vector: see naive.py for the definition and native.py for the packing.
//
// Sixteen rows go side by side through tiles of 32 columns, four tiles at a time: the numbers of a tile lie in two registers,
// where one instruction looks up sixteen of them, and so do up to 32 shared weights. An entry is a column in its tile, and a
// code eight bits above it; behind the last entry of a row stand entries of weight zero.

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
            auto add = [&](Floats& sum, const Table& of, long j) {
                __m256i pair = _mm256_loadu_si256((const __m256i*)(entry + 16 * j));
                __m512i place = _mm512_maskz_cvtepu16_epi32(0xffff, pair);
                sum += (coded ? weights[_mm512_maskz_srli_epi32(0xffff, place, 8)] : load(value + 16 * j)) * of[place];
            };
            add(a, xa, 0), add(b, xb, 1), add(c, xc, 2), add(d, xd, 3);
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
            for (long j = 0; j < side_by_side; j++, entry += rows, value += coded ? 0 : rows)
                for (long r = 0; r < rows; r++)
                    y[r] += (coded ? table[entry[r] >> 8] : value[r]) * x[tile * four->at[j] + (entry[r] & 31)];
}

#endif

}  // namespace

// first: of each block its first four tiles, and one more for the end. table: 32 weights, or null, and then `value` holds one
// for each entry. y: room for whole blocks of sixteen rows.
FAIRWAY_EXPORT(sparse_matvec)
(const int32_t* first, const int32_t* fours, const uint16_t* entry, const float* value, const float* table, const float* x,
 float* y, long blocks, long columns) {
    Scratch<float> padded((columns + tile - 1) / tile * tile + tile);
    std::memcpy(padded.data(), x, (size_t)columns * sizeof(float));
    float unused[32] = {};
    const Four* four = (const Four*)fours;
    for (long b = 0; b < blocks; b++) {
        long count = first[b + 1] - first[b];
        if (table) block<true>(four, count, entry, value, table, padded.data(), y + rows * b);
        else block<false>(four, count, entry, value, unused, padded.data(), y + rows * b);
    }
}
