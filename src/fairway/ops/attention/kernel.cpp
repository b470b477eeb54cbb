// Causal attention, forward and backward, without ever storing the score matrix: see naive.py for the definition.
//
// Queries are taken in strips; a strip's scores against all keys it may see fit in cache. Products of bfloat16 tensors use
// bfloat16 dot instructions where the level has them (pairs of values in one 32-bit word, sums in float32), and float32
// multiply-adds otherwise. Softmax is float32. The backward pass recomputes probabilities from the log-normalisers.

#include <algorithm>

#include "../kernel/operands.h"

namespace {

constexpr long strip = 16;
constexpr float log2_e = 1.44269504f;
constexpr float ln_2 = 0.693147181f;

struct Strides {
    long batch, head, token;
};

struct Shape {
    long batch, heads, groups, queries, keys, width;
    float scale, cap;
    Strides q, k, v, y, g_y;
    const int64_t* first;

    long repeats() const { return heads / groups; }
    long offset() const { return keys - queries; }
    // No query before `end` sees a key from here on.
    long high(long end) const { return rounded_up(offset() + end, grain); }
    // No query of a sequence from `start` to `end` sees a key before this.
    long low(long sequence, long start, long end) const {
        if (!first) return 0;
        long least = offset() + start;
        for (long t = start; t < end; t++) least = std::min(least, (long)first[sequence * queries + t]);
        return std::max(0L, least) / grain * grain;
    }
    // Numbers from one row over the keys to the next: never a power of two, for such rows would share places in the caches.
    long padded() const { return ((keys + 31) / 32 | 1) * 32; }
    long columns() const { return rounded_up(width, grain); }
    float factor() const { return (cap > 0 ? 1.0f : scale) * log2_e; }
};

// The tokens of one head.
template <class T>
struct Rows {
    T* first;
    long stride;

    Rows(T* from, const Strides& by, long batch, long head)
        : first(from + batch * by.batch + head * by.head), stride(by.token) {}
    T* operator[](long t) const { return first + t * stride; }
};

// Asks for a row before it is read, or written: where stores miss the caches, what follows them waits.
template <bool written, class T>
inline void fetch(T* row, long width) {
    for (long i = 0; i < width; i += 64 / (long)sizeof(T)) __builtin_prefetch(row + i, written);
}

// A strip of queries: the first one, how many, and the keys from `low` to `high` that any of them sees. `own` is the place of
// the first query behind `low`.
struct Strip {
    long start, count, low, high, own;

    Strip(const Shape& s, long start, long low)
        : start(start), count(std::max(0L, std::min(strip, s.queries - start))), low(low),
          high(count ? s.high(start + count) : low), own(s.offset() + start - low) {}
    long columns() const { return high - low; }
};

// Tokens as rows of operands along the width; missing tokens, up to `padded`, are zero.
template <bool paired, class T>
void pack_queries(const T* from, long stride, uint32_t* to, long tokens, long padded, long width) {
    long depth = width / Product<paired>::depth;
    for (long t = 0; t < tokens; t++) widen_row<paired>(from + t * stride, to + t * depth, width);
    std::memset(to + tokens * depth, 0, 4 * (padded - tokens) * depth);
}

template <class T>
void put_row(T* to, const float* from, float scale, long count) {
    long i = 0;
    for (; i + lanes <= count; i += lanes) store(to + i, load(from + i) * scale);
    for (; i < count; i++) put(to + i, from[i] * scale);
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
    Floats even = all(-INFINITY), odd = even;
    long k = 0;
    for (; k + pair <= columns; k += pair) {
        even = larger(load(s + k), even);
        odd = larger(load(s + k + lanes), odd);
    }
    if (k < columns) even = larger(load(s + k), even);
    return largest(larger(even, odd));
}

// 2^(factor s - shift) along a row as operands; returns the sum.
template <bool paired>
float soften(const float* s, uint32_t* to, float factor, float shift, long columns) {
    Floats first{}, second{};
    long k = 0;
    for (; k + pair <= columns; k += pair) {
        Floats a = power<paired>(load(s + k) * factor - shift), b = power<paired>(load(s + k + lanes) * factor - shift);
        first += a;
        second += b;
        put_along<paired>(to + k / Product<paired>::depth, a, b);
    }
    if (k < columns) {
        Floats a = power<paired>(load(s + k) * factor - shift);
        first += a;
        put_along<paired>(to + k / Product<paired>::depth, a);
    }
    return sum(first + second);
}

// What the gradient of a row's scores needs beside them.
struct Slope {
    float shift, delta;

