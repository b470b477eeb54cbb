// What the portable kernels answer to fixed questions, one number a line, to compare machines by.

#include <algorithm>
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
void add_rms_norm_forward_portable(const void*, const void*, const float*, void*, void*, float*, long, long, float, int, int,
                                   int);
void add_rms_norm_backward_portable(const void*, const void*, const void*, const float*, const float*, void*, void*, float*,
                                    long, long, long, int, int, int);
void norm_rotate_forward_portable(const void*, const float*, const float*, const float*, const float*, void*, const long*,
                                  float, int);
void norm_rotate_backward_portable(const void*, const void*, const float*, const float*, const float*, const float*, void*,
                                   float*, float*, const long*, float, long, int);
void log_softmax_portable(const void*, float*, long, long, float, int);
void log_softmax_total_portable(const float*, float*, long, long);
void columns_solve_portable(float*, bool*, const float*, const float*, float*, long, long, long, long);
void trellis_search_portable(const double*, const double*, const int32_t*, int32_t*, long, long);
void ttt_forward_portable(const float*, const float*, const float*, const float*, const float*, const float*, const float*,
                          const float*, const float*, float*, float*, float*, float*, float*, const long*);
void ttt_backward_portable(const float*, const float*, const float*, const float*, const float*, const float*, const float*,
                           const float*, const float*, const float*, const float*, const float*, const float*, float*, float*,
                           float*, float*, float*, float*, float*, float*, float*, const long*);
void matvec_portable(const uint8_t*, const float*, const float*, float*, long, long, long);
void sparse_matvec_portable(const void*, const float*, float*);
void decode_step_portable(const void*, long, long, const void*, float*, float*, const long*, long, long, long, int);
void words_open_portable(void**, const uint8_t*, long, long, long);
void words_close_portable(void*);
void words_add_portable(void*, const uint8_t* const*, const long*, long, long);
void bpe_learn_portable(void*, long, long*);
void bpe_learned_portable(void*, uint32_t*, uint32_t*);
void bpe_open_portable(void**, const uint8_t*, long, long, const uint32_t*, const uint32_t*, const uint32_t*, long, long, long);
void bpe_close_portable(void*);
void bpe_encode_portable(void*, const uint8_t* const*, const long*, const long*, long*, long, void*, long);
void pieces_join_portable(const void*, long, long, const uint8_t*, const long*, uint8_t*, long);
void count_symbols_portable(const int32_t*, int64_t*, long, long, long);
void rans_encode_portable(const int32_t*, const uint32_t*, uint32_t*, uint16_t*, int32_t*, long*, long, long, long, long, int);
void rans_decode_portable(const uint16_t*, const uint32_t*, uint32_t*, int32_t*, const int32_t*, long*, long, long, long, long,
                          long, long, int);
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

template <class T>
static void show(const std::vector<T>& numbers) {
    for (T number : numbers) std::printf("%.7g\n", (double)number);
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
                        few, width, groups * width, few,  width, groups * width, all, width, heads * width,
                        all, width, heads * width};
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

static void fused_norms() {
    const long rows = 5, width = 21;
    std::vector<float> x = drawn(rows * width, 2), b = drawn(rows * width, 1), g = drawn(rows * width, 1);
    std::vector<float> gain = drawn(width, 1);
    std::vector<float> total(rows * width), y(rows * width), inverse(rows), dx(rows * width), dgain(2 * width);
    add_rms_norm_forward_portable(x.data(), b.data(), gain.data(), total.data(), y.data(), inverse.data(), rows, width, 1e-6f, 0,
                                  0, 0);
    add_rms_norm_backward_portable(b.data(), g.data(), total.data(), gain.data(), inverse.data(), dx.data(), nullptr,
                                   dgain.data(), rows, width, 2, 0, 0, 0);
    for (const auto* part : {&total, &y, &inverse, &dx, &dgain}) show(*part);

    long sizes[] = {6, 2, 10, 3, 8};
    std::vector<float> heads = drawn(120, 1), factor = drawn(2, 1), cosine = drawn(12, 1), sine = drawn(12, 1);
    std::vector<float> turned(120), by_heads(120), by_gain(20), by_factor(4), up = drawn(120, 1);
    norm_rotate_forward_portable(heads.data(), gain.data(), factor.data(), cosine.data(), sine.data(), turned.data(), sizes,
                                 1e-6f, 0);
    norm_rotate_backward_portable(up.data(), heads.data(), gain.data(), factor.data(), cosine.data(), sine.data(),
                                  by_heads.data(), by_gain.data(), by_factor.data(), sizes, 1e-6f, 2, 0);
    for (const auto* part : {&turned, &by_heads, &by_gain, &by_factor}) show(*part);
    for (float cap : {0.0f, 3.0f}) {
        log_softmax_portable(x.data(), x.data(), rows, width, cap, 0);
        show(x);
    }
}

