// Linear recurrences over outer products with one decay for a head and token, forward and backward: the state space of
// Mamba-2 by its definition in naive.py, with queries, keys and values for C, B and Delta x.
//
// Tokens are taken in pieces of 32. Within a piece they meet as in attention, weighed by the decays between them, and all
// that came before they read from the state: products of small matrices. States are kept at the starts of pieces. A number
// that is none never meets tokens before it nor another document, not even times zero. Products of bfloat16 tensors use
// bfloat16 dot instructions where the level has them; decays, sums and states are float32.
//
// q and k are (batch, time, groups, keys), v is (batch, time, heads, values), logarithms of decays (batch, time, heads), a
// carried state (batch, heads, keys, values); value head h reads key group h / (heads / groups). `firsts` is (batch, heads,
// pieces, keys, values).

#include "../kernel/decays.h"
#include "packing.h"

namespace {

struct Sizes {
    long batch, time, groups, heads, keys, values, unit;
    long key_row() const { return rounded_up(keys, unit); }
    long row() const { return rounded_up(values, unit); }
    long pieces() const { return (time + piece - 1) / piece; }
    long state() const { return key_row() * row(); }
    long wide() const { return std::max(key_row(), row()); }
    long key_stride() const { return groups * keys; }
    long stride() const { return heads * values; }
};

template <class T>
struct Inputs {
    const T *q, *k, *v;
    const float* log_decay;
    const bool* starts;
};

// Operands of one piece.
template <bool paired, class T>
struct Piece {
    const Inputs<T>& in;
    const Sizes& s;
    long key_words, words;  // of a token along its features
    Room room;
    uint32_t *q, *k, *v;  // along
    uint32_t *k_turned, *v_across;
    uint32_t* k_leaving;  // across, times the decay behind the place
    float* scores;        // of each query with each key, times the decay between them
    uint32_t* weighed;    // the same, along
    Decays<piece> decays;
    const T *own_q, *own_k, *own_v;
    long length;
    bool finite;  // all values are
    Ahead ahead;

    Piece(const Inputs<T>& in, const Sizes& s)
        : in(in), s(s), key_words(s.key_row() / depth<paired>), words(s.row() / depth<paired>),
          room(6 * piece * s.wide() + 2 * piece * piece) {
        q = room.take(piece * key_words);
        k = room.take(piece * key_words);
        k_turned = room.take(piece * key_words);
        k_leaving = room.take(piece * key_words);
        v = room.take(piece * words);
        v_across = paired ? room.take(piece * words) : v;
        scores = room.floats(piece * piece);
        weighed = paired ? room.take(piece * piece / 2) : (uint32_t*)scores;
    }

    float whole() const { return decays.entering[length - 1]; }
    const float* leaving() const { return decays.pair[length - 1]; }

    void begin(long b, long h, long token) {
        length = std::min(piece, s.time - token);
        long at = b * s.time + token, key = (at * s.groups + h / (s.heads / s.groups)) * s.keys;
        own_q = in.q + key;
        own_k = in.k + key;
        own_v = in.v + (at * s.heads + h) * s.values;
        decays.fill(in.log_decay + at * s.heads + h, s.heads, in.starts ? in.starts + at : nullptr, length);
        ahead = {};
    }

    // Asks for the tokens so far ahead.
    void ask(long tokens) {
        ahead.add(own_k + tokens * s.key_stride(), s.key_stride(), piece, s.keys);
        ahead.add(own_q + tokens * s.key_stride(), s.key_stride(), piece, s.keys);
        ahead.add(own_v + tokens * s.stride(), s.stride(), piece, s.values);
    }

    void fill() {
        tokens_along<paired>(own_q, s.key_stride(), q, key_words, length, s.keys);
        tokens_along<paired>(own_k, s.key_stride(), k, key_words, length, s.keys);
        turn(k, key_words, k_turned, piece);
        lower(q, key_words, k_turned, scores);
        weigh(scores);
    }

