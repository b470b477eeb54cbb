// TTT-Linear, forward and backward through the inner steps: see naive.py for the definition, chunk.py for the dual form.
//
// A mini-batch at a time; a key or query carries a 1 behind its last number and the inner bias is the last row of the inner
// weights, so both are one. Inner weights are kept at the starts of spans of mini-batches, and each token's rated gradient;
// the backward pass computes the weights in between again.
//
// q, k, v, outputs and rated gradients are (batch, time, heads, width), rates (batch, time, heads), token rates (places), gain
// and shift (heads, width), inner weights and their sums of gradients (batch, heads, width + 1, width).

#include "../kernel/product.h"
#include "../kernel/scratch.h"

namespace {

constexpr float epsilon = 1e-6f;

struct Sizes {
    long batch, time, heads, width, places, place, every;  // place: tokens of the first mini-batch seen before
    long row() const { return filled(width); }
    long key_row() const { return filled(width + 1); }
    long pair_row() const { return filled(places); }
    long state() const { return key_row() * row(); }
    long stored() const { return (width + 1) * width; }
    long first() const { return time < places - place ? time : places - place; }
    long pieces() const { return time ? 1 + (time - first() + places - 1) / places : 0; }
    long spans() const { return (pieces() + every - 1) / every; }
    long begin(long piece) const { return piece ? first() + (piece - 1) * places : 0; }
    long end(long piece) const { return begin(piece + 1) < time ? begin(piece + 1) : time; }
};

struct Inputs {
    const float *q, *k, *v, *rate, *token_rate, *gain, *shift;
};

// Zeros behind the last of `count` numbers.
inline Floats kept(Floats x, long count) {
    if (count >= lanes) return x;
    Ints index;
    for (int i = 0; i < lanes; i++) index[i] = i;
    return select(index < (int)count, x, Floats{});
}

// A row of mean 0 and variance 1; gives its standard deviation.
inline float normalise(const float* z, float* hat, long width) {
    Floats sums{}, squares{};
    for (long n = 0; n < width; n += lanes) sums += load(z + n);
    float mean = total(sums) / width;
    for (long n = 0; n < width; n += lanes) {
        Floats centred = kept(load(z + n) - mean, width - n);
        squares += centred * centred;
        store(hat + n, centred);
    }
    float deviation = std::sqrt(total(squares) / width + epsilon);
    for (long n = 0; n < width; n += lanes) store(hat + n, load(hat + n) / deviation);
    return deviation;
}

// g less its mean and less its part along hat, in place; gives the mean of g .* hat.
inline float straighten(float* g, const float* hat, long width) {
    Floats sums{}, along{};
    for (long n = 0; n < width; n += lanes) {
        sums += load(g + n);
        along += load(g + n) * load(hat + n);
    }
    float mean = total(sums) / width, share = total(along) / width;
    for (long n = 0; n < width; n += lanes) store(g + n, kept(load(g + n) - mean - load(hat + n) * share, width - n));
    return share;
}

// Working copies of one mini-batch, or the part of it that is at hand.
struct Piece {
    Scratch<float> room;
    float *rows, *across, *scores;      // keys then queries; keys as columns; queries times keys
    float *Z, *hat, *rated, *steps;     // inner outputs at keys then queries; normalised keys' outputs; rated gradients
    float *values, *gain, *shift;
    long place = 0, length = 0;         // tokens of the mini-batch seen before, tokens here
    bool first = false;

    explicit Piece(const Sizes& s)
        : room(s.key_row() * (3 * s.pair_row()) + s.pair_row() * (s.places + 6 * s.row()) + 2 * s.row()) {
        rows = room.data();
        across = rows + 2 * s.pair_row() * s.key_row();
        scores = across + s.pair_row() * s.key_row();
        Z = scores + s.pair_row() * s.places;
        hat = Z + 2 * s.pair_row() * s.row();
        rated = hat + s.pair_row() * s.row();
        steps = rated + s.pair_row() * s.row();
        values = steps + s.pair_row() * s.row();
        gain = values + s.pair_row() * s.row();
        shift = gain + s.row();
    }

    void head_in(const Inputs& in, const Sizes& s, long h) {
        rows_in(in.gain + h * s.width, 0, gain, s.row(), 1, s.width);
        rows_in(in.shift + h * s.width, 0, shift, s.row(), 1, s.width);
    }

