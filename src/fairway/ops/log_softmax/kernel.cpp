// Log-probabilities of soft-capped logits, in place: see naive.py for the definition.
//
// A row is read three times, twice from cache: to cap it and find the largest, to sum its powers, and to shift it.

#include "../kernel/point.h"

namespace {

// Logits after the cap; returns the largest. NaN wins over every number.
float cap_row(float* z, long width, float cap) {
    Floats most = all(-INFINITY);
    for (long i = 0; i < width; i += lanes) {
        Floats l = load_part(z + i, width - i);
        if (cap > 0) store_part(z + i, l = cap * tanh_of(l / cap), width - i);
        if (width - i < lanes)
            for (long j = width - i; j < lanes; j++) l[j] = -INFINITY;
        most = select(most > l, most, l);
    }
    return largest(most);
}

void row(float* z, long width, float cap) {
    float most = cap_row(z, width, cap);
    Floats sums{};
    long i = 0;
    for (; i + lanes <= width; i += lanes) sums += power_of_e(load(z + i) - most);
    float rest = 0;
    if (i < width) {
        Floats last = power_of_e(load_part(z + i, width - i) - most);
        for (long j = 0; j < width - i; j++) rest += last[j];
    }
    float shift = most + std::log(sum(sums) + rest);
    for (i = 0; i < width; i += lanes) store_part(z + i, load_part(z + i, width - i) - shift, width - i);
}

}  // namespace

// z: (rows, width), overwritten. cap: 0 for none.
FAIRWAY_EXPORT(log_softmax)(float* z, long rows, long width, float cap) {
#pragma omp parallel for schedule(static)
    for (long i = 0; i < rows; i++) row(z + i * width, width, cap);
}
