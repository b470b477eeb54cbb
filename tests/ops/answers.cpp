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

int main() {
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
