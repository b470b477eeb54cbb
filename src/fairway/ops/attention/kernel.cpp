// Causal attention, forward and backward, without ever storing the score matrix: see naive.py for the definition.
//
// Queries are taken in blocks; a block's scores against all keys it may see fit in cache. Products of bfloat16 tensors use
// bfloat16 dot instructions where the level has them (pairs of values in one 32-bit word, sums in float32), and float32
// multiply-adds otherwise. Softmax is float32. The backward pass recomputes probabilities from the log-normalisers.

#include <algorithm>

#include "../kernel/scratch.h"
#include "../kernel/vector.h"

namespace {

constexpr long block = 32;
constexpr long tile = 8;
constexpr long step = 2 * lanes;

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

inline long rounded_up(long n, long to) { return (n + to - 1) / to * to; }

// One 32-bit operand of a product: a float, or a pair of bfloat16 that are multiplied and added together.
template <bool paired>
struct Product {
    static constexpr long depth = 1;
    static Floats add(Floats sum, const uint32_t* b, uint32_t a) {
        Floats left;
        std::memcpy(&left, b, sizeof left);
        float right;
        std::memcpy(&right, &a, 4);
        return sum + left * right;
    }
};

#if defined(__AVX512BF16__)
template <>
struct Product<true> {
    static constexpr long depth = 2;
    static Floats add(Floats sum, const uint32_t* b, uint32_t a) {
        return (Floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_loadu_si512(b), (__m512bh)_mm512_set1_epi32((int)a));
    }
};
constexpr bool has_pairs = true;
#else
constexpr bool has_pairs = false;
#endif

// c[m][n] (+)= sum_r a[m][r] b[r][n] for m < rows, n < columns (a multiple of 2 lanes).
template <bool paired, long rows>
void multiply_tile(const uint32_t* a, long lda, const uint32_t* b, long ldb, float* c, long ldc, long columns, long depth,
                   bool accumulate) {
    for (long n = 0; n < columns; n += step) {
        Floats sums[rows][2];
        for (long m = 0; m < rows; m++)
            for (long j = 0; j < 2; j++) sums[m][j] = accumulate ? load(c + m * ldc + n + j * lanes) : Floats{};
        for (long r = 0; r < depth; r++) {
            const uint32_t* line = b + r * ldb + n;
#pragma GCC unroll 8
            for (long m = 0; m < rows; m++) {
                uint32_t left = a[m * lda + r];
                sums[m][0] = Product<paired>::add(sums[m][0], line, left);
                sums[m][1] = Product<paired>::add(sums[m][1], line + lanes, left);
            }
        }
        for (long m = 0; m < rows; m++)
            for (long j = 0; j < 2; j++) store(c + m * ldc + n + j * lanes, sums[m][j]);
    }
}

#if defined(__AMX_BF16__)
// The same for 16 rows and 32 columns at a time by matrix tiles; every tile is 16 rows of 64 bytes.
void multiply_by_tiles(const uint32_t* a, long lda, const uint32_t* b, long ldb, float* c, long ldc, long rows, long columns,
                       long depth, bool accumulate) {
    for (long m = 0; m < rows; m += 16)
        for (long n = 0; n < columns; n += 32) {
            float* to = c + m * ldc + n;
            if (accumulate) {
                _tile_loadd(0, to, 4 * ldc);
                _tile_loadd(1, to + 16, 4 * ldc);
            } else {
                _tile_zero(0);
                _tile_zero(1);
            }
            for (long r = 0; r < depth; r += 16) {
                _tile_loadd(2, a + m * lda + r, 4 * lda);
                _tile_loadd(3, b + r * ldb + n, 4 * ldb);
                _tile_loadd(4, b + r * ldb + n + 16, 4 * ldb);
                _tile_dpbf16ps(0, 2, 3);
                _tile_dpbf16ps(1, 2, 4);
            }
            _tile_stored(0, to, 4 * ldc);
            _tile_stored(1, to + 16, 4 * ldc);
        }
}

// Sets the thread's tiles up, and puts back what another library had set when it ends.
struct Tiles {
    alignas(64) unsigned char before[64];
    Tiles() {
        alignas(64) unsigned char wanted[64] = {1};
        for (int tile = 0; tile < 8; tile++) {
            wanted[16 + 2 * tile] = 64;
            wanted[48 + tile] = 16;
        }
        _tile_storeconfig(before);
        _tile_loadconfig(wanted);
    }
    ~Tiles() {
        if (before[0])
            _tile_loadconfig(before);
        else
            _tile_release();
    }
};
#else
struct Tiles {
    Tiles() {}
};
#endif

// Operands beyond `rows` are readable up to the next multiple of 16, and results there writable.
template <bool paired>
void multiply(const uint32_t* a, long lda, const uint32_t* b, long ldb, float* c, long ldc, long rows, long columns,
              long depth, bool accumulate) {
#if defined(__AMX_BF16__)
    if (paired && depth % 16 == 0) {
        multiply_by_tiles(a, lda, b, ldb, c, ldc, rows, columns, depth, accumulate);
        return;
    }
#endif
    long m = 0;
    for (; m + tile <= rows; m += tile)
        multiply_tile<paired, tile>(a + m * lda, lda, b, ldb, c + m * ldc, ldc, columns, depth, accumulate);
    for (; m < rows; m++)
        multiply_tile<paired, 1>(a + m * lda, lda, b, ldb, c + m * ldc, ldc, columns, depth, accumulate);
}

inline uint32_t word(float x) {
    uint32_t w;
    std::memcpy(&w, &x, 4);
    return w;
}

inline uint32_t bits(Bfloat x) { return x.bits; }

inline uint32_t bits(float x) { return word(x); }

// The bits of one value as half of a pair, or widened to a float operand of its own.
template <bool paired>
inline uint32_t plain_operand(const Bfloat*, uint32_t value) {
    return paired ? value : value << 16;
}

template <bool paired>
inline uint32_t plain_operand(const float*, uint32_t value) {
    return value;
}

// A row of floats as operands along the row.
template <bool paired>
void pack_row(const float* from, uint32_t* to, long count) {
    if (!paired) {
        std::memcpy(to, from, 4 * count);
        return;
    }
    Bfloat* halves = (Bfloat*)to;
    for (long i = 0; i < count; i += lanes) store(halves + i, load(from + i));
}

// Rows of floats as operands across the rows: one row of words for each `depth` rows.
template <bool paired>
void pack_across(const float* from, long ld, uint32_t* to, long rows, long columns, long ldt) {
    for (long r = 0; r < rows; r += Product<paired>::depth) {
        uint32_t* line = to + r / Product<paired>::depth * ldt;
        if (!paired) {
            std::memcpy(line, from + r * ld, 4 * columns);
            continue;
        }
        for (long i = 0; i < columns; i += lanes) {
            Halves low, high;
            store((Bfloat*)&low, load(from + r * ld + i));
            store((Bfloat*)&high, load(from + (r + 1) * ld + i));
            Words both = __builtin_convertvector(low, Words) | (__builtin_convertvector(high, Words) << 16);
            std::memcpy(line + i, &both, sizeof both);
        }
    }
}

// Operand p of a token: its features p depth .. p depth + depth - 1.
template <bool paired>
inline uint32_t operand(const Bfloat* x, long p) {
    uint32_t w = 0;
    if (paired)
        std::memcpy(&w, x + 2 * p, 4);
    else
        w = (uint32_t)x[p].bits << 16;
    return w;
}

template <bool paired>
inline uint32_t operand(const float* x, long p) {
    return word(x[p]);
}

// Tokens (token, width) as a matrix whose rows run over the width and columns over the tokens.
template <bool paired, class T>
void pack_turned(const T* from, long stride, uint32_t* to, long tokens, long padded, long width) {
    long depth = width / Product<paired>::depth;
    for (long start = 0; start < padded; start += lanes)
        for (long p = 0; p < depth; p++)
            for (long t = start; t < start + lanes; t++)
                to[p * padded + t] = t < tokens ? operand<paired>(from + t * stride, p) : 0u;
}

// Tokens (token, width) as a matrix whose rows run over the tokens and columns over the width.
template <bool paired, class T>
void pack_tokens(const T* from, long stride, uint32_t* to, long tokens, long padded, long width, long columns) {
    constexpr long depth = Product<paired>::depth;
    for (long t = 0; t < padded; t += depth) {
        const T* low = from + t * stride;
        uint32_t* line = to + t / depth * columns;
        for (long i = 0; i < columns; i++) {
            if (i >= width || t >= tokens)
                line[i] = 0;
            else if (paired)
                line[i] = bits(low[i]) | (t + 1 < tokens ? bits(low[stride + i]) << 16 : 0u);
            else
                line[i] = word(to_float(low[i]));
        }
    }
}

// Up to `block` tokens as rows of operands along the width; missing tokens are zero.
template <bool paired, class T>
void pack_queries(const T* from, long stride, uint32_t* to, long tokens, long width) {
    long depth = width / Product<paired>::depth;
    for (long t = 0; t < block; t++)
        for (long p = 0; p < depth; p++) to[t * depth + p] = t < tokens ? operand<paired>(from + t * stride, p) : 0u;
}

// Up to `block` tokens as one row of operands for each feature, along the tokens; missing tokens are zero.
template <bool paired, class T>
void pack_features(const T* from, long stride, uint32_t* to, long tokens, long width) {
    constexpr long depth = Product<paired>::depth;
    for (long i = 0; i < width; i++)
        for (long t = 0; t < block; t += depth) {
            uint32_t low = t < tokens ? bits(from[t * stride + i]) : 0u;
            uint32_t high = depth == 2 && t + 1 < tokens ? bits(from[(t + 1) * stride + i]) << 16 : 0u;
            to[i * (block / depth) + t / depth] = plain_operand<paired>(from, low) | high;
        }
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
    for (long t = 0; t < s.keys; t++)
        for (long c = 0; c < s.width; c++) put(to + t * s.groups * s.width + c, from[c * ld + t]);
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

inline Ints counting() {
    Ints n;
    for (int i = 0; i < lanes; i++) n[i] = i;
    return n;
}

// Raw products to capped scores with minus infinity where query and key must not meet; returns the largest.
float shape_scores(float* s, long first, long own, long columns, float scale, float cap) {
    Floats most = all(-INFINITY);
    Ints place = counting();
    for (long k = 0; k < columns; k += lanes) {
        Floats v = load(s + k) * scale;
        if (cap > 0) v = cap * hyperbolic_tangent(v / cap);
        if (k + lanes > own + 1) v = select(place > (int32_t)(own - k), all(-INFINITY), v);
        if (k < first) v = select(place < (int32_t)(first - k), all(-INFINITY), v);
        store(s + k, v);
        most = larger(v, most);
    }
    return largest(most);
}

struct Room {
    Growing<float> scores, gradients, outputs, sums_k, sums_v;
    Growing<uint32_t> turned_k, turned_v, lined_k, lined_v, query, upstream, along, across, query_across, up_across;
};

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
    for (long h = g * s.repeats(); h < (g + 1) * s.repeats(); h++)
        for (long start = 0; start < s.queries; start += block) {
            long count = std::min(block, s.queries - start);
            long seen = rounded_up(s.offset() + start + count, step);
            pack_queries<paired>(q + b * s.q.batch + h * s.q.head + start * s.q.token, s.q.token, room.query.data(), count,
                                 s.width);
            multiply<paired>(room.query.data(), s.width / depth, room.turned_k.data(), padded, room.scores.data(), padded,
                             count, seen, s.width / depth, false);
            float inverse[block];
            for (long i = 0; i < count; i++) {
                float* row = room.scores.data() + i * padded;
                long t = start + i;
                long first = s.first ? s.first[b * s.queries + t] : 0;
                float most = shape_scores(row, first, s.offset() + t, seen, s.scale, s.cap);
                Floats total{};
                for (long c = 0; c < seen; c += lanes) {
                    Floats p = exponential(load(row + c) - most);
                    total += p;
                    store(row + c, p);
                }
                inverse[i] = 1.0f / sum(total);
                normaliser[(b * s.heads + h) * s.queries + t] = most + std::log(sum(total));
                pack_row<paired>(row, room.along.data() + i * (padded / depth), seen);
            }
            multiply<paired>(room.along.data(), padded / depth, room.lined_v.data(), columns, room.outputs.data(), columns,
                             count, columns, seen / depth, false);
            for (long i = 0; i < count; i++) {
                T* to = y + b * s.y.batch + h * s.y.head + (start + i) * s.y.token;
                put_row(to, room.outputs.data() + i * columns, inverse[i], s.width);
            }
        }
}

template <bool paired, class T>
void backward_group(const T* g_y, const T* q, const T* k, const T* v, const T* y, const float* normaliser, T* g_q, T* g_k,
                    T* g_v, const Shape& s, long b, long g, Room& room) {
    constexpr long depth = Product<paired>::depth;
    long padded = rounded_up(s.keys, step), columns = rounded_up(s.width, step);
    const T* keys = k + b * s.k.batch + g * s.k.head;
    const T* values = v + b * s.v.batch + g * s.v.head;
    for (auto* words : {&room.turned_k, &room.turned_v}) words->resize(padded * s.width / depth);
    room.lined_k.resize(padded * columns / depth);
    for (auto* words : {&room.query, &room.upstream}) words->resize(block * s.width);
    for (auto* words : {&room.along, &room.across}) words->resize(block * padded);
    for (auto* words : {&room.query_across, &room.up_across}) words->resize(block * rounded_up(s.width, 16));
    for (auto* floats : {&room.scores, &room.gradients}) floats->resize(block * padded);
    room.outputs.resize(block * columns);
    for (auto* sums : {&room.sums_k, &room.sums_v}) sums->clear(padded * rounded_up(s.width, 16));
    pack_turned<paired>(keys, s.k.token, room.turned_k.data(), s.keys, padded, s.width);
    pack_turned<paired>(values, s.v.token, room.turned_v.data(), s.keys, padded, s.width);
    pack_tokens<paired>(keys, s.k.token, room.lined_k.data(), s.keys, padded, s.width, columns);
    for (long h = g * s.repeats(); h < (g + 1) * s.repeats(); h++)
        for (long start = 0; start < s.queries; start += block) {
            long count = std::min(block, s.queries - start);
            long seen = rounded_up(s.offset() + start + count, step);
            const T* query = q + b * s.q.batch + h * s.q.head + start * s.q.token;
            const T* up = g_y + b * s.y.batch + h * s.y.head + start * s.y.token;
            const T* out = y + b * s.y.batch + h * s.y.head + start * s.y.token;
            pack_queries<paired>(query, s.q.token, room.query.data(), count, s.width);
            pack_queries<paired>(up, s.y.token, room.upstream.data(), count, s.width);
            pack_features<paired>(query, s.q.token, room.query_across.data(), count, s.width);
            pack_features<paired>(up, s.y.token, room.up_across.data(), count, s.width);
            multiply<paired>(room.query.data(), s.width / depth, room.turned_k.data(), padded, room.scores.data(), padded,
                             count, seen, s.width / depth, false);
            multiply<paired>(room.upstream.data(), s.width / depth, room.turned_v.data(), padded, room.gradients.data(),
                             padded, count, seen, s.width / depth, false);
            for (long i = count; i < block; i++) {
                std::fill_n(room.scores.data() + i * padded, seen, 0.0f);
                std::fill_n(room.gradients.data() + i * padded, seen, 0.0f);
            }
            for (long i = 0; i < count; i++) {
                float* row = room.scores.data() + i * padded;
                float* slope = room.gradients.data() + i * padded;
                long t = start + i;
                shape_scores(row, s.first ? s.first[b * s.queries + t] : 0, s.offset() + t, seen, s.scale, s.cap);
                float log_sum = normaliser[(b * s.heads + h) * s.queries + t];
                float delta = dot(up + i * s.y.token, out + i * s.y.token, s.width);
                for (long c = 0; c < seen; c += lanes) {
                    Floats score = load(row + c);
                    Floats p = exponential(score - log_sum);
                    Floats d = p * (load(slope + c) - delta) * s.scale;
                    if (s.cap > 0) d = select(p > Floats{}, d * (1.0f - (score / s.cap) * (score / s.cap)), Floats{});
                    store(row + c, p);
                    store(slope + c, d);
                }
                pack_row<paired>(slope, room.along.data() + i * (padded / depth), seen);
            }
            multiply<paired>(room.along.data(), padded / depth, room.lined_k.data(), columns, room.outputs.data(), columns,
                             count, columns, seen / depth, false);
            for (long i = 0; i < count; i++) {
                T* to = g_q + ((b * s.queries + start + i) * s.heads + h) * s.width;
                put_row(to, room.outputs.data() + i * columns, 1.0f, s.width);
            }
            pack_across<paired>(room.gradients.data(), padded, room.across.data(), block, seen, padded);
            multiply<paired>(room.query_across.data(), block / depth, room.across.data(), padded, room.sums_k.data(), padded,
                             s.width, seen, block / depth, true);
            pack_across<paired>(room.scores.data(), padded, room.across.data(), block, seen, padded);
            multiply<paired>(room.up_across.data(), block / depth, room.across.data(), padded, room.sums_v.data(), padded,
                             s.width, seen, block / depth, true);
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
