// y = f(a) b for rows (a, b), forward and backward: see naive.py for the definition.

#include "../kernel/point.h"

namespace {

template <class Point, class T>
void forward(const T* x, T* y, long rows, long width) {
#pragma omp parallel for schedule(static)
    for (long row = 0; row < rows; row++) {
        const T* a = x + 2 * row * width;
        const T* b = a + width;
        T* to = y + row * width;
        for (long i = 0; i < width; i += lanes) {
            long left = width - i;
            store_part(to + i, Point::value(load_part(a + i, left)) * load_part(b + i, left), left);
        }
    }
}

template <class Point, class T>
void backward(const T* g, const T* x, T* dx, long rows, long width) {
#pragma omp parallel for schedule(static)
    for (long row = 0; row < rows; row++) {
        const T* a = x + 2 * row * width;
        const T* b = a + width;
        const T* up = g + row * width;
        T* da = dx + 2 * row * width;
        T* db = da + width;
        for (long i = 0; i < width; i += lanes) {
            long left = width - i;
            Floats v = load_part(a + i, left), u = load_part(up + i, left), f = Point::value(v);
            store_part(da + i, u * load_part(b + i, left) * Point::slope(v, f), left);
            store_part(db + i, u * f, left);
        }
    }
}

template <class T, class... More>
void choose_forward(int point, const T* x, T* y, More... more) {
    switch (point) {
        case 0: return forward<Identity>(x, y, more...);
        case 1: return forward<Sigmoid>(x, y, more...);
        case 2: return forward<Relu>(x, y, more...);
        case 3: return forward<Silu>(x, y, more...);
        case 4: return forward<Gelu>(x, y, more...);
        default: return forward<GeluTanh>(x, y, more...);
    }
}

template <class T, class... More>
void choose_backward(int point, const T* g, const T* x, T* dx, More... more) {
    switch (point) {
        case 0: return backward<Identity>(g, x, dx, more...);
        case 1: return backward<Sigmoid>(g, x, dx, more...);
        case 2: return backward<Relu>(g, x, dx, more...);
        case 3: return backward<Silu>(g, x, dx, more...);
        case 4: return backward<Gelu>(g, x, dx, more...);
        default: return backward<GeluTanh>(g, x, dx, more...);
    }
}

}  // namespace

// x is (rows, 2 width), y (rows, width); `point` counts in the order of native.py; half: 1 for bfloat16, 0 for float32.
FAIRWAY_EXPORT(gate_forward)(const void* x, void* y, long rows, long width, int point, int half) {
    half ? choose_forward(point, (const Bfloat*)x, (Bfloat*)y, rows, width)
         : choose_forward(point, (const float*)x, (float*)y, rows, width);
}

FAIRWAY_EXPORT(gate_backward)(const void* g, const void* x, void* dx, long rows, long width, int point, int half) {
    half ? choose_backward(point, (const Bfloat*)g, (const Bfloat*)x, (Bfloat*)dx, rows, width)
         : choose_backward(point, (const float*)g, (const float*)x, (float*)dx, rows, width);
}
