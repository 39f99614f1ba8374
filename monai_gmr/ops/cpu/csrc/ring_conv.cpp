// Radial convolutions: ring sums and matrix products over channels, tile by tile, and their gradients.

#include "kernels.h"
#include "product.h"
#include "ring_sums.h"

namespace {

// The weights of a convolution, (groups, columns, channels, rings), or channels before columns.
struct RingWeights {
    const Geometry& g;
    const index channels, columns;

    explicit RingWeights(const Geometry& g) : g(g), channels(g.channels_of_a_group()), columns(g.columns_of_a_group()) {}

    // calls visit(index of the weight, group, ring, channel, column) for all weights of one channel, numbered over all groups
    template <typename Visit> void of_channel(index number, Visit visit) const {
        const index group = number / channels, channel = number % channels;
        for (index column = 0; column < columns; ++column) {
            const index pair = g.columns_first ? (group * columns + column) * channels + channel : number * columns + column;
            for (index ring = 0; ring < g.rings; ++ring) visit(pair * g.rings + ring, group, ring, channel, column);
        }
    }
    // index in a matrix (groups, rings, channels, columns padded to whole vectors)
    index place(index group, index ring, index channel, index column) const {
        return ((group * g.rings + ring) * channels + channel) * rounded_up(columns) + column;
    }
    index size() const { return g.rings * g.channels * rounded_up(columns); }
};

}  // namespace

CHECKED_KERNEL ring_conv(const RingConvGeometry* geometry, const index* first_taps, const index* taps, const index* sets_of_taps,
                         const index* first_lines, const index* lines, const float* basis, const float* image, const float* weight,
                         const float* bias, float* result) try {
    const Geometry g(*geometry);
    const Tiles tiles(g);
    const Window window(g, tiles, first_taps, taps, sets_of_taps, first_lines, lines, basis);
    const index plane = rounded_up(tiles.capacity() * g.channels) + LANES;
    const RingWeights weights(g);
    const index channels = weights.channels, columns = weights.columns, wide = rounded_up(columns);
    std::vector<float> matrix(weights.size()), shifts(bias ? g.groups * wide : 0);
    if (bias)
        for (index column = 0; column < g.columns; ++column) shifts[column / columns * wide + column % columns] = bias[column];
#pragma omp parallel num_threads(g.threads)
    {
        const auto [rings, totals, line_sums] =
            scratch.share({g.rings * plane, g.shells * FLOATS_OF_A_CHUNK, tiles.lines_of_a_tile * window.sums});
#pragma omp for schedule(static)
        for (index number = 0; number < g.channels; ++number)
            weights.of_channel(number, [&](index place, index group, index ring, index channel, index column) {
                matrix[weights.place(group, ring, channel, column)] = weight[place];
            });
#pragma omp for schedule(static)
        for (index number = 0; number < tiles.count; ++number) {
            const Tile tile(tiles, g, number);
            sum_tile(g, window, tile, image, line_sums, rings, plane, totals, nullptr, nullptr);
            for (index group = 0; group < g.groups; ++group)
                multiply({tile.voxels, columns, rings + group * channels, g.rings, channels, plane, g.channels, 1,
                          &matrix[weights.place(group, 0, 0, 0)], wide, bias ? &shifts[group * wide] : nullptr,
                          result + tile.voxel * g.row + group * columns, g.row, false});
        }
    }
    return true;
} catch (const std::bad_alloc&) {
    return false;
}

