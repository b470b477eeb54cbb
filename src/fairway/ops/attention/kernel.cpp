// Causal attention, forward and backward, without ever storing the score matrix: see naive.py for the definition.
//
// Queries are taken in blocks; a block's scores against all keys it may see fit in cache. Products of bfloat16 tensors use
// bfloat16 dot instructions where the level has them (pairs of values in one 32-bit word, sums in float32), and float32
// multiply-adds otherwise. Softmax is float32. The backward pass recomputes probabilities from the log-normalisers.

#include <algorithm>

#include "../kernel/operands.h"

namespace {

constexpr long block = 32;
constexpr long strip = 16;
constexpr float log2_e = 1.44269504f;
constexpr float ln_2 = 0.693147181f;

struct Strides {
    long batch, head, token;
};

struct Shape {
    long batch, heads, groups, queries, keys, width;
    float scale, cap;
    Strides q, k, v, y;
    const int64_t* first;

    long repeats() const { return heads / groups; }
    long offset() const { return keys - queries; }
};

// Up to `block` tokens as rows of operands along the width; missing tokens are zero.
template <bool paired, class T>
void pack_queries(const T* from, long stride, uint32_t* to, long tokens, long width) {
    long depth = width / Product<paired>::depth;
    for (long t = 0; t < tokens; t++) widen_row<paired>(from + t * stride, to + t * depth, width);
    std::memset(to + tokens * depth, 0, 4 * (block - tokens) * depth);
}

// Up to `block` tokens as one row of operands for each feature, along the tokens; missing tokens are zero. `lines` is room.
template <bool paired, class T>
void pack_features(const T* from, long stride, uint32_t* to, long tokens, long width, uint32_t* lines) {
    constexpr long words = block / Product<paired>::depth;
    long columns = rounded_up(width, 16);
    pack_tokens<paired>(from, stride, lines, tokens, block, width, columns);
    for (long p = 0; p < words; p += 16)
        for (long i = 0; i < width; i += 16) turn16(lines + p * columns + i, columns, 16, to + i * words + p, words, 16);
}

template <class T>
void put_row(T* to, const float* from, float scale, long count) {
    long i = 0;
    for (; i + lanes <= count; i += lanes) store(to + i, load(from + i) * scale);
    for (; i < count; i++) put(to + i, from[i] * scale);
}

// A (width, keys) matrix to (key, group, width) rows.
template <class T>
void put_turned(T* to, const float* from, long ld, const Shape& s) {
    alignas(64) float turned[16 * 16];
    for (long t = 0; t < s.keys; t += 16)
        for (long c = 0; c < s.width; c += 16) {
            turn16((const uint32_t*)(from + c * ld + t), ld, 16, (uint32_t*)turned, 16, 16);
            for (long i = 0; i < std::min(16L, s.keys - t); i++)
                put_row(to + (t + i) * s.groups * s.width + c, turned + 16 * i, 1.0f, std::min(16L, s.width - c));
        }
}

template <class T>
float dot(const T* a, const T* b, long count) {
    Floats sums{};
    float rest = 0;
    long i = 0;
    for (; i + lanes <= count; i += lanes) sums += load(a + i) * load(b + i);
    for (; i < count; i++) rest += to_float(a[i]) * to_float(b[i]);
    return sum(sums) + rest;
}

// Columns that a strip of queries needs whose first one stands at key `own`.
inline long reach(long own, long keys) { return std::min(rounded_up(own + strip, step), keys); }

// Minus infinity where query and key must not meet.
void hide(float* s, long first, long own, long columns) {
    Ints place = counting();
    for (long k = (own + 1) / lanes * lanes; k < columns; k += lanes)
        store(s + k, select(place > (int32_t)(own - k), all(-INFINITY), load(s + k)));
    for (long k = 0; k < std::min(first, columns); k += lanes)
        store(s + k, select(place < (int32_t)(first - k), all(-INFINITY), load(s + k)));
}

// Raw products to scores under a soft cap.
void bound(float* s, long columns, float scale, float cap) {
    for (long k = 0; k < columns; k += lanes) store(s + k, cap * tanh_of(load(s + k) * (scale / cap)));
}

float largest_of(const float* s, long columns) {
    Floats most[4] = {all(-INFINITY), all(-INFINITY), all(-INFINITY), all(-INFINITY)};
    for (long k = 0; k < columns; k += lanes) most[k / lanes % 4] = larger(load(s + k), most[k / lanes % 4]);
    return largest(larger(larger(most[0], most[1]), larger(most[2], most[3])));
}

// 2^(factor s - shift) along a row as operands; returns the sum.
template <bool paired>
float soften(const float* s, uint32_t* to, float factor, float shift, long columns) {
    Floats first{}, second{};
    for (long k = 0; k < columns; k += pair) {
        Floats a = power<paired>(load(s + k) * factor - shift), b = power<paired>(load(s + k + lanes) * factor - shift);
        first += a;
        second += b;
        put_along<paired>(to + k / Product<paired>::depth, a, b);
    }
    return sum(first + second);
}

// What the gradient of a row's scores needs beside them.
struct Slope {
    float shift, delta;

