// Angular orders of harmonic convolutions, from channels to scalars, and their gradients.

#include "harmonic_responses.h"
#include "kept_terms.h"
#include "kernels.h"

namespace {

template <typename T> struct Reduced {
    T squared, common, product;
};

template <typename T> inline Reduced<T> reduce(const Angular& g, const float* responses, index i, float smoothing) {
    T squared = T{} + smoothing * smoothing, other = T{}, product = T{};
    for (index m = 0; m < g.components; ++m) {
        const T a = load<T>(responses + m * FLOATS_OF_A_PART + i);
        squared += a * a;
        if (g.products > 0) {
            const T b = load<T>(responses + (g.components + m) * FLOATS_OF_A_PART + i);
            other += b * b;
            product += a * b;
        }
    }
    return {squared, squared + other, product};
}

// from gradients of scalars, (2, FLOATS_OF_A_PART), to gradients of responses, (kinds, components, spread along a line)
void spread_gradient(const Angular& g, const float* responses, const float* scalar_gradients, float smoothing, float scale, index count,
                     float* to) {
    const index kind = g.components * FLOATS_OF_A_PART, line = g.spread(2) * g.norms;
    for_vectors(count, [&](auto zero, index i) {
        using T = decltype(zero);
        const auto lengths = reduce<T>(g, responses, i, smoothing);
        const T own = load<T>(scalar_gradients + i) / square_root(lengths.squared);
        T across = T{}, shrink = T{};
        if (g.products > 0) {
            across = scale * load<T>(scalar_gradients + FLOATS_OF_A_PART + i) / square_root(lengths.common);
            // part of both gradients due to the common length
            shrink = across * lengths.product / lengths.common;
        }
        for (index m = 0; m < g.components; ++m) {
            const T a = load<T>(responses + m * FLOATS_OF_A_PART + i);
            if (g.products == 0) {
                store(to + m * line + i, own * a);
                continue;
            }
            const T b = load<T>(responses + kind + m * FLOATS_OF_A_PART + i);
            store(to + m * line + i, (own - shrink) * a + across * b);
            store(to + (g.components + m) * line + i, across * a - shrink * b);
        }
    });
}

index* indices(float* memory) { return reinterpret_cast<index*>(memory); }
index floats_of_indices(index count) { return count * index(sizeof(index) / sizeof(float)); }

}  // namespace

