"""Radial convolutions on backend "triton" equal the dense kernel in float64; without a GPU in Triton's interpreter."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from monai_gmr.ops.ring_conv import dense_ring_conv
from monai_gmr.ops.slabs import Slab, make_slabs
from monai_gmr.ops.triton import launch
from monai_gmr.ops.triton import ring_conv as triton_conv
from monai_gmr.ops.triton.launch import SumBlocks
from monai_gmr.ops.triton.ring_conv import Rings, ring_sums, triton_ring_conv
from monai_gmr.ops.triton.tables import ring_table
from monai_gmr.symmetry import kernel_shells

pytest.importorskip("triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def problem(window, channels, rings, num_shells, size, batch, dtype=torch.float64):
    shells = torch.as_tensor(kernel_shells(window).tap_shell)
    x = torch.randn(batch, channels[0], *size, dtype=torch.float64).to(dtype).double()
    weight = torch.randn(channels[1], channels[0], rings, dtype=torch.float64).to(dtype).double()
    basis = torch.randn(rings, int(shells.max()) + 1, dtype=torch.float64)
    basis[:, num_shells:] = 0
    bias = torch.randn(channels[1], dtype=torch.float64).to(dtype).double()
    return [x, weight, basis, bias], shells


def relative_errors(inputs, shells, num_shells, padding, dilation, dtype=torch.float32, memory_format="contiguous"):
    """Of the output and of the gradients of input, weight, basis and bias."""
    dims = shells.dim()
    wide = [t.clone().requires_grad_() for t in inputs]
    arguments = (padding, dilation)
    expected = dense_ring_conv(*wide[:3], shells, wide[3], [1] * dims, *arguments, 1)
    seed = torch.randn_like(expected).to(dtype).double()
    gradients = torch.autograd.grad(expected, wide, seed)
    x, weight, basis, bias = (t.to(DEVICE) for t in inputs)
    x, weight, basis, bias = x.to(dtype), weight.to(dtype), basis[:, :num_shells].float(), bias.to(dtype)
    if memory_format == "channels last":
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    narrow = [t.requires_grad_() for t in (x, weight, basis, bias)]
    found = triton_ring_conv(*narrow[:3], shells, narrow[3], *arguments)
    assert found.dtype == dtype
    # one channel has both memory formats
    if min(x.shape[1], found.shape[1]) > 1:
        assert found.stride()[1] == (1 if memory_format == "channels last" else math.prod(found.shape[2:]))
    got = torch.autograd.grad(found, narrow, seed.to(DEVICE, dtype))
    pairs = [(found, expected), *zip(got, gradients)]
    pairs[3] = (got[2], gradients[2][:, :num_shells])
    assert all(a.shape == b.shape for a, b in pairs)
    return [float((a.detach().double().cpu() - b.detach()).norm() / b.detach().norm()) for a, b in pairs]


CASES = [
    ((3,), (3, 5), 2, 2, (9,), 2, [1], [1]),
    ((3, 3), (16, 5), 2, 3, (6, 7), 3, [1, 1], [1, 1]),
    ((5, 3), (3, 17), 2, 4, (9, 6), 1, [2, 0], [2, 1]),
    ((4, 4), (2, 2), 3, 3, (8, 7), 2, [0, 2], [1, 2]),
    ((9, 9), (2, 2), 5, 15, (4, 5), 1, [4, 4], [1, 1]),
    ((3, 3, 3), (20, 3), 2, 4, (3, 4, 5), 2, [1, 1, 1], [1, 1, 1]),
    ((5, 3, 4), (2, 3), 3, 9, (7, 2, 3), 1, [1, 2, 1], [2, 2, 1]),
    ((5, 5, 5), (2, 3), 3, 8, (3, 4, 2), 1, [2, 2, 2], [1, 1, 1]),
]


# the large windows, slow in the interpreter, in one format
@pytest.mark.parametrize(
    ("memory_format", "window", "channels", "rings", "num_shells", "size", "batch", "padding", "dilation"),
    [*(("contiguous", *case) for case in CASES), *(("channels last", *case) for case in [*CASES[:4], CASES[5]])],
)
def test_forward_and_gradients(
    monkeypatch, memory_format, window, channels, rings, num_shells, size, batch, padding, dilation
):
    # several slabs, and columns in several pieces
    monkeypatch.setattr(triton_conv, "LEAST_SLAB", 64)
    monkeypatch.setattr(triton_conv, "column_length", lambda lines, *_: max(1, lines // 2))
    inputs, shells = problem(window, channels, rings, num_shells, size, batch)
    assert max(relative_errors(inputs, shells, num_shells, padding, dilation, memory_format=memory_format)) <= 1e-5


geometries = st.tuples(
    # size, window, padding and dilation of each axis
    st.lists(
        st.tuples(st.integers(3, 5), st.integers(1, 3), st.integers(0, 1), st.integers(1, 2)), min_size=1, max_size=3
    ),
    st.tuples(st.sampled_from([1, 3, 16, 17]), st.integers(1, 5)),  # channels
    st.integers(1, 3),  # rings
    st.integers(1, 4),  # num_shells shells
    st.integers(1, 2),  # batch
    st.sampled_from(["contiguous", "channels last"]),
)


# the same examples each time: the interpreter takes a second for each
@settings(max_examples=12, deadline=None, derandomize=True)
@given(geometry=geometries)
def test_random_geometries(geometry):
    axes, channels, rings, num_shells, batch, memory_format = geometry
    size, window, padding, dilation = ([axis[i] for axis in axes] for i in range(4))
    assume(all(n + 2 * p > d * (k - 1) for n, k, p, d in axes))
    torch.manual_seed(0)
    inputs, shells = problem(tuple(window), channels, rings, num_shells, tuple(size), batch)
    num_shells = min(num_shells, int(shells.max()) + 1)
    assert max(relative_errors(inputs, shells, num_shells, padding, dilation, memory_format=memory_format)) <= 1e-5


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 2e-3), (torch.bfloat16, 2e-2)])
def test_half_precision_sums_in_float32(dtype, tolerance):
    inputs, shells = problem((3, 3, 3), (17, 16), 2, 4, (3, 4, 5), 1, dtype)
    assert max(relative_errors(inputs, shells, 4, [1] * 3, [1] * 3, dtype)) <= tolerance


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("number", [0, 1])
def test_all_blocks_give_the_same(monkeypatch, rows, number):
    blocks = SumBlocks.candidates(20, rows, 3, False, torch.float32)[number]
    monkeypatch.setattr(SumBlocks, "candidates", lambda *_: [blocks])
    inputs, shells = problem((3, 3, 3), (20, 3), 2, 4, (3, 5, 4), 1)
    assert max(relative_errors(inputs, shells, 4, [1] * 3, [1] * 3)) <= 1e-5


def test_gradients_that_are_not_asked_for_are_not_computed():
    (x, weight, basis, _), shells = problem((3, 3), (2, 3), 2, 3, (5, 6), 1)
    x, weight, basis = (t.float().to(DEVICE) for t in (x, weight, basis))
    for index in range(3):
        inputs = [t.clone().requires_grad_(n == index) for n, t in enumerate((x, weight, basis))]
        y = triton_ring_conv(*inputs, shells, None, [1, 1], [1, 1])
        y.sum().backward()
        assert [t.grad is not None for t in inputs] == [n == index for n in range(3)]
        wide = [t.detach().double().cpu().requires_grad_(n == index) for n, t in enumerate(inputs)]
        dense_ring_conv(*wide, shells, None, [1, 1], [1, 1], [1, 1], 1).sum().backward()
        assert torch.allclose(inputs[index].grad.double().cpu(), wide[index].grad, rtol=1e-4, atol=1e-4)


def test_gradients_of_gradients_are_those_of_the_dense_operation():
    (x, weight, basis, _), shells = problem((3, 3), (2, 3), 2, 3, (4, 5), 1)
    found = []
    for device, function in ((DEVICE, triton_ring_conv), ("cpu", None)):
        inputs = [t.float().to(device).requires_grad_() for t in (x, weight, basis)]
        geometry = ([1, 1], [1, 1])
        y = (
            function(*inputs, shells.to(device), None, *geometry)
            if function
            else dense_ring_conv(*inputs, shells, None, [1, 1], *geometry, 1)
        )
        first = torch.autograd.grad(y.square().sum(), inputs[0], create_graph=True)[0]
        found.append([t.cpu() for t in torch.autograd.grad(first.square().sum(), inputs)])
    for a, b in zip(*found):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("axis", "length"), [(0, 3), (1, 5)])
def test_places_that_32_bits_do_not_count(far_apart, axis, length):
    x = torch.randn(2, 6, 2, 3, 8).half().to(DEVICE)
    shells = kernel_shells((length, 1, 1)).tap_shell
    num_shells = int(shells.max()) + 1
    table = ring_table(shells, num_shells, (length // 2, 0, 0), (1, 1, 1))
    rings = Rings(table, torch.randn(num_shells, 2).to(DEVICE), (6, 2, 3))
    found = [torch.empty(2 * 6 * 2 * 3, 2 * 8, dtype=x.dtype, device=DEVICE) for _ in range(2)]
    for image, result in zip((x, far_apart(x, axis)), found):
        ring_sums(image, rings, Slab(0, 2, 0, 6), result)
    assert torch.equal(*found)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_the_operation_says_of_itself_what_it_does(memory_format):
    inputs, shells = problem((3, 3), (3, 4), 2, 3, (5, 6), 2)
    x, weight, basis, bias = (t.float().to(DEVICE) for t in inputs)
    arguments = [x.to(memory_format=memory_format), weight, basis, shells, bias, [1, 1], [1, 1]]
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    arguments = [t.requires_grad_() if torch.is_tensor(t) and t.is_floating_point() else t for t in arguments]
    found = torch.library.opcheck(triton_ring_conv, tuple(arguments), test_utils=tests)
    assert set(found.values()) == {"SUCCESS"}


@pytest.mark.parametrize(("window", "num_shells"), [((3, 3, 3), 4), ((5, 3, 7), 5), ((4, 1, 2), 2), ((7, 7, 7), 14)])
def test_the_table_counts_each_tap_of_a_shell_once(window, num_shells):
    shells = np.asarray(kernel_shells(window).tap_shell)
    table = ring_table(shells, num_shells, [0, 0, 0], [1, 1, 1])
    groups, classes = len(table.group_starts) - 1, len(table.class_starts) - 1
    counted = np.full(window, -1)
    for shell in range(num_shells):
        for place in table.shell_places[table.shell_starts[shell] : table.shell_starts[shell + 1]]:
            kind = place % classes
            for line in table.class_lines[table.class_starts[kind] : table.class_starts[kind + 1]]:
                for b in table.taps_2[table.group_starts[line % groups] : table.group_starts[line % groups + 1]]:
                    assert counted[line // groups, place // classes, b] == -1
                    counted[line // groups, place // classes, b] = shell
    assert np.array_equal(counted, np.where(shells < num_shells, shells, -1))


@pytest.mark.parametrize(
    ("samples", "sizes", "most"),
    [(3, (5, 4, 3), 24), (7, (1, 4, 3), 30), (2, (2, 2, 2), 1), (1, (30, 2, 2), 40), (0, (3, 2, 2), 9)],
)
def test_slabs_cover_each_row_once_and_follow_each_other(samples, sizes, most):
    rows = [
        (slab.first_sample + sample, slab.first_row + row)
        for slab in make_slabs(samples, sizes, most)
        for sample in range(slab.samples)
        for row in range(slab.rows)
    ]
    assert rows == [(sample, row) for sample in range(samples) for row in range(sizes[0])]


def test_the_sums_of_a_slab_take_at_most_half_of_the_input(monkeypatch):
    monkeypatch.setattr(triton_conv, "LEAST_SLAB", 1)
    inputs, shells = problem((3, 3, 3), (8, 8), 2, 4, (16, 4, 4), 1)
    seen = []
    monkeypatch.setattr(
        triton_conv, "ring_sums", lambda x, rings, slab, result, partner=None: seen.append(result.numel())
    )
    x, weight, basis, _ = (t.float() for t in inputs)
    triton_ring_conv(x, weight, basis, shells, None, [1] * 3, [1] * 3)
    assert max(seen) <= x.numel() // 2
    assert len(seen) == 4


def test_the_choice_of_blocks_is_kept(monkeypatch):
    monkeypatch.setattr(launch, "_fastest", {})
    timed = []
    monkeypatch.setattr(triton_conv, "timer_of", lambda device: lambda run: timed.append(run) or len(timed))
    monkeypatch.setattr(triton_conv, "choose_blocks", launch.choose_blocks)
    inputs, shells = problem((3, 3, 3), (4, 4), 2, 4, (4, 4, 4), 1)
    x, weight, basis, _ = (t.float() for t in inputs)
    for _ in range(2):
        triton_ring_conv(x.to(DEVICE), weight.to(DEVICE), basis.to(DEVICE), shells, None, [1] * 3, [1] * 3)
    assert len(timed) == len(SumBlocks.candidates(4, 4, 3, False, torch.float32))
