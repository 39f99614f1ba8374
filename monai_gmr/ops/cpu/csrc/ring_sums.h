// Sums of radial convolutions: the taps of each shell are added and mixed to rings, tile by tile.
//
// Images are (batch, *sizes, channels). A tile is a range of consecutive voxels; its rings and sums stay in the second level of cache.
// Along a line voxels and channels are one axis, because every tap has a constant offset in it.

#pragma once

#include "kernels.h"
#include "vectors.h"

namespace {

constexpr int MOST_RINGS = 8;
constexpr int units_of(int rings) { return LANES == 16 ? (rings <= 2 ? 8 : rings <= 5 ? 4 : 2) : (rings <= 2 ? 4 : rings <= 4 ? 2 : 1); }

constexpr index FLOATS_OF_A_CHUNK = 16 * LANES;
// of a tile with several lines
constexpr index MOST_FLOATS = 12 * 1024;

// the geometry of a call, and sizes derived from it
struct Geometry : RingConvGeometry {
    explicit Geometry(const RingConvGeometry& given) : RingConvGeometry(given) {}

    index reach() const { return (image[2] - sizes[2]) * channels; }  // of a line, in floats
    index channels_of_a_group() const { return channels / groups; }
    index columns_of_a_group() const { return columns / groups; }
};

struct Tiles {
    index lines, length, lines_of_a_tile, pieces, count;

    explicit Tiles(const Geometry& g) {
        lines = g.batch * g.sizes[0] * g.sizes[1];
        const index fair = lines * g.sizes[2] / (4 * g.threads) + 1;
        // the more neighbouring lines a tile has, the more of their input is in the first level of cache
        const index more = g.lines ? std::min(MOST_FLOATS / g.channels, 3 * VOXELS_OF_A_TILE) : 0;
        const index voxels = std::min(std::max(more, VOXELS_OF_A_TILE), std::max<index>(fair, 12));
        pieces = std::max<index>(1, (g.sizes[2] + voxels / 2) / voxels);
        length = (g.sizes[2] + pieces - 1) / pieces;
        pieces = (g.sizes[2] + length - 1) / length;
        lines_of_a_tile = pieces > 1 ? 1 : std::max<index>(1, voxels / length);
        count = (lines + lines_of_a_tile - 1) / lines_of_a_tile * pieces;
    }
    index capacity() const { return lines_of_a_tile * length; }
};

struct Tile {
    index line, lines, begin, length, voxel, voxels;

    Tile(const Tiles& tiles, const Geometry& g, index number) {
        line = number / tiles.pieces * tiles.lines_of_a_tile;
        lines = std::min(tiles.lines_of_a_tile, tiles.lines - line);
        begin = number % tiles.pieces * tiles.length;
        length = std::min(tiles.length, g.sizes[2] - begin);
        voxel = line * g.sizes[2] + begin;
        voxels = lines * length;
    }
};

const float* line_of(const float* image, const Geometry& g, index line, index begin) {
    const index row = line % g.sizes[1], slice = line / g.sizes[1] % g.sizes[0], sample = line / g.sizes[1] / g.sizes[0];
    return image + (((sample * g.image[0] + slice) * g.image[1] + row) * g.image[2] + begin) * g.channels;
}

// Sets of offsets whose values are added.
struct Sets {
    index count;
    const index* first;   // the offsets of set s are first[s] to first[s + 1]
    const index* places;  // in floats
};

class Window {
    std::vector<index> places_of_taps, places_of_lines;
    std::vector<float> mixed;

    // converts positions (count, 3) in voxels to offsets in floats
    static std::vector<index> in_floats(const Geometry& g, const index* places, index count) {
        std::vector<index> found(count);
        for (index i = 0; i < count; ++i)
            found[i] = ((places[3 * i] * g.image[1] + places[3 * i + 1]) * g.image[2] + places[3 * i + 2]) * g.channels;
        return found;
    }

  public:
    Sets lines;          // equal lines of the window, which are added before the taps; or none
    index sums, plane;   // floats of their sums: for a line of a tile, and from one set to the next
    Sets shells;         // the taps; if there are lines, taps in their sums
    index rings;
    const float* basis;  // (shells, rings)

