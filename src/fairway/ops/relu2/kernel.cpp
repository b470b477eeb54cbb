// y = max(x, 0)^2 and its gradient, in one pass each.

#include "../kernel/vector.h"

namespace {

template <class T>
void forward(const T* x, T* y, long count) {
#pragma omp parallel for schedule(static)
    for (long i = 0; i < count / lanes; i++) {
        Floats v = load(x + i * lanes);
        v = select(v < Floats{}, Floats{}, v);
        store(y + i * lanes, v * v);
    }
    for (long i = count / lanes * lanes; i < count; i++) {
        float v = to_float(x[i]);
        v = v < 0 ? 0 : v;
        put(y + i, v * v);
    }
}

template <class T>
void backward(const T* g, const T* x, T* dx, long count) {
#pragma omp parallel for schedule(static)
    for (long i = 0; i < count / lanes; i++) {
        Floats v = load(x + i * lanes);
        store(dx + i * lanes, 2.0f * select(v < Floats{}, Floats{}, v) * load(g + i * lanes));
    }
    for (long i = count / lanes * lanes; i < count; i++) {
        float v = to_float(x[i]);
        put(dx + i, 2.0f * (v < 0 ? 0 : v) * to_float(g[i]));
    }
}

}  // namespace

FAIRWAY_EXPORT(relu2_forward)(const void* x, void* y, long count, int half) {
    half ? forward((const Bfloat*)x, (Bfloat*)y, count) : forward((const float*)x, (float*)y, count);
}

FAIRWAY_EXPORT(relu2_backward)(const void* g, const void* x, void* dx, long count, int half) {
    half ? backward((const Bfloat*)g, (const Bfloat*)x, (Bfloat*)dx, count)
         : backward((const float*)g, (const float*)x, (float*)dx, count);
}
