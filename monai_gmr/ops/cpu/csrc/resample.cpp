// Product of one axis of an image with a matrix whose rows are nonzero in a few neighbouring columns: interpolation, filters, windows.

#include "kernels.h"
#include "vectors.h"

namespace {

constexpr index FLOATS_OF_A_STRIP = 1024;

template <typename T, int UNITS> inline void sum_row(const float* weights, index width, const float* from, index step, float* to) {
    constexpr int lanes = sizeof(T) / sizeof(float);
    T sums[UNITS];
    set_to_zero(sums);
    for (index k = 0; k < width; ++k)
#pragma GCC unroll 8
        for (int u = 0; u < UNITS; ++u) sums[u] += weights[k] * load<T>(from + k * step + u * lanes);
#pragma GCC unroll 8
    for (int u = 0; u < UNITS; ++u) store(to + u * lanes, sums[u]);
}

}  // namespace

KERNEL resample(const ResampleGeometry* geometry, const index* first, const float* weights, const float* x, float* result) {
    const ResampleGeometry& g = *geometry;
    const index strips = (g.after + FLOATS_OF_A_STRIP - 1) / FLOATS_OF_A_STRIP;
#pragma omp parallel for schedule(static) num_threads(g.threads)
    for (index number = 0; number < g.before * strips; ++number) {
        const index begin = number % strips * FLOATS_OF_A_STRIP, count = std::min(FLOATS_OF_A_STRIP, g.after - begin);
        for (index j = 0; j < g.target; ++j) {
            const float* from = x + (number / strips * g.size + first[j]) * g.after + begin;
            const float* row = weights + j * g.width;
            float* to = result + (number / strips * g.target + j) * g.after + begin;
            index i = 0;
            for (; i + 4 * LANES <= count; i += 4 * LANES) sum_row<vector, 4>(row, g.width, from + i, g.after, to + i);
            for (; i + LANES <= count; i += LANES) sum_row<vector, 1>(row, g.width, from + i, g.after, to + i);
            for (; i < count; ++i) sum_row<float, 1>(row, g.width, from + i, g.after, to + i);
        }
    }
}
