// Linear recurrences over outer products with one decay for a head and token, forward and backward: the state space of
// Mamba-2 by its definition in naive.py, with queries, keys and values for C, B and Delta x.
//
// Tokens are taken in pieces of 32. Within a piece they meet as in attention, weighed by the decays between them, and all
// that came before they read from the state: products of small matrices. States are kept at the starts of pieces. A number
// that is none never meets tokens before it nor another document, not even times zero.
//
// q and k are (batch, time, groups, keys), v is (batch, time, heads, values), logarithms of decays (batch, time, heads), a
// carried state (batch, heads, keys, values); value head h reads key group h / (heads / groups). `firsts` is (batch, heads,
// pieces, keys, values).

#include "../kernel/decays.h"
#include "../kernel/product.h"
#include "../kernel/scratch.h"

namespace {

constexpr long piece = 32;

struct Sizes {
    long batch, time, groups, heads, keys, values;
    long key_row() const { return filled(keys); }
    long row() const { return filled(values); }
    long pieces() const { return (time + piece - 1) / piece; }
    long state() const { return key_row() * row(); }
};

struct Inputs {
    const float *q, *k, *v, *log_decay;
    const bool* starts;
};

void scaled(const float* from, float* to, const float* by, long rows, long row) {
    for (long i = 0; i < rows; i++)
        for (long n = 0; n < row; n += lanes) store(to + i * row + n, load(from + i * row + n) * by[i]);
}

// Working copies of one piece.
struct Piece {
    Scratch<float> room;
    float *queries, *keys, *values, *across;
    float* scores;              // of each query with each key, times the decay between them
    float *entering, *leaving;  // queries times the decay up to them, keys times the decay behind them
    Decays<piece> decays;
    long length;

    explicit Piece(const Sizes& s) : room(5 * piece * s.key_row() + 2 * piece * s.row() + piece * piece) {
        queries = room.data();
        keys = queries + piece * s.key_row();
        entering = keys + piece * s.key_row();
        leaving = entering + piece * s.key_row();
        values = leaving + piece * s.key_row();
        across = values + piece * s.row();
        scores = across + piece * (s.row() + s.key_row());
    }

    float whole() const { return decays.entering[length - 1]; }

    void fill(const Inputs& in, const Sizes& s, long b, long h, long begin) {
        length = begin + piece < s.time ? piece : s.time - begin;
        long at = b * s.time + begin, row = s.key_row(), key = (at * s.groups + h / (s.heads / s.groups)) * s.keys;
        decays.fill(in.log_decay + at * s.heads + h, s.heads, in.starts ? in.starts + at : nullptr, length);
        rows_in(in.q + key, s.groups * s.keys, queries, row, length, s.keys);
        rows_in(in.k + key, s.groups * s.keys, keys, row, length, s.keys);
        rows_in(in.v + (at * s.heads + h) * s.values, s.heads * s.values, values, s.row(), length, s.values);
        scaled(queries, entering, decays.entering, length, row);
        scaled(keys, leaving, decays.pair[length - 1], length, row);
        transposed(keys, row, across, piece, piece, row);
        product(queries, row, 1, across, piece, scores, piece, length, s.keys, piece, 0);
        weigh(scores);
    }

    // Times the decay between row and column; zeros where the two do not meet.
    void weigh(float* pairs) const {
        for (long i = 0; i < length; i++)
            for (long j = 0; j < piece; j += lanes) {
                Floats met = load(pairs + i * piece + j) * load(decays.pair[i] + j);
                Ints place = counting() + (int)j, meets = (place >= (int)decays.first[i]) & (place <= (int)i);
                store(pairs + i * piece + j, select(meets, met, Floats{}));
            }
    }

    // What the state gives.
    void read(const float* S, float* out, const Sizes& s) const {
        long row = s.row(), reached = 0;
        while (reached < length && !decays.first[reached] && !decays.cut[reached]) reached++;
        product(entering, s.key_row(), 1, S, row, out, row, reached, s.keys, row, 0);
        std::memset(out + reached * row, 0, 4 * (size_t)((length - reached) * row));
    }

