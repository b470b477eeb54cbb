// Gated linear attention, forward and backward: see naive.py for the definition.
//
// Rows of the state (one for each key feature) do not touch each other until they are read, so a row is carried through a
// whole span of tokens while it stays in registers and the nearest cache. States are kept at the starts of spans only.
//
// q, k and logarithms of decays are (batch, time, heads, keys), v is (batch, time, heads, values), a carried state (batch,
// heads, keys, values), `firsts` (batch, heads, spans, keys, values).

#include "../kernel/point.h"
#include "../kernel/scratch.h"

namespace {

constexpr long span = 32;

struct Sizes {
    long batch, time, heads, keys, values;
    long padded() const { return (values + lanes - 1) / lanes * lanes; }
    long spans() const { return (time + span - 1) / span; }
    // Rows of working copies are an odd number of cache lines long, so that a column does not fall into few cache sets.
    long row() const { return (keys + 15) / 32 * 32 + 16; }
};

template <int count>
struct Order {
    Ints even, odd;
    Order() {
        for (int i = 0; i < count; i++) {
            even[i] = 2 * i;
            odd[i] = 2 * i + 1;
        }
    }
};

// The sum of each of `lanes` vectors, as one vector; the vectors are overwritten.
inline Floats sums_of(Floats* v) {
    const Order<lanes> order;
    for (int left = lanes; left > 1; left /= 2)
        for (int i = 0; i < left / 2; i++)
            v[i] = __builtin_shuffle(v[2 * i], v[2 * i + 1], order.even) +
                   __builtin_shuffle(v[2 * i], v[2 * i + 1], order.odd);
    return v[0];
}

// e^decay for each token of a span and each key; 0 where a document begins.
void decays_of(const float* log_decay, const bool* starts, float* decay, long length, long stride, const Sizes& s) {
    for (long i = 0; i < length; i++) {
        bool cut = starts && starts[i];
        for (long n = 0; n < s.keys; n += lanes) {
            Floats a = power_of_e(load_part(log_decay + i * stride + n, s.keys - n));
            store_part(decay + i * s.row() + n, cut ? Floats{} : a, s.keys - n);
        }
    }
}

// Rows of a span into vectors of full width, zeros behind the last value.
void widen(const float* from, float* to, long length, long row, const Sizes& s) {
    for (long i = 0; i < length; i++)
        for (long n = 0; n < s.padded(); n += lanes)
            store(to + i * s.padded() + n, load_part(from + i * row + n, s.values - n));
}

// The rows of a state between memory and vectors of full width.
void state_in(const float* from, float* to, const Sizes& s) {
    for (long n = 0; n < s.keys; n++) std::memcpy(to + n * s.padded(), from + n * s.values, 4 * (size_t)s.values);
}

void state_out(const float* from, float* to, const Sizes& s) {
    for (long n = 0; n < s.keys; n++) std::memcpy(to + n * s.values, from + n * s.padded(), 4 * (size_t)s.values);
}

// Rows of keys or queries, side by side.
void pack(const float* from, float* to, long length, long stride, const Sizes& s) {
    for (long i = 0; i < length; i++) std::memcpy(to + i * s.row(), from + i * stride, 4 * (size_t)s.keys);
}

// One row of the state through a span, `wide` vectors of it; adds what is read to `out`.
template <int wide>
void row_forward(const float* q, const float* k, const float* decay, long row, const bool* starts, const float* v, float* h,
                 float* out, long length, long padded) {
    Floats state[wide];
    for (int j = 0; j < wide; j++) state[j] = load(h + j * lanes);
    for (long i = 0; i < length; i++) {
        float a = decay[i * row], key = k[i * row], query = q[i * row];
        bool cut = starts && starts[i];
        for (int j = 0; j < wide; j++) {
            Floats write = load(v + i * padded + j * lanes) * key;
            state[j] = cut ? write : state[j] * a + write;
            float* to = out + i * padded + j * lanes;
            store(to, load(to) + state[j] * query);
        }
    }
    for (int j = 0; j < wide; j++) store(h + j * lanes, state[j]);
}

void forward(const float* q, const float* k, const float* v, const float* log_decay, const float* state, const bool* starts,
             float* y, float* last, float* firsts, Sizes s) {
    long padded = s.padded(), tile = s.keys * padded;
#pragma omp parallel for collapse(2) schedule(static)
    for (long b = 0; b < s.batch; b++)
        for (long h = 0; h < s.heads; h++) {
            Scratch<float> room(tile + span * (2 * padded + 3 * s.row()));
            float *S = room.data(), *wide_v = S + tile, *out = wide_v + span * padded, *decay = out + span * padded;
            float *query = decay + span * s.row(), *key = query + span * s.row();
            long carried = (b * s.heads + h) * s.keys * s.values, q_row = s.heads * s.keys, v_row = s.heads * s.values;
            state_in(state + carried, S, s);
            for (long begin = 0; begin < s.time; begin += span) {
                long length = begin + span < s.time ? span : s.time - begin, at = b * s.time + begin;
                const bool* from = starts ? starts + at : nullptr;
                state_out(S, firsts + ((b * s.heads + h) * s.spans() + begin / span) * s.keys * s.values, s);
                decays_of(log_decay + (at * s.heads + h) * s.keys, from, decay, length, q_row, s);
                widen(v + at * v_row + h * s.values, wide_v, length, v_row, s);
                std::memset(out, 0, 4 * (size_t)(span * padded));
                pack(q + (at * s.heads + h) * s.keys, query, length, q_row, s);
                pack(k + (at * s.heads + h) * s.keys, key, length, q_row, s);
                for (long n = 0; n < s.keys; n++) {
                    long c = 0;
                    for (; c + 4 * lanes <= padded; c += 4 * lanes)
                        row_forward<4>(query + n, key + n, decay + n, s.row(), from, wide_v + c, S + n * padded + c, out + c,
                                       length, padded);
                    for (; c < padded; c += lanes)
                        row_forward<1>(query + n, key + n, decay + n, s.row(), from, wide_v + c, S + n * padded + c, out + c,
                                       length, padded);
                }
                for (long i = 0; i < length; i++)
                    std::memcpy(y + (at + i) * v_row + h * s.values, out + i * padded, 4 * (size_t)s.values);
            }
            state_out(S, last + carried, s);
        }
}

// One row of the state through a span, backwards. `flow` is the gradient by the row behind the span and becomes that by the
// row before it; `dv` gathers the gradient by v, and `by` the gradients by query, key and decay, still spread over the lanes.
template <int wide>
void row_backward(const float* q, const float* k, const float* decay, long row, const bool* starts, const float* v,
                  const float* dy, const float* first, float* flow, float* dv, Floats (*by)[span], long length, long padded) {
    Floats after[span + 1][wide], g[wide];
    for (int j = 0; j < wide; j++) {
        after[0][j] = load(first + j * lanes);
        g[j] = load(flow + j * lanes);
    }
    for (long i = 0; i < length; i++)
        for (int j = 0; j < wide; j++) {
            Floats write = load(v + i * padded + j * lanes) * k[i * row];
            after[i + 1][j] = starts && starts[i] ? write : after[i][j] * decay[i * row] + write;
        }
    for (long i = length - 1; i >= 0; i--) {
        float a = decay[i * row], key = k[i * row], query = q[i * row];
        bool cut = starts && starts[i];
        Floats by_query{}, by_key{}, by_decay{};
        for (int j = 0; j < wide; j++) {
            Floats up = load(dy + i * padded + j * lanes);
            float* to = dv + i * padded + j * lanes;
            by_query += up * after[i + 1][j];
            g[j] += up * query;
            by_key += g[j] * load(v + i * padded + j * lanes);
            store(to, load(to) + g[j] * key);
            g[j] = cut ? Floats{} : g[j] * a;
            if (!cut) by_decay += g[j] * after[i][j];
        }
        by[0][i] += by_query;
        by[1][i] += by_key;
        by[2][i] += by_decay;
    }
    for (int j = 0; j < wide; j++) store(flow + j * lanes, g[j]);
}

struct Gradients {
    float *q, *k, *v, *decay, *state;
};

// Sums over the lanes, written for each token of a span at a distance of `row`; `by` is overwritten.
void spread(Floats* by, float* to, long length, long row) {
    for (long i = 0; i < length; i += lanes) {
        Floats sums = sums_of(by + i);
        for (long j = 0; j < lanes && i + j < length; j++) to[(i + j) * row] = sums[j];
    }
}

void backward(const float* dy, const float* dlast, const float* q, const float* k, const float* v, const float* log_decay,
              const float* firsts, const bool* starts, Gradients out, Sizes s) {
    long padded = s.padded(), tile = s.keys * padded;
#pragma omp parallel for collapse(2) schedule(static)
    for (long b = 0; b < s.batch; b++)
        for (long h = 0; h < s.heads; h++) {
            Scratch<float> room(2 * tile + span * (3 * padded + 6 * s.row()));
            float *flow = room.data(), *first = flow + tile, *wide_v = first + tile, *wide_dy = wide_v + span * padded;
            float *dv = wide_dy + span * padded, *decay = dv + span * padded, *query = decay + span * s.row();
            float *key = query + span * s.row(), *by_query = key + span * s.row(), *by_key = by_query + span * s.row();
            float* by_decay = by_key + span * s.row();
            long carried = (b * s.heads + h) * s.keys * s.values, q_row = s.heads * s.keys, v_row = s.heads * s.values;
            state_in(dlast + carried, flow, s);
            for (long piece = s.spans() - 1; piece >= 0; piece--) {
                long begin = piece * span, length = begin + span < s.time ? span : s.time - begin, at = b * s.time + begin;
                const bool* from = starts ? starts + at : nullptr;
                state_in(firsts + ((b * s.heads + h) * s.spans() + piece) * s.keys * s.values, first, s);
                decays_of(log_decay + (at * s.heads + h) * s.keys, from, decay, length, q_row, s);
                widen(v + at * v_row + h * s.values, wide_v, length, v_row, s);
                widen(dy + at * v_row + h * s.values, wide_dy, length, v_row, s);
                std::memset(dv, 0, 4 * (size_t)(span * padded));
                pack(q + (at * s.heads + h) * s.keys, query, length, q_row, s);
                pack(k + (at * s.heads + h) * s.keys, key, length, q_row, s);
                Floats by[3][span];
                for (long n = 0; n < s.keys; n++) {
                    std::memset(by, 0, sizeof by);
                    long c = 0;
                    for (; c + 4 * lanes <= padded; c += 4 * lanes)
                        row_backward<4>(query + n, key + n, decay + n, s.row(), from, wide_v + c, wide_dy + c,
                                        first + n * padded + c, flow + n * padded + c, dv + c, by, length, padded);
                    for (; c < padded; c += lanes)
                        row_backward<1>(query + n, key + n, decay + n, s.row(), from, wide_v + c, wide_dy + c,
                                        first + n * padded + c, flow + n * padded + c, dv + c, by, length, padded);
                    spread(by[0], by_query + n, length, s.row());
                    spread(by[1], by_key + n, length, s.row());
                    spread(by[2], by_decay + n, length, s.row());
                }
                for (long i = 0; i < length; i++) {
                    long head = (at + i) * s.heads + h;
                    std::memcpy(out.v + head * s.values, dv + i * padded, 4 * (size_t)s.values);
                    std::memcpy(out.q + head * s.keys, by_query + i * s.row(), 4 * (size_t)s.keys);
                    std::memcpy(out.k + head * s.keys, by_key + i * s.row(), 4 * (size_t)s.keys);
                    std::memcpy(out.decay + head * s.keys, by_decay + i * s.row(), 4 * (size_t)s.keys);
                }
            }
            state_out(flow, out.state + carried, s);
        }
}

Sizes sizes_of(const long* n) { return {n[0], n[1], n[2], n[3], n[4]}; }

}  // namespace

// sizes: batch, time, heads, keys, values. starts may be null.
FAIRWAY_EXPORT(gla_forward)
(const float* q, const float* k, const float* v, const float* log_decay, const float* state, const bool* starts, float* y,
 float* last, float* firsts, const long* sizes) {
    forward(q, k, v, log_decay, state, starts, y, last, firsts, sizes_of(sizes));
}

FAIRWAY_EXPORT(gla_backward)
(const float* dy, const float* dlast, const float* q, const float* k, const float* v, const float* log_decay,
 const float* firsts, const bool* starts, float* by_q, float* by_k, float* by_v, float* by_decay, float* by_state,
 const long* sizes) {
    backward(dy, dlast, q, k, v, log_decay, firsts, starts, {by_q, by_k, by_v, by_decay, by_state}, sizes_of(sizes));
}
