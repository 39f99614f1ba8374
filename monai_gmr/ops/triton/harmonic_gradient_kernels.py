# mypy: disable-error-code="assignment,var-annotated"
"""Triton kernels of the gradients of image and weights for the orders above 0 of a harmonic layer, from the responses' gradients.

Both gather: they sum the gradients of the responses over each shell of the mirrored window, so that a shell costs one product over
channels.
"""

import triton
import triton.language as tl

from monai_gmr.ops.triton.harmonic_kernels import SIZES, SLAB


@triton.jit
def shell_total(
    gradient_pointer, taps_pointer, factors_pointer, first_tap, last_tap, local, row_0, row_1, row_2,
    out_0, out_1, out_2, kept_rows, base_row, inside, columns, RESPONSES: tl.constexpr, COLUMNS: tl.constexpr,
    COMPONENTS: tl.constexpr, TAPS: tl.constexpr,
):  # fmt: skip
    """Sum of the responses' gradients at the taps of a shell of the mirrored window, times factors, for a block of voxels, float32."""
    total = tl.zeros((row_0.shape[0], columns.shape[0]), tl.float32)
    for tap in range(first_tap, last_tap):
        at_0 = row_0 + tl.load(taps_pointer + 3 * tap)
        at_1 = row_1 + tl.load(taps_pointer + 3 * tap + 1)
        at_2 = row_2 + tl.load(taps_pointer + 3 * tap + 2)
        read = inside & (at_0.to(tl.uint32, bitcast=True) < out_0)
        read = read & (at_1.to(tl.uint32, bitcast=True) < out_1) & (at_2.to(tl.uint32, bitcast=True) < out_2)
        # at_0 % kept_rows
        turn = at_0 - base_row
        turn = tl.where(turn >= kept_rows, turn - kept_rows, turn)
        place = ((local * kept_rows + turn) * out_1 + at_1) * out_2 + at_2
        pointers = gradient_pointer + (place * RESPONSES)[:, None] + columns[None, :]
        mask = read[:, None] & (columns < COLUMNS)[None, :]
        for index in tl.static_range(COMPONENTS):
            factor = tl.load(factors_pointer + index * TAPS + tap)
            total += factor * tl.load(pointers + index * COLUMNS, mask=mask, other=0.0).to(tl.float32)
    return total


@triton.jit
def add_order(
    result, gradient_pointer, weight_pointer, taps_pointer, factors_pointer, starts_pointer, local, row_0, row_1, row_2,
    out_0, out_1, out_2, kept_rows, base_row, inside, channels, CHANNELS: tl.constexpr, WIDTH: tl.constexpr,
    RESPONSES: tl.constexpr, COLUMNS: tl.constexpr, COMPONENTS: tl.constexpr, SHELLS: tl.constexpr, TAPS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr, PRECISION: tl.constexpr, PRODUCT_TYPE: tl.constexpr,
):  # fmt: skip
    """``result`` plus one order's gradient of a block of voxels and channels."""
    for start in range(0, COLUMNS, BLOCK_COLUMNS):
        columns = start + tl.arange(0, BLOCK_COLUMNS)
        for shell in range(SHELLS):
            total = shell_total(
                gradient_pointer, taps_pointer, factors_pointer,
                tl.load(starts_pointer + shell), tl.load(starts_pointer + shell + 1), local, row_0, row_1, row_2,
                out_0, out_1, out_2, kept_rows, base_row, inside, columns, RESPONSES, COLUMNS, COMPONENTS, TAPS,
            )  # fmt: skip
            weight = tl.load(
                weight_pointer + ((shell * CHANNELS + channels) * WIDTH)[None, :] + columns[:, None],
                mask=(columns < COLUMNS)[:, None] & (channels < CHANNELS)[None, :],
                other=0.0,
            )
            result += tl.dot(total.to(PRODUCT_TYPE), weight.to(PRODUCT_TYPE), input_precision=PRECISION)
    return result