CHECKED_KERNEL harmonic_conv(const HarmonicConvGeometry* geometry, const index* places, const index* shells, const float* signs,
                             const float* angular, const index* used, const float* image, const float* weight, float smoothing, float scale,
                             const float* bias, const float* linear, const float* chiral, float* scalars, float* all) try {
    const Angular g(*geometry);
    const Terms terms{places, shells, signs, angular};
    const OrderWeights weights{g, used};
    const index wide = rounded_up(g.columns());
    const LinearTerms linear_terms{g};
    const index wide_row = rounded_up(g.row);
    std::vector<float> matrix(g.channels * wide), linear_matrix(linear ? linear_terms.size() : 0);
    const index depth = g.reach[0] + 1, floats = g.groups() * g.padded(2) * g.norms;
    const Blocks blocks(g.batch, g.sizes[0], g.sizes[1], g.reach[0], g.reach[1], depth * floats, g.threads);
    const index lines = blocks.most_lines() + g.reach[1];
#pragma omp parallel num_threads(g.threads)
    {
        const auto [ring, tile, a, b, responses, reduced, shifts, factors, third] = scratch.share(
            {Ring::size(depth, lines, floats), VOXELS_OF_A_TILE * wide, floats_of_indices(g.terms),
             floats_of_indices(g.terms), g.kinds() * g.components * FLOATS_OF_A_PART, 2 * FLOATS_OF_A_PART, 2 * FLOATS_OF_A_PART,
             chiral ? FLOATS_OF_A_PART : 0, floats_of_third(g, chiral)});
        const Chiral triples{g, smoothing, factors, third};
        if (chiral) triples.repeat(chiral);
        for (index i = 0; i < FLOATS_OF_A_PART; ++i) {
            shifts[i] = bias ? bias[i % g.norms] : 0.0f;
            shifts[FLOATS_OF_A_PART + i] = bias && i % g.norms < g.products ? bias[g.norms + i % g.norms] : 0.0f;
        }
        const index voxels_of_a_part = std::max<index>(1, FLOATS_OF_A_PART / g.norms);
#pragma omp for schedule(static)
        for (index channel = 0; channel < g.channels; ++channel)
            weights.of_channel(channel, [&](index place, index column) { matrix[channel * wide + column] = weight[place]; });
        if (linear)
#pragma omp for schedule(static)
            for (index scalar = 0; scalar < g.row; ++scalar)
                linear_terms.of_scalar(
                    scalar, [&](index place, index response) { linear_matrix[response * wide_row + scalar] = linear[place]; });
#pragma omp for schedule(static)
        for (index number = 0; number < blocks.count; ++number) {
            const Block block = blocks[number];
            Responses own{g,    terms,      image,      matrix.data(), Ring(ring, depth, lines, floats),
                          tile, indices(a), indices(b), responses,     block.first_line};
            for (index last = block.first_plane; last < block.last_plane + g.reach[0]; ++last) {
                own.multiply_plane(block.sample, last, block.last_line - block.first_line + g.reach[1]);
                const index plane = last - g.reach[0];
                if (plane < block.first_plane) continue;
                own.find_taps(plane);
                for (index line = block.first_line; line < block.last_line; ++line) {
                    float* to = scalars + ((block.sample * g.sizes[0] + plane) * g.sizes[1] + line) * g.sizes[2] * g.row;
                    for (index x = 0; x < g.sizes[2]; x += voxels_of_a_part) {
                        const index voxels = std::min(voxels_of_a_part, g.sizes[2] - x);
                        float* all_scalars = all + (to - scalars) + x * g.row;
                        if (linear) fetch_scalars(g, all_scalars, voxels);
                        own.sum_line(line, x * g.norms, voxels * g.norms);
                        for_vectors(voxels * g.norms, [&, reduced = reduced, responses = responses, shifts = shifts](auto kind, index i) {
                            using T = decltype(kind);
                            const auto lengths = reduce<T>(g, responses, i, smoothing);
                            store(reduced + i, square_root(lengths.squared) - smoothing + load<T>(shifts + i));
                            if (g.products > 0)
                                store(reduced + FLOATS_OF_A_PART + i,
                                      scale * lengths.product / square_root(lengths.common) + load<T>(shifts + FLOATS_OF_A_PART + i));
                        });
                        if (chiral) triples.add_scalars(responses, voxels, reduced + FLOATS_OF_A_PART);
                        // other orders have already added their linear terms
                        const auto put = linear ? add : copy;
                        put(g.norms, voxels, to + x * g.row, g.row, reduced, g.norms);
                        put(g.products, voxels, to + x * g.row + g.norms, g.row, reduced + FLOATS_OF_A_PART, g.norms);
                        if (linear) add_linear(g, responses, linear_matrix.data(), voxels, all_scalars);
                    }
                }
            }
        }
    }
    return true;
} catch (const std::bad_alloc&) {
    return false;
}

