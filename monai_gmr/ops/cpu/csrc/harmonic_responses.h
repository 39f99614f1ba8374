// One angular order of a harmonic convolution on a CPU, from channels to scalars: responses, then their lengths and inner products.
//
// Images are (batch, *sizes, channels). The product over channels comes first, because an order has few output channels: a plane of the
// image becomes products, (line, group, voxel, channel), with a group for each shell and kind of output channel. A ring buffer holds as
// many planes of products as the window is long. From these a line of responses is summed, tap by tap, and reduced to scalars; values at
// mirrored taps have the same angular factors up to a sign and are added first. The backward pass recomputes the responses; their
// gradients go through a second ring buffer, and their sums over mirrored taps are the gradient of the products.
//
// Output channels are of two kinds: those that become lengths, and those that become inner products with them. Both kinds have equally many
// channels, so that they have the same layout in memory; if there are fewer inner products, the last channels have no weights. Along a line
// voxels and channels are one axis.

#pragma once

#include "kernels.h"
#include "product.h"
#include "vectors.h"

namespace {

// the geometry of a call, and sizes derived from it
struct Angular : HarmonicConvGeometry {
    explicit Angular(const HarmonicConvGeometry& given) : HarmonicConvGeometry(given) {}

    index kinds() const { return products > 0 ? 2 : 1; }
    index groups() const { return kinds() * shells; }
    index columns() const { return groups() * norms; }
    index vector_columns() const { return in_vectors(columns()); }
    index responses() const { return kinds() * components * norms; }
    // index of a part (a shell or a component) of an output channel in (kinds, parts, norms)
    index place(index channel, index part, index parts) const { return (channel / norms * parts + part) * norms + channel % norms; }
    index padded(int axis) const { return sizes[axis] + reach[axis]; }  // of the image, with margins
    // of the gradients of responses, which every voxel of the image reads through the mirrored window
    index spread(int axis) const { return image[axis] + reach[axis]; }
};

// The weights of an order, (norms + products, channels, all shells). Those at used shells form the matrix (channels, columns padded to
// whole vectors) that images are multiplied with.
struct OrderWeights {
    const Angular& g;
    const index* used;  // (shells,)

    // calls visit(index of the weight, column) for all weights of a channel
    template <typename Visit> void of_channel(index channel, Visit visit) const {
        for (index row = 0; row < g.norms + g.products; ++row)
            for (index shell = 0; shell < g.shells; ++shell)
                visit((row * g.channels + channel) * g.all_shells + used[shell], g.place(row, shell, g.shells));
    }
};

// two taps of a shell, or one tap twice with sign 0: their sum is a + sign * b
struct Terms {
    const index* places;   // (terms, 2, 3), in voxels
    const index* shells;   // (terms,)
    const float* signs;    // (terms,)
    const float* angular;  // (terms, components)
};

constexpr index FLOATS_OF_A_PART = 512, BYTES_OF_RINGS = 3 << 20;

// copies or adds CHANNELS channels of each voxel
template <bool ADD, int CHANNELS>
void move_some(index voxels, float* __restrict__ to, index to_step, const float* __restrict__ from, index from_step) {
    for (index v = 0; v < voxels; ++v, to += to_step, from += from_step) {
        if constexpr (ADD)
            for (int i = 0; i < CHANNELS; ++i) to[i] += from[i];
        else
            __builtin_memcpy(to, from, CHANNELS * sizeof(float));
    }
}
template <bool ADD> void move_channels(index channels, index voxels, float* to, index to_step, const float* from, index from_step) {
    // a constant number of channels compiles to a few instructions
    for (; channels >= 8; channels -= 8, to += 8, from += 8) move_some<ADD, 8>(voxels, to, to_step, from, from_step);
    constexpr decltype(&move_some<ADD, 1>) REST[] = {nullptr,           move_some<ADD, 1>, move_some<ADD, 2>, move_some<ADD, 3>,
                                                     move_some<ADD, 4>, move_some<ADD, 5>, move_some<ADD, 6>, move_some<ADD, 7>};
    if (channels > 0) REST[channels](voxels, to, to_step, from, from_step);
}
constexpr auto copy = move_channels<false>, add = move_channels<true>;

// ring buffer of planes
class Ring {
    float* memory;
    index depth, lines, floats;

