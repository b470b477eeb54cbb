// Byte-pair encoding of texts, and pieces joined to text again: see data/tokenizer/bpe.py for the definition.

#include "words.h"

#ifdef _OPENMP
extern "C" int omp_get_thread_num(void);
#endif

namespace {

constexpr uint32_t never = 0xffffffffu;
constexpr long most_words = 1 << 18;

// For each pair that is merged its rank and the id it makes.
struct Merges {
    struct Entry {
        uint64_t pair;
        uint32_t rank, made;
    };
    long count;
    Scratch<Entry> entries;

    static long power_above(long n) {
        long power = 64;
        while (power < n) power *= 2;
        return power;
    }

    // A pair's key is the pair plus one, so that nothing is zero.
    static uint64_t key(uint32_t left, uint32_t right) { return ((uint64_t)left << 32 | right) + 1; }
    static uint64_t place(uint64_t pair) { return (pair * 0x9E3779B97F4A7C15u) >> 20; }

    Merges(const uint32_t* left, const uint32_t* right, const uint32_t* made, long merges)
        : count(power_above(3 * merges)), entries(count) {
        for (long rank = 0; rank < merges; rank++) {
            uint64_t pair = key(left[rank], right[rank]);
            long at = (long)(place(pair) & (uint64_t)(count - 1));
            while (entries[at].pair) at = (at + 1) & (count - 1);
            entries[at] = {pair, (uint32_t)rank, made[rank]};
        }
    }

    uint32_t find(uint32_t left, uint32_t right, uint32_t& made) const {
        uint64_t pair = key(left, right);
        for (long at = (long)(place(pair) & (uint64_t)(count - 1)); entries[at].pair; at = (at + 1) & (count - 1)) {
            if (entries[at].pair == pair) {
                made = entries[at].made;
                return entries[at].rank;
            }
        }
        return never;
    }

    // The earliest merge present, leftmost first, until none is; returns the number of ids.
    long cut(const uint8_t* word, long size, uint32_t* ids) const {
        uint32_t rank[longest_word], made[longest_word];
        for (long i = 0; i < size; i++) ids[i] = word[i];
        for (long i = 0; i + 1 < size; i++) rank[i] = find(ids[i], ids[i + 1], made[i]);
        for (;;) {
            long best = 0;
            for (long i = 1; i + 1 < size; i++) best = rank[i] < rank[best] ? i : best;
            if (size < 2 || rank[best] == never) return size;
            ids[best] = made[best];
            size--;
            for (long i = best + 1; i < size; i++) ids[i] = ids[i + 1], rank[i - 1] = rank[i], made[i - 1] = made[i];
            if (best > 0) rank[best - 1] = find(ids[best - 1], ids[best], made[best - 1]);
            if (best + 1 < size) rank[best] = find(ids[best], ids[best + 1], made[best]);
        }
    }
};

// The ids of a word: as many as fit into sixteen bytes here, more of them at `place` in the lane's store.
template <class Id>
struct Cut {
    static constexpr long most = 16 / sizeof(Id) - 1;
    Id ids[most], count;

    uint32_t place() const {
        uint32_t found;
        std::memcpy(&found, ids, sizeof found);
        return found;
    }
};

template <class Id>
class Lane {
   public:
    Table<Cut<Id>> words;
    List<Id> store;

    // Makes room for some words.
    void expect(long count) {
        if (words.used + count > most_words) words.clear(), store.size = 0;
    }

    // Writes the ids of a batch of words; returns where the next word's go.
    Id* write(const Merges& merges, const Batch<Cut<Id>>& batch, const uint8_t* text, long size, Id* to) {
        typename Table<Cut<Id>>::View view = words.view();
        for (long i = 0, count = batch.count; i < count; i++) {
            long from = batch.bounds[i];
            const Cut<Id>* cut = view.slots ? view.brief(batch.probes[i]) : nullptr;
            if (__builtin_expect(cut && cut->count <= Cut<Id>::most && size - from > Cut<Id>::most, 1)) {
                std::memcpy(to, cut, sizeof *cut);  // ids never outnumber the bytes read, so that all of them fit
                to += cut->count;
            } else {
                to = write(merges, batch.probes[i], text + from, batch.bounds[i + 1] - from, size - from, to);
                view = words.view();
            }
        }
        return to;
    }

   private:
    // Writes a word's ids, with `left` bytes of text from its first on; returns where the next word's go.
    __attribute__((noinline)) Id* write(const Merges& merges, const Probe& probe, const uint8_t* word, long size, long left, Id* to) {
        bool fresh = false;
        Cut<Id>& cut = words.slot(probe, word, size, fresh).value;
        if (fresh) learn(cut, merges, word, size);
        if (cut.count <= Cut<Id>::most && left > Cut<Id>::most) {
            std::memcpy(to, &cut, sizeof cut);
        } else {
            const Id* ids = cut.count <= Cut<Id>::most ? cut.ids : store.data + cut.place();
            std::memcpy(to, ids, cut.count * sizeof(Id));
        }
        return to + cut.count;
    }

