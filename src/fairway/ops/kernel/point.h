// Point functions on vectors, each with its slope, and vectors that a row ends in the middle of.
//
// The polynomials are minimax fits of relative error below 3e-9; what remains is the rounding of float32.

#pragma once

#include "vector.h"

namespace {

#if defined(__AVX512F__)
// Masks instead of copies: a call on a path never taken would keep a loop's constants out of the registers.
inline __mmask16 below(long count) { return (__mmask16)(count < lanes ? (1u << count) - 1 : 0xffffu); }

inline Floats load_masked(const float* p, long count) { return (Floats)_mm512_maskz_loadu_ps(below(count), p); }

inline Floats load_masked(const Bfloat* p, long count) {
    __m256i held = _mm256_maskz_loadu_epi16(below(count), p);
    return load((const Bfloat*)&held);
}

inline void store_masked(float* p, Floats v, long count) { _mm512_mask_storeu_ps(p, below(count), (__m512)v); }

inline void store_masked(Bfloat* p, Floats v, long count) {
    __m256i held;
    store((Bfloat*)&held, v);
    _mm256_mask_storeu_epi16(p, below(count), held);
}
#else
template <class T>
inline Floats load_masked(const T* p, long count) {
    T held[lanes] = {};
    std::memcpy(held, p, (size_t)count * sizeof(T));
    return load(held);
}

template <class T>
inline void store_masked(T* p, Floats v, long count) {
    T held[lanes];
    store(held, v);
    std::memcpy(p, held, (size_t)count * sizeof(T));
}
#endif

// The first `count` numbers of a vector, zeros behind them; `count` may exceed the lanes.
template <class T>
inline Floats load_part(const T* p, long count) {
    return count >= lanes ? load(p) : load_masked(p, count);
}

template <class T>
inline void store_part(T* p, Floats v, long count) {
    count >= lanes ? store(p, v) : store_masked(p, v, count);
}

// The sum of the lanes, by halves.
inline float total(Floats v) {
    float held[lanes];
    store(held, v);
    for (int half = lanes / 2; half > 0; half /= 2)
        for (int i = 0; i < half; i++) held[i] += held[i + half];
    return held[0];
}

// 0, 1, 2, ...
inline Ints counting() {
    Ints index;
    for (int i = 0; i < lanes; i++) index[i] = i;
    return index;
}

inline Floats magnitude(Floats x) { return (Floats)((Ints)x & 0x7fffffff); }

inline Floats with_sign_of(Floats x, Floats sign) {
    return (Floats)(((Ints)x & 0x7fffffff) | ((Words)sign & 0x80000000u));
}

// 2^x, exactly 1 at 0; 0 below -126 or less, infinite above 128, NaN for NaN.
inline Floats exponential2(Floats x) {
#if defined(__AVX512F__)
    Floats n = (Floats)_mm512_maskz_roundscale_ps(0xffff, (__m512)x, 8), f = x - n;
#else
    Ints low = x < all(-126.0f), high = x >= all(128.0f);
    Floats n = (x + 12582912.0f) - 12582912.0f, f = x - n;
#endif
    Floats p = all(1.547801218e-4f);
    p = p * f + 1.340043167e-3f;
    p = p * f + 9.617994552e-3f;
    p = p * f + 5.550327216e-2f;
    p = p * f + 2.402265150e-1f;
    p = p * f + 6.931472067e-1f;
    p = p * f + 1.0f;
#if defined(__AVX512F__)
    return (Floats)_mm512_maskz_scalef_ps(0xffff, (__m512)p, (__m512)n);
#else
    Ints half = __builtin_convertvector(n, Ints) >> 1, rest = __builtin_convertvector(n, Ints) - half;
    Floats y = p * (Floats)((half + 127) << 23) * (Floats)((rest + 127) << 23);
    y = select(low, Floats{}, y);
    y = select(high, all(INFINITY), y);
    return select(x == x, y, x);
#endif
}

// e^x to 1.2e-7 relative; 0 below -87.3 or less, and NaN for NaN. Without instructions for powers of two by Cephes'
// polynomial over [-ln 2 / 2, ln 2 / 2].
inline Floats power_of_e(Floats x) {
#if defined(__AVX512F__)
    Floats c = (Floats)_mm512_maskz_min_ps(0xffff, (__m512)all(89.0f), _mm512_maskz_max_ps(0xffff, (__m512)all(-104.0f), (__m512)x));
    Floats n = (Floats)_mm512_maskz_roundscale_ps(0xffff, (__m512)(c * 1.44269504088896341f), 8);
    Floats f = c - n * 0.693359375f + n * 2.12194440e-4f;
    Floats p = all(1.3888889e-3f);
    p = p * f + 8.3333335e-3f;
    p = p * f + 4.1666668e-2f;
    p = p * f + 1.6666667e-1f;
    p = p * f + 0.5f;
    p = p * f + 1.0f;
    p = p * f + 1.0f;
    return (Floats)_mm512_maskz_scalef_ps(0xffff, (__m512)p, (__m512)n);
#else
    Ints low = x < all(-87.3f), high = x > all(88.7f);
    Floats t = x * 1.44269504088896341f;
    Floats n = (t + 12582912.0f) - 12582912.0f;
    Floats r = x - n * 0.693359375f + n * 2.12194440e-4f;
    Floats p = all(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    Ints scale = (__builtin_convertvector(n, Ints) + 127) << 23;
    Floats y = p * (Floats)scale;
    y = select(low, Floats{}, y);
    y = select(high, all(INFINITY), y);
    return select(x == x, y, x);
#endif
}

// e^x - 1, to full relative precision also near 0.
inline Floats exponential_minus_one(Floats x) {
    Floats p = all(1.999680957e-4f);
    p = p * x + 1.399778304e-3f;
    p = p * x + 8.333052203e-3f;
    p = p * x + 4.166530389e-2f;
    p = p * x + 1.666666836e-1f;
    p = p * x + 5.000000426e-1f;
    p = p * x + 1.0f;
    return select(magnitude(x) < all(0.5f), p * x, power_of_e(x) - 1.0f);
}

inline Floats logistic(Floats x) { return 1.0f / (1.0f + power_of_e(-x)); }

// tanh below 0.6.
inline Floats small_tanh_of(Floats x) {
    Floats z = x * x, p = all(-5.863211393e-3f);
    p = p * z + 2.076358065e-2f;
    p = p * z - 5.377184493e-2f;
    p = p * z + 1.333172943e-1f;
    p = p * z - 3.333328508e-1f;
    return x + x * z * p;
}

inline Floats tanh_of(Floats x) {
    Floats m = magnitude(x), large = 1.0f - 2.0f / (power_of_e(2.0f * m) + 1.0f);
    return select(m < all(0.6f), small_tanh_of(x), with_sign_of(large, x));
}

// erf: a polynomial below 1, and 1 - e^(-Q) with a polynomial Q above.
inline Floats erf_of(Floats x) {
    Floats z = x * x, m = magnitude(x);
    Floats p = all(7.889115087e-5f);
    p = p * z - 8.020839950e-4f;
    p = p * z + 5.189535190e-3f;
    p = p * z - 2.685444451e-2f;
    p = p * z + 1.128360017e-1f;
    p = p * z - 3.761262714e-1f;
    p = p * z + 1.128379166f;
    Floats c = select(m > all(4.0f), all(4.0f), m);
    Floats q = all(2.168695163e-5f);
    q = q * c - 4.413376278e-4f;
    q = q * c + 4.204568331e-3f;
    q = q * c - 2.520827488e-2f;
    q = q * c + 1.084186073e-1f;
    q = q * c + 6.332198639e-1f;
    q = q * c + 1.129578440f;
    q = q * c - 1.880436745e-4f;
    Floats large = select(m > all(4.0f), all(1.0f), 1.0f - power_of_e(-q));
    Floats y = select(m < all(1.0f), x * p, with_sign_of(large, x));
    return select(x == x, y, x);
}

// tanh and erf as x P(x^2) / Q(x^2) up to `most` and 1 beyond, in half the steps of the above, and to three units in the last
// place instead of one. All coefficients are positive, so nothing cancels.
template <int over, int under>
inline Floats odd_quotient(Floats x, const float (&numerator)[over], const float (&denominator)[under], float most) {
    Floats m = magnitude(x), z = m * m, p = all(numerator[over - 1]), q = all(denominator[under - 1]);
    for (int i = over - 2; i >= 0; i--) p = p * z + numerator[i];
    for (int i = under - 2; i >= 0; i--) q = q * z + denominator[i];
    Floats y = m * p / q;
    return with_sign_of(select((m > all(most)) | (y > all(1.0f)), all(1.0f), y), x);
}

// Each point function gives its value, and its slope where that is asked for.
struct Identity {
    static Floats value(Floats x) { return x; }
    static Floats slope(Floats, Floats) { return all(1.0f); }
};

struct Sigmoid {
    static Floats value(Floats x) { return logistic(x); }
    static Floats slope(Floats, Floats y) { return y * (1.0f - y); }
};

struct Relu {
    static Floats value(Floats x) { return select(x < Floats{}, Floats{}, x); }
    static Floats slope(Floats x, Floats) { return select(x <= Floats{}, Floats{}, all(1.0f)); }
};

struct Silu {
    static Floats value(Floats x) { return x / (1.0f + power_of_e(-x)); }
    static Floats slope(Floats x, Floats y) { return logistic(x) * (1.0f + x - y); }
};

struct Gelu {
    static Floats value(Floats x) { return 0.5f * x * (1.0f + erf_of(x * 0.70710678f)); }
    static Floats slope(Floats x, Floats) {
        return 0.5f * (1.0f + erf_of(x * 0.70710678f)) + x * 0.39894228f * power_of_e(-0.5f * x * x);
    }
};

struct GeluTanh {
    static Floats value(Floats x) { return 0.5f * x * (1.0f + tanh_of(0.79788456f * (x + 0.044715f * x * x * x))); }
    static Floats slope(Floats x, Floats) {
        Floats t = tanh_of(0.79788456f * (x + 0.044715f * x * x * x));
        return 0.5f * (1.0f + t) + 0.5f * x * (1.0f - t * t) * 0.79788456f * (1.0f + 0.134145f * x * x);
    }
};

struct Tanh {
    static Floats value(Floats x) {
        return odd_quotient(x, {1.0f, 1.409921226e-1f, 4.425952486e-3f, 4.227382071e-5f, 1.111764901e-7f, 3.674459273e-11f},
                            {1.0f, 4.743254555e-1f, 2.920110505e-2f, 5.008348198e-4f, 2.603861887e-6f, 2.951191124e-9f}, 9.02f);
    }
    static Floats slope(Floats, Floats y) { return 1.0f - y * y; }
};

struct Erf {
    static Floats value(Floats x) {
        return odd_quotient(x, {1.128379170f, 1.924252509e-1f, 5.556912621e-2f, 4.191995141e-3f, 4.053029430e-4f,
                                6.572486286e-6f},
                            {1.0f, 5.038658590e-1f, 1.172015735e-1f, 1.620664701e-2f, 1.406451072e-3f, 7.099603885e-5f,
                             2.480806446e-7f}, 3.92f);
    }
    static Floats slope(Floats x, Floats) { return 1.12837917f * power_of_e(-x * x); }
};

}  // namespace
