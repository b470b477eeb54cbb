// The cheapest path through a trellis; see naive.py.

#include "../kernel/scratch.h"
#include "../kernel/vector.h"

namespace {

// (t - v)^2 + p v^2 rises evenly to both sides of t / (1 + p).
inline double cheapest(double lowest, int residue) { return 4 * std::nearbyint((lowest - residue) / 4) + residue; }

// Which residue modulo 4 a path takes that comes from state `lead / 2` by branch `lead % 2`.
inline int residue(int32_t lead) { return ((lead >> 1) & 1) + 2 * (lead & 1); }

}  // namespace

// Leads: two `2 state + branch` into each state. Best: the value at each target.
FAIRWAY_EXPORT(trellis_search)
(const double* target, const double* price, const int32_t* leads, int32_t* best, long count, long states) {
    Scratch<double> cost(states), after(states), values(4 * count);
    Scratch<uint8_t> second(count * states);
    for (long s = 1; s < states; s++) cost[s] = INFINITY;
    for (long n = 0; n < count; n++) {
        double paid[4], lowest = target[n] / (1 + price[n]);
        for (int r = 0; r < 4; r++) {
            double v = cheapest(lowest, r), error = target[n] - v;
            values[4 * n + r] = v;
            paid[r] = error * error + price[n] * v * v;
        }
        for (long s = 0; s < states; s++) {
            int32_t a = leads[2 * s], b = leads[2 * s + 1];
            double by_a = cost[a >> 1] + paid[residue(a)], by_b = cost[b >> 1] + paid[residue(b)];
            second[n * states + s] = by_b < by_a;
            after[s] = by_b < by_a ? by_b : by_a;
        }
        std::memcpy(cost.data(), after.data(), (size_t)states * sizeof(double));
    }
    long state = 0;
    for (long s = 1; s < states; s++)
        if (cost[s] < cost[state]) state = s;
    for (long n = count - 1; n >= 0; n--) {
        int32_t lead = leads[2 * state + second[n * states + state]];
        best[n] = (int32_t)values[4 * n + residue(lead)];
        state = lead >> 1;
    }
}