  public:
    static index size(index depth, index lines, index floats) { return depth * lines * floats; }
    Ring(float* memory, index depth, index lines, index floats) : memory(memory), depth(depth), lines(lines), floats(floats) {
        std::fill(memory, memory + size(depth, lines, floats), 0.0f);
    }
    index place(index plane, index line) const { return (plane % depth * lines + line) * floats; }
    float* at(index plane, index line) const { return memory + place(plane, line); }
    void clear(index plane, index line) const { std::fill(at(plane, line), at(plane, line) + floats, 0.0f); }
};

constexpr int units_of_components(int components) {
    return LANES == 16 ? (components <= 2 ? 8 : components == 3 ? 6 : components == 4 ? 5 : components == 5 ? 4 : 3)
                       : (components == 1 ? 6 : components == 2 ? 4 : components == 3 ? 3 : components <= 5 ? 2 : 1);
}

// responses[m] = sum over terms of angular[m] * (from[a] + sign * from[b])
template <typename T, int COMPONENTS, int UNITS>
inline void sum_terms(const Terms& t, index terms, const index* a, const index* b, const float* from, float* responses) {
    constexpr int lanes = sizeof(T) / sizeof(float);
    T sums[COMPONENTS][UNITS];
    set_to_zero(sums);
    for (index i = 0; i < terms; ++i) {
        T values[UNITS];
#pragma GCC unroll 8
        for (int u = 0; u < UNITS; ++u) values[u] = load<T>(from + a[i] + u * lanes) + t.signs[i] * load<T>(from + b[i] + u * lanes);
        const float* angular = t.angular + i * COMPONENTS;
#pragma GCC unroll 8
        for (int m = 0; m < COMPONENTS; ++m)
#pragma GCC unroll 8
            for (int u = 0; u < UNITS; ++u) sums[m][u] += angular[m] * values[u];
    }
#pragma GCC unroll 8
    for (int m = 0; m < COMPONENTS; ++m)
#pragma GCC unroll 8
        for (int u = 0; u < UNITS; ++u) store(responses + m * FLOATS_OF_A_PART + u * lanes, sums[m][u]);
}

template <int COMPONENTS>
void sum_part(const Terms& t, index terms, const index* a, const index* b, const float* from, index count, float* responses) {
    constexpr int UNITS = units_of_components(COMPONENTS);
    index i = 0;
    for (; i + UNITS * LANES <= count; i += UNITS * LANES)
        sum_terms<vector, COMPONENTS, UNITS>(t, terms, a, b, from + i, responses + i);
    for (; i + LANES <= count; i += LANES) sum_terms<vector, COMPONENTS, 1>(t, terms, a, b, from + i, responses + i);
    for (; i < count; ++i) sum_terms<float, COMPONENTS, 1>(t, terms, a, b, from + i, responses + i);
}

constexpr decltype(&sum_part<1>) SUM_PART[] = {sum_part<1>, sum_part<2>, sum_part<3>, sum_part<4>, sum_part<5>, sum_part<6>, sum_part<7>};

// the products' gradient at a shell: sums of the responses' gradients times angular
template <typename T, int UNITS>
inline void sum_entries(index begin, index end, const index* a, const index* b, const float* signs, const float* angular, const float* from,
                        float* to) {
    constexpr int lanes = sizeof(T) / sizeof(float);
    T sums[UNITS];
    set_to_zero(sums);
    for (index e = begin; e < end; ++e)
#pragma GCC unroll 8
        for (int u = 0; u < UNITS; ++u)
            sums[u] += angular[e] * (load<T>(from + a[e] + u * lanes) + signs[e] * load<T>(from + b[e] + u * lanes));
#pragma GCC unroll 8
    for (int u = 0; u < UNITS; ++u) store(to + u * lanes, sums[u]);
}

void sum_entries_of_line(index begin, index end, const index* a, const index* b, const float* signs, const float* angular,
                         const float* from, index count, float* to) {
    index i = 0;
    for (; i + 4 * LANES <= count; i += 4 * LANES) sum_entries<vector, 4>(begin, end, a, b, signs, angular, from + i, to + i);
    for (; i + LANES <= count; i += LANES) sum_entries<vector, 1>(begin, end, a, b, signs, angular, from + i, to + i);
    for (; i < count; ++i) sum_entries<float, 1>(begin, end, a, b, signs, angular, from + i, to + i);
}

// some planes and lines of a sample, computed by one thread
struct Block {
    index sample, first_plane, last_plane, first_line, last_line;