    // The products of rows with the columns up to their own, whole vectors of them.
    void lower(const uint32_t* a, long inner, const uint32_t* b, float* c) {
        for (long i = 0; i < piece; i += strip)
            multiply<paired>(ahead, a + i * inner, inner, b, piece, c + i * piece, piece, strip,
                             rounded_up(i + strip, lanes), inner);
    }

    // Times the decay between row and column; zeros where the two do not meet.
    void weigh(float* pairs) const {
        for (long i = 0; i < length; i++)
            for (long j = 0; j <= i; j += lanes) {
                Floats met = load(pairs + i * piece + j) * load(decays.pair[i] + j);
                Ints place = counting() + (int)j, meets = (place >= (int)decays.first[i]) & (place <= (int)i);
                store(pairs + i * piece + j, select(meets, met, Floats{}));
            }
        std::memset(pairs + length * piece, 0, 4 * (size_t)((piece - length) * piece));
    }

    // c = scales c + a b of the pairs of tokens that meet: from the rows' own columns back, or (turned) from there on.
    void lower_times(const uint32_t* a, const uint32_t* b, float* c, long row, const float* scales) {
        for (long i = 0; i < piece; i += strip)
            multiply<paired>(ahead, a + i * piece / depth<paired>, piece / depth<paired>, b, row, c + i * row, row, strip,
                             row, (i + strip) / depth<paired>, scales + i);
    }
    void upper_times(const uint32_t* a, const uint32_t* b, float* c, long row, const float* scales) {
        for (long i = 0; i < piece; i += strip) {
            long from = i / depth<paired>;
            multiply<paired, true>(ahead, a + from * piece + i, piece, b + from * row, row, c + i * row, row, strip, row,
                                   piece / depth<paired> - from, scales + i);
        }
    }

    void values_in() {
        pack_tokens<paired>(own_v, s.stride(), v_across, length, piece, s.values, s.row());
        Floats nothing[4] = {};
        for (long n = 0; n < piece * words; n += 4 * lanes)
            for (long j = 0; j < 4; j++) nothing[j] = Product<paired>::add(nothing[j], v_across + n + j * lanes, 0);
        finite = sum(nothing[0] + nothing[1] + nothing[2] + nothing[3]) == 0;
    }

    // The outputs, from what the state gives each query.
    void meet(float* out) {
        float entering[piece];
        for (long i = 0; i < piece; i++) entering[i] = i < length ? decays.entering[i] : 0.0f;
        if (paired) rows_along<paired>(scores, piece, weighed, piece);
        if (finite) return lower_times(weighed, v_across, out, s.row(), entering);
        for (long i = 0; i < length; i++)
            for (long n = 0; n < s.row(); n += lanes) {
                Floats sum = entering[i] == 0 ? Floats{} : load(out + i * s.row() + n) * entering[i];
                for (long j = decays.first[i]; j <= i; j++) sum += value(j, n) * scores[i * piece + j];
                store(out + i * s.row() + n, sum);
            }
    }

    Floats value(long j, long n) const { return load_part(own_v + j * s.stride() + n, s.values - n); }