@triton.jit(do_not_specialize=[*SIZES, *SLAB, "base_row"])
def input_gradient_kernel(
    gradient_pointer, weight_pointer, taps_pointer, factors_pointer, starts_pointer, before_pointer, result_pointer,
    size_0, size_1, size_2, out_0, out_1, out_2, voxels, rows, first_sample, first_row, kept_rows, base_row,
    CHANNELS: tl.constexpr, WIDTH: tl.constexpr, RESPONSES: tl.constexpr, ORDERS: tl.constexpr,
    SHELLS: tl.constexpr, TAPS: tl.constexpr, ADDS: tl.constexpr, BLOCK_VOXELS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr, PRECISION: tl.constexpr, PRODUCT_TYPE: tl.constexpr,
):  # fmt: skip
    """The image's gradient for a slab, from the gradients of all orders' responses; with ADDS it is added to the previous values.

    ``ORDERS`` has for each order columns, components, first column, first response and first factor, one after the other.
    """
    block = tl.program_id(0).to(tl.int64) * BLOCK_VOXELS + tl.arange(0, BLOCK_VOXELS)
    channels = tl.program_id(1) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    inside = block < voxels
    within = channels < CHANNELS
    row_2 = (block % size_2).to(tl.int32)
    row_1 = (block // size_2 % size_1).to(tl.int32)
    row_0 = (block // size_2 // size_1 % rows).to(tl.int32) + first_row
    local = block // size_2 // size_1 // rows
    result = tl.zeros((BLOCK_VOXELS, BLOCK_CHANNELS), tl.float32)
    for order in tl.static_range(len(ORDERS) // 5):
        result = add_order(
            result, gradient_pointer + ORDERS[5 * order + 3], weight_pointer + ORDERS[5 * order + 2], taps_pointer,
            factors_pointer + ORDERS[5 * order + 4] * TAPS, starts_pointer, local, row_0, row_1, row_2,
            out_0, out_1, out_2, kept_rows, base_row, inside, channels, CHANNELS, WIDTH, RESPONSES,
            tl.constexpr(ORDERS[5 * order]), tl.constexpr(ORDERS[5 * order + 1]),
            SHELLS, TAPS, BLOCK_COLUMNS, PRECISION, PRODUCT_TYPE,
        )  # fmt: skip
    place = (((local + first_sample) * size_0 + row_0) * size_1 + row_1) * size_2 + row_2
    places = (place * CHANNELS)[:, None] + channels[None, :]
    mask = inside[:, None] & within[None, :]
    if ADDS:
        result += tl.load(before_pointer + places, mask=mask, other=0.0).to(tl.float32)
    tl.store(result_pointer + places, result.to(result_pointer.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=[*SIZES, *SLAB, "base_row", "chunk"])
def weight_gradient_kernel(
    x_pointer, gradient_pointer, taps_pointer, factors_pointer, starts_pointer, partial_pointer,
    size_0, size_1, size_2, out_0, out_1, out_2, voxels, rows, first_sample, first_row, kept_rows, base_row, chunk,
    CHANNELS: tl.constexpr, RESPONSES: tl.constexpr, COLUMNS: tl.constexpr, COMPONENTS: tl.constexpr,
    SHELLS: tl.constexpr, TAPS: tl.constexpr, BLOCK_VOXELS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr, PRECISION: tl.constexpr, PRODUCT_TYPE: tl.constexpr,
):  # fmt: skip
    """partial[part, s, c, n] = sum over the part's voxels of x[v, c] times the shell's total of the gradients of one order's responses."""
    part = tl.program_id(0)
    blocks = tl.cdiv(COLUMNS, BLOCK_COLUMNS)
    columns = (tl.program_id(1) % blocks) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    channels = (tl.program_id(1) // blocks) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    shell = tl.program_id(2)
    within = channels < CHANNELS
    first_tap = tl.load(starts_pointer + shell)
    last_tap = tl.load(starts_pointer + shell + 1)
    result = tl.zeros((BLOCK_CHANNELS, BLOCK_COLUMNS), tl.float32)
    for start in range(0, chunk, BLOCK_VOXELS):
        step = start + tl.arange(0, BLOCK_VOXELS)
        block = part.to(tl.int64) * chunk + step
        inside = (block < voxels) & (step < chunk)
        row_2 = (block % size_2).to(tl.int32)
        row_1 = (block // size_2 % size_1).to(tl.int32)
        row_0 = (block // size_2 // size_1 % rows).to(tl.int32) + first_row
        local = block // size_2 // size_1 // rows
        total = shell_total(
            gradient_pointer, taps_pointer, factors_pointer, first_tap, last_tap, local, row_0, row_1, row_2,
            out_0, out_1, out_2, kept_rows, base_row, inside, columns, RESPONSES, COLUMNS, COMPONENTS, TAPS,
        )  # fmt: skip
        place = (((local + first_sample) * size_0 + row_0) * size_1 + row_1) * size_2 + row_2
        values = tl.load(
            x_pointer + (place * CHANNELS)[:, None] + channels[None, :],
            mask=inside[:, None] & within[None, :],
            other=0.0,
        )
        result += tl.dot(tl.trans(values).to(PRODUCT_TYPE), total.to(PRODUCT_TYPE), input_precision=PRECISION)
    places = ((part * SHELLS + shell) * CHANNELS + channels).to(tl.int64) * COLUMNS
    tl.store(
        partial_pointer + places[:, None] + columns[None, :], result,
        mask=within[:, None] & (columns < COLUMNS)[None, :],
    )  # fmt: skip
