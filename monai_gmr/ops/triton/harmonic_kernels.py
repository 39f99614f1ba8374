# mypy: disable-error-code="assignment,var-annotated"
"""Triton kernels of the orders above 0 of a harmonic layer: from an image to scalars, and back.

All components of an order share the product over channels at a tap, ``x(v + t) w(shell of t)``, each times its own number: one product on
tensor cores serves all of them, and the responses stay in registers. Columns of the weights come in pairs, a response that becomes a length
next to the one that becomes an inner product with it, so that a program has both.
"""

import triton
import triton.language as tl

# one compilation for images and slabs of all sizes
SIZES = [*(f"size_{axis}" for axis in range(3)), *(f"out_{axis}" for axis in range(3))]
SLAB = ["voxels", "rows", "first_sample", "first_row", "kept_rows"]


@triton.jit
def add_lengths(start, parts):
    """``start`` plus the squares of the components."""
    for index in tl.static_range(len(parts)):
        start += parts[index] * parts[index]
    return start


@triton.jit
def responses_of(
    x_pointer, weight_pointer, taps_pointer, factors_pointer, starts_pointer, place, row_0, row_1, row_2,
    size_0, size_1, size_2, inside, columns, CHANNELS: tl.constexpr, WIDTH: tl.constexpr, COLUMNS: tl.constexpr,
    COMPONENTS: tl.constexpr, SHELLS: tl.constexpr, TAPS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
    PRECISION: tl.constexpr, PRODUCT_TYPE: tl.constexpr,
):  # fmt: skip
    """The components of a block of voxels and columns, float32."""
    empty = tl.zeros((place.shape[0], columns.shape[0]), tl.float32)
    responses = ()
    for _ in tl.static_range(COMPONENTS):
        responses = responses + (empty,)
    for start in range(0, CHANNELS, BLOCK_CHANNELS):
        channels = start + tl.arange(0, BLOCK_CHANNELS)
        within = channels < CHANNELS
        pointers = x_pointer + (place * CHANNELS)[:, None] + channels[None, :]
        for shell in range(SHELLS):
            weight = tl.load(
                weight_pointer + ((shell * CHANNELS + channels) * WIDTH)[:, None] + columns[None, :],
                mask=within[:, None] & (columns < COLUMNS)[None, :],
                other=0.0,
            ).to(PRODUCT_TYPE)
            for tap in range(tl.load(starts_pointer + shell), tl.load(starts_pointer + shell + 1)):
                step_0 = tl.load(taps_pointer + 3 * tap)
                step_1 = tl.load(taps_pointer + 3 * tap + 1)
                step_2 = tl.load(taps_pointer + 3 * tap + 2)
                # as unsigned numbers, negative indices are larger than any size
                read = inside & ((row_0 + step_0).to(tl.uint32, bitcast=True) < size_0)
                read = read & ((row_1 + step_1).to(tl.uint32, bitcast=True) < size_1)
                read = read & ((row_2 + step_2).to(tl.uint32, bitcast=True) < size_2)
                shift = ((step_0.to(tl.int64) * size_1 + step_1) * size_2 + step_2) * CHANNELS
                values = tl.load(pointers + shift, mask=read[:, None] & within[None, :], other=0.0)
                product = tl.dot(values.to(PRODUCT_TYPE), weight, input_precision=PRECISION)
                grown = ()
                for index in tl.static_range(COMPONENTS):
                    factor = tl.load(factors_pointer + index * TAPS + tap)
                    grown = grown + (responses[index] + factor * product,)
                responses = grown
    return responses


