// Layer normalisation, forward and backward, with float32 arithmetic on float32 or bfloat16 tensors: see naive.py.

#include "../kernel/vector.h"

namespace {

struct Moments {
    float mean, inverse;
};

template <class T>
Moments moments_of(const T* x, long width, float eps) {
    Floats sums{};
    float rest = 0;
    long i = 0;
    for (; i + lanes <= width; i += lanes) sums += load(x + i);
    for (; i < width; i++) rest += to_float(x[i]);
    float mean = (sum(sums) + rest) / (float)width;
    Floats squares{};
    rest = 0;
    for (i = 0; i + lanes <= width; i += lanes) {
        Floats v = load(x + i) - mean;
        squares += v * v;
    }
    for (; i < width; i++) rest += (to_float(x[i]) - mean) * (to_float(x[i]) - mean);
    return {mean, 1.0f / std::sqrt((sum(squares) + rest) / (float)width + eps)};
}

template <class In, class Out>
void forward(const In* x, const float* gain, const float* bias, Out* y, Moments* moments, long rows, long width, float eps) {
#pragma omp parallel for schedule(static)
    for (long row = 0; row < rows; row++) {
        const In* from = x + row * width;
        Out* to = y + row * width;
        Moments m = moments[row] = moments_of(from, width, eps);
        long i = 0;
        for (; i + lanes <= width; i += lanes) {
            Floats v = (load(from + i) - m.mean) * m.inverse;
            if (gain) v *= load(gain + i);
            store(to + i, bias ? v + load(bias + i) : v);
        }
        for (; i < width; i++)
            put(to + i, (to_float(from[i]) - m.mean) * m.inverse * (gain ? gain[i] : 1.0f) + (bias ? bias[i] : 0.0f));
    }
}

// dx = inverse (g gain - mean(g gain) - hat mean(g gain hat)), hat = (x - mean) inverse.
template <class In, class Out>
void backward_row(const Out* g, const In* x, const float* gain, Moments m, In* dx, float* dgain, float* dbias, long width) {
    Floats slopes{}, products{};
    float slope_rest = 0, product_rest = 0;
    long i = 0;
    for (; i + lanes <= width; i += lanes) {
        Floats hat = (load(x + i) - m.mean) * m.inverse, v = load(g + i);
        if (dgain) store(dgain + i, load(dgain + i) + v * hat);
        if (dbias) store(dbias + i, load(dbias + i) + v);
        if (gain) v *= load(gain + i);
        slopes += v;
        products += v * hat;
    }
    for (; i < width; i++) {
        float hat = (to_float(x[i]) - m.mean) * m.inverse, v = to_float(g[i]);
        if (dgain) dgain[i] += v * hat;
        if (dbias) dbias[i] += v;
        if (gain) v *= gain[i];
        slope_rest += v;
        product_rest += v * hat;
    }
    float slope = (sum(slopes) + slope_rest) / (float)width, product = (sum(products) + product_rest) / (float)width;
    for (i = 0; i + lanes <= width; i += lanes) {
        Floats hat = (load(x + i) - m.mean) * m.inverse, v = load(g + i);
        if (gain) v *= load(gain + i);
        store(dx + i, (v - slope - hat * product) * m.inverse);
    }
    for (; i < width; i++) {
        float hat = (to_float(x[i]) - m.mean) * m.inverse, v = to_float(g[i]) * (gain ? gain[i] : 1.0f);
        put(dx + i, (v - slope - hat * product) * m.inverse);
    }
}

// Each block of rows sums its own share of the gradients by gain and bias.
template <class In, class Out>
void backward(const Out* g, const In* x, const float* gain, const Moments* moments, In* dx, float* dgain, float* dbias,
              long rows, long width, long blocks) {
#pragma omp parallel for schedule(static)
    for (long block = 0; block < blocks; block++)
        for (long row = block * rows / blocks; row < (block + 1) * rows / blocks; row++)
            backward_row(g + row * width, x + row * width, gain, moments[row], dx + row * width,
                         dgain ? dgain + block * width : nullptr, dbias ? dbias + block * width : nullptr, width);
}

}  // namespace

// moments: the mean and the inverse deviation of each row. half_in, half_out: 1 where x, y are bfloat16, 0 where they are
// float32. gain and bias may be null.
FAIRWAY_EXPORT(layer_norm_forward)
(const void* x, const float* gain, const float* bias, void* y, float* moments, long rows, long width, float eps, int half_in,
 int half_out) {
    Moments* m = (Moments*)moments;
    if (half_in && half_out) forward((const Bfloat*)x, gain, bias, (Bfloat*)y, m, rows, width, eps);
    else if (half_in) forward((const Bfloat*)x, gain, bias, (float*)y, m, rows, width, eps);
    else if (half_out) forward((const float*)x, gain, bias, (Bfloat*)y, m, rows, width, eps);
    else forward((const float*)x, gain, bias, (float*)y, m, rows, width, eps);
}

// g has the type of y, dx that of x; dgain and dbias hold (blocks, width) zeros, or are null.
FAIRWAY_EXPORT(layer_norm_backward)
(const void* g, const void* x, const float* gain, const float* moments, void* dx, float* dgain, float* dbias, long rows,
 long width, long blocks, int half_in, int half_out) {
    const Moments* m = (const Moments*)moments;
    if (half_in && half_out)
        backward((const Bfloat*)g, (const Bfloat*)x, gain, m, (Bfloat*)dx, dgain, dbias, rows, width, blocks);
    else if (half_in) backward((const float*)g, (const Bfloat*)x, gain, m, (Bfloat*)dx, dgain, dbias, rows, width, blocks);
    else if (half_out) backward((const Bfloat*)g, (const float*)x, gain, m, (float*)dx, dgain, dbias, rows, width, blocks);
    else backward((const float*)g, (const float*)x, gain, m, (float*)dx, dgain, dbias, rows, width, blocks);
}
