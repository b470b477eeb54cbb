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
constexpr long strip = 256;   // rows of a weight's gradient that are added up together

struct Shape {
    long tokens, width, hidden, experts, slots;
    bool gated;
    int point;
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

// SiLU whose value and slope share one exponential.
struct Swish {
    static Floats value(Floats x) { return x * logistic(x); }
    static Floats slope(Floats x, Floats y) { return logistic(x) * (1.0f + x - y); }
};

struct Relu2 {
    static Floats value(Floats x) { return select(x > Floats{}, x * x, x == x ? Floats{} : x); }
    static Floats slope(Floats x, Floats) { return select(x > Floats{}, x * 2.0f, Floats{}); }
};

// Weights of all experts as panels of operands.
template <bool paired, class T>
struct Panels {
    static constexpr long depth = Product<paired>::depth;
    long inner, columns;  // words of depth, and columns in whole panels
    Scratch<uint32_t> words;
    Panels(long experts, long rows, long count)
        : inner((rows + depth - 1) / depth), columns(rounded_up(count, panel)), words(experts * inner * columns) {}
    uint32_t* at(long e, long n) const { return words.data() + (e * columns + n) * inner; }
    // Columns of the operand are rows of the weight.
    void turned(long e, long n, const T* weight, long rows, long width) const {
        for (long i = 0; i < rows; i += panel)
            pack_turned<paired>(weight + i * width, width, at(e, n + i), std::min(panel, rows - i), panel, width);
    }
    void straight(long e, const T* weight, long rows, long width) const {
        for (long i = 0; i < width; i += panel)
            pack_tokens<paired>(weight + i, width, at(e, i), rows, rounded_up(rows, depth), std::min(panel, width - i), panel);
    }
};

// Working memory of one thread.
template <class T>
struct Room {
    Growing<uint32_t> input, hidden, active, lines, turned, across;
    Growing<float> first, second, sums;
    Growing<T> weight;
};

// A weight of one expert in the type of the products.
template <class T>
const T* converted(const void* from, bool half, long offset, long count, Growing<T>& room) {
    if (half || sizeof(T) == sizeof(float)) return (const T*)from + offset;
    room.resize(count);
    const float* at = (const float*)from + offset;
    for (long i = 0; i < count; i += lanes) store_part(room.data() + i, load_part(at + i, count - i), count - i);
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
        for (long j = 0; j < wide; j += lanes) {
            Floats x = load(a + i * panel + j), y = Point::value(x);
            store_part(h + panel_at(s, n, count, 0) + i * wide + j, x, wide - j);
            if (s.gated) {
                Floats v = load(b + i * panel + j);
                store_part(h + panel_at(s, n, count, 1) + i * wide + j, v, wide - j);
                y *= v;
            }
            store_part(to + i * stride + n + j, y, wide - j);
        }
}

// The gradient by the hidden features of one panel from that by what left the point function; adds to those of the gates.
template <class Point, class T, class Lane>
void differentiate(const float* up, const T* h, const float* gate, Lane* active, long active_stride, Lane* to, long stride,
                   float* dgate, const Shape& s, long n, long count) {
    long wide = std::min(panel, s.hidden - n);
    for (long i = 0; i < count; i++) {
        Floats sums{};
        for (long j = 0; j < wide; j += lanes) {
            long left = wide - j;
            Floats x = load_part(h + panel_at(s, n, count, 0) + i * wide + j, left);
            Floats value = Point::value(x), slope = Point::slope(x, value), v = all(1.0f);
            if (s.gated) v = load_part(h + panel_at(s, n, count, 1) + i * wide + j, left);
            Floats u = load(up + i * panel + j), result = value * v;
            sums += u * result;
            u *= gate[i];
            store_part(active + i * active_stride + n + j, gate[i] * result, left);
            store_part(to + i * stride + n + j, u * v * slope, left);
            if (s.gated) store_part(to + i * stride + s.hidden + n + j, u * value, left);
        }
        dgate[i] += sum(sums);
    }
}

template <class... More>
void activate_by(int point, More... more) {
    switch (point) {
        case 0: return activate<Relu>(more...);
        case 1: return activate<Swish>(more...);
        case 2: return activate<Gelu>(more...);
        default: return activate<Relu2>(more...);
    }
}

template <class... More>
void differentiate_by(int point, More... more) {
    switch (point) {
        case 0: return differentiate<Relu>(more...);
        case 1: return differentiate<Swish>(more...);
        case 2: return differentiate<Gelu>(more...);
        default: return differentiate<Relu2>(more...);
    }
}

// One panel of results, times a gate where there is one, into rows of memory.
template <class T>
void put_panel(const float* from, const float* gate, T* to, long width, long n, long count) {
    for (long i = 0; i < count; i++)
        for (long j = 0; j < panel && n + j < width; j += lanes) {
            Floats y = load(from + i * panel + j);
            store_part(to + i * width + n + j, gate ? y * gate[i] : y, width - n - j);
        }
}

// Rows of an operand into memory.
template <class Lane, class T>
void put_rows(const Lane* from, long stride, T* to, long width, long count) {
    for (long i = 0; i < count; i++)
        for (long j = 0; j < width; j += lanes)
            store_part(to + i * width + j, load_part(from + i * stride + j, width - j), width - j);
}

template <class T>
void put_rows(const T* from, long stride, T* to, long width, long count) {
    for (long i = 0; i < count; i++) std::memcpy((void*)(to + i * width), from + i * stride, sizeof(T) * (size_t)width);
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
        activate_by(s.point, room.first.data(), room.second.data(), h, (Lane*)room.hidden.data(), wide, s, n, count);
    }
    for (long n = 0; n < s.width; n += panel) {
        multiply_panel<paired>(room.hidden.data(), wide / depth, second.at(e, n), room.first.data(), panel, count, second.inner,
                               false);
        put_panel(room.first.data(), gate, y, s.width, n, count);
    }
}

