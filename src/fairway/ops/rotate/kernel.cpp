// Heads turned by their position: pairs (i, i + turned / 2) of each head rotate by the angle of their token.
//
// x is (tokens, heads, width) with a stride between tokens; cos and sin are (positions, turned / 2), and token t takes row
// t % positions. `direction` is 1 forward and -1 for the gradient, which is the inverse rotation.

#include "../kernel/vector.h"

namespace {

template <class T>
void rotate(const T* x, const float* cos, const float* sin, T* y, long tokens, long heads, long width, long stride,
            long positions, long turned, float direction) {
    long half = turned / 2;
#pragma omp parallel for schedule(static)
    for (long t = 0; t < tokens; t++) {
        const float* c = cos + (t % positions) * half;
        const float* n = sin + (t % positions) * half;
        for (long h = 0; h < heads; h++) {
            const T* from = x + t * stride + h * width;
            T* to = y + (t * heads + h) * width;
            long i = 0;
            for (; i + lanes <= half; i += lanes) {
                Floats a = load(from + i), b = load(from + i + half), cosine = load(c + i), sine = load(n + i) * direction;
                store(to + i, a * cosine - b * sine);
                store(to + i + half, a * sine + b * cosine);
            }
            for (; i < half; i++) {
                float a = to_float(from[i]), b = to_float(from[i + half]), sine = n[i] * direction;
                put(to + i, a * c[i] - b * sine);
                put(to + i + half, a * sine + b * c[i]);
            }
            for (i = turned; i < width; i++) to[i] = from[i];
        }
    }
}

}  // namespace

FAIRWAY_EXPORT(rotate)
(const void* x, const float* cos, const float* sin, void* y, long tokens, long heads, long width, long stride, long positions,
 long turned, float direction, int half) {
    if (half)
        rotate((const Bfloat*)x, cos, sin, (Bfloat*)y, tokens, heads, width, stride, positions, turned, direction);
    else
        rotate((const float*)x, cos, sin, (float*)y, tokens, heads, width, stride, positions, turned, direction);
}
