// One token drawn from logits: see naive.py for the definition. Weights are float32, sums float64.

#include "../kernel/point.h"
#include "../kernel/scratch.h"

namespace {

// The heaviest token on top, of equal ones the smallest id.
struct Heap {
    const float* weight;
    int32_t* id;
    long size;

    bool before(int32_t a, int32_t b) const { return weight[a] > weight[b] || (weight[a] == weight[b] && a < b); }
    void sink(long i) {
        for (long child; (child = 2 * i + 1) < size; i = child) {
            if (child + 1 < size && before(id[child + 1], id[child])) child++;
            if (!before(id[child], id[i])) return;
            int32_t held = id[i];
            id[i] = id[child], id[child] = held;
        }
    }
    void build() {
        for (long i = size / 2 - 1; i >= 0; i--) sink(i);
    }
    int32_t pop() {
        int32_t top = id[0];
        id[0] = id[--size], sink(0);
        return top;
    }
};

// Zeroes the weights that top-k and top-p do not keep.
void keep(float* weight, long count, long top_k, double top_p, double mass) {
    Scratch<int32_t> id(count);
    Scratch<float> kept(count);
    for (long i = 0; i < count; i++) id[i] = (int32_t)i;
    Heap heap{weight, id.data(), count};
    heap.build();
    long most = top_k && top_k < count ? top_k : count;
    Scratch<int32_t> order(most);
    long ranked = 0;
    if (most < count)
        for (mass = 0; ranked < most; ranked++) mass += weight[order[ranked] = heap.pop()];
    double before = 0;
    for (long i = 0; i < most && (top_p == 0 || before < top_p * mass); i++) {
        int32_t token = i < ranked ? order[i] : heap.pop();
        kept[token] = weight[token];
        before += weight[token];
    }
    std::memcpy(weight, kept.data(), (size_t)count * sizeof(float));
}

long draw(const float* logits, long count, double temperature, long top_k, double top_p, double min_p, double uniform) {
    Scratch<float> weight(count);
    float most = -INFINITY, scale = (float)(1.0 / temperature);
    for (long i = 0; i < count; i++) most = logits[i] > most ? logits[i] : most;
    double mass = 0;
    for (long i = 0; i < count; i += lanes)
        store_part(weight.data() + i, power_of_e((load_part(logits + i, count - i) - most) * scale), count - i);
    for (long i = 0; i < count; i++) mass += weight[i];
    if (!(mass < INFINITY)) return -1;
    if (top_k || top_p > 0) keep(weight.data(), count, top_k, top_p, mass);
    mass = 0;
    for (long i = 0; i < count; i++) {
        if (weight[i] < (float)min_p) weight[i] = 0;
        mass += weight[i];
    }
    double total = 0;
    long last = -1;
    for (long i = 0; i < count; i++) {
        if (weight[i] == 0) continue;
        last = i;
        if ((total += weight[i]) > uniform * mass) break;
    }
    return last;
}

}  // namespace

// top_k, top_p, min_p: 0 where there is none. `chosen` receives the token, or -1 where logits are not finite.
FAIRWAY_EXPORT(sample)
(const float* logits, long count, double temperature, long top_k, double top_p, double min_p, double uniform, long* chosen) {
    *chosen = draw(logits, count, temperature, top_k, top_p, min_p, uniform);
}