    void keys_in(const Inputs& in, const Sizes& s, long b, long h, long piece) {
        long begin = s.begin(piece), at = ((b * s.time + begin) * s.heads + h) * s.width;
        first = piece == 0;
        place = first ? s.place : 0;
        length = s.end(piece) - begin;
        rows_in(in.k + at, s.heads * s.width, rows, s.key_row(), length, s.width);
        for (long i = 0; i < length; i++) rows[i * s.key_row() + s.width] = 1;
    }

    // What the inner weights W give for every key and query, and the products of queries with the keys up to their own.
    void predict(const Inputs& in, const Sizes& s, long at, const float* W) {
        long row = s.row(), key_row = s.key_row(), stride = s.heads * s.width;
        float* queries = rows + length * key_row;
        transposed(rows, key_row, across, s.pair_row(), s.pair_row(), key_row);
        rows_in(in.q + at * s.width, stride, queries, key_row, length, s.width);
        for (long i = 0; i < length; i++) queries[i * key_row + s.width] = 1;
        rows_in(in.v + at * s.width, stride, values, row, length, s.width);
        product(rows, key_row, 1, W, row, Z, row, 2 * length, s.width + 1, row, 0);
        product(queries, key_row, 1, across, s.pair_row(), scores, s.pair_row(), length, s.width + 1, s.pair_row(), 0);
        for (long i = 0; i < length; i++)
            for (long j = i + 1; j < s.pair_row(); j++) scores[i * s.pair_row() + j] = 0;
    }

    // The gradient of token j's loss by its Z, in `to`; gives the deviation and the mean of inner .* hat.
    struct Slope {
        float deviation, share;
    };
    Slope slope(long j, float* to, const Sizes& s) const {
        long at = j * s.row();
        float deviation = normalise(Z + at, hat + at, s.width);
        inner(j, to, s);
        float share = straighten(to, hat + at, s.width);
        for (long n = 0; n < s.width; n += lanes) store(to + n, load(to + n) / deviation);
        return {deviation, share};
    }

    // gain .* (what the inner model says less the target v - k).
    void inner(long j, float* to, const Sizes& s) const {
        for (long n = 0; n < s.width; n += lanes) {
            Floats said = load(gain + n) * load(hat + j * s.row() + n) + load(shift + n);
            Floats target = load(values + j * s.row() + n) - load(rows + j * s.key_row() + n);
            store(to + n, kept(load(gain + n) * (said - target), s.width - n));
        }
    }

    // What each query's own inner weights change, before the token's rate; then its output before the norm, in place of Z.
    void step(const Inputs& in, const Sizes& s, const float* sums) {
        long row = s.row();
        for (long i = 0; i < length; i++)
            product(scores + i * s.pair_row(), 0, 1, rated, row, steps + i * row, row, 1, i + 1, row, 0);
        if (place)
            product(rows + length * s.key_row(), s.key_row(), 1, sums, row, steps, row, length, s.width + 1, row, 1);
        for (long i = 0; i < length; i++)
            for (long n = 0; n < row; n += lanes) {
                float* z = Z + (length + i) * row + n;
                store(z, load(z) - load(steps + i * row + n) * in.token_rate[place + i]);
            }
    }

    bool whole(const Sizes& s) const { return place + length == s.places; }