static void solvers() {
    const long columns = 8, rows = 5;
    for (long zeros : {0L, 2L}) {
        std::vector<float> work = drawn(columns * rows, 1), upper = drawn(columns * columns, 0.2f), step(rows, 0.1f);
        for (long i = 0; i < columns; i++) upper[i * columns + i] += 1.0f;
        std::vector<float> errors(columns * rows);
        bool kept[columns * rows];
        for (bool& one : kept) one = true;
        columns_solve_portable(work.data(), kept, upper.data(), step.data(), errors.data(), columns, rows, zeros,
                               zeros ? 4 : 1);
        show(work);
        show(errors);
    }
    const long states = 8, count = 50;
    std::vector<int32_t> leads(2 * states), best(count);
    for (int32_t s = 0; s < states; s++) leads[2 * s] = s, leads[2 * s + 1] = s + states;
    std::vector<double> target, price;
    for (float number : drawn(count, 5)) target.push_back(number), price.push_back(0.02);
    trellis_search_portable(target.data(), price.data(), leads.data(), best.data(), count, states);
    show(best);
}

static void learner() {
    long sizes[] = {1, 11, 2, 4, 5, 2, 2};
    const long all = 11 * 8, carried = 2 * 5 * 4;
    std::vector<float> q = drawn(all, 1), k = drawn(all, 1), v = drawn(all, 1), rate = drawn(22, 0.1f), place(5, 0.3f);
    for (float& one : rate) one += 0.12f;
    std::vector<float> gain(8, 1.0f), shift = drawn(8, 0.1f), weights = drawn(carried, 0.3f), sums = drawn(carried, 0.1f);
    std::vector<float> y(all), last(carried), last_sums(carried), rated(all), firsts(4096), dy = drawn(all, 1);
    ttt_forward_portable(q.data(), k.data(), v.data(), rate.data(), place.data(), gain.data(), shift.data(), weights.data(),
                         sums.data(), y.data(), last.data(), last_sums.data(), rated.data(), firsts.data(), sizes);
    for (const auto* part : {&y, &last, &last_sums}) show(*part);
    std::vector<float> by_q(all), by_k(all), by_v(all), by_rate(22), by_place(10), by_gain(8), by_shift(8);
    std::vector<float> by_w(carried), by_s(carried);
    ttt_backward_portable(dy.data(), weights.data(), sums.data(), q.data(), k.data(), v.data(), rate.data(), place.data(),
                          gain.data(), shift.data(), sums.data(), rated.data(), firsts.data(), by_q.data(), by_k.data(),
                          by_v.data(), by_rate.data(), by_place.data(), by_gain.data(), by_shift.data(), by_w.data(),
                          by_s.data(), sizes);
    for (const auto* part : {&by_q, &by_k, &by_v, &by_rate, &by_place, &by_gain, &by_shift, &by_w, &by_s}) show(*part);
}

static void products() {
    const long rows = 20, columns = 12;
    std::vector<float> x = drawn(64, 1), y(32), step(32, 0.01f), whole = drawn(32 * columns, 1);
    std::vector<uint8_t> codes(4096);
    for (size_t i = 0; i < codes.size(); i++) codes[i] = (uint8_t)(37 * i + i / 7);
    for (long format = 0; format < 4; format++) {
        const uint8_t* data = format ? codes.data() : (const uint8_t*)whole.data();
        matvec_portable(data, step.data(), x.data(), y.data(), rows, columns, format);
        show(std::vector<float>(y.begin(), y.begin() + rows));
    }
    const int32_t first[] = {0, 1, 2}, fours[] = {2, 0, 1, 0, 1, 1, 1, 0, 1, 0};
    std::vector<uint16_t> entry(3 * 64);
    for (size_t i = 0; i < entry.size(); i++) entry[i] = (uint16_t)((13 * i) % 32 | (7 * i) % 32 << 8);
    std::vector<float> value = drawn(3 * 64, 1), table = drawn(32, 1);
    const struct {
        int32_t row, column;
        float value;
    } rest[] = {{3, 49, 0.5f}, {20, 0, -2.0f}};
    for (const float* shared : {(const float*)table.data(), (const float*)nullptr}) {
        struct {
            const void *first, *fours, *entry, *value, *table, *rest;
            int64_t blocks, columns, rest_count;
        } matrix = {first, fours, entry.data(), value.data(), shared, rest, 2, 50, 2};
        sparse_matvec_portable(&matrix, x.data(), y.data());
        show(y);
    }
}

