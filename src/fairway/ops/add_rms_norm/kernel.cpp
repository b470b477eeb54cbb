// A branch added to the stream and the root-mean-square norm of the sum, forward and backward: see naive.py.
//
// Forward, a row of the sum is written once and read back from cache. Backward, the gradients by the sum and by its norm become
// that of the stream in one pass, written a second time where the branch has another type.

#include "../kernel/vector.h"

namespace {

// The stream and its sum have one type, the branch and the norm each their own.
template <class Stream, class Branch, class Out>
void forward(const Stream* x, const Branch* branch, const float* gain, Stream* total, Out* y, float* inverse, long rows,
             long width, float eps) {
#pragma omp parallel for schedule(static)
    for (long row = 0; row < rows; row++) {
        const Stream* left = x + row * width;
        const Branch* right = branch + row * width;
        Stream* both = total + row * width;
        Out* to = y + row * width;
        Floats squares{};
        float rest = 0;
        long i = 0;
        for (; i + lanes <= width; i += lanes) {
            store(both + i, load(left + i) + load(right + i));
            Floats v = load(both + i);
            squares += v * v;
        }
        for (; i < width; i++) {
            put(both + i, to_float(left[i]) + to_float(right[i]));
            rest += to_float(both[i]) * to_float(both[i]);
        }
        float scale = 1.0f / std::sqrt((sum(squares) + rest) / (float)width + eps);
        inverse[row] = scale;
        for (i = 0; i + lanes <= width; i += lanes) {
            Floats v = load(both + i) * scale;
            store(to + i, gain ? v * load(gain + i) : v);
        }
        for (; i < width; i++) put(to + i, to_float(both[i]) * scale * (gain ? gain[i] : 1.0f));
    }
}

// dx = up + inverse (g gain - hat mean(g gain hat)); each block of rows sums its own share of the gain's gradient.
template <class Stream, class Branch, class Out>
void backward(const Stream* up, const Out* g, const Stream* total, const float* gain, const float* inverse, Stream* dx,
              Branch* dbranch, float* dgain, long rows, long width, long blocks) {
#pragma omp parallel for schedule(static)
    for (long block = 0; block < blocks; block++) {
        float* share = dgain ? dgain + block * width : nullptr;
        for (long row = block * rows / blocks; row < (block + 1) * rows / blocks; row++) {
            const Stream *from = total + row * width, *carried = up + row * width;
            const Out* slope = g + row * width;
            Stream* to = dx + row * width;
            Branch* also = dbranch ? dbranch + row * width : nullptr;
            float scale = inverse[row];
            Floats products{};
            float rest = 0;
            long i = 0;
            for (; i + lanes <= width; i += lanes) {
                Floats hat = load(from + i) * scale, v = load(slope + i);
                if (share) store(share + i, load(share + i) + v * hat);
                products += (gain ? v * load(gain + i) : v) * hat;
            }
            for (; i < width; i++) {
                float hat = to_float(from[i]) * scale, v = to_float(slope[i]);
                if (share) share[i] += v * hat;
                rest += v * (gain ? gain[i] : 1.0f) * hat;
            }
            float mean = (sum(products) + rest) / (float)width;
            for (i = 0; i + lanes <= width; i += lanes) {
                Floats hat = load(from + i) * scale, v = load(slope + i);
                Floats d = load(carried + i) + ((gain ? v * load(gain + i) : v) - hat * mean) * scale;
                store(to + i, d);
                if (also) store(also + i, d);
            }
            for (; i < width; i++) {
                float hat = to_float(from[i]) * scale, v = to_float(slope[i]) * (gain ? gain[i] : 1.0f);
                float d = to_float(carried[i]) + (v - hat * mean) * scale;
                put(to + i, d);
                if (also) put(also + i, d);
            }
        }
    }
}

// What the exported functions are given, cast to its types.
template <class Stream, class Branch, class Out>
struct Typed {
    static void forward_of(const void* x, const void* branch, const float* gain, void* total, void* y, float* inverse,
                           long rows, long width, float eps) {
        forward((const Stream*)x, (const Branch*)branch, gain, (Stream*)total, (Out*)y, inverse, rows, width, eps);
    }
    static void backward_of(const void* up, const void* g, const void* total, const float* gain, const float* inverse, void* dx,
                            void* dbranch, float* dgain, long rows, long width, long blocks) {
        backward((const Stream*)up, (const Out*)g, (const Stream*)total, gain, inverse, (Stream*)dx, (Branch*)dbranch, dgain,
                 rows, width, blocks);
    }
};

}  // namespace

// half_stream, half_branch, half_out: 1 where that tensor is bfloat16, 0 where it is float32. With a stream of
// bfloat16 all are.
FAIRWAY_EXPORT(add_rms_norm_forward)
(const void* x, const void* branch, const float* gain, void* total, void* y, float* inverse, long rows, long width, float eps,
 int half_stream, int half_branch, int half_out) {
    auto* run = half_stream                 ? &Typed<Bfloat, Bfloat, Bfloat>::forward_of
                : half_branch && half_out ? &Typed<float, Bfloat, Bfloat>::forward_of
                : half_branch               ? &Typed<float, Bfloat, float>::forward_of
                : half_out                  ? &Typed<float, float, Bfloat>::forward_of
                                            : &Typed<float, float, float>::forward_of;
    run(x, branch, gain, total, y, inverse, rows, width, eps);
}

// up, g: the gradients by the sum and by its norm, of their types. dbranch may be null. dgain holds (blocks, width) zeros, or
// is null.
FAIRWAY_EXPORT(add_rms_norm_backward)
(const void* up, const void* g, const void* total, const float* gain, const float* inverse, void* dx, void* dbranch,
 float* dgain, long rows, long width, long blocks, int half_stream, int half_branch, int half_out) {
    auto* run = half_stream                 ? &Typed<Bfloat, Bfloat, Bfloat>::backward_of
                : half_branch && half_out ? &Typed<float, Bfloat, Bfloat>::backward_of
                : half_branch               ? &Typed<float, Bfloat, float>::backward_of
                : half_out                  ? &Typed<float, float, Bfloat>::backward_of
                                            : &Typed<float, float, float>::backward_of;
    run(up, g, total, gain, inverse, dx, dbranch, dgain, rows, width, blocks);
}