CHECKED_KERNEL harmonic_conv_backward(const HarmonicConvGeometry* geometry, const index* places, const index* shells, const float* signs,
                                      const float* angular, const index* used, const index* first, const index* entries, const float* image,
                                      const float* weight, float smoothing, float scale, const float* linear, const float* chiral,
                                      const float* gradient, const float* all, float* image_gradient, float* weight_gradient,
                                      float* linear_gradient, double* chiral_gradient) try {
    const Angular g(*geometry);
    const Terms terms{places, shells, signs, angular};
    const OrderWeights weights{g, used};
    const index depth = g.reach[0] + 1, floats = g.groups() * g.padded(2) * g.norms;
    const index responses_of_a_voxel = g.kinds() * g.components, spread = responses_of_a_voxel * g.spread(2) * g.norms;
    const Blocks blocks(g.batch, g.image[0], g.image[1], 2 * g.reach[0], 2 * g.reach[1], depth * (floats + spread), g.threads);
    const index lines = blocks.most_lines() + 2 * g.reach[1], spread_lines = blocks.most_lines() + g.reach[1];
    const index wide = rounded_up(g.columns()), deep = rounded_up(g.channels);
    std::vector<float> matrix(g.channels * wide), transposed(g.columns() * deep);
    const SumsOfThreads<float> matrix_gradients(weight_gradient, g.threads, g.channels * wide);
    const LinearTerms linear_terms{g};
    const index wide_row = rounded_up(g.row), wide_responses = rounded_up(g.responses());
    std::vector<float> linear_transposed(linear ? g.row * wide_responses : 0);
    const SumsOfThreads<float> linear_gradients(linear_gradient, g.threads, linear_terms.size());
    // index of the result's first voxel among the voxels that the mirrored window reads
    const index before[3] = {g.reach[0] - g.padding[0], g.reach[1] - g.padding[1], g.reach[2] - g.padding[2]};
#pragma omp parallel num_threads(g.threads)
    {
        const auto [ring, spread_ring, tile, a, b, entry_a, entry_b, entry_signs, entry_angular, responses, scalar_gradients, sums,
                    response_tile, scalar_tile, factors, third, third_gradient, factor_sums] =
            scratch.share(
                {Ring::size(depth, lines, floats), Ring::size(depth, spread_lines, spread), VOXELS_OF_A_TILE * wide,
                 floats_of_indices(g.terms), floats_of_indices(g.terms), floats_of_indices(g.entries), floats_of_indices(g.entries),
                 g.entries, g.entries, responses_of_a_voxel * FLOATS_OF_A_PART, 2 * FLOATS_OF_A_PART, VOXELS_OF_A_TILE * g.norms,
                 linear ? LinearTiles::size_of_responses(g) : 0, linear ? LinearTiles::size_of_scalars(g) : 0,
                 chiral ? FLOATS_OF_A_PART : 0, floats_of_third(g, chiral), floats_of_third(g, chiral),
                 chiral ? FLOATS_OF_A_PART : 0});
        const LinearTiles tiles{response_tile, scalar_tile};
        const Chiral triples{g, smoothing, factors, third};
        if (chiral) {
            triples.repeat(chiral);
            std::fill(factor_sums, factor_sums + FLOATS_OF_A_PART, 0.0f);
        }
        float *matrix_sums = matrix_gradients.own(), *linear_sums = linear_gradients.own();
        const index voxels_of_a_part = std::max<index>(1, FLOATS_OF_A_PART / g.norms);
        std::fill(tile, tile + VOXELS_OF_A_TILE * wide, 0.0f);
        std::fill(scalar_gradients, scalar_gradients + 2 * FLOATS_OF_A_PART, 0.0f);
        for (index e = 0; e < g.entries; ++e) {
            entry_signs[e] = signs[entries[2 * e]];
            entry_angular[e] = angular[entries[2 * e] * g.components + entries[2 * e + 1]];
        }
#pragma omp for schedule(static)
        for (index channel = 0; channel < g.channels; ++channel)
            weights.of_channel(channel, [&](index place, index column) {
                matrix[channel * wide + column] = transposed[column * deep + channel] = weight[place];
            });
        if (linear)
#pragma omp for schedule(static)
            for (index scalar = 0; scalar < g.row; ++scalar)
                linear_terms.of_scalar(
                    scalar, [&](index place, index response) { linear_transposed[scalar * wide_responses + response] = linear[place]; });
#pragma omp for schedule(static)
        for (index number = 0; number < blocks.count; ++number) {
            const Block block = blocks[number];
            const index first_result = std::max<index>(0, block.first_line - before[1]);
            const index last_result = std::min(g.sizes[1], block.last_line + g.reach[1] - before[1]);
            Responses own{g,    terms,      image,      matrix.data(), Ring(ring, depth, lines, floats),
                          tile, indices(a), indices(b), responses,     first_result};
            const Ring gradients(spread_ring, depth, spread_lines, spread);
            index next = std::max<index>(0, block.first_plane - before[0]);  // plane of the padded image
            for (index last = block.first_plane; last < block.last_plane + g.reach[0]; ++last) {
                const index result = last - before[0];
                if (result < 0 || result >= g.sizes[0] || first_result >= last_result) {
                    for (index line = 0; line < spread_lines; ++line) gradients.clear(last, line);
                } else {
                    for (; next <= result + g.reach[0]; ++next)
                        own.multiply_plane(block.sample, next, last_result - first_result + g.reach[1]);
                    own.find_taps(result);
                    for (index line = block.first_line; line < block.last_line + g.reach[1]; ++line) {
                        const index at = line - before[1];
                        if (at < first_result || at >= last_result) {
                            gradients.clear(last, line - block.first_line);
                            continue;
                        }
                        const float* from = gradient + ((block.sample * g.sizes[0] + result) * g.sizes[1] + at) * g.sizes[2] * g.row;
                        // several blocks can compute a voxel, but it belongs to one of them
                        const bool is_own = block.owns(last, line, g.image);
                        float* to = gradients.at(last, line - block.first_line) + before[2] * g.norms;
                        for (index x = 0; x < g.sizes[2]; x += voxels_of_a_part) {
                            const index voxels = std::min(voxels_of_a_part, g.sizes[2] - x);
                            const float* all_gradients = all + (from - gradient) + x * g.row;
                            if (linear) fetch_scalars(g, all_gradients, voxels);
                            own.sum_line(at, x * g.norms, voxels * g.norms);
                            copy(g.norms, voxels, scalar_gradients, g.norms, from + x * g.row, g.row);
                            copy(g.products, voxels, scalar_gradients + FLOATS_OF_A_PART, g.norms, from + x * g.row + g.norms, g.row);
                            spread_gradient(g, responses, scalar_gradients, smoothing, scale, voxels * g.norms, to + x * g.norms);
                            if (chiral)
                                triples.add_gradients(responses, voxels, scalar_gradients + FLOATS_OF_A_PART, to + x * g.norms,
                                                      third_gradient, is_own ? factor_sums : nullptr);
                            if (linear)
                                add_linear_gradients(g, responses, linear_transposed.data(), all_gradients, voxels, tiles, to + x * g.norms,
                                                     is_own ? linear_sums : nullptr);
                        }
                    }
                }
                const index plane = last - g.reach[0];
                if (plane < block.first_plane) continue;
                for (index e = 0; e < g.entries; ++e) {
                    const index* place = places + 6 * entries[2 * e];
                    auto mirrored = [&](const index* tap) {
                        return gradients.place(plane + g.reach[0] - tap[0], g.reach[1] - tap[1]) +
                               (entries[2 * e + 1] * g.spread(2) + g.reach[2] - tap[2]) * g.norms;
                    };
                    indices(entry_a)[e] = mirrored(place);
                    indices(entry_b)[e] = mirrored(place + 3);
                }
                for (index line = block.first_line; line < block.last_line; ++line) {
                    const index first_voxel = ((block.sample * g.image[0] + plane) * g.image[1] + line) * g.image[2];
                    const float* from = gradients.at(0, line - block.first_line);
                    for (index x = 0; x < g.image[2]; x += VOXELS_OF_A_TILE) {
                        const index voxels = std::min(VOXELS_OF_A_TILE, g.image[2] - x);
                        for (index group = 0; group < g.groups(); ++group) {
                            const index shell = group % g.shells, kind = group / g.shells;
                            sum_entries_of_line(first[shell], first[shell + 1], indices(entry_a), indices(entry_b), entry_signs,
                                                entry_angular,
                                                from + (kind * g.components * g.spread(2) + x) * g.norms, voxels * g.norms, sums);
                            copy(g.norms, voxels, tile + group * g.norms, wide, sums, g.norms);
                        }
                        if (image_gradient)
                            multiply({voxels, g.channels, tile, 1, g.columns(), 0, wide, 1, transposed.data(), deep, nullptr,
                                      image_gradient + (first_voxel + x) * g.channels, g.channels, true});
                        if (weight_gradient)
                            multiply({g.channels, g.vector_columns(), image + (first_voxel + x) * g.channels, 1, voxels, 0, 1, g.channels,
                                      tile, wide, nullptr, matrix_sums, wide, true});
                    }
                }
            }
        }
        if (weight_gradient)
#pragma omp for schedule(static)
            for (index channel = 0; channel < g.channels; ++channel)
                for (int from = 0; from < omp_get_num_threads(); ++from)
                    weights.of_channel(channel, [&](index place, index column) {
                        weight_gradient[place] += matrix_gradients.of(from)[channel * wide + column];
                    });
        if (linear_gradient)
#pragma omp for schedule(static)
            for (index scalar = 0; scalar < g.row; ++scalar)
                for (int from = 0; from < omp_get_num_threads(); ++from)
                    linear_terms.of_scalar(scalar, [&](index place, index response) {
                        linear_gradient[place] += linear_gradients.of(from)[response * wide_row + scalar];
                    });
        if (chiral_gradient)
            for (index i = 0; i < voxels_of_a_part * g.norms; ++i)
                chiral_gradient[omp_get_thread_num() * g.norms + i % g.norms] += factor_sums[i];
    }
    return true;
} catch (const std::bad_alloc&) {
    return false;
}
