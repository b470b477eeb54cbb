// The gated delta rule, forward and backward: see naive.py for the definition.
//
// Tokens are taken in pieces of 16. In a piece the values that are written solve a triangular system (see chunk.py), row after
// row with lanes along the values; all that touches the state are products of small matrices. States are kept at the starts
// of spans of pieces only, and each token's error (its value less what the memory held); the backward pass computes the states
// between them again.
//
// q and k are (batch, time, heads, keys), v and the errors (batch, time, heads, values), beta and logarithms of decays (batch,
// time, heads), a carried state (batch, heads, keys, values), `firsts` (batch, heads, spans, keys, values).

#include "../kernel/decays.h"
#include "../kernel/product.h"
#include "../kernel/scratch.h"

namespace {

constexpr long piece = 16, pieces = 4, span = piece * pieces;

struct Sizes {
    long batch, time, heads, keys, values;
    long key_row() const { return filled(keys); }
    long row() const { return filled(values); }
    long spans() const { return (time + span - 1) / span; }
    long state() const { return key_row() * row(); }
};

struct Inputs {
    const float *q, *k, *v, *beta, *log_decay;
    const bool* starts;
};

// Working copies of one piece.
struct Piece {
    Scratch<float> room;
    float *rows, *keys_across, *scores;  // keys then queries; keys as columns; products of both with the keys
    float *errors, *written, *read;      // read holds what the state gives for each row
    Decays<piece> decays;
    float beta[piece];
    long length;

    explicit Piece(const Sizes& s) : room(2 * piece * s.key_row() + s.key_row() * piece + 2 * piece * piece + 4 * piece * s.row()) {
        rows = room.data();
        keys_across = rows + 2 * piece * s.key_row();
        scores = keys_across + s.key_row() * piece;
        errors = scores + 2 * piece * piece;
        written = errors + piece * s.row();
        read = written + piece * s.row();
    }

    void keys_in(const Inputs& in, const Sizes& s, long at, long h, long count) {
        length = count;
        const float* log_decay = in.log_decay ? in.log_decay + at * s.heads + h : nullptr;
        decays.fill(log_decay, s.heads, in.starts ? in.starts + at : nullptr, length);
        for (long i = 0; i < length; i++) beta[i] = in.beta[(at + i) * s.heads + h];
        rows_in(in.k + (at * s.heads + h) * s.keys, s.heads * s.keys, rows, s.key_row(), length, s.keys);
    }

    // Products of keys and queries with the keys, each times the decay between the two.
    void scores_in(const Inputs& in, const Sizes& s, long at, long h) {
        long row = s.key_row();
        transposed(rows, row, keys_across, piece, piece, row);
        rows_in(in.q + (at * s.heads + h) * s.keys, s.heads * s.keys, rows + length * row, row, length, s.keys);
        product(rows, row, 1, keys_across, piece, scores, piece, 2 * length, s.keys, piece, 0);
        for (long i = 0; i < length; i++)
            for (long j = 0; j < piece; j += lanes) {
                float *key = scores + i * piece + j, *query = key + length * piece;
                store(key, load(key) * load(decays.pair[i] + j));
                store(query, load(query) * load(decays.pair[i] + j));
            }
    }

