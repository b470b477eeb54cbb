// Counting words and learning merges from them: see data/tokenizer/bpe.py for the definition.

#include <algorithm>

#include "words.h"

#ifdef _OPENMP
extern "C" int omp_get_thread_num(void);
#endif

namespace {

struct Counter {
    Splitter splitter;
    long lane_count;
    Table<uint64_t>* lanes;
    List<uint32_t> left, right;

    Counter(const uint8_t* kinds, long digits, long prefix, long lane_count)
        : splitter(kinds, digits, prefix), lane_count(lane_count), lanes(new Table<uint64_t>[lane_count]) {}
    ~Counter() { delete[] lanes; }

    void add(Table<uint64_t>& lane, const uint8_t* text, long size) const {
        Batch<uint64_t> batch(splitter, text, size);
        while (batch.next(lane)) {
            for (long i = 0; i < batch.count; i++) {
                long from = batch.bounds[i], word = batch.bounds[i + 1] - from;
                bool fresh;
                if (word > 1) lane.slot(batch.probes[i], text + from, word, fresh).value++;
            }
        }
    }

    // All lanes' counts in the first one.
    Table<uint64_t>& together() {
        for (long i = 1; i < lane_count; i++) {
            lanes[i].each([this](const uint8_t* word, long size, uint64_t count) {
                bool fresh;
                lanes[0].slot(word, size, fresh).value += count;
            });
            lanes[i].clear();
        }
        return lanes[0];
    }
};

// A pair of ids: how often it stands in the text, and the words it was seen in.
struct Pair {
    uint32_t left, right;
    int64_t count;
    long words;
    long seen;
    bool merged;
};

// In the heap the highest count comes first, and of equals the lowest pair. Counts there may be out of date, never too low.
struct Candidate {
    int64_t count;
    uint64_t pair;
    bool operator<(const Candidate& other) const {
        return count != other.count ? count < other.count : pair > other.pair;
    }
};

struct Word {
    long start, size;
    int64_t count;
};

// A list of words that share a pair; `next` is the place of the rest, or -1.
struct Link {
    long word, next;
};

class Learner {
   public:
    explicit Learner(const Table<uint64_t>& counts) {
        for (int byte = 0; byte < 256; byte++) {
            uint8_t piece = (uint8_t)byte;
            bool fresh;
            ids.slot(&piece, 1, fresh).value = (uint32_t)byte;
            starts.push(pieces.size);
            pieces.push(piece);
        }
        starts.push(pieces.size);  // the boundary, which has no bytes
        starts.push(pieces.size);
        counts.each([this](const uint8_t* word, long size, uint64_t count) {
            words.push({symbols.size, size, (int64_t)count});
            for (long i = 0; i < size; i++) symbols.push(word[i]);
        });
        for (long w = 0; w < words.size; w++) count_pairs(w, 0, words[w].size - 1);
        for (long i = 0; i < pairs.size; i++) propose(i);
    }

    // Merges until there are `vocabulary` ids or no pair comes twice.
    void learn(long vocabulary, List<uint32_t>& left, List<uint32_t>& right) {
        while (starts.size - 1 < vocabulary && heap.size) {
            Candidate best = heap[0];
            std::pop_heap(heap.data, heap.data + heap.size);
            heap.size--;
            long index = find((uint32_t)(best.pair >> 32), (uint32_t)best.pair);
            if (pairs[index].count != best.count) {
                propose(index);
                continue;
            }
            // A merged pair can come back where its left half is made otherwise; encoding merges it by its first rank.
            if (!pairs[index].merged) left.push(pairs[index].left), right.push(pairs[index].right);
            merge(index);
        }
    }

   private:
    Table<uint32_t> ids;
    List<uint8_t> pieces;
    List<long> starts;
    List<uint32_t> symbols;
    List<Word> words;
    List<Pair> pairs;
    Table<uint32_t> places;
    List<Link> links;
    List<Candidate> heap;
    List<long> changed;
    long round = 0;

    long find(uint32_t left, uint32_t right) {
        uint32_t pair[2] = {left, right};
        bool fresh;
        auto& slot = places.slot((const uint8_t*)pair, 8, fresh);
        if (fresh) {
            slot.value = (uint32_t)pairs.size;
            pairs.push({left, right, 0, -1, 0, false});
        }
        return slot.value;
    }

    void propose(long index) {
        const Pair& pair = pairs[index];
        if (pair.count < 2) return;
        heap.push({pair.count, (uint64_t)pair.left << 32 | pair.right});
        std::push_heap(heap.data, heap.data + heap.size);
    }

