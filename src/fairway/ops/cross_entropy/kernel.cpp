// Cross-entropy of soft-capped logits: each row of logits is turned into its own gradient in place.
//
// l = c tanh(z / c); nats = log sum e^l - l[target]; dz = (softmax(l) - onehot + 2 w logsumexp(l) softmax(l)) (1 - (l / c)^2) * weight.

#include "../kernel/vector.h"

namespace {

template <class T>
void rows(T* z, const int64_t* target, float* nats, float* normaliser, long count, long width, float cap, float z_loss,
          float weight) {
#pragma omp parallel
    {
        float* capped = new float[width + lanes];
#pragma omp for schedule(static)
        for (long row = 0; row < count; row++) {
            T* line = z + row * width;
            float most = -INFINITY;
            long i = 0;
            Floats mosts = all(-INFINITY);
            for (; i + lanes <= width; i += lanes) {
                Floats l = load(line + i);
                if (cap > 0) l = cap * hyperbolic_tangent(l / cap);
                store(capped + i, l);
                mosts = larger(l, mosts);
            }
            for (; i < width; i++) {
                float l = to_float(line[i]);
                capped[i] = cap > 0 ? cap * std::tanh(l / cap) : l;
                most = capped[i] > most ? capped[i] : most;
            }
            most = width >= lanes && largest(mosts) > most ? largest(mosts) : most;
            Floats sums{};
            float total = 0;
            for (i = 0; i + lanes <= width; i += lanes) sums += exponential(load(capped + i) - most);
            for (; i < width; i++) total += std::exp(capped[i] - most);
            float log_sum = most + std::log(sum(sums) + total);
            normaliser[row] = log_sum;
            nats[row] = log_sum - capped[target[row]];
            float share = (1.0f + 2.0f * z_loss * log_sum) * weight;
            float own = capped[target[row]];
            float slope = cap > 0 ? 1.0f - (own / cap) * (own / cap) : 1.0f;
            float kept = (share * std::exp(own - log_sum) - weight) * slope;
            for (i = 0; i + lanes <= width; i += lanes) {
                Floats l = load(capped + i);
                Floats d = exponential(l - log_sum) * share;
                if (cap > 0) d *= 1.0f - (l / cap) * (l / cap);
                store(line + i, d);
            }
            for (; i < width; i++) {
                float d = std::exp(capped[i] - log_sum) * share;
                if (cap > 0) d *= 1.0f - (capped[i] / cap) * (capped[i] / cap);
                put(line + i, d);
            }
            put(line + target[row], kept);
        }
        delete[] capped;
    }
}

}  // namespace

FAIRWAY_EXPORT(cross_entropy_rows)
(void* z, const int64_t* target, float* nats, float* normaliser, long count, long width, float cap, float z_loss,
 float weight, int half) {
    if (half)
        rows((Bfloat*)z, target, nats, normaliser, count, width, cap, z_loss, weight);
    else
        rows((float*)z, target, nats, normaliser, count, width, cap, z_loss, weight);
}
