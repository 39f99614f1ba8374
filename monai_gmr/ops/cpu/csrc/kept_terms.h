// Terms that a harmonic layer that keeps a subgroup adds to its scalars, see ops/kept_terms.py, and their gradients, for a part of a line
// at a time: from responses (kinds, components, FLOATS_OF_A_PART) of one order.

#pragma once

#include "harmonic_responses.h"

namespace {

template <typename Step> inline void for_vectors(index count, Step step) {
    index i = 0;
    for (; i + LANES <= count; i += LANES) step(vector{}, i);
    for (; i < count; ++i) step(0.0f, i);
}

// Linear factors of all scalars for each response of an order, (row, norms + products, components); rows are linear_row floats apart.
struct LinearTerms {
    const Angular& g;

    // calls visit(index of the factor, response) for all responses in a scalar
    template <typename Visit> void of_scalar(index scalar, Visit visit) const {
        for (index channel = 0; channel < g.norms + g.products; ++channel)
            for (index m = 0; m < g.components; ++m)
                visit(scalar * g.linear_row + channel * g.components + m, g.place(channel, m, g.components));
    }
    index size() const { return g.responses() * rounded_up(g.row); }
};

// prefetches all scalars of some voxels
inline void fetch_scalars(const Angular& g, const float* scalars, index voxels) {
    for (index i = 0; i < voxels * g.row; i += 16) __builtin_prefetch(scalars + i);
}

// all scalars of some voxels += responses times linear, (responses, row padded to whole vectors)
void add_linear(const Angular& g, const float* responses, const float* linear, index voxels, float* scalars) {
    multiply({voxels, g.row, responses, g.kinds() * g.components, g.norms, FLOATS_OF_A_PART, g.norms, 1, linear, rounded_up(g.row), nullptr,
              scalars, g.row, true});
}

// memory for the gradients of add_linear
struct LinearTiles {
    float *responses, *scalars;