    // Values weighed by the scores; row by row where a value is no number.
    void meet(float* out, long row) const {
        Floats nothing{};
        for (long n = 0; n < length * row; n += lanes) nothing += load(values + n) * 0.0f;
        if (total(nothing) == 0) return product(scores, piece, 1, values, row, out, row, length, length, row, 1);
        for (long i = 0; i < length; i++) {
            long first = decays.first[i];
            product(scores + i * piece + first, piece, 1, values + first * row, row, out + i * row, row, 1, i + 1 - first, row, 1);
        }
    }

    // The state behind the piece.
    void advance(float* S, const Sizes& s) const {
        long row = s.row(), j = decays.first[length - 1];
        product(leaving + j * s.key_row(), 1, s.key_row(), values + j * row, row, S, row, s.keys, length - j, row, whole());
    }
};

void forward(const Inputs& in, const float* state, float* y, float* last, float* firsts, Sizes s) {
#pragma omp parallel for collapse(2) schedule(static)
    for (long b = 0; b < s.batch; b++)
        for (long h = 0; h < s.heads; h++) {
            Scratch<float> room(s.state() + piece * s.row());
            float *S = room.data(), *out = S + s.state();
            Piece p(s);
            long head = b * s.heads + h, cells = s.keys * s.values, row = s.row();
            rows_in(state + head * cells, s.values, S, row, s.keys, s.values);
            for (long n = 0; n < s.pieces(); n++) {
                rows_out(S, row, firsts + (head * s.pieces() + n) * cells, s.values, s.keys, s.values);
                p.fill(in, s, b, h, n * piece);
                p.read(S, out, s);
                p.meet(out, row);
                p.advance(S, s);
                rows_out(out, row, y + ((b * s.time + n * piece) * s.heads + h) * s.values, s.heads * s.values, p.length, s.values);
            }
            rows_out(S, row, last + head * cells, s.values, s.keys, s.values);
        }
}

struct Gradients {
    float *q, *k, *v, *decay, *state;
};

// What the backward pass of a piece works with.
struct Back {
    Scratch<float> room;
    float *S, *flow, *turned;            // the state before; the gradient by the state behind; a transpose
    float *up, *dv, *pairs;              // gradients by outputs, by values and by scores
    float *seen, *kept, *dq, *dk;        // rows of state times `up`, of flow times values; gradients by queries and keys

    explicit Back(const Sizes& s) : room(3 * s.state() + 2 * piece * s.row() + piece * piece + 4 * piece * s.key_row()) {
        S = room.data();
        flow = S + s.state();
        turned = flow + s.state();
        up = turned + s.state();
        dv = up + piece * s.row();
        pairs = dv + piece * s.row();
        seen = pairs + piece * piece;
        kept = seen + piece * s.key_row();
        dq = kept + piece * s.key_row();
        dk = dq + piece * s.key_row();
    }

    // A decay stands between all places from its own on and all before it.
    void decays_back(const Piece& p, const Sizes& s, float* by_decay) const {
        long length = p.length, row = s.key_row();
        float beyond[piece] = {}, entered = p.whole() == 0 ? 0.0f : p.whole() * dot(flow, S, s.state());
        for (long j = 0; j + 1 < length; j++) beyond[j] = dot(p.leaving + j * row, kept + j * row, row);
        for (long i = length - 1; i >= 0; i--) {
            Floats before{};
            for (long j = 0; j < piece; j += lanes) {
                Floats both = load(pairs + i * piece + j) * load(p.scores + i * piece + j);
                store(beyond + j, load(beyond + j) + kept_below(both, i - j));
                before += kept_below(load(beyond + j), i - j);
            }
            entered += dot(p.entering + i * row, seen + i * row, row);
            by_decay[i * s.heads] = p.decays.cut[i] ? 0.0f : entered + total(before);
        }
    }