    // Probability, and the gradient by the score before its scale, from a score and the gradient by its probability.
    template <bool paired>
    void at(const float* s, const float* g, float factor, float cap, Floats& p, Floats& d) const {
        Floats score = load(s);
        p = power<paired>(score * factor - shift);
        d = p * (load(g) - delta);
        if (cap > 0) {
            Floats share = score / cap;
            d = select(p > Floats{}, d * (1.0f - share * share), Floats{});
        }
    }
};

// Two rows of scores `s` and of gradients by probabilities `g`, `ld` apart, to operands: along each row the gradients by the
// scores, and across both rows these and the probabilities. Beyond `columns`, up to `padded`, what lies across is zero.
template <bool paired>
void differentiate(float* s, float* g, long ld, const Slope* slope, float factor, float cap, long columns, long padded,
                   [[maybe_unused]] uint32_t* along, uint32_t* across_d, uint32_t* across_p) {
    for (long k = 0; k < columns; k += lanes) {
        Floats p[2], d[2];
        for (long r = 0; r < 2; r++) slope[r].at<paired>(s + r * ld + k, g + r * ld + k, factor, cap, p[r], d[r]);
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
    Growing<uint32_t> turned_k, turned_v, lined_k, lined_v, query, upstream, along, across_d, across_p, lined_query, lined_up,
        lines;
};

// Products of a strip's queries with the keys it may see.
template <bool paired>
void score(const uint32_t* query, const uint32_t* turned, float* scores, const Shape& s, const Strip& now) {
    long depth = s.width / Product<paired>::depth, padded = s.padded();
    multiply<paired>(query, depth, turned + now.low, padded, scores, padded, now.count, now.columns(), depth, false);
}

// Sums of lined-up keys, weighed by what lies along each query's row.
template <bool paired>
void weigh(const uint32_t* along, const uint32_t* lined, float* outputs, const Shape& s, const Strip& now) {
    constexpr long depth = Product<paired>::depth;
    long ld = s.padded() / depth, columns = s.columns();
    multiply<paired>(along, ld, lined + now.low / depth * columns, columns, outputs, columns, now.count, columns,
                     now.columns() / depth, false);
}

// Adds to each key from `low` on the sum of the lined-up queries from `start` to `end`, weighed by what lies across.
template <bool paired>
void gather(const uint32_t* across, const uint32_t* lined, float* sums, const Shape& s, long start, long end, long low) {
    constexpr long depth = Product<paired>::depth;
    long padded = s.padded(), columns = s.columns();
    for (long m = start, from = low; m < end; m += grain) {
        // The last keys that these queries see are not seen by those before them.
        long to = s.high(std::min(m + grain, end)), skipped = (m - start) / depth;
        multiply_turned<paired>(across + skipped * padded + from - low, padded, lined + skipped * columns, columns,
                                sums + from * columns, columns, to - from, columns, rounded_up(end - m, grain) / depth, true);
        from = to;
    }
}

// Scores of a strip to operands, each row's share `inverse` of which are probabilities.
template <bool paired>
void soften_strip(const Shape& s, const Strip& now, const int64_t* first, Room& room, float* inverse, float* normaliser) {
    constexpr long depth = Product<paired>::depth;
    float factor = s.factor(), shift[strip], total[strip];
    long padded = s.padded();
    for (long i = 0; i < now.count; i++) {
        float* row = room.scores.data() + i * padded;
        if (s.cap > 0) bound(row, now.columns(), s.scale, s.cap);
        hide(row, (first ? first[i] : 0) - now.low, now.own + i, now.columns());
        shift[i] = largest_of(row, now.columns()) * factor;
    }
    for (long i = 0; i < now.count; i++)
        total[i] = soften<paired>(room.scores.data() + i * padded, room.along.data() + i * (padded / depth), factor, shift[i],
                                  now.columns());
    for (long i = 0; i < now.count; i++) {
        inverse[i] = 1.0f / total[i];
        normaliser[i] = shift[i] * ln_2 + std::log(total[i]);
    }
}

template <bool paired, class T>
void forward_group(const T* q, const T* k, const T* v, T* y, float* normaliser, const Shape& s, long b, long g, Room& room) {
    constexpr long depth = Product<paired>::depth;
    long padded = s.padded(), columns = s.columns(), packed = 0;
    Rows<const T> keys(k, s.k, b, g), values(v, s.v, b, g);
    room.turned_k.resize(padded * s.width / depth);
    room.lined_v.resize(padded * columns / depth);
    for (auto* words : {&room.query, &room.lines}) words->resize(strip * s.width);
    room.scores.resize(strip * padded);
    room.along.resize(strip * padded);
    room.outputs.resize(strip * columns);
    for (long h = g * s.repeats(); h < (g + 1) * s.repeats(); h++)
        for (long start = 0; start < s.queries; start += strip) {
            Strip now(s, start, s.low(b, start, std::min(start + strip, s.queries)));
            Rows<const T> queries(q, s.q, b, h);
            Rows<T> to(y, s.y, b, h);
            for (; packed < now.high; packed += 16) {
                pack_turned16<paired>(keys[packed], s.k.token, room.turned_k.data() + packed, s.keys - packed, padded, s.width,
                                      room.lines.data());
                pack_tokens<paired>(values[packed], s.v.token, room.lined_v.data() + packed / depth * columns, s.keys - packed,
                                    16, s.width, columns);
            }
            for (long i = 0; i < now.count; i++) fetch<true>(to[start + i], s.width);
            for (long i = start + strip; i < std::min(start + 2 * strip, s.queries); i++) fetch<false>(queries[i], s.width);
            for (long i = packed; i < std::min(packed + strip, s.keys); i++)
                for (auto* rows : {&keys, &values}) fetch<false>((*rows)[i], s.width);
            pack_queries<paired>(queries[start], s.q.token, room.query.data(), now.count, strip, s.width);
            score<paired>(room.query.data(), room.turned_k.data(), room.scores.data(), s, now);
            float inverse[strip];
            soften_strip<paired>(s, now, s.first ? s.first + b * s.queries + start : nullptr, room, inverse,
                                 normaliser + (b * s.heads + h) * s.queries + start);
            weigh<paired>(room.along.data(), room.lined_v.data(), room.outputs.data(), s, now);
            for (long i = 0; i < now.count; i++) put_row(to[start + i], room.outputs.data() + i * columns, inverse[i], s.width);
        }
}

// Where a strip's scores and their gradients are, and where they go as operands.
struct Sheet {
    float *scores, *gradients;
    uint32_t *along, *across_d, *across_p;
};

// Scores and their gradients of a strip as operands for the three products that follow. What lies across ends in zeros up to
// `padded`.
template <bool paired, class T>
void differentiate_strip(const Rows<const T>& up, const Rows<const T>& out, const float* normaliser, const int64_t* first,
                         const Shape& s, const Strip& now, const Sheet& sheet, long padded) {
    constexpr long depth = Product<paired>::depth;
    long ld = s.padded();
    Slope slope[strip] = {};
    for (long i = 0; i < strip; i++) {
        float* row = sheet.scores + i * ld;
        if (i >= now.count) {
            std::fill_n(row, now.columns(), -INFINITY);
            std::fill_n(sheet.gradients + i * ld, now.columns(), 0.0f);
            continue;
        }
        if (s.cap > 0) bound(row, now.columns(), s.scale, s.cap);
        hide(row, (first ? first[now.start + i] : 0) - now.low, now.own + i, now.columns());
        slope[i] = {normaliser[now.start + i] * log2_e, dot(up[now.start + i], out[now.start + i], s.width)};
    }
    for (long i = 0; i < strip; i += 2)
        differentiate<paired>(sheet.scores + i * ld, sheet.gradients + i * ld, ld, slope + i, s.factor(), s.cap, now.columns(),
                              padded, sheet.along + i * (ld / depth), sheet.across_d + i / 2 * ld, sheet.across_p + i / 2 * ld);
}

// Queries whose share in the gradients by keys and values is added at a time.
template <bool paired>
constexpr long block = 32 * Product<paired>::depth;

template <bool paired>
void make_room(Room& room, const Shape& s) {
    constexpr long depth = Product<paired>::depth, queries = block<paired>;
    long padded = s.padded(), columns = s.columns();
    for (auto* words : {&room.turned_k, &room.turned_v}) words->resize(padded * s.width / depth);
    room.lined_k.resize(padded * columns / depth);
    for (auto* words : {&room.query, &room.upstream, &room.lines}) words->resize(queries * s.width);
    for (auto* words : {&room.lined_query, &room.lined_up}) words->resize(queries * columns);
    for (auto* floats : {&room.scores, &room.gradients}) floats->resize((paired ? strip : queries) * padded);
    room.along.resize(strip * padded);
    for (auto* words : {&room.across_d, &room.across_p}) words->resize(queries / 2 * padded);
    room.outputs.resize(strip * columns);
    for (auto* sums : {&room.sums_k, &room.sums_v}) sums->clear(padded * columns);
}

// The strip of a block that begins after its `m`-th query. Unpaired, gradients and probabilities lie across where they already
// lie along, and so stay until the block ends.
template <bool paired>
Sheet sheet(const Room& room, long m, long padded) {
    long kept = paired ? 0 : m * padded, pairs = m / 2 * padded;
    float *scores = room.scores.data() + kept, *gradients = room.gradients.data() + kept;
    uint32_t* along = paired ? room.along.data() : (uint32_t*)gradients;
    return {scores, gradients, along, room.across_d.data() + pairs, room.across_p.data() + pairs};
}

template <bool paired, class T>
void backward_group(const T* g_y, const T* q, const T* k, const T* v, const T* y, const float* normaliser, T* g_q, T* g_k,
                    T* g_v, const Shape& s, long b, long g, Room& room) {
    constexpr long depth = Product<paired>::depth;
    long padded = s.padded(), columns = s.columns(), packed = 0;
    Rows<const T> keys(k, s.k, b, g), values(v, s.v, b, g);
    make_room<paired>(room, s);
    for (long h = g * s.repeats(); h < (g + 1) * s.repeats(); h++)
        for (long start = 0; start < s.queries; start += block<paired>) {
            long end = std::min(start + block<paired>, s.queries), low = s.low(b, start, end);
            long filled = rounded_up(end - start, grain);
            Rows<const T> queries(q, s.q, b, h), up(g_y, s.g_y, b, h), out(y, s.y, b, h);
            Rows<T> by_query(g_q, {s.queries * s.heads * s.width, s.width, s.heads * s.width}, b, h);
            for (; packed < s.high(end); packed += 16) {
                long left = s.keys - packed;
                pack_turned16<paired>(keys[packed], s.k.token, room.turned_k.data() + packed, left, padded, s.width,
                                      room.lines.data());
                pack_turned16<paired>(values[packed], s.v.token, room.turned_v.data() + packed, left, padded, s.width,
                                      room.lines.data());
                pack_tokens<paired>(keys[packed], s.k.token, room.lined_k.data() + packed / depth * columns, left, 16, s.width,
                                    columns);
            }
            pack_queries<paired>(queries[start], s.q.token, room.query.data(), end - start, filled, s.width);
            pack_queries<paired>(up[start], s.g_y.token, room.upstream.data(), end - start, filled, s.width);
            pack_tokens<paired>(queries[start], s.q.token, room.lined_query.data(), end - start, filled, s.width, columns);
            pack_tokens<paired>(up[start], s.g_y.token, room.lined_up.data(), end - start, filled, s.width, columns);
            for (long m = 0; m < filled; m += strip) {
                Strip now(s, start + m, low);
                Sheet at = sheet<paired>(room, m, padded);
                for (long i = 0; i < now.count; i++) fetch<true>(by_query[now.start + i], s.width);
                score<paired>(room.query.data() + m * s.width / depth, room.turned_k.data(), at.scores, s, now);
                score<paired>(room.upstream.data() + m * s.width / depth, room.turned_v.data(), at.gradients, s, now);
                differentiate_strip<paired>(up, out, normaliser + (b * s.heads + h) * s.queries,
                                            s.first ? s.first + b * s.queries : nullptr, s, now, at,
                                            s.high(std::min(start + rounded_up(m + 1, grain), end)) - low);
                weigh<paired>(at.along, room.lined_k.data(), room.outputs.data(), s, now);
                for (long i = 0; i < now.count; i++)
                    put_row(by_query[now.start + i], room.outputs.data() + i * columns, s.scale, s.width);
            }
            const uint32_t* across_d = paired ? room.across_d.data() : (const uint32_t*)room.gradients.data();
            const uint32_t* across_p = paired ? room.across_p.data() : (const uint32_t*)room.scores.data();
            gather<paired>(across_d, room.lined_query.data(), room.sums_k.data(), s, start, end, low);
            gather<paired>(across_p, room.lined_up.data(), room.sums_v.data(), s, start, end, low);
        }
    Strides of_keys{s.keys * s.groups * s.width, s.width, s.groups * s.width};
    Rows<T> by_key(g_k, of_keys, b, g), by_value(g_v, of_keys, b, g);
    for (long t = 0; t < s.keys; t++) {
        if (t + strip < s.keys)
            for (auto* rows : {&by_key, &by_value}) fetch<true>((*rows)[t + strip], s.width);
        put_row(by_key[t], room.sums_k.data() + t * columns, s.scale, s.width);
        put_row(by_value[t], room.sums_v.data() + t * columns, 1.0f, s.width);
    }
}

Shape read(const long* n, const float* x, const int64_t* first) {
    return Shape{n[0], n[1], n[2], n[3], n[4], n[5], x[0], x[1], {n[6], n[7], n[8]}, {n[9], n[10], n[11]},
                 {n[12], n[13], n[14]}, {n[15], n[16], n[17]}, {n[18], n[19], n[20]}, first};
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

// sizes: batch, heads, groups, queries, keys, width, then (batch, head, token) strides of q, k, v, y and g_y. factors: scale,
// soft cap (0: none). The width is even; normaliser is (batch, heads, queries).
FAIRWAY_EXPORT(attention_forward)
(const void* q, const void* k, const void* v, const int64_t* first, void* y, float* normaliser, const long* sizes,
 const float* factors, int half) {
    Shape s = read(sizes, factors, first);
    if (half)
        forward_all<has_pairs, Bfloat>(q, k, v, y, normaliser, s);
    else
        forward_all<false, float>(q, k, v, y, normaliser, s);
}

// Gradients are contiguous (batch, token, head, width).
FAIRWAY_EXPORT(attention_backward)
(const void* g_y, const void* q, const void* k, const void* v, const int64_t* first, const void* y, const float* normaliser,
 void* g_q, void* g_k, void* g_v, const long* sizes, const float* factors, int half) {
    Shape s = read(sizes, factors, first);
    if (half)
        backward_all<has_pairs, Bfloat>(g_y, q, k, v, y, normaliser, g_q, g_k, g_v, s);
    else
        backward_all<false, float>(g_y, q, k, v, y, normaliser, g_q, g_k, g_v, s);
}