    // The state behind the piece, from the errors.
    void advance(float* S, const Sizes& s) {
        long row = s.row();
        for (long j = 0; j < length; j++)
            for (long n = 0; n < row; n += lanes)
                store(written + j * row + n, load(errors + j * row + n) * (beta[j] * decays.pair[length - 1][j]));
        long j = decays.first[length - 1];
        product(rows + j * s.key_row(), 1, s.key_row(), written + j * row, row, S, row, s.keys, length - j, row,
                decays.entering[length - 1]);
    }
};

// Errors and outputs of a piece, `wide` vectors of them from a column on; `values` becomes the outputs.
template <int wide>
void solve(Piece& p, float* values, long row, long column) {
    for (long i = 0; i < p.length; i++) {
        Floats error[wide], out[wide];
        float entering = p.decays.entering[i], beta = p.beta[i];
        const float *key = p.scores + i * piece, *query = p.scores + (p.length + i) * piece;
        for (int c = 0; c < wide; c++) {
            long at = i * row + column + c * lanes;
            error[c] = load(values + at);
            out[c] = Floats{};
            if (entering != 0) {
                error[c] -= load(p.read + at) * entering;
                out[c] = load(p.read + at + p.length * row) * entering;
            }
        }
        for (long j = p.decays.first[i]; j < i; j++)
            for (int c = 0; c < wide; c++) {
                Floats other = load(p.written + j * row + column + c * lanes);
                error[c] -= other * key[j];
                out[c] += other * query[j];
            }
        for (int c = 0; c < wide; c++) {
            long at = i * row + column + c * lanes;
            Floats own = error[c] * beta;
            store(p.errors + at, error[c]);
            store(p.written + at, own);
            store(values + at, out[c] + own * query[i]);
        }
    }
}

// The same, from behind: `up` are the gradients by the outputs, p.read the keys' rows of the gradient by the state behind the
// piece. Leaves the gradients by the errors in `down` and adds those by beta, still spread over the lanes.
template <int wide>
void solve_back(const Piece& p, const float* up, float* down, Floats* by_beta, long row, long column) {
    for (long j = p.length - 1; j >= 0; j--) {
        Floats g[wide];
        float leaving = p.decays.pair[p.length - 1][j], own = p.scores[(p.length + j) * piece + j];
        for (int c = 0; c < wide; c++) {
            long at = j * row + column + c * lanes;
            g[c] = load(p.read + at) * leaving + load(up + at) * own;
        }
        for (long i = j + 1; i < p.length && p.decays.first[i] <= j; i++) {
            float key = p.scores[i * piece + j], query = p.scores[(p.length + i) * piece + j];
            for (int c = 0; c < wide; c++) {
                long at = i * row + column + c * lanes;
                g[c] += load(up + at) * query - load(down + at) * key;
            }
        }
        for (int c = 0; c < wide; c++) {
            long at = j * row + column + c * lanes;
            by_beta[j] += g[c] * load(p.errors + at);
            store(down + at, g[c] * p.beta[j]);
        }
    }
}

void forward(const Inputs& in, const float* state, float* y, float* last, float* errors, float* firsts, Sizes s) {
#pragma omp parallel for collapse(2) schedule(static)
    for (long b = 0; b < s.batch; b++)
        for (long h = 0; h < s.heads; h++) {
            Scratch<float> room(s.state() + piece * s.row());
            float *S = room.data(), *values = S + s.state();
            Piece p(s);
            long carried = (b * s.heads + h) * s.keys * s.values, row = s.row(), stride = s.heads * s.values;
            rows_in(state + carried, s.values, S, row, s.keys, s.values);
            for (long begin = 0; begin < s.time; begin += piece) {
                long at = b * s.time + begin, here = (at * s.heads + h) * s.values, kept = begin / span;
                if (begin % span == 0)
                    rows_out(S, row, firsts + ((b * s.heads + h) * s.spans() + kept) * s.keys * s.values, s.values, s.keys,
                             s.values);
                p.keys_in(in, s, at, h, begin + piece < s.time ? piece : s.time - begin);
                p.scores_in(in, s, at, h);
                product(p.rows, s.key_row(), 1, S, row, p.read, row, 2 * p.length, s.keys, row, 0);
                rows_in(in.v + here, stride, values, row, p.length, s.values);
                long c = 0;
                for (; c + 4 * lanes <= row; c += 4 * lanes) solve<4>(p, values, row, c);
                for (; c < row; c += lanes) solve<1>(p, values, row, c);
                rows_out(values, row, y + here, stride, p.length, s.values);
                rows_out(p.errors, row, errors + here, stride, p.length, s.values);
                p.advance(S, s);
            }
            rows_out(S, row, last + carried, s.values, s.keys, s.values);
        }
}

struct Gradients {
    float *q, *k, *v, *beta, *decay, *state;
};

// What the backward pass of a piece works with.
struct Back {
    Scratch<float> room;
    float *states, *flow, *turned;      // states before each piece of a span; the gradient by the state behind; a transpose
    float *sides, *across, *pairs;      // gradients by errors, then by outputs; written values as columns; their products
    float *seen, *kept, *by;            // rows of state times sides, of flow times written; gradients by keys, then queries
    float* weights;                     // of each place in the gradients by keys, then by queries

