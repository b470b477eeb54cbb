// Causal depthwise convolution with an optional SiLU, forward and backward: see naive.py for the definition.
//
// A thread takes a block of channels of one sequence in stretches of time. The rows that a stretch needs are copied to
// where they are near, in float32, and each vector of channels goes through a stretch with its weights and its sums in
// registers. The gradient by the input of a token is complete `taps - 1` tokens later: that many rows stay for the next
// stretch.

#include <cstring>

#include "../kernel/point.h"
#include "../kernel/scratch.h"

namespace {

constexpr long block = 128;
constexpr long stretch = 16;

inline long smaller(long a, long b) { return a < b ? a : b; }

struct Sizes {
    long batch, length, width, taps, batch_stride, time_stride;
};

// The last `carried` rows to the front, where the next stretch finds them.
template <class Row>
void keep(Row* rows, long size, long carried, long count) {
    std::memmove(rows, rows + count * size, (size_t)(carried * size) * sizeof(Row));
}

// One sequence from its channel `first` on; rows before the sequence are the carried ones, in float32.
template <class T>
struct Sequence {
    const T* x;
    const float *weight, *bias, *state;
    const unsigned char* starts;
    Sizes n;
    long which, first, wide, carried;
    Scratch<float> rows;   // of the stretch and the `carried` before it
    Scratch<long> reaches;  // how many tokens back each of them may look

    Sequence(const T* x, const float* weight, const float* bias, const float* state, const unsigned char* starts,
             Sizes n, long which, long first)
        : x(x + which * n.batch_stride + first),
          weight(weight + first),
          bias(bias ? bias + first : nullptr),
          state(state + which * (n.taps - 1) * n.width + first),
          starts(starts ? starts + which * n.length : nullptr),
          n(n),
          which(which),
          first(first),
          wide(smaller(block, n.width - first)),
          carried(n.taps - 1),
          rows((stretch + n.taps) * block),
          reaches(stretch + 2 * n.taps) {
        for (long j = 0; j < carried; j++) {
            std::memcpy(rows.data() + j * block, this->state + j * n.width, 4 * (size_t)wide);
            reaches[j] = carried;
        }
    }

    // Reads a stretch behind the rows that are there; returns its tokens.
    long read(long begin) {
        long count = smaller(stretch, n.length - begin), before = carried ? reaches[carried - 1] : 0;
        for (long t = 0; t < count; t++) {
            before = starts && starts[begin + t] ? 0 : smaller(before + 1, carried);
            reaches[carried + t] = before;
            const T* from = x + (begin + t) * n.time_stride;
            for (long i = 0; i < wide; i += lanes) {
                __builtin_prefetch(from + stretch * n.time_stride + i);
                store(rows.data() + (carried + t) * block + i, load_part(from + i, wide - i));
            }
        }
        return count;
    }

    void next(long count) {
        keep(rows.data(), block, carried, count);
        keep(reaches.data(), 1, carried, count);
    }
};

// The weights of a vector of channels, by how many tokens back they look. Not known when compiled: `taps` 0.
template <int taps>
struct Filter {
    Floats held[taps ? taps : 1], bias;
    const float* weight;
    long width, count, left;

    template <class T>
    Filter(const Sequence<T>& seen, long i)
        : bias(seen.bias ? load_part(seen.bias + i, seen.wide - i) : Floats{}), weight(seen.weight + i),
          width(seen.n.width), count(taps ? taps : seen.n.taps), left(seen.wide - i) {
        for (int back = 0; back < taps; back++) held[back] = read(back);
    }
    Floats read(long back) const { return load_part(weight + (count - 1 - back) * width, left); }
    Floats operator[](long back) const { return taps ? held[back] : read(back); }

