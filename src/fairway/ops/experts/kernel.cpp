// Gated sums of experts, forward and backward, on the rows sent to each: see naive.py for the definition.
//
// Assignments stand sorted by expert in slots. A block of an expert's slots goes through both products while it lies in
// the cache: rows are gathered into operands, hidden features pass their point function between the products, and what
// comes out is weighed by its gate. Every token then adds up its slots. Gradients of weights are products over all slots
// of an expert. Sums run in one order, whatever the number of threads.

#include "../kernel/operands.h"

namespace {

constexpr long block = 64;    // slots
constexpr long panel = 32;    // columns of an operand that lie together, a multiple of `pair`
constexpr long reach = 128;   // words of depth that a panel is read at a time
constexpr long ahead = 8;     // rows
constexpr long strip = 128;   // rows of a weight's gradient that are added up together
constexpr long enough = 512;  // slots for each thread that experts of a group have between them

struct Shape {
    long tokens, width, hidden, experts, slots;
    bool gated;
    int point;
    long threads;
    long halves() const { return gated ? 2 : 1; }
    long first() const { return gated ? 2 * hidden : hidden; }
};

// Where assignments stand: by slot, and the slots of each token.
struct Plan {
    int64_t *order, *source, *slot, *start, *begin;
    Plan(int64_t* at, const Shape& s)
        : order(at), source(at + s.slots), slot(at + 2 * s.slots), start(at + 3 * s.slots), begin(start + s.experts + 1) {}
    long count(long e) const { return start[e + 1] - start[e]; }
};

// start[i] becomes the place of the first of key i, and of the end behind the last; places are given out in order.
void sort_by(const int64_t* key, long count, long keys, int64_t* start, int64_t* place) {
    std::memset((void*)start, 0, sizeof(int64_t) * (size_t)(keys + 1));
    for (long a = 0; a < count; a++) start[key[a] + 1]++;
    for (long i = 0; i < keys; i++) start[i + 1] += start[i];
    Scratch<int64_t> next(keys);
    std::memcpy((void*)next.data(), start, sizeof(int64_t) * (size_t)keys);
    for (long a = 0; a < count; a++) place[next[key[a]]++] = a;
}

void arrange(const int64_t* token, const int64_t* expert, const Shape& s, Plan& plan) {
    sort_by(expert, s.slots, s.experts, plan.start, plan.order);
    Scratch<int64_t> slot_of(s.slots);
    for (long i = 0; i < s.slots; i++) {
        plan.source[i] = token[plan.order[i]];
        slot_of[plan.order[i]] = i;
    }
    sort_by(token, s.slots, s.tokens, plan.begin, plan.slot);
    for (long i = 0; i < s.slots; i++) plan.slot[i] = slot_of[plan.slot[i]];
}

// Rows at a stride, those of an index where there is one.
template <class T>
struct Rows {
    const T* base;
    long stride;
    const int64_t* index;
    const T* operator[](long i) const { return base + (index ? index[i] : i) * stride; }
};

// SiLU whose value and slope share one exponential, of the precision that the operands have.
template <bool paired>
struct Swish {
    static Floats gate(Floats x) {
#if defined(__AVX512BF16__)
        if (paired) return (Floats)_mm512_maskz_rcp14_ps(0xffff, (__m512)(1.0f + power<paired>(x * -1.44269504f)));
#endif
        return logistic(x);
    }
    static Floats value(Floats x) { return x * gate(x); }
    static Floats slope(Floats x, Floats y) { return gate(x) * (1.0f + x - y); }
};

struct Relu2 {
    static Floats value(Floats x) { return select(x > Floats{}, x * x, x == x ? Floats{} : x); }
    static Floats slope(Floats x, Floats) { return select(x > Floats{}, x * 2.0f, Floats{}); }
};

// Experts that are worked through together, so that what their steps hand on stays in the cache.
struct Groups {
    Scratch<long> start, place;  // the first expert of each group; where an expert's words of slots begin in its group
    long count = 0, most = 0, words = 0;  // of groups; of experts and of words of slots in the largest
    Groups(const Plan& plan, const Shape& s, long depth) : start(s.experts + 1), place(s.experts) {
        for (long e = 0; e < s.experts; start[++count] = e) {
            long slots = 0, filled = 0;
            for (; e < s.experts && slots < enough * s.threads; e++) {
                place[e] = filled;
                slots += plan.count(e);
                filled += whole_words(plan.count(e), depth);
            }
            most = std::max(most, e - start[count]);
            words = std::max(words, filled);
        }
    }
    static long whole_words(long slots, long depth) { return rounded_up((slots + depth - 1) / depth, 16); }
};

// Weights of a group of experts as panels of operands.
template <bool paired, class T>
struct Panels {
    static constexpr long depth = Product<paired>::depth;
    long inner, columns;  // words of depth, and columns in whole panels
    Scratch<uint32_t> words;
    Panels(long experts, long rows, long count)
        : inner((rows + depth - 1) / depth), columns(rounded_up(count, panel)), words(experts * inner * columns, false) {}
    uint32_t* at(long e, long n) const { return words.data() + (e * columns + n) * inner; }
    // Columns of the operand are rows of the weight.
    void turned(long e, long n, const T* weight, long rows, long width) const {
        for (long i = 0; i < rows; i += panel)
            pack_turned<paired>(weight + i * width, width, at(e, n + i), std::min(panel, rows - i), panel, width);
    }
    // Rows of the weight are the depth from word `from` on, with zeros up to `padded` of them.
    void straight(long e, const T* weight, long rows, long padded, long width, long from) const {
        for (long i = 0; i < width; i += panel)
            pack_tokens<paired>(weight + i, width, at(e, i) + from * panel, rows, padded, std::min(panel, width - i), panel);
    }
};

// Working memory of one thread.
template <class T>
struct Room {
    Growing<uint32_t> input, hidden, turned;
    Growing<float> first, second, sums, gates;
    Growing<T> weight;
};

// Two vectors of a row of which `left` numbers belong to it.
template <class T>
inline void put_pair(T* to, Floats a, Floats b, long left) {
    store_part(to, a, left);
    if (left > lanes) store_part(to + lanes, b, left - lanes);
}

inline void put_pair(Bfloat* to, Floats a, Floats b, long left) {
    if (has_pairs && left >= 2 * lanes) return put_along<has_pairs>((uint32_t*)to, a, b);
    put_pair<Bfloat>(to, a, b, left);
}

// A weight of one expert in the type of the products.
template <class T>
const T* converted(const void* from, bool half, long offset, long count, Growing<T>& room) {
    if (half || sizeof(T) == sizeof(float)) return (const T*)from + offset;
    room.resize(count);
    const float* at = (const float*)from + offset;
    for (long i = 0; i < count; i += 2 * lanes)
        put_pair(room.data() + i, load_part(at + i, count - i), load_part(at + i + lanes, std::max(0L, count - i - lanes)),
                 count - i);
    return room.data();
}

// c = a b for one panel of b, whose depth is read in parts that stay in the nearest cache.
template <bool paired>
void multiply_panel(const uint32_t* a, long lda, const uint32_t* b, float* c, long ldc, long rows, long inner, bool add) {
    for (long r = 0; r < inner; r += reach)
        multiply<paired>(a + r, lda, b + r * panel, panel, c, ldc, rows, panel, std::min(reach, inner - r), add || r > 0);
}

// Rows of an index come from anywhere; those needed soon are asked for early.
template <class T>
inline void fetch(const T* row, long width) {
    for (long n = 0; n < width; n += 64 / (long)sizeof(T)) __builtin_prefetch(row + n);
}

template <bool paired, class T>
void gather(Rows<T> rows, long count, long width, Growing<uint32_t>& to) {
    long words = width / Product<paired>::depth;
    to.resize((block + 16) * words);
    for (long i = 0; i < std::min(ahead, count); i++) fetch(rows[i], width);
    for (long i = 0; i < count; i++) {
        if (i + ahead < count) fetch(rows[i + ahead], width);
        widen_row<paired>(rows[i], to.data() + i * words, width);
    }
}

// Where the hidden features from n on of a block of `count` slots lie: panel after panel, so that they are read in a row.
inline long panel_at(const Shape& s, long n, long count, long half) { return (half * s.hidden + n) * count; }

// Hidden features of one panel: h is kept as it came, what passes the point function becomes an operand.
template <class Point, class T, class Lane>
void activate(const float* a, const float* b, T* h, Lane* to, long stride, const Shape& s, long n, long count) {
    long wide = std::min(panel, s.hidden - n);
    for (long i = 0; i < count; i++)
        for (long j = 0; j < wide; j += 2 * lanes) {
            const float* at = a + i * panel + j;
            Floats low = load(at), high = load(at + lanes);
            put_pair(h + panel_at(s, n, count, 0) + i * wide + j, low, high, wide - j);
            low = Point::value(low);
            high = Point::value(high);
            if (s.gated) {
                Floats v = load(b + i * panel + j), w = load(b + i * panel + j + lanes);
                put_pair(h + panel_at(s, n, count, 1) + i * wide + j, v, w, wide - j);
                low *= v;
                high *= w;
            }
            put_pair(to + i * stride + n + j, low, high, wide - j);
        }
}

// Vectors of the rows that share a word of depth: each into its row, and both as operands whose depth runs over the rows.
inline void put_across(float* row, long, uint32_t* across, Floats low, Floats) {
    store(row, low);
    store((float*)across, low);
}

inline void put_across(Bfloat* row, long stride, uint32_t* across, Floats low, Floats high) {
#if defined(__AVX512BF16__)
    __m512i both = (__m512i)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low);
    std::memcpy((void*)row, &both, 32);
    std::memcpy((void*)(row + stride), (const char*)&both + 32, 32);
    const __m512i turns = _mm512_add_epi32(_mm512_set1_epi32(0x00100000), _mm512_mullo_epi32(
        _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0), _mm512_set1_epi32(0x00010001)));
    _mm512_storeu_si512(across, _mm512_maskz_permutexvar_epi16(0xffffffff, turns, both));
