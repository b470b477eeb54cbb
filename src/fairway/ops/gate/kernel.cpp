// y = f(a) b for rows (a, b), forward and backward: see naive.py for the definition.

#include "../kernel/point.h"

namespace {

// Rows that are gated, and rows that are multiplied, each so far apart.
template <class T>
struct Parts {
    T *gate, *other;
    long gate_stride, other_stride;
};

template <class Point, class T>
void forward(Parts<const T> x, T* y, long rows, long width) {
#pragma omp parallel for schedule(static)
    for (long row = 0; row < rows; row++) {
        const T* a = x.gate + row * x.gate_stride;
        const T* b = x.other + row * x.other_stride;
        T* to = y + row * width;
        for (long i = 0; i < width; i += lanes) {
            long left = width - i;
            store_part(to + i, Point::value(load_part(a + i, left)) * load_part(b + i, left), left);
        }
    }
}

template <class Point, class T>
void backward(Parts<const T> x, const T* g, Parts<T> dx, long rows, long width) {
#pragma omp parallel for schedule(static)
    for (long row = 0; row < rows; row++) {
        const T* a = x.gate + row * x.gate_stride;
        const T* b = x.other + row * x.other_stride;
        const T* up = g + row * width;
        T* da = dx.gate + row * dx.gate_stride;
        T* db = dx.other + row * dx.other_stride;
        for (long i = 0; i < width; i += lanes) {
            long left = width - i;
            Floats v = load_part(a + i, left), u = load_part(up + i, left), f = Point::value(v);
            store_part(da + i, u * load_part(b + i, left) * Point::slope(v, f), left);
            store_part(db + i, u * f, left);
        }
    }
}

template <class T, class... More>
void choose_forward(int point, Parts<const T> x, T* y, More... more) {
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
void choose_backward(int point, Parts<const T> x, const T* g, Parts<T> dx, More... more) {
    switch (point) {
        case 0: return backward<Identity>(x, g, dx, more...);
        case 1: return backward<Sigmoid>(x, g, dx, more...);
        case 2: return backward<Relu>(x, g, dx, more...);
        case 3: return backward<Silu>(x, g, dx, more...);
        case 4: return backward<Gelu>(x, g, dx, more...);
        default: return backward<GeluTanh>(x, g, dx, more...);
    }
}

// Rows (gate, other).
template <class T, class Any>
Parts<T> joined(Any* x, long width) {
    return {(T*)x, (T*)x + width, 2 * width, 2 * width};
}

template <class T>
void forward_apart(const void* gate, const void* other, void* y, const long* n, int point) {
    choose_forward(point, Parts<const T>{(const T*)gate, (const T*)other, n[2], n[3]}, (T*)y, n[0], n[1]);
}

template <class T>
void backward_apart(const void* g, const void* gate, const void* other, void* by_gate, void* by_other, const long* n,
                    int point) {
    choose_backward(point, Parts<const T>{(const T*)gate, (const T*)other, n[2], n[3]}, (const T*)g,
                    Parts<T>{(T*)by_gate, (T*)by_other, n[1], n[1]}, n[0], n[1]);
}

}  // namespace

// x is (rows, 2 width), y (rows, width); `point` counts in the order of native.py; half: 1 for bfloat16, 0 for float32.
FAIRWAY_EXPORT(gate_forward)(const void* x, void* y, long rows, long width, int point, int half) {
    half ? choose_forward(point, joined<const Bfloat>(x, width), (Bfloat*)y, rows, width)
         : choose_forward(point, joined<const float>(x, width), (float*)y, rows, width);
}

FAIRWAY_EXPORT(gate_backward)(const void* g, const void* x, void* dx, long rows, long width, int point, int half) {
    half ? choose_backward(point, joined<const Bfloat>(x, width), (const Bfloat*)g, joined<Bfloat>(dx, width), rows, width)
         : choose_backward(point, joined<const float>(x, width), (const float*)g, joined<float>(dx, width), rows, width);
}

// The same where gate and other lie apart; sizes: rows, width, and the strides of a row of each. Gradients are (rows,
// width).
FAIRWAY_EXPORT(gate_apart_forward)
(const void* gate, const void* other, void* y, const long* sizes, int point, int half) {
    (half ? forward_apart<Bfloat> : forward_apart<float>)(gate, other, y, sizes, point);
}

FAIRWAY_EXPORT(gate_apart_backward)
(const void* g, const void* gate, const void* other, void* by_gate, void* by_other, const long* sizes, int point,
 int half) {
    (half ? backward_apart<Bfloat> : backward_apart<float>)(g, gate, other, by_gate, by_other, sizes, point);
}
