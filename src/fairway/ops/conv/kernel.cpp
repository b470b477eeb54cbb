// Causal depthwise convolution with an optional SiLU, forward and backward: see naive.py for the definition.
//
// A thread takes a block of channels of one sequence and walks along time, so that the rows it needs stay in the cache.
// The gradient by the input of a token is complete once the taps - 1 tokens behind it are done: a ring of as many rows
// collects it in float32.

#include <cstring>

#include "../kernel/point.h"
#include "../kernel/scratch.h"

namespace {

constexpr long block = 128;

inline void clear(float* p, long count) { std::memset(p, 0, (size_t)count * sizeof(float)); }

inline void copy(const float* from, float* to, long count) { std::memcpy(to, from, (size_t)count * sizeof(float)); }

inline long smaller(long a, long b) { return a < b ? a : b; }

struct Sizes {
    long batch, length, width, taps, batch_stride, time_stride;
};

// One sequence from its channel `first` on; rows before the sequence are the carried ones, in float32.
template <class T>
struct Sequence {
    const T* x;
    const float *weight, *bias, *state;
    const unsigned char* starts;
    Sizes n;
    long carried;

    Sequence(const T* x, const float* weight, const float* bias, const float* state, const unsigned char* starts,
             Sizes n, long which, long first)
        : x(x + which * n.batch_stride + first),
          weight(weight + first),
          bias(bias ? bias + first : nullptr),
          state(state + which * (n.taps - 1) * n.width + first),
          starts(starts ? starts + which * n.length : nullptr),
          n(n),
          carried(n.taps - 1) {}

    // How many tokens back the token t may look, given that of the token before it.
    long reach(long t, long before) const { return starts && starts[t] ? 0 : smaller(before + 1, carried); }

    Floats row(long t, long i, long left) const {
        return t >= 0 ? load_part(x + t * n.time_stride + i, left)
                      : load_part(state + (carried + t) * n.width + i, left);
    }

    Floats tap(long back, long i, long left) const { return load_part(weight + (carried - back) * n.width + i, left); }