    // planes and lines beyond the divided ones belong to the last block
    bool owns(index plane, index line, const index* divided) const {
        return (plane < last_plane || last_plane == divided[0]) && (line < last_line || last_line == divided[1]);
    }
};

class Blocks {
    index planes, lines, slabs, slab, height, heights;

  public:
    index count;

    // further: planes and lines that a block computes in addition to its own; floats: numbers that the rings hold of each line
    Blocks(index batch, index planes, index lines, index further_planes, index further_lines, index floats, index threads)
        : planes(planes), lines(lines), slabs(1) {
        while (batch * slabs % threads && planes / (slabs + 1) >= std::max<index>(1, 2 * further_planes)) ++slabs;
        slab = (planes + slabs - 1) / slabs;
        slabs = (planes + slab - 1) / slab;
        const index fit = BYTES_OF_RINGS / index(sizeof(float)) / std::max<index>(1, floats) - further_lines;
        const index most = std::max<index>({fit, 2 * further_lines, 1});
        heights = (lines + most - 1) / most;
        height = (lines + heights - 1) / heights;
        heights = (lines + height - 1) / height;
        count = batch * slabs * heights;
    }
    index most_lines() const { return height; }
    Block operator[](index number) const {
        const index line = number % heights * height, plane = number / heights % slabs * slab;
        return {number / heights / slabs, plane, std::min(planes, plane + slab), line, std::min(lines, line + height)};
    }
};

// a thread's data and memory to compute planes of products and lines of responses
struct Responses {
    const Angular& g;
    const Terms& terms;
    const float *image, *matrix;  // matrix: (channels, columns padded to whole vectors)
    Ring products;
    float* tile;       // (64, columns)
    index *a, *b;      // (terms,)
    float* responses;  // (kinds, components, FLOATS_OF_A_PART)
    index first_line;  // line of the padded image in the ring's first line

    index wide() const { return rounded_up(g.columns()); }
    index group_floats() const { return g.padded(2) * g.norms; }

    // computes the products of a plane of the padded image
    void multiply_plane(index sample, index plane, index lines) {
        const index z = plane - g.padding[0];
        for (index l = 0; l < lines; ++l) {
            const index y = first_line + l - g.padding[1];
            if (z < 0 || z >= g.image[0] || y < 0 || y >= g.image[1]) {
                products.clear(plane, l);
                continue;
            }
            const float* from = image + ((sample * g.image[0] + z) * g.image[1] + y) * g.image[2] * g.channels;
            float* to = products.at(plane, l) + g.padding[2] * g.norms;
            for (index x = 0; x < g.image[2]; x += VOXELS_OF_A_TILE) {
                const index voxels = std::min(VOXELS_OF_A_TILE, g.image[2] - x);
                multiply({voxels, g.vector_columns(), from + x * g.channels, 1, g.channels, 0, g.channels, 1, matrix, wide(), nullptr,
                          tile, wide(), false});
                for (index group = 0; group < g.groups(); ++group)
                    copy(g.norms, voxels, to + group * group_floats() + x * g.norms, g.norms, tile + group * g.norms, wide());
            }
        }
    }

    // finds the offsets of the taps for responses at a plane
    void find_taps(index plane) {
        for (index i = 0; i < g.terms; ++i) {
            const index* place = terms.places + 6 * i;
            const index shell = terms.shells[i] * group_floats();
            a[i] = products.place(plane + place[0], place[1]) + shell + place[2] * g.norms;
            b[i] = products.place(plane + place[3], place[4]) + shell + place[5] * g.norms;
        }
    }

    // computes count floats of a line of responses, starting at begin
    void sum_line(index line, index begin, index count) {
        const float* from = products.at(0, line - first_line) + begin;
        for (index kind = 0; kind < g.kinds(); ++kind)
            SUM_PART[g.components - 1](terms, g.terms, a, b, from + kind * g.shells * group_floats(), count,
                                       responses + kind * g.components * FLOATS_OF_A_PART);
    }
};

}  // namespace
