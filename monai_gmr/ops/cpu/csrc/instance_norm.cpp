// Instance norm of images (batch, voxels, channels) with the rectifier after it, and sums over voxels.
//
// Voxels and channels are one axis: numbers per channel are repeated until they fill whole vectors. Sums within a piece of a sample are in
// single precision, for squares relative to the first voxel; sums over pieces are in double precision.

#include "kernels.h"
#include "vectors.h"

namespace {

constexpr index FLOATS_OF_A_PIECE = 4096;

struct Piece {
    index sample, begin, count;
};

class Pieces {
    const VoxelGeometry& image;

  public:
    // common multiple of channels and lanes, long enough that sums do not wait for each other
    const index period;
    const index length, of_a_sample, count;

    explicit Pieces(const VoxelGeometry& image)
        : image(image),
          period([&] {
              const index least = std::lcm<index>(image.channels, LANES);
              return (8 * LANES + least - 1) / least * least;
          }()),
          length(std::max<index>(1, FLOATS_OF_A_PIECE / period) * period),
          of_a_sample((image.voxels * image.channels + length - 1) / length),
          count(image.batch * of_a_sample) {}

    Piece operator[](index number) const {
        const index floats = image.voxels * image.channels, sample = number / of_a_sample, first = number % of_a_sample * length;
        return {sample, sample * floats + first, std::min(length, floats - first)};
    }

    // calls step(kind, index, index within the period) for each vector, then each remaining float, of the piece
    template <typename Step> void for_each(const Piece& piece, Step step) const {
        index i = 0, j = 0;
        for (; i + LANES <= piece.count; i += LANES) {
            step(vector{}, piece.begin + i, j);
            j = j + LANES == period ? 0 : j + LANES;
        }
        for (; i < piece.count; ++i, ++j) step(0.0f, piece.begin + i, j);
    }

    double sum_of_channel(const float* sums, index channel) const {
        double total = 0;
        for (index j = channel; j < period; j += image.channels) total += sums[j];
        return total;
    }
};

// N arrays of numbers per channel, (batch, channels), repeated for one sample
template <std::size_t N> class Repeated {
    const VoxelGeometry& image;
    const Pieces& pieces;
    const std::array<const float*, N> numbers;
    float* const memory;  // N periods
    index sample = -1;

  public:
    Repeated(const VoxelGeometry& image, const Pieces& pieces, const std::array<const float*, N>& numbers, float* memory)
        : image(image), pieces(pieces), numbers(numbers), memory(memory) {}

    void go_to(index wanted) {
        if (wanted == sample) return;
        sample = wanted;
        for (std::size_t n = 0; n < N; ++n)
            for (index j = 0; j < pieces.period; ++j)
                memory[n * pieces.period + j] = numbers[n][sample * image.channels + j % image.channels];
    }
    template <typename T> T get(index n, index j) const { return load<T>(memory + n * pieces.period + j); }
};

// indices into numbers
enum { MEAN, SCALE, SHIFT, CONSTANT, MULTIPLE };

template <typename T, std::size_t N> inline T normalised(T distance, const Repeated<N>& numbers, index j) {
    return distance * numbers.template get<T>(SCALE, j) + numbers.template get<T>(SHIFT, j);
}

template <typename T> inline void add(float* sums, index j, T value) { store(sums + j, load<T>(sums + j) + value); }

}  // namespace

KERNEL moments(const VoxelGeometry* geometry, const float* x, double* sums_of_threads) {
    const VoxelGeometry& image = *geometry;
    const Pieces pieces(image);
    const index channels = image.channels;
#pragma omp parallel num_threads(image.threads)
    {
        const auto [first, sums, squares] = scratch.share({pieces.period, pieces.period, pieces.period});
#pragma omp for schedule(static)
        for (index number = 0; number < pieces.count; ++number) {
            const Piece piece = pieces[number];
            for (index j = 0; j < pieces.period; ++j) first[j] = x[piece.begin + j % channels];
            std::fill(sums, sums + pieces.period, 0.0f);
            std::fill(squares, squares + pieces.period, 0.0f);
            pieces.for_each(piece, [&, first = first, sums = sums, squares = squares](auto kind, index i, index j) {
                using T = decltype(kind);
                const T distance = load<T>(x + i) - load<T>(first + j);
                add(sums, j, distance);
                add(squares, j, distance * distance);
            });
            double* own_sums = sums_of_threads + (omp_get_thread_num() * image.batch + piece.sample) * (1 + 2 * channels);
            double *means = own_sums + 1, *spreads = means + channels;
            const double before = own_sums[0], own = piece.count / channels, all = before + own;
            for (index c = 0; c < channels; ++c) {
                const double sum = pieces.sum_of_channel(sums, c), apart = first[c] + sum / own - means[c];
                means[c] += apart * own / all;
                spreads[c] += pieces.sum_of_channel(squares, c) - sum * sum / own + apart * apart * before * own / all;
            }
            own_sums[0] = all;
        }
    }
}

