// The passes over memory around an orthogonalised update: see naive.py for the definition.
//
// Numbers go in blocks of a fixed size, whose sums are added in their order: any number of threads gives the same bits.

#include "../kernel/point.h"
#include "../kernel/scratch.h"

namespace {

constexpr long block = 8192;

inline long least(long a, long b) { return a < b ? a : b; }

// The update of one vector, from the gradient and the momentum after the step.
inline Floats update(Floats g, Floats m, float mu, bool nesterov) { return nesterov ? g + (m - g) * mu : m; }

// Steps the momentum of a block; the sum of the squares of its updates.
float advance(const float* g, float* m, long count, float mu, bool nesterov) {
    Floats squares{};
    for (long i = 0; i < count; i += lanes) {
        Floats gradient = load_part(g + i, count - i), before = load_part(m + i, count - i);
        Floats after = before + (gradient - before) * (1.0f - mu);
        store_part(m + i, after, count - i);
        Floats u = update(gradient, after, mu, nesterov);
        squares += u * u;
    }
    return sum(squares);
}

template <class T>
void direction(const float* g, float* m, T* u, long count, float mu, bool nesterov, float* sums) {
    long blocks = (count + block - 1) / block;
#pragma omp parallel for schedule(static)
    for (long n = 0; n < blocks; n++)
        sums[n] = advance(g + n * block, m + n * block, least(block, count - n * block), mu, nesterov);
    double squares = 0;
    for (long n = 0; n < blocks; n++) squares += sums[n];
    float norm = (float)std::sqrt(squares), scale = 1.0f / (norm < 1e-7f ? 1e-7f : norm);
#pragma omp parallel for schedule(static)
    for (long n = 0; n < blocks; n++)
        for (long i = n * block; i < least(count, (n + 1) * block); i += lanes)
            store_part(u + i, update(load_part(g + i, count - i), load_part(m + i, count - i), mu, nesterov) * scale, count - i);
}

template <class T>
void descend(float* w, const T* o, long count, float kept, float rate) {
#pragma omp parallel for schedule(static)
    for (long n = 0; n < (count + block - 1) / block; n++)
        for (long i = n * block; i < least(count, (n + 1) * block); i += lanes)
            store_part(w + i, load_part(w + i, count - i) * kept - load_part(o + i, count - i) * rate, count - i);
}

}  // namespace

// Stacks of `matrices` with `count` numbers each, those of g and m at distances of their own.
FAIRWAY_EXPORT(momentum_direction)
(const float* g, float* m, void* u, long matrices, long count, long g_step, long m_step, float mu, int nesterov, int half) {
    Scratch<float> sums((count + block - 1) / block);
    for (long n = 0; n < matrices; n++)
        if (half)
            direction(g + n * g_step, m + n * m_step, (Bfloat*)u + n * count, count, mu, nesterov, sums.data());
        else
            direction(g + n * g_step, m + n * m_step, (float*)u + n * count, count, mu, nesterov, sums.data());
}

FAIRWAY_EXPORT(momentum_descend)
(float* w, const void* o, long matrices, long count, long w_step, float kept, float rate, int half) {
    for (long n = 0; n < matrices; n++)
        if (half)
            descend(w + n * w_step, (const Bfloat*)o + n * count, count, kept, rate);
        else
            descend(w + n * w_step, (const float*)o + n * count, count, kept, rate);
}
