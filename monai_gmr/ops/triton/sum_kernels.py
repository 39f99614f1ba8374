# mypy: disable-error-code="assignment,var-annotated"
"""Triton kernel of the sums over rings: reads every voxel a few times, independent of the window and the number of rings.

A program follows a column of voxels along the middle axis. In each plane it sums the taps with equal weights in every ring (first mirrored
taps along the last axis, for several rows at once, then rows), and keeps these sums for as many planes as the window is long; from them it
computes sums over shells and their mixtures, the rings, in registers.
"""

import triton
import triton.language as tl


@triton.jit
def load_plane(
    pointers, inside, source_0, row_2, stride_0, size_0, size_2, within,
    TAPS_2: tl.constexpr, LINES: tl.constexpr, STEP_2: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """The values at the taps along the last axis, for several rows of a plane, zero outside the image."""
    values = ()
    for line in tl.static_range(LINES):
        # as unsigned numbers, negative indices are larger than any size
        rows_inside = inside & ((source_0 + line).to(tl.uint32, bitcast=True) < size_0)
        for tap in tl.static_range(len(TAPS_2)):
            read = (rows_inside & ((row_2 + TAPS_2[tap]).to(tl.uint32, bitcast=True) < size_2))[:, None]
            if not WHOLE:
                read = read & within[None, :]
            place = line * stride_0 + TAPS_2[tap] * STEP_2
            values = values + (tl.load(pointers + place, mask=read, other=0.0),)
    return values


@triton.jit
def line_sums(values, TAPS: tl.constexpr, LINES: tl.constexpr, GROUP_STARTS: tl.constexpr):
    """Sums over each group of taps along the last axis, row by row, float32."""
    sums = ()
    for line in tl.static_range(LINES):
        for group in tl.static_range(len(GROUP_STARTS) - 1):
            for tap in tl.static_range(tl.constexpr(GROUP_STARTS[group]), tl.constexpr(GROUP_STARTS[group + 1])):
                if tap == GROUP_STARTS[group]:
                    total = values[line * TAPS + tap].to(tl.float32)
                else:
                    total += values[line * TAPS + tap].to(tl.float32)
            sums = sums + (total,)
    return sums


# one compilation for images and slabs of all sizes
@triton.jit(
    do_not_specialize=[
        *("size_0", "size_1", "size_2", "out_1", "out_2"),
        *("first_sample", "samples", "first_0", "rows", "chunk"),
    ]
)
def ring_sums_kernel(
    x_pointer, basis_pointer, sums_pointer, partner_pointer, product_pointer,
    stride_b, stride_0, stride_1, size_0, size_1, size_2, out_1, out_2,
    first_sample, samples, first_0, rows, chunk,
    TAPS_2: tl.constexpr, GROUP_STARTS: tl.constexpr, CLASS_LINES: tl.constexpr, CLASS_STARTS: tl.constexpr,
    SHELL_PLACES: tl.constexpr, SHELL_STARTS: tl.constexpr, LENGTH: tl.constexpr, LENGTH_0: tl.constexpr,
    MARGIN_0: tl.constexpr, MARGIN_1: tl.constexpr, DILATION_0: tl.constexpr, DILATION_1: tl.constexpr,
    RINGS: tl.constexpr, CHANNELS: tl.constexpr, STEP_2: tl.constexpr, PRODUCTS: tl.constexpr, ROWS: tl.constexpr,
    TILE_0: tl.constexpr, TILE_2: tl.constexpr, BLOCK_CHANNELS: tl.constexpr, KEEP_BASIS: tl.constexpr,
):  # fmt: skip
    """sums[b, v, r, c] = sum over shells s of basis[s, r] times the sum over the taps t of s of x[b, v + t, c], for the rows of a slab.

    Voxels of x are STEP_2 numbers apart along the last axis.

    With PRODUCTS also product[program, s, r] = sum over the program's voxels and channels of partner[b, v, r, c] times the sum over s.
    """
    GROUPS: tl.constexpr = len(GROUP_STARTS) - 1
    CLASSES: tl.constexpr = len(CLASS_STARTS) - 1
    SHELLS: tl.constexpr = len(SHELL_STARTS) - 1
    KEPT: tl.constexpr = (LENGTH - 1) * CLASSES
    WHOLE: tl.constexpr = CHANNELS % BLOCK_CHANNELS == 0
    TAPS: tl.constexpr = len(TAPS_2)
    LINES: tl.constexpr = ROWS + (LENGTH_0 - 1) * DILATION_0
    # 64 bits: offsets of several planes can exceed 32 bits
    stride_0 = tl.cast(stride_0, tl.int64)
    tiles_2 = tl.cdiv(out_2, TILE_2)
    blocks_0 = tl.cdiv(rows, ROWS)
    tile = tl.program_id(0)
    local = tl.arange(0, TILE_0 * TILE_2)
    block = (tile // tiles_2) * TILE_0 + local // TILE_2
    sample = block // blocks_0
    row = (block % blocks_0) * ROWS
    row_2 = (tile % tiles_2) * TILE_2 + local % TILE_2
    part = tl.program_id(1)
    first = part % DILATION_1 + DILATION_1 * chunk * (part // DILATION_1)
    channel = tl.program_id(2) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    within = channel < CHANNELS
    covered = (sample < samples) & (row_2 < out_2)
    source_0 = first_0 + row - MARGIN_0
    place = (first_sample + sample).to(tl.int64) * stride_b + source_0 * stride_0
    pointers = x_pointer + (place + row_2.to(tl.int64) * STEP_2)[:, None] + channel[None, :]
    result_plane = out_2.to(tl.int64) * (RINGS * CHANNELS)
    result_row = out_1 * result_plane
    place = (sample * rows + row).to(tl.int64) * result_row + row_2.to(tl.int64) * (RINGS * CHANNELS)
    results = place[:, None] + channel[None, :]
    empty = tl.zeros((TILE_0 * TILE_2, BLOCK_CHANNELS), tl.float32)
    basis = ()
    if KEEP_BASIS:
        for index in tl.static_range(SHELLS * RINGS):
            basis = basis + (tl.load(basis_pointer + index),)
    products = ()
    if PRODUCTS:
        for _ in tl.static_range(SHELLS * RINGS):
            products = products + (empty,)
    older = ()
    for _ in tl.static_range(ROWS * KEPT):
        older = older + (empty,)
    plane = first - MARGIN_1
    inside = covered & (plane >= 0) & (plane < size_1)
    at_plane = pointers + plane.to(tl.int64) * stride_1
    following = load_plane(
        at_plane, inside, source_0, row_2, stride_0, size_0, size_2, within, TAPS_2, LINES, STEP_2, WHOLE
    )
    for step in range(0, chunk + LENGTH - 1):
        values = following
        # prefetch the next plane
        plane = first + DILATION_1 * (step + 1) - MARGIN_1
        inside = covered & (plane >= 0) & (plane < size_1)
        at_plane = pointers + plane.to(tl.int64) * stride_1
        following = load_plane(
            at_plane, inside, source_0, row_2, stride_0, size_0, size_2, within, TAPS_2, LINES, STEP_2, WHOLE
        )
        lines = line_sums(values, TAPS, LINES, GROUP_STARTS)
        done = first + DILATION_1 * (step - (LENGTH - 1))
        ready = covered & (step >= LENGTH - 1) & (done < out_1)
        at = results + done.to(tl.int64) * result_plane
        newer = ()
        for t in tl.static_range(ROWS):
            window = ()
            for index in tl.static_range(KEPT):
                window = window + (older[t * KEPT + index],)
            for kind in tl.static_range(CLASSES):
                total = empty
                for index in tl.static_range(tl.constexpr(CLASS_STARTS[kind]), tl.constexpr(CLASS_STARTS[kind + 1])):
                    added = lines[
                        (t + CLASS_LINES[index] // GROUPS * DILATION_0) * GROUPS + CLASS_LINES[index] % GROUPS
                    ]
                    if index == CLASS_STARTS[kind]:
                        total = added
                    else:
                        total += added
                window = window + (total,)
            for index in tl.static_range(CLASSES, LENGTH * CLASSES):
                newer = newer + (window[index],)
            at_row = at + t * result_row
            kept = (ready & (row + t < rows))[:, None]
            if not WHOLE:
                kept = kept & within[None, :]
            partners = ()
            if PRODUCTS:
                for ring in tl.static_range(RINGS):
                    partner = tl.load(partner_pointer + at_row + ring * CHANNELS, mask=kept, other=0.0)
                    partners = partners + (partner.to(tl.float32),)
            sums = ()
            for _ in tl.static_range(RINGS):
                sums = sums + (empty,)
            grown = ()
            for shell in tl.static_range(SHELLS):
                total = empty
                for index in tl.static_range(tl.constexpr(SHELL_STARTS[shell]), tl.constexpr(SHELL_STARTS[shell + 1])):
                    if index == SHELL_STARTS[shell]:
                        total = window[SHELL_PLACES[index]]
                    else:
                        total += window[SHELL_PLACES[index]]
                mixed = ()
                for ring in tl.static_range(RINGS):
                    if KEEP_BASIS:
                        factor = basis[shell * RINGS + ring]
                    else:
                        factor = tl.load(basis_pointer + shell * RINGS + ring)
                    mixed = mixed + (sums[ring] + factor * total,)
                    if PRODUCTS:
                        grown = grown + (products[shell * RINGS + ring] + partners[ring] * total,)
                sums = mixed
            if PRODUCTS:
                products = grown
            for ring in tl.static_range(RINGS):
                value = sums[ring].to(sums_pointer.dtype.element_ty)
                tl.store(sums_pointer + at_row + ring * CHANNELS, value, mask=kept)
        older = newer
    if PRODUCTS:
        program = (tl.program_id(2) * tl.num_programs(1) + part) * tl.num_programs(0) + tile
        for index in tl.static_range(SHELLS * RINGS):
            tl.store(product_pointer + program.to(tl.int64) * (SHELLS * RINGS) + index, tl.sum(products[index]))