    static index size_of_responses(const Angular& g) { return VOXELS_OF_A_TILE * rounded_up(g.responses()); }
    // only for rows that are not whole vectors
    static index size_of_scalars(const Angular& g) { return g.row % LANES ? VOXELS_OF_A_TILE * rounded_up(g.row) : 0; }
};

// from the gradient of all scalars: to += gradient times transposed, (row, responses padded to whole vectors), with to laid out as in
// spread_gradient; sums, (responses, row padded to whole vectors) or null, += products of the gradient with the responses
void add_linear_gradients(const Angular& g, const float* responses, const float* transposed, const float* gradient, index voxels,
                          const LinearTiles& tiles, float* to, float* sums) {
    const index parts = g.kinds() * g.components, rows = g.responses(), line = g.spread(2) * g.norms;
    for (index first = 0; first < voxels; first += VOXELS_OF_A_TILE) {
        const index count = std::min(VOXELS_OF_A_TILE, voxels - first), wide = rounded_up(rows);
        const float* from = gradient + first * g.row;
        multiply({count, in_vectors(rows), from, 1, g.row, 0, g.row, 1, transposed, wide, nullptr, tiles.responses, wide, false});
        for (index part = 0; part < parts; ++part)
            add(g.norms, count, to + part * line + first * g.norms, g.norms, tiles.responses + part * g.norms, wide);
        if (!sums) continue;
        for (index part = 0; part < parts; ++part)
            copy(g.norms, count, tiles.responses + part * g.norms, rows, responses + part * FLOATS_OF_A_PART + first * g.norms, g.norms);
        const bool whole = g.row % LANES == 0;
        if (!whole) copy(g.row, count, tiles.scalars, rounded_up(g.row), from, g.row);
        multiply({rows, in_vectors(g.row), tiles.responses, 1, count, 0, 1, rows, whole ? from : tiles.scalars,
                  whole ? g.row : rounded_up(g.row), nullptr, sums, rounded_up(g.row), true});
    }
}

// whether the order's terms whose sign mirroring changes need a third response
inline bool has_third(const Angular& g) { return g.components == 3; }
inline index floats_of_third(const Angular& g, const float* chiral) { return chiral && has_third(g) ? 3 * FLOATS_OF_A_PART : 0; }

// responses of the length channels, each moved to the previous channel
void find_third(const Angular& g, const float* responses, index voxels, float* third) {
    for (index m = 0; m < g.components; ++m, responses += FLOATS_OF_A_PART, third += FLOATS_OF_A_PART) {
        std::copy(responses + 1, responses + voxels * g.norms, third);
        copy(1, voxels, third + g.norms - 1, g.norms, responses, g.norms);
    }
}

// the inverse of find_third, added to the gradient of the length channels
void return_third(const Angular& g, const float* gradient, index voxels, float* to) {
    for (index m = 0; m < g.components; ++m, gradient += FLOATS_OF_A_PART, to += g.spread(2) * g.norms) {
        add(g.norms - 1, voxels, to + 1, g.norms, gradient, g.norms);
        add(1, voxels, to, g.norms, gradient + g.norms - 1, g.norms);
    }
}

template <typename T> inline void cross(const T* a, const T* b, T* product) {
    for (int m = 0; m < 3; ++m) product[m] = a[(m + 1) % 3] * b[(m + 2) % 3] - a[(m + 2) % 3] * b[(m + 1) % 3];
}

// three responses; with two components, a pair and the third axis, whose triple product is the pair's cross product
template <typename T, int COMPONENTS> struct Triple {
    T a[3], b[3], c[3], of_a[3];  // of_a = b x c, the other factor of a
    T product, common, root;

    Triple(const float* responses, const float* third, index i, float smoothing) {
        common = T{} + smoothing * smoothing;
        for (int m = 0; m < 3; ++m) {
            a[m] = m < COMPONENTS ? load<T>(responses + m * FLOATS_OF_A_PART + i) : T{};
            b[m] = m < COMPONENTS ? load<T>(responses + (COMPONENTS + m) * FLOATS_OF_A_PART + i) : T{};
            c[m] = COMPONENTS == 3 ? load<T>(third + m * FLOATS_OF_A_PART + i) : T{} + float(m == 2);
            common += a[m] * a[m] + b[m] * b[m];
            if (COMPONENTS == 3) common += c[m] * c[m];
        }
        cross(b, c, of_a);
        product = a[0] * of_a[0] + a[1] * of_a[1] + a[2] * of_a[2];
        root = COMPONENTS == 3 ? common : square_root(common);
    }
};

// scalars, (FLOATS_OF_A_PART,), += factors, of the same shape, times triple products
template <int COMPONENTS>
void add_triples(const float* responses, const float* third, const float* factors, float smoothing, index count, float* scalars) {
    for_vectors(count, [&](auto zero, index i) {
        using T = decltype(zero);
        const Triple<T, COMPONENTS> triple(responses, third, i, smoothing);
        store(scalars + i, load<T>(scalars + i) + load<T>(factors + i) * triple.product / triple.root);
    });
}

// adds the gradients of add_triples to the gradients of responses, laid out as in spread_gradient, of third and of factors
template <int COMPONENTS>
void add_triple_gradients(const float* responses, const float* third, const float* factors, float smoothing, const float* gradient,
                          index count, float* to, index line, float* third_gradient, float* sums) {
    for_vectors(count, [&](auto zero, index i) {
        using T = decltype(zero);
        const Triple<T, COMPONENTS> triple(responses, third, i, smoothing);
        const T own = load<T>(gradient + i) / triple.root;
        if (sums) store(sums + i, load<T>(sums + i) + own * triple.product);
        const T across = own * load<T>(factors + i);
        // part of all gradients due to the common length
        const T shrink = float(COMPONENTS - 1) * across * triple.product / triple.common;
        T of_b[3], of_c[3];
        cross(triple.c, triple.a, of_b);
        cross(triple.a, triple.b, of_c);
        for (int m = 0; m < COMPONENTS; ++m) {
            float *to_a = to + m * line + i, *to_b = to + (COMPONENTS + m) * line + i;
            store(to_a, load<T>(to_a) + (across * triple.of_a[m] - shrink * triple.a[m]));
            store(to_b, load<T>(to_b) + (across * of_b[m] - shrink * triple.b[m]));
            if (COMPONENTS == 3) store(third_gradient + m * FLOATS_OF_A_PART + i, across * of_c[m] - shrink * triple.c[m]);
        }
    });
}

// an order's terms whose sign mirroring changes, with their memory
struct Chiral {
    const Angular& g;
    float smoothing;
    float *factors, *third;  // (FLOATS_OF_A_PART,), repeated; (3, FLOATS_OF_A_PART) if there is a third response

    // given: (norms,)
    void repeat(const float* given) const {
        for (index i = 0; i < FLOATS_OF_A_PART; ++i) factors[i] = given[i % g.norms];
    }

    void add_scalars(const float* responses, index voxels, float* scalars) const {
        if (has_third(g)) find_third(g, responses, voxels, third);
        (has_third(g) ? add_triples<3> : add_triples<2>)(responses, third, factors, smoothing, voxels * g.norms, scalars);
    }

    // from the gradient of inner products; third_gradient: like third; sums: (FLOATS_OF_A_PART,), the gradient of factors, or null
    void add_gradients(const float* responses, index voxels, const float* gradient, float* to, float* third_gradient, float* sums) const {
        const index line = g.spread(2) * g.norms;
        if (has_third(g)) find_third(g, responses, voxels, third);
        (has_third(g) ? add_triple_gradients<3> : add_triple_gradients<2>)(responses, third, factors, smoothing, gradient, voxels * g.norms,
                                                                          to, line, third_gradient, sums);
        if (has_third(g)) return_third(g, third_gradient, voxels, to);
    }
};

}  // namespace