    // The state behind the piece.
    void advance(float* S) {
        float kept = whole();
        tokens_across<paired>(own_k, s.key_stride(), k_leaving, s.key_row(), leaving(), length, s.keys);
        if (finite)
            return multiply<paired, true>(ahead, k_leaving, s.key_row(), v_across, s.row(), S, s.row(), s.key_row(),
                                          s.row(), piece / depth<paired>, &kept, 0);
        for (long m = 0; m < s.keys; m++)
            for (long n = 0; n < s.row(); n += lanes) {
                Floats sum = kept == 0 ? Floats{} : load(S + m * s.row() + n) * kept;
                for (long j = decays.first[length - 1]; j < length; j++)
                    sum += value(j, n) * (to_float(own_k[j * s.key_stride() + m]) * leaving()[j]);
                store(S + m * s.row() + n, sum);
            }
    }
};

template <bool paired, class T>
void forward(const Inputs<T>& in, const float* state, T* y, float* last, float* firsts, const Sizes& s) {
#pragma omp parallel
    {
        Piece<paired, T> p(in, s);
        Room room(2 * s.state() + piece * s.row());
        float *S = room.floats(s.state()), *out = room.floats(piece * s.row());
        uint32_t* S_across = paired ? room.take(s.state() / 2) : (uint32_t*)S;
#pragma omp for collapse(2) schedule(static)
        for (long b = 0; b < s.batch; b++)
            for (long h = 0; h < s.heads; h++) {
                long head = b * s.heads + h, cells = s.keys * s.values, row = s.row();
                rows_in(state + head * cells, s.values, S, row, s.keys, s.values);
                for (long n = 0; n < s.pieces(); n++) {
                    T* to = y + ((b * s.time + n * piece) * s.heads + h) * s.values;
                    float* first = firsts + (head * s.pieces() + n) * cells;
                    put_rows(S, row, first, s.values, s.keys, s.values);
                    p.begin(b, h, n * piece);
                    p.ahead.add(to, s.stride(), p.length, s.values);
                    p.ahead.add(first + cells, s.values, s.keys, s.values);
                    p.ask(piece);
                    p.fill();
                    p.values_in();
                    if (paired) rows_across<paired>(S, row, S_across, s.key_row());
                    multiply<paired>(p.ahead, p.q, p.key_words, S_across, row, out, row, piece, row, p.key_words);
                    p.meet(out);
                    p.advance(S);
                    put_rows(out, row, to, s.stride(), p.length, s.values);
                }
                put_rows(S, row, last + head * cells, s.values, s.keys, s.values);
            }
    }
}

template <class T>
struct Gradients {
    T *q, *k, *v;
    float *decay, *state;
};

// What the backward pass of a piece works with: gradients by outputs, values, queries, keys and by the state behind it.
template <bool paired, class T>
struct Back {
    Piece<paired, T> p;
    const Sizes& s;
    Room room;
    float *S, *flow, *dv, *dq, *dk, *pairs;
    uint32_t *state_words, *S_turned, *flow_turned, *flow_across;
    uint32_t *up, *up_across, *q_across, *k_across, *q_entering, *v_turned;
    uint32_t *pairs_along, *pairs_across, *scores_across;

    Back(const Inputs<T>& in, const Sizes& s)
        : p(in, s), s(s), room(4 * s.state() + 6 * piece * s.wide() + 3 * piece * piece) {
        S = room.floats(s.state());
        flow = room.floats(s.state());
        state_words = paired ? room.take(s.state() / 2) : nullptr;
        S_turned = room.take(s.state() / depth<paired>);
        flow_turned = room.take(s.state() / depth<paired>);
        flow_across = paired ? room.take(s.state() / 2) : (uint32_t*)flow;
        dv = room.floats(piece * s.row());
        dq = room.floats(piece * s.key_row());
        dk = room.floats(piece * s.key_row());
        pairs = room.floats(piece * piece);
        up = room.take(piece * p.words);
        up_across = paired ? room.take(piece * p.words) : up;
        q_across = paired ? room.take(piece * p.key_words) : p.q;
        k_across = paired ? room.take(piece * p.key_words) : p.k;
        q_entering = room.take(piece * p.key_words);
        v_turned = room.take(piece * p.words);
        pairs_along = paired ? room.take(piece * piece / 2) : (uint32_t*)pairs;
        pairs_across = paired ? room.take(piece * piece / 2) : (uint32_t*)pairs;
        scores_across = paired ? room.take(piece * piece / 2) : (uint32_t*)p.scores;
    }

    // Asks for room for the gradients of a piece and for what the piece before it needs.
    void ask(const Gradients<T>& out, const T* dy, long token, const float* first) {
        p.ahead.add(out.v + token * s.values, s.stride(), p.length, s.values);
        p.ahead.add(out.q + token * s.keys, s.heads * s.keys, p.length, s.keys);
        p.ahead.add(out.k + token * s.keys, s.heads * s.keys, p.length, s.keys);
        if (token < piece * s.heads) return;
        p.ahead.add(first, s.values, s.keys, s.values);
        p.ahead.add(dy + (token - piece * s.heads) * s.values, s.stride(), piece, s.values);
        p.ask(-piece);
    }