#else
    (void)row, (void)stride, (void)across, (void)low, (void)high;
#endif
}

// Operands whose depth runs over the slots of an expert, by panels of columns.
struct Lines {
    uint32_t* base;
    long words;
    uint32_t* at(long n, long w) const { return base + n * words + w * panel; }
};

// Operands that the gradients of an expert's weights are products of. What belongs to a half of the hidden features begins
// with a panel.
struct Saved {
    Lines tokens, upstream, hidden[2], active;
};

// Room for them, for all experts of a group.
struct Buffers {
    const Groups& groups;
    long wide, narrow, depth;
    Scratch<uint32_t> words;
    Buffers(const Groups& groups, const Shape& s, long depth)
        : groups(groups), wide(rounded_up(s.width, panel)), narrow(rounded_up(s.hidden, panel)), depth(depth),
          words(groups.words * (2 * wide + (s.halves() + 1) * narrow), false) {}
    Lines lines(long columns, long e, long count) const {
        return Lines{words.data() + groups.words * columns + groups.place[e] * (columns < 2 * wide ? wide : narrow),
                     Groups::whole_words(count, depth)};
    }
    Saved of(long e, const Plan& plan) const {
        long n = plan.count(e);
        Lines hidden = lines(2 * wide + narrow, e, n), more = lines(2 * wide + 2 * narrow, e, n);
        return Saved{lines(0, e, n), lines(wide, e, n), {hidden, more}, lines(2 * wide, e, n)};
    }
};