    explicit Back(const Sizes& s)
        : room((pieces + 2) * s.state() + 3 * piece * s.row() + 4 * piece * piece + 5 * piece * s.key_row()) {
        states = room.data();
        flow = states + pieces * s.state();
        turned = flow + s.state();
        sides = turned + s.state();
        across = sides + 2 * piece * s.row();
        pairs = across + piece * s.row();
        seen = pairs + 2 * piece * piece;
        kept = seen + 2 * piece * s.key_row();
        by = kept + piece * s.key_row();
        weights = by + 2 * piece * s.key_row();
    }

    // What keys and queries get through the products of pairs, as weights, and what the logarithms of decays get: a decay
    // stands between all places from its own on and all before it.
    void pairs_back(const Piece& p, float whole, float* by_decay, const Sizes& s) {
        long length = p.length, row = s.key_row();
        float beyond[piece] = {}, entered = whole;
        for (long j = 0; by_decay && j + 1 < length; j++)
            beyond[j] = p.decays.pair[length - 1][j] * dot(p.rows + j * row, kept + j * row, row);
        for (long i = length - 1; i >= 0; i--) {
            Floats before{};
            for (long j = 0; j < piece; j += lanes) {
                const float *key = pairs + i * piece + j, *query = key + length * piece, *scores = p.scores + i * piece + j;
                Floats by_query = load(query) * load(scores + length * piece), by_key = load(key) * load(scores);
                Floats pair = load(p.decays.pair[i] + j);
                store(weights + i * piece + j, kept_below(load(key) * -pair, i - j));
                store(weights + (length + i) * piece + j, load(query) * pair);
                store(beyond + j, load(beyond + j) + kept_below(by_query - by_key, i - j));
                before += kept_below(load(beyond + j), i - j);
            }
            if (!by_decay) continue;
            Floats along{};
            for (long n = 0; n < row; n += lanes) {
                long at = i * row + n, below = at + length * row;
                along += load(p.rows + below) * load(seen + below) - load(p.rows + at) * load(seen + at);
            }
            entered += p.decays.entering[i] * total(along);
            by_decay[i * s.heads] = p.decays.cut[i] ? 0.0f : entered + total(before);
        }
    }