static void decoding() {
    struct {
        long operation, kind, to, first, second, third, size, heads, groups, index, extra, window;
        double a, b, c;
        const float *one, *two;
    } program[] = {
        {0, 0, 0, 0, -1, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, nullptr, nullptr},
        {2, 0, 16, 0, -1, 0, 16, 1, 0, 16, 0, 0, 1, 0, 1e-6, nullptr, nullptr},
        {6, 0, 32, 16, 0, 16, 16, 2, 2, 0, 256, 0, 0, 0, 0, nullptr, nullptr},
        {1, 0, 48, 32, -1, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, nullptr, nullptr},
    };
    std::vector<float> table = drawn(32 * 16, 1), arena(256), memory(1024);
    struct {
        long rows, columns, format;
        const void* data;
        const float* step;
    } matrix = {32, 16, 0, table.data(), nullptr};
    const long tokens[] = {1, 5, 9};
    decode_step_portable(program, 3, 4, &matrix, arena.data(), memory.data(), tokens, 3, 0, 8, 1);
    show(std::vector<float>(arena.begin(), arena.begin() + 80));
}

static void tokenizing() {
    const char text[] = "the cat sat on the mat, the cat that sat there ate the rat; 12 34 12";
    const uint8_t* texts[] = {(const uint8_t*)text};
    const long sizes[] = {(long)sizeof text - 1}, starts[] = {0};
    std::vector<uint8_t> kinds(256);
    kinds[','] = kinds[';'] = 1;
    for (int c = '0'; c <= '9'; c++) kinds[(size_t)c] = 2;
    kinds[' '] = 3;
    void* words = nullptr;
    words_open_portable(&words, kinds.data(), 3, 0, 1);
    words_add_portable(words, texts, sizes, 1, 1);
    long merges = 0;
    bpe_learn_portable(words, 267, &merges);
    std::vector<uint32_t> left((size_t)merges), right((size_t)merges), made((size_t)merges);
    bpe_learned_portable(words, left.data(), right.data());
    words_close_portable(words);
    for (size_t i = 0; i < made.size(); i++) made[i] = (uint32_t)(257 + i);
    show(left);
    show(right);
    void* encoder = nullptr;
    bpe_open_portable(&encoder, kinds.data(), 3, 0, left.data(), right.data(), made.data(), merges, 2, 1);
    std::vector<uint16_t> ids(sizeof text);
    long used = 0;
    bpe_encode_portable(encoder, texts, sizes, starts, &used, 1, ids.data(), 1);
    bpe_close_portable(encoder);
    ids.resize((size_t)used);
    show(ids);

    std::vector<uint8_t> pieces;
    std::vector<long> begin = {0};
    for (uint32_t id = 0; id < 257 + made.size(); id++) {
        std::vector<uint8_t> piece(id < 256, (uint8_t)id);
        if (id > 256) {
            long l = (long)left[id - 257], r = (long)right[id - 257];
            piece.assign(pieces.begin() + begin[(size_t)l], pieces.begin() + begin[(size_t)l + 1]);
            piece.insert(piece.end(), pieces.begin() + begin[(size_t)r], pieces.begin() + begin[(size_t)r + 1]);
        }
        pieces.insert(pieces.end(), piece.begin(), piece.end());
        begin.push_back((long)pieces.size());
    }
    pieces.resize(pieces.size() + 16);
    std::vector<uint8_t> joined(sizeof text + 16);
    pieces_join_portable(ids.data(), 2, used, pieces.data(), begin.data(), joined.data(), sizes[0]);
    std::printf("%d\n", (int)std::equal(texts[0], texts[0] + sizes[0], joined.begin()));
}

int main() {
    elementwise();
    mixers();
    fused_norms();
    solvers();
    learner();
    products();
    decoding();
    tokenizing();
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
    uint32_t span[] = {3000, 1090, 6, 0};
    std::vector<int32_t> places(count), decoded(count), rare(count);
    for (long i = 0; i < count; i++) places[(size_t)i] = (int32_t)(i % 97 == 0 ? 3 : i % 5 == 0 ? 1 + i % 2 : 0);
    std::vector<uint16_t> words(count + 16);
    uint32_t states[4] = {1u << 16, 1u << 16, 1u << 16, 1u << 16};
    long used[2] = {}, taken[2] = {};
    rans_encode_portable(places.data(), span, states, words.data(), rare.data(), used, count, 4, 4, 2, 12);
    for (uint32_t lane : states) std::printf("%u\n", lane);
    rans_decode_portable(words.data() + 16 + count - used[0], span, states, decoded.data(), rare.data() + count - used[1],
                         taken, count, 4, 4, used[0], used[1], 2, 12);
    std::printf("%ld\n%ld\n%ld\n%ld\n%d\n", used[0], used[1], taken[0], taken[1], (int)(decoded == places));
    std::vector<int64_t> times(4);
    count_symbols_portable(places.data(), times.data(), 0, count, 4);
    show(times);
}
