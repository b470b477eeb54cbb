// Fixing the columns of a block one after another; see naive.py. Rows know nothing of each other, so strips of rows small
// enough for the cache go through all columns by themselves.

#include "../kernel/vector.h"

namespace {

constexpr long strip = 4 * lanes;
constexpr long widest = 16;

struct Block {
    float* work;
    bool* kept;
    const float* upper;
    const float* step;
    float* errors;
    long columns, rows, zeros, group;
};

// To the nearest whole number, ties to even; numbers beyond 2^22 are taken as they are.
inline Floats whole(Floats x) {
    Floats rounded = (x + 12582912.0f) - 12582912.0f;
    Floats size = select(x < Floats{}, -x, x);
    return select(size < all(4194304.0f), rounded, x);
}

typedef uint8_t Bytes __attribute__((vector_size(FAIRWAY_LANES)));

inline Bytes load_bytes(const bool* p) {
    Bytes b;
    std::memcpy(&b, p, sizeof b);
    return b;
}

// Removes the least of one row's scores in a group; of equal scores the first go.
void remove_least_of_one(const Block& block, long first, long group, long zeros, long r) {
    float score[widest];
    for (long g = 0; g < group; g++) {
        float ratio = block.work[(first + g) * block.rows + r] / block.upper[(first + g) * (block.columns + 1)];
        score[g] = ratio * ratio;
    }
    for (long z = 0; z < zeros; z++) {
        long least = 0;
        for (long g = 1; g < group; g++)
            if (score[g] < score[least]) least = g;
        score[least] = INFINITY;
        block.kept[(first + least) * block.rows + r] = false;
    }
}

// The same for as many rows as a vector holds.
void remove_least(const Block& block, long first, long group, long zeros, long r) {
    Floats score[widest];
    Ints gone[widest] = {};
    for (long g = 0; g < group; g++) {
        Floats ratio = load(block.work + (first + g) * block.rows + r) / block.upper[(first + g) * (block.columns + 1)];
        score[g] = ratio * ratio;
    }
    for (long z = 0; z < zeros; z++) {
        Floats least = score[0];
        Ints at = {};
        for (int g = 1; g < group; g++) {
            Ints less = score[g] < least;
            least = select(less, score[g], least);
            at = less ? g - Ints{} : at;
        }
        for (int g = 0; g < group; g++) {
            Ints here = at == g;
            gone[g] |= here;
            score[g] = select(here, all(INFINITY), score[g]);
        }
    }
    for (long g = 0; g < group; g++) {
        bool* kept = block.kept + (first + g) * block.rows + r;
        Bytes left = load_bytes(kept) & ~__builtin_convertvector((Words)gone[g], Bytes);
        std::memcpy(kept, &left, sizeof left);
    }
}

inline void fix_one(const Block& block, long column, long r) {
    long at = column * block.rows + r;
    float weight = block.work[at], fixed = block.kept[at] ? weight : 0.0f;
    if (block.step) fixed = std::nearbyint(fixed / block.step[r]) * block.step[r];
    block.errors[at] = (weight - fixed) / block.upper[column * (block.columns + 1)];
    block.work[at] = fixed;
}

inline void fix(const Block& block, long column, long r) {
    long at = column * block.rows + r;
    Floats weight = load(block.work + at);
    Floats fixed = weight * __builtin_convertvector(load_bytes(block.kept + at), Floats);
    if (block.step) {
        Floats step = load(block.step + r);
        fixed = whole(fixed / step) * step;
    }
    store(block.errors + at, (weight - fixed) / block.upper[column * (block.columns + 1)]);
    store(block.work + at, fixed);
}

// For `many` neighbouring columns: work[later] -= sum of factor * error over the columns from first to last.
template <int many>
void pass_on(const Block& block, long first, long last, long later, long row, long count) {
    float* work = block.work + later * block.rows;
    long r = row;
    for (; r + 2 * lanes <= row + count; r += 2 * lanes) {
        Floats left[many], right[many];
#pragma GCC unroll 4
        for (int m = 0; m < many; m++) {
            left[m] = load(work + m * block.rows + r);
            right[m] = load(work + m * block.rows + r + lanes);
        }
        for (long column = first; column < last; column++) {
            const float* error = block.errors + column * block.rows + r;
            const float* factor = block.upper + column * block.columns + later;
            Floats one = load(error), two = load(error + lanes);
#pragma GCC unroll 4
            for (int m = 0; m < many; m++) {
                left[m] -= factor[m] * one;
                right[m] -= factor[m] * two;
            }
        }
#pragma GCC unroll 4
        for (int m = 0; m < many; m++) {
            store(work + m * block.rows + r, left[m]);
            store(work + m * block.rows + r + lanes, right[m]);
        }
    }
    for (; r < row + count; r++)
        for (long column = first; column < last; column++)
            for (int m = 0; m < many; m++)
                work[m * block.rows + r] -=
                    block.upper[column * block.columns + later + m] * block.errors[column * block.rows + r];
}

// Columns from `first` to `last` fixed, each after those before it; they are chosen group by group.
void solve_together(const Block& block, long first, long last, long row, long count) {
    for (long begin = first; begin < last; begin += block.group) {
        long end = begin + block.group < last ? begin + block.group : last;
        long group = end - begin, zeros = block.zeros * group / block.group;
        for (long column = begin; column < end && begin > first; column++)
            pass_on<1>(block, first, begin, column, row, count);
        long r = row;
        for (; zeros && r + lanes <= row + count; r += lanes) remove_least(block, begin, group, zeros, r);
        for (; zeros && r < row + count; r++) remove_least_of_one(block, begin, group, zeros, r);
        for (long column = begin; column < end; column++) {
            if (column > begin) pass_on<1>(block, begin, column, column, row, count);
            for (r = row; r + lanes <= row + count; r += lanes) fix(block, column, r);
            for (; r < row + count; r++) fix_one(block, column, r);
        }
    }
}

void solve_strip(const Block& block, long row, long count) {
    long together = block.group < 8 ? 8 / block.group * block.group : block.group;
    for (long first = 0; first < block.columns; first += together) {
        long last = first + together < block.columns ? first + together : block.columns;
        solve_together(block, first, last, row, count);
        long later = last;
        for (; later + 4 <= block.columns; later += 4) pass_on<4>(block, first, last, later, row, count);
        for (; later < block.columns; later++) pass_on<1>(block, first, last, later, row, count);
    }
}

}  // namespace

FAIRWAY_EXPORT(columns_solve)
(float* work, bool* kept, const float* upper, const float* step, float* errors, long columns, long rows, long zeros,
 long group) {
    Block block{work, kept, upper, step, errors, columns, rows, zeros, group};
#pragma omp parallel for schedule(static)
    for (long row = 0; row < rows; row += strip) solve_strip(block, row, rows - row < strip ? rows - row : strip);
}