    // Pairs [from, to) of a word come into being.
    void count_pairs(long w, long from, long to) {
        const Word& word = words[w];
        for (long i = from; i < to; i++) {
            long index = find(symbols[word.start + i], symbols[word.start + i + 1]);
            Pair& pair = pairs[index];
            pair.count += word.count;
            if (pair.words < 0 || links[pair.words].word != w) {
                links.push({w, pair.words});
                pair.words = links.size - 1;
            }
            if (pair.seen != round) {
                pair.seen = round;
                changed.push(index);
            }
        }
    }

    uint32_t made_by(const Pair& pair) {
        uint8_t piece[2 * longest_word];
        long size = 0;
        for (uint32_t id : {pair.left, pair.right}) {
            long length = starts[id + 1] - starts[id];
            std::memcpy(piece + size, pieces.data + starts[id], (size_t)length);
            size += length;
        }
        bool fresh;
        auto& slot = ids.slot(piece, size, fresh);
        if (fresh) {
            slot.value = (uint32_t)(starts.size - 1);
            std::memcpy(pieces.extend(size), piece, (size_t)size);
            starts.push(pieces.size);
        }
        return slot.value;
    }

    void merge(long index) {
        pairs[index].merged = true;
        uint32_t left = pairs[index].left, right = pairs[index].right, made = made_by(pairs[index]);
        long link = pairs[index].words;
        pairs[index].words = -1;
        round++;
        changed.size = 0;
        for (; link >= 0; link = links[link].next) apply(links[link].word, left, right, made);
        for (long i = 0; i < changed.size; i++) propose(changed[i]);
    }

    // Merges a pair in one word; pairs away from the change keep their counts.
    void apply(long w, uint32_t left, uint32_t right, uint32_t made) {
        Word& word = words[w];
        uint32_t* s = symbols.data + word.start;
        long first = 0;
        while (first + 1 < word.size && !(s[first] == left && s[first + 1] == right)) first++;
        if (first + 1 >= word.size) return;
        long last = word.size - 2;
        while (!(s[last] == left && s[last + 1] == right)) last--;
        long stop = last + 2 < word.size ? last + 2 : word.size - 1;
        for (long i = first ? first - 1 : 0; i < stop; i++) pairs[find(s[i], s[i + 1])].count -= word.count;
        long to = first, behind = word.size - last - 2;
        for (long i = first; i < word.size; to++) {
            bool here = i + 1 < word.size && s[i] == left && s[i + 1] == right;
            s[to] = here ? made : s[i];
            i += here ? 2 : 1;
        }
        word.size = to;
        stop = to - behind < to ? to - behind : to - 1;
        count_pairs(w, first ? first - 1 : 0, stop);
    }
};

}  // namespace

// kinds: a Kind for each byte. digits: how many make a word at most.
FAIRWAY_EXPORT(words_open)(void** handle, const uint8_t* kinds, long digits, long prefix, long lanes) {
    *handle = new Counter(kinds, digits, prefix, lanes);
}

FAIRWAY_EXPORT(words_close)(void* handle) { delete (Counter*)handle; }

FAIRWAY_EXPORT(words_add)(void* handle, const uint8_t* const* texts, const long* sizes, long count, long lanes) {
    Counter& counter = *(Counter*)handle;
#pragma omp parallel num_threads(lanes) if (lanes > 1 && count > 1)
    {
#ifdef _OPENMP
        auto& lane = counter.lanes[omp_get_thread_num()];
#else
        auto& lane = counter.lanes[0];
#endif
#pragma omp for schedule(dynamic)
        for (long i = 0; i < count; i++) counter.add(lane, texts[i], sizes[i]);
    }
}

// Learns the merges of all that was added; `merges` receives how many there are.
FAIRWAY_EXPORT(bpe_learn)(void* handle, long vocabulary, long* merges) {
    Counter& counter = *(Counter*)handle;
    counter.left.size = counter.right.size = 0;
    Learner(counter.together()).learn(vocabulary, counter.left, counter.right);
    *merges = counter.left.size;
}

FAIRWAY_EXPORT(bpe_learned)(void* handle, uint32_t* left, uint32_t* right) {
    const Counter& counter = *(Counter*)handle;
    if (!counter.left.size) return;
    std::memcpy(left, counter.left.data, (size_t)counter.left.size * sizeof *left);
    std::memcpy(right, counter.right.data, (size_t)counter.right.size * sizeof *right);
}
