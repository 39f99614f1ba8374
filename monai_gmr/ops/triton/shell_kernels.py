"""Triton kernels of the convolution with functions on shells: sums over a shell in registers, one matrix product per shell.

Per output voxel, input channel and component a shell costs one addition for each of its taps and ``out_channels`` multiplications, while a
dense kernel multiplies at every tap; only input, weights and output are read or written.
"""

import triton
import triton.language as tl


@triton.jit
def values_at_tap(
    pointers, tap_pointer, row_0, row_1, row_2, stride_0, stride_1, stride_2, size_0, size_1, size_2, inside, within
):
    """A block of voxels and channels at one tap, float32, zero beyond the image."""
    row_0 += tl.load(tap_pointer)
    row_1 += tl.load(tap_pointer + 1)
    row_2 += tl.load(tap_pointer + 2)
    within_image = inside & (row_0 >= 0) & (row_0 < size_0) & (row_1 >= 0) & (row_1 < size_1)
    within_image = within_image & (row_2 >= 0) & (row_2 < size_2)
    place = row_0 * stride_0 + row_1 * stride_1 + row_2 * stride_2
    return tl.load(pointers + place[:, None], mask=within_image[:, None] & within[None, :], other=0.0).to(tl.float32)


@triton.jit
def shell_conv_kernel(
    x_pointer, weight_pointer, taps_pointer, factors_pointer, starts_pointer, y_pointer,
    x_stride_b, x_stride_c, x_stride_0, x_stride_1, x_stride_2,
    y_stride_b, y_stride_c, y_stride_m, y_stride_0, y_stride_1, y_stride_2,
    size_0, size_1, size_2, out_0, out_1, out_2, step_0, step_1, step_2,
    voxels, in_channels, out_channels, components, shells, taps,
    BLOCK_VOXELS: tl.constexpr, BLOCK_OUT: tl.constexpr, BLOCK_IN: tl.constexpr,
    PRECISION: tl.constexpr, PRODUCT_TYPE: tl.constexpr,
):  # fmt: skip
    """y[b, g, o, m, v] = sum over shells s and channels c of weight[g, s, c, o] * total[v, c], where total[v, c] is the sum over the taps t
    of s of factors[m, t] * x[b, g, c, v + t]."""
    # 64 bits: offsets of several components can exceed 32 bits
    y_stride_m = tl.cast(y_stride_m, tl.int64)
    block = tl.program_id(0).to(tl.int64) * BLOCK_VOXELS + tl.arange(0, BLOCK_VOXELS)
    outs = tl.program_id(1) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    group = tl.program_id(2) // components
    component = tl.program_id(2) % components
    inside = block < voxels
    last = block % out_2
    middle = (block // out_2) % out_1
    first = (block // out_2 // out_1) % out_0
    sample = block // out_2 // out_1 // out_0
    base = sample * x_stride_b
    result = tl.zeros((BLOCK_VOXELS, BLOCK_OUT), tl.float32)
    for start in range(0, in_channels, BLOCK_IN):
        channels = start + tl.arange(0, BLOCK_IN)
        within = channels < in_channels
        columns = (group * in_channels + channels).to(tl.int64) * x_stride_c
        for shell in range(shells):
            total = tl.zeros((BLOCK_VOXELS, BLOCK_IN), tl.float32)
            for tap in range(tl.load(starts_pointer + shell), tl.load(starts_pointer + shell + 1)):
                values = values_at_tap(
                    x_pointer + base[:, None] + columns[None, :], taps_pointer + 3 * tap,
                    first * step_0, middle * step_1, last * step_2,
                    x_stride_0, x_stride_1, x_stride_2, size_0, size_1, size_2, inside, within,
                )  # fmt: skip
                total += tl.load(factors_pointer + component * taps + tap) * values
            rows = ((group * shells + shell) * in_channels + channels).to(tl.int64) * out_channels
            weight = tl.load(
                weight_pointer + rows[:, None] + outs[None, :],
                mask=within[:, None] & (outs < out_channels)[None, :],
                other=0.0,
            )
            result += tl.dot(total.to(PRODUCT_TYPE), weight.to(PRODUCT_TYPE), input_precision=PRECISION)
    place = sample * y_stride_b + first * y_stride_0 + middle * y_stride_1 + last * y_stride_2
    columns = (group * out_channels + outs).to(tl.int64) * y_stride_c + component * y_stride_m
    tl.store(
        y_pointer + place[:, None] + columns[None, :],
        result.to(y_pointer.dtype.element_ty),
        mask=inside[:, None] & (outs < out_channels)[None, :],
    )


@triton.jit
def shell_weight_gradient_kernel(
    x_pointer, gradient_pointer, taps_pointer, factors_pointer, starts_pointer, partial_pointer,
    x_stride_b, x_stride_c, x_stride_0, x_stride_1, x_stride_2,
    y_stride_b, y_stride_c, y_stride_m, y_stride_0, y_stride_1, y_stride_2,
    size_0, size_1, size_2, out_0, out_1, out_2, step_0, step_1, step_2,
    voxels, in_channels, out_channels, components, shells, taps,
    groups, chunk,
    BLOCK_VOXELS: tl.constexpr, BLOCK_OUT: tl.constexpr, BLOCK_IN: tl.constexpr,
    PRECISION: tl.constexpr, PRODUCT_TYPE: tl.constexpr,
):  # fmt: skip
    """partial[chunk, g, s, c, o] = sum over the chunk's voxels and components of the shell's total of x times the gradient of y."""
    # 64 bits: offsets of several components can exceed 32 bits
    y_stride_m = tl.cast(y_stride_m, tl.int64)
    part = tl.program_id(0)
    blocks_out = tl.cdiv(out_channels, BLOCK_OUT)
    outs = (tl.program_id(1) % blocks_out) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    channels = (tl.program_id(1) // blocks_out) * BLOCK_IN + tl.arange(0, BLOCK_IN)
    group = tl.program_id(2) // shells
    shell = tl.program_id(2) % shells
    within = channels < in_channels
    wanted = outs < out_channels
    columns = (group * in_channels + channels).to(tl.int64) * x_stride_c
    result = tl.zeros((BLOCK_IN, BLOCK_OUT), tl.float32)
    for start in range(0, chunk, BLOCK_VOXELS):
        local = start + tl.arange(0, BLOCK_VOXELS)
        block = part.to(tl.int64) * chunk + local
        inside = (block < voxels) & (local < chunk)
        last = block % out_2
        middle = (block // out_2) % out_1
        first = (block // out_2 // out_1) % out_0
        sample = block // out_2 // out_1 // out_0
        base = sample * x_stride_b
        place_y = sample * y_stride_b + first * y_stride_0 + middle * y_stride_1 + last * y_stride_2
        for component in range(components):
            total = tl.zeros((BLOCK_VOXELS, BLOCK_IN), tl.float32)
            for tap in range(tl.load(starts_pointer + shell), tl.load(starts_pointer + shell + 1)):
                values = values_at_tap(
                    x_pointer + base[:, None] + columns[None, :], taps_pointer + 3 * tap,
                    first * step_0, middle * step_1, last * step_2,
                    x_stride_0, x_stride_1, x_stride_2, size_0, size_1, size_2, inside, within,
                )  # fmt: skip
                total += tl.load(factors_pointer + component * taps + tap) * values
            columns_y = (group * out_channels + outs).to(tl.int64) * y_stride_c + component * y_stride_m
            gradient = tl.load(
                gradient_pointer + place_y[:, None] + columns_y[None, :],
                mask=inside[:, None] & wanted[None, :],
                other=0.0,
            )
            result += tl.dot(tl.trans(total).to(PRODUCT_TYPE), gradient.to(PRODUCT_TYPE), input_precision=PRECISION)
    rows = ((part.to(tl.int64) * groups + group) * shells + shell) * in_channels + channels
    places = partial_pointer + rows[:, None] * out_channels + outs[None, :]
    tl.store(places, result, mask=within[:, None] & wanted[None, :])