// The gradient by the hidden features of one panel from that by what left the point function, as rows and, from word `at`
// on, as operands whose depth runs over the slots; adds to the parts of the gradients of the gates.
template <bool paired, class Point, class T, class Lane>
void differentiate(const float* up, const T* h, const float* gate, const Saved& saved, long at, Lane* to, long stride,
                   float* dgate, const Shape& s, long n, long count) {
    constexpr long depth = Product<paired>::depth;
    long wide = std::min(panel, s.hidden - n), narrow = rounded_up(s.hidden, panel);
    Lane unused[2 * lanes];
    for (long w = 0; w < Groups::whole_words(count, depth); w++)
        for (long j = 0; j < panel; j += lanes) {
            long left = std::max(0L, wide - j);
            Floats active[2] = {}, first[2] = {}, second[2] = {};
            for (long k = 0; k < depth; k++) {
                long i = w * depth + k;
                if (i >= count) continue;
                Floats x = load_part(h + panel_at(s, n, count, 0) + i * wide + j, left);
                Floats value = Point::value(x), slope = Point::slope(x, value), v = all(1.0f);
                if (s.gated) v = load_part(h + panel_at(s, n, count, 1) + i * wide + j, left);
                Floats u = load(up + i * panel + j), result = value * v;
                store(dgate + i * lanes, load(dgate + i * lanes) + u * result);
                u *= gate[i];
                active[k] = gate[i] * result;
                first[k] = u * v * slope;
                second[k] = u * value;
            }
            Lane* row = to + w * depth * stride + n + j;
            put_across(unused, lanes, saved.active.at(n, at + w) + j, active[0], active[1]);
            put_across(row, stride, saved.hidden[0].at(n, at + w) + j, first[0], first[1]);
            if (s.gated) put_across(row + narrow, stride, saved.hidden[1].at(n, at + w) + j, second[0], second[1]);
        }
}

