// Newton-Schulz iterations on whole matrices, everything packed once and kept as operands: see naive.py for the definition.
//
// A matrix stands on its short side: Y is (long side, short side). A symmetric matrix is a panel-packed operand whose words
// run along its columns, so that the same words serve on the left and on the right of a product; one triangle is computed
// and mirrored. Its diagonal is kept apart in float32: polynomials of Gram matrices are near to a multiple of the identity,
// and rounding the diagonal would be most of the error.

#include <algorithm>

#include "../kernel/operands.h"

#if defined(_OPENMP)
extern "C" int omp_get_thread_num(void);
extern "C" int omp_get_num_threads(void);
extern "C" int omp_get_max_threads(void);
#endif

namespace {

constexpr long panel = 32;   // columns of an operand that lie together
constexpr long strip = 16;   // rows of a product at a time
constexpr long height = 64;  // rows of Y that are multiplied while they lie in the nearest caches

// The threads that work on one matrix together.
struct Team {
    long me = 0, of = 1;
    bool mine(long task) const { return task % of == me; }
    void wait() const {
        if (of > 1) {
#pragma omp barrier
        }
    }
};

// Rows m, m + 1 of an operand at one vector of its columns, both as floats.
template <bool paired>
inline void unpack(const uint32_t* words, Floats& first, Floats& second) {
    Words both;
    std::memcpy(&both, words, sizeof both);
    first = (Floats)(both << 16);
    second = (Floats)(both & 0xffff0000u);
}

template <>
inline void unpack<false>(const uint32_t* words, Floats& first, Floats& second) {
    first = load((const float*)words);
    second = load((const float*)words + panel);
}

template <bool paired>
inline void pack(uint32_t* words, Floats first, Floats second) {
#if defined(__AVX512BF16__)
    alignas(64) static const uint16_t places[2 * lanes] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                           8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    __m512i both = (__m512i)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
    _mm512_storeu_si512(words, _mm512_permutexvar_epi16(_mm512_load_si512(places), both));
#else
    (void)words, (void)first, (void)second;
#endif
}

template <>
inline void pack<false>(uint32_t* words, Floats first, Floats second) {
    store((float*)words, first);
    store((float*)words + panel, second);
}

// Operands whose depth runs over the rows of a matrix, in panels of columns.
template <bool paired>
struct Operand {
    static constexpr long depth = Product<paired>::depth;
    long inner = 0;  // words of depth
    uint32_t* words = nullptr;
    uint32_t* at(long row, long column) const {
        return words + column / panel * panel * inner + row / depth * panel + column % panel;
    }
};

// A symmetric matrix without its diagonal, and that.
template <bool paired>
struct Square {
    Operand<paired> rest;
    float* diagonal = nullptr;
};

template <bool paired>
class Room {
   public:
    static constexpr long depth = Product<paired>::depth;
    using Lane = typename Word<paired>::Type;
    long rows, side, high, wide;  // the same, and padded
    Square<paired> gram, step, whole, spare;
    Operand<paired> turned;  // Y with its depth over the rows
    Room(long tall, long narrow)
        : rows(tall), side(narrow), high(rounded_up(tall, strip)), wide(rounded_up(narrow, panel)),
          words((high + 4 * wide) * (wide / depth)), lanes_of_y(high * wide / depth), diagonals(4 * wide) {
        turned = {high / depth, words.data()};
        Square<paired>* squares[] = {&gram, &step, &whole, &spare};
        for (long i = 0; i < 4; i++) {
            squares[i]->rest = {wide / depth, words.data() + (high + i * wide) * (wide / depth)};
            squares[i]->diagonal = diagonals.data() + i * wide;
        }
    }
    Lane* y(long row) const { return (Lane*)lanes_of_y.data() + row * wide; }

