// Decays of one head between the tokens of a piece of a sequence.

#pragma once

#include "point.h"

namespace {

// Zeros from the lane `count` on.
inline Floats kept_below(Floats x, long count) { return select(counting() < (int)count, x, Floats{}); }

// Products of decays, not quotients: nothing can overflow.
template <int piece>
struct Decays {
    float pair[piece][piece];  // from place j to place i, 1 on the diagonal, 0 where a document begins in between and above
    float entering[piece];     // from the start of the piece to the place, its own decay included
    long first[piece];         // where the place's document begins in this piece
    bool cut[piece];

    // Logarithms of decays lie `stride` apart and may be null; so may `starts`.
    void fill(const float* log_decay, long stride, const bool* starts, long length) {
        float step[piece] = {};
        for (long i = 0; log_decay && i < length; i++) step[i] = log_decay[i * stride];
        for (long j = 0; j < piece; j += lanes) store(step + j, power_of_e(load(step + j)));
        for (long i = 0; i < length; i++) {
            cut[i] = starts && starts[i];
            first[i] = cut[i] ? i : i ? first[i - 1] : 0;
            entering[i] = cut[i] ? 0.0f : i ? entering[i - 1] * step[i] : step[i];
            for (long j = 0; j < piece; j += lanes)
                store(pair[i] + j, first[i] == i ? Floats{} : load(pair[i - 1] + j) * step[i]);
            pair[i][i] = 1.0f;
        }
    }
};

}  // namespace