template <bool paired, class... More>
void activate_by(int point, More... more) {
    switch (point) {
        case 0: return activate<Relu>(more...);
        case 1: return activate<Swish<paired>>(more...);
        case 2: return activate<Gelu>(more...);
        default: return activate<Relu2>(more...);
    }
}

template <bool paired, class... More>
void differentiate_by(int point, const More&... more) {
    switch (point) {
        case 0: return differentiate<paired, Relu>(more...);
        case 1: return differentiate<paired, Swish<paired>>(more...);
        case 2: return differentiate<paired, Gelu>(more...);
        default: return differentiate<paired, Relu2>(more...);
    }
}

// One panel of results, times a gate where there is one, into rows of memory.
template <class T>
void put_panel(const float* from, const float* gate, T* to, long width, long n, long count) {
    for (long i = 0; i < count; i++)
        for (long j = 0; j < panel && n + j < width; j += 2 * lanes) {
            Floats low = load(from + i * panel + j), high = load(from + i * panel + j + lanes);
            if (gate) {
                low *= gate[i];
                high *= gate[i];
            }
            put_pair(to + i * width + n + j, low, high, width - n - j);
        }
}

// Rows as operands whose depth runs over them, from word `at` on; zeros behind the last row.
template <bool paired, class T>
void pack_rows(Rows<T> rows, long count, const Lines& to, long at, long width) {
    constexpr long depth = Product<paired>::depth;
    for (long i = 0; i < std::min(ahead, count); i++) fetch(rows[i], width);
    for (long w = 0; w < Groups::whole_words(count, depth); w++) {
        long i = w * depth;
        for (long k = i + ahead; k < std::min(i + ahead + depth, count); k++) fetch(rows[k], width);
        for (long n = 0; n < width; n += panel) {
            uint32_t* line = to.at(n, at + w);
            long filled = i < count ? std::min(panel, width - n) : 0;
            if (filled && paired)
                interleave(rows[i] + n, i + 1 < count ? rows[i + 1] + n : nullptr, line, filled);
            else if (filled)
                widen_row<false>(rows[i] + n, line, filled);
            if (filled < panel) std::memset(line + filled, 0, 4 * (size_t)(panel - filled));
        }
    }
}

template <bool paired, class T>
void forward_block(Rows<T> x, const float* gate, const Panels<paired, T>& first, const Panels<paired, T>& second, T* h, T* y,
                   const Shape& s, long e, long count, Room<T>& room) {
    using Lane = typename Word<paired>::Type;
    constexpr long depth = Product<paired>::depth;
    long wide = rounded_up(s.hidden, panel);
    gather<paired>(x, count, s.width, room.input);
    room.hidden.resize((block + 16) * wide / depth);
    for (long n = 0; n < s.hidden; n += panel) {
        multiply_panel<paired>(room.input.data(), first.inner, first.at(e, n), room.first.data(), panel, count, first.inner,
                               false);
        if (s.gated)
            multiply_panel<paired>(room.input.data(), first.inner, first.at(e, wide + n), room.second.data(), panel, count,
                                   first.inner, false);
        activate_by<paired>(s.point, room.first.data(), room.second.data(), h, (Lane*)room.hidden.data(), wide, s, n, count);
    }
    for (long n = 0; n < s.width; n += panel) {
        multiply_panel<paired>(room.hidden.data(), wide / depth, second.at(e, n), room.first.data(), panel, count, second.inner,
                               false);
        put_panel(room.first.data(), gate, y, s.width, n, count);
    }
}

