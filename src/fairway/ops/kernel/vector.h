// Vectors of floats as wide as the target's registers, and bfloat16 as it lies in memory.
//
// Every kernel is compiled once for each instruction level; FAIRWAY_LEVEL names the level and becomes the suffix of what
// is exported. Nothing else has external linkage, so the levels never mix.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
#include <immintrin.h>
#define FAIRWAY_LANES 16
#elif defined(__AVX2__)
#include <immintrin.h>
#define FAIRWAY_LANES 8
#else
#define FAIRWAY_LANES 4
#endif

#define FAIRWAY_JOIN_(a, b) a##_##b
#define FAIRWAY_JOIN(a, b) FAIRWAY_JOIN_(a, b)
#define FAIRWAY_EXPORT(name) extern "C" __attribute__((visibility("default"))) void FAIRWAY_JOIN(name, FAIRWAY_LEVEL)

namespace {

constexpr int lanes = FAIRWAY_LANES;

typedef float Floats __attribute__((vector_size(4 * FAIRWAY_LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * FAIRWAY_LANES)));
typedef uint32_t Words __attribute__((vector_size(4 * FAIRWAY_LANES)));
typedef uint16_t Halves __attribute__((vector_size(2 * FAIRWAY_LANES)));

struct Bfloat {
    uint16_t bits;
};

inline Floats all(float x) { return x - Floats{}; }

inline Floats load(const float* p) {
    Floats v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

inline void store(float* p, Floats v) { std::memcpy(p, &v, sizeof v); }

inline Floats load(const Bfloat* p) {
#if defined(__AVX512F__)
    // Compilers make two narrow conversions of the wide one below.
    return (Floats)((Words)_mm512_maskz_cvtepu16_epi32(0xffff, _mm256_loadu_si256((const __m256i*)p)) << 16);
#else
    Halves h;
    std::memcpy(&h, p, sizeof h);
    return (Floats)(__builtin_convertvector(h, Words) << 16);
#endif
}

// Rounds to nearest, ties to even; NaN stays NaN.
inline Halves rounded(Floats v) {
    Words w = (Words)v;
    Words even = (w + 0x7fffu + ((w >> 16) & 1u)) >> 16;
    Words nan = (Words)(v != v);
    Words quiet = (w >> 16) | 0x40u;
    return __builtin_convertvector((even & ~nan) | (quiet & nan), Halves);
}

inline void store(Bfloat* p, Floats v) {
#if defined(__AVX512BF16__)
    // The instruction does the same but for denormal numbers, which it takes for zeros.
    constexpr int denormal = 0x20;
    if (__builtin_expect(!_mm512_fpclass_ps_mask((__m512)v, denormal), 1)) {
        _mm256_storeu_si256((__m256i*)p, (__m256i)_mm512_cvtneps_pbh((__m512)v));
        return;
    }
#endif
    Halves h = rounded(v);
    std::memcpy(p, &h, sizeof h);
}

inline float to_float(float x) { return x; }

inline float to_float(Bfloat x) {
    uint32_t w = (uint32_t)x.bits << 16;
    float f;
    std::memcpy(&f, &w, 4);
    return f;
}

inline void put(float* p, float x) { *p = x; }

inline void put(Bfloat* p, float x) {
    uint32_t w;
    std::memcpy(&w, &x, 4);
    p->bits = x != x ? (uint16_t)((w >> 16) | 0x40u) : (uint16_t)((w + 0x7fffu + ((w >> 16) & 1u)) >> 16);
}

inline Floats select(Ints mask, Floats yes, Floats no) { return mask ? yes : no; }

inline Floats larger(Floats a, Floats b) { return select(a > b, a, b); }

#if defined(__AVX512F__)
// The vector with its halves, quarters, eighths or sixteenths changed about.
inline Floats halves_swapped(Floats v) { return (Floats)_mm512_maskz_shuffle_f32x4(0xffff, (__m512)v, (__m512)v, 0x4e); }

inline Floats quarters_swapped(Floats v) { return (Floats)_mm512_maskz_shuffle_f32x4(0xffff, (__m512)v, (__m512)v, 0xb1); }

inline Floats eighths_swapped(Floats v) { return (Floats)_mm512_maskz_permute_ps(0xffff, (__m512)v, 0x4e); }

inline Floats sixteenths_swapped(Floats v) { return (Floats)_mm512_maskz_permute_ps(0xffff, (__m512)v, 0xb1); }
#endif

inline float sum(Floats v) {
#if defined(__AVX512F__)
    v += halves_swapped(v);
    v += quarters_swapped(v);
    v += eighths_swapped(v);
    return (v + sixteenths_swapped(v))[0];
#else
    float total = 0;
    for (int i = 0; i < lanes; i++) total += v[i];
    return total;
#endif
}

inline float largest(Floats v) {
#if defined(__AVX512F__)
    v = larger(v, halves_swapped(v));
    v = larger(v, quarters_swapped(v));
    v = larger(v, eighths_swapped(v));
    return larger(v, sixteenths_swapped(v))[0];
#else
    float most = v[0];
    for (int i = 1; i < lanes; i++) most = v[i] > most ? v[i] : most;
    return most;
#endif
}

}  // namespace
