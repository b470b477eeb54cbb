// Tokens through a program of instructions: see program.py for what they mean and naive.py for the definition.
//
// Keys of a group lie in blocks of sixteen, feature by feature, so that one register holds the scores of sixteen keys; values
// lie row by row, each padded to whole registers. Vectors of the arena begin at whole registers and may be written up to
// their next one. With several workers each does its share of the rows and heads; one does what is small.

#include "../kernel/matvec.h"
#include "../kernel/point.h"

namespace {

enum Operation : long { embed, embed_pair, product, normalise, add, lerp, rotate, attend, apply, gate, cap };

// The meaning of the fields is that of `_encoded` in native.py.
struct Instruction {
    long operation, kind, to, first, second, third, size, heads, groups, index, extra, window;
    double a, b, c;
    const float *one, *two;
};

struct Worker {
    Operand operand;
    Growing<float> score;
    long me, all_of_us;
};

struct Relu2 {
    static Floats value(Floats x) { return Relu::value(x) * Relu::value(x); }
};

struct LeakyRelu2 {
    static Floats value(Floats x) {
        Floats y = select(x < Floats{}, x * 0.5f, x);
        return y * y;
    }
};

template <class F>
void pointwise(float* to, const float* x, const float* factor, long size) {
    for (long i = 0; i < size; i += lanes) {
        Floats y = F::value(load_part(x + i, size - i));
        if (factor) y *= load_part(factor + i, size - i);
        store_part(to + i, y, size - i);
    }
}

void point(long kind, float* to, const float* x, const float* factor, long size) {
    switch (kind) {
        case 0: return pointwise<Identity>(to, x, factor, size);
        case 1: return pointwise<Relu>(to, x, factor, size);
        case 2: return pointwise<Relu2>(to, x, factor, size);
        case 3: return pointwise<LeakyRelu2>(to, x, factor, size);
        case 4: return pointwise<Gelu>(to, x, factor, size);
        case 5: return pointwise<GeluTanh>(to, x, factor, size);
        case 6: return pointwise<Silu>(to, x, factor, size);
        case 7: return pointwise<Sigmoid>(to, x, factor, size);
    }
}

// sum of (x - centre)^2 over the first `count` numbers.
float squares(const float* x, long count, float centre) {
    Floats sum[2] = {};
    long i = 0;
    for (; i + 2 * lanes <= count; i += 2 * lanes)
        for (int j = 0; j < 2; j++) {
            Floats v = load(x + i + j * lanes) - centre;
            sum[j] += v * v;
        }
    float rest = 0;
    for (; i < count; i++) rest += (x[i] - centre) * (x[i] - centre);
    return total(sum[0] + sum[1]) + rest;
}

float mean(const float* x, long count) {
    Floats sum{};
    for (long i = 0; i < count; i += lanes) sum += load_part(x + i, count - i);
    return total(sum) / (float)count;
}

void normalise_part(const Instruction& is, float* to, const float* x, long width, const float* gain, const float* bias) {
    float scale = (float)is.a, shift = (float)is.b;
    if (is.kind == 0) {
        scale = 1.0f / std::sqrt(squares(x, is.index, 0.0f) / (float)is.index + (float)is.c);
        shift = 0;
    } else if (is.kind == 1) {
        float centre = mean(x, width);
        scale = 1.0f / std::sqrt(squares(x, width, centre) / (float)width + (float)is.c);
        shift = -centre * scale;
    }
    for (long i = 0; i < width; i += lanes) {
        long left = width - i;
        Floats y = load_part(x + i, left) * scale + shift;
        if (is.kind == 2) y = Tanh::value(y);
        if (is.kind == 3) y = Erf::value(y);
        if (gain) y *= load_part(gain + i, left);
        if (bias) y += load_part(bias + i, left);
        store_part(to + i, y, left);
    }
}

void turn(const Instruction& is, float* x, long position) {
    long width = is.size / is.heads, pairs = is.index;
    const float *cos = is.one + position * pairs, *sin = is.two + position * pairs;
    for (long h = 0; h < is.heads; h++, x += width)
        for (long r = 0; r < pairs; r++) {
            float *first = is.kind ? x + 2 * r : x + r, *second = is.kind ? first + 1 : x + pairs + r;
            float one = *first, two = *second;
            *first = one * cos[r] - two * sin[r];
            *second = one * sin[r] + two * cos[r];
        }
}

struct Cache {
    long width, padded, blocks, length;
    float *key, *value;

