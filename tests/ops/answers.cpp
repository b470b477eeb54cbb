// What the portable kernels answer to fixed questions, one number a line, to compare machines by.

#include <cstdint>
#include <cstdio>
#include <vector>

extern "C" {
void gate_forward_portable(const void*, void*, long, long, int, int);
void gate_backward_portable(const void*, const void*, void*, long, long, int, int);
void rms_norm_forward_portable(const void*, const float*, void*, float*, long, long, float, int, int);
void squash_forward_portable(const void*, const float*, const float*, void*, long, long, float, float, int, int);
void selective_scan_forward_portable(const float*, const float*, const float*, const float*, const float*, const float*,
                                     const float*, const bool*, float*, float*, float*, const long*, int);
void gla_forward_portable(const float*, const float*, const float*, const float*, const float*, const bool*, float*, float*,
                          float*, const long*);
void relu2_forward_portable(const void*, void*, long, int);
void relu2_backward_portable(const void*, const void*, void*, long, int);
void rotate_portable(const void*, const float*, const float*, void*, long, long, long, long, long, long, float, int);
void cross_entropy_rows_portable(void*, const int64_t*, float*, float*, long, long, float, float, float, int);
void cross_entropy_widen_portable(float*, const void*, long, int);
void symmetric_product_portable(const void*, const void*, const void*, void*, long, long, long, float, float, int);
void attention_forward_portable(const void*, const void*, const void*, const int64_t*, void*, float*, const long*, const float*,
                                int);
void attention_backward_portable(const void*, const void*, const void*, const void*, const int64_t*, const void*, const float*,
                                 void*, void*, void*, const long*, const float*, int);
void delta_forward_portable(const float*, const float*, const float*, const float*, const float*, const float*, const bool*,
                            float*, float*, float*, float*, const long*);
void wkv4_forward_portable(const float*, const float*, const float*, const float*, const float*, const float*, const float*,
                           const bool*, float*, float*, float*, float*, float*, const long*);
void sample_portable(const float*, long, double, long, double, double, double, long*);
void rans_encode_portable(const int32_t*, const uint32_t*, uint32_t*, uint16_t*, long*, long, long, long, int);
void rans_decode_portable(const uint16_t*, const uint32_t*, uint32_t*, int32_t*, long*, long, long, long, long, int);
}

static std::vector<float> drawn(size_t count, float scale) {
    static uint32_t seed = 1;
    std::vector<float> numbers(count);
    for (float& number : numbers) {
        seed = seed * 1664525u + 1013904223u;
        number = scale * ((float)(seed >> 8) / (1 << 23) - 1.0f);
    }
    return numbers;
}

static void show(const std::vector<float>& numbers) {
    for (float number : numbers) std::printf("%.7g\n", (double)number);
}

static void elementwise() {
    const long rows = 5, width = 21;
    std::vector<float> x = drawn(rows * width, 4), g = drawn(rows * width, 1), y(rows * width);
    relu2_forward_portable(x.data(), y.data(), rows * width, 0);
    show(y);
    relu2_backward_portable(g.data(), x.data(), y.data(), rows * width, 0);
    show(y);

    std::vector<float> turned(4 * 3 * 10), heads = drawn(4 * 3 * 10, 1), cosine = drawn(4 * 4, 1), sine = drawn(4 * 4, 1);
    rotate_portable(heads.data(), cosine.data(), sine.data(), turned.data(), 4, 3, 10, 30, 4, 8, 1, 0);
    show(turned);

    std::vector<int64_t> target = {0, 20, 7, 3, 11};
    std::vector<float> nats(rows), normaliser(rows);
    for (float cap : {0.0f, 5.0f}) {
        std::vector<float> z = x;
        cross_entropy_rows_portable(z.data(), target.data(), nats.data(), normaliser.data(), rows, width, cap, 1e-3f, 0.3f, 0);
        show(z);
        show(nats);
        show(normaliser);
    }
    std::vector<uint16_t> halves(rows * width);
    for (size_t i = 0; i < halves.size(); i++) halves[i] = (uint16_t)(0x3f80 + 37 * i);
    for (int add = 0; add < 2; add++) cross_entropy_widen_portable(y.data(), halves.data(), rows * width, add);
    show(y);

    std::vector<float> square(2 * 7 * 7), a = drawn(2 * 7 * 6, 1);
    symmetric_product_portable(a.data(), a.data(), nullptr, square.data(), 2, 7, 6, 0.5f, 0.0f, 0);
    show(square);

    long chosen = 0;
    for (double uniform : {0.1, 0.5, 0.9}) {
        sample_portable(x.data(), width, 0.8, 10, 0.95, 0.0, uniform, &chosen);
        std::printf("%ld\n", chosen);
    }
}