template <bool paired, class T>
void backward_block(Rows<T> dy, const T* h, const float* gate, const Panels<paired, T>& first, const Panels<paired, T>& second,
                    T* dh, T* active, T* dx, float* dgate, const Shape& s, long e, long count, Room<T>& room) {
    using Lane = typename Word<paired>::Type;
    constexpr long depth = Product<paired>::depth;
    long wide = rounded_up(s.first(), panel), narrow = rounded_up(s.hidden, panel);
    gather<paired>(dy, count, s.width, room.input);
    room.hidden.resize((block + 16) * wide / depth);
    room.active.resize(block * narrow / depth);
    Lane *to = (Lane*)room.hidden.data(), *weighed = (Lane*)room.active.data();
    for (long n = 0; n < s.hidden; n += panel) {
        multiply_panel<paired>(room.input.data(), second.inner, second.at(e, n), room.first.data(), panel, count, second.inner,
                               false);
        differentiate_by(s.point, room.first.data(), h, gate, weighed, narrow, to, wide, dgate, s, n, count);
    }
    put_rows(to, wide, dh, s.first(), count);
    put_rows(weighed, narrow, active, s.hidden, count);
    for (long n = 0; n < s.width; n += panel) {
        multiply_panel<paired>(room.hidden.data(), wide / depth, first.at(e, n), room.first.data(), panel, count, first.inner,
                               false);
        put_panel<T>(room.first.data(), nullptr, dx, s.width, n, count);
    }
}

