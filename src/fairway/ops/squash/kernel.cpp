// y = gain f(alpha x + shift) + bias over rows, forward and backward: see naive.py for the definition.

#include "../kernel/point.h"

namespace {

template <class Point>
struct Squashed {
    Floats value(Floats x) const { return Point::value(x); }
    void both(Floats x, Floats& value, Floats& slope) const {
        value = Point::value(x);
        slope = Point::slope(x, value);
    }
};

#if defined(__AVX512F__)

// erf and its slope in sixteen pieces, each a polynomial of degree five about its centre whose coefficients one instruction
// looks up: half the steps of other ways. Beyond the last piece erf is 1 in float32.
template <>
struct Squashed<Erf> {
    static constexpr int pieces = 16, degree = 5;
    static constexpr float apart = 0.26f, last = 3.92f;
    Floats values[degree + 1], slopes[degree + 1];

    Squashed() {
        for (int piece = 0; piece < pieces; piece++) {
            double series[degree + 4];
            expand(piece * (double)apart, series);
            put(series, piece, values);
            for (int n = 1; n < degree + 4; n++) series[n - 1] = n * series[n];
            put(series, piece, slopes);
        }
    }
    Floats value(Floats x) const {
        Piece at(x);
        return with_sign_of(select(at.magnitude > all(last), all(1.0f), at(values)), x);
    }
    void both(Floats x, Floats& value, Floats& slope) const {
        Piece at(x);
        Ints beyond = at.magnitude > all(last);
        value = with_sign_of(select(beyond, all(1.0f), at(values)), x);
        slope = select(beyond, Floats{}, at(slopes));
    }

   private:
    struct Piece {
        Floats magnitude, off;
        Ints index;
        explicit Piece(Floats x) : magnitude(::magnitude(x)) {
            constexpr float whole = 12582912.0f;
            Floats moved = magnitude * (1 / apart) + whole;
            index = (Ints)moved;
            off = magnitude - (moved - whole) * apart;
        }
        Floats operator()(const Floats* coefficients) const {
            Floats y = of(coefficients[degree]);
            for (int n = degree - 1; n >= 0; n--) y = y * off + of(coefficients[n]);
            return y;
        }
        Floats of(Floats table) const {
            return (Floats)_mm512_maskz_permutexvar_ps(0xffff, (__m512i)index, (__m512)table);
        }
    };

    // Coefficients of erf(centre + d): those from d on by the recurrence of e^(-x^2)'s, g'' = -2 x g' - 2 g.
    static void expand(double centre, double* series) {
        series[0] = std::erf(centre);
        series[1] = 1.1283791670955126 * std::exp(-centre * centre);
        series[2] = -centre * series[1];
        for (int n = 3; n < degree + 4; n++)
            series[n] = -2 * (centre * (n - 1) * series[n - 1] + (n - 2) * series[n - 2]) / (n * (n - 1.0));
    }
    // The powers six and seven by the lower ones that are nearest to them in the piece, after Chebyshev.
    static void put(const double* series, int piece, Floats* to) {
        constexpr double h2 = 0.25 * (double)apart * (double)apart, h4 = h2 * h2, h6 = h4 * h2;
        const double six[] = {h6 / 32, 0, -9 * h4 / 16, 0, 1.5 * h2, 0};
        const double seven[] = {0, 7 * h6 / 64, 0, -7 * h4 / 8, 0, 1.75 * h2};
        for (int n = 0; n <= degree; n++) to[n][piece] = (float)(series[n] + six[n] * series[6] + seven[n] * series[7]);
    }
};

#endif

template <class Point, class T>
void forward(const T* x, const float* gain, const float* bias, T* y, long rows, long width, float alpha, float shift) {
    Squashed<Point> squashed;
#pragma omp parallel for schedule(static) firstprivate(squashed)
    for (long row = 0; row < rows; row++) {
        for (long i = 0; i < width; i += lanes) {
            long left = width - i;
            Floats v = squashed.value(load_part(x + row * width + i, left) * alpha + shift);
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
    Squashed<Point> squashed;
#pragma omp parallel for schedule(static) firstprivate(squashed)
    for (long share = 0; share < shares; share++) {
        double by_alpha = 0, by_shift = 0;
        for (long row = share * rows / shares; row < (share + 1) * rows / shares; row++) {
            Floats along{}, sums{};
            for (long i = 0; i < width; i += lanes) {
                long left = width - i;
                Floats v = load_part(x + row * width + i, left), u = load_part(g + row * width + i, left), f, slope;
                squashed.both(v * alpha + shift, f, slope);
                float* to_gain = dgain + share * width + i;
                float* to_bias = dbias + share * width + i;
                store_part(to_gain, load_part(to_gain, left) + u * f, left);
                store_part(to_bias, load_part(to_bias, left) + u, left);
                if (gain) u *= load_part(gain + i, left);
                u *= slope;
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

// inner holds (shares, 2), dgain and dbias (shares, width), of zeros.
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