    // basis: (rings, shells)
    Window(const Geometry& g, const Tiles& tiles, const index* first_taps, const index* taps, const index* sets_of_taps,
           const index* first_lines, const index* lines_of_sets, const float* basis_of_rings)
        : places_of_taps(in_floats(g, taps, first_taps[g.shells])), places_of_lines(in_floats(g, lines_of_sets, first_lines[g.lines])),
          mixed(g.shells * g.rings), lines{g.lines, first_lines, places_of_lines.data()},
          plane(rounded_up(tiles.length * g.channels + g.reach())), rings(g.rings), basis(mixed.data()) {
        for (std::size_t tap = 0; tap < places_of_taps.size(); ++tap) places_of_taps[tap] += sets_of_taps[tap] * plane;
        for (index shell = 0; shell < g.shells; ++shell)
            for (index ring = 0; ring < g.rings; ++ring) mixed[shell * g.rings + ring] = basis_of_rings[ring * g.shells + shell];
        shells = {g.shells, first_taps, places_of_taps.data()};
        sums = lines.count * plane;
    }
    Window(const Window&) = delete;
};

// the pragmas unroll the loops before other optimisations, which makes this up to a tenth faster
template <typename T, int UNITS, int RINGS>
inline void sum_taps(const Window& window, index ring, const float* image, float* rings, index plane, float* totals) {
    constexpr int lanes = sizeof(T) / sizeof(float);
    T mixed[RINGS][UNITS];
    set_to_zero(mixed);
    for (index s = 0; s < window.shells.count; ++s) {
        T total[UNITS];
        set_to_zero(total);
        for (index tap = window.shells.first[s]; tap < window.shells.first[s + 1]; ++tap) {
            const float* at = image + window.shells.places[tap];
#pragma GCC unroll 8
            for (int u = 0; u < UNITS; ++u) total[u] += load<T>(at + u * lanes);
        }
        if (totals)
#pragma GCC unroll 8
            for (int u = 0; u < UNITS; ++u) store(totals + s * FLOATS_OF_A_CHUNK + u * lanes, total[u]);
        const float* factors = window.basis + s * window.rings + ring;
#pragma GCC unroll 8
        for (int r = 0; r < RINGS; ++r)
#pragma GCC unroll 8
            for (int u = 0; u < UNITS; ++u) mixed[r][u] += factors[r] * total[u];
    }
#pragma GCC unroll 8
    for (int r = 0; r < RINGS; ++r)
#pragma GCC unroll 8
        for (int u = 0; u < UNITS; ++u) store(rings + (ring + r) * plane + u * lanes, mixed[r][u]);
}

template <int RINGS>
void sum_run(const Window& window, index ring, const float* image, index count, float* rings, index plane, float* totals) {
    constexpr int UNITS = units_of(RINGS);
    index i = 0;
    auto kept = [&] { return totals ? totals + i : nullptr; };
    for (; i + UNITS * LANES <= count; i += UNITS * LANES)
        sum_taps<vector, UNITS, RINGS>(window, ring, image + i, rings + i, plane, kept());
    for (; i + LANES <= count; i += LANES) sum_taps<vector, 1, RINGS>(window, ring, image + i, rings + i, plane, kept());
    for (; i < count; ++i) sum_taps<float, 1, RINGS>(window, ring, image + i, rings + i, plane, kept());
}

template <typename T, int UNITS> inline void add_places(const Sets& sets, const float* image, float* totals, index plane) {
    constexpr int lanes = sizeof(T) / sizeof(float);
    for (index s = 0; s < sets.count; ++s) {
        T total[UNITS];
        set_to_zero(total);
        for (index place = sets.first[s]; place < sets.first[s + 1]; ++place) {
            const float* at = image + sets.places[place];
#pragma GCC unroll 8
            for (int u = 0; u < UNITS; ++u) total[u] += load<T>(at + u * lanes);
        }
#pragma GCC unroll 8
        for (int u = 0; u < UNITS; ++u) store(totals + s * plane + u * lanes, total[u]);
    }
}

// the sums of each set
void add_run(const Sets& sets, const float* image, index count, float* totals, index plane) {
    index i = 0;
    for (; i + 8 * LANES <= count; i += 8 * LANES) add_places<vector, 8>(sets, image + i, totals + i, plane);
    for (; i + LANES <= count; i += LANES) add_places<vector, 1>(sets, image + i, totals + i, plane);
    for (; i < count; ++i) add_places<float, 1>(sets, image + i, totals + i, plane);
}

// If the registers hold few rings, the sums of shells come first, for as many vectors as keep the processor busy, and the rings after them.

template <typename T, int UNITS, int RINGS>
inline void mix_totals(const Window& window, index ring, const float* totals, float* rings, index plane) {
    constexpr int lanes = sizeof(T) / sizeof(float);
    T mixed[RINGS][UNITS];
    set_to_zero(mixed);
    for (index s = 0; s < window.shells.count; ++s) {
        const float* factors = window.basis + s * window.rings + ring;
#pragma GCC unroll 8
        for (int u = 0; u < UNITS; ++u) {
            const T total = load<T>(totals + s * FLOATS_OF_A_CHUNK + u * lanes);
#pragma GCC unroll 8
            for (int r = 0; r < RINGS; ++r) mixed[r][u] += factors[r] * total;
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < RINGS; ++r)
#pragma GCC unroll 8
        for (int u = 0; u < UNITS; ++u) store(rings + (ring + r) * plane + u * lanes, mixed[r][u]);
}

template <int RINGS> void mix_run(const Window& window, index ring, const float* totals, index count, float* rings, index plane) {
    constexpr int UNITS = std::max(1, (LANES == 16 ? 30 : 14) / (RINGS + 1));
    index i = 0;
    for (; i + UNITS * LANES <= count; i += UNITS * LANES) mix_totals<vector, UNITS, RINGS>(window, ring, totals + i, rings + i, plane);
    for (; i + LANES <= count; i += LANES) mix_totals<vector, 1, RINGS>(window, ring, totals + i, rings + i, plane);
    for (; i < count; ++i) mix_totals<float, 1, RINGS>(window, ring, totals + i, rings + i, plane);
}

// inner products of the shell sums with other rings, added to (shells, rings) vectors
template <int RINGS, int SHELLS>
inline void multiply_sums(const float* totals, const float* others, index plane, index count, vector* sums, index rings) {
    vector own[SHELLS][RINGS];
    set_to_zero(own);
    for (index i = 0; i < count; i += LANES) {
        vector values[RINGS];
        for (int r = 0; r < RINGS; ++r) values[r] = load<vector>(others + r * plane + i);
        for (int s = 0; s < SHELLS; ++s) {
            vector total = load<vector>(totals + s * FLOATS_OF_A_CHUNK + i);
            for (int r = 0; r < RINGS; ++r) own[s][r] += total * values[r];
        }
    }
    for (int s = 0; s < SHELLS; ++s)
        for (int r = 0; r < RINGS; ++r) sums[s * rings + r] += own[s][r];
}

template <int RINGS>
void multiply_run(const Window& window, index ring, const float* totals, const float* others, index plane, index count, vector* sums) {
    constexpr int SHELLS = std::max(1, (LANES == 16 ? 24 : 10) / RINGS - 1);
    index s = 0;
    others += ring * plane;
    for (; s + SHELLS <= window.shells.count; s += SHELLS)
        multiply_sums<RINGS, SHELLS>(totals + s * FLOATS_OF_A_CHUNK, others, plane, count, sums + s * window.rings + ring, window.rings);
    for (; s < window.shells.count; ++s)
        multiply_sums<RINGS, 1>(totals + s * FLOATS_OF_A_CHUNK, others, plane, count, sums + s * window.rings + ring, window.rings);
}

struct Steps {
    decltype(&sum_run<1>) sum;
    decltype(&mix_run<1>) mix;
    decltype(&multiply_run<1>) multiply;
};

template <int RINGS> constexpr Steps steps_of() { return {sum_run<RINGS>, mix_run<RINGS>, multiply_run<RINGS>}; }

constexpr Steps STEPS[MOST_RINGS] = {steps_of<1>(), steps_of<2>(), steps_of<3>(), steps_of<4>(),
                                     steps_of<5>(), steps_of<6>(), steps_of<7>(), steps_of<8>()};

// sums over lines of the window, for each line of a tile
void add_lines(const Geometry& g, const Window& window, const Tile& tile, const float* image, float* sums) {
    const index count = tile.length * g.channels + g.reach(), piece = 8 * LANES;
    // piece by piece: neighbouring lines share most of their input
    for (index i = 0; i < count; i += piece)
        for (index l = 0; l < tile.lines; ++l)
            add_run(window.lines, line_of(image, g, tile.line + l, tile.begin) + i, std::min(piece, count - i),
                    sums + l * window.sums + i, window.plane);
}

// rings of a tile; with others, also the inner products of others with the shell sums
void sum_tile(const Geometry& g, const Window& window, const Tile& tile, const float* image, float* line_sums, float* rings, index plane,
              float* totals, const float* others, vector* sums) {
    const bool at_once = g.rings <= MOST_RINGS && units_of(int(g.rings)) >= 4;
    const bool by_lines = window.lines.count > 0;
    if (by_lines) add_lines(g, window, tile, image, line_sums);
    for (index l = 0; l < tile.lines; ++l) {
        const float* from = by_lines ? line_sums + l * window.sums : line_of(image, g, tile.line + l, tile.begin);
        const index before = l * tile.length * g.channels, count = tile.length * g.channels;
        const index chunk = at_once && !others ? count : FLOATS_OF_A_CHUNK;
        for (index i = 0; i < count; i += chunk) {
            const index floats = std::min(chunk, count - i), place = before + i;
            if (others && floats % LANES)
                for (index s = 0; s < g.shells; ++s) store(totals + s * FLOATS_OF_A_CHUNK + floats / LANES * LANES, vector{});
            if (!at_once) add_run(window.shells, from + i, floats, totals, FLOATS_OF_A_CHUNK);
            for (index ring = 0; ring < g.rings; ring += MOST_RINGS) {
                const Steps& steps = STEPS[std::min<index>(MOST_RINGS, g.rings - ring) - 1];
                if (at_once)
                    steps.sum(window, ring, from + i, floats, rings + place, plane, others ? totals : nullptr);
                else
                    steps.mix(window, ring, totals, floats, rings + place, plane);
                if (others) steps.multiply(window, ring, totals, others + place, plane, floats, sums);
            }
        }
    }
}

}  // namespace
