// Working memory that begins where a cache line does.
//
// Own code instead of std::vector: an instance of a library template has external linkage, so the linker would keep one for
// all instruction levels, perhaps one that the machine cannot run.

#pragma once

#include <cstdlib>
#include <cstring>

namespace {

template <class T>
class Scratch {
   public:
    // Zeros, unless they are not asked for.
    explicit Scratch(long count, bool zeros = true) {
        size_t bytes = ((size_t)count * sizeof(T) + 127) & ~(size_t)63;
        memory = (T*)aligned_alloc(64, bytes);
        if (!memory) std::abort();
        if (zeros) std::memset((void*)memory, 0, bytes);
    }
    ~Scratch() { free(memory); }
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
    T* data() const { return memory; }
    T& operator[](long i) const { return memory[i]; }

   private:
    T* memory;
};

// The same, its size asked for again and again; it holds zeros where it has grown, and what it held where it has not.
template <class T>
class Growing {
   public:
    Growing() = default;
    ~Growing() { free(memory); }
    Growing(const Growing&) = delete;
    Growing& operator=(const Growing&) = delete;
    T* data() const { return memory; }

    void resize(long count) {
        if (count <= size) return;
        free(memory);
        size_t bytes = ((size_t)count * sizeof(T) + 127) & ~(size_t)63;
        memory = (T*)aligned_alloc(64, bytes);
        if (!memory) std::abort();
        std::memset((void*)memory, 0, bytes);
        size = count;
    }

    void clear(long count) {
        resize(count);
        std::memset((void*)memory, 0, (size_t)count * sizeof(T));
    }

   private:
    T* memory = nullptr;
    long size = 0;
};

}  // namespace
