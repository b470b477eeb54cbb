// The selective state space, forward and backward: see naive.py for the definition.
//
// Lanes are channels: nothing is summed across lanes but the gradients by B and C. No state is stored except the one at the
// start of each span of tokens; the backward pass computes the others again from it.
//
// x, delta, y and their gradients are (batch, time, channels), B and C (batch, time, states), A (channels, states), a carried
// state (batch, channels, states); `firsts` is (batch, spans, states, channels).

#include "../kernel/point.h"
#include "../kernel/scratch.h"

namespace {

constexpr long span = 16;
constexpr long ahead = 8;
constexpr float log2e = 1.44269504088896341f;

struct Sizes {
    long batch, time, channels, states, groups;
};

// Rows lie too far apart for the processor to guess the next one. Never faults, also behind the end.
inline void fetch(const void* p) { __builtin_prefetch(p); }

// Rows of `states` numbers, one for each of up to `lanes` channels, as one vector for each state, filled up with `rest`.
inline void gather(const float* rows, float* vectors, long states, long count, float rest) {
    for (long n = 0; n < states; n++)
        for (long j = 0; j < lanes; j++) vectors[n * lanes + j] = j < count ? rows[j * states + n] : rest;
}

inline void scatter(const float* vectors, float* rows, long states, long count) {
    for (long n = 0; n < states; n++)
        for (long j = 0; j < lanes && j < count; j++) rows[j * states + n] = vectors[n * lanes + j];
}

// `rate` is A log2(e).
inline Floats decay_of(Floats delta, Floats rate) { return exponential2(delta * rate); }

// What the input is multiplied by: Delta, or (e^(Delta A) - 1) / A under a zero-order hold.
template <bool hold>
inline Floats gain_of(Floats delta, Floats A) {
    return hold ? exponential_minus_one(delta * A) / A : delta;
}

template <bool hold>
void forward(const float* x, const float* delta, const float* A, const float* B, const float* C, const float* skip,
             const float* state, const bool* starts, float* y, float* last, float* firsts, Sizes s) {
    long blocks = (s.channels + lanes - 1) / lanes, spans = (s.time + span - 1) / span;
#pragma omp parallel for collapse(2) schedule(static)
    for (long b = 0; b < s.batch; b++)
        for (long block = 0; block < blocks; block++) {
            Scratch<float> held(3 * s.states * lanes);
            float *h = held.data(), *a = h + s.states * lanes, *rates = a + s.states * lanes;
            long d = block * lanes, count = s.channels - d;
            gather(A + d * s.states, a, s.states, count, -1.0f);
            for (long n = 0; n < s.states * lanes; n += lanes) store(rates + n, load(a + n) * log2e);
            gather(state + (b * s.channels + d) * s.states, h, s.states, count, 0.0f);
            Floats through = skip ? load_part(skip + d, count) : Floats{};
            for (long t = 0; t < s.time; t++) {
                if (t % span == 0)
                    for (long n = 0; n < s.states; n++)
                        store_part(firsts + ((b * spans + t / span) * s.states + n) * s.channels + d,
                                   load(h + n * lanes), count);
                if (starts && starts[b * s.time + t]) std::memset(h, 0, (size_t)(s.states * lanes) * sizeof(float));
                long at = (b * s.time + t) * s.channels + d;
                const float *write = B + (b * s.time + t) * s.states, *read = C + (b * s.time + t) * s.states;
                fetch(delta + at + ahead * s.channels);
                fetch(x + at + ahead * s.channels);
                fetch(y + at + ahead * s.channels);
                Floats step = load_part(delta + at, count), input = load_part(x + at, count), out = through * input;
                Floats gained = step * input;
                for (long n = 0; n < s.states; n++) {
                    Floats written = hold ? gain_of<hold>(step, load(a + n * lanes)) * input : gained;
                    Floats next = load(h + n * lanes) * decay_of(step, load(rates + n * lanes)) + written * write[n];
                    store(h + n * lanes, next);
                    out += next * read[n];
                }
                store_part(y + at, out, count);
            }
            scatter(h, last + (b * s.channels + d) * s.states, s.states, count);
        }
}

struct Gradients {
    float *x, *delta, *A, *B, *C, *skip, *state;
};

// One span of one block of channels, backwards: what a token brings, and the sums that become its gradients.
struct Span {
    long length, states, channels, count;
    const float *a, *B, *C;  // B and C from the span's first token on
    const bool* starts;      // the same, or null
    const float* first;
    float *flow, *dA, *dB, *dC;  // `flow` is the gradient by the state behind and becomes that by the state before
    Floats step[span], input[span], up[span], reached[span], by_delta[span];