    // Probability, and the gradient by the score, from a score and the gradient by its probability.
    template <bool paired>
    void at(const float* s, const float* g, float factor, const Shape& shape, Floats& p, Floats& d) const {
        Floats score = load(s);
        p = power<paired>(score * factor - shift);
        d = p * (load(g) - delta) * shape.scale;
        if (shape.cap > 0) {
            Floats share = score / shape.cap;
            d = select(p > Floats{}, d * (1.0f - share * share), Floats{});
        }
    }
};

// Two rows of scores `s` and of gradients by probabilities `g`, `ld` apart, to operands: along each row the gradients by the
// scores, and across both rows these and the probabilities. Beyond `columns`, up to `padded`, what lies across is zero.
template <bool paired>
void differentiate(float* s, float* g, long ld, const Slope* slope, float factor, const Shape& shape, long columns,
                   long padded, [[maybe_unused]] uint32_t* along, uint32_t* across_d, uint32_t* across_p) {
    for (long k = 0; k < columns; k += lanes) {
        Floats p[2], d[2];
        for (long r = 0; r < 2; r++) slope[r].at<paired>(s + r * ld + k, g + r * ld + k, factor, shape, p[r], d[r]);
#if defined(__AVX512BF16__)
        if (paired) {
            const __m512i zip = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21,
                                                 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
            __m512i ds = (__m512i)_mm512_cvtne2ps_pbh((__m512)d[1], (__m512)d[0]);
            __m512i ps = (__m512i)_mm512_cvtne2ps_pbh((__m512)p[1], (__m512)p[0]);
            _mm256_storeu_si256((__m256i*)(along + k / 2), _mm512_maskz_extracti64x4_epi64(0xf, ds, 0));
            _mm256_storeu_si256((__m256i*)(along + (ld + k) / 2), _mm512_maskz_extracti64x4_epi64(0xf, ds, 1));
            _mm512_storeu_si512(across_d + k, _mm512_maskz_permutexvar_epi16(0xffffffff, zip, ds));
            _mm512_storeu_si512(across_p + k, _mm512_maskz_permutexvar_epi16(0xffffffff, zip, ps));
            continue;
        }
#endif
        for (long r = 0; r < 2; r++) {
            store(s + r * ld + k, p[r]);
            store(g + r * ld + k, d[r]);
        }
    }
    for (long r = 0; r < 2 && !paired; r++) {
        std::fill_n(s + r * ld + columns, padded - columns, 0.0f);
        std::fill_n(g + r * ld + columns, padded - columns, 0.0f);
    }
    if (paired) {
        std::memset(across_d + columns, 0, 4 * (padded - columns));
        std::memset(across_p + columns, 0, 4 * (padded - columns));
    }
}

struct Room {
    Growing<float> scores, gradients, outputs, sums_k, sums_v;
    Growing<uint32_t> turned_k, turned_v, lined_k, lined_v, query, upstream, along, across_d, across_p, query_across, up_across,
        lines;
};

// Products of a block's queries with the keys each strip of them may see.
template <bool paired>
void score(const uint32_t* query, const uint32_t* turned, float* scores, long padded, long count, long own, long seen,
           long depth) {
    for (long m = 0; m < count; m += strip)
        multiply<paired>(query + m * depth, depth, turned, padded, scores + m * padded, padded, std::min(strip, count - m),
                         reach(own + m, seen), depth, false);
}

// Sums of lined-up tokens, weighed by what lies along each query's row.
template <bool paired>
void weigh(const uint32_t* along, const uint32_t* lined, float* outputs, long padded, long columns, long count, long own,
           long seen) {
    constexpr long depth = Product<paired>::depth;
    for (long m = 0; m < count; m += strip)
        multiply<paired>(along + m * (padded / depth), padded / depth, lined, columns, outputs + m * columns, columns,
                         std::min(strip, count - m), columns, reach(own + m, seen) / depth, false);
}

template <bool paired, class T>
void forward_group(const T* q, const T* k, const T* v, T* y, float* normaliser, const Shape& s, long b, long g, Room& room) {
    constexpr long depth = Product<paired>::depth;
    long padded = rounded_up(s.keys, step), columns = rounded_up(s.width, step);
    const T* keys = k + b * s.k.batch + g * s.k.head;
    const T* values = v + b * s.v.batch + g * s.v.head;
    room.turned_k.resize(padded * s.width / depth);
    room.lined_v.resize(padded * columns / depth);
    room.query.resize(block * s.width);
    room.scores.resize(block * padded);
    room.along.resize(block * padded);
    room.outputs.resize(block * columns);
    pack_turned<paired>(keys, s.k.token, room.turned_k.data(), s.keys, padded, s.width);
    pack_tokens<paired>(values, s.v.token, room.lined_v.data(), s.keys, padded, s.width, columns);
    float factor = (s.cap > 0 ? 1.0f : s.scale) * log2_e;
    for (long h = g * s.repeats(); h < (g + 1) * s.repeats(); h++)
        for (long start = 0; start < s.queries; start += block) {
            long count = std::min(block, s.queries - start), own = s.offset() + start;
            long seen = rounded_up(own + count, step);
            pack_queries<paired>(q + b * s.q.batch + h * s.q.head + start * s.q.token, s.q.token, room.query.data(), count,
                                 s.width);
            score<paired>(room.query.data(), room.turned_k.data(), room.scores.data(), padded, count, own, seen,
                          s.width / depth);
            float inverse[block];
            for (long i = 0; i < count; i++) {
                float* row = room.scores.data() + i * padded;
                long t = start + i, width = reach(own + i / strip * strip, seen);
                if (s.cap > 0) bound(row, width, s.scale, s.cap);
                hide(row, s.first ? s.first[b * s.queries + t] : 0, own + i, width);
                float shift = largest_of(row, width) * factor;
                float total = soften<paired>(row, room.along.data() + i * (padded / depth), factor, shift, width);
                inverse[i] = 1.0f / total;
                normaliser[(b * s.heads + h) * s.queries + t] = shift * ln_2 + std::log(total);
            }
            weigh<paired>(room.along.data(), room.lined_v.data(), room.outputs.data(), padded, columns, count, own, seen);
            for (long i = 0; i < count; i++) {
                T* to = y + b * s.y.batch + h * s.y.head + (start + i) * s.y.token;
                put_row(to, room.outputs.data() + i * columns, inverse[i], s.width);
            }
        }
}

// Scores and their gradients of a block of queries, as operands for the three products that follow.
template <bool paired, class T>
void differentiate_block(const T* up, const T* out, const float* normaliser, const int64_t* first, const Shape& s, long count,
                         long own, long seen, long padded, Room& room) {
    constexpr long depth = Product<paired>::depth;
    float factor = (s.cap > 0 ? 1.0f : s.scale) * log2_e;
    for (long i = 0; i < block; i += 2) {
        long width = i < count ? reach(own + i / strip * strip, seen) : 0;
        float* row = room.scores.data() + i * padded;
        float* slopes = room.gradients.data() + i * padded;
        Slope slope[2] = {};
        for (long r = 0; r < 2; r++) {
            if (i + r >= count) {
                std::fill_n(row + r * padded, width, -INFINITY);
                std::fill_n(slopes + r * padded, width, 0.0f);
                continue;
            }
            if (s.cap > 0) bound(row + r * padded, width, s.scale, s.cap);
            hide(row + r * padded, first ? first[i + r] : 0, own + i + r, width);
            slope[r] = {normaliser[i + r] * log2_e, dot(up + (i + r) * s.y.token, out + (i + r) * s.y.token, s.width)};
        }
        differentiate<paired>(row, slopes, padded, slope, factor, s, width, seen, room.along.data() + i * (padded / depth),
                              room.across_d.data() + i / 2 * padded, room.across_p.data() + i / 2 * padded);
    }
}

template <bool paired, class T>
void backward_group(const T* g_y, const T* q, const T* k, const T* v, const T* y, const float* normaliser, T* g_q, T* g_k,
                    T* g_v, const Shape& s, long b, long g, Room& room) {
    constexpr long depth = Product<paired>::depth;
    long padded = rounded_up(s.keys, step), columns = rounded_up(s.width, step), features = rounded_up(s.width, 16);
    const T* keys = k + b * s.k.batch + g * s.k.head;
    const T* values = v + b * s.v.batch + g * s.v.head;
    for (auto* words : {&room.turned_k, &room.turned_v}) words->resize(padded * s.width / depth);
    room.lined_k.resize(padded * columns / depth);
    for (auto* words : {&room.query, &room.upstream}) words->resize(block * s.width);
    for (auto* words : {&room.along, &room.across_d, &room.across_p}) words->resize(block * padded);
    for (auto* words : {&room.query_across, &room.up_across, &room.lines}) words->resize(block * features);
    for (auto* floats : {&room.scores, &room.gradients}) floats->resize(block * padded);
    room.outputs.resize(block * columns);
    for (auto* sums : {&room.sums_k, &room.sums_v}) sums->clear(padded * features);
    pack_turned<paired>(keys, s.k.token, room.turned_k.data(), s.keys, padded, s.width);
    pack_turned<paired>(values, s.v.token, room.turned_v.data(), s.keys, padded, s.width);
    pack_tokens<paired>(keys, s.k.token, room.lined_k.data(), s.keys, padded, s.width, columns);
    // Unpaired, gradients and probabilities lie across where they already lie along.
    const uint32_t* along = paired ? room.along.data() : (const uint32_t*)room.gradients.data();
    const uint32_t* across_d = paired ? room.across_d.data() : (const uint32_t*)room.gradients.data();
    const uint32_t* across_p = paired ? room.across_p.data() : (const uint32_t*)room.scores.data();
    for (long h = g * s.repeats(); h < (g + 1) * s.repeats(); h++)
        for (long start = 0; start < s.queries; start += block) {
            long count = std::min(block, s.queries - start), own = s.offset() + start, seen = rounded_up(own + count, step);
            const T* query = q + b * s.q.batch + h * s.q.head + start * s.q.token;
            const T* up = g_y + b * s.y.batch + h * s.y.head + start * s.y.token;
            const T* out = y + b * s.y.batch + h * s.y.head + start * s.y.token;
            pack_queries<paired>(query, s.q.token, room.query.data(), count, s.width);
            pack_queries<paired>(up, s.y.token, room.upstream.data(), count, s.width);
            pack_features<paired>(query, s.q.token, room.query_across.data(), count, s.width, room.lines.data());
            pack_features<paired>(up, s.y.token, room.up_across.data(), count, s.width, room.lines.data());
            score<paired>(room.query.data(), room.turned_k.data(), room.scores.data(), padded, count, own, seen,
                          s.width / depth);
            score<paired>(room.upstream.data(), room.turned_v.data(), room.gradients.data(), padded, count, own, seen,
                          s.width / depth);
            differentiate_block<paired>(up, out, normaliser + (b * s.heads + h) * s.queries + start,
                                        s.first ? s.first + b * s.queries + start : nullptr, s, count, own, seen, padded, room);
            weigh<paired>(along, room.lined_k.data(), room.outputs.data(), padded, columns, count, own, seen);
            for (long i = 0; i < count; i++) {
                T* to = g_q + ((b * s.queries + start + i) * s.heads + h) * s.width;
                put_row(to, room.outputs.data() + i * columns, 1.0f, s.width);
            }
            multiply<paired>(room.query_across.data(), block / depth, across_d, padded, room.sums_k.data(), padded, s.width,
                             seen, block / depth, true);
            multiply<paired>(room.up_across.data(), block / depth, across_p, padded, room.sums_v.data(), padded, s.width, seen,
                             block / depth, true);
        }
    put_turned(g_k + (b * s.keys * s.groups + g) * s.width, room.sums_k.data(), padded, s);
    put_turned(g_v + (b * s.keys * s.groups + g) * s.width, room.sums_v.data(), padded, s);
}

Shape read(const long* n, const float* x, const int64_t* first) {
    return Shape{n[0], n[1], n[2], n[3], n[4], n[5], x[0], x[1], {n[6], n[7], n[8]}, {n[9], n[10], n[11]},
                 {n[12], n[13], n[14]}, {n[15], n[16], n[17]}, first};
}

template <bool paired, class T>
void forward_all(const void* q, const void* k, const void* v, void* y, float* normaliser, const Shape& s) {
#pragma omp parallel
    {
        Room room;
        Tiles tiles;
#pragma omp for schedule(dynamic)
        for (long i = 0; i < s.batch * s.groups; i++)
            forward_group<paired>((const T*)q, (const T*)k, (const T*)v, (T*)y, normaliser, s, i / s.groups, i % s.groups,
                                  room);
    }
}

template <bool paired, class T>
void backward_all(const void* g_y, const void* q, const void* k, const void* v, const void* y, const float* normaliser,
                  void* g_q, void* g_k, void* g_v, const Shape& s) {
#pragma omp parallel
    {
        Room room;
        Tiles tiles;
#pragma omp for schedule(dynamic)
        for (long i = 0; i < s.batch * s.groups; i++)
            backward_group<paired>((const T*)g_y, (const T*)q, (const T*)k, (const T*)v, (const T*)y, normaliser, (T*)g_q,
                                   (T*)g_k, (T*)g_v, s, i / s.groups, i % s.groups, room);
    }
}

}  // namespace

// sizes: batch, heads, groups, queries, keys, width, then (batch, head, token) strides of q, k, v, y. factors: scale, soft cap
// (0: none). The width is even. y has the strides given; normaliser is (batch, heads, queries).
FAIRWAY_EXPORT(attention_forward)
(const void* q, const void* k, const void* v, const int64_t* first, void* y, float* normaliser, const long* sizes,
 const float* factors, int half) {
    Shape s = read(sizes, factors, first);
    if (half)
        forward_all<has_pairs, Bfloat>(q, k, v, y, normaliser, s);
    else
        forward_all<false, float>(q, k, v, y, normaliser, s);
}

// Gradients are contiguous (batch, token, head, width); g_y has the strides of y.
FAIRWAY_EXPORT(attention_backward)
(const void* g_y, const void* q, const void* k, const void* v, const int64_t* first, const void* y, const float* normaliser,
 void* g_q, void* g_k, void* g_v, const long* sizes, const float* factors, int half) {
    Shape s = read(sizes, factors, first);
    if (half)
        backward_all<has_pairs, Bfloat>(g_y, q, k, v, y, normaliser, g_q, g_k, g_v, s);
    else
        backward_all<false, float>(g_y, q, k, v, y, normaliser, g_q, g_k, g_v, s);
}
