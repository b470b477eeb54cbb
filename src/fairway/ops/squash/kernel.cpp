// y = gain f(alpha x + shift) + bias over rows, forward and backward: see naive.py for the definition.

#include "../kernel/point.h"

namespace {

template <class Point, class T>
void forward(const T* x, const float* gain, const float* bias, T* y, long rows, long width, float alpha, float shift) {
#pragma omp parallel for schedule(static)
    for (long row = 0; row < rows; row++) {
        for (long i = 0; i < width; i += lanes) {
            long left = width - i;
            Floats v = Point::value(load_part(x + row * width + i, left) * alpha + shift);
            if (gain) v *= load_part(gain + i, left);
            if (bias) v += load_part(bias + i, left);
            store_part(y + row * width + i, v, left);
        }
    }
}

// Each share of the rows sums its own part of the gradients by alpha, shift, gain and bias.
template <class Point, class T>
void backward(const T* g, const T* x, const float* gain, T* dx, float* inner, float* dgain, float* dbias, long shares,
              long rows, long width, float alpha, float shift) {
#pragma omp parallel for schedule(static)
    for (long share = 0; share < shares; share++) {
        double by_alpha = 0, by_shift = 0;
        for (long row = share * rows / shares; row < (share + 1) * rows / shares; row++) {
            Floats along{}, sums{};
            for (long i = 0; i < width; i += lanes) {
                long left = width - i;
                Floats v = load_part(x + row * width + i, left), u = load_part(g + row * width + i, left);
                Floats at = v * alpha + shift, f = Point::value(at);
                float* to_gain = dgain + share * width + i;
                float* to_bias = dbias + share * width + i;
                store_part(to_gain, load_part(to_gain, left) + u * f, left);
                store_part(to_bias, load_part(to_bias, left) + u, left);
                if (gain) u *= load_part(gain + i, left);
                u *= Point::slope(at, f);
                along += u * v;
                sums += u;
                store_part(dx + row * width + i, u * alpha, left);
            }
            by_alpha += sum(along);
            by_shift += sum(sums);
        }
        inner[2 * share] = (float)by_alpha;
        inner[2 * share + 1] = (float)by_shift;
    }
}

template <class T>
void choose_forward(int error, const T* x, const float* gain, const float* bias, T* y, long rows, long width, float alpha,
                    float shift) {
    error ? forward<Erf>(x, gain, bias, y, rows, width, alpha, shift)
          : forward<Tanh>(x, gain, bias, y, rows, width, alpha, shift);
}

template <class T>
void choose_backward(int error, const T* g, const T* x, const float* gain, T* dx, float* inner, float* dgain,
                     float* dbias, long shares, long rows, long width, float alpha, float shift) {
    error ? backward<Erf>(g, x, gain, dx, inner, dgain, dbias, shares, rows, width, alpha, shift)
          : backward<Tanh>(g, x, gain, dx, inner, dgain, dbias, shares, rows, width, alpha, shift);
}

}  // namespace

// error: 1 for erf, 0 for tanh; half: 1 where x and y are bfloat16, 0 where they are float32. gain and bias may be null.
FAIRWAY_EXPORT(squash_forward)
(const void* x, const float* gain, const float* bias, void* y, long rows, long width, float alpha, float shift, int error,
 int half) {
    half ? choose_forward(error, (const Bfloat*)x, gain, bias, (Bfloat*)y, rows, width, alpha, shift)
         : choose_forward(error, (const float*)x, gain, bias, (float*)y, rows, width, alpha, shift);
}

// inner holds (shares, 2), dgain and dbias (shares, width) zeros.
FAIRWAY_EXPORT(squash_backward)
(const void* g, const void* x, const float* gain, void* dx, float* inner, float* dgain, float* dbias, long shares,
 long rows, long width, float alpha, float shift, int error, int half) {
    if (half)
        choose_backward(error, (const Bfloat*)g, (const Bfloat*)x, gain, (Bfloat*)dx, inner, dgain, dbias, shares, rows,
                        width, alpha, shift);
    else
        choose_backward(error, (const float*)g, (const float*)x, gain, (float*)dx, inner, dgain, dbias, shares, rows, width,
                        alpha, shift);
}
