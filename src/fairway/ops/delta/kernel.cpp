// The gated delta rule, forward and backward: see naive.py for the definition.
//
// Tokens are taken in pieces of 16. In a piece the values that are written solve a triangular system (see chunk.py), row after
// row with lanes along the values; all that touches the state are products of small matrices. States are kept at the starts
// of spans of pieces only, and each token's error (its value less what the memory held); the backward pass computes the states
// between them again. Its gradients by keys and queries stand in columns, one for each token, until they are written.
//
// Where queries, keys and values are bfloat16 and the level multiplies pairs of them, products round both sides to bfloat16
// and sum in float32; the triangular systems, the decays, the states and all other sums stay float32.
//
// q and k are (batch, time, heads, keys), v and the errors (batch, time, heads, values), beta and logarithms of decays (batch,
// time, heads), a carried state (batch, heads, keys, values), `firsts` (batch, heads, spans, keys, values).

#include "../kernel/decays.h"
#include "../kernel/paired_product.h"
#include "../kernel/scratch.h"

namespace {

constexpr long piece = 16, pieces = 4, span = piece * pieces;

// Products of what lies in memory as T are paired where that loses nothing of the inputs.
template <class T>
constexpr bool pairs_of = false;
template <>
constexpr bool pairs_of<Bfloat> = has_pairs;

template <class T>
struct Sizes {
    static constexpr bool paired = pairs_of<T>;
    long batch, time, heads, keys, values;
    long key_row() const { return rounded_up(keys, row_step<paired>); }
    long key_words() const { return words<paired>(key_row()); }
    long row() const { return rounded_up(values, row_step<paired>); }
    long spans() const { return (time + span - 1) / span; }
    long state() const { return key_row() * row(); }
    long key_stride() const { return heads * keys; }
    long stride() const { return heads * values; }
    // Where the state at the start of a span lies.
    long first(long b, long h, long n) const { return ((b * heads + h) * spans() + n) * keys * values; }
};

template <class T>
struct Inputs {
    const T *q, *k, *v;
    const float *beta, *log_decay;
    const bool* starts;
};

// Working copies of one piece.
template <class T>
struct Piece {
    static constexpr bool paired = pairs_of<T>;
    Scratch<float> room;
    float *rows, *rows_across, *keys_across;  // operands: keys, then queries from the row `base` on; paired along tokens; keys
    float *scores;                            // products of both with the keys
    float *errors, *written, *written_across, *read;  // read holds what the state gives for each row
    Decays<piece> decays{};
    float beta[piece] = {};
    long length, base;

    explicit Piece(const Sizes<T>& s) : room(5 * piece * s.key_row() + 2 * piece * piece + 5 * piece * s.row()) {
        rows = room.data();
        rows_across = rows + 2 * piece * s.key_row();
        keys_across = rows_across + 2 * piece * s.key_row();
        scores = keys_across + piece * s.key_row();
        errors = scores + 2 * piece * piece;
        written = errors + piece * s.row();
        written_across = written + piece * s.row();
        read = written_across + piece * s.row();
    }

    void keys_in(const Inputs<T>& in, const Sizes<T>& s, long at, long h) {
        const float* log_decay = in.log_decay ? in.log_decay + at * s.heads + h : nullptr;
        decays.fill(log_decay, s.heads, in.starts ? in.starts + at : nullptr, length);
        for (long i = 0; i < length; i++) beta[i] = in.beta[(at + i) * s.heads + h];
        operands_in<paired>(in.k + (at * s.heads + h) * s.keys, s.key_stride(), rows, s.key_words(), length, s.keys);
        clear(rows + length * s.key_words(), s);
    }

    // Zeros for the rows between the piece's end and the base.
    void clear(float* to, const Sizes<T>& s) const { std::memset(to, 0, 4 * (size_t)((base - length) * s.key_words())); }