    // The sums of rated gradients behind the piece, or the weights where the mini-batch ends here.
    void advance(const Inputs& in, const Sizes& s, float* W, float* sums) const {
        product(rows, 1, s.key_row(), rated, s.row(), sums, s.row(), s.width + 1, length, s.row(), 1);
        if (!whole(s)) return;
        float rate = in.token_rate[s.places - 1];
        for (long n = 0; n < s.state(); n += lanes) {
            store(W + n, load(W + n) - load(sums + n) * rate);
            store(sums + n, Floats{});
        }
    }
};

void forward(const Inputs& in, const float* weights, const float* sums, float* y, float* last, float* last_sums, float* rated,
             float* firsts, Sizes s) {
#pragma omp parallel for collapse(2) schedule(static)
    for (long b = 0; b < s.batch; b++)
        for (long h = 0; h < s.heads; h++) {
            Scratch<float> room(2 * s.state());
            float *W = room.data(), *total_sums = W + s.state();
            Piece p(s);
            long row = s.row(), carried = (b * s.heads + h) * s.stored(), stride = s.heads * s.width;
            rows_in(weights + carried, s.width, W, row, s.width + 1, s.width);
            rows_in(sums + carried, s.width, total_sums, row, s.width + 1, s.width);
            p.head_in(in, s, h);
            for (long piece = 0; piece < s.pieces(); piece++) {
                long at = (b * s.time + s.begin(piece)) * s.heads + h;
                if (piece % s.every == 0)
                    rows_out(W, row, firsts + ((b * s.heads + h) * s.spans() + piece / s.every) * s.stored(), s.width,
                             s.width + 1, s.width);
                p.keys_in(in, s, b, h, piece);
                p.predict(in, s, at, W);
                for (long j = 0; j < p.length; j++) {
                    p.slope(j, p.rated + j * row, s);
                    for (long n = 0; n < row; n += lanes)
                        store(p.rated + j * row + n, load(p.rated + j * row + n) * in.rate[at + j * s.heads]);
                }
                rows_out(p.rated, row, rated + at * s.width, stride, p.length, s.width);
                p.step(in, s, total_sums);
                for (long i = 0; i < p.length; i++) {
                    float* z = p.Z + (p.length + i) * row;
                    normalise(z, z, s.width);
                    for (long n = 0; n < s.width; n += lanes) {
                        Floats out = load(p.gain + n) * load(z + n) + load(p.shift + n);
                        out += load(p.rows + (p.length + i) * s.key_row() + n);
                        store_part(y + (at + i * s.heads) * s.width + n, out, s.width - n);
                    }
                }
                p.advance(in, s, W, total_sums);
            }
            rows_out(W, row, last + carried, s.width, s.width + 1, s.width);
            rows_out(total_sums, row, last_sums + carried, s.width, s.width + 1, s.width);
        }
}

struct Gradients {
    float *q, *k, *v, *rate, *token_rate, *gain, *shift, *weights, *sums;
};

// What the backward pass of a piece works with.
struct Back {
    Scratch<float> room;
    float *states, *flow, *flow_sums, *turned, *sums;  // weights before each piece of a span; gradients by weights and sums
    float *sides, *by_rated, *from, *by;               // gradients by Z; by rated gradients; rows of gradients by keys, queries
    float *across, *pairs, *by_gain, *by_shift, *by_token;

    explicit Back(const Sizes& s)
        : room((s.every + 5) * s.state() + s.pair_row() * (4 * s.row() + 3 * s.key_row() + s.places + s.row()) +
               2 * s.row() + s.pair_row()) {
        states = room.data();
        flow = states + (s.every + 1) * s.state();
        flow_sums = flow + s.state();
        turned = flow_sums + s.state();
        sums = turned + s.state();
        sides = sums + s.state();
        by_rated = sides + 2 * s.pair_row() * s.row();
        from = by_rated + s.pair_row() * s.row();
        by = from + s.pair_row() * s.row();
        across = by + 2 * s.pair_row() * s.key_row();
        pairs = across + s.pair_row() * s.row();
        by_gain = pairs + s.pair_row() * s.places;
        by_shift = by_gain + s.row();
        by_token = by_shift + s.row();
    }

    // Through the weights or the sums behind the piece: gradients by the rated gradients, and by the keys in `by`.
    void state_back(const Inputs& in, const Piece& p, const Sizes& s) {
        long row = s.row(), key_row = s.key_row();
        bool whole = p.whole(s);
        const float* behind = whole ? flow : flow_sums;
        float factor = whole ? -in.token_rate[s.places - 1] : 1.0f;
        product(p.rows, key_row, 1, behind, row, by_rated, row, p.length, s.width + 1, row, 0);
        if (whole) {
            float along = dot(by_rated, p.rated, p.length * row);
            if (p.place) along += dot(flow, sums, s.state());
            by_token[s.places - 1] -= along;
        }
        transposed(behind, row, turned, key_row, row, row);
        product(p.rated, row, 1, turned, key_row, by, key_row, p.length, s.width, row, 0);
        for (long i = 0; i < p.length; i++) {
            for (long n = 0; n < row; n += lanes) {
                store(by_rated + i * row + n, load(by_rated + i * row + n) * factor);
                store(by + i * key_row + n, load(by + i * key_row + n) * factor);
            }
        }
        if (p.first && whole)
            for (long n = 0; n < s.state(); n += lanes) store(flow_sums + n, load(flow + n) * factor);
    }