    // States from the n-th on, so many side by side, to fill the time that each waits for itself.
    template <bool hold, int many>
    void through(long n) {
        Floats An[many], rate[many], g[many], along[many], after[span + 1][many], decay[span][many], gain[span][many];
        for (int j = 0; j < many; j++) {
            An[j] = load(a + (n + j) * lanes);
            rate[j] = An[j] * log2e;
            g[j] = load(flow + (n + j) * lanes);
            along[j] = load(dA + (n + j) * lanes);
            after[0][j] = load_part(first + (n + j) * channels, count);
        }
        for (long i = 0; i < length; i++)
            for (int j = 0; j < many; j++) {
                decay[i][j] = decay_of(step[i], rate[j]);
                if (hold) gain[i][j] = gain_of<hold>(step[i], An[j]);
                Floats write = (hold ? gain[i][j] * input[i] : input[i]) * B[i * states + n + j];
                after[i + 1][j] = starts && starts[i] ? write : after[i][j] * decay[i][j] + write;
            }
        for (long i = length - 1; i >= 0; i--) {
            bool cut = starts && starts[i];
            Floats by_write = reached[i], by_step = by_delta[i];
            for (int j = 0; j < many; j++) {
                float *sum_B = dB + (i * states + n + j) * lanes, *sum_C = dC + (i * states + n + j) * lanes;
                float write = B[i * states + n + j];
                g[j] += up[i] * C[i * states + n + j];
                store(sum_C, load(sum_C) + up[i] * after[i + 1][j]);
                store(sum_B, load(sum_B) + (hold ? g[j] * gain[i][j] : g[j]) * input[i]);
                by_write += (hold ? g[j] * gain[i][j] : g[j]) * write;
                Floats passed = cut ? Floats{} : g[j] * decay[i][j], exponent = cut ? Floats{} : passed * after[i][j];
                if (hold) {
                    Floats by_gain = g[j] * input[i] * write / An[j];
                    along[j] -= by_gain * gain[i][j];
                    exponent += by_gain * decay[i][j];
                }
                along[j] += exponent * step[i];
                by_step += exponent * An[j];
                g[j] = passed;
            }
            reached[i] = by_write;
            by_delta[i] = by_step;
        }
        for (int j = 0; j < many; j++) {
            store(flow + (n + j) * lanes, g[j]);
            store(dA + (n + j) * lanes, along[j]);
        }
    }
};

// `flow` is the gradient by the state behind the span and becomes that by the state before it. `dB` and `dC` are (span,
// states, lanes) sums.
template <bool hold>
void span_backward(const float* a, const float* const* rows, long count, long width, long begin, long end, long states,
                   const float* B, const float* C, const bool* starts, const float* first, long channels, float* flow,
                   float* dA, float* dB, float* dC, Floats* by_x, Floats* by_delta) {
    const float *x = rows[0], *delta = rows[1], *dy = rows[2];
    Span s{end - begin, states, channels, count, a, B + begin * states, C + begin * states,
           starts ? starts + begin : nullptr, first, flow, dA, dB, dC, {}, {}, {}, {}, {}};
    for (long i = 0; i < s.length; i++) {
        long at = (begin + i) * width;
        fetch(delta + at + lanes);
        fetch(dy + at + lanes);
        fetch(x + at + lanes);
        s.step[i] = load_part(delta + at, count);
        s.up[i] = load_part(dy + at, count);
        s.input[i] = load_part(x + at, count) * (hold ? all(1.0f) : s.step[i]);
    }
    long n = 0;
    for (; n + 2 <= states; n += 2) s.template through<hold, 2>(n);
    if (n < states) s.template through<hold, 1>(n);
    for (long i = 0; i < s.length; i++) {
        by_x[i] = hold ? s.reached[i] : s.reached[i] * s.step[i];
        by_delta[i] = s.by_delta[i];
        if (!hold) by_delta[i] += s.reached[i] * load_part(x + (begin + i) * width, count);
    }
}

// Channels are cut into groups, each with its own share of the gradients by B and C: (groups, batch, time, states).
template <bool hold>
void backward(const float* dy, const float* dlast, const float* x, const float* delta, const float* A, const float* B,
              const float* C, const float* skip, const float* firsts, const bool* starts, Gradients out, Sizes s) {
    long blocks = (s.channels + lanes - 1) / lanes, spans = (s.time + span - 1) / span, tile = s.states * lanes;
#pragma omp parallel for collapse(2) schedule(static)
    for (long b = 0; b < s.batch; b++)
        for (long group = 0; group < s.groups; group++) {
            long from = group * blocks / s.groups, to = (group + 1) * blocks / s.groups;
            Scratch<float> held((2 * span + 3 * (to - from)) * tile);
            float *dB = held.data(), *dC = dB + span * tile, *a = dC + span * tile;
            float *flow = a + (to - from) * tile, *dA = flow + (to - from) * tile;
            for (long block = from; block < to; block++) {
                long d = block * lanes, count = s.channels - d;
                gather(A + d * s.states, a + (block - from) * tile, s.states, count, -1.0f);
                gather(dlast + (b * s.channels + d) * s.states, flow + (block - from) * tile, s.states, count, 0.0f);
            }
            for (long piece = spans - 1; piece >= 0; piece--) {
                long begin = piece * span, end = begin + span < s.time ? begin + span : s.time;
                std::memset(dB, 0, (size_t)(2 * span * tile) * sizeof(float));
                for (long block = from; block < to; block++) {
                    long d = block * lanes, count = s.channels - d, row = b * s.time * s.channels + d;
                    const float* rows[3] = {x + row, delta + row, dy + row};
                    Floats by_x[span] = {}, by_delta[span] = {};
                    float* own = dA + (block - from) * tile;
                    span_backward<hold>(a + (block - from) * tile, rows, count, s.channels, begin, end, s.states,
                                        B + b * s.time * s.states, C + b * s.time * s.states,
                                        starts ? starts + b * s.time : nullptr,
                                        firsts + (b * spans + piece) * s.states * s.channels + d, s.channels,
                                        flow + (block - from) * tile, own, dB, dC, by_x, by_delta);
                    Floats through = skip ? load_part(skip + d, count) : Floats{}, by_skip{};
                    for (long t = begin; t < end; t++) {
                        Floats up = load_part(rows[2] + t * s.channels, count);
                        by_skip += up * load_part(rows[0] + t * s.channels, count);
                        fetch(out.x + row + t * s.channels + lanes);
                        fetch(out.delta + row + t * s.channels + lanes);
                        store_part(out.x + row + t * s.channels, by_x[t - begin] + up * through, count);
                        store_part(out.delta + row + t * s.channels, by_delta[t - begin], count);
                    }
                    float* to_skip = out.skip + b * s.channels + d;
                    store_part(to_skip, load_part(to_skip, count) + by_skip, count);
                }
                for (long i = 0; i < (end - begin) * s.states; i++) {
                    long at = ((group * s.batch + b) * s.time + begin) * s.states + i;
                    out.B[at] = total(load(dB + i * lanes));
                    out.C[at] = total(load(dC + i * lanes));
                }
            }
            for (long block = from; block < to; block++) {
                long at = (b * s.channels + block * lanes) * s.states, count = s.channels - block * lanes;
                scatter(dA + (block - from) * tile, out.A + at, s.states, count);
                scatter(flow + (block - from) * tile, out.state + at, s.states, count);
            }
        }
}

}  // namespace

