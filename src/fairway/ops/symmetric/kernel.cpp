// Products of two matrices that are known to be symmetric: see naive.py for the definition.
//
// Strips of 16 rows are multiplied with the columns from their own diagonal block on; the rest is their mirror image.

#include "../kernel/operands.h"

namespace {

constexpr long strip = 16;

// Sums of a strip scaled and added to, in place.
template <class T>
void finish(float* sums, long ld, const T* d, long side, long rows, long first, float alpha, float beta) {
    for (long i = 0; i < rows; i++)
        for (long j = first; j < side; j += lanes) {
            Floats v = load(sums + i * ld + j) * alpha;
            if (d) v += load_part(d + i * side + j, side - j) * beta;
            store(sums + i * ld + j, v);
        }
}

template <class T>
void put_part(T* to, const float* from, long count) {
    for (long i = 0; i < count; i += lanes) store_part(to + i, load(from + i), count - i);
}

// Rows of the strip from its diagonal block on, and below that block their mirror image.
template <class T>
void put_strip(const float* sums, long ld, T* c, long side, long first, long rows) {
    for (long i = 0; i < rows; i++) put_part(c + (first + i) * side + first, sums + i * ld + first, side - first);
    alignas(64) float turned[strip * strip];
    for (long j = first + strip; j < side; j += strip) {
        turn16((const uint32_t*)(sums + j), ld, rows, (uint32_t*)turned, strip, strip);
        for (long i = 0; i < std::min(strip, side - j); i++) put_part(c + (j + i) * side + first, turned + strip * i, rows);
    }
}

template <bool paired, class T>
void product(const T* a, const T* b, const T* d, T* c, long side, long depth, float alpha, float beta, uint32_t* lines,
             uint32_t* turned, float* sums) {
    long words = depth / Product<paired>::depth, padded = rounded_up(side, step);
    for (long i = 0; i < side; i++) widen_row<paired>(a + i * depth, lines + i * words, depth);
    pack_turned<paired>(b, depth, turned, side, padded, depth);
    for (long m = 0; m < side; m += strip) {
        long rows = std::min(strip, side - m), first = m / step * step;
        multiply<paired>(lines + m * words, words, turned + first, padded, sums + first, padded, rows, padded - first, words,
                         false);
        finish(sums, padded, d ? d + m * side : nullptr, side, rows, m, alpha, beta);
        put_strip(sums, padded, c, side, m, rows);
    }
}

template <bool paired, class T>
void product_all(const T* a, const T* b, const T* d, T* c, long count, long side, long depth, float alpha, float beta) {
    long words = depth / Product<paired>::depth, padded = rounded_up(side, step);
#pragma omp parallel
    {
        Scratch<uint32_t> lines(rounded_up(side, strip) * words), turned(padded * words);
        Scratch<float> sums(strip * padded + lanes);
        Tiles tiles;
#pragma omp for schedule(static)
        for (long n = 0; n < count; n++)
            product<paired>(a + n * side * depth, b + n * side * depth, d ? d + n * side * side : nullptr, c + n * side * side,
                            side, depth, alpha, beta, lines.data(), turned.data(), sums.data());
    }
}

}  // namespace

// a and b are (count, side, depth), depth even; c and d, which may be null, (count, side, side).
FAIRWAY_EXPORT(symmetric_product)
(const void* a, const void* b, const void* d, void* c, long count, long side, long depth, float alpha, float beta, int half) {
    if (half)
        product_all<has_pairs>((const Bfloat*)a, (const Bfloat*)b, (const Bfloat*)d, (Bfloat*)c, count, side, depth, alpha, beta);
    else
        product_all<false>((const float*)a, (const float*)b, (const float*)d, (float*)c, count, side, depth, alpha, beta);
}