KERNEL normalise(const VoxelGeometry* geometry, const float* x, const float* mean, const float* scale, const float* shift, float slope,
                 float* result) {
    const VoxelGeometry& image = *geometry;
    const Pieces pieces(image);
#pragma omp parallel num_threads(image.threads)
    {
        const auto [memory] = scratch.share({3 * pieces.period});
        Repeated<3> numbers(image, pieces, {mean, scale, shift}, memory);
#pragma omp for schedule(static)
        for (index number = 0; number < pieces.count; ++number) {
            const Piece piece = pieces[number];
            numbers.go_to(piece.sample);
            pieces.for_each(piece, [&](auto kind, index i, index j) {
                using T = decltype(kind);
                const T value = normalised<T>(load<T>(x + i) - numbers.template get<T>(MEAN, j), numbers, j);
                store(result + i, value > 0.0f ? value : value * slope);
            });
        }
    }
}

KERNEL normalise_sums(const VoxelGeometry* geometry, const float* x, const float* mean, const float* scale, const float* shift,
                      float slope, const float* gradient, double* sums_of_threads) {
    const VoxelGeometry& image = *geometry;
    const Pieces pieces(image);
#pragma omp parallel num_threads(image.threads)
    {
        const auto [memory, sums, products] = scratch.share({3 * pieces.period, pieces.period, pieces.period});
        Repeated<3> numbers(image, pieces, {mean, scale, shift}, memory);
#pragma omp for schedule(static)
        for (index number = 0; number < pieces.count; ++number) {
            const Piece piece = pieces[number];
            numbers.go_to(piece.sample);
            std::fill(sums, sums + pieces.period, 0.0f);
            std::fill(products, products + pieces.period, 0.0f);
            pieces.for_each(piece, [&, sums = sums, products = products](auto kind, index i, index j) {
                using T = decltype(kind);
                const T distance = load<T>(x + i) - numbers.template get<T>(MEAN, j), after = load<T>(gradient + i);
                const T own = normalised<T>(distance, numbers, j) > 0.0f ? after : after * slope;
                add(sums, j, own);
                add(products, j, own * distance);
            });
            double* own_sums = sums_of_threads + (omp_get_thread_num() * image.batch + piece.sample) * 2 * image.channels;
            for (index c = 0; c < image.channels; ++c) {
                own_sums[c] += pieces.sum_of_channel(sums, c);
                own_sums[image.channels + c] += pieces.sum_of_channel(products, c);
            }
        }
    }
}

KERNEL normalise_backward(const VoxelGeometry* geometry, const float* x, const float* mean, const float* scale, const float* shift,
                          float slope, const float* gradient, const float* constant, const float* multiple, float* result) {
    const VoxelGeometry& image = *geometry;
    const Pieces pieces(image);
#pragma omp parallel num_threads(image.threads)
    {
        const auto [memory] = scratch.share({5 * pieces.period});
        Repeated<5> numbers(image, pieces, {mean, scale, shift, constant, multiple}, memory);
#pragma omp for schedule(static)
        for (index number = 0; number < pieces.count; ++number) {
            const Piece piece = pieces[number];
            numbers.go_to(piece.sample);
            pieces.for_each(piece, [&](auto kind, index i, index j) {
                using T = decltype(kind);
                const T distance = load<T>(x + i) - numbers.template get<T>(MEAN, j), after = load<T>(gradient + i);
                const T own = normalised<T>(distance, numbers, j) > 0.0f ? after : after * slope;
                const T taken = numbers.template get<T>(CONSTANT, j) + distance * numbers.template get<T>(MULTIPLE, j);
                store(result + i, own * numbers.template get<T>(SCALE, j) - taken);
            });
        }
    }
}

KERNEL sum_voxels(const VoxelGeometry* geometry, const float* x, double* sums_of_threads) {
    const VoxelGeometry& image = *geometry;
    const Pieces pieces(image);
#pragma omp parallel num_threads(image.threads)
    {
        const auto [sums] = scratch.share({pieces.period});
#pragma omp for schedule(static)
        for (index number = 0; number < pieces.count; ++number) {
            const Piece piece = pieces[number];
            std::fill(sums, sums + pieces.period, 0.0f);
            pieces.for_each(piece, [&, sums = sums](auto kind, index i, index j) { add(sums, j, load<decltype(kind)>(x + i)); });
            double* own_sums = sums_of_threads + (omp_get_thread_num() * image.batch + piece.sample) * image.channels;
            for (index c = 0; c < image.channels; ++c) own_sums[c] += pieces.sum_of_channel(sums, c);
        }
    }
}