static void mixers() {
    const long time = 19, heads = 4, groups = 2, width = 6, all = time * heads * width, few = time * groups * width;
    long attention[] = {1,   heads, groups,         time, time,  width,          all, width, heads * width,
                        few, width, groups * width, few,  width, groups * width, all, width, heads * width};
    float factors[] = {0.4f, 0.0f};
    std::vector<float> q = drawn(all, 1), k = drawn(few, 1), v = drawn(few, 1), g = drawn(all, 1);
    std::vector<float> y(all), normaliser(heads * time), by_q(all), by_k(few), by_v(few);
    for (float cap : {0.0f, 2.0f}) {
        factors[1] = cap;
        attention_forward_portable(q.data(), k.data(), v.data(), nullptr, y.data(), normaliser.data(), attention, factors, 0);
        attention_backward_portable(g.data(), q.data(), k.data(), v.data(), nullptr, y.data(), normaliser.data(), by_q.data(),
                                    by_k.data(), by_v.data(), attention, factors, 0);
        for (const auto* part : {&y, &normaliser, &by_q, &by_k, &by_v}) show(*part);
    }

    long delta[] = {1, time, 2, 3, 5}, wkv4[] = {1, time, 6};
    std::vector<float> dq = drawn(time * 6, 1), dk = drawn(time * 6, 0.5f), dv = drawn(time * 10, 1), beta = drawn(time * 2, 0.4f);
    std::vector<float> decay = drawn(time * 2, 0.3f), state(64), out(time * 10), last(64), errors(4096), firsts(4096);
    for (float& rate : beta) rate += 0.5f;
    for (float& rate : decay) rate -= 0.4f;
    delta_forward_portable(dq.data(), dk.data(), dv.data(), beta.data(), decay.data(), state.data(), nullptr, out.data(),
                           last.data(), errors.data(), firsts.data(), delta);
    show(out);

    std::vector<float> w = drawn(6, 0.3f), bonus = drawn(6, 1), zero(6), lowest(6, -1e30f), mixed(time * 6), ends(18);
    for (float& rate : w) rate += 0.6f;
    wkv4_forward_portable(dk.data(), dq.data(), w.data(), bonus.data(), zero.data(), zero.data(), lowest.data(), nullptr,
                          mixed.data(), &ends[0], &ends[6], &ends[12], firsts.data(), wkv4);
    show(mixed);
    show(ends);
}

int main() {
    elementwise();
    mixers();
    std::vector<float> x = drawn(2 * 3 * 7, 3), g = drawn(3 * 7, 1), y(3 * 7), dx(2 * 3 * 7), inverse(3);
    for (int point = 0; point < 6; point++) {
        gate_forward_portable(x.data(), y.data(), 3, 7, point, 0);
        gate_backward_portable(g.data(), x.data(), dx.data(), 3, 7, point, 0);
        show(y);
        show(dx);
    }
    rms_norm_forward_portable(x.data(), nullptr, y.data(), inverse.data(), 3, 7, 1e-6f, 0, 0);
    show(y);
    for (int error = 0; error < 2; error++) {
        squash_forward_portable(x.data(), nullptr, nullptr, y.data(), 3, 7, 0.7f, 0.1f, error, 0);
        show(y);
    }

    long scan[] = {1, 19, 6, 3}, gla[] = {1, 19, 2, 2, 3, 5, 3};
    std::vector<float> u = drawn(19 * 6, 1), delta = drawn(19 * 6, 0.2f), A = drawn(18, 0.5f), B = drawn(57, 1), C = drawn(57, 1);
    for (float& step : delta) step += 0.3f;
    for (float& rate : A) rate -= 1.0f;
    std::vector<float> state(200), out(19 * 10), last(200), firsts(2000);
    for (int hold = 0; hold < 2; hold++) {
        selective_scan_forward_portable(u.data(), delta.data(), A.data(), B.data(), C.data(), nullptr, state.data(), nullptr,
                                        out.data(), last.data(), firsts.data(), scan, hold);
        show(out);
    }
    std::vector<float> q = drawn(19 * 6, 1), k = drawn(19 * 6, 1), v = drawn(19 * 10, 1), decay = drawn(19 * 6, 0.5f);
    for (float& rate : decay) rate -= 0.5f;
    gla_forward_portable(q.data(), k.data(), v.data(), decay.data(), state.data(), nullptr, out.data(), last.data(),
                         firsts.data(), gla);
    show(out);

    const long count = 5000;
    uint32_t span[] = {3000, 1000, 90, 6};
    std::vector<int32_t> places(count), decoded(count);
    for (long i = 0; i < count; i++) places[(size_t)i] = (int32_t)(i % 97 == 0 ? 3 : i % 5 == 0 ? 1 + i % 2 : 0);
    std::vector<uint16_t> words(count);
    uint32_t states[4] = {1u << 16, 1u << 16, 1u << 16, 1u << 16};
    long used = 0, taken = 0;
    rans_encode_portable(places.data(), span, states, words.data(), &used, count, 4, 4, 12);
    for (uint32_t lane : states) std::printf("%u\n", lane);
    rans_decode_portable(words.data() + count - used, span, states, decoded.data(), &taken, count, 4, 4, used, 12);
    std::printf("%ld\n%ld\n%d\n", used, taken, (int)(decoded == places));
}
