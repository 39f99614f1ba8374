// Gradient of the weights of a depthwise convolution with free taps: for each channel and tap the sum over voxels of image times gradient.
//
// Along a line voxels and channels are one axis: vectors hold the same channels after a period, the least common multiple of channels and
// lanes. If all taps of a line of the window are inside the image, their sums stay in registers; voxels at the ends are added one by one.
// Sums within a line are in single precision, sums over lines in double precision.

#include "kernels.h"
#include "vectors.h"

namespace {

constexpr index MOST_TAPS = 8;

// sums, (TAPS, period), += products of the gradient's floats with the image's floats at offset t * step for tap t
template <int TAPS>
void multiply_line(const float* image, index step, const float* gradient, index count, index period, float* sums) {
    const index vectors = count / LANES * LANES;
    for (index j = 0; j < std::min(period, vectors); j += LANES) {
        vector own[TAPS];
        set_to_zero(own);
        for (index i = j; i < vectors; i += period) {
            const vector value = load<vector>(gradient + i);
#pragma GCC unroll 8
            for (int t = 0; t < TAPS; ++t) own[t] += value * load<vector>(image + i + t * step);
        }
#pragma GCC unroll 8
        for (int t = 0; t < TAPS; ++t) store(sums + t * period + j, load<vector>(sums + t * period + j) + own[t]);
    }
    for (index i = vectors; i < count; ++i)
        for (int t = 0; t < TAPS; ++t) sums[t * period + i % period] += gradient[i] * image[i + t * step];
}

constexpr decltype(&multiply_line<1>) MULTIPLY_LINE[MOST_TAPS] = {multiply_line<1>, multiply_line<2>, multiply_line<3>, multiply_line<4>,
                                                                  multiply_line<5>, multiply_line<6>, multiply_line<7>, multiply_line<8>};

void multiply_voxel(const float* image, const float* gradient, index channels, float* sums) {
    index c = 0;
    for (; c + LANES <= channels; c += LANES)
        store(sums + c, load<vector>(sums + c) + load<vector>(gradient + c) * load<vector>(image + c));
    for (; c < channels; ++c) sums[c] += gradient[c] * image[c];
}

}  // namespace

KERNEL depthwise_weight_gradient(const DepthwiseGeometry* geometry, const float* image, const float* gradient, double* sums_of_threads) {
    const DepthwiseGeometry& g = *geometry;
    const index channels = g.channels, period = std::lcm<index>(channels, LANES), taps = g.window[2];
    const index step = g.dilation[2] * channels;
    // the voxels from first to last have all taps inside the image
    const index first = std::min(g.padding[2], g.sizes[2]);
    const index last = std::max(first, std::min(g.sizes[2], g.image[2] + g.padding[2] - (taps - 1) * g.dilation[2]));
#pragma omp parallel num_threads(g.threads)
    {
        const auto [sums] = scratch.share({taps * period});
        double* own = sums_of_threads + omp_get_thread_num() * g.window[0] * g.window[1] * taps * channels;
#pragma omp for schedule(static)
        for (index line = 0; line < g.batch * g.sizes[0] * g.sizes[1]; ++line) {
            const index y = line % g.sizes[1], z = line / g.sizes[1] % g.sizes[0], sample = line / g.sizes[1] / g.sizes[0];
            const float* values = gradient + line * g.sizes[2] * channels;
            for (index row = 0; row < g.window[0] * g.window[1]; ++row) {
                const index image_z = z + row / g.window[1] * g.dilation[0] - g.padding[0];
                const index image_y = y + row % g.window[1] * g.dilation[1] - g.padding[1];
                if (image_z < 0 || image_z >= g.image[0] || image_y < 0 || image_y >= g.image[1]) continue;
                const float* from = image + ((sample * g.image[0] + image_z) * g.image[1] + image_y) * g.image[2] * channels;
                std::fill(sums, sums + taps * period, 0.0f);
                for (index tap = 0; tap < taps; tap += MOST_TAPS)
                    MULTIPLY_LINE[std::min(MOST_TAPS, taps - tap) - 1](from + (first - g.padding[2]) * channels + tap * step, step,
                                                                       values + first * channels, (last - first) * channels, period,
                                                                       sums + tap * period);
                for (index tap = 0; tap < taps; ++tap) {
                    const index shift = tap * g.dilation[2] - g.padding[2];
                    const auto add = [&](index begin, index end) {
                        for (index x = std::max(begin, -shift); x < std::min(end, g.image[2] - shift); ++x)
                            multiply_voxel(from + (x + shift) * channels, values + x * channels, channels, sums + tap * period);
                    };
                    add(0, first);
                    add(last, g.sizes[2]);
                    for (index i = 0; i < period; i += channels)
                        for (index c = 0; c < channels; ++c) own[(row * taps + tap) * channels + c] += sums[tap * period + i + c];
                }
            }
        }
    }
}
