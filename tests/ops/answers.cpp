// What the portable kernels whose arguments point on to further memory answer to fixed questions, one number a line, to
// compare machines by. All others are called by replay.cpp.

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <vector>

#include "kernels.h"

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

static void products() {
    std::vector<float> x = drawn(64, 1), y(32);
    const int32_t first[] = {0, 1, 2}, fours[] = {2, 0, 1, 0, 1, 1, 1, 0, 1, 0};
    std::vector<uint16_t> entry(3 * 64);
    for (size_t i = 0; i < entry.size(); i++) entry[i] = (uint16_t)((13 * i) % 32 | (7 * i) % 32 << 8);
    std::vector<float> value = drawn(3 * 64, 1), table = drawn(32, 1);
    const struct {
        uint32_t place;
        float value;
    } rest[] = {{3 << 6 | 49, 0.5f}, {20 << 6, -2.0f}};
    for (const float* shared : {(const float*)table.data(), (const float*)nullptr}) {
        struct {
            const void *first, *fours, *entry, *value, *table, *rest;
            int64_t blocks, columns, column_bits, rest_count;
        } matrix = {first, fours, entry.data(), value.data(), shared, rest, 2, 50, 6, 2};
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

static void coding() {
    const long count = 5000;
    uint32_t span[] = {3000, 1090, 6, 0};
    std::vector<int32_t> places(count), decoded(count), rare(count);
    for (long i = 0; i < count; i++) places[(size_t)i] = (int32_t)(i % 97 == 0 ? 3 : i % 5 == 0 ? 1 + i % 2 : 0);
    std::vector<uint16_t> words(count + 16);
    uint32_t states[4] = {1u << 16, 1u << 16, 1u << 16, 1u << 16};
    long used[2] = {}, taken[2] = {};
    rans_encode_portable(places.data(), span, states, words.data(), rare.data(), used, count, 4, 0, 4, 2, 12);
    for (uint32_t lane : states) std::printf("%u\n", lane);
    rans_decode_portable(words.data() + 16 + count - used[0], span, states, decoded.data(), rare.data() + count - used[1],
                         taken, count, 4, 0, 4, used[0], used[1], 2, 12);
    std::printf("%ld\n%ld\n%ld\n%ld\n%d\n", used[0], used[1], taken[0], taken[1], (int)(decoded == places));
    std::vector<int64_t> times(4);
    count_symbols_portable(places.data(), times.data(), 0, count, 4);
    show(times);
}

static void sampling() {
    std::vector<float> logits = drawn(105, 4);
    long chosen = 0;
    for (double uniform : {0.1, 0.5, 0.9}) {
        sample_portable(logits.data(), 105, 0.8, 10, 0.95, 0.0, uniform, &chosen);
        std::printf("%ld\n", chosen);
    }
}

int main() {
    solvers();
    products();
    decoding();
    tokenizing();
    coding();
    sampling();
}