    // The gradients by the values are those by the errors.
    void piece_back(Piece& p, const float* S, const Sizes& s, float* by_beta, float* by_decay, float* by_v) {
        long length = p.length, row = s.row(), key_row = s.key_row();
        float *down = sides, *up = sides + length * row, whole = p.decays.entering[length - 1], along = 0;
        product(p.rows, key_row, 1, flow, row, p.read, row, length, s.keys, row, 0);
        Floats spread[piece] = {};
        long c = 0;
        for (; c + 4 * lanes <= row; c += 4 * lanes) solve_back<4>(p, up, down, spread, row, c);
        for (; c < row; c += lanes) solve_back<1>(p, up, down, spread, row, c);
        rows_out(down, row, by_v, s.heads * s.values, length, s.values);
        for (long j = 0; j < length; j++) {
            by_beta[j * s.heads] = total(spread[j]);
            for (long n = 0; n < row; n += lanes)
                store(p.written + j * row + n, load(p.errors + j * row + n) * p.beta[j]);
        }
        transposed(p.written, row, across, piece, piece, row);
        product(sides, row, 1, across, piece, pairs, piece, 2 * length, s.values, piece, 0);
        transposed(S, row, turned, key_row, key_row, row);
        product(sides, row, 1, turned, key_row, seen, key_row, 2 * length, s.values, key_row, 0);
        transposed(flow, row, turned, key_row, key_row, row);
        product(p.written, row, 1, turned, key_row, kept, key_row, length, s.values, key_row, 0);
        if (by_decay && whole != 0) along = whole * dot(flow, S, s.state());
        pairs_back(p, along, by_decay, s);
        for (long i = 0; i < length; i++) {
            float entering = p.decays.entering[i], leaving = p.decays.pair[length - 1][i];
            for (long n = 0; n < key_row; n += lanes) {
                long at = i * key_row + n, below = at + length * key_row;
                store(by + at, load(kept + at) * leaving - load(seen + at) * entering);
                store(by + below, load(seen + below) * entering);
            }
        }
        product(weights, piece, 1, p.rows, key_row, by, key_row, 2 * length, length, key_row, 1);
        product(weights, 1, piece, p.rows, key_row, by, key_row, length, 2 * length, key_row, 1);
        for (long i = 0; i < length; i++)
            for (long n = 0; n < row; n += lanes) {
                store(down + i * row + n, load(down + i * row + n) * -p.decays.entering[i]);
                store(up + i * row + n, load(up + i * row + n) * p.decays.entering[i]);
            }
        product(p.rows, 1, key_row, sides, row, flow, row, s.keys, 2 * length, row, whole);
    }
};

void backward(const float* dy, const float* dlast, const Inputs& in, const float* errors, const float* firsts,
              Gradients out, Sizes s) {
#pragma omp parallel for collapse(2) schedule(static)
    for (long b = 0; b < s.batch; b++)
        for (long h = 0; h < s.heads; h++) {
            Piece p(s);
            Back r(s);
            long carried = (b * s.heads + h) * s.keys * s.values, row = s.row(), stride = s.heads * s.values;
            rows_in(dlast + carried, s.values, r.flow, row, s.keys, s.values);
            for (long kept = s.spans() - 1; kept >= 0; kept--) {
                long begin = kept * span, end = begin + span < s.time ? begin + span : s.time;
                rows_in(firsts + ((b * s.heads + h) * s.spans() + kept) * s.keys * s.values, s.values, r.states, row, s.keys,
                        s.values);
                for (long from = begin; from + piece < end; from += piece) {
                    float* S = r.states + (from - begin) / piece * s.state();
                    p.keys_in(in, s, b * s.time + from, h, piece);
                    rows_in(errors + ((b * s.time + from) * s.heads + h) * s.values, stride, p.errors, row, piece, s.values);
                    std::memcpy(S + s.state(), S, 4 * (size_t)s.state());
                    p.advance(S + s.state(), s);
                }
                for (long from = begin + (end - begin - 1) / piece * piece; from >= begin; from -= piece) {
                    long at = b * s.time + from, head = at * s.heads + h, key_stride = s.heads * s.keys;
                    p.keys_in(in, s, at, h, from + piece < end ? piece : end - from);
                    p.scores_in(in, s, at, h);
                    rows_in(errors + head * s.values, stride, p.errors, row, p.length, s.values);
                    rows_in(dy + head * s.values, stride, r.sides + p.length * row, row, p.length, s.values);
                    float* S = r.states + (from - begin) / piece * s.state();
                    r.piece_back(p, S, s, out.beta + head, out.decay ? out.decay + head : nullptr, out.v + head * s.values);
                    rows_out(r.by, s.key_row(), out.k + head * s.keys, key_stride, p.length, s.keys);
                    rows_out(r.by + p.length * s.key_row(), s.key_row(), out.q + head * s.keys, key_stride, p.length, s.keys);
                }
            }
            rows_out(r.flow, row, out.state + carried, s.values, s.keys, s.values);
        }
}

}  // namespace

// sizes: batch, time, heads, keys, values. log_decay (no decay) and starts may be null.
FAIRWAY_EXPORT(delta_forward)
(const float* q, const float* k, const float* v, const float* beta, const float* log_decay, const float* state,
 const bool* starts, float* y, float* last, float* errors, float* firsts, const long* n) {
    forward({q, k, v, beta, log_decay, starts}, state, y, last, errors, firsts, {n[0], n[1], n[2], n[3], n[4]});
}

// by_decay is null where log_decay is.
FAIRWAY_EXPORT(delta_backward)
(const float* dy, const float* dlast, const float* q, const float* k, const float* v, const float* beta,
 const float* log_decay, const bool* starts, const float* errors, const float* firsts, float* by_q, float* by_k, float* by_v,
 float* by_beta, float* by_decay, float* by_state, const long* n) {
    backward(dy, dlast, {q, k, v, beta, log_decay, starts}, errors, firsts, {by_q, by_k, by_v, by_beta, by_decay, by_state},
             {n[0], n[1], n[2], n[3], n[4]});
}
