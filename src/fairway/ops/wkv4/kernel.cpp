// The weighted key-value average of RWKV-4, forward and backward: see naive.py for the definition.
//
// Lanes are channels, which never meet. Sums are kept at the starts of spans of tokens only; the backward pass computes those
// between again.
//
// k, v, y and their gradients are (batch, time, channels), w and u (channels), carried numerators, denominators and maxima
// (batch, channels); `firsts` is (batch, spans, 3, channels).

#include "../kernel/point.h"
#include "../kernel/scratch.h"

namespace {

constexpr long span = 32, ahead = 8;
constexpr float nothing_seen = -1e38f;

struct Sizes {
    long batch, time, channels;
    long spans() const { return (time + span - 1) / span; }
};

// The weights e^a and e^b, both over the larger of the two.
struct Pair {
    Floats past, now, top;
    Pair(Floats a, Floats b) {
        Ints first = a > b;
        top = select(first, a, b);
        Floats less = power_of_e(select(first, b - a, a - b));
        past = select(first, all(1.0f), less);
        now = select(first, less, all(1.0f));
    }
};

struct Sums {
    Floats numerator, denominator, maximum;

    void clear() {
        numerator = denominator = Floats{};
        maximum = all(nothing_seen);
    }
    void load_from(const float* p, long apart, long count) {
        numerator = load_part(p, count);
        denominator = load_part(p + apart, count);
        maximum = load_part(p + 2 * apart, count);
    }
    void store_to(float* p, long apart, long count) const {
        store_part(p, numerator, count);
        store_part(p + apart, denominator, count);
        store_part(p + 2 * apart, maximum, count);
    }
    void add(const Pair& weights, Floats v) {
        numerator = weights.past * numerator + weights.now * v;
        denominator = weights.past * denominator + weights.now;
        maximum = weights.top;
    }
};

// Rows lie too far apart for the processor to guess the next one. Never faults, also behind the end.
inline void fetch(const void* p) { __builtin_prefetch(p); }

void forward(const float* k, const float* v, const float* w, const float* u, const float* const* state, const bool* starts,
             float* y, float* const* last, float* firsts, Sizes s) {
    long blocks = (s.channels + lanes - 1) / lanes;
#pragma omp parallel for collapse(2) schedule(static)
    for (long b = 0; b < s.batch; b++)
        for (long block = 0; block < blocks; block++) {
            long d = block * lanes, count = s.channels - d, carried = b * s.channels + d;
            Floats decay = load_part(w + d, count), bonus = load_part(u + d, count);
            Sums h{load_part(state[0] + carried, count), load_part(state[1] + carried, count),
                   load_part(state[2] + carried, count)};
            for (long t = 0; t < s.time; t++) {
                if (t % span == 0) h.store_to(firsts + (b * s.spans() + t / span) * 3 * s.channels + d, s.channels, count);
                if (starts && starts[b * s.time + t]) h.clear();
                long at = (b * s.time + t) * s.channels + d;
                fetch(k + at + ahead * s.channels);
                fetch(v + at + ahead * s.channels);
                fetch(y + at + ahead * s.channels);
                Floats key = load_part(k + at, count), value = load_part(v + at, count);
                Pair seen(h.maximum, bonus + key);
                Floats above = seen.past * h.numerator + seen.now * value;
                store_part(y + at, above / (seen.past * h.denominator + seen.now), count);
                h.add(Pair(h.maximum - decay, key), value);
            }
            store_part(last[0] + carried, h.numerator, count);
            store_part(last[1] + carried, h.denominator, count);
            store_part(last[2] + carried, h.maximum, count);
        }
}

struct Gradients {
    float *k, *v, *w, *u, *numerator, *denominator;
};

// One span of one block of channels, backwards. `flow` holds the gradients by numerator and denominator behind the span and
// then those before it, `along` gathers those by w and u. The maximum is a constant (see naive.py).
void span_back(const float* k, const float* v, const float* dy, const bool* starts, Sums h, Floats decay, Floats bonus,
               Floats* flow, Floats* along, float* by_k, float* by_v, long length, long channels, long count) {
    Sums before[span];
    for (long i = 0; i < length; i++) {
        fetch(k + i * channels + lanes);
        fetch(v + i * channels + lanes);
        fetch(dy + i * channels + lanes);
        if (starts && starts[i]) h.clear();
        before[i] = h;
        h.add(Pair(h.maximum - decay, load_part(k + i * channels, count)), load_part(v + i * channels, count));
    }
    for (long i = length - 1; i >= 0; i--) {
        const Sums& b = before[i];
        Floats key = load_part(k + i * channels, count), value = load_part(v + i * channels, count);
        Pair seen(b.maximum, bonus + key), kept(b.maximum - decay, key);
        Floats below = seen.past * b.denominator + seen.now, y = (seen.past * b.numerator + seen.now * value) / below;
        Floats by_above = load_part(dy + i * channels, count) / below, by_below = -by_above * y;
        Floats by_now = (by_above * value + by_below) * seen.now;
        Floats by_key = (flow[0] * value + flow[1]) * kept.now;
        along[0] -= (flow[0] * b.numerator + flow[1] * b.denominator) * kept.past;
        along[1] += by_now;
        store_part(by_k + i * channels, by_now + by_key, count);
        store_part(by_v + i * channels, by_above * seen.now + flow[0] * kept.now, count);
        flow[0] = flow[0] * kept.past + by_above * seen.past;
        flow[1] = flow[1] * kept.past + by_below * seen.past;
        if (starts && starts[i]) flow[0] = flow[1] = Floats{};
    }
}

void backward(const float* dy, const float* const* dlast, const float* k, const float* v, const float* w, const float* u,
              const float* firsts, const bool* starts, Gradients out, Sizes s) {
    long blocks = (s.channels + lanes - 1) / lanes;
#pragma omp parallel for collapse(2) schedule(static)
    for (long b = 0; b < s.batch; b++)
        for (long block = 0; block < blocks; block++) {
            long d = block * lanes, count = s.channels - d, carried = b * s.channels + d;
            Floats decay = load_part(w + d, count), bonus = load_part(u + d, count), along[2] = {};
            Floats flow[2] = {load_part(dlast[0] + carried, count), load_part(dlast[1] + carried, count)};
            for (long piece = s.spans() - 1; piece >= 0; piece--) {
                long begin = piece * span, length = begin + span < s.time ? span : s.time - begin;
                long at = (b * s.time + begin) * s.channels + d;
                Sums first;
                first.load_from(firsts + (b * s.spans() + piece) * 3 * s.channels + d, s.channels, count);
                span_back(k + at, v + at, dy + at, starts ? starts + b * s.time + begin : nullptr, first, decay, bonus, flow,
                          along, out.k + at, out.v + at, length, s.channels, count);
            }
            store_part(out.w + carried, along[0], count);
            store_part(out.u + carried, along[1], count);
            store_part(out.numerator + carried, flow[0], count);
            store_part(out.denominator + carried, flow[1], count);
        }
}

}  // namespace

// sizes: batch, time, channels. starts may be null.
FAIRWAY_EXPORT(wkv4_forward)
(const float* k, const float* v, const float* w, const float* u, const float* numerator, const float* denominator,
 const float* maximum, const bool* starts, float* y, float* last_numerator, float* last_denominator, float* last_maximum,
 float* firsts, const long* sizes) {
    const float* state[3] = {numerator, denominator, maximum};
    float* const last[3] = {last_numerator, last_denominator, last_maximum};
    forward(k, v, w, u, state, starts, y, last, firsts, {sizes[0], sizes[1], sizes[2]});
}

// by_w and by_u are (batch, channels).
FAIRWAY_EXPORT(wkv4_backward)
(const float* dy, const float* by_last_numerator, const float* by_last_denominator, const float* k, const float* v,
 const float* w, const float* u, const float* firsts, const bool* starts, float* by_k, float* by_v, float* by_w, float* by_u,
 float* by_numerator, float* by_denominator, const long* sizes) {
    const float* dlast[2] = {by_last_numerator, by_last_denominator};
    backward(dy, dlast, k, v, w, u, firsts, starts, {by_k, by_v, by_w, by_u, by_numerator, by_denominator},
             {sizes[0], sizes[1], sizes[2]});
}