    void put(const Gradients<T>& out, long token) const {
        put_rows(dv, s.row(), out.v + token * s.values, s.stride(), p.length, s.values);
        put_rows(dq, s.key_row(), out.q + token * s.keys, s.heads * s.keys, p.length, s.keys);
        put_rows(dk, s.key_row(), out.k + token * s.keys, s.heads * s.keys, p.length, s.keys);
    }

    // Rows of a state as columns of operands along its values.
    void turn_state(const float* from, uint32_t* to) {
        if (paired) rows_along<paired>(from, s.row(), state_words, s.key_row());
        turn(paired ? state_words : (const uint32_t*)from, p.words, to, s.key_row());
    }

    void gradient_in(const T* dy) {
        tokens_along<paired>(dy, s.stride(), up, p.words, p.length, s.values);
        tokens_along<paired>(p.own_v, s.stride(), p.v, p.words, p.length, s.values);
        if (!paired) return;
        pack_tokens<paired>(dy, s.stride(), up_across, p.length, piece, s.values, s.row());
        pack_tokens<paired>(p.own_q, s.key_stride(), q_across, p.length, piece, s.keys, s.key_row());
        pack_tokens<paired>(p.own_k, s.key_stride(), k_across, p.length, piece, s.keys, s.key_row());
    }

    float met(const T* own, const float* row) const {
        Floats sums{};
        for (long n = 0; n < s.keys; n += lanes) sums += load_part(own + n, s.keys - n) * load(row + n);
        return sum(sums);
    }

    // A decay stands between all places from its own on and all before it. dq and dk hold what the states give.
    void decays_back(float* by_decay) const {
        float beyond[piece] = {}, entered = p.whole() == 0 ? 0.0f : p.whole() * dot(flow, S, s.state());
        for (long j = 0; j + 1 < p.length; j++)
            beyond[j] = p.leaving()[j] * met(p.own_k + j * s.key_stride(), dk + j * s.key_row());
        for (long i = p.length - 1; i >= 0; i--) {
            Floats before{};
            for (long j = 0; j <= i; j += lanes) {
                Floats both = load(pairs + i * piece + j) * load(p.scores + i * piece + j);
                store(beyond + j, load(beyond + j) + kept_below(both, i - j));
                before += kept_below(load(beyond + j), i - j);
            }
            entered += p.decays.entering[i] * met(p.own_q + i * s.key_stride(), dq + i * s.key_row());
            by_decay[i * s.heads] = p.decays.cut[i] ? 0.0f : entered + sum(before);
        }
    }