    // The sum at a row; those before it lie before it.
    Floats value(const float* row, long reach) const {
        Floats sum = bias;
#pragma GCC unroll 4
        for (long back = 0; back < count; back++)
            if (back <= reach) sum += (*this)[back] * load(row - back * block);
        return sum;
    }
};

template <int taps, class Point, class T>
void forward(const T* x, const float* weight, const float* bias, const float* state, const unsigned char* starts, T* y,
             float* last, Sizes n) {
    const long blocks = (n.width + block - 1) / block;
#pragma omp parallel for collapse(2) schedule(static)
    for (long which = 0; which < n.batch; which++)
        for (long part = 0; part < blocks; part++) {
            Sequence<T> seen(x, weight, bias, state, starts, n, which, part * block);
            const long carried = seen.carried;
            for (long begin = 0; begin < n.length; begin += stretch) {
                const long count = seen.read(begin);
                T* to = y + (which * n.length + begin) * n.width + seen.first;
                for (long i = 0; i < seen.wide; i += lanes) {
                    const Filter<taps> filter(seen, i);
                    for (long t = 0; t < count; t++) {
                        Floats z = filter.value(seen.rows.data() + (carried + t) * block + i, seen.reaches[carried + t]);
                        store_part(to + t * n.width + i, Point::value(z), seen.wide - i);
                    }
                }
                seen.next(count);
            }
            for (long j = 0; j < carried; j++) {
                const bool same = carried - 1 - j <= seen.reaches[carried - 1];
                float* kept = last + (which * carried + j) * n.width + seen.first;
                for (long i = 0; i < seen.wide; i += lanes)
                    store_part(kept + i, same ? load(seen.rows.data() + j * block + i) : Floats{}, seen.wide - i);
            }
        }
}

// Gradients of one block of channels of a sequence.
template <class T>
struct Back {
    Sequence<T> seen;
    Scratch<float> flows;  // gradients by the sums, of the stretch and the `carried` tokens before it
    Scratch<float> sums;   // gradients by each tap, and by the bias behind them; rows of `block`
    T* dx;
    float* dstate;

    template <class... Given>
    Back(T* dx, float* dstate, const Sizes& n, long which, long first, Given... given)
        : seen(given..., n, which, first), flows((stretch + 2 * n.taps) * block), sums((n.taps + 1) * block),
          dx(dx + which * n.length * n.width + first), dstate(dstate + which * (n.taps - 1) * n.width + first) {}

    template <int taps, class Point>
    void through(const T* g, long count, long i) {
        const Filter<taps> filter(seen, i);
        const long left = seen.wide - i;
        Floats held[taps ? taps : 1] = {}, by_bias = load(sums.data() + seen.n.taps * block + i);
        for (long t = 0; t < count; t++) {
            const long reach = seen.reaches[seen.carried + t];
            const float* row = seen.rows.data() + (seen.carried + t) * block + i;
            Floats z = filter.value(row, reach);
            Floats flow = load_part(g + t * seen.n.width + i, left) * Point::slope(z, Point::value(z));
            store(flows.data() + (seen.carried + t) * block + i, flow);
            by_bias += flow;
#pragma GCC unroll 4
            for (long back = 0; back < filter.count; back++) {
                if (back > reach) continue;
                Floats share = load(row - back * block) * flow;
                if (taps) held[back] += share;
                else add(back, i, share);
            }
        }
        for (int back = 0; back < taps; back++) add(back, i, held[back]);
        store(sums.data() + seen.n.taps * block + i, by_bias);
    }

    void add(long back, long i, Floats share) {
        float* to = sums.data() + (seen.carried - back) * block + i;
        store(to, load(to) + share);
    }

