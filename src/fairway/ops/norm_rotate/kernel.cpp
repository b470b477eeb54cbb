// Heads normalised, scaled, and turned by their position, forward and backward in one pass: see naive.py.
//
// x is (tokens, heads, width); cos and sin are (positions, turned / 2), and token t takes row t % positions. The backward pass
// computes the inverse root-mean-square again, so nothing but x is kept.

#include "../kernel/scratch.h"
#include "../kernel/vector.h"

namespace {

struct Shape {
    long tokens, heads, width, positions, turned;
    float eps;
};

template <class T>
float inverse_of(const T* x, const Shape& s) {
    Floats squares{};
    float rest = 0;
    long i = 0;
    for (; i + lanes <= s.width; i += lanes) {
        Floats v = load(x + i);
        squares += v * v;
    }
    for (; i < s.width; i++) rest += to_float(x[i]) * to_float(x[i]);
    return 1.0f / std::sqrt((sum(squares) + rest) / (float)s.width + s.eps);
}

inline Floats gained(const float* gain, long i) { return gain ? load(gain + i) : all(1.0f); }
inline float gain_at(const float* gain, long i) { return gain ? gain[i] : 1.0f; }

template <class T>
void turn(const T* x, const float* gain, float scale, const float* cos, const float* sin, T* y, const Shape& s) {
    long half = s.turned / 2, i = 0;
    for (; i + lanes <= half; i += lanes) {
        Floats a = load(x + i) * scale * gained(gain, i), b = load(x + half + i) * scale * gained(gain, half + i);
        Floats cosine = load(cos + i), sine = load(sin + i);
        store(y + i, a * cosine - b * sine);
        store(y + half + i, a * sine + b * cosine);
    }
    for (; i < half; i++) {
        float a = to_float(x[i]) * scale * gain_at(gain, i), b = to_float(x[half + i]) * scale * gain_at(gain, half + i);
        put(y + i, a * cos[i] - b * sin[i]);
        put(y + half + i, a * sin[i] + b * cos[i]);
    }
    for (i = s.turned; i + lanes <= s.width; i += lanes) store(y + i, load(x + i) * scale * gained(gain, i));
    for (; i < s.width; i++) put(y + i, to_float(x[i]) * scale * gain_at(gain, i));
}

// The gradient before the rotation.
template <class T>
void turn_back(const T* g, const float* cos, const float* sin, float* u, const Shape& s) {
    long half = s.turned / 2, i = 0;
    for (; i + lanes <= half; i += lanes) {
        Floats a = load(g + i), b = load(g + half + i), cosine = load(cos + i), sine = load(sin + i);
        store(u + i, a * cosine + b * sine);
        store(u + half + i, b * cosine - a * sine);
    }
    for (; i < half; i++) {
        float a = to_float(g[i]), b = to_float(g[half + i]);
        u[i] = a * cos[i] + b * sin[i];
        u[half + i] = b * cos[i] - a * sin[i];
    }
    for (i = s.turned; i + lanes <= s.width; i += lanes) store(u + i, load(g + i));
    for (; i < s.width; i++) u[i] = to_float(g[i]);
}

// dx = inverse (f u gain - hat mean(f u gain hat)) from the gradient u before the rotation; returns the sum of u gain hat,
// which is the gradient by f.
template <class T>
float norm_back(const T* x, const float* gain, float factor, const float* u, float inverse, T* dx, float* dgain,
                const Shape& s) {
    Floats products{};
    float rest = 0;
    long i = 0;
    for (; i + lanes <= s.width; i += lanes) {
        Floats slope = load(u + i) * (load(x + i) * inverse);
        if (dgain) store(dgain + i, load(dgain + i) + factor * slope);
        products += slope * gained(gain, i);
    }
    for (; i < s.width; i++) {
        float slope = u[i] * (to_float(x[i]) * inverse);
        if (dgain) dgain[i] += factor * slope;
        rest += slope * gain_at(gain, i);
    }
    float total = sum(products) + rest, mean = total / (float)s.width, scale = factor * inverse;
    for (i = 0; i + lanes <= s.width; i += lanes)
        store(dx + i, (load(u + i) * gained(gain, i) - load(x + i) * inverse * mean) * scale);
    for (; i < s.width; i++) put(dx + i, (u[i] * gain_at(gain, i) - to_float(x[i]) * inverse * mean) * scale);
    return total;
}

template <class T>
void forward(const T* x, const float* gain, const float* factor, const float* cos, const float* sin, T* y, const Shape& s) {
    long half = s.turned / 2;
#pragma omp parallel for schedule(static)
    for (long t = 0; t < s.tokens; t++)
        for (long h = 0; h < s.heads; h++) {
            long at = (t * s.heads + h) * s.width, row = t % s.positions * half;
            float scale = inverse_of(x + at, s) * (factor ? factor[h] : 1.0f);
            turn(x + at, gain, scale, cos + row, sin + row, y + at, s);
        }
}

// Each block of tokens sums its own share of the learned numbers' gradients.
template <class T>
void backward(const T* g, const T* x, const float* gain, const float* factor, const float* cos, const float* sin, T* dx,
              float* dgain, float* dfactor, long blocks, const Shape& s) {
    long half = s.turned / 2;
#pragma omp parallel for schedule(static)
    for (long block = 0; block < blocks; block++) {
        Scratch<float> u(s.width);
        for (long t = block * s.tokens / blocks; t < (block + 1) * s.tokens / blocks; t++)
            for (long h = 0; h < s.heads; h++) {
                long at = (t * s.heads + h) * s.width, row = t % s.positions * half;
                turn_back(g + at, cos + row, sin + row, u.data(), s);
                float slope = norm_back(x + at, gain, factor ? factor[h] : 1.0f, u.data(), inverse_of(x + at, s), dx + at,
                                        dgain ? dgain + block * s.width : nullptr, s);
                if (dfactor) dfactor[block * s.heads + h] += slope;
            }
    }
}

Shape shape_of(const long* sizes, float eps) { return {sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], eps}; }

}  // namespace

// sizes: tokens, heads, width, positions, turned. gain and factor may be null. half: 1 for bfloat16, 0 for float32.
FAIRWAY_EXPORT(norm_rotate_forward)
(const void* x, const float* gain, const float* factor, const float* cos, const float* sin, void* y, const long* sizes,
 float eps, int half) {
    Shape s = shape_of(sizes, eps);
    if (half) forward((const Bfloat*)x, gain, factor, cos, sin, (Bfloat*)y, s);
    else forward((const float*)x, gain, factor, cos, sin, (float*)y, s);
}

// dgain (blocks, width) and dfactor (blocks, heads) hold zeros, or are null.
FAIRWAY_EXPORT(norm_rotate_backward)
(const void* g, const void* x, const float* gain, const float* factor, const float* cos, const float* sin, void* dx,
 float* dgain, float* dfactor, const long* sizes, float eps, long blocks, int half) {
    Shape s = shape_of(sizes, eps);
    if (half)
        backward((const Bfloat*)g, (const Bfloat*)x, gain, factor, cos, sin, (Bfloat*)dx, dgain, dfactor, blocks, s);
    else
        backward((const float*)g, (const float*)x, gain, factor, cos, sin, (float*)dx, dgain, dfactor, blocks, s);
}