@triton.jit
def split_slots(responses, SLOTS: tl.constexpr):
    """Components of the lengths' responses, their partners and the third responses, for each pair of a block of columns."""
    left, right, third = (), (), ()
    for index in tl.static_range(len(responses)):
        part = responses[index]
        if SLOTS == 1:
            left = left + (part,)
        else:
            if SLOTS == 2:
                a, b = tl.split(tl.reshape(part, (part.shape[0], part.shape[1] // 2, 2)))
            else:
                even, odd = tl.split(tl.reshape(part, (part.shape[0], part.shape[1] // 4, 2, 2)))
                a, c = tl.split(even)
                b, _ = tl.split(odd)
                third = third + (c,)
            left = left + (a,)
            right = right + (b,)
    return left, right, third


@triton.jit
def join_slots(left, right, third, SLOTS: tl.constexpr):
    """The inverse of :func:`split_slots`, for one component."""
    if SLOTS == 1:
        part = left
    elif SLOTS == 2:
        part = tl.reshape(tl.join(left, right), (left.shape[0], left.shape[1] * 2))
    else:
        four = tl.join(tl.join(left, third), tl.join(right, tl.zeros_like(right)))
        part = tl.reshape(four, (left.shape[0], left.shape[1] * 4))
    return part


@triton.jit
def cross_product(a, b):
    """Cross product of two responses with three components."""
    return a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]


@triton.jit
def dot_product(a, b):
    """Sum of the products of components."""
    total = a[0] * b[0]
    for index in tl.static_range(1, len(a)):
        total += a[index] * b[index]
    return total


@triton.jit(do_not_specialize=[*SIZES, *SLAB])
def harmonic_kernel(
    x_pointer, weight_pointer, taps_pointer, factors_pointer, starts_pointer, bias_pointer, chiral_pointer,
    linear_pointer, y_pointer, responses_pointer, gradient_pointer, partial_pointer,
    size_0, size_1, size_2, out_0, out_1, out_2, voxels, rows, first_sample, first_row, kept_rows,
    smoothing, scale, chiral_scale,
    CHANNELS: tl.constexpr, OUTPUTS: tl.constexpr, FIRST: tl.constexpr, WIDTH: tl.constexpr, RESPONSES: tl.constexpr,
    COLUMNS: tl.constexpr, COMPONENTS: tl.constexpr, SLOTS: tl.constexpr, NORMS: tl.constexpr,
    PRODUCTS: tl.constexpr, SHELLS: tl.constexpr, TAPS: tl.constexpr, BACKWARD: tl.constexpr, BIAS: tl.constexpr,
    CHIRAL: tl.constexpr, LINEAR: tl.constexpr, STORES: tl.constexpr, BLOCK_VOXELS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr, PRECISION: tl.constexpr, PRODUCT_TYPE: tl.constexpr,
):  # fmt: skip
    """The scalars ``y`` of one order, or with BACKWARD the responses' gradient from the scalars' gradient; with STORES also the responses.

    All arrays have a row for each voxel. ``y`` has the rows of the whole batch, the responses those of this slab; the gradients are a ring
    buffer of ``kept_rows`` planes of the first axis for each sample of the slab.
    """
    block = tl.program_id(0).to(tl.int64) * BLOCK_VOXELS + tl.arange(0, BLOCK_VOXELS)
    columns = tl.program_id(1) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    inside = block < voxels
    wanted = inside[:, None] & (columns < COLUMNS)[None, :]
    row_2 = (block % out_2).to(tl.int32)
    row_1 = (block // out_2 % out_1).to(tl.int32)
    row_0 = (block // out_2 // out_1 % rows).to(tl.int32) + first_row
    local = block // out_2 // out_1 // rows
    sample = local + first_sample
    responses = responses_of(
        x_pointer, weight_pointer, taps_pointer, factors_pointer, starts_pointer,
        ((sample * size_0 + row_0) * size_1 + row_1) * size_2 + row_2, row_0, row_1, row_2,
        size_0, size_1, size_2, inside, columns, CHANNELS, WIDTH, COLUMNS,
        COMPONENTS, SHELLS, TAPS, BLOCK_CHANNELS, PRECISION, PRODUCT_TYPE,
    )  # fmt: skip
    if STORES:
        pointers = responses_pointer + (block * RESPONSES)[:, None] + columns[None, :]
        for index in tl.static_range(COMPONENTS):
            value = responses[index].to(responses_pointer.dtype.element_ty)
            tl.store(pointers + index * COLUMNS, value, mask=wanted)
    a, b, c = split_slots(responses, SLOTS)
    pairs = tl.program_id(1) * (BLOCK_COLUMNS // SLOTS) + tl.arange(0, BLOCK_COLUMNS // SLOTS)
    place = ((sample * out_0 + row_0) * out_1 + row_1) * out_2 + row_2
    norm_pointers = y_pointer + (place * OUTPUTS + FIRST)[:, None] + pairs[None, :]
    norm_mask = inside[:, None] & (pairs < NORMS)[None, :]
    product_pointers = norm_pointers + NORMS
    product_mask = inside[:, None] & (pairs < PRODUCTS)[None, :]
    squared = add_lengths(tl.zeros_like(a[0]), a)
    lengths = tl.sqrt(squared + smoothing * smoothing)
    inner = squared
    common = lengths
    turned = squared
    volume = lengths
    factor = tl.zeros((BLOCK_COLUMNS // SLOTS,), tl.float32)
    if PRODUCTS > 0:
        inner = dot_product(a, b)
        both = add_lengths(squared, b) + smoothing * smoothing
        common = tl.sqrt(both)
        if CHIRAL:
            factor = tl.load(chiral_pointer + NORMS + pairs, mask=pairs < PRODUCTS, other=0.0) * chiral_scale
            if SLOTS == 4:
                turned = dot_product(a, cross_product(b, c))
                volume = add_lengths(both, c)
            else:
                turned = a[0] * b[1] - a[1] * b[0]
                volume = common
    if not BACKWARD:
        scalar = lengths - smoothing
        if BIAS:
            scalar += tl.load(bias_pointer + pairs, mask=pairs < NORMS, other=0.0)[None, :]
        tl.store(norm_pointers, scalar.to(y_pointer.dtype.element_ty), mask=norm_mask)
        if PRODUCTS > 0:
            scalar = scale * inner / common
            if CHIRAL:
                scalar += factor[None, :] * turned / volume
            if BIAS:
                scalar += tl.load(bias_pointer + NORMS + pairs, mask=pairs < PRODUCTS, other=0.0)[None, :]
            tl.store(product_pointers, scalar.to(y_pointer.dtype.element_ty), mask=product_mask)
    else:
        own = tl.load(norm_pointers, mask=norm_mask, other=0.0).to(tl.float32) / lengths
        across = tl.zeros_like(own)
        shrink = tl.zeros_like(own)
        twist = tl.zeros_like(own)
        around = a
        beside = a
        if PRODUCTS > 0:
            wide = tl.load(product_pointers, mask=product_mask, other=0.0).to(tl.float32)
            across = scale * wide / common
            # part of both gradients due to the common length
            shrink = across * inner / (common * common)
            if CHIRAL:
                twist = wide * factor[None, :] / volume
                grown = tl.sum(wide * chiral_scale * turned / volume, 0)
                tl.store(partial_pointer + tl.program_id(0) * OUTPUTS + NORMS + pairs, grown, mask=pairs < PRODUCTS)
                if SLOTS == 4:
                    shrink += 2 * twist * turned / volume
                    around = cross_product(b, c)
                    beside = cross_product(c, a)
                else:
                    shrink += twist * turned / (common * common)
                    around = (b[1], -b[0])
                    beside = (-a[1], a[0])
        kept = ((local * kept_rows + row_0 % kept_rows) * out_1 + row_1) * out_2 + row_2
        pointers = gradient_pointer + (kept * RESPONSES)[:, None] + columns[None, :]
        third = cross_product(a, b) if CHIRAL and SLOTS == 4 else a
        for index in tl.static_range(COMPONENTS):
            left = (own - shrink) * a[index]
            right = left
            last = left
            if PRODUCTS > 0:
                left += across * b[index]
                right = across * a[index] - shrink * b[index]
                if CHIRAL:
                    left += twist * around[index]
                    right += twist * beside[index]
                    if SLOTS == 4:
                        last = twist * third[index] - 2 * twist * turned / volume * c[index]
            total = join_slots(left, right, last, SLOTS)
            if LINEAR:
                for start in range(0, OUTPUTS, BLOCK_CHANNELS):
                    outputs = start + tl.arange(0, BLOCK_CHANNELS)
                    exists = outputs < OUTPUTS
                    values = tl.load(
                        y_pointer + (place * OUTPUTS)[:, None] + outputs[None, :],
                        mask=inside[:, None] & exists[None, :],
                        other=0.0,
                    )
                    factors = tl.load(
                        linear_pointer + (outputs * RESPONSES)[:, None] + index * COLUMNS + columns[None, :],
                        mask=exists[:, None] & (columns < COLUMNS)[None, :],
                        other=0.0,
                    )
                    total += tl.dot(values.to(PRODUCT_TYPE), factors.to(PRODUCT_TYPE), input_precision=PRECISION)
            tl.store(pointers + index * COLUMNS, total.to(gradient_pointer.dtype.element_ty), mask=wanted)
