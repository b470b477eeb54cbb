// A matrix of integers with a step for each row, times many vectors: see naive.py for the definition.
//
// The matrix is one of bytes, as ../kernel/matvec.h lays it out. There, too, it says how a vector becomes three digits of
// eight bits, whose products are exact. Here some vectors at a time meet a panel of the matrix in registers.

#include "../kernel/matvec.h"
#include "../kernel/point.h"

namespace {

#if defined(__AVX512VNNI__)

constexpr int digits = 3;
constexpr long vectors_at_once = 24;

// Vectors as integers over their largest magnitudes: for every four columns of one its lowest digits, the next, the highest.
class Vectors {
   public:
    explicit Vectors(long columns) : bytes(digits * ((columns + lanes - 1) / lanes * lanes)), memory(vectors_at_once * bytes + 64) {}

    float unit[vectors_at_once];
    int32_t sums[vectors_at_once][digits];
    const int8_t* operator[](long vector) const { return memory.data() + vector * bytes; }

    template <class T>
    void take(long vector, const T* x, long columns) {
        float largest;
        bool finite = largest_of(x, columns, largest);
        float scale = finite && largest > 1e-30f ? largest_integer / largest : 0.0f;
        unit[vector] = !finite ? NAN : scale == 0 ? 0 : largest / largest_integer;
        // With 128 added to each, digits carry into the next as they do when they have signs.
        constexpr int32_t offset = 0x808080;
        const Ints by_digit = (Ints)_mm512_maskz_broadcast_i32x4(0xffff, _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
        const Ints together = {0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, 3, 7, 11, 15};
        Ints total{};
        int8_t* to = memory.data() + vector * bytes;
        for (long i = 0; i < columns; i += lanes, to += digits * lanes) {
            Floats scaled = finite ? load_part(x + i, columns - i) * scale : Floats{};
            Ints whole = ((Ints)_mm512_maskz_cvtps_epi32(0xffff, (__m512)scaled) + offset) ^ offset;
            __m512i split = _mm512_shuffle_epi8((__m512i)whole, (__m512i)by_digit);
            total = (Ints)_mm512_dpbusd_epi32((__m512i)total, _mm512_set1_epi8(1), split);
            // The last 16 bytes fall where the next digits will.
            _mm512_storeu_si512(to, _mm512_maskz_permutexvar_epi32(0xffff, (__m512i)together, split));
        }
        for (int d = 0; d < digits; d++) sums[vector][d] = total[d] + total[4 + d] + total[8 + d] + total[12 + d];
    }

   private:
    long bytes;
    Scratch<int8_t> memory;

    // Whether all numbers are finite, and the largest magnitude if so.
    template <class T>
    static bool largest_of(const T* x, long columns, float& largest) {
        Ints most{};
        for (long i = 0; i < columns; i += lanes) {
            Ints bits = (Ints)magnitude(load_part(x + i, columns - i));
            most = bits > most ? bits : most;
        }
        int32_t top = 0;
        for (int i = 0; i < lanes; i++) top = most[i] > top ? most[i] : top;
        std::memcpy(&largest, &top, 4);
        return top < 0x7f800000;
    }
};

// What sixteen rows have added up to for one vector. Named variables and no arrays, and not __m512i, which may be an alias
// of anything: compilers would keep these in memory.
struct Sums {
    Ints s0, s1, s2;

    void begin(const int32_t* sums) {
        s0 = Ints{} - 128 * sums[0];
        s1 = Ints{} - 128 * sums[1];
        s2 = Ints{} - 128 * sums[2];
    }
    void add(__m512i w, __m512i d0, __m512i d1, __m512i d2) {
        s0 = (Ints)_mm512_dpbusd_epi32((__m512i)s0, w, d0);
        s1 = (Ints)_mm512_dpbusd_epi32((__m512i)s1, w, d1);
        s2 = (Ints)_mm512_dpbusd_epi32((__m512i)s2, w, d2);
    }
    Floats end() const {
        Floats sum = __builtin_convertvector(s1, Floats) * 256.0f + __builtin_convertvector(s0, Floats);
        return sum + __builtin_convertvector(s2, Floats) * 65536.0f;
    }
};

// The same of the blocks of a panel.
template <int blocks>
struct PanelSums {
    Sums a, b, c, d;

