// The router of a mixture of experts, forward and backward: see naive.py for the definition.
//
// A block of tokens is multiplied, scored and sorted while it lies in the cache. Rows of experts are padded to whole vectors.
// Backward, each share of the tokens sums its own part of the router's gradient.

#include "../kernel/product.h"
#include "../kernel/scratch.h"

namespace {

constexpr long block = 64;  // tokens
constexpr float smallest_sum = 1e-20f;

struct Shape {
    long tokens, width, experts, top;
    bool apart, renormalise;  // apart: scores are sigmoids, each expert's by itself
    long shares;
    long wide() const { return filled(experts); }
};

// The first eight rows at a time, which is as many sums as hide each other's latency; each number is the sum of its products in
// one order, whatever its block.
void logits_of(const float* x, const float* router, float* z, long rows, const Shape& s) {
    long wide = s.wide(), i = 0;
    for (; i + 8 <= rows; i += 8)
        for (long j = 0; j < wide; j += lanes)
            product_tile<8, 1>(x + i * s.width, s.width, 1, router + j, wide, z + i * wide + j, wide, s.width, 0);
    product(x + i * s.width, s.width, 1, router, wide, z + i * wide, wide, rows - i, s.width, wide, 0);
}

// Scores of one row; zeros behind the last.
void score(const float* z, float* scores, const Shape& s) {
    Floats most = all(-INFINITY), sums{};
    for (long j = 0; j < s.experts; j += lanes) {
        Ints beyond = counting() >= (int)(s.experts - j);
        most = larger(select(beyond, all(-INFINITY), load(z + j)), most);
    }
    float top = largest(most);
    for (long j = 0; j < s.experts; j += lanes) {
        Ints beyond = counting() >= (int)(s.experts - j);
        Floats y = s.apart ? logistic(load(z + j)) : power_of_e(load(z + j) - top);
        y = select(beyond, Floats{}, y);
        store(scores + j, y);
        sums += y;
    }
    if (s.apart) return;
    float each = 1.0f / sum(sums);
    for (long j = 0; j < s.experts; j += lanes) store(scores + j, load(scores + j) * each);
}

// The experts that rank first, and their gates. What is not a number ranks last; `ranked` is used up.
void choose(const float* scores, float* ranked, int64_t* expert, float* gate, const Shape& s) {
    float total = 0;
    for (long k = 0; k < s.top; k++) {
        float most = -INFINITY;
        long best = -1;
        for (long e = 0; e < s.experts; e++) {
            bool better = ranked[e] > most;
            best = better ? e : best;
            most = better ? ranked[e] : most;
        }
        for (long e = 0; best < 0; e++) {
            bool taken = false;
            for (long n = 0; n < k; n++) taken |= expert[n] == e;
            if (!taken) best = e;
        }
        ranked[best] = -INFINITY;
        expert[k] = best;
        gate[k] = scores[best];
        total += scores[best];
    }
    if (!s.renormalise) return;
    total = total < smallest_sum ? smallest_sum : total;
    for (long k = 0; k < s.top; k++) gate[k] /= total;
}

void forward(const float* x, const float* router, const float* bias, float* logits, float* scores, int64_t* expert, float* gate,
             const Shape& s) {
    long wide = s.wide();
    Scratch<float> columns(s.width * wide), offset(wide);
    for (long e = 0; e < s.experts; e++) {
        for (long n = 0; n < s.width; n++) columns[n * wide + e] = router[e * s.width + n];
        offset[e] = bias ? bias[e] : 0.0f;
    }
#pragma omp parallel
    {
        Scratch<float> z(block * wide), held(wide), ranked(wide);
#pragma omp for schedule(static)
        for (long start = 0; start < s.tokens; start += block) {
            long rows = s.tokens - start < block ? s.tokens - start : block;
            logits_of(x + start * s.width, columns.data(), z.data(), rows, s);
            for (long i = 0; i < rows; i++) {
                long n = start + i;
                score(z.data() + i * wide, held.data(), s);
                for (long j = 0; j < wide; j += lanes) store(ranked.data() + j, load(held.data() + j) + load(offset.data() + j));
                choose(held.data(), ranked.data(), expert + n * s.top, gate + n * s.top, s);
                for (long j = 0; j < s.experts; j += lanes) {
                    store_part(logits + n * s.experts + j, load(z.data() + i * wide + j), s.experts - j);
                    store_part(scores + n * s.experts + j, load(held.data() + j), s.experts - j);
                }
            }
        }
    }
}

struct Upstream {
    const float *logits, *scores, *gate;  // each may be null
};

// Gradients of one token by its logits, from those by its scores that `slope` holds, zeros behind the last.
void through_scores(const float* scores, float* slope, const Shape& s) {
    Floats along{};
    for (long j = 0; j < s.experts; j += lanes) along += load_part(scores + j, s.experts - j) * load(slope + j);
    float mean = s.apart ? 0.0f : sum(along);
    for (long j = 0; j < s.experts; j += lanes) {
        Floats y = load_part(scores + j, s.experts - j), g = load(slope + j);
        store(slope + j, s.apart ? g * y * (1.0f - y) : y * (g - mean));
    }
}

void slope_of(const Upstream& up, const float* scores, const int64_t* expert, float* slope, long n, const Shape& s) {
    for (long j = 0; j < s.experts; j += lanes)
        store(slope + j, up.scores ? load_part(up.scores + n * s.experts + j, s.experts - j) : Floats{});
    if (up.gate) {
        const float* g = up.gate + n * s.top;
        float total = 0, along = 0;
        for (long k = 0; k < s.top; k++) {
            total += scores[expert[k]];
            along += g[k] * scores[expert[k]];
        }
        bool held = total < smallest_sum;
        float scale = s.renormalise ? 1.0f / (held ? smallest_sum : total) : 1.0f;
        float shift = s.renormalise && !held ? along * scale : 0.0f;
        for (long k = 0; k < s.top; k++) slope[expert[k]] += (g[k] - shift) * scale;
    }
    through_scores(scores, slope, s);
    for (long j = 0; up.logits && j < s.experts; j += lanes)
        store(slope + j, load(slope + j) + load_part(up.logits + n * s.experts + j, s.experts - j));
}

void backward(const Upstream& up, const float* x, const float* router, const float* scores, const int64_t* expert, float* dx,
              float* drouter, const Shape& s) {
    long wide = s.wide();
#pragma omp parallel for schedule(static)
    for (long share = 0; share < s.shares; share++) {
        Scratch<float> slope(block * wide);
        float* sums = drouter + share * s.experts * s.width;
        long end = (share + 1) * s.tokens / s.shares;
        for (long start = share * s.tokens / s.shares; start < end; start += block) {
            long rows = end - start < block ? end - start : block;
            for (long i = 0; i < rows; i++) {
                long n = start + i;
                slope_of(up, scores + n * s.experts, expert + n * s.top, slope.data() + i * wide, n, s);
            }
            product(slope.data(), wide, 1, router, s.width, dx + start * s.width, s.width, rows, s.experts, s.width, 0);
            product(slope.data(), 1, wide, x + start * s.width, s.width, sums, s.width, s.experts, rows, s.width, 1);
        }
    }
}

Shape read(const long* n) { return Shape{n[0], n[1], n[2], n[3], n[4] != 0, n[5] != 0, n[6]}; }

}  // namespace

// sizes: tokens, width (in whole vectors), experts, how many are chosen, whether scores are sigmoids, whether gates are
// renormalised, shares of the sums over tokens. The bias may be null.
FAIRWAY_EXPORT(route_forward)
(const float* x, const float* router, const float* bias, float* logits, float* scores, int64_t* expert, float* gate,
 const long* sizes) {
    forward(x, router, bias, logits, scores, expert, gate, read(sizes));
}

// Gradients by what came out may be null. drouter holds (shares, experts, width) zeros.
FAIRWAY_EXPORT(route_backward)
(const float* by_logits, const float* by_scores, const float* by_gate, const float* x, const float* router, const float* scores,
 const int64_t* expert, float* dx, float* drouter, const long* sizes) {
    backward(Upstream{by_logits, by_scores, by_gate}, x, router, scores, expert, dx, drouter, read(sizes));
}
