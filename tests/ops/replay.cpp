// Makes kept calls of kernels again (tests/laws/kernel_calls.py): `replay LIBRARY CALLS RESULTS` writes what every buffer
// holds after its call, one behind the other.
//
// Whole numbers and pointers are handed over in registers of one kind and then on the stack, real numbers in registers of
// another: by the calling conventions of 64-bit Arm and x86, one type of function serves for all kernels.

#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

namespace {

constexpr int whole_numbers = 24, real_numbers = 8;
using W = int64_t;
using R = double;
using Kernel = void (*)(W, W, W, W, W, W, W, W, W, W, W, W, W, W, W, W, W, W, W, W, W, W, W, W, R, R, R, R, R, R, R, R);

enum Kind : int64_t { integer, real, pointer };

void need(bool fine, const char* what) {
    if (fine) return;
    std::fprintf(stderr, "%s\n", what);
    std::exit(1);
}

class File {
   public:
    explicit File(const char* path) : file_(std::fopen(path, "rb")) { need(file_, "the calls cannot be read"); }
    bool word(int64_t& value) { return std::fread(&value, 8, 1, file_) == 1; }
    int64_t word() {
        int64_t value = 0;
        need(word(value), "the calls end early");
        return value;
    }
    void bytes(void* to, size_t size) { need(std::fread(to, 1, size, file_) == size, "the calls end early"); }
    void skip(size_t size) { need(!std::fseek(file_, (long)size, SEEK_CUR), "the calls end early"); }

   private:
    FILE* file_;
};

struct Memory {
    void* at;
    size_t size;
};

Memory read_memory(File& calls) {
    calls.word();
    size_t size = (size_t)calls.word();
    Memory memory{std::aligned_alloc(64, size / 64 * 64 + 128), size};
    calls.bytes(memory.at, size);
    calls.skip((size_t)calls.word());
    return memory;
}

void call(Kernel kernel, const W* w, const R* r) {
    kernel(w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7], w[8], w[9], w[10], w[11], w[12], w[13], w[14], w[15], w[16], w[17],
           w[18], w[19], w[20], w[21], w[22], w[23], r[0], r[1], r[2], r[3], r[4], r[5], r[6], r[7]);
}

}  // namespace

int main(int, char** arguments) {
    void* library = dlopen(arguments[1], RTLD_NOW);
    need(library, "the library cannot be opened");
    File calls(arguments[2]);
    FILE* results = std::fopen(arguments[3], "wb");
    for (int64_t length; calls.word(length);) {
        std::string name((size_t)length, ' ');
        calls.bytes(&name[0], name.size());
        W whole[whole_numbers] = {};
        R reals[real_numbers] = {};
        int wholes = 0, real_count = 0;
        std::vector<Memory> memories;
        for (int64_t left = calls.word(); left > 0; left--) memories.push_back(read_memory(calls));
        for (int64_t left = calls.word(); left > 0; left--) {
            int64_t kind = calls.word();
            need(wholes < whole_numbers && real_count < real_numbers, "a call has too many arguments");
            if (kind == real) {
                calls.bytes(&reals[real_count++], 8);
                continue;
            }
            int64_t value = calls.word();
            whole[wholes++] = kind == pointer ? (W)memories[(size_t)value].at + calls.word() : value;
        }
        void* found = dlsym(library, name.c_str());
        need(found, name.c_str());
        call((Kernel)found, whole, reals);
        for (const Memory& memory : memories) {
            std::fwrite(memory.at, 1, memory.size, results);
            std::free(memory.at);
        }
    }
    std::fclose(results);
}