// sizes: batch, time, channels, states. starts may be null; hold: 1 for the zero-order hold, 0 for Euler.
FAIRWAY_EXPORT(selective_scan_forward)
(const float* x, const float* delta, const float* A, const float* B, const float* C, const float* skip, const float* state,
 const bool* starts, float* y, float* last, float* firsts, const long* sizes, int hold) {
    Sizes s{sizes[0], sizes[1], sizes[2], sizes[3], 1};
    (hold ? forward<true> : forward<false>)(x, delta, A, B, C, skip, state, starts, y, last, firsts, s);
}

// sizes: batch, time, channels, states, groups. by_A (batch, channels, states), by_B and by_C (groups, batch, time, states),
// by_skip (batch, channels) zeros.
FAIRWAY_EXPORT(selective_scan_backward)
(const float* dy, const float* dlast, const float* x, const float* delta, const float* A, const float* B, const float* C,
 const float* skip, const float* firsts, const bool* starts, float* by_x, float* by_delta, float* by_A, float* by_B,
 float* by_C, float* by_skip, float* by_state, const long* sizes, int hold) {
    Sizes s{sizes[0], sizes[1], sizes[2], sizes[3], sizes[4]};
    Gradients out{by_x, by_delta, by_A, by_B, by_C, by_skip, by_state};
    (hold ? backward<true> : backward<false>)(dy, dlast, x, delta, A, B, C, skip, firsts, starts, out, s);
}
