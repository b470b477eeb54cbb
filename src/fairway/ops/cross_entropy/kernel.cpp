// Cross-entropy of soft-capped logits: each row of logits is turned into its own gradient in place.
//
// Products of the gradient in bfloat16 are summed in float32.
//
// l = c tanh(z / c); nats = log sum e^l - l[target]; dz = (softmax(l) - onehot + 2 w logsumexp(l) softmax(l)) (1 - (l / c)^2) * weight.

#include "../kernel/point.h"
#include "../kernel/scratch.h"

namespace {

inline Floats bounded(Floats x) {
    Floats e = power_of_e(magnitude(x) * -2.0f);
    return with_sign_of((1.0f - e) / (1.0f + e), x);
}

// Logits after the cap, minus infinity behind the last one up to a whole vector; returns the largest.
template <class T>
float cap_row(const T* z, float* capped, long width, float cap) {
    Floats most = all(-INFINITY);
    for (long i = 0; i < width; i += lanes) {
        Floats l = load_part(z + i, width - i);
        if (cap > 0) l = cap * bounded(l / cap);
        store(capped + i, l);
        if (width - i < lanes)
            for (long j = width; j < i + lanes; j++) capped[j] = -INFINITY;
        most = larger(load(capped + i), most);
    }
    return largest(most);
}

template <class T>
void row(T* z, int64_t target, float* nats, float* normaliser, float* capped, float* powers, long width, float cap,
         float z_loss, float weight) {
    float most = cap_row(z, capped, width, cap);
    Floats sums{};
    for (long i = 0; i < width; i += lanes) {
        Floats e = power_of_e(load(capped + i) - most);
        store(powers + i, e);
        sums += e;
    }
    float all_powers = sum(sums), log_sum = most + std::log(all_powers), own = capped[target];
    *normaliser = log_sum;
    *nats = log_sum - own;
    float share = (1.0f + 2.0f * z_loss * log_sum) * weight, each = share / all_powers;
    float slope = cap > 0 ? 1.0f - (own / cap) * (own / cap) : 1.0f;
    float kept = (share * std::exp(own - log_sum) - weight) * slope;
    float steepness = cap > 0 ? 1.0f / (cap * cap) : 0.0f;
    for (long i = 0; i < width; i += lanes) {
        Floats d = load(powers + i) * each;
        if (cap > 0) {
            Floats l = load(capped + i);
            d *= 1.0f - l * l * steepness;
        }
        store_part(z + i, d, width - i);
    }
    put(z + target, kept);
}

template <class T>
void rows(T* z, const int64_t* target, float* nats, float* normaliser, long count, long width, float cap, float z_loss,
          float weight) {
#pragma omp parallel
    {
        Scratch<float> capped(width + lanes), powers(width + lanes);
#pragma omp for schedule(static)
        for (long i = 0; i < count; i++)
            row(z + i * width, target[i], nats + i, normaliser + i, capped.data(), powers.data(), width, cap, z_loss, weight);
    }
}

void widened(float* sums, const Bfloat* parts, long count, int add) {
    constexpr long block = 1 << 14;
#pragma omp parallel for schedule(static)
    for (long start = 0; start < count; start += block) {
        long end = start + block < count ? start + block : count, i = start;
        for (; i + lanes <= end; i += lanes) store(sums + i, add ? load(sums + i) + load(parts + i) : load(parts + i));
        for (; i < end; i++) sums[i] = to_float(parts[i]) + (add ? sums[i] : 0.0f);
    }
}

}  // namespace

// Writes bfloat16 numbers into floats, or adds them.
FAIRWAY_EXPORT(cross_entropy_widen)(float* sums, const void* parts, long count, int add) {
    widened(sums, (const Bfloat*)parts, count, add);
}

FAIRWAY_EXPORT(cross_entropy_rows)
(void* z, const int64_t* target, float* nats, float* normaliser, long count, long width, float cap, float z_loss,
 float weight, int half) {
    if (half)
        rows((Bfloat*)z, target, nats, normaliser, count, width, cap, z_loss, weight);
    else
        rows((float*)z, target, nats, normaliser, count, width, cap, z_loss, weight);
}
