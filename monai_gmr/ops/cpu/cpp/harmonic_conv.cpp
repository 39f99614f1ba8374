// One angular order of a harmonic convolution on a CPU, from channels to scalars: responses, then their lengths and inner products.
//
// Images are (batch, *sizes, channels). The product over channels comes first, for an order has few output channels: a plane of the image
// becomes products, (line, group, voxel, channel), a group for each shell and kind of output channel. Planes go through a ring of as many as
// the window is long. From those a line of responses is added up, tap by tap, and reduced to scalars; what lies at mirrored taps has the same
// factors up to a sign and is added first. Backward, the responses are computed again; their gradients go through a second ring, of which
// the sums over mirrored taps are the gradient of the products.
//
// Output channels are of two kinds, those that become lengths and those that become inner products with them; each kind has as many
// channels, the last ones without weights where there are fewer inner products, so that both lie alike in memory. Along a line voxels and
// channels are one axis.

namespace {

struct Angular {
    index batch, sizes[3], image[3], padding[3], reach[3];
    index channels, shells, components, norms, products;
    index row;  // floats from voxel to voxel of the scalars
    index terms, entries, threads;

    index kinds() const { return products > 0 ? 2 : 1; }
    index groups() const { return kinds() * shells; }
    index columns() const { return groups() * norms; }
    index vector_columns() const { return (columns() + LANES - 1) / LANES * LANES; }
    index seen(int axis) const { return sizes[axis] + reach[axis]; }  // with margins
    // of the gradients of responses, which every voxel of the image sees through the mirrored window
    index spread(int axis) const { return image[axis] + reach[axis]; }
};

// two taps of a shell, or twice the same with sign 0: their sum is a + sign * b
struct Terms {
    const index* places;   // (terms, 2, 3), in voxels
    const index* shells;   // (terms,)
    const float* signs;    // (terms,)
    const float* factors;  // (terms, components)
};

constexpr index FLOATS_OF_A_PART = 512, BYTES_OF_RINGS = 3 << 20;

// so many channels of each of so many voxels
template <int CHANNELS> void copy_some(index voxels, float* to, index to_step, const float* from, index from_step) {
    for (index v = 0; v < voxels; ++v) __builtin_memcpy(to + v * to_step, from + v * from_step, CHANNELS * sizeof(float));
}
void copy(index channels, index voxels, float* to, index to_step, const float* from, index from_step) {
    // of a number of channels that the compiler knows it makes a few instructions
    for (; channels >= 8; channels -= 8, to += 8, from += 8) copy_some<8>(voxels, to, to_step, from, from_step);
    constexpr decltype(&copy_some<1>) REST[] = {nullptr,      copy_some<1>, copy_some<2>, copy_some<3>,
                                                copy_some<4>, copy_some<5>, copy_some<6>, copy_some<7>};
    if (channels > 0) REST[channels](voxels, to, to_step, from, from_step);
}

// planes that are reused one after the other
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

// responses[m] = sum over terms of factors[m] * (from[a] + sign * from[b])
template <typename T, int COMPONENTS, int UNITS>
inline void sum_terms(const Terms& t, index terms, const index* a, const index* b, const float* from, float* responses) {
    constexpr int lanes = sizeof(T) / sizeof(float);
    T sums[COMPONENTS][UNITS];
    set_to_zero(sums);
    for (index i = 0; i < terms; ++i) {
        T met[UNITS];
#pragma GCC unroll 8
        for (int u = 0; u < UNITS; ++u) met[u] = load<T>(from + a[i] + u * lanes) + t.signs[i] * load<T>(from + b[i] + u * lanes);
        const float* factors = t.factors + i * COMPONENTS;
#pragma GCC unroll 8
        for (int m = 0; m < COMPONENTS; ++m)
#pragma GCC unroll 8
            for (int u = 0; u < UNITS; ++u) sums[m][u] += factors[m] * met[u];
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

// the products' gradient at a shell: sums of gradients of responses, times factors
template <typename T, int UNITS>
inline void sum_entries(index begin, index end, const index* a, const index* b, const float* signs, const float* factors, const float* from,
                        float* to) {
    constexpr int lanes = sizeof(T) / sizeof(float);
    T sums[UNITS];
    set_to_zero(sums);
    for (index e = begin; e < end; ++e)
#pragma GCC unroll 8
        for (int u = 0; u < UNITS; ++u)
            sums[u] += factors[e] * (load<T>(from + a[e] + u * lanes) + signs[e] * load<T>(from + b[e] + u * lanes));
#pragma GCC unroll 8
    for (int u = 0; u < UNITS; ++u) store(to + u * lanes, sums[u]);
}

void sum_entries_of_line(index begin, index end, const index* a, const index* b, const float* signs, const float* factors, const float* from,
                         index count, float* to) {
    index i = 0;
    for (; i + 4 * LANES <= count; i += 4 * LANES) sum_entries<vector, 4>(begin, end, a, b, signs, factors, from + i, to + i);
    for (; i + LANES <= count; i += LANES) sum_entries<vector, 1>(begin, end, a, b, signs, factors, from + i, to + i);
    for (; i < count; ++i) sum_entries<float, 1>(begin, end, a, b, signs, factors, from + i, to + i);
}

// some planes and lines of a sample: one thread's work
struct Block {
    index sample, first_plane, last_plane, first_line, last_line;
};

class Blocks {
    index planes, lines, slabs, slab, height, heights;

  public:
    index count;

    // further: planes and lines that a block computes beside its own; floats: that the rings hold of each line
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

// what a thread needs to compute planes of products and lines of responses
struct Responses {
    const Angular& g;
    const Terms& terms;
    const float *image, *matrix;  // the latter (channels, columns in whole vectors)
    Ring products;
    float* tile;       // (64, columns)
    index *a, *b;      // (terms,)
    float* responses;  // (kinds, components, FLOATS_OF_A_PART)
    index first_line;  // of the padded image, that the ring's first line holds

    index wide() const { return rounded_up(g.columns()); }
    index group_floats() const { return g.seen(2) * g.norms; }

    // a plane of the padded image
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
                multiply({voxels, g.vector_columns(), from + x * g.channels, 1, g.channels, 0, g.channels, 1, matrix, wide(), nullptr, tile, wide(), false});
                for (index group = 0; group < g.groups(); ++group)
                    copy(g.norms, voxels, to + group * group_floats() + x * g.norms, g.norms, tile + group * g.norms, wide());
            }
        }
    }

    // where the taps of responses at a plane lie
    void find_taps(index plane) {
        for (index i = 0; i < g.terms; ++i) {
            const index* place = terms.places + 6 * i;
            const index shell = terms.shells[i] * group_floats();
            a[i] = products.place(plane + place[0], place[1]) + shell + place[2] * g.norms;
            b[i] = products.place(plane + place[3], place[4]) + shell + place[5] * g.norms;
        }
    }

    // so many floats of a line, from one on
    void sum_line(index line, index begin, index count) {
        const float* from = products.at(0, line - first_line) + begin;
        for (index kind = 0; kind < g.kinds(); ++kind)
            SUM_PART[g.components - 1](terms, g.terms, a, b, from + kind * g.shells * group_floats(), count,
                                       responses + kind * g.components * FLOATS_OF_A_PART);
    }
};

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

template <typename Step> inline void for_vectors(index count, Step step) {
    index i = 0;
    for (; i + LANES <= count; i += LANES) step(vector{}, i);
    for (; i < count; ++i) step(0.0f, i);
}

// from gradients of scalars, (2, FLOATS_OF_A_PART), to those of responses, (kinds, components, spread along a line)
void spread_gradient(const Angular& g, const float* responses, const float* met, const float* constants, index count, float* to) {
    const index kind = g.components * FLOATS_OF_A_PART, line = g.spread(2) * g.norms;
    for_vectors(count, [&](auto zero, index i) {
        using T = decltype(zero);
        const auto found = reduce<T>(g, responses, i, constants[0]);
        const T own = load<T>(met + i) / square_root(found.squared);
        T across = T{}, shrink = T{};
        if (g.products > 0) {
            across = constants[1] * load<T>(met + FLOATS_OF_A_PART + i) / square_root(found.common);
            // what the common length takes away from both
            shrink = across * found.product / found.common;
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

// constants: the smoothing of lengths, the scale of inner products; bias: (norms + products,) or null; scalars: the channels of the order
extern "C" void harmonic_conv(const Angular* given, const index* places, const index* shells, const float* signs, const float* factors,
                              const float* image, const float* matrix, const float* constants, const float* bias, float* scalars) {
    const Angular& g = *given;
    const Terms terms{places, shells, signs, factors};
    const float smoothing = constants[0], scale = constants[1];
    const index depth = g.reach[0] + 1, floats = g.groups() * g.seen(2) * g.norms;
    const Blocks blocks(g.batch, g.sizes[0], g.sizes[1], g.reach[0], g.reach[1], depth * floats, g.threads);
    const index lines = blocks.most_lines() + g.reach[1];
#pragma omp parallel num_threads(g.threads)
    {
        const auto [ring, tile, a, b, responses, reduced, shifts] = scratch.share(
            {Ring::size(depth, lines, floats), VOXELS_OF_A_TILE * rounded_up(g.columns()), floats_of_indices(g.terms),
             floats_of_indices(g.terms), g.kinds() * g.components * FLOATS_OF_A_PART, 2 * FLOATS_OF_A_PART, 2 * FLOATS_OF_A_PART});
        for (index i = 0; i < FLOATS_OF_A_PART; ++i) {
            shifts[i] = bias ? bias[i % g.norms] : 0.0f;
            shifts[FLOATS_OF_A_PART + i] = bias && i % g.norms < g.products ? bias[g.norms + i % g.norms] : 0.0f;
        }
        const index voxels_of_a_part = std::max<index>(1, FLOATS_OF_A_PART / g.norms);
#pragma omp for schedule(static)
        for (index number = 0; number < blocks.count; ++number) {
            const Block block = blocks[number];
            Responses own{g, terms, image, matrix, Ring(ring, depth, lines, floats), tile, indices(a), indices(b), responses, block.first_line};
            for (index seen = block.first_plane; seen < block.last_plane + g.reach[0]; ++seen) {
                own.multiply_plane(block.sample, seen, block.last_line - block.first_line + g.reach[1]);
                const index plane = seen - g.reach[0];
                if (plane < block.first_plane) continue;
                own.find_taps(plane);
                for (index line = block.first_line; line < block.last_line; ++line) {
                    float* to = scalars + ((block.sample * g.sizes[0] + plane) * g.sizes[1] + line) * g.sizes[2] * g.row;
                    for (index x = 0; x < g.sizes[2]; x += voxels_of_a_part) {
                        const index voxels = std::min(voxels_of_a_part, g.sizes[2] - x);
                        own.sum_line(line, x * g.norms, voxels * g.norms);
                        for_vectors(voxels * g.norms, [&, reduced = reduced, responses = responses, shifts = shifts](auto kind, index i) {
                            using T = decltype(kind);
                            const auto found = reduce<T>(g, responses, i, smoothing);
                            store(reduced + i, square_root(found.squared) - smoothing + load<T>(shifts + i));
                            if (g.products > 0)
                                store(reduced + FLOATS_OF_A_PART + i,
                                      scale * found.product / square_root(found.common) + load<T>(shifts + FLOATS_OF_A_PART + i));
                        });
                        copy(g.norms, voxels, to + x * g.row, g.row, reduced, g.norms);
                        copy(g.products, voxels, to + x * g.row + g.norms, g.row, reduced + FLOATS_OF_A_PART, g.norms);
                    }
                }
            }
        }
    }
}

// first and entries: (shells + 1,) and (entries, 2): term and component of each factor of a shell that is not 0
// to image_gradient the products' gradients times transposed, (columns, channels in whole vectors), are added; to matrix_gradient, (threads,
// channels, columns in whole vectors), the products of the image with them; either may be null
extern "C" void harmonic_conv_backward(const Angular* given, const index* places, const index* shells, const float* signs,
                                       const float* factors, const index* first, const index* entries, const float* image,
                                       const float* matrix, const float* transposed, const float* constants, const float* gradient,
                                       float* image_gradient, float* matrix_gradient) {
    const Angular& g = *given;
    const Terms terms{places, shells, signs, factors};
    const index depth = g.reach[0] + 1, floats = g.groups() * g.seen(2) * g.norms;
    const index responses_of_a_voxel = g.kinds() * g.components, spread = responses_of_a_voxel * g.spread(2) * g.norms;
    const Blocks blocks(g.batch, g.image[0], g.image[1], 2 * g.reach[0], 2 * g.reach[1], depth * (floats + spread), g.threads);
    const index lines = blocks.most_lines() + 2 * g.reach[1], spread_lines = blocks.most_lines() + g.reach[1];
    const index wide = rounded_up(g.columns()), deep = rounded_up(g.channels);
    // where the result's first voxel lies among those that the mirrored window sees
    const index before[3] = {g.reach[0] - g.padding[0], g.reach[1] - g.padding[1], g.reach[2] - g.padding[2]};
#pragma omp parallel num_threads(g.threads)
    {
        const auto [ring, spread_ring, tile, a, b, entry_a, entry_b, entry_signs, entry_factors, responses, met, sums] = scratch.share(
            {Ring::size(depth, lines, floats), Ring::size(depth, spread_lines, spread), VOXELS_OF_A_TILE * wide, floats_of_indices(g.terms),
             floats_of_indices(g.terms), floats_of_indices(g.entries), floats_of_indices(g.entries), g.entries, g.entries,
             responses_of_a_voxel * FLOATS_OF_A_PART, 2 * FLOATS_OF_A_PART, VOXELS_OF_A_TILE * g.norms});
        const index voxels_of_a_part = std::max<index>(1, FLOATS_OF_A_PART / g.norms);
        std::fill(tile, tile + VOXELS_OF_A_TILE * wide, 0.0f);
        std::fill(met, met + 2 * FLOATS_OF_A_PART, 0.0f);
        for (index e = 0; e < g.entries; ++e) {
            entry_signs[e] = signs[entries[2 * e]];
            entry_factors[e] = factors[entries[2 * e] * g.components + entries[2 * e + 1]];
        }
#pragma omp for schedule(static)
        for (index number = 0; number < blocks.count; ++number) {
            const Block block = blocks[number];
            const index first_result = std::max<index>(0, block.first_line - before[1]);
            const index last_result = std::min(g.sizes[1], block.last_line + g.reach[1] - before[1]);
            Responses own{g, terms, image, matrix, Ring(ring, depth, lines, floats), tile, indices(a), indices(b), responses, first_result};
            const Ring gradients(spread_ring, depth, spread_lines, spread);
            index next = std::max<index>(0, block.first_plane - before[0]);  // plane of the padded image
            for (index seen = block.first_plane; seen < block.last_plane + g.reach[0]; ++seen) {
                const index result = seen - before[0];
                if (result < 0 || result >= g.sizes[0] || first_result >= last_result) {
                    for (index line = 0; line < spread_lines; ++line) gradients.clear(seen, line);
                } else {
                    for (; next <= result + g.reach[0]; ++next)
                        own.multiply_plane(block.sample, next, last_result - first_result + g.reach[1]);
                    own.find_taps(result);
                    for (index line = block.first_line; line < block.last_line + g.reach[1]; ++line) {
                        const index at = line - before[1];
                        if (at < first_result || at >= last_result) {
                            gradients.clear(seen, line - block.first_line);
                            continue;
                        }
                        const float* from = gradient + ((block.sample * g.sizes[0] + result) * g.sizes[1] + at) * g.sizes[2] * g.row;
                        float* to = gradients.at(seen, line - block.first_line) + before[2] * g.norms;
                        for (index x = 0; x < g.sizes[2]; x += voxels_of_a_part) {
                            const index voxels = std::min(voxels_of_a_part, g.sizes[2] - x);
                            own.sum_line(at, x * g.norms, voxels * g.norms);
                            copy(g.norms, voxels, met, g.norms, from + x * g.row, g.row);
                            copy(g.products, voxels, met + FLOATS_OF_A_PART, g.norms, from + x * g.row + g.norms, g.row);
                            spread_gradient(g, responses, met, constants, voxels * g.norms, to + x * g.norms);
                        }
                    }
                }
                const index plane = seen - g.reach[0];
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
                            sum_entries_of_line(first[shell], first[shell + 1], indices(entry_a), indices(entry_b), entry_signs, entry_factors,
                                                from + (kind * g.components * g.spread(2) + x) * g.norms, voxels * g.norms, sums);
                            copy(g.norms, voxels, tile + group * g.norms, wide, sums, g.norms);
                        }
                        if (image_gradient)
                            multiply({voxels, g.channels, tile, 1, g.columns(), 0, wide, 1, transposed, deep, nullptr,
                                      image_gradient + (first_voxel + x) * g.channels, g.channels, true});
                        if (matrix_gradient)
                            multiply({g.channels, g.vector_columns(), image + (first_voxel + x) * g.channels, 1, voxels, 0, 1, g.channels, tile, wide, nullptr,
                                      matrix_gradient + omp_get_thread_num() * g.channels * wide, wide, true});
                    }
                }
            }
        }
    }
}