template <bool paired, class T>
void backward_block(Rows<T> dy, Rows<T> x, const T* h, const float* gate, const Panels<paired, T>& first,
                    const Panels<paired, T>& second, const Saved& saved, long at, T* dx, float* dgate, const Shape& s, long e,
                    long count, Room<T>& room) {
    using Lane = typename Word<paired>::Type;
    constexpr long depth = Product<paired>::depth;
    long wide = first.inner * depth;
    pack_rows<paired>(x, count, saved.tokens, at, s.width);
    pack_rows<paired>(dy, count, saved.upstream, at, s.width);
    gather<paired>(dy, count, s.width, room.input);
    room.hidden.resize((block + 32) * wide / depth);
    room.gates.clear(block * lanes);
    for (long n = 0; n < s.hidden; n += panel) {
        multiply_panel<paired>(room.input.data(), second.inner, second.at(e, n), room.first.data(), panel, count, second.inner,
                               false);
        differentiate_by<paired>(s.point, (const float*)room.first.data(), h, gate, saved, at, (Lane*)room.hidden.data(), wide,
                                 room.gates.data(), s, n, count);
    }
    for (long i = 0; i < count; i++) dgate[i] = sum(load(room.gates.data() + i * lanes));
    for (long n = 0; n < s.width; n += panel) {
        multiply_panel<paired>(room.hidden.data(), first.inner, first.at(e, n), room.first.data(), panel, count, first.inner,
                               false);
        put_panel<T>(room.first.data(), nullptr, dx, s.width, n, count);
    }
}

// c (+)= a^T b for one panel of b; depth runs over the slots in both.
template <bool paired, class T>
void multiply_lines(const Lines& a, long at, long rows, const uint32_t* b, float* c, long ldc, long from, long words, bool add,
                    Room<T>& room) {
#if defined(__AMX_BF16__)
    if (paired) {
        multiply<paired>(room.turned.data(), words, b, panel, c, ldc, rows, panel, words, add);
        return;
    }
#endif
    (void)room;
    for (long m = 0; m < rows; m += tile) {
        long i = at + m;
        multiply_tile<paired, tile, true>(a.at(i / panel * panel, from) + i % panel, panel, b, panel, c + m * ldc, ldc, panel, words,
                                          add);
    }
}

// Matrix tiles want depth along the rows of the left side.
template <bool paired, class T>
void turn_lines(const Lines& a, long at, long rows, long from, long words, Room<T>& room) {
#if defined(__AMX_BF16__)
    room.turned.resize(reach * rounded_up(rows, 16));
    for (long i = 0; paired && i < rows; i += 16)
        for (long w = 0; w < words; w += 16)
            turn16(a.at((at + i) / panel * panel, from + w) + (at + i) % panel, panel, 16, room.turned.data() + i * words + w,
                   words, 16);
#else
    (void)a, (void)at, (void)rows, (void)from, (void)words, (void)room;
#endif
}

// `rows` rows of the gradient of one expert's weight, the sum over its slots of left (its columns from `at` on) times right.
template <bool paired, class T>
void weight_strip(const Lines& left, const Lines& right, long at, long rows, long columns, void* to, bool half, Room<T>& room) {
    bool whole = !half && rows % 16 == 0 && columns % panel == 0;
    long wide = rounded_up(columns, panel), high = rounded_up(rows, 16);
    if (!whole) room.sums.resize(high * wide);
    float* sums = whole ? (float*)to : room.sums.data();
    if (!left.words) std::memset((void*)sums, 0, 4 * (size_t)(high * wide));
    for (long from = 0; from < left.words; from += reach) {
        long words = std::min(reach, left.words - from);
        turn_lines<paired>(left, at, rows, from, words, room);
        for (long n = 0; n < columns; n += panel)
            multiply_lines<paired>(left, at, rows, right.at(n, from), sums + n, wide, from, words, from > 0, room);
    }
    for (long i = 0; !whole && i < rows; i++)
        for (long j = 0; j < columns; j += lanes) {
            Floats value = load(sums + i * wide + j);
            if (half)
                store_part((Bfloat*)to + i * columns + j, value, columns - j);
            else
                store_part((float*)to + i * columns + j, value, columns - j);
        }
}