    // Through the norm of the outputs: `from` holds their gradients; leaves those by Z of the queries in `sides`, those by the
    // steps in `from`, and begins those by the queries.
    void outputs_back(const Inputs& in, const Piece& p, const Sizes& s) {
        long row = s.row();
        for (long i = 0; i < p.length; i++) {
            float *up = from + i * row, *side = sides + (p.length + i) * row, *z = p.Z + (p.length + i) * row;
            float deviation = normalise(z, z, s.width);
            for (long n = 0; n < row; n += lanes) {
                store(by_gain + n, load(by_gain + n) + load(up + n) * load(z + n));
                store(by_shift + n, load(by_shift + n) + load(up + n));
                store(by + (p.length + i) * s.key_row() + n, load(up + n));
                store(side + n, load(up + n) * load(p.gain + n));
            }
            straighten(side, z, s.width);
            float rate = in.token_rate[p.place + i];
            for (long n = 0; n < row; n += lanes) {
                store(side + n, load(side + n) / deviation);
                store(up + n, load(side + n) * -rate);
            }
            by_token[p.place + i] -= dot(side, p.steps + i * row, row);
        }
    }

    // Through a token's own gradient, which is a gradient itself: from that by its rated gradient to those by its Z and its
    // target, and by the gain and shift of the norm.
    float slope_back(const Piece& p, const Sizes& s, long j, float rate, float* by_v) {
        long row = s.row();
        float *g = by_rated + j * row, *side = sides + j * row, *inner = from + j * row;
        const float* hat = p.hat + j * row;
        Piece::Slope slope = p.slope(j, side, s);
        float by_rate = dot(g, side, row), by_deviation = -by_rate * rate / slope.deviation;
        for (long n = 0; n < row; n += lanes) store(g + n, load(g + n) * (rate / slope.deviation));
        p.inner(j, inner, s);
        Floats along{};
        for (long n = 0; n < row; n += lanes) along += load(g + n) * load(hat + n);
        float by_share = -total(along);
        for (long n = 0; n < row; n += lanes)
            store(side + n, load(g + n) * -slope.share + load(inner + n) * (by_share / s.width));
        straighten(g, hat, s.width);
        for (long n = 0; n < row; n += lanes) {
            Floats by_inner = load(g + n), gain = load(p.gain + n), normal = load(hat + n);
            Floats said = gain * normal + load(p.shift + n);
            Floats target = load(p.values + j * row + n) - load(p.rows + j * s.key_row() + n);
            store(by_gain + n, kept(load(by_gain + n) + by_inner * (said - target + gain * normal), s.width - n));
            store(by_shift + n, load(by_shift + n) + by_inner * gain);
            store(side + n, load(side + n) + by_inner * gain * gain);
            float* by_key = by + j * s.key_row() + n;
            store(by_key, load(by_key) + by_inner * gain);
            store_part(by_v + n, -by_inner * gain, s.width - n);
        }
        straighten(side, hat, s.width);
        for (long n = 0; n < row; n += lanes)
            store(side + n, load(side + n) / slope.deviation + load(hat + n) * (by_deviation / s.width));
        return by_rate;
    }

