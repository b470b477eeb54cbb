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

// Removes the least of each row's scores in a group; of equal scores the first go.
void remove_least(const Block& block, long first, long row, long count) {
    long group = block.columns - first < block.group ? block.columns - first : block.group;
    long zeros = block.zeros * group / block.group;
    for (long r = row; r < row + count; r++) {
        float score[widest];
        for (long g = 0; g < group; g++) {
            long column = first + g;
            float ratio = block.work[column * block.rows + r] / block.upper[column * (block.columns + 1)];
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
    float mask[lanes];
    for (int i = 0; i < lanes; i++) mask[i] = block.kept[at + i];
    Floats weight = load(block.work + at), fixed = weight * load(mask);
    if (block.step) {
        Floats step = load(block.step + r);
        fixed = whole(fixed / step) * step;
    }
    store(block.errors + at, (weight - fixed) / block.upper[column * (block.columns + 1)]);
    store(block.work + at, fixed);
}

// work[later] -= sum of factor * error over the columns from first to last.
void pass_on(const Block& block, long first, long last, long later, long row, long count) {
    float* work = block.work + later * block.rows;
    long r = row;
    for (; r + lanes <= row + count; r += lanes) {
        Floats weight = load(work + r);
        for (long column = first; column < last; column++)
            weight -= block.upper[column * block.columns + later] * load(block.errors + column * block.rows + r);
        store(work + r, weight);
    }
    for (; r < row + count; r++)
        for (long column = first; column < last; column++)
            work[r] -= block.upper[column * block.columns + later] * block.errors[column * block.rows + r];
}

void solve_strip(const Block& block, long row, long count) {
    long together = block.zeros ? block.group : 8;
    for (long first = 0; first < block.columns; first += together) {
        long last = first + together < block.columns ? first + together : block.columns;
        if (block.zeros) remove_least(block, first, row, count);
        for (long column = first; column < last; column++) {
            if (column > first) pass_on(block, first, column, column, row, count);
            long r = row;
            for (; r + lanes <= row + count; r += lanes) fix(block, column, r);
            for (; r < row + count; r++) fix_one(block, column, r);
        }
        for (long later = last; later < block.columns; later++) pass_on(block, first, last, later, row, count);
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