// Every token's sum over its slots.
template <class T>
void add_slots(const T* from, T* to, const Plan& plan, long width, long n) {
    for (long j = 0; j < width; j += lanes) {
        Floats sums{};
        for (long i = plan.begin[n]; i < plan.begin[n + 1]; i++) sums += load_part(from + plan.slot[i] * width + j, width - j);
        store_part(to + n * width + j, sums, width - j);
    }
}

// Blocks of slots, none of which two experts share.
struct Blocks {
    Scratch<long> expert, begin, first;  // the last by expert
    Blocks(const Plan& plan, const Shape& s)
        : expert(s.slots / block + s.experts), begin(s.slots / block + s.experts), first(s.experts + 1) {
        long count = 0;
        for (long e = 0; e < s.experts; first[++e] = count)
            for (long i = plan.start[e]; i < plan.start[e + 1]; i += block) {
                expert[count] = e;
                begin[count++] = i;
            }
    }
    long rows(const Plan& plan, long i) const { return std::min(block, (long)plan.start[expert[i] + 1] - begin[i]); }
};

template <bool paired, class T>
void forward_all(const T* x, const float* gate, const void* input, const void* output, bool half, T* h, T* parts, T* y,
                 const Plan& plan, const Shape& s) {
    Groups groups(plan, s, Product<paired>::depth);
    Blocks blocks(plan, s);
    long narrow = rounded_up(s.hidden, panel), small = s.hidden * s.width, pieces = s.halves() + 1;
    Panels<paired, T> first(groups.most, s.width, s.halves() * narrow), second(groups.most, s.hidden, s.width);
#pragma omp parallel
    {
        Room<T> room;
        Tiles tiles;
        room.first.resize(block * panel);
        room.second.resize(block * panel);
        for (long g = 0; g < groups.count; g++) {
            long from = groups.start[g], to = groups.start[g + 1];
#pragma omp for schedule(dynamic)
            for (long task = from * pieces; task < to * pieces; task++) {
                long e = task / pieces, n = task % pieces;
                if (n < s.halves())
                    first.turned(e - from, n * narrow, converted<T>(input, half, (e * s.halves() + n) * small, small, room.weight),
                                 s.hidden, s.width);
                else
                    second.turned(e - from, 0, converted<T>(output, half, e * small, small, room.weight), s.width, s.hidden);
            }
#pragma omp for schedule(dynamic)
            for (long i = blocks.first[from]; i < blocks.first[to]; i++) {
                long at = blocks.begin[i];
                forward_block<paired>(Rows<T>{x, s.width, plan.source + at}, gate + at, first, second, h + at * s.first(),
                                      parts + at * s.width, s, blocks.expert[i] - from, blocks.rows(plan, i), room);
            }
        }
#pragma omp for schedule(static)
        for (long n = 0; n < s.tokens; n++) add_slots(parts, y, plan, s.width, n);
    }
}

// Gradients of weights: every task is some rows of one matrix of an expert, half by half.
template <bool paired, class T>
void weight_task(long task, const Saved& saved, void* dinput, void* doutput, bool half, const Shape& s, Room<T>& room) {
    long strips = (s.hidden + strip - 1) / strip, bytes = half ? 2 : 4;
    long which = task / strips, at = task % strips * strip;
    if (which < s.halves())
        weight_strip<paired>(saved.hidden[which], saved.tokens, at, std::min(strip, s.hidden - at), s.width,
                             (char*)dinput + (which * s.hidden + at) * s.width * bytes, half, room);
    else {
        at = (task - s.halves() * strips) * strip;
        weight_strip<paired>(saved.upstream, saved.active, at, std::min(strip, s.width - at), s.hidden,
                             (char*)doutput + at * s.hidden * bytes, half, room);
    }
}