    void piece_back(const T* dy, float* by_decay) {
        long row = s.row(), key_row = s.key_row();
        gradient_in(dy);
        turn(p.v, p.words, v_turned, piece);
        p.lower(up, p.words, v_turned, pairs);
        turn_state(S, S_turned);
        multiply<paired>(p.ahead, up, p.words, S_turned, key_row, dq, key_row, piece, key_row, p.words);
        turn_state(flow, flow_turned);
        multiply<paired>(p.ahead, p.v, p.words, flow_turned, key_row, dk, key_row, piece, key_row, p.words);
        decays_back(by_decay);
        p.weigh(pairs);
        if (paired) {
            rows_across<paired>(flow, row, flow_across, key_row);
            rows_along<paired>(pairs, piece, pairs_along, piece);
            rows_across<paired>(pairs, piece, pairs_across, piece);
            rows_across<paired>(p.scores, piece, scores_across, piece);
        }
        float entering[piece], kept = p.whole();
        for (long i = 0; i < piece; i++) entering[i] = i < p.length ? p.decays.entering[i] : 0.0f;
        multiply<paired>(p.ahead, p.k, p.key_words, flow_across, row, dv, row, piece, row, p.key_words);
        p.upper_times(scores_across, up_across, dv, row, p.leaving());
        p.lower_times(pairs_along, k_across, dq, key_row, entering);
        p.upper_times(pairs_across, q_across, dk, key_row, p.leaving());
        tokens_across<paired>(p.own_q, s.key_stride(), q_entering, key_row, entering, p.length, s.keys);
        multiply<paired, true>(p.ahead, q_entering, key_row, up_across, row, flow, row, key_row, row,
                               piece / depth<paired>, &kept, 0);
    }
};

template <bool paired, class T>
void backward(const T* dy, const float* dlast, const Inputs<T>& in, const float* firsts, const Gradients<T>& out,
              const Sizes& s) {
#pragma omp parallel
    {
        Back<paired, T> r(in, s);
        Piece<paired, T>& p = r.p;
#pragma omp for collapse(2) schedule(static)
        for (long b = 0; b < s.batch; b++)
            for (long h = 0; h < s.heads; h++) {
                long head = b * s.heads + h, cells = s.keys * s.values, row = s.row();
                std::memset(r.flow, 0, 4 * (size_t)s.state());
                rows_in(dlast + head * cells, s.values, r.flow, row, s.keys, s.values);
                for (long n = s.pieces() - 1; n >= 0; n--) {
                    long token = (b * s.time + n * piece) * s.heads + h;
                    const float* first = firsts + (head * s.pieces() + n) * cells;
                    rows_in(first, s.values, r.S, row, s.keys, s.values);
                    p.begin(b, h, n * piece);
                    r.ask(out, dy, token, first - cells);
                    p.fill();
                    r.piece_back(dy + token * s.values, out.decay + token);
                    r.put(out, token);
                }
                put_rows(r.flow, row, out.state + head * cells, s.values, s.keys, s.values);
            }
    }
}

template <bool paired>
Sizes sizes_of(const long* n) { return {n[0], n[1], n[2], n[3], n[4], n[5], 16 * depth<paired>}; }

template <bool paired, class T>
void forward_of(const void* q, const void* k, const void* v, const float* log_decay, const float* state, const bool* starts,
                void* y, float* last, float* firsts, const long* sizes) {
    Inputs<T> in{(const T*)q, (const T*)k, (const T*)v, log_decay, starts};
    forward<paired, T>(in, state, (T*)y, last, firsts, sizes_of<paired>(sizes));
}

template <bool paired, class T>
void backward_of(const void* dy, const float* dlast, const void* q, const void* k, const void* v, const float* log_decay,
                 const float* firsts, const bool* starts, void* by_q, void* by_k, void* by_v, float* by_decay,
                 float* by_state, const long* sizes) {
    Inputs<T> in{(const T*)q, (const T*)k, (const T*)v, log_decay, starts};
    Gradients<T> out{(T*)by_q, (T*)by_k, (T*)by_v, by_decay, by_state};
    backward<paired, T>((const T*)dy, dlast, in, firsts, out, sizes_of<paired>(sizes));
}

}  // namespace

// sizes: batch, time, groups, heads, keys, values. starts may be null. half: q, k, v and y are bfloat16, else float32.
FAIRWAY_EXPORT(ssd_forward)
(const void* q, const void* k, const void* v, const float* log_decay, const float* state, const bool* starts, void* y,
 float* last, float* firsts, const long* sizes, int half) {
    (half ? forward_of<has_pairs, Bfloat> : forward_of<false, float>)(q, k, v, log_decay, state, starts, y, last, firsts,
                                                                      sizes);
}

// by_q and by_k are (batch, time, heads, keys): each value head's own share.
FAIRWAY_EXPORT(ssd_backward)
(const void* dy, const float* dlast, const void* q, const void* k, const void* v, const float* log_decay,
 const float* firsts, const bool* starts, void* by_q, void* by_k, void* by_v, float* by_decay, float* by_state,
 const long* sizes, int half) {
    (half ? backward_of<has_pairs, Bfloat> : backward_of<false, float>)(dy, dlast, q, k, v, log_decay, firsts, starts, by_q,
                                                                        by_k, by_v, by_decay, by_state, sizes);
}