    void learn(Cut<Id>& cut, const Merges& merges, const uint8_t* word, long size) {
        uint32_t ids[longest_word];
        cut.count = (Id)merges.cut(word, size, ids);
        Id* kept = cut.ids;
        if (cut.count > Cut<Id>::most) {
            uint32_t place = (uint32_t)store.size;
            std::memcpy(cut.ids, &place, sizeof place);
            kept = store.extend(cut.count);
        }
        for (long i = 0; i < cut.count; i++) kept[i] = (Id)ids[i];
    }
};

class Encoder {
   public:
    virtual ~Encoder() = default;
    // Each text's ids from its start in `out` on, and their numbers in `counts`.
    virtual void encode(const uint8_t* const* texts, const long* sizes, const long* starts, long* counts, long count,
                        void* out, long lanes) = 0;
};

template <class Id>
class EncoderOf final : public Encoder {
   public:
    EncoderOf(const uint8_t* kinds, long digits, long prefix, const uint32_t* left, const uint32_t* right,
              const uint32_t* made, long count, long lane_count)
        : splitter(kinds, digits, prefix), merges(left, right, made, count), lanes(new Lane<Id>[lane_count]) {}
    EncoderOf(const EncoderOf&) = delete;
    EncoderOf& operator=(const EncoderOf&) = delete;
    ~EncoderOf() override { delete[] lanes; }

    void encode(const uint8_t* const* texts, const long* sizes, const long* starts, long* counts, long count, void* out,
                long lane_count) override {
#pragma omp parallel num_threads(lane_count) if (lane_count > 1 && count > 1)
        {
#ifdef _OPENMP
            Lane<Id>& lane = lanes[omp_get_thread_num()];
#else
            Lane<Id>& lane = lanes[0];
#endif
#pragma omp for schedule(dynamic)
            for (long i = 0; i < count; i++) counts[i] = encode(lane, texts[i], sizes[i], (Id*)out + starts[i]);
        }
    }

   private:
    Splitter splitter;
    Merges merges;
    Lane<Id>* lanes;

    long encode(Lane<Id>& lane, const uint8_t* text, long size, Id* out) const {
        Batch<Cut<Id>> batch(splitter, text, size);
        Id* to = out;
        while (batch.next(lane.words)) {
            lane.expect(batch.count);
            to = lane.write(merges, batch, text, size, to);
        }
        return to - out;
    }
};

template <class Id>
void join(const Id* ids, long count, const uint8_t* pieces, const long* starts, uint8_t* out, long size) {
    long at = 0;
    for (long i = 0; i < count; i++) {
        long from = starts[ids[i]], length = starts[ids[i] + 1] - from;
        if (length <= 16 && at + 16 <= size) {
            std::memcpy(out + at, pieces + from, 16);
        } else {
            std::memcpy(out + at, pieces + from, (size_t)length);
        }
        at += length;
    }
}

}  // namespace

// kinds: a Kind for each byte. digits: how many make a word at most. left, right, made: the merges in their order.
// width: the bytes of an id.
FAIRWAY_EXPORT(bpe_open)
(void** handle, const uint8_t* kinds, long digits, long prefix, const uint32_t* left, const uint32_t* right,
 const uint32_t* made, long count, long width, long lanes) {
    Encoder* encoder;
    if (width == 2) {
        encoder = new EncoderOf<uint16_t>(kinds, digits, prefix, left, right, made, count, lanes);
    } else {
        encoder = new EncoderOf<uint32_t>(kinds, digits, prefix, left, right, made, count, lanes);
    }
    *handle = encoder;
}

FAIRWAY_EXPORT(bpe_close)(void* handle) { delete (Encoder*)handle; }

// out: room for as many ids as bytes, each text's from its start on; counts receives how many there are.
FAIRWAY_EXPORT(bpe_encode)
(void* handle, const uint8_t* const* texts, const long* sizes, const long* starts, long* counts, long count, void* out,
 long lanes) {
    ((Encoder*)handle)->encode(texts, sizes, starts, counts, count, out, lanes);
}

// pieces: the pieces one after another and sixteen bytes more; piece i lies in [starts[i], starts[i + 1]).
FAIRWAY_EXPORT(pieces_join)
(const void* ids, long width, long count, const uint8_t* pieces, const long* starts, uint8_t* out, long size) {
    if (width == 2) {
        join((const uint16_t*)ids, count, pieces, starts, out, size);
    } else {
        join((const uint32_t*)ids, count, pieces, starts, out, size);
    }
}
