// Log-probabilities of soft-capped logits: see naive.py for the definition.
//
// A row is read three times, twice from cache: to cap it and find the largest, to sum its powers, and to shift it.

#include "../kernel/point.h"

namespace {

inline bool any(Ints mask) {
#if defined(__AVX512F__)
    return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask);
#else
    int found = 0;
    for (int i = 0; i < lanes; i++) found |= mask[i];
    return found;
#endif
}

// tanh_of, which below 0.6 needs no exponential; there lie nearly all logits.
inline Floats bounded(Floats x) { return any(~(magnitude(x) < all(0.6f))) ? tanh_of(x) : small_tanh_of(x); }

// Logits after the cap; returns the largest. NaN wins over every number.
template <class T>
float cap_row(const T* z, float* y, long width, float cap) {
    Floats most = all(-INFINITY);
    for (long i = 0; i < width; i += lanes) {
        Floats l = load_part(z + i, width - i);
        if (cap > 0) l = cap * bounded(l / cap);
        store_part(y + i, l, width - i);
        if (width - i < lanes)
            for (long j = width - i; j < lanes; j++) l[j] = -INFINITY;
        most = select(most > l, most, l);
    }
    return largest(most);
}

// The sum of e^(z - most).
float sum_of_powers(const float* z, long width, float most) {
    Floats sums{};
    long i = 0;
    for (; i + lanes <= width; i += lanes) sums += power_of_e(load(z + i) - most);
    float rest = 0;
    if (i < width) {
        Floats last = power_of_e(load_part(z + i, width - i) - most);
        for (long j = 0; j < width - i; j++) rest += last[j];
    }
    return sum(sums) + rest;
}

template <class T>
void row(const T* from, float* z, long width, float cap) {
    float most = cap_row(from, z, width, cap), shift = most + std::log(sum_of_powers(z, width, most));
    for (long i = 0; i < width; i += lanes) store_part(z + i, load_part(z + i, width - i) - shift, width - i);
}

template <class T>
void every_row(const T* z, float* y, long rows, long width, float cap) {
#pragma omp parallel for schedule(static)
    for (long i = 0; i < rows; i++) row(z + i * width, y + i * width, width, cap);
}

}  // namespace

// z: (rows, width) of bfloat16 if `half`, else of floats, which may be y. cap: 0 for none.
FAIRWAY_EXPORT(log_softmax)(const void* z, float* y, long rows, long width, float cap, int half) {
    if (half) every_row((const Bfloat*)z, y, rows, width, cap);
    else every_row((const float*)z, y, rows, width, cap);
}

// How much probability each row of log-probabilities holds.
FAIRWAY_EXPORT(log_softmax_total)(const float* log_p, float* total, long rows, long width) {
#pragma omp parallel for schedule(static)
    for (long i = 0; i < rows; i++) total[i] = sum_of_powers(log_p + i * width, width, 0.0f);
}