    Cache(const Instruction& is, float* memory, long length)
        : width(is.size / is.heads), padded((width + 15) / 16 * 16), blocks((length + 15) / 16), length(length),
          key(memory + is.index), value(memory + is.extra) {}
    float* keys(long group, long block) const { return key + (group * blocks + block) * width * 16; }
    float* values(long group, long place) const { return value + (group * length + place) * padded; }

    void append(long group, long place, const float* k, const float* v) const {
        float* to = keys(group, place / 16) + place % 16;
        for (long i = 0; i < width; i++) to[16 * i] = k[i];
        std::memcpy(values(group, place), v, (size_t)width * sizeof(float));
    }
};

// Scores of the keys from the block of `first` to `last`, those before `first` and behind `last` -inf; returns the largest.
float scores(const Cache& cache, const float* q, long group, long first, long last, double cap, float* to) {
    constexpr int parts = 16 / lanes;
    float scale = 1.0f / std::sqrt((float)cache.width);
    Floats most = all(-INFINITY);
    for (long block = first / 16; block <= last / 16; block++, to += 16) {
        const float* k = cache.keys(group, block);
        for (int j = 0; j < parts; j++) {
            Floats even{}, odd{};
            long i = 0;
            for (; i + 2 <= cache.width; i += 2) {
                even += q[i] * load(k + 16 * i + j * lanes);
                odd += q[i + 1] * load(k + 16 * i + 16 + j * lanes);
            }
            if (i < cache.width) even += q[i] * load(k + 16 * i + j * lanes);
            Floats s = (even + odd) * scale;
            if (cap > 0) s = (float)cap * tanh_of(s / (float)cap);
            store(to + j * lanes, s);
        }
        for (long i = block * 16; i < first; i++) to[i - block * 16] = -INFINITY;
        for (long i = last + 1; i < block * 16 + 16; i++) to[i - block * 16] = -INFINITY;
        for (int j = 0; j < parts; j++) most = larger(load(to + j * lanes), most);
    }
    return largest(most);
}

// y = sum of p_s v_s over `count` rows, a register's columns at a time, in four sums to keep the multipliers busy.
void weighted(const float* p, const float* v, long count, long padded, long width, float scale, float* y) {
    for (long c = 0; c < width; c += lanes) {
        Floats a{}, b{}, d{}, e{};
        const float* at = v + c;
        long s = 0;
        for (; s + 4 <= count; s += 4, at += 4 * padded) {
            a += p[s] * load(at);
            b += p[s + 1] * load(at + padded);
            d += p[s + 2] * load(at + 2 * padded);
            e += p[s + 3] * load(at + 3 * padded);
        }
        for (; s < count; s++, at += padded) a += p[s] * load(at);
        store_part(y + c, (a + b + d + e) * scale, width - c);
    }
}

void remove_own(float* y, const float* v, long width) {
    float along = 0, size = 0;
    for (long i = 0; i < width; i++) along += y[i] * v[i], size += v[i] * v[i];
    float share = along / (size < 1e-12f ? 1e-12f : size);
    for (long i = 0; i < width; i++) y[i] -= share * v[i];
}

// With `only_append` the key and the value are added to the cache and nothing is read from it.
void attention(const Instruction& is, float* arena, float* memory, long position, long length, bool only_append, Worker& worker) {
    Cache cache(is, memory, length);
    long width = cache.width, shared = is.heads / is.groups;
    long first = is.window && position + 1 > is.window ? position + 1 - is.window : 0, start = first / 16 * 16;
    worker.score.resize(length + 32);
    float* p = worker.score.data();
    for (long g = is.groups * worker.me / worker.all_of_us; g < is.groups * (worker.me + 1) / worker.all_of_us; g++) {
        const float* v = arena + is.third + g * width;
        cache.append(g, position, arena + is.second + g * width, v);
        if (only_append) continue;
        for (long h = g * shared; h < (g + 1) * shared; h++) {
            float most = scores(cache, arena + is.first + h * width, g, first, position, is.a, p);
            Floats sum{};
            for (long i = 0; i < position / 16 * 16 + 16 - start; i += lanes) {
                Floats e = power_of_e(load(p + i) - most);
                store(p + i, e);
                sum += e;
            }
            float* y = arena + is.to + h * width;
            weighted(p + first - start, cache.values(g, first), position + 1 - first, cache.padded, width, 1.0f / total(sum), y);
            if (is.kind) remove_own(y, v, width);
        }
    }
}

// `last` holds the token before plus one, 0 where there is none; see bigram.py for the hash.
long pair_row(long rows, float& last, long token) {
    long before = (long)last - 1;
    last = (float)(token + 1);
    return before < 0 ? rows - 1 : ((36313 * token) ^ (27191 * before)) % (rows - 1);
}

void small(const Instruction& is, const Matrix* matrices, float* arena, long token, long position) {
    float *to = arena + is.to, *first = arena + is.first, *second = is.second < 0 ? nullptr : arena + is.second;
    long width = is.heads ? is.size / is.heads : is.size;
    switch (is.operation) {
        case embed: return read_row(matrices[is.index], is.kind ? position : token, to);
        case embed_pair: return read_row(matrices[is.index], pair_row(matrices[is.index].rows, *first, token), to);
        case normalise:
            for (long at = 0; at < is.size; at += width)
                normalise_part(is, to + at, first + at, width, is.one ? is.one + at : nullptr, is.two ? is.two + at : nullptr);
            return;
        case add:
            for (long i = 0; i < is.size; i += lanes) {
                Floats y = load(first + i) * (float)is.a;
                if (second) {
                    Floats other = load(second + i) * (float)is.b;
                    y += is.one ? other * load_part(is.one + i, is.size - i) : other;
                }
                store_part(to + i, y, is.size - i);
            }
            return;
        case lerp:
            for (long i = 0; i < is.size; i += lanes) {
                Floats x = load(first + i);
                store_part(to + i, x + load_part(is.one + i, is.size - i) * (load(second + i) - x), is.size - i);
            }
            return;
        case rotate: return turn(is, to, position);
        case apply: return point(is.kind, to, first, nullptr, is.size);
        case gate: return point(is.kind, to, first, first + is.size, is.size);
        case cap:
            for (long i = 0; i < is.size; i += lanes)
                store_part(to + i, (float)is.a * tanh_of(load(first + i) / (float)is.a), is.size - i);
            return;
        default: return;
    }
}

struct Job {
    const Instruction* program;
    long lasting, whole;
    const Matrix* matrices;
    float *arena, *memory;
    const long* tokens;
    long count, position, length;
};

bool for_all(const Instruction& is) { return is.operation == product || is.operation == attend; }

void work(const Job& job, Worker& worker) {
    for (long t = 0; t < job.count; t++) {
        bool final = t + 1 == job.count;
        long steps = final ? job.whole : job.lasting;
        bool together = true;
        for (long i = 0; i < steps; i++) {
            const Instruction& is = job.program[i];
            if (worker.all_of_us > 1 && (together || for_all(is))) {
#pragma omp barrier
            }
            together = for_all(is);
            if (is.operation == product) {
                const Matrix& m = job.matrices[is.index];
                worker.operand.take(job.arena + is.first, m.columns);
                multiply(m, worker.operand, job.arena + is.to, worker.me, worker.all_of_us);
            } else if (is.operation == attend) {
                attention(is, job.arena, job.memory, job.position + t, job.length, !final && i + 1 == job.lasting, worker);
            } else if (worker.me == 0) {
                small(is, job.matrices, job.arena, job.tokens[t], job.position + t);
            }
        }
    }
}

}  // namespace

// Takes in `count` tokens from `position` on. The last of them runs all instructions, the others the first `lasting`, and where
// the last of these is an attention, it only adds to its cache.
FAIRWAY_EXPORT(decode_step)
(const Instruction* program, long lasting, long whole, const Matrix* matrices, float* arena, float* memory, const long* tokens,
 long count, long position, long length, int threads) {
    Job job{program, lasting, whole, matrices, arena, memory, tokens, count, position, length};
    if (threads < 2) {
        Worker worker{{}, {}, 0, 1};
        return work(job, worker);
    }
    long next = 0;
#pragma omp parallel num_threads(threads)
    {
        Worker worker{{}, {}, __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED), 1};
#pragma omp barrier
        worker.all_of_us = __atomic_load_n(&next, __ATOMIC_RELAXED);
        work(job, worker);
    }
}