// Features `at` .. `at + width - 1` of rows as an operand whose depth runs over the rows, in panels of `wide` columns; zeros
// behind the last row and column.
template <bool paired, class T>
void pack_rows(Rows<T> rows, long first, long count, long words, long at, long width, uint32_t* to, long wide) {
    constexpr long depth = Product<paired>::depth;
    for (long w = 0; w < words; w++) {
        long i = w * depth;
        for (long k = i + ahead; k < std::min(i + ahead + depth, count); k++) fetch(rows[first + k] + at, width);
        const T* low = i < count ? rows[first + i] + at : nullptr;
        const T* high = i + 1 < count ? rows[first + i + 1] + at : nullptr;
        for (long n = 0; n < width; n += wide) {
            uint32_t* line = to + n * words + w * wide;
            long filled = low ? std::min(wide, width - n) : 0;
            if (filled && paired)
                interleave(low + n, high ? high + n : nullptr, line, filled);
            else if (filled)
                widen_row<false>(low + n, line, filled);
            if (filled < wide) std::memset(line + filled, 0, 4 * (size_t)(wide - filled));
        }
    }
}

// Rows `at` .. of the gradient of one expert's weight: the sum over its slots of left times right.
template <bool paired, class T>
void weight_strip(Rows<T> left, Rows<T> right, long slots, long at, long rows, long columns, void* to, bool half,
                  Room<T>& room) {
    constexpr long depth = Product<paired>::depth;
    long high = rounded_up(rows, 16), wide = rounded_up(columns, panel);
    room.sums.resize(high * wide);
    room.lines.resize(16 * high);
    room.turned.resize(reach * high);
    room.across.resize(reach * wide);
    if (!slots) std::memset((void*)room.sums.data(), 0, 4 * (size_t)(high * wide));
    for (long t = 0; t < slots; t += reach * depth) {
        long count = std::min(reach * depth, slots - t), words = rounded_up((count + depth - 1) / depth, 16);
        for (long w = 0; w < words; w += 16) {
            pack_rows<paired>(left, t + w * depth, count - w * depth, 16, at, rows, room.lines.data(), high);
            for (long i = 0; i < high; i += 16)
                turn16(room.lines.data() + i, high, 16, room.turned.data() + i * words + w, words, 16);
        }
        pack_rows<paired>(right, t, count, words, 0, columns, room.across.data(), panel);
        for (long n = 0; n < columns; n += panel)
            multiply_panel<paired>(room.turned.data(), words, room.across.data() + n * words, room.sums.data() + n, wide, rows,
                                   words, t > 0);
    }
    for (long i = 0; i < rows; i++)
        for (long j = 0; j < columns; j += lanes) {
            Floats value = load(room.sums.data() + i * wide + j);
            if (half)
                store_part((Bfloat*)to + (at + i) * columns + j, value, columns - j);
            else
                store_part((float*)to + (at + i) * columns + j, value, columns - j);
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
    Scratch<long> expert, begin;
    long count = 0;
    Blocks(const Plan& plan, const Shape& s) : expert(s.slots / block + s.experts), begin(s.slots / block + s.experts) {
        for (long e = 0; e < s.experts; e++)
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
    long halves = s.gated ? 2 : 1;
    Panels<paired, T> first(s.experts, s.width, halves * rounded_up(s.hidden, panel)), second(s.experts, s.hidden, s.width);
    Blocks blocks(plan, s);
    long size = s.first() * s.width, small = s.hidden * s.width;
#pragma omp parallel
    {
        Room<T> room;
        Tiles tiles;
        room.first.resize(block * panel);
        room.second.resize(block * panel);
#pragma omp for schedule(dynamic)
        for (long e = 0; e < s.experts; e++) {
            if (!plan.count(e)) continue;
            const T* weight = converted<T>(input, half, e * size, size, room.weight);
            for (long n = 0; n < halves; n++)
                first.turned(e, n * rounded_up(s.hidden, panel), weight + n * small, s.hidden, s.width);
            second.turned(e, 0, converted<T>(output, half, e * small, small, room.weight), s.width, s.hidden);
        }
#pragma omp for schedule(dynamic)
        for (long i = 0; i < blocks.count; i++) {
            long at = blocks.begin[i];
            forward_block<paired>(Rows<T>{x, s.width, plan.source + at}, gate + at, first, second, h + at * s.first(),
                                  parts + at * s.width, s, blocks.expert[i], blocks.rows(plan, i), room);
        }
#pragma omp for schedule(static)
        for (long n = 0; n < s.tokens; n++) add_slots(parts, y, plan, s.width, n);
    }
}

template <bool paired, class T>
void backward_all(const T* dy, const T* x, const float* gate, const void* input, const void* output, bool half, const T* h,
                  T* dh, T* active, T* parts, T* dx, float* dgate, void* dinput, void* doutput, const Plan& plan, const Shape& s) {
    Panels<paired, T> first(s.experts, s.first(), s.width), second(s.experts, s.width, s.hidden);
    Blocks blocks(plan, s);
    long size = s.first() * s.width, small = s.hidden * s.width, bytes = half ? 2 : 4;
    long strips = (s.first() + strip - 1) / strip, more = (s.width + strip - 1) / strip;
#pragma omp parallel
    {
        Room<T> room;
        Tiles tiles;
        room.first.resize(block * panel);
#pragma omp for schedule(dynamic)
        for (long e = 0; e < s.experts; e++) {
            if (!plan.count(e)) continue;
            first.straight(e, converted<T>(input, half, e * size, size, room.weight), s.first(), s.width);
            second.straight(e, converted<T>(output, half, e * small, small, room.weight), s.width, s.hidden);
        }
#pragma omp for schedule(dynamic)
        for (long i = 0; i < blocks.count; i++) {
            long at = blocks.begin[i];
            backward_block<paired>(Rows<T>{dy, s.width, plan.source + at}, h + at * s.first(), gate + at, first, second,
                                   dh + at * s.first(), active + at * s.hidden, parts + at * s.width, dgate + at, s,
                                   blocks.expert[i], blocks.rows(plan, i), room);
        }
#pragma omp for schedule(static) nowait
        for (long n = 0; n < s.tokens; n++) add_slots(parts, dx, plan, s.width, n);
#pragma omp for schedule(dynamic)
        for (long task = 0; task < s.experts * (strips + more); task++) {
            long e = task / (strips + more), which = task % (strips + more), at = plan.start[e];
            Rows<T> tokens{x, s.width, plan.source + at}, upstream{dy, s.width, plan.source + at};
            Rows<T> hidden{dh + at * s.first(), s.first(), nullptr}, gated{active + at * s.hidden, s.hidden, nullptr};
            if (which < strips)
                weight_strip<paired>(hidden, tokens, plan.count(e), which * strip, std::min(strip, s.first() - which * strip),
                                     s.width, (char*)dinput + e * size * bytes, half, room);
            else
                weight_strip<paired>(upstream, gated, plan.count(e), (which - strips) * strip,
                                     std::min(strip, s.width - (which - strips) * strip), s.hidden,
                                     (char*)doutput + e * small * bytes, half, room);
        }
    }
}

Shape read(const long* n) { return Shape{n[0], n[1], n[2], n[3], n[4], n[5] != 0, (int)n[6]}; }

}  // namespace

// sizes: tokens, width, hidden, experts, assignments, whether gated, point function. The plan has room for three numbers
// an assignment, experts + 1, and tokens + 1.
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

// dh and active are working memory as large as h and as (slot, hidden); dgate holds zeros, and stands by slot.
FAIRWAY_EXPORT(experts_backward)
(const void* dy, const void* x, const float* gate, const void* input, const void* output, const void* h, void* dh, void* active,
 void* parts, void* dx, float* dgate, void* dinput, void* doutput, int64_t* plan, const long* sizes, int half, int weights_half) {
    Shape s = read(sizes);
    if (half)
        backward_all<has_pairs>((const Bfloat*)dy, (const Bfloat*)x, gate, input, output, weights_half, (const Bfloat*)h,
                                (Bfloat*)dh, (Bfloat*)active, (Bfloat*)parts, (Bfloat*)dx, dgate, dinput, doutput,
                                Plan(plan, s), s);
    else
        backward_all<false>((const float*)dy, (const float*)x, gate, input, output, false, (const float*)h, (float*)dh,
                            (float*)active, (float*)parts, (float*)dx, dgate, dinput, doutput, Plan(plan, s), s);
}
