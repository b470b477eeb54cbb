// Root-mean-square normalisation of rows, forward and backward: see naive.py for the definition.
//
// A row is read twice, both times from cache. Rows are contiguous; the output may be bfloat16 while the input is float32.

#include "../kernel/vector.h"

namespace {

template <class In, class Out>
void forward(const In* x, const float* gain, Out* y, float* inverse, long rows, long width, float eps) {
#pragma omp parallel for schedule(static)
    for (long row = 0; row < rows; row++) {
        const In* from = x + row * width;
        Out* to = y + row * width;
        Floats squares{};
        float rest = 0;
        long i = 0;
        for (; i + lanes <= width; i += lanes) {
            Floats v = load(from + i);
            squares += v * v;
        }
        for (; i < width; i++) rest += to_float(from[i]) * to_float(from[i]);
        float scale = 1.0f / std::sqrt((sum(squares) + rest) / (float)width + eps);
        inverse[row] = scale;
        for (i = 0; i + lanes <= width; i += lanes) {
            Floats v = load(from + i) * scale;
            store(to + i, gain ? v * load(gain + i) : v);
        }
        for (; i < width; i++) put(to + i, to_float(from[i]) * scale * (gain ? gain[i] : 1.0f));
    }
}

// dx = inverse (g gain - xhat mean(g gain xhat)); each block of rows sums its own share of the gain's gradient.
template <class In, class Grad, class Out>
void backward(const Grad* g, const In* x, const float* gain, const float* inverse, Out* dx, float* dgain, long rows,
              long width, long blocks) {
#pragma omp parallel for schedule(static)
    for (long block = 0; block < blocks; block++) {
        float* share = dgain ? dgain + block * width : nullptr;
        for (long row = block * rows / blocks; row < (block + 1) * rows / blocks; row++) {
            const In* from = x + row * width;
            const Grad* up = g + row * width;
            Out* to = dx + row * width;
            float scale = inverse[row];
            Floats products{};
            float rest = 0;
            long i = 0;
            for (; i + lanes <= width; i += lanes) {
                Floats hat = load(from + i) * scale, v = load(up + i);
                if (share) store(share + i, load(share + i) + v * hat);
                products += (gain ? v * load(gain + i) : v) * hat;
            }
            for (; i < width; i++) {
                float hat = to_float(from[i]) * scale, v = to_float(up[i]);
                if (share) share[i] += v * hat;
                rest += v * (gain ? gain[i] : 1.0f) * hat;
            }
            float mean = (sum(products) + rest) / (float)width;
            for (i = 0; i + lanes <= width; i += lanes) {
                Floats hat = load(from + i) * scale, v = load(up + i);
                store(to + i, ((gain ? v * load(gain + i) : v) - hat * mean) * scale);
            }
            for (; i < width; i++) {
                float hat = to_float(from[i]) * scale, v = to_float(up[i]) * (gain ? gain[i] : 1.0f);
                put(to + i, (v - hat * mean) * scale);
            }
        }
    }
}

}  // namespace

// half_in, half_out: 1 where that tensor is bfloat16, 0 where it is float32.
FAIRWAY_EXPORT(rms_norm_forward)
(const void* x, const float* gain, void* y, float* inverse, long rows, long width, float eps, int half_in, int half_out) {
    if (half_in && half_out)
        forward((const Bfloat*)x, gain, (Bfloat*)y, inverse, rows, width, eps);
    else if (half_in)
        forward((const Bfloat*)x, gain, (float*)y, inverse, rows, width, eps);
    else if (half_out)
        forward((const float*)x, gain, (Bfloat*)y, inverse, rows, width, eps);
    else
        forward((const float*)x, gain, (float*)y, inverse, rows, width, eps);
}

// The gradient of x has the dtype of x. dgain holds (blocks, width) zeros, or is null.
FAIRWAY_EXPORT(rms_norm_backward)
(const void* g, const void* x, const float* gain, const float* inverse, void* dx, float* dgain, long rows, long width,
 long blocks, int half_in, int half_out) {
    if (half_in && half_out)
        backward((const Bfloat*)g, (const Bfloat*)x, gain, inverse, (Bfloat*)dx, dgain, rows, width, blocks);
    else if (half_in)
        backward((const float*)g, (const Bfloat*)x, gain, inverse, (Bfloat*)dx, dgain, rows, width, blocks);
    else if (half_out)
        backward((const Bfloat*)g, (const float*)x, gain, inverse, (float*)dx, dgain, rows, width, blocks);
    else
        backward((const float*)g, (const float*)x, gain, inverse, (float*)dx, dgain, rows, width, blocks);
}
