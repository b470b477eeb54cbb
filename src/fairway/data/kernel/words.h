// A table keyed by words, and the words of a text looked for in it together.

#pragma once

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "../../ops/kernel/scratch.h"
#include "scan.h"

namespace {

constexpr long longest_short = 15;

// Numbers in a row that can grow; what it holds may move.
template <class T>
struct List {
    T* data = nullptr;
    long size = 0, room = 0;

    List() = default;
    List(const List&) = delete;
    List& operator=(const List&) = delete;
    ~List() { free((void*)data); }

    T* extend(long count) {
        if (size + count > room) {
            room = 2 * (size + count) + 64;
            data = (T*)realloc((void*)data, (size_t)room * sizeof(T));
            if (!data) std::abort();
        }
        size += count;
        return data + size - count;
    }
    void push(T value) { *extend(1) = value; }
    T& operator[](long i) const { return data[i]; }
};

// Zeros; many of them lie in large pages where the system has them, as places far apart are asked for.
inline void* zeros(size_t bytes) {
    constexpr size_t page = 1 << 21;
    void* found;
#ifdef MADV_HUGEPAGE
    if (bytes >= page) {
        found = aligned_alloc(page, (bytes + page - 1) & ~(page - 1));
        if (!found) std::abort();
        madvise(found, bytes, MADV_HUGEPAGE);
        return std::memset(found, 0, bytes);
    }
#endif
    found = calloc(1, bytes);
    if (!found) std::abort();
    return found;
}

// A short word is its own key; a longer one is its hash, its length and its place in the table's memory.
struct Key {
    uint64_t low, high;
};

struct Probe {
    Key key;
    uint64_t hash;
};

inline uint64_t mixed(uint64_t low, uint64_t high) {
    unsigned __int128 product = (unsigned __int128)(low ^ 0x9E3779B97F4A7C15u) * (high ^ 0xD6E8FEB86659FD93u);
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

// `room`: sixteen bytes may be read from where the word begins.
inline Key short_key(const uint8_t* word, long size, [[maybe_unused]] bool room) {
#if defined(__AVX512BW__) && defined(__AVX512VL__)
    __m128i held = _mm_maskz_loadu_epi8((__mmask16)((1u << size) - 1), word);
    uint64_t low = (uint64_t)_mm_cvtsi128_si64(held), high = (uint64_t)_mm_extract_epi64(held, 1);
    return {low, high | (uint64_t)size << 56};
#else
    static const uint64_t ones[4] = {~0ull, ~0ull, 0, 0};
    uint64_t half[2] = {}, kept[2];
    if (__builtin_expect(room, 1)) {
        std::memcpy(half, word, 16);
    } else {
        std::memcpy(half, word, (size_t)size);
    }
    std::memcpy(kept, (const uint8_t*)ones + 16 - size, 16);
    return {half[0] & kept[0], (half[1] & kept[1]) | (uint64_t)size << 56};
#endif
}

inline uint64_t long_hash(const uint8_t* word, long size) {
    uint64_t hash = (uint64_t)size, part;
    for (long i = 0; i + 8 <= size; i += 8) {
        std::memcpy(&part, word + i, 8);
        hash = mixed(hash, part);
    }
    std::memcpy(&part, word + size - 8, 8);
    return mixed(hash, part);
}

template <class Value>
class Table {
   public:
    struct Slot {
        Key key;
        Value value;
    };
    long used = 0;

    // The slots as they lie until a word is added: a copy in registers, which no write through a pointer can change.
    struct View {
        const Slot* slots;
        uint64_t last;

        const Slot& first(const Probe& probe) const { return slots[probe.hash & last]; }
        // The value of a short word that stands where it is first looked for; none otherwise.
        const Value* brief(const Probe& probe) const {
            const Slot& s = first(probe);
            return ((s.key.low ^ probe.key.low) | (s.key.high ^ probe.key.high)) ? nullptr : &s.value;
        }
    };

    View view() const { return {slots, (uint64_t)(count - 1)}; }

    // Where a word would be looked for. `room`: sixteen bytes may be read from where the word begins.
    static Probe probe(const uint8_t* word, long size, bool room) {
        Key key = size <= longest_short ? short_key(word, size, room)
                                        : Key{long_hash(word, size), (uint64_t)(128 + size) << 56};
        return {key, mixed(key.low, key.high)};
    }

    Slot& slot(const uint8_t* word, long size, bool& fresh) { return slot(probe(word, size, false), word, size, fresh); }

    // The slot of a word, made if it is new.
    Slot& slot(const Probe& probe, const uint8_t* word, long size, bool& fresh) {
        if (2 * used >= count) grow();
        Key key = probe.key;
        bool brief = size <= longest_short;
        long at = (long)(probe.hash & (uint64_t)(count - 1));
        for (;; at = (at + 1) & (count - 1)) {
            Slot& s = slots[at];
            if (!s.key.high) break;
            if (s.key.low == key.low && (brief ? s.key.high == key.high : same(s.key, key, word, size))) {
                fresh = false;
                return s;
            }
        }
        if (!brief) {
            key.high |= (uint64_t)bytes.size + 1;  // so that it never equals the key that is looked for
            std::memcpy(bytes.extend(size), word, (size_t)size);
        }
        used++;
        fresh = true;
        slots[at].key = key;
        return slots[at];
    }

    void clear() {
        used = bytes.size = 0;
        if (count) std::memset((void*)slots, 0, (size_t)count * sizeof(Slot));
    }

    // Calls `take(word, size, value)` for every word.
    template <class Take>
    void each(Take take) const {
        for (long i = 0; i < count; i++) {
            const Key& key = slots[i].key;
            if (!key.high) continue;
            long size = (long)(key.high >> 56);
            take(size < 128 ? (const uint8_t*)&key : bytes.data + offset(key), size & 127, slots[i].value);
        }
    }

    Table() = default;
    Table(const Table&) = delete;
    Table& operator=(const Table&) = delete;
    ~Table() { free((void*)slots); }

   private:
    Slot* slots = nullptr;
    long count = 0;
    List<uint8_t> bytes;

    static long offset(const Key& key) { return (long)(key.high & 0xffffffffffffffull) - 1; }

    bool same(const Key& held, const Key& key, const uint8_t* word, long size) const {
        return held.high >> 56 == key.high >> 56 && !std::memcmp(bytes.data + offset(held), word, (size_t)size);
    }

    void grow() {
        long before = count;
        Slot* old = slots;
        count = before ? 2 * before : 1 << 12;
        slots = (Slot*)zeros((size_t)count * sizeof(Slot));
        for (long i = 0; i < before; i++) {
            if (!old[i].key.high) continue;
            Key key = old[i].key;
            if (key.high >> 63) key.high &= 0xffull << 56;
            long at = (long)(mixed(key.low, key.high) & (uint64_t)(count - 1));
            while (slots[at].key.high) at = (at + 1) & (count - 1);
            slots[at] = old[i];
        }
        free((void*)old);
    }
};

// Some words of a text looked for together, so that their slots are on the way before the first is read.
template <class Value>
class Batch {
   public:
    Probe probes[Scanner::most];
    long bounds[Scanner::room];  // word i lies in [bounds[i], bounds[i + 1])
    long count;

    Batch(const Splitter& splitter, const uint8_t* text, long size) : scanner(splitter, text, size), text(text), size(size) {}

    // The next words; false where there are none.
    bool next(const Table<Value>& table) {
        count = scanner.next(bounds);
        typename Table<Value>::View view = table.view();
        const uint8_t* from = text;
        for (long i = 0, words = count, end = size; i < words; i++) {
            long at = bounds[i];
            probes[i] = Table<Value>::probe(from + at, bounds[i + 1] - at, at + 16 <= end);
            if (view.slots) __builtin_prefetch(&view.first(probes[i]));
        }
        return count > 0;
    }

   private:
    Scanner scanner;
    const uint8_t* text;
    long size;
};

}  // namespace