    void piece_back(Piece& p, const Sizes& s, float* by_decay) {
        long length = p.length, row = s.row(), key_row = s.key_row();
        transposed(p.values, row, p.across, piece, piece, row);
        product(up, row, 1, p.across, piece, pairs, piece, length, s.values, piece, 0);
        transposed(S, row, turned, key_row, key_row, row);
        product(up, row, 1, turned, key_row, seen, key_row, length, s.values, key_row, 0);
        transposed(flow, row, turned, key_row, key_row, row);
        product(p.values, row, 1, turned, key_row, kept, key_row, length, s.values, key_row, 0);
        decays_back(p, s, by_decay);
        p.weigh(pairs);
        product(p.scores, 1, piece, up, row, dv, row, length, length, row, 0);
        product(p.leaving, key_row, 1, flow, row, dv, row, length, s.keys, row, 1);
        scaled(seen, dq, p.decays.entering, length, key_row);
        product(pairs, piece, 1, p.keys, key_row, dq, key_row, length, length, key_row, 1);
        scaled(kept, dk, p.decays.pair[length - 1], length, key_row);
        product(pairs, 1, piece, p.queries, key_row, dk, key_row, length, length, key_row, 1);
        product(p.entering, 1, key_row, up, row, flow, row, s.keys, length, row, p.whole());
    }
};

void backward(const float* dy, const float* dlast, const Inputs& in, const float* firsts, Gradients out, Sizes s) {
#pragma omp parallel for collapse(2) schedule(static)
    for (long b = 0; b < s.batch; b++)
        for (long h = 0; h < s.heads; h++) {
            Piece p(s);
            Back r(s);
            long head = b * s.heads + h, cells = s.keys * s.values, row = s.row();
            rows_in(dlast + head * cells, s.values, r.flow, row, s.keys, s.values);
            for (long n = s.pieces() - 1; n >= 0; n--) {
                long token = (b * s.time + n * piece) * s.heads + h, stride = s.heads * s.values;
                rows_in(firsts + (head * s.pieces() + n) * cells, s.values, r.S, row, s.keys, s.values);
                p.fill(in, s, b, h, n * piece);
                rows_in(dy + token * s.values, stride, r.up, row, p.length, s.values);
                r.piece_back(p, s, out.decay + token);
                rows_out(r.dv, row, out.v + token * s.values, stride, p.length, s.values);
                rows_out(r.dq, s.key_row(), out.q + token * s.keys, s.heads * s.keys, p.length, s.keys);
                rows_out(r.dk, s.key_row(), out.k + token * s.keys, s.heads * s.keys, p.length, s.keys);
            }
            rows_out(r.flow, row, out.state + head * cells, s.values, s.keys, s.values);
        }
}

Sizes sizes_of(const long* n) { return {n[0], n[1], n[2], n[3], n[4], n[5]}; }

}  // namespace

// sizes: batch, time, groups, heads, keys, values. starts may be null.
FAIRWAY_EXPORT(ssd_forward)
(const float* q, const float* k, const float* v, const float* log_decay, const float* state, const bool* starts, float* y,
 float* last, float* firsts, const long* sizes) {
    forward({q, k, v, log_decay, starts}, state, y, last, firsts, sizes_of(sizes));
}

// by_q and by_k are (batch, time, heads, keys): each value head's own share.
FAIRWAY_EXPORT(ssd_backward)
(const float* dy, const float* dlast, const float* q, const float* k, const float* v, const float* log_decay,
 const float* firsts, const bool* starts, float* by_q, float* by_k, float* by_v, float* by_decay, float* by_state,
 const long* sizes) {
    backward(dy, dlast, {q, k, v, log_decay, starts}, firsts, {by_q, by_k, by_v, by_decay, by_state}, sizes_of(sizes));
}