    void begin(const int32_t* sums) { a.begin(sums), b.begin(sums), c.begin(sums), d.begin(sums); }
    void add(__m512i wa, __m512i wb, __m512i wc, __m512i wd, const int8_t* in) {
        __m512i d0 = Digits::four(in), d1 = Digits::four(in + 4), d2 = Digits::four(in + 8);
        a.add(wa, d0, d1, d2);
        if (blocks > 1) b.add(wb, d0, d1, d2);
        if (blocks > 2) c.add(wc, d0, d1, d2);
        if (blocks > 3) d.add(wd, d0, d1, d2);
    }
    void end(float unit, const float* step, float* y, long rows) const {
        store_part(y, a.end() * unit * load(step), rows);
        if (blocks > 1) store_part(y + 16, b.end() * unit * load(step + 16), rows - 16);
        if (blocks > 2) store_part(y + 32, c.end() * unit * load(step + 32), rows - 32);
        if (blocks > 3) store_part(y + 48, d.end() * unit * load(step + 48), rows - 48);
    }
};

// A panel's rows of the products with one vector or two.
template <int count, int blocks>
inline void tile(const Matrix& m, long panel, const Vectors& x, long vector, float* y) {
    PanelSums<blocks> one, two;
    one.begin(x.sums[vector]);
    two.begin(x.sums[vector + count - 1]);
    const uint8_t* data = m.block_at(panel * panel_blocks, 0);
    const int8_t *in = x[vector], *second = x[vector + count - 1];
    for (long g = m.groups(); g > 0; g--, data += 64 * blocks, in += 4 * digits, second += 4 * digits) {
        __m512i wa = _mm512_loadu_si512(data), wb = wa, wc = wa, wd = wa;
        if (blocks > 1) wb = _mm512_loadu_si512(data + 64);
        if (blocks > 2) wc = _mm512_loadu_si512(data + 128);
        if (blocks > 3) wd = _mm512_loadu_si512(data + 192);
        one.add(wa, wb, wc, wd, in);
        if (count > 1) two.add(wa, wb, wc, wd, second);
    }
    long row = panel * panel_rows;
    y += vector * m.rows + row;
    one.end(x.unit[vector], m.step + row, y, m.rows - row);
    if (count > 1) two.end(x.unit[vector + 1], m.step + row, y + m.rows, m.rows - row);
}

template <int blocks>
void panel_of(const Matrix& m, long panel, const Vectors& x, long vectors, float* y) {
    long vector = 0;
    for (; vector + 2 <= vectors; vector += 2) tile<2, blocks>(m, panel, x, vector, y);
    if (vector < vectors) tile<1, blocks>(m, panel, x, vector, y);
}

void product(const Matrix& m, const float* x, float* y, long vectors) {
#pragma omp parallel
    {
        Vectors some(m.columns);
#pragma omp for schedule(static)
        for (long first = 0; first < vectors; first += vectors_at_once) {
            long count = vectors - first < vectors_at_once ? vectors - first : vectors_at_once;
            for (long v = 0; v < count; v++) some.take(v, x + (first + v) * m.columns, m.columns);
            float* to = y + first * m.rows;
            for (long panel = 0; panel < m.panels(); panel++) {
                long blocks = m.blocks() - panel * panel_blocks;
                if (blocks >= 4) panel_of<4>(m, panel, some, count, to);
                else if (blocks == 3) panel_of<3>(m, panel, some, count, to);
                else if (blocks == 2) panel_of<2>(m, panel, some, count, to);
                else panel_of<1>(m, panel, some, count, to);
            }
        }
    }
}

#else

void product(const Matrix& m, const float* x, float* y, long vectors) {
#pragma omp parallel
    {
        Operand in;
        Scratch<float> out(m.blocks() * block_rows);
#pragma omp for schedule(static)
        for (long v = 0; v < vectors; v++) {
            in.take(x + v * m.columns, m.columns);
            multiply(m, in, out.data(), 0, 1);
            std::memcpy(y + v * m.rows, out.data(), (size_t)m.rows * sizeof(float));
        }
    }
}

#endif

}  // namespace

// data, step, rows, columns: the matrix. x: (vectors, columns); y: (vectors, rows).
FAIRWAY_EXPORT(code_product)
(const uint8_t* data, const float* step, const float* x, float* y, long vectors, long rows, long columns) {
    product({rows, columns, format_int8, data, step}, x, y, vectors);
}