    // Gradients by `count` inputs, from the one `carried` tokens before `begin` on; `last` are those by the state behind.
    template <int taps>
    void finish(long begin, long count, const float* last) {
        const long reached = seen.carried ? seen.reaches[seen.carried - 1] : 0;
        for (long i = 0; i < seen.wide; i += lanes) {
            const Filter<taps> filter(seen, i);
            const long left = seen.wide - i;
            for (long r = 0; r < count; r++) {
                const float* flow = flows.data() + r * block + i;
                const bool same = last && seen.carried - 1 - r <= reached;
                Floats sum = same ? load_part(last + r * seen.n.width + i, left) : Floats{};
#pragma GCC unroll 4
                for (long back = 0; back < filter.count; back++)
                    if (back <= seen.reaches[r + back]) sum += filter[back] * load(flow + back * block);
                const long t = begin + r - seen.carried;
                if (t >= 0) store_part(dx + t * seen.n.width + i, sum, left);
                else store_part(dstate + (seen.carried + t) * seen.n.width + i, sum, left);
            }
        }
    }
};

// `dweight` is (batch, taps, width), `dbias` (batch, width), to be summed over the batch.
template <int taps, class Point, class T>
void backward(const T* g, const float* glast, const T* x, const float* weight, const float* bias, const float* state,
              const unsigned char* starts, T* dx, float* dweight, float* dbias, float* dstate, Sizes n) {
    const long blocks = (n.width + block - 1) / block;
#pragma omp parallel for collapse(2) schedule(static)
    for (long which = 0; which < n.batch; which++)
        for (long part = 0; part < blocks; part++) {
            Back<T> r(dx, dstate, n, which, part * block, x, weight, bias, state, starts);
            const long carried = r.seen.carried, first = part * block, wide = r.seen.wide;
            for (long begin = 0; begin < n.length; begin += stretch) {
                const long count = r.seen.read(begin);
                const T* up = g + (which * n.length + begin) * n.width + first;
                for (long i = 0; i < wide; i += lanes) r.template through<taps, Point>(up, count, i);
                r.template finish<taps>(begin, count, nullptr);
                r.seen.next(count);
                keep(r.flows.data(), block, carried, count);
            }
            std::memset(r.flows.data() + carried * block, 0, 4 * (size_t)(carried * block));
            r.template finish<taps>(n.length, carried, glast + which * carried * n.width + first);
            for (long k = 0; k < n.taps; k++)
                std::memcpy(dweight + (which * n.taps + k) * n.width + first, r.sums.data() + k * block, 4 * (size_t)wide);
            std::memcpy(dbias + which * n.width + first, r.sums.data() + n.taps * block, 4 * (size_t)wide);
        }
}

template <int taps, class T, class... More>
void forward_of(int silu, More... more) {
    silu ? forward<taps, Silu, T>(more...) : forward<taps, Identity, T>(more...);
}

template <int taps, class T, class... More>
void backward_of(int silu, More... more) {
    silu ? backward<taps, Silu, T>(more...) : backward<taps, Identity, T>(more...);
}

template <class T, class... More>
void choose_forward(long taps, More... more) {
    taps == 4 ? forward_of<4, T>(more...) : forward_of<0, T>(more...);
}

template <class T, class... More>
void choose_backward(long taps, More... more) {
    taps == 4 ? backward_of<4, T>(more...) : backward_of<0, T>(more...);
}

Sizes sizes_of(const long* given) { return {given[0], given[1], given[2], given[3], given[4], given[5]}; }

}  // namespace

// x is (batch, length, width) with rows of consecutive numbers; sizes are those three, the taps, and x's strides of a
// sequence and of a token. weight (taps, width), bias, state and last (batch, taps - 1, width) are float32; x and y
// bfloat16 where half is 1. bias and starts may be null.
FAIRWAY_EXPORT(causal_conv_forward)
(const void* x, const float* weight, const float* bias, const float* state, const unsigned char* starts, void* y,
 float* last, const long* sizes, int silu, int half) {
    const Sizes n = sizes_of(sizes);
    half ? choose_forward<Bfloat>(n.taps, silu, (const Bfloat*)x, weight, bias, state, starts, (Bfloat*)y, last, n)
         : choose_forward<float>(n.taps, silu, (const float*)x, weight, bias, state, starts, (float*)y, last, n);
}

FAIRWAY_EXPORT(causal_conv_backward)
(const void* g, const float* glast, const void* x, const float* weight, const float* bias, const float* state,
 const unsigned char* starts, void* dx, float* dweight, float* dbias, float* dstate, const long* sizes, int silu,
 int half) {
    const Sizes n = sizes_of(sizes);
    half ? choose_backward<Bfloat>(n.taps, silu, (const Bfloat*)g, glast, (const Bfloat*)x, weight, bias, state, starts,
                                   (Bfloat*)dx, dweight, dbias, dstate, n)
         : choose_backward<float>(n.taps, silu, (const float*)g, glast, (const float*)x, weight, bias, state, starts,
                                  (float*)dx, dweight, dbias, dstate, n);
}
