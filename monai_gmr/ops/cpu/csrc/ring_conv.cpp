// Radial convolutions: sums of rings and matrix products over channels, tile by tile, and their gradients.

#include "kernels.h"
#include "product.h"
#include "ring_sums.h"

KERNEL ring_conv(const RingConvGeometry* geometry, const index* first_taps, const index* taps, const index* sets_of_taps,
                 const index* first_lines, const index* lines, const float* basis, const float* image, const float* matrix,
                 const float* bias, float* result) {
    const Geometry g(*geometry);
    const Tiles tiles(g);
    const Window window(g, tiles, first_taps, taps, sets_of_taps, first_lines, lines, basis);
    const index plane = rounded_up(tiles.capacity() * g.channels) + LANES;
    const index channels = g.channels_of_a_group(), columns = g.columns_of_a_group(), wide = rounded_up(columns);
#pragma omp parallel num_threads(g.threads)
    {
        const auto [rings, totals, line_sums] =
            scratch.share({g.rings * plane, g.shells * FLOATS_OF_A_CHUNK, tiles.lines_of_a_tile * window.sums});
#pragma omp for schedule(static)
        for (index number = 0; number < tiles.count; ++number) {
            const Tile tile(tiles, g, number);
            sum_tile(g, window, tile, image, line_sums, rings, plane, totals, nullptr, nullptr);
            for (index group = 0; group < g.groups; ++group)
                multiply({tile.voxels, columns, rings + group * channels, g.rings, channels, plane, g.channels, 1,
                          matrix + group * g.rings * channels * wide, wide, bias ? bias + group * wide : nullptr,
                          result + tile.voxel * g.row + group * columns, g.row, false});
        }
    }
}

KERNEL ring_conv_backward(const RingConvGeometry* geometry, const index* first_taps, const index* taps, const index* sets_of_taps,
                          const index* first_lines, const index* lines, const float* basis, const float* image, const float* other,
                          const float* matrix, const float* transposed, float* other_gradient, float* matrix_gradient,
                          double* basis_gradient) {
    const Geometry g(*geometry);
    const Tiles tiles(g);
    const Window window(g, tiles, first_taps, taps, sets_of_taps, first_lines, lines, basis);
    const index plane = rounded_up(tiles.capacity() * g.channels) + LANES, numbers = g.shells * g.rings;
    const index channels = g.channels_of_a_group(), columns = g.columns_of_a_group();
    const index wide = rounded_up(columns), deep = g.rings * rounded_up(channels);
#pragma omp parallel num_threads(g.threads)
    {
        const auto [rings, products, totals, memory_of_sums, copy, line_sums] =
            scratch.share({g.rings * plane, g.rings * plane, g.shells * FLOATS_OF_A_CHUNK, numbers * LANES,
                           tiles.capacity() * g.groups * wide, tiles.lines_of_a_tile * window.sums});
        vector* sums = reinterpret_cast<vector*>(memory_of_sums);
        const index thread = omp_get_thread_num();
#pragma omp for schedule(static)
        for (index number = 0; number < tiles.count; ++number) {
            const Tile tile(tiles, g, number);
            const float* values = other + tile.voxel * g.columns;
            if (basis_gradient) {
                for (index r = 0; r < g.rings; ++r) {
                    for (index group = 0; group < g.groups; ++group)
                        multiply({tile.voxels, channels, values + group * columns, 1, columns, 0, g.columns, 1,
                                  transposed + group * columns * deep + r * rounded_up(channels), deep, nullptr,
                                  products + r * plane + group * channels, g.channels, false});
                    // the last vector may reach beyond the tile: what an earlier call left there may not be finite
                    store(products + r * plane + tile.voxels * g.channels, vector{});
                }
                std::fill(sums, sums + numbers, vector{});
                sum_tile(g, window, tile, image, line_sums, rings, plane, totals, products, sums);
                for (index i = 0; i < numbers; ++i)
                    for (int lane = 0; lane < LANES; ++lane) basis_gradient[thread * numbers + i] += sums[i][lane];
            } else {
                sum_tile(g, window, tile, image, line_sums, rings, plane, totals, nullptr, nullptr);
            }
            if (other_gradient)
                for (index group = 0; group < g.groups; ++group)
                    multiply({tile.voxels, columns, rings + group * channels, g.rings, channels, plane, g.channels, 1,
                              matrix + group * g.rings * channels * wide, wide, nullptr,
                              other_gradient + tile.voxel * g.columns + group * columns, g.columns, false});
            if (matrix_gradient) {
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
                                  matrix_gradient + ((thread * g.groups + group) * g.rings + r) * channels * wide, wide, true});
            }
        }
    }
}
