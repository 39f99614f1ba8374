// Plain C interface of the library, which library.py declares to ctypes, field by field and argument by argument.
//
// Images are (batch, *sizes, channels) in float32; missing axes have size 1. Arrays with an axis of threads hold the sums of each thread.
// Null arguments are not read or not computed. Checked kernels return whether they could allocate memory for their copies of the weights;
// without it they write nothing.

#pragma once

#include <cstdint>

#define KERNEL extern "C" __attribute__((visibility("default"))) void
#define CHECKED_KERNEL extern "C" __attribute__((visibility("default"))) bool

struct RingConvGeometry {
    std::int64_t batch, sizes[3], image[3];  // sizes of the result, and of the image with its margins
    std::int64_t channels, columns;          // of the image, and of the product of its sums with the weights, over all groups
    std::int64_t shells, rings, threads;
    std::int64_t row;     // floats from voxel to voxel of the result
    std::int64_t groups;  // blocks of channels, each with its own block of columns
    std::int64_t lines;   // sets of equal lines of the window, which are added first, or 0
    std::int64_t columns_first;  // whether weights are (groups, columns, channels, rings), not (groups, channels, columns, rings)
};

// The taps of shell s are first_taps[s] to first_taps[s + 1]; sets_of_taps has the set of lines whose sums a tap reads. first_lines
// likewise has the lines of a set. Taps and lines are positions (count, 3) in voxels from the window's first. basis: (rings, shells).

// result = ring sums of the image times weight, plus bias, (columns,) or null
CHECKED_KERNEL ring_conv(const RingConvGeometry* geometry, const std::int64_t* first_taps, const std::int64_t* taps,
                         const std::int64_t* sets_of_taps, const std::int64_t* first_lines, const std::int64_t* lines, const float* basis,
                         const float* image, const float* weight, const float* bias, float* result);

// other_gradient = ring sums of the image times weight; weight_gradient += products of these sums with other; basis_gradient += inner
// products of the shell sums with other times weight; each gradient can be null
CHECKED_KERNEL ring_conv_backward(const RingConvGeometry* geometry, const std::int64_t* first_taps, const std::int64_t* taps,
                                  const std::int64_t* sets_of_taps, const std::int64_t* first_lines, const std::int64_t* lines, const float* basis,
                                  const float* image, const float* other, const float* weight, float* other_gradient, float* weight_gradient,
                                  double* basis_gradient);

struct HarmonicConvGeometry {
    std::int64_t batch, sizes[3], image[3], padding[3], reach[3];
    std::int64_t channels, shells, components, norms, products;
    std::int64_t all_shells;  // of the weights
    std::int64_t row;         // floats from voxel to voxel of the scalars
    std::int64_t linear_row;  // floats from scalar to scalar of linear
    std::int64_t terms, entries, threads;
};

// A term is two taps of a shell, or one tap twice with sign 0: places (terms, 2, 3) in voxels, shells (terms,), signs (terms,), angular
// factors (terms, components). used: (shells,), the weights' shells that have terms. weight: (norms + products, channels, all shells).

// Only for layers that keep a subgroup, otherwise null: linear, (row, norms + products, components), the factor of each response in each
// scalar; chiral, (norms,), factors of the inner products' terms whose sign mirroring changes, 0 beyond the products.

// bias: (norms + products,) or null; scalars: the channels of the order. With linear, results are added to scalars, linear terms to all.
CHECKED_KERNEL harmonic_conv(const HarmonicConvGeometry* geometry, const std::int64_t* places, const std::int64_t* shells, const float* signs,
                             const float* angular, const std::int64_t* used, const float* image, const float* weight, float smoothing, float scale,
                             const float* bias, const float* linear, const float* chiral, float* scalars, float* all);

// first (shells + 1,) and entries (entries, 2): term and component of each nonzero factor of a shell. The gradients of image, weight and
// linear, and those of the factors to chiral_gradient, (threads, norms), are added to previous values; each can be null
CHECKED_KERNEL harmonic_conv_backward(const HarmonicConvGeometry* geometry, const std::int64_t* places, const std::int64_t* shells,
                                      const float* signs, const float* angular, const std::int64_t* used, const std::int64_t* first,
                                      const std::int64_t* entries, const float* image, const float* weight, float smoothing, float scale,
                                      const float* linear, const float* chiral, const float* gradient, const float* all, float* image_gradient,
                                      float* weight_gradient, float* linear_gradient, double* chiral_gradient);

struct VoxelGeometry {
    std::int64_t batch, voxels, channels, threads;
};

// sums: (threads, batch, 1 + 2 * channels), initially zero: voxels, means, and sums of squares about the means
KERNEL moments(const VoxelGeometry* geometry, const float* x, double* sums);

// result = (x - mean) * scale + shift, times slope where it is negative; mean, scale and shift are (batch, channels)
KERNEL normalise(const VoxelGeometry* geometry, const float* x, const float* mean, const float* scale, const float* shift, float slope,
                 float* result);

// sums: (threads, batch, 2, channels), initially zero: sums over voxels of the gradient before the rectifier, and of its products with
// x - mean
KERNEL normalise_sums(const VoxelGeometry* geometry, const float* x, const float* mean, const float* scale, const float* shift, float slope,
                      const float* gradient, double* sums);

// result = scale * gradient before the rectifier - constant - multiple * (x - mean)
KERNEL normalise_backward(const VoxelGeometry* geometry, const float* x, const float* mean, const float* scale, const float* shift,
                          float slope, const float* gradient, const float* constant, const float* multiple, float* result);

// sums: (threads, batch, channels), initially zero
KERNEL sum_voxels(const VoxelGeometry* geometry, const float* x, double* sums);

struct ResampleGeometry {
    std::int64_t before, size, target, after, width, threads;  // the image is (before, size, after), the result (before, target, after)
};

// row j of the matrix begins at column first[j] and has the numbers weights[j * width] to weights[(j + 1) * width - 1]
KERNEL resample(const ResampleGeometry* geometry, const std::int64_t* first, const float* weights, const float* x, float* result);

struct TransposeGeometry {
    std::int64_t batch, rows, columns, threads;
};

// result: (batch, columns, rows)
KERNEL transpose(const TransposeGeometry* geometry, const float* x, float* result);

struct DepthwiseGeometry {
    std::int64_t batch, sizes[3], image[3], padding[3], window[3], dilation[3], channels, threads;
};

// sums: (threads, taps, channels), initially zero: sums of the products of image and gradient at each tap
KERNEL depthwise_weight_gradient(const DepthwiseGeometry* geometry, const float* image, const float* gradient, double* sums);
