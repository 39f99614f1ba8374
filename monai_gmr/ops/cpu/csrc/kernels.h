// The interface of the library, plain C: what ctypes declares in library.py, field by field and argument by argument.
//
// Images are (batch, *sizes, channels) in float32; an image of fewer than three axes has sizes of 1. Arrays of threads hold what each
// thread added up. What may be null is not read or not computed. Checked kernels answer whether they found memory for their copies of the
// weights; without it they write nothing.

#pragma once

#include <cstdint>

#define KERNEL extern "C" __attribute__((visibility("default"))) void
#define CHECKED_KERNEL extern "C" __attribute__((visibility("default"))) bool

struct RingConvGeometry {
    std::int64_t batch, sizes[3], image[3];  // sizes of the result, and of the image with its margins
    std::int64_t channels, columns;          // of the image, and of what its sums are multiplied to, over all groups
    std::int64_t shells, rings, threads;
    std::int64_t row;     // floats from voxel to voxel of the result
    std::int64_t groups;  // blocks of channels, each multiplied to its own block of columns
    std::int64_t lines;   // sets of lines of the window that are alike and added first, or 0
    std::int64_t columns_first;  // whether weights are (groups, columns, channels, rings), not (groups, channels, columns, rings)
};

// The taps of shell s are first_taps[s] to first_taps[s + 1]; a tap lies in the sums of the set sets_of_taps. The lines of a set are
// first_lines likewise. Taps and lines are places (count, 3) in voxels from the window's first. basis: (rings, shells).

// result = sums of rings of the image times weight, plus bias, (columns,), or null
CHECKED_KERNEL ring_conv(const RingConvGeometry* geometry, const std::int64_t* first_taps, const std::int64_t* taps,
                         const std::int64_t* sets_of_taps, const std::int64_t* first_lines, const std::int64_t* lines, const float* basis,
                         const float* image, const float* weight, const float* bias, float* result);

// other_gradient = sums of rings of the image times weight; to weight_gradient the products of these sums with other are added; to
// basis_gradient the inner products of the sums of shells with other times weight; each gradient may be null
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

// A term is two taps of a shell, or twice the same with sign 0: places (terms, 2, 3) in voxels, shells (terms,), signs (terms,), angular
// factors (terms, components). used: (shells,), those of the weights' shells that have terms. weight: (norms + products, channels, all
// shells).

// Of layers that keep a subgroup, otherwise null: linear, (row, norms + products, components), what all scalars get of each response;
// chiral, (norms,), factors of the terms of inner products that mirror images change the sign of, 0 beyond the products.

// bias: (norms + products,) or null; scalars: the channels of the order; with linear added to them, and its products to all
CHECKED_KERNEL harmonic_conv(const HarmonicConvGeometry* geometry, const std::int64_t* places, const std::int64_t* shells, const float* signs,
                             const float* angular, const std::int64_t* used, const float* image, const float* weight, float smoothing, float scale,
                             const float* bias, const float* linear, const float* chiral, float* scalars, float* all);

// first and entries: (shells + 1,) and (entries, 2): term and component of each factor of a shell that is not 0. The gradients of image,
// weight and linear are added to what is there; to chiral_gradient, (threads, norms), those of the factors are added; each may be null
CHECKED_KERNEL harmonic_conv_backward(const HarmonicConvGeometry* geometry, const std::int64_t* places, const std::int64_t* shells,
                                      const float* signs, const float* angular, const std::int64_t* used, const std::int64_t* first,
                                      const std::int64_t* entries, const float* image, const float* weight, float smoothing, float scale,
                                      const float* linear, const float* chiral, const float* gradient, const float* all, float* image_gradient,
                                      float* weight_gradient, float* linear_gradient, double* chiral_gradient);

struct VoxelGeometry {
    std::int64_t batch, voxels, channels, threads;
};

// sums: (threads, batch, 1 + 2 * channels), zero before: voxels, means, and sums of squares about them
KERNEL moments(const VoxelGeometry* geometry, const float* x, double* sums);

// result = (x - mean) * scale + shift, times slope where it is negative; mean, scale and shift are (batch, channels)
KERNEL normalise(const VoxelGeometry* geometry, const float* x, const float* mean, const float* scale, const float* shift, float slope,
                 float* result);

// sums: (threads, batch, 2, channels), zero before: sums over voxels of the gradient in front of the rectifier, and of its products with
// x - mean
KERNEL normalise_sums(const VoxelGeometry* geometry, const float* x, const float* mean, const float* scale, const float* shift, float slope,
                      const float* gradient, double* sums);

// result = scale times the gradient in front of the rectifier, less constant, less multiple times (x - mean)
KERNEL normalise_backward(const VoxelGeometry* geometry, const float* x, const float* mean, const float* scale, const float* shift,
                          float slope, const float* gradient, const float* constant, const float* multiple, float* result);

// sums: (threads, batch, channels), zero before
KERNEL sum_voxels(const VoxelGeometry* geometry, const float* x, double* sums);

struct ResampleGeometry {
    std::int64_t before, size, target, after, width, threads;  // the image is (before, size, after), the result (before, target, after)
};

// row j of the matrix begins in column first[j] and is weights[j * width] and what follows
KERNEL resample(const ResampleGeometry* geometry, const std::int64_t* first, const float* weights, const float* x, float* result);

struct TransposeGeometry {
    std::int64_t batch, rows, columns, threads;
};

// result: (batch, columns, rows)
KERNEL transpose(const TransposeGeometry* geometry, const float* x, float* result);

struct DepthwiseGeometry {
    std::int64_t batch, sizes[3], image[3], padding[3], window[3], dilation[3], channels, threads;
};

// sums: (threads, taps, channels), zero before: to them the products of the image with the gradient at each tap are added
KERNEL depthwise_weight_gradient(const DepthwiseGeometry* geometry, const float* image, const float* gradient, double* sums);