CHECKED_KERNEL ring_conv_backward(const RingConvGeometry* geometry, const index* first_taps, const index* taps, const index* sets_of_taps,
                                  const index* first_lines, const index* lines, const float* basis, const float* image, const float* other,
                                  const float* weight, float* other_gradient, float* weight_gradient, double* basis_gradient) try {
    const Geometry g(*geometry);
    const Tiles tiles(g);
    const Window window(g, tiles, first_taps, taps, sets_of_taps, first_lines, lines, basis);
    const index plane = rounded_up(tiles.capacity() * g.channels) + LANES, numbers = g.shells * g.rings;
    const RingWeights weights(g);
    const index channels = weights.channels, columns = weights.columns;
    const index wide = rounded_up(columns), deep = g.rings * rounded_up(channels);
    // (groups, columns, rings, channels padded to whole vectors)
    std::vector<float> matrix(weights.size()), transposed(basis_gradient ? g.columns * deep : 0);
    const SumsOfThreads<float> matrix_gradients(weight_gradient, g.threads, weights.size());
    // per thread
    std::vector<double> inner_products(basis_gradient ? g.threads * numbers : 0);
#pragma omp parallel num_threads(g.threads)
    {
        const auto [rings, products, totals, memory_of_sums, copy, line_sums] =
            scratch.share({g.rings * plane, g.rings * plane, g.shells * FLOATS_OF_A_CHUNK, numbers * LANES,
                           tiles.capacity() * g.groups * wide, tiles.lines_of_a_tile * window.sums});
        vector* sums = reinterpret_cast<vector*>(memory_of_sums);
        float* own_gradients = matrix_gradients.own();
        const index thread = omp_get_thread_num();
#pragma omp for schedule(static)
        for (index number = 0; number < g.channels; ++number)
            weights.of_channel(number, [&](index place, index group, index ring, index channel, index column) {
                matrix[weights.place(group, ring, channel, column)] = weight[place];
                if (basis_gradient) transposed[(group * columns + column) * deep + ring * rounded_up(channels) + channel] = weight[place];
            });
#pragma omp for schedule(static)
        for (index number = 0; number < tiles.count; ++number) {
            const Tile tile(tiles, g, number);
            const float* values = other + tile.voxel * g.columns;
            if (basis_gradient) {
                for (index r = 0; r < g.rings; ++r) {
                    for (index group = 0; group < g.groups; ++group)
                        multiply({tile.voxels, channels, values + group * columns, 1, columns, 0, g.columns, 1,
                                  &transposed[group * columns * deep + r * rounded_up(channels)], deep, nullptr,
                                  products + r * plane + group * channels, g.channels, false});
                    // the last vector can reach beyond the tile, where an earlier call may have left numbers that are not finite
                    store(products + r * plane + tile.voxels * g.channels, vector{});
                }
                std::fill(sums, sums + numbers, vector{});
                sum_tile(g, window, tile, image, line_sums, rings, plane, totals, products, sums);
                for (index i = 0; i < numbers; ++i)
                    for (int lane = 0; lane < LANES; ++lane) inner_products[thread * numbers + i] += sums[i][lane];
            } else {
                sum_tile(g, window, tile, image, line_sums, rings, plane, totals, nullptr, nullptr);
            }
            if (other_gradient)
                for (index group = 0; group < g.groups; ++group)
                    multiply({tile.voxels, columns, rings + group * channels, g.rings, channels, plane, g.channels, 1,
                              &matrix[weights.place(group, 0, 0, 0)], wide, nullptr,
                              other_gradient + tile.voxel * g.columns + group * columns, g.columns, false});
            if (weight_gradient) {
                if (wide != columns) {
                    for (index block = 0; block < tile.voxels * g.groups; ++block) {
                        std::copy(values + block * columns, values + (block + 1) * columns, copy + block * wide);
                        std::fill(copy + block * wide + columns, copy + (block + 1) * wide, 0.0f);
                    }
                    values = copy;
                }
                for (index group = 0; group < g.groups; ++group)
                    for (index r = 0; r < g.rings; ++r)
                        multiply({channels, wide, rings + r * plane + group * channels, 1, tile.voxels, 0, 1, g.channels,
                                  values + group * wide, g.groups * wide, nullptr,
                                  own_gradients + weights.place(group, r, 0, 0), wide, true});
            }
        }
        if (weight_gradient)
#pragma omp for schedule(static)
            for (index number = 0; number < g.channels; ++number)
                for (int from = 0; from < omp_get_num_threads(); ++from)
                    weights.of_channel(number, [&](index place, index group, index ring, index channel, index column) {
                        weight_gradient[place] += matrix_gradients.of(from)[weights.place(group, ring, channel, column)];
                    });
    }
    if (basis_gradient)
        for (index i = 0; i < g.threads * numbers; ++i)
            basis_gradient[i % g.rings * g.shells + i % numbers / g.rings] += inner_products[i];
    return true;
} catch (const std::bad_alloc&) {
    return false;
}