template <bool paired, class T>
void backward_all(const T* dy, const T* x, const float* gate, const void* input, const void* output, bool half, const T* h,
                  T* parts, T* dx, float* dgate, void* dinput, void* doutput, const Plan& plan, const Shape& s) {
    constexpr long depth = Product<paired>::depth;
    Groups groups(plan, s, depth);
    Blocks blocks(plan, s);
    Buffers buffers(groups, s, depth);
    long narrow = buffers.narrow, small = s.hidden * s.width, pieces = s.halves() + 1, bytes = half ? 2 : 4;
    long tasks = s.halves() * ((s.hidden + strip - 1) / strip) + (s.width + strip - 1) / strip;
    Panels<paired, T> first(groups.most, s.halves() * narrow, s.width), second(groups.most, s.width, s.hidden);
#pragma omp parallel
    {
        Room<T> room;
        Tiles tiles;
        room.first.resize(block * panel);
        for (long g = 0; g < groups.count; g++) {
            long from = groups.start[g], to = groups.start[g + 1];
#pragma omp for schedule(dynamic)
            for (long task = from * pieces; task < to * pieces; task++) {
                long e = task / pieces, n = task % pieces;
                if (n < s.halves())
                    first.straight(e - from, converted<T>(input, half, (e * s.halves() + n) * small, small, room.weight),
                                   s.hidden, narrow, s.width, n * narrow / depth);
                else
                    second.straight(e - from, converted<T>(output, half, e * small, small, room.weight), s.width, s.width,
                                    s.hidden, 0);
            }
#pragma omp for schedule(dynamic)
            for (long i = blocks.first[from]; i < blocks.first[to]; i++) {
                long at = blocks.begin[i], e = blocks.expert[i];
                backward_block<paired>(Rows<T>{dy, s.width, plan.source + at}, Rows<T>{x, s.width, plan.source + at},
                                       h + at * s.first(), gate + at, first, second, buffers.of(e, plan),
                                       (at - plan.start[e]) / depth, parts + at * s.width, dgate + at, s, e - from,
                                       blocks.rows(plan, i), room);
            }
#pragma omp for schedule(dynamic)
            for (long task = from * tasks; task < to * tasks; task++) {
                long e = task / tasks;
                weight_task<paired>(task % tasks, buffers.of(e, plan), (char*)dinput + e * s.halves() * small * bytes,
                                    (char*)doutput + e * small * bytes, half, s, room);
            }
        }
#pragma omp for schedule(static)
        for (long n = 0; n < s.tokens; n++) add_slots(parts, dx, plan, s.width, n);
    }
}

Shape read(const long* n) { return Shape{n[0], n[1], n[2], n[3], n[4], n[5] != 0, (int)n[6], n[7]}; }

}  // namespace

// sizes: tokens, width, hidden, experts, assignments, whether gated, point function, threads. The plan has room for three
// numbers an assignment, experts + 1, and tokens + 1.
FAIRWAY_EXPORT(experts_plan)(const int64_t* token, const int64_t* expert, int64_t* plan, const long* sizes) {
    Shape s = read(sizes);
    Plan made(plan, s);
    arrange(token, expert, s, made);
}

// Gates stand by slot; h is (slot, first), parts (slot, width). half: x and what comes of it is bfloat16; weights_half: the
// weights are. Width and hidden are even where the former is.
FAIRWAY_EXPORT(experts_forward)
(const void* x, const float* gate, const void* input, const void* output, void* h, void* parts, void* y, int64_t* plan,
 const long* sizes, int half, int weights_half) {
    Shape s = read(sizes);
    if (half)
        forward_all<has_pairs>((const Bfloat*)x, gate, input, output, weights_half, (Bfloat*)h, (Bfloat*)parts, (Bfloat*)y,
                               Plan(plan, s), s);
    else
        forward_all<false>((const float*)x, gate, input, output, false, (float*)h, (float*)parts, (float*)y, Plan(plan, s), s);
}

// dgate stands by slot.
FAIRWAY_EXPORT(experts_backward)
(const void* dy, const void* x, const float* gate, const void* input, const void* output, const void* h, void* parts, void* dx,
 float* dgate, void* dinput, void* doutput, int64_t* plan, const long* sizes, int half, int weights_half) {
    Shape s = read(sizes);
    if (half)
        backward_all<has_pairs>((const Bfloat*)dy, (const Bfloat*)x, gate, input, output, weights_half, (const Bfloat*)h,
                                (Bfloat*)parts, (Bfloat*)dx, dgate, dinput, doutput, Plan(plan, s), s);
    else
        backward_all<false>((const float*)dy, (const float*)x, gate, input, output, false, (const float*)h, (float*)parts,
                            (float*)dx, dgate, dinput, doutput, Plan(plan, s), s);
}
