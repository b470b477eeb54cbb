// Divergence between a teacher's and a student's distribution over all tokens, and its slope by the student's logits: see
// naive.py for the definition.
//
// A row is read once from memory: both sides are capped, their powers summed, and what each token adds is taken from these,
// all in cache. The slope is written over the teacher's logits.

#include "../kernel/point.h"
#include "../kernel/scratch.h"

namespace {

// p x, and 0 where p is 0 whatever x is.
inline Floats product(Floats p, Floats x) { return select(p == Floats{}, Floats{}, p * x); }

// log(e^a + e^b), by the series of atanh; the larger of the two is no NaN unless one of them is.
inline Floats log_of_sum(Floats a, Floats b) {
    Floats most = larger(a, b), u = power_of_e(-magnitude(a - b)), w = u / (2.0f + u), z = w * w;
    Floats p = all(1.0f / 13.0f);
    p = p * z + 1.0f / 11.0f;
    p = p * z + 1.0f / 9.0f;
    p = p * z + 1.0f / 7.0f;
    p = p * z + 1.0f / 5.0f;
    p = p * z + 1.0f / 3.0f;
    return most + 2.0f * (w + w * z * p);
}

// One token's probabilities and their logarithms.
struct Outcome {
    Floats t, log_t, s, log_s;
};

// What a token adds to the divergence, and the slope by its log-probability. Any multiple of s may be added to the slope, as
// the one by the logits stays the same; it is chosen so that where both sides agree nothing is left to cancel.
struct Part {
    Floats value, slope;
};

struct Forward {
    Part operator()(const Outcome& o) const { return {product(o.t, o.log_t - o.log_s), -o.t}; }
};

struct Reverse {
    Part operator()(const Outcome& o) const {
        Floats ratio = o.log_s - o.log_t;
        Floats part = product(o.s, ratio);
        return {part, part};
    }
};

struct Mixing {
    float share, rest, log_share, log_rest;
    explicit Mixing(float share) : share(share), rest(1 - share), log_share(std::log(share)), log_rest(std::log1p(-share)) {}
    Floats log_mixture(Floats log_a, Floats log_b) const { return log_of_sum(log_a + log_share, log_b + log_rest); }
};

struct Jensen : Mixing {
    using Mixing::Mixing;
    Part operator()(const Outcome& o) const {
        Floats log_m = log_mixture(o.log_t, o.log_s), pull = rest * product(o.s, o.log_s - log_m);
        return {share * product(o.t, o.log_t - log_m) + pull, pull};
    }
};

struct SkewForward : Mixing {
    using Mixing::Mixing;
    Part operator()(const Outcome& o) const {
        Floats log_m = log_mixture(o.log_t, o.log_s);
        return {product(o.t, o.log_t - log_m), rest * (o.s - product(o.t, power_of_e(o.log_s - log_m)))};
    }
};

struct SkewBackward : Mixing {
    using Mixing::Mixing;
    Part operator()(const Outcome& o) const {
        Floats ratio = o.log_s - log_mixture(o.log_s, o.log_t);
        return {product(o.s, ratio), product(o.s, ratio + share * (1.0f - power_of_e(ratio)))};
    }
};

// One side of a row: logits after cap and temperature, and the powers that the probabilities come of.
struct Side {
    float *logits, *powers;
    float normaliser, scale;

    template <class T>
    void read(const T* z, long width, float cap, float cold) {
        Floats most = all(-INFINITY), sums{};
        for (long i = 0; i < width; i += lanes) {
            Floats l = load_part(z + i, width - i);
            store(logits + i, (cap > 0 ? cap * tanh_of(l / cap) : l) * cold);
            if (width - i < lanes)
                for (long j = width; j < i + lanes; j++) logits[j] = -INFINITY;
            most = larger(load(logits + i), most);
        }
        float top = largest(most);
        for (long i = 0; i < width; i += lanes) {
            Floats e = power_of_e(load(logits + i) - top);
            store(powers + i, e);
            sums += e;
        }
        float total = sum(sums);
        normaliser = top + std::log(total);
        scale = 1.0f / total;
    }
};

struct Setting {
    long width;
    float cap, taught_cap, cold, weight;
};

template <class T, class Divergence>
void row(const T* z, T* taught, float* value, Side student, Side teacher, float* slope, const Setting& set,
         const Divergence& divergence) {
    student.read(z, set.width, set.cap, set.cold);
    teacher.read(taught, set.width, set.taught_cap, set.cold);
    Floats values{}, slopes{};
    for (long i = 0; i < set.width; i += lanes) {
        Part part = divergence({load(teacher.powers + i) * teacher.scale, load(teacher.logits + i) - teacher.normaliser,
                                load(student.powers + i) * student.scale, load(student.logits + i) - student.normaliser});
        store(slope + i, part.slope);
        values += part.value;
        slopes += part.slope;
    }
    float each = set.weight / set.cold, steepness = set.cap > 0 ? 1.0f / (set.cap * set.cap * set.cold * set.cold) : 0.0f;
    *value = sum(values) * each / set.cold;
    float pulled = sum(slopes) * student.scale;
    for (long i = 0; i < set.width; i += lanes) {
        Floats d = (load(slope + i) - load(student.powers + i) * pulled) * each;
        if (set.cap > 0) {
            Floats l = load(student.logits + i);
            d *= 1.0f - l * l * steepness;
        }
        store_part(taught + i, d, set.width - i);
    }
}

template <class T, class Divergence>
void rows(const T* z, T* taught, float* value, long count, const Setting& set, const Divergence& divergence) {
#pragma omp parallel
    {
        long held = (set.width + 2 * lanes) & ~(long)(lanes - 1);
        Scratch<float> memory(5 * held);
        float* at = memory.data();
        Side student{at, at + held, 0, 0}, teacher{at + 2 * held, at + 3 * held, 0, 0};
#pragma omp for schedule(static)
        for (long n = 0; n < count; n++)
            row(z + n * set.width, taught + n * set.width, value + n, student, teacher, at + 4 * held, set, divergence);
    }
}

template <class T>
void every(const T* z, T* taught, float* value, long count, const Setting& set, int kind, float share) {
    switch (kind) {
        case 0: return rows(z, taught, value, count, set, Forward());
        case 1: return rows(z, taught, value, count, set, Reverse());
        case 2: return rows(z, taught, value, count, set, Jensen(share));
        case 3: return rows(z, taught, value, count, set, SkewForward(share));
        default: return rows(z, taught, value, count, set, SkewBackward(share));
    }
}

}  // namespace

// z, taught: (count, width), the latter overwritten by the slope. Caps: 0 for none. kind: place in naive.KINDS.
FAIRWAY_EXPORT(divergence)
(const void* z, void* taught, float* value, long count, long width, float cap, float taught_cap, float cold, float weight,
 int kind, float share, int half) {
    Setting set{width, cap, taught_cap, cold, weight};
    if (half)
        every((const Bfloat*)z, (Bfloat*)taught, value, count, set, kind, share);
    else
        every((const float*)z, (float*)taught, value, count, set, kind, share);
}