    void piece_back(const Inputs& in, const Piece& p, const Sizes& s, const float* W, long at, const Gradients& out) {
        long row = s.row(), key_row = s.key_row(), pair_row = s.pair_row(), length = p.length;
        const float* queries = p.rows + length * key_row;
        state_back(in, p, s);
        outputs_back(in, p, s);
        float* by_query = by + length * key_row;
        product(p.scores, 1, pair_row, from, row, by_rated, row, length, length, row, 1);
        transposed(p.rated, row, across, pair_row, pair_row, row);
        product(from, row, 1, across, pair_row, pairs, pair_row, length, s.width, pair_row, 0);
        for (long i = 0; i < length; i++)
            for (long j = i + 1; j < length; j++) pairs[i * pair_row + j] = 0;
        product(pairs, pair_row, 1, p.rows, key_row, by_query, key_row, length, length, row, 1);
        product(pairs, 1, pair_row, queries, key_row, by, key_row, length, length, row, 1);
        if (p.place) {
            transposed(sums, row, turned, key_row, row, row);
            product(from, row, 1, turned, key_row, by_query, key_row, length, s.width, row, 1);
            product(queries, 1, key_row, from, row, flow_sums, row, s.width + 1, length, row, 1);
        }
        for (long j = 0; j < length; j++) {
            long token = at + j * s.heads;
            out.rate[token] = slope_back(p, s, j, in.rate[token], out.v + token * s.width);
        }
        transposed(W, row, turned, key_row, row, row);
        product(sides, row, 1, turned, key_row, by, key_row, 2 * length, s.width, row, 1);
        product(p.rows, 1, key_row, sides, row, flow, row, s.width + 1, 2 * length, row, 1);
        rows_out(by, key_row, out.k + at * s.width, s.heads * s.width, length, s.width);
        rows_out(by_query, key_row, out.q + at * s.width, s.heads * s.width, length, s.width);
    }
};

void backward(const float* dy, const float* dlast, const float* dlast_sums, const Inputs& in, const float* sums,
              const float* rated, const float* firsts, Gradients out, Sizes s) {
#pragma omp parallel for collapse(2) schedule(static)
    for (long b = 0; b < s.batch; b++)
        for (long h = 0; h < s.heads; h++) {
            Piece p(s);
            Back r(s);
            long row = s.row(), carried = (b * s.heads + h) * s.stored(), stride = s.heads * s.width;
            rows_in(dlast + carried, s.width, r.flow, row, s.width + 1, s.width);
            rows_in(dlast_sums + carried, s.width, r.flow_sums, row, s.width + 1, s.width);
            p.head_in(in, s, h);
            for (long kept = s.spans() - 1; kept >= 0; kept--) {
                long from = kept * s.every, to = from + s.every < s.pieces() ? from + s.every : s.pieces();
                rows_in(firsts + ((b * s.heads + h) * s.spans() + kept) * s.stored(), s.width, r.states, row, s.width + 1,
                        s.width);
                for (long piece = from; piece + 1 < to; piece++) {
                    float* W = r.states + (piece - from) * s.state();
                    long at = (b * s.time + s.begin(piece)) * s.heads + h;
                    p.keys_in(in, s, b, h, piece);
                    rows_in(rated + at * s.width, stride, p.rated, row, p.length, s.width);
                    if (p.place) rows_in(sums + carried, s.width, r.sums, row, s.width + 1, s.width);
                    std::memcpy(W + s.state(), W, 4 * (size_t)s.state());
                    p.advance(in, s, W + s.state(), r.sums);
                }
                for (long piece = to - 1; piece >= from; piece--) {
                    const float* W = r.states + (piece - from) * s.state();
                    long at = (b * s.time + s.begin(piece)) * s.heads + h;
                    p.keys_in(in, s, b, h, piece);
                    p.predict(in, s, at, W);
                    rows_in(rated + at * s.width, stride, p.rated, row, p.length, s.width);
                    rows_in(dy + at * s.width, stride, r.from, row, p.length, s.width);
                    if (p.place) rows_in(sums + carried, s.width, r.sums, row, s.width + 1, s.width);
                    p.step(in, s, r.sums);
                    r.piece_back(in, p, s, W, at, out);
                    if (p.place) std::memset(r.sums, 0, 4 * (size_t)s.state());
                }
            }
            rows_out(r.flow, row, out.weights + carried, s.width, s.width + 1, s.width);
            rows_out(r.flow_sums, row, out.sums + carried, s.width, s.width + 1, s.width);
            rows_out(r.by_token, 0, out.token_rate + (b * s.heads + h) * s.places, 0, 1, s.places);
            rows_out(r.by_gain, 0, out.gain + (b * s.heads + h) * s.width, 0, 1, s.width);
            rows_out(r.by_shift, 0, out.shift + (b * s.heads + h) * s.width, 0, 1, s.width);
        }
}

Sizes sizes_of(const long* n) { return {n[0], n[1], n[2], n[3], n[4], n[5], n[6]}; }

}  // namespace

// sizes: batch, time, heads, width, places of a mini-batch, tokens of the first one seen before, mini-batches of a span.
FAIRWAY_EXPORT(ttt_forward)
(const float* q, const float* k, const float* v, const float* rate, const float* token_rate, const float* gain,
 const float* shift, const float* weights, const float* sums, float* y, float* last, float* last_sums, float* rated,
 float* firsts, const long* sizes) {
    forward({q, k, v, rate, token_rate, gain, shift}, weights, sums, y, last, last_sums, rated, firsts, sizes_of(sizes));
}

// by_token_rate is (batch, heads, places), by_gain and by_shift are (batch, heads, width).
FAIRWAY_EXPORT(ttt_backward)
(const float* dy, const float* dlast, const float* dlast_sums, const float* q, const float* k, const float* v,
 const float* rate, const float* token_rate, const float* gain, const float* shift, const float* sums, const float* rated,
 const float* firsts, float* by_q, float* by_k, float* by_v, float* by_rate, float* by_token_rate, float* by_gain,
 float* by_shift, float* by_weights, float* by_sums, const long* sizes) {
    backward(dy, dlast, dlast_sums, {q, k, v, rate, token_rate, gain, shift}, sums, rated, firsts,
             {by_q, by_k, by_v, by_rate, by_token_rate, by_gain, by_shift, by_weights, by_sums}, sizes_of(sizes));
}