    Floats value(long t, long reach, long i, long left) const {
        Floats sum = bias ? load_part(bias + i, left) : Floats{};
        for (long back = 0; back <= reach; back++) sum += tap(back, i, left) * row(t - back, i, left);
        return sum;
    }
};

template <class Point, class T>
void forward(const T* x, const float* weight, const float* bias, const float* state, const unsigned char* starts, T* y,
             float* last, Sizes n) {
    const long blocks = (n.width + block - 1) / block;
#pragma omp parallel for collapse(2) schedule(static)
    for (long which = 0; which < n.batch; which++)
        for (long part = 0; part < blocks; part++) {
            const long first = part * block, wide = smaller(block, n.width - first);
            const Sequence<T> seen(x, weight, bias, state, starts, n, which, first);
            T* to = y + which * n.length * n.width + first;
            long reach = seen.carried;
            for (long t = 0; t < n.length; t++) {
                reach = seen.reach(t, reach);
                for (long i = 0; i < wide; i += lanes)
                    store_part(to + t * n.width + i, Point::value(seen.value(t, reach, i, wide - i)), wide - i);
            }
            for (long j = 0; j < seen.carried; j++) {
                const bool same = seen.carried - 1 - j <= reach;
                float* kept = last + (which * seen.carried + j) * n.width + first;
                for (long i = 0; i < wide; i += lanes)
                    store_part(kept + i, same ? seen.row(n.length - seen.carried + j, i, wide - i) : Floats{}, wide - i);
            }
        }
}

// `dweight` is (batch, taps, width), `dbias` (batch, width), to be summed over the batch.
template <class Point, class T>
void backward(const T* g, const float* glast, const T* x, const float* weight, const float* bias, const float* state,
              const unsigned char* starts, T* dx, float* dweight, float* dbias, float* dstate, Sizes n) {
    const long blocks = (n.width + block - 1) / block;
#pragma omp parallel for collapse(2) schedule(static)
    for (long which = 0; which < n.batch; which++)
        for (long part = 0; part < blocks; part++) {
            const long first = part * block, wide = smaller(block, n.width - first);
            const Sequence<T> seen(x, weight, bias, state, starts, n, which, first);
            const long carried = seen.carried, taps = n.taps;
            // the ring, and the sums by each tap and by the bias; rows of `block`
            const Scratch<float> held((2 * taps + 1) * block);
            float *ring = held.data(), *by_tap = ring + taps * block, *by_bias = by_tap + taps * block;
            float* by_state = dstate + which * carried * n.width + first;
            for (long j = 0; j < carried; j++) clear(by_state + j * n.width, wide);
            auto target = [&](long t) { return t >= 0 ? ring + t % taps * block : by_state + (carried + t) * n.width; };
            auto finish = [&](long t) {
                float* from = ring + t % taps * block;
                for (long i = 0; i < wide; i += lanes)
                    store_part(dx + (which * n.length + t) * n.width + first + i, load_part(from + i, wide - i), wide - i);
                clear(from, wide);
            };
            long reach = carried;
            for (long t = 0; t < n.length; t++) {
                reach = seen.reach(t, reach);
                const T* up = g + (which * n.length + t) * n.width + first;
                for (long i = 0; i < wide; i += lanes) {
                    const long left = wide - i;
                    Floats z = seen.value(t, reach, i, left), flow = load_part(up + i, left);
                    flow *= Point::slope(z, Point::value(z));
                    store_part(by_bias + i, load_part(by_bias + i, left) + flow, left);
                    for (long back = 0; back <= reach; back++) {
                        float *to = target(t - back) + i, *sums = by_tap + (carried - back) * block + i;
                        store_part(to, load_part(to, left) + seen.tap(back, i, left) * flow, left);
                        store_part(sums, load_part(sums, left) + seen.row(t - back, i, left) * flow, left);
                    }
                }
                if (t >= carried && t < n.length - 1) finish(t - carried);
            }
            for (long j = 0; j < carried; j++) {
                if (carried - 1 - j > reach) continue;
                const float* from = glast + (which * carried + j) * n.width + first;
                float* to = target(n.length - carried + j);
                for (long i = 0; i < wide; i++) to[i] += from[i];
            }
            for (long t = n.length < taps ? 0 : n.length - taps; t < n.length; t++) finish(t);
            for (long k = 0; k < taps; k++)
                copy(by_tap + k * block, dweight + (which * taps + k) * n.width + first, wide);
            copy(by_bias, dbias + which * n.width + first, wide);
        }
}

template <class T, class... More>
void choose_forward(int silu, More... more) {
    silu ? forward<Silu, T>(more...) : forward<Identity, T>(more...);
}

template <class T, class... More>
void choose_backward(int silu, More... more) {
    silu ? backward<Silu, T>(more...) : backward<Identity, T>(more...);
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
    half ? choose_forward<Bfloat>(silu, (const Bfloat*)x, weight, bias, state, starts, (Bfloat*)y, last, n)
         : choose_forward<float>(silu, (const float*)x, weight, bias, state, starts, (float*)y, last, n);
}

FAIRWAY_EXPORT(causal_conv_backward)
(const void* g, const float* glast, const void* x, const float* weight, const float* bias, const float* state,
 const unsigned char* starts, void* dx, float* dweight, float* dbias, float* dstate, const long* sizes, int silu,
 int half) {
    const Sizes n = sizes_of(sizes);
    half ? choose_backward<Bfloat>(silu, (const Bfloat*)g, glast, (const Bfloat*)x, weight, bias, state, starts,
                                   (Bfloat*)dx, dweight, dbias, dstate, n)
         : choose_backward<float>(silu, (const float*)g, glast, (const float*)x, weight, bias, state, starts,
                                  (float*)dx, dweight, dbias, dstate, n);
}
