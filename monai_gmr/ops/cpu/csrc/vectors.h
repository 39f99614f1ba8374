// Vectors of the processor that a library is built for, and memory that is kept between calls.

#pragma once

#include <omp.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <numeric>
#include <type_traits>
#include <vector>

#if defined(__AVX__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16;
#else
constexpr int LANES = 8;
#endif

using index = std::int64_t;
typedef float vector __attribute__((vector_size(4 * LANES)));
typedef float unaligned __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

template <typename T> inline T load(const float* from);
template <> inline vector load<vector>(const float* from) { return *reinterpret_cast<const unaligned*>(from); }
template <> inline float load<float>(const float* from) { return *from; }
inline void store(float* to, vector value) { *reinterpret_cast<unaligned*>(to) = value; }
inline void store(float* to, float value) { *to = value; }

inline float square_root(float value) { return __builtin_sqrtf(value); }
inline vector square_root(vector value) {
#if defined(__AVX512F__)
    return _mm512_sqrt_ps(value);
#elif defined(__AVX__)
    return _mm256_sqrt_ps(value);
#else
    for (int lane = 0; lane < LANES; ++lane) value[lane] = __builtin_sqrtf(value[lane]);
    return value;
#endif
}

// element by element: the compiler keeps arrays that are set to {} as a whole in memory, not in registers
template <typename T, int N> inline void set_to_zero(T (&array)[N]) {
#pragma GCC unroll 32
    for (int i = 0; i < N; ++i) {
        if constexpr (std::is_array_v<T>)
            set_to_zero(array[i]);
        else
            array[i] = T{};
    }
}

constexpr index VOXELS_OF_A_TILE = 64;

// rows of matrices are padded to the longest vectors
inline index rounded_up(index n) { return (n + 15) / 16 * 16; }
// and computed in whole vectors of this processor
inline index in_vectors(index n) { return (n + LANES - 1) / LANES * LANES; }

}  // namespace

// memory of a thread, reused by the next call of any kernel
class Scratch {
    std::vector<float> memory;

  public:
    // aligned pieces of the given numbers of floats
    template <std::size_t N> std::array<float*, N> share(const index (&floats)[N]) {
        index total = LANES;
        for (index each : floats) total += rounded_up(each);
        if (index(memory.size()) < total) memory.assign(total, 0.0f);
        float* next = memory.data();
        while (reinterpret_cast<std::uintptr_t>(next) % sizeof(vector)) ++next;
        std::array<float*, N> pieces;
        for (std::size_t i = 0; i < N; next += rounded_up(floats[i]), ++i) pieces[i] = next;
        return pieces;
    }
};

inline thread_local Scratch scratch;

// sums of each thread of a parallel region, arrays of count numbers
template <typename T> class SumsOfThreads {
    std::unique_ptr<T[]> memory;
    index count;

  public:
    // allocates only if asked
    SumsOfThreads(bool asked, index threads, index count) : memory(asked ? new T[threads * count] : nullptr), count(count) {}
    // this thread's, set to zero, or null
    T* own() const {
        if (!memory) return nullptr;
        T* sums = memory.get() + omp_get_thread_num() * count;
        std::fill(sums, sums + count, T{});
        return sums;
    }
    // sums of a thread of the region
    const T* of(index thread) const { return memory.get() + thread * count; }
};