   private:
    Scratch<uint32_t> words, lanes_of_y;
    Scratch<float> diagonals;
};

// Two rows of Y as words of the operand.
template <bool paired>
void turn_rows(const Room<paired>& room, long row) {
    for (long n = 0; n < room.wide; n += panel) {
        uint32_t* to = room.turned.at(row, n);
        if (paired) {
            interleave(room.y(row) + n, room.y(row + 1) + n, to, panel);
        } else {
            std::memcpy(to, room.y(row) + n, 4 * panel);
            std::memcpy(to + panel, room.y(row + 1) + n, 4 * panel);
        }
    }
}

// 16 by 16 numbers of `from`, of which `rows` and `columns` are there, as columns of `to`.
template <class T, class U>
void turn_block(const T* from, long stride, long rows, long columns, U* to, long to_stride) {
    alignas(64) float held[strip * strip] = {}, turned[strip * strip];
    for (long i = 0; i < rows; i++)
        for (long j = 0; j < columns; j += lanes) store(held + i * strip + j, load_part(from + i * stride + j, columns - j));
    turn16((const uint32_t*)held, strip, strip, (uint32_t*)turned, strip, strip);
    for (long j = 0; j < columns; j++)
        for (long i = 0; i < rows; i += lanes) store_part(to + j * to_stride + i, load(turned + j * strip + i), rows - i);
}

template <class T, class U>
void copy_rows(const T* from, long stride, long rows, long columns, U* to, long to_stride) {
    for (long i = 0; i < rows; i++)
        for (long j = 0; j < columns; j += lanes)
            store_part(to + i * to_stride + j, load_part(from + i * stride + j, columns - j), columns - j);
}

// Numbers of a matrix into Y or out of it; `lying` matrices are turned.
template <class T, class U>
void copy_turned(const T* from, long stride, long rows, long columns, U* to, long to_stride) {
    for (long i = 0; i < rows; i += strip)
        for (long j = 0; j < columns; j += strip)
            turn_block(from + i * stride + j, stride, std::min(strip, rows - i), std::min(strip, columns - j),
                       to + j * to_stride + i, to_stride);
}

template <bool paired, class T>
void read(const T* x, bool lying, const Room<paired>& room, Team team) {
    for (long m = 0; m < room.high; m += strip) {
        if (!team.mine(m / strip)) continue;
        long count = std::min(strip, room.rows - m);
        std::memset((void*)room.y(m), 0, sizeof(*room.y(m)) * (size_t)(strip * room.wide));
        if (lying)
            copy_turned(x + m, room.rows, room.side, count, room.y(m), room.wide);
        else
            copy_rows(x + m * room.side, room.side, count, room.side, room.y(m), room.wide);
        for (long i = 0; i < strip; i += 2) turn_rows<paired>(room, m + i);
    }
}

template <bool paired, class T>
void write(const Room<paired>& room, T* x, bool lying, Team team) {
    for (long m = 0; m < room.rows; m += strip) {
        if (!team.mine(m / strip)) continue;
        long count = std::min(strip, room.rows - m);
        if (lying)
            copy_turned(room.y(m), room.wide, count, room.side, x + m, room.rows);
        else
            copy_rows(room.y(m), room.wide, count, room.side, x + m * room.side, room.side);
    }
}

// A block of 16 rows and 32 columns. Symmetric matrices have those from their diagonal on, of which the rest is the mirror
// image; within the panel of the diagonal the lower rows have the right half alone.
struct Block {
    long m, n;
    bool symmetric;
    long first() const { return symmetric ? std::max(0L, m - n) : 0; }
    bool on_diagonal() const { return m >= n && m < n + panel; }
};

// Sums of a block of left times right, made alpha left right + beta left + gamma.
template <bool paired>
void finish(float* sums, const Square<paired>& left, const Square<paired>& right, Block block, float alpha, float beta,
            float gamma) {
    long m = block.m, n = block.n;
    for (long i = 0; i < strip; i += 2) {
        float scale[2] = {left.diagonal[m + i], left.diagonal[m + i + 1]};
        for (long j = block.first(); j < panel; j += lanes) {
            Floats l[2], r[2], scales = load(right.diagonal + n + j);
            unpack<paired>(left.rest.at(m + i, n + j), l[0], l[1]);
            unpack<paired>(right.rest.at(m + i, n + j), r[0], r[1]);
            for (long k = 0; k < 2; k++) {
                float* sum = sums + (i + k) * panel + j;
                store(sum, alpha * (load(sum) + scale[k] * r[k] + l[k] * scales) + beta * l[k]);
            }
        }
    }
    for (long i = 0; block.on_diagonal() && i < strip; i++) {
        float l = left.diagonal[m + i], r = right.diagonal[m + i];
        sums[i * panel + m + i - n] += alpha * l * r + beta * l + gamma;
    }
}

// A block into its matrix, and its mirror image where that has no block of its own.
template <bool paired>
void put(float* sums, const Square<paired>& to, Block block) {
    constexpr long depth = Product<paired>::depth, words = panel / depth;
    long m = block.m, n = block.n;
    for (long i = 0; block.on_diagonal() && i < strip; i++) {
        float& own = sums[i * panel + m + i - n];
        to.diagonal[m + i] = own;
        own = 0;
    }
    for (long i = 0; i < strip; i += 2)
        for (long j = block.first(); j < panel; j += lanes)
            pack<paired>(to.rest.at(m + i, n + j), load(sums + i * panel + j), load(sums + (i + 1) * panel + j));
    if (!block.symmetric || m > n) return;
    alignas(64) uint32_t along[strip * panel];
    for (long i = 0; i < strip; i++)
        for (long j = 0; j < panel; j += 2 * lanes)
            put_along<paired>(along + i * words + j / depth, load(sums + i * panel + j), load(sums + i * panel + j + lanes));
    for (long j = m < n ? 0 : strip / depth; j < words; j += strip)
        turn16(along + j, words, strip, to.rest.at(n + j * depth, m), panel, std::min(strip, words - j));
}

// Sums of products of columns of one operand with those of another.
template <bool paired>
void block_sums(const Operand<paired>& left, const Operand<paired>& right, Block block, float* sums, long words) {
    for (long i = 0; i < strip; i += tile) {
        const uint32_t *a = left.at(0, block.m + i), *b = right.at(0, block.n);
        if (block.first())
            multiply_tile<paired, tile, true, 1>(a, panel, b + strip, panel, sums + i * panel + strip, panel, strip, words, false);
        else
            multiply_tile<paired, tile, true>(a, panel, b, panel, sums + i * panel, panel, panel, words, false);
    }
}

// What `make` does to every block of a matrix.
template <class Make>
void each_block(long wide, bool symmetric, Team team, Make make) {
    long task = 0;
    for (long n = 0; n < wide; n += panel)
        for (long m = 0; m < (symmetric ? n + panel : wide); m += strip)
            if (team.mine(task++)) make(Block{m, n, symmetric});
    team.wait();
}

template <bool paired>
void form_gram(const Room<paired>& room, const Square<paired>& to, Team team) {
    alignas(64) float sums[strip * panel];
    each_block(room.wide, true, team, [&](Block block) {
        block_sums<paired>(room.turned, room.turned, block, sums, room.turned.inner);
        put<paired>(sums, to, block);
    });
}

struct Factors {
    float product, left, identity;
};

// to = a left right + b left + c I, for a symmetric left side.
template <bool paired>
void multiply_squares(const Square<paired>& left, const Square<paired>& right, const Square<paired>& to, bool symmetric,
                      Factors by, const Room<paired>& room, Team team) {
    alignas(64) float sums[strip * panel];
    each_block(room.wide, symmetric, team, [&](Block block) {
        block_sums<paired>(left.rest, right.rest, block, sums, rounded_up(room.side, 2) / Product<paired>::depth);
        finish<paired>(sums, left, right, block, by.product, by.left, by.identity);
        put<paired>(sums, to, block);
    });
}

// Y = Y by, strip after strip in place, and as an operand once more where that is wanted.
template <bool paired>
void apply(const Square<paired>& by, const Room<paired>& room, bool turn, Team team) {
    using Lane = typename Word<paired>::Type;
    long words = room.wide / Product<paired>::depth, used = rounded_up(room.side, 2) / Product<paired>::depth;
    alignas(64) float sums[strip * panel];
    Scratch<uint32_t> lines(height * words);
    for (long start = 0; start < room.high; start += height) {
        if (!team.mine(start / height)) continue;
        long count = std::min(height, room.high - start);
        std::memcpy(lines.data(), room.y(start), 4 * (size_t)(count * words));
        for (long n = 0; n < room.wide; n += panel)
            for (long m = 0; m < count; m += strip) {
                const uint32_t* left = lines.data() + m * words;
                for (long i = 0; i < strip; i += tile)
                    multiply_tile<paired, tile>(left + i * words, words, by.rest.at(0, n), panel, sums + i * panel, panel, panel,
                                                used, false);
                for (long i = 0; i < strip; i++)
                    for (long j = 0; j < panel; j += 2 * lanes) {
                        Floats made[2];
                        for (long k = 0; k < 2; k++) {
                            long at = j + k * lanes;
                            Floats own = load((const Lane*)left + i * room.wide + n + at);
                            made[k] = load(sums + i * panel + at) + own * load(by.diagonal + n + at);
                        }
                        put_along<paired>((uint32_t*)(room.y(start + m + i) + n + j), made[0], made[1]);
                    }
            }
        for (long m = 0; turn && m < count; m += 2) turn_rows<paired>(room, start + m);
    }
    team.wait();
}

// All steps of one matrix; `periods` of them go by between two products with Y.
template <bool paired, class T>
void iterate(T* x, bool lying, Room<paired>& room, const float* steps, const long* periods, long count, Team team) {
    Square<paired> gram = room.gram, step = room.step, whole = room.whole, spare = room.spare;
    read<paired>(x, lying, room, team);
    team.wait();
    for (long p = 0; p < count; p++) {
        form_gram<paired>(room, gram, team);
        for (long i = 0; i < periods[p]; i++, steps += 3) {
            const Square<paired>& now = i ? step : whole;
            multiply_squares<paired>(gram, gram, now, true, {steps[2], steps[1], steps[0]}, room, team);
            if (i + 1 < periods[p]) {
                multiply_squares<paired>(gram, now, spare, true, {1, 0, 0}, room, team);
                multiply_squares<paired>(spare, now, gram, true, {1, 0, 0}, room, team);
            }
            if (i) {
                // Rounded factors do not commute quite. Mirroring their product would multiply what they differ by.
                multiply_squares<paired>(whole, step, spare, false, {1, 0, 0}, room, team);
                std::swap(whole, spare);
            }
        }
        apply<paired>(whole, room, p + 1 < count, team);
    }
    write<paired>(room, x, lying, team);
    team.wait();
}

template <bool paired, class T>
void iterate_all(T* x, long count, long rows, long columns, const float* steps, const long* periods, long number) {
    bool lying = rows < columns;
    long tall = std::max(rows, columns), narrow = std::min(rows, columns);
#if defined(_OPENMP)
    // Too few matrices for all threads: these share each one.
    if (count < omp_get_max_threads()) {
        Room<paired> room(tall, narrow);
#pragma omp parallel
        {
            Team team{omp_get_thread_num(), omp_get_num_threads()};
            for (long n = 0; n < count; n++) iterate<paired>(x + n * rows * columns, lying, room, steps, periods, number, team);
        }
        return;
    }
#endif
#pragma omp parallel
    {
        Room<paired> room(tall, narrow);
#pragma omp for schedule(static)
        for (long n = 0; n < count; n++) iterate<paired>(x + n * rows * columns, lying, room, steps, periods, number, Team());
    }
}

}  // namespace

// x is (count, rows, columns), overwritten; steps holds three coefficients of each step.
FAIRWAY_EXPORT(newton_schulz)
(void* x, long count, long rows, long columns, const float* steps, const long* periods, long number, int half) {
    if (half)
        iterate_all<has_pairs>((Bfloat*)x, count, rows, columns, steps, periods, number);
    else
        iterate_all<false>((float*)x, count, rows, columns, steps, periods, number);
}