    // Products of keys and queries with the keys, each times the decay between the two.
    Side scores_in(const Inputs<T>& in, const Sizes<T>& s, long at, long h) {
        long row = s.key_words();
        operands_in<paired>(in.q + (at * s.heads + h) * s.keys, s.key_stride(), rows + base * row, row, length, s.keys);
        clear(rows + (base + length) * row, s);
        Side both = {rows, row, 1};
        transposed(rows, row, keys_across, piece, piece, row);
        product<paired>(both, {keys_across, piece, 1}, scores, piece, base + length, s.keys, piece, 0);
        for (long i = 0; i < length; i++)
            for (long j = 0; j < piece; j += lanes) {
                float *key = scores + i * piece + j, *query = key + base * piece;
                store(key, load(key) * load(decays.pair[i] + j));
                store(query, load(query) * load(decays.pair[i] + j));
            }
        return both;
    }

    // What the state gives for each row.
    void read_in(Side both, const float* S, float* S_across, const Sizes<T>& s) {
        Side states = across<paired>(S, s.row(), s.keys, S_across);
        product<paired>(both, states, read, s.row(), base + length, s.keys, s.row(), 0);
    }

    // The state behind the piece, from the errors.
    void advance(float* S, const Sizes<T>& s) {
        long row = s.row(), from = decays.first[length - 1], count = length - from;
        for (long j = from; j < length; j++)
            for (long n = 0; n < row; n += lanes)
                store(written + j * row + n, load(errors + j * row + n) * (beta[j] * decays.pair[length - 1][j]));
        Side keys = along_to_across<paired>(rows + from * s.key_words(), s.key_words(), count, rows_across);
        Side values = across<paired>(written + from * row, row, count, written_across);
        product<paired>(keys.turned(), values, S, row, s.keys, count, row, decays.entering[length - 1]);
    }
};

// Errors and outputs of a piece, `wide` vectors of them from a column on; `values` becomes the outputs.
template <int wide, class T>
void solve(Piece<T>& p, float* values, long row, long column) {
    for (long i = 0; i < p.length; i++) {
        Floats error[wide], out[wide];
        float entering = p.decays.entering[i], beta = p.beta[i];
        const float *key = p.scores + i * piece, *query = p.scores + (p.base + i) * piece;
        for (int c = 0; c < wide; c++) {
            long at = i * row + column + c * lanes;
            error[c] = load(values + at);
            out[c] = Floats{};
            if (entering != 0) {
                error[c] -= load(p.read + at) * entering;
                out[c] = load(p.read + at + p.base * row) * entering;
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
// piece. Leaves the gradients by the errors in `down` and adds their products with the errors, and those of p.read with the
// errors, still spread over the lanes.
template <int wide, class T>
void solve_back(const Piece<T>& p, const float* up, float* down, Floats (*spread)[piece], long row, long column) {
    for (long j = p.length - 1; j >= 0; j--) {
        Floats g[wide];
        float leaving = p.decays.pair[p.length - 1][j], own = p.scores[(p.base + j) * piece + j];
        for (int c = 0; c < wide; c++) {
            long at = j * row + column + c * lanes;
            g[c] = load(p.read + at) * leaving + load(up + at) * own;
        }
        for (long i = j + 1; i < p.length && p.decays.first[i] <= j; i++) {
            float key = p.scores[i * piece + j], query = p.scores[(p.base + i) * piece + j];
            for (int c = 0; c < wide; c++) {
                long at = i * row + column + c * lanes;
                g[c] += load(up + at) * query;
                g[c] -= load(down + at) * key;
            }
        }
        for (int c = 0; c < wide; c++) {
            long at = j * row + column + c * lanes;
            spread[0][j] += g[c] * load(p.errors + at);
            spread[1][j] += load(p.read + at) * load(p.errors + at);
            store(down + at, g[c] * p.beta[j]);
        }
    }
}

template <class T>
struct Outputs {
    T *y, *errors;
    float *last, *firsts;
};

// All of one head of a sequence; `room` holds the state, its operands and the values of a piece.
template <class T>
void forward_head(const Inputs<T>& in, const float* state, const Outputs<T>& out, const Sizes<T>& s, Piece<T>& p, float* room,
                  long b, long h) {
    float *S = room, *S_across = S + s.state(), *values = S_across + s.state();
    long carried = (b * s.heads + h) * s.keys * s.values, row = s.row(), stride = s.stride();
    std::memset(S, 0, 4 * (size_t)s.state());
    if (state) rows_in(state + carried, s.values, S, row, s.keys, s.values);
    for (long begin = 0; begin < s.time; begin += piece) {
        long at = b * s.time + begin, here = (at * s.heads + h) * s.values;
        long next = begin + 2 * piece <= s.time ? (at + piece) * s.heads + h : at * s.heads + h;
        if (begin % span == 0) rows_out(S, row, out.firsts + s.first(b, h, begin / span), s.values, s.keys, s.values);
        p.length = p.base = begin + piece < s.time ? piece : s.time - begin;
        p.keys_in(in, s, at, h);
        ask_for(in.k + next * s.keys, s.key_stride(), p.length, s.keys);
        Side both = p.scores_in(in, s, at, h);
        ask_for(in.q + next * s.keys, s.key_stride(), p.length, s.keys);
        p.read_in(both, S, S_across, s);
        rows_in(in.v + here, stride, values, row, p.length, s.values);
        ask_for(out.errors + here, stride, p.length, s.values);
        long c = 0;
        for (; c + 4 * lanes <= row; c += 4 * lanes) solve<4>(p, values, row, c);
        for (; c < row; c += lanes) solve<1>(p, values, row, c);
        rows_out(values, row, out.y + here, stride, p.length, s.values);
        rows_out(p.errors, row, out.errors + here, stride, p.length, s.values);
        ask_for(in.v + next * s.values, stride, p.length, s.values);
        ask_for(out.y + next * s.values, stride, p.length, s.values);
        p.advance(S, s);
    }
    rows_out(S, row, out.last + carried, s.values, s.keys, s.values);
}

template <class T>
void forward(const Inputs<T>& in, const float* state, const Outputs<T>& out, const Sizes<T>& s) {
#pragma omp parallel
    {
        Piece<T> p(s);
        Scratch<float> room(2 * s.state() + piece * s.row());
#pragma omp for collapse(2) schedule(static)
        for (long b = 0; b < s.batch; b++)
            for (long h = 0; h < s.heads; h++) forward_head(in, state, out, s, p, room.data(), b, h);
    }
}

template <class T>
struct Gradients {
    T *q, *k, *v;
    float *beta, *decay, *state;
};

// What the backward pass of a piece works with. What stands in columns has a token in each: keys' first, then queries'.
template <class T>
struct Back {
    static constexpr bool paired = pairs_of<T>;
    static constexpr long both = 2 * piece;
    Scratch<float> room;
    float *states, *flow, *narrow;  // states before each piece of a span; the gradient by the state behind; an operand
    float *sides, *sides_along, *sides_across, *written_across;  // gradients by errors, then by outputs; operands
    float *pairs, *weights, *weights_along, *weights_across;     // products of sides with written values; places' shares
    float *by, *kept, *queries_across, *by_rows;  // gradients in columns (at first S sides, flow written), and in rows

    explicit Back(const Sizes<T>& s)
        : room((pieces + 2) * s.state() + 7 * piece * s.row() + 5 * both * both + 3 * both * s.key_row()) {
        states = room.data();
        flow = states + pieces * s.state();
        narrow = flow + s.state();
        sides = narrow + s.state();
        sides_along = sides + both * s.row();
        sides_across = sides_along + both * s.row();
        written_across = sides_across + both * s.row();
        pairs = written_across + piece * s.row();
        weights = pairs + both * both;
        weights_along = weights + both * both;
        weights_across = weights_along + both * both;
        by = weights_across + 2 * both * both;
        kept = by + both * s.key_row();
        queries_across = kept + piece * s.key_row();
        by_rows = queries_across + piece * s.key_row();
    }

    // What stands behind the end of a piece that is not whole.
    void clear(const Sizes<T>& s) {
        std::memset(sides, 0, 4 * (size_t)(both * s.row()));
        std::memset(weights, 0, 4 * (size_t)(both * both));
    }

    // What keys and queries get through the products of pairs, as weights, and what the logarithms of decays get: a decay
    // stands between all places from its own on and all before it. `beyond` is what lies behind the piece, `entered` what
    // lies before it, for each place.
    void pairs_back(const Piece<T>& p, float* beyond, const float* entered, float whole, float* by_decay, long stride) {
        alignas(64) float before[piece];
        Floats inside[piece] = {};
        for (long i = p.length - 1; i >= 0; i--)
            for (long j = 0; j < piece; j += lanes) {
                const float *key = pairs + i * piece + j, *query = key + piece * piece, *scores = p.scores + i * piece + j;
                Floats pair = load(p.decays.pair[i] + j), by_key = kept_below(load(key), i - j);
                Floats by_query = kept_below(load(query), i - j + 1);
                store(weights + i * both + j, by_key * -pair);
                store(weights + (piece + i) * both + j, by_query * pair);
                Floats more = kept_below(by_query * load(scores + piece * piece) - by_key * load(scores), i - j);
                store(beyond + j, load(beyond + j) + more);
                inside[i] += kept_below(load(beyond + j), i - j);
            }
        if (!by_decay) return;
        for (long i = 0; i < piece; i += lanes) store(before + i, totals(inside + i));
        for (long i = p.length - 1; i >= 0; i--) {
            whole += entered[i];
            by_decay[i * stride] = p.decays.cut[i] ? 0.0f : whole + before[i];
        }
    }

    // Gradients in columns from what the states give and, through `weights`, from the other places of the piece.
    void columns_back(const Piece<T>& p, const Sizes<T>& s, Side rows) {
        for (long n = 0; n < s.keys; n++)
            for (long i = 0; i < piece; i += lanes) {
                float *key = by + n * both + i, *query = key + piece;
                Floats entering = load(p.decays.entering + i), leaving = load(p.decays.pair[p.length - 1] + i);
                store(key, load(kept + n * piece + i) * leaving - load(key) * entering);
                store(query, load(query) * entering);
            }
        Side along_keys = along<paired>(weights, both, both, weights_along);
        transposed(along_keys.at, along_keys.row, weights_across, both, both, piece);
        product<paired>(rows.turned(), {weights_across, both, 1}, by, both, s.keys, piece, both, 1);
        product<paired>(rows.turned(), across<paired>(weights, both, both, weights_along), by, both, s.keys, both, piece, 1);
    }

    void rows_back(T* by_k, T* by_q, const Sizes<T>& s, long length) {
        long row = s.key_row();
        transposed(by, both, by_rows, row, row, both);
        rows_out(by_rows, row, by_k, s.key_stride(), length, s.keys);
        rows_out(by_rows + piece * row, row, by_q, s.key_stride(), length, s.keys);
    }

    // What the products of states with keys and queries give to the logarithms of decays, for each place.
    void entered_back(const Piece<T>& p, const Sizes<T>& s, Side queries, float* entered) {
        transposed(queries.at, queries.row, queries_across, piece, piece, queries.row);
        for (long i = 0; i < piece; i += lanes) {
            Floats by_queries{}, by_keys{};
            for (long n = 0; n < s.keys; n++) {
                const float* column = by + n * both + i;
                by_queries += part<paired>(queries_across, piece, n, i) * load(column + piece);
                by_keys += part<paired>(p.keys_across, piece, n, i) * load(column);
            }
            store(entered + i, (by_queries - by_keys) * load(p.decays.entering + i));
        }
    }

    // The gradients by the values are those by the errors; sums of products with the errors are left in `by_beta` and
    // those of what leaves the piece in `beyond`.
    void errors_back(Piece<T>& p, const Sizes<T>& s, float* by_beta, float* beyond) {
        long row = s.row(), c = 0;
        Floats spread[2][piece] = {};
        for (; c + 4 * lanes <= row; c += 4 * lanes) solve_back<4>(p, sides + piece * row, sides, spread, row, c);
        for (; c < row; c += lanes) solve_back<1>(p, sides + piece * row, sides, spread, row, c);
        for (long j = 0; j < piece; j += lanes) {
            store(by_beta + j, totals(spread[0] + j));
            Floats left = load(p.decays.pair[p.length - 1] + j) * load(p.beta + j);
            store(beyond + j, kept_below(totals(spread[1] + j) * left, p.length - 1 - j));
        }
        for (long j = 0; j < p.length; j++)
            for (long n = 0; n < row; n += lanes)
                store(p.written + j * row + n, load(p.errors + j * row + n) * p.beta[j]);
    }

    void piece_back(Piece<T>& p, Side rows, const float* S, const Sizes<T>& s, float* by_beta, float* by_decay, T* by_v) {
        long row = s.row();
        alignas(64) float beyond[piece], entered[piece];
        float whole = p.decays.entering[p.length - 1], along_whole = 0;
        product<paired>(rows, across<paired>(flow, row, s.keys, narrow), p.read, row, p.length, s.keys, row, 0);
        errors_back(p, s, by_beta, beyond);
        rows_out(sides, row, by_v, s.stride(), p.length, s.values);
        Side written = along<paired>(p.written, row, piece, p.written_across);
        Side gone = along<paired>(sides, row, both, sides_along);
        transposed(written.at, written.row, written_across, piece, piece, written.row);
        transposed(gone.at, gone.row, sides_across, both, both, gone.row);
        product<paired>(gone, {written_across, piece, 1}, pairs, piece, both, s.values, piece, 0);
        if (by_decay && whole != 0) along_whole = whole * inner_product(flow, S, s.state());
        product<paired>(along<paired>(S, row, s.keys, narrow), {sides_across, both, 1}, by, both, s.keys, s.values, both, 0);
        product<paired>(along<paired>(flow, row, s.keys, narrow), {written_across, piece, 1}, kept, piece, s.keys, s.values,
                        piece, 0);
        if (by_decay) entered_back(p, s, rows.from(piece), entered);
        pairs_back(p, beyond, entered, along_whole, by_decay, s.heads);
        Side turned = along_to_across<paired>(p.rows, s.key_words(), both, p.rows_across);
        columns_back(p, s, turned);
        for (long i = 0; i < p.length; i++)
            for (long n = 0; n < row; n += lanes) {
                float *down = sides + i * row + n, *up = down + piece * row;
                store(down, load(down) * -p.decays.entering[i]);
                store(up, load(up) * p.decays.entering[i]);
            }
        product<paired>(turned.turned(), across<paired>(sides, row, both, sides_along), flow, row, s.keys, both, row, whole);
    }
};

// States before each piece of a span.
template <class T>
void states_in(const Inputs<T>& in, const T* errors, Piece<T>& p, float* S, const Sizes<T>& s, long at, long h, long count) {
    p.length = p.base = piece;
    for (long from = 0; from + piece < count; from += piece, S += s.state()) {
        p.keys_in(in, s, at + from, h);
        rows_in(errors + ((at + from) * s.heads + h) * s.values, s.stride(), p.errors, s.row(), piece, s.values);
        std::memcpy(S + s.state(), S, 4 * (size_t)s.state());
        p.advance(S + s.state(), s);
    }
}

template <class T>
struct Upstream {
    const T *dy, *errors;
    const float *dlast, *firsts;
};

// Piece n of the span from `begin` to `end`. What the same piece of the span before it wants is asked for, if there is one.
template <class T>
void piece_of_span(const Upstream<T>& up, const Inputs<T>& in, const Gradients<T>& out, const Sizes<T>& s, Piece<T>& p,
                   Back<T>& r, long b, long h, long begin, long end, long n) {
    long from = begin + n * piece, at = b * s.time + from, head = at * s.heads + h;
    long next = begin ? head - span * s.heads : head, row = s.row(), stride = s.stride();
    alignas(64) float by_beta[piece];
    p.length = from + piece < end ? piece : end - from;
    p.base = piece;
    p.keys_in(in, s, at, h);
    ask_for(in.k + next * s.keys, s.key_stride(), p.length, s.keys);
    ask_for(up.errors + next * s.values, stride, p.length, s.values);
    Side rows = p.scores_in(in, s, at, h);
    ask_for(in.q + next * s.keys, s.key_stride(), p.length, s.keys);
    ask_for(up.dy + next * s.values, stride, p.length, s.values);
    if (p.length < piece) r.clear(s);
    rows_in(up.errors + head * s.values, stride, p.errors, row, p.length, s.values);
    rows_in(up.dy + head * s.values, stride, r.sides + piece * row, row, p.length, s.values);
    ask_for(out.k + head * s.keys, s.key_stride(), p.length, s.keys);
    ask_for(out.q + head * s.keys, s.key_stride(), p.length, s.keys);
    ask_for(out.v + head * s.values, stride, p.length, s.values);
    float* by_decay = out.decay ? out.decay + head : nullptr;
    r.piece_back(p, rows, r.states + n * s.state(), s, by_beta, by_decay, out.v + head * s.values);
    for (long j = 0; j < p.length; j++) out.beta[head + j * s.heads] = by_beta[j];
    r.rows_back(out.k + head * s.keys, out.q + head * s.keys, s, p.length);
}

template <class T>
void backward_head(const Upstream<T>& up, const Inputs<T>& in, const Gradients<T>& out, const Sizes<T>& s, Piece<T>& p,
                   Back<T>& r, long b, long h) {
    long carried = (b * s.heads + h) * s.keys * s.values, row = s.row();
    std::memset(r.flow, 0, 4 * (size_t)s.state());
    if (up.dlast) rows_in(up.dlast + carried, s.values, r.flow, row, s.keys, s.values);
    for (long kept = s.spans() - 1; kept >= 0; kept--) {
        long begin = kept * span, end = begin + span < s.time ? begin + span : s.time;
        rows_in(up.firsts + s.first(b, h, kept), s.values, r.states, row, s.keys, s.values);
        if (kept) ask_for(up.firsts + s.first(b, h, kept - 1), s.values, s.keys, s.values);
        states_in(in, up.errors, p, r.states, s, b * s.time + begin, h, end - begin);
        for (long n = (end - begin - 1) / piece; n >= 0; n--) piece_of_span(up, in, out, s, p, r, b, h, begin, end, n);
    }
    rows_out(r.flow, row, out.state + carried, s.values, s.keys, s.values);
}

template <class T>
void backward(const Upstream<T>& up, const Inputs<T>& in, const Gradients<T>& out, const Sizes<T>& s) {
#pragma omp parallel
    {
        Piece<T> p(s);
        Back<T> r(s);
#pragma omp for collapse(2) schedule(static)
        for (long b = 0; b < s.batch; b++)
            for (long h = 0; h < s.heads; h++) backward_head(up, in, out, s, p, r, b, h);
    }
}

}  // namespace

// sizes: batch, time, heads, keys, values, and whether q, k, v, y and the errors are bfloat16; all else is float32. log_decay
// (no decay), state (zeros) and starts may be null.
FAIRWAY_EXPORT(delta_forward)
(const void* q, const void* k, const void* v, const float* beta, const float* log_decay, const float* state,
 const bool* starts, void* y, float* last, void* errors, float* firsts, const long* n) {
    auto run = [&](auto type) {
        using T = decltype(type);
        forward<T>({(const T*)q, (const T*)k, (const T*)v, beta, log_decay, starts}, state, {(T*)y, (T*)errors, last, firsts},
                   {n[0], n[1], n[2], n[3], n[4]});
    };
    n[5] ? run(Bfloat{}) : run(float{});
}

// The same of the gradients; dlast may be null (zeros), by_decay is null where log_decay is.
FAIRWAY_EXPORT(delta_backward)
(const void* dy, const float* dlast, const void* q, const void* k, const void* v, const float* beta, const float* log_decay,
 const bool* starts, const void* errors, const float* firsts, void* by_q, void* by_k, void* by_v, float* by_beta,
 float* by_decay, float* by_state, const long* n) {
    auto run = [&](auto type) {
        using T = decltype(type);
        backward<T>({(const T*)dy, (const T*)errors, dlast, firsts},
                    {(const T*)q, (const T*)k, (const T*)v, beta, log_decay, starts},
                    {(T*)by_q, (T*)by_k, (T*)by_v, by_beta, by_decay, by_state}, {n[0], n[1], n[2], n[3], n[4]});
    };
    n[5] ? run(Bfloat{}) : run(float{});
}
