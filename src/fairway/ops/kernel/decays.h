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
        Floats row[piece / lanes] = {};
        long from = 0;
        float reached = 1.0f;
        for (long i = 0; i < length; i++) {
            cut[i] = starts && starts[i];
            if (cut[i]) from = i;
            first[i] = from;
            entering[i] = reached = cut[i] ? 0.0f : reached * step[i];
            for (long j = 0; j < piece; j += lanes) {
                Floats before = from == i ? Floats{} : row[j / lanes] * step[i];
                row[j / lanes] = select(counting() == (int)(i - j), all(1.0f), before);
                store(pair[i] + j, row[j / lanes]);
            }
        }
    }
};

}  // namespace
