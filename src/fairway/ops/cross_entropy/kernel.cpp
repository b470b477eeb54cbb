// Cross-entropy of soft-capped logits: each row of logits is turned into its own gradient in place.
//
// Products of the gradient in bfloat16 are summed in float32.
//
// l = c tanh(z / c); nats = log sum e^l - l[target]; dz = (softmax(l) - onehot + 2 w logsumexp(l) softmax(l)) (1 - (l / c)^2) * weight.
//
// A pull is a further slope by l: some numbers at some tokens, and at all others softmax(l / t) over these others times
// one number of the row. Folding gives log softmax(l / t) of some tokens and of all others together.

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

// The sum of e^(scale (x - most)) over a row that ends with a whole vector.
inline float sum_of_powers(const float* x, long width, float most, float scale) {
    Floats sums{};
    for (long i = 0; i < width; i += lanes) sums += power_of_e((load(x + i) - most) * scale);
    return sum(sums);
}

inline float largest_of(const float* x, long width) {
    Floats most = all(-INFINITY);
    for (long i = 0; i < width; i += lanes) most = larger(load(x + i), most);
    return largest(most);
}

struct Pulls {
    const int64_t* chosen;
    const float *others, *share, *slope;
    long count;
    float cold, weight;
};

// Adds the pull of one row to its slope by the capped logits.
void pull_row(const Pulls& pulls, long n, const float* capped, float* slope, float* kept, long width) {
    const int64_t* chosen = pulls.chosen + n * pulls.count;
    const float* own = pulls.slope + n * pulls.count;
    float others = pulls.others[n], share = pulls.share[n] * pulls.weight;
    for (long j = 0; j < pulls.count; j++) kept[j] = slope[chosen[j]];
    for (long i = 0; i < width; i += lanes) {
        // Only the chosen tokens, which are put right below, may lie above the sum over the others.
        Floats x = load(capped + i) * pulls.cold - others;
        store(slope + i, load(slope + i) + power_of_e(select(x < Floats{}, x, Floats{})) * share);
    }
    for (long j = 0; j < pulls.count; j++) slope[chosen[j]] = kept[j] + own[j] * pulls.weight;
}

template <class T>
void row(T* z, int64_t target, float* nats, float* normaliser, float* capped, float* powers, float* kept, long n, long width,
         float cap, float z_loss, float weight, const Pulls& pulls) {
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
    float at_target = share * std::exp(own - log_sum) - weight;
    if (pulls.count) {
        for (long i = 0; i < width; i += lanes) store(powers + i, load(powers + i) * each);
        powers[target] = at_target;
        pull_row(pulls, n, capped, powers, kept, width);
        at_target = powers[target];
        each = 1.0f;
    }
    float steepness = cap > 0 ? 1.0f / (cap * cap) : 0.0f;
    for (long i = 0; i < width; i += lanes) {
        Floats d = load(powers + i) * each;
        if (cap > 0) {
            Floats l = load(capped + i);
            d *= 1.0f - l * l * steepness;
        }
        store_part(z + i, d, width - i);
    }
    put(z + target, cap > 0 ? at_target * (1.0f - (own / cap) * (own / cap)) : at_target);
}

template <class T>
void rows(T* z, const int64_t* target, float* nats, float* normaliser, long count, long width, float cap, float z_loss,
          float weight, const Pulls& pulls) {
#pragma omp parallel
    {
        Scratch<float> capped(width + lanes), powers(width + lanes), kept(pulls.count + lanes);
#pragma omp for schedule(static)
        for (long i = 0; i < count; i++)
            row(z + i * width, target[i], nats + i, normaliser + i, capped.data(), powers.data(), kept.data(), i, width, cap,
                z_loss, weight, pulls);
    }
}

// One row folded; minus infinity stands for the chosen tokens among the others.
template <class T>
void fold_row(const T* z, const int64_t* chosen, float* folded, float* others, float* capped, float* held, long width, long few,
              float cap, float cold) {
    cap_row(z, capped, width, cap);
    for (long j = 0; j < few; j++) held[j] = capped[chosen[j]] * cold;
    for (long j = 0; j < few; j++) capped[chosen[j]] = -INFINITY;
    float most = largest_of(capped, width), rest = most * cold + std::log(sum_of_powers(capped, width, most, cold));
    held[few] = rest;
    for (long j = few + 1; j < few + 1 + lanes; j++) held[j] = -INFINITY;
    most = largest_of(held, few + 1);
    float normaliser = most + std::log(sum_of_powers(held, few + 1, most, 1.0f));
    for (long j = 0; j <= few; j++) folded[j] = held[j] - normaliser;
    *others = rest;
}

template <class T>
void folds(const T* z, const int64_t* chosen, float* folded, float* others, long count, long width, long few, float cap,
           float cold) {
#pragma omp parallel
    {
        Scratch<float> capped(width + lanes), held(few + 1 + lanes);
#pragma omp for schedule(static)
        for (long i = 0; i < count; i++)
            fold_row(z + i * width, chosen + i * few, folded + i * (few + 1), others + i, capped.data(), held.data(), width, few,
                     cap, cold);
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

// `few` tokens of each row are pulled by numbers of their own; none where there is no pull.
FAIRWAY_EXPORT(cross_entropy_rows)
(void* z, const int64_t* target, float* nats, float* normaliser, long count, long width, float cap, float z_loss,
 float weight, int half, const int64_t* chosen, const float* others, const float* share, const float* slope, long few,
 float cold, float pull) {
    Pulls pulls{chosen, others, share, slope, few, cold, pull};
    if (half)
        rows((Bfloat*)z, target, nats, normaliser, count, width, cap, z_loss, weight, pulls);
    else
        rows((float*)z, target, nats, normaliser, count, width, cap, z_loss, weight, pulls);
}

FAIRWAY_EXPORT(cross_entropy_fold)
(const void* z, const int64_t* chosen, float* folded, float* others, long count, long width, long few, float cap, float cold,
 int half) {
    if (half)
        folds((const Bfloat*)z, chosen, folded, others, count, width, few, cap, cold);
    else
        folds((const float*)z, chosen, folded, others, count, width, few, cap, cold);
}
