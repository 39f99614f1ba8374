"""Backend "compiled" gives what the dense kernel gives in float64, forward and backward, or says why it does not run."""

import logging
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st

from monai_gmr import set_backend
from monai_gmr.networks.layers import GMRConv2d, GMRConv3d, GMRHarmonicConv2d, GMRHarmonicConv3d
from monai_gmr.ops import compiled_conv, compiled_loops, ring_kernels
from monai_gmr.ops.compiled_conv import compiled_factor_conv, compiled_ring_conv
from monai_gmr.ops.compiled_loops import part_of, slices_of
from monai_gmr.ops.ring_conv import dense_ring_conv
from monai_gmr.ops.shell_conv import dense_shell_conv
from monai_gmr.symmetry import kernel_shells, tap_harmonics

pytestmark = pytest.mark.skipif(compiled_loops.compiler_failure() is not None, reason="no C++ compiler")


def problem(window, channels, live, size, batch):
    shells = torch.as_tensor(kernel_shells(window).tap_shell)
    x = torch.randn(batch, channels[0], *size, dtype=torch.float64)
    weight = torch.randn(channels[1], channels[0], 2, dtype=torch.float64)
    basis = torch.randn(2, int(shells.max()) + 1, dtype=torch.float64)
    basis[:, live:] = 0
    return [x, weight, basis, shells]


CASES = [
    ((3,), (3, 5), 2, (9,), 2, 1, 1),
    ((3, 3), (16, 5), 3, (6, 7), 3, 1, 1),
    ((5, 3), (3, 17), 4, (9, 6), 1, 2, 2),
    ((4, 4), (2, 2), 3, (8, 7), 2, 0, 1),
    ((3, 3, 3), (4, 3), 4, (5, 4, 6), 2, 1, 1),
    ((5, 5, 3), (2, 3), 4, (5, 6, 7), 1, 2, 1),
    ((3, 5), (20, 33), 4, (6, 150), 2, 1, 1),
]


@pytest.mark.parametrize(("window", "channels", "live", "size", "batch", "padding", "dilation"), CASES)
@pytest.mark.parametrize(("part", "memory_format"), [(2**23, "contiguous"), (1, "channels last")])
def test_forward_and_gradients(
    monkeypatch, window, channels, live, size, batch, padding, dilation, part, memory_format
):
    monkeypatch.setattr(compiled_loops, "BYTES_OF_A_PART", part * 300)
    x, weight, basis, shells = problem(window, channels, live, size, batch)
    dims = len(window)
    inputs = [t.requires_grad_() for t in (x, weight, basis)]
    geometry = ([padding] * dims, [dilation] * dims)
    bias = torch.randn(len(weight), dtype=torch.float64)
    inputs.append(bias.requires_grad_())
    expected = dense_ring_conv(x, weight, basis, shells, bias, [1] * dims, *geometry, 1)
    seed = torch.randn_like(expected)
    expected_gradients = list(torch.autograd.grad(expected, inputs, seed))
    expected_gradients[2] = expected_gradients[2][:, :live]
    single = [t.detach().float() for t in (x, weight, basis[:, :live], bias)]
    if memory_format == "channels last":
        single[0] = single[0].movedim(1, -1).contiguous().movedim(-1, 1)
    single = [t.requires_grad_() for t in single]
    found = compiled_ring_conv(*single[:3], shells, single[3], *geometry)
    gradients = torch.autograd.grad(found, single, seed.float())
    # where the input needs no gradient, a first layer, sums may be over the input
    first = torch.autograd.grad(
        compiled_ring_conv(single[0].detach(), *single[1:3], shells, None, *geometry), single[1:3], seed.float()
    )
    for a, b in zip((found, *gradients, *first), (expected, *expected_gradients, *expected_gradients[1:3])):
        assert a.shape == b.shape
        assert (a - b).norm() <= 1e-5 * b.norm()


@pytest.mark.parametrize("convolves", [False, True])
def test_matrix_products_either_way(monkeypatch, convolves):
    monkeypatch.setattr(compiled_conv, "_multiplies_by_convolution", lambda: convolves)
    x, matrix, bias, seed = (torch.randn(shape) for shape in ((2, 3, 4, 5), (6, 5), (6,), (2, 3, 4, 6)))
    wanted = torch.einsum("...i,oi->...o", x.double(), matrix.double())
    assert torch.allclose(compiled_conv._product(x, matrix).double(), wanted, atol=1e-5)
    assert torch.allclose(compiled_conv._product(x, matrix, bias).double(), wanted + bias, atol=1e-5)
    gradients = compiled_conv._product_gradients(seed, x, matrix, [True, True])
    expected = ("...o,oi->...i", seed, matrix), ("xyzo,xyzi->oi", seed, x)
    for found, (formula, *factors) in zip(gradients, expected):
        assert torch.allclose(found.double(), torch.einsum(formula, *(each.double() for each in factors)), atol=1e-5)
    assert compiled_conv._product_gradients(seed, x, matrix, [False, False]) == (None, None)


FACTOR_CASES = [
    ((3,), (3, 5), 1, (9,), 2, 1, 1),
    ((3, 3), (5, 4), 2, (6, 7), 3, 1, 1),
    ((5, 3), (3, 17), 1, (9, 6), 1, 2, 2),
    ((3, 3, 3), (4, 3), 1, (5, 4, 6), 2, 1, 1),
    ((3, 3, 3), (4, 3), 2, (5, 4, 6), 1, 0, 1),
]


@pytest.mark.parametrize(("window", "channels", "order", "size", "batch", "padding", "dilation"), FACTOR_CASES)
@pytest.mark.parametrize("part", [2**23, 300])
def test_angular_factors(monkeypatch, window, channels, order, size, batch, padding, dilation, part):
    monkeypatch.setattr(compiled_loops, "BYTES_OF_A_PART", part)
    dims = len(window)
    shells = torch.as_tensor(kernel_shells(window).tap_shell)
    factors = torch.as_tensor(tap_harmonics(window, None, order))
    shells[shells == shells.max()] = -1
    x = torch.randn(batch, channels[0], *size, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(channels[1], channels[0], int(shells.max()) + 1, dtype=torch.float64, requires_grad=True)
    geometry = ([padding] * dims, [dilation] * dims)
    expected = dense_shell_conv(
        x, weight, shells.where(shells >= 0, weight.shape[2]), factors, [1] * dims, *geometry, 1
    )
    seed = torch.randn_like(expected)
    expected_gradients = torch.autograd.grad(expected, [x, weight], seed)
    single = [t.detach().float().requires_grad_() for t in (x, weight)]
    found = compiled_factor_conv(*single, shells, factors, *geometry)
    for a, b in zip((found, *torch.autograd.grad(found, single, seed.float())), (expected, *expected_gradients)):
        assert a.shape == b.shape
        assert (a - b).norm() <= 1e-5 * b.norm()


@pytest.mark.parametrize(("make", "size"), [(GMRHarmonicConv2d, (9, 8)), (GMRHarmonicConv3d, (5, 6, 7))])
def test_harmonic_layers_give_what_dense_gives(compiled, make, size):
    layer, x = make(3, 9, 3, padding=1, orders=(0, 1)), torch.randn(2, 3, *size, requires_grad=True)
    run = lambda: torch.autograd.grad(layer(x).square().sum(), [x, *layer.parameters()])  # noqa: E731
    found = run()
    assert any(isinstance(loop.sums, compiled_loops.TapSums) for loop in compiled_loops._loops)
    set_backend("dense")
    for a, b in zip(found, run()):
        assert (a - b).norm() <= 1e-5 * b.norm()


@pytest.mark.parametrize("make", [GMRConv2d, GMRHarmonicConv2d])
def test_gradients_can_be_differentiated(compiled, make):
    layer, x = make(3, 6, 3, padding=1), torch.randn(2, 3, 7, 6, requires_grad=True)

    def penalty():
        y = layer(x)
        own = torch.autograd.grad(y.square().sum(), x, create_graph=True)[0]
        return torch.autograd.grad(own.square().sum(), [x, *(p for p in layer.parameters() if p is not layer.bias)])

    found = penalty()
    set_backend("dense")
    for a, b in zip(found, penalty()):
        assert (a - b).norm() <= 1e-4 * b.norm()


def test_transforms_of_functions_take_the_dense_kernel(compiled):
    layer, x = GMRHarmonicConv2d(3, 6, 3, padding=1), torch.randn(4, 2, 3, 7, 6)
    assert torch.allclose(torch.func.vmap(layer)(x), torch.stack([layer(each) for each in x]), atol=1e-5)
    jacobian = torch.func.jacrev(lambda x: layer(x).sum((2, 3)))(x[0])
    assert jacobian.shape == (2, 6, 2, 3, 7, 6)


def test_a_loop_is_made_for_its_sizes_alone():
    """With symbolic sizes it would be several times as slow."""
    window = compiled_loops.Window((0, 0, 0), (3,), 1, (1,))
    loop = compiled_loops.Loop(compiled_loops.TapSums(window, ((1.0,) * 3,), False), 1, (4,), (6,), (1, 3))
    assert compiled_loops.run_loop(loop, torch.ones(1, 6, 1, 3))[0].eq(3).all()
    with pytest.raises(AssertionError):
        compiled_loops.run_loop(loop, torch.ones(1, 8, 1, 3))


@pytest.mark.parametrize("batch", [1, 5, 8])
@pytest.mark.parametrize("sizes", [(47,), (47, 13), (5, 6, 7)])
@pytest.mark.parametrize("floats", [1, 2**14, 2**22])
def test_parts_cover_every_row_once(batch, sizes, floats):
    samples, rows = part_of(batch, sizes, floats)
    counts = torch.zeros(batch, sizes[0])
    for b, new_b in slices_of(batch, samples):
        for r, new_r in slices_of(sizes[0], rows):
            counts[b, r][new_b, new_r] += 1
    assert (counts == 1).all()


@pytest.mark.parametrize("floats", [1, 2**16, 2**21])
@pytest.mark.parametrize("margins", [[0, 0], [1, 2], [-1, 3], [5, 0], [4, -2]])
def test_parts_see_the_padded_image(floats, margins):
    x, window = torch.randn(3, 7, 9, 2), compiled_loops.Window((0,) * 9, (3, 3), 1, (1, 1))
    parts = compiled_loops.Parts(x, margins, window, floats)
    padded = torch.nn.functional.pad(x, [0, 0, margins[1], margins[1], margins[0], margins[0]])
    for part in parts:
        expected = padded[part.samples, part.rows.start : part.rows.stop + 2]
        assert torch.equal(parts.seen(part), expected)


@pytest.mark.parametrize(("kernel_size", "rings"), [(3, "gaussian"), (4, "gaussian"), (3, "indexed"), (3, "hard")])
@pytest.mark.filterwarnings("ignore::monai_gmr.utils.SymmetryWarning")
def test_layers_give_what_dense_gives(compiled, monkeypatch, rings, kernel_size):
    used = {"ring_products": 0, "ring_gradients": 0}
    for name in used:
        kernel = getattr(compiled_conv, name)
        monkeypatch.setattr(compiled_conv, name, lambda *a, n=name, k=kernel: (used.update({n: used[n] + 1}), k(*a)))
    layer = GMRConv3d(3, 4, kernel_size, padding="same", rings=rings)
    x = torch.randn(2, 3, 6, 7, 8)
    found = [*torch.autograd.grad(layer(x).square().sum(), list(layer.parameters())), layer(x[0])]
    assert all(used.values())
    set_backend("dense")
    expected = [*torch.autograd.grad(layer(x).square().sum(), list(layer.parameters())), layer(x[0])]
    for a, b in zip(found, expected):
        assert (a - b).norm() <= 1e-5 * b.norm()


def test_only_what_the_backward_pass_needs_is_saved(compiled):
    layer, x = GMRConv2d(8, 8, 5, padding=2, bias=False), torch.randn(1, 8, 20, 20, requires_grad=True)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        layer(x)
    assert sum(saved) <= x.numel() + 4 * layer.weight.numel()


@given(
    batch=st.integers(1, 3),
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    margin=st.integers(-1, 3),
    taps=st.sampled_from([1, 3, 5]),
    capacity=st.integers(1, 4000),
)
def test_parts_see_what_padding_at_once_gives(batch, sizes, margin, taps, capacity):
    dims = len(sizes)
    assume(all(n + 2 * margin >= taps for n in sizes))
    window = compiled_loops.Window((0,) * taps**dims, (taps,) * dims, 1, (1,) * dims)
    x = torch.arange(1.0, 2 * batch * math.prod(sizes) + 1).reshape(batch, *sizes, 2)
    padded = F.pad(x, [0, 0, *([margin] * 2 * dims)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled_loops, "BYTES_OF_A_PART", capacity)
        parts = compiled_loops.Parts(x, [margin] * dims, window, floats=3)
        covered = torch.zeros(batch, parts.sizes[0])
        for part in parts:
            seen = parts.seen(part)
            rows = slice(part.rows.start, part.rows.stop + taps - 1)
            assert torch.equal(seen, padded[part.samples, rows])
            assert seen.is_contiguous()
            covered[part.samples, part.rows][part.fresh] += 1
    assert (covered == 1).all()


def test_a_size_of_harmonic_layers_that_does_not_repeat_is_left_to_dense(monkeypatch):
    set_backend("compiled")
    monkeypatch.setattr(compiled_loops, "_loops", {})
    layer = GMRHarmonicConv2d(2, 3, 3, orders=(0, 1))
    layer(torch.randn(1, 2, 31, 5))
    assert not compiled_loops._loops
    layer(torch.randn(1, 2, 31, 5))
    assert compiled_loops._loops
    set_backend("auto")


@pytest.mark.parametrize(
    ("make", "dtype"),
    [
        (lambda: GMRConv2d(4, 4, 3, stride=2, padding=1), torch.float32),
        (lambda: GMRConv2d(4, 4, 3, groups=2), torch.float32),
        (lambda: GMRConv2d(4, 4, 3), torch.float64),
        (lambda: GMRHarmonicConv2d(4, 4, 3, stride=2, padding=1), torch.float32),
    ],
)
@pytest.mark.filterwarnings("ignore::monai_gmr.utils.SymmetryWarning")
def test_what_has_no_loop_is_left_to_dense(compiled, monkeypatch, make, dtype):
    monkeypatch.setattr(compiled_conv, "compiled_ring_conv", None)
    layer = make().to(dtype)
    x = torch.randn(1, 4, 9, 9, dtype=dtype)
    found = layer(x)
    set_backend("dense")
    assert torch.equal(found, layer(x))


@pytest.mark.parametrize("make", [GMRConv2d, GMRHarmonicConv2d])
def test_an_image_smaller_than_the_window_is_the_framework_s_error(compiled, make):
    with pytest.raises(RuntimeError, match="Kernel size can't be greater than actual input size"):
        make(2, 3, 5)(torch.randn(1, 2, 4, 9))


@pytest.mark.parametrize("make", [GMRConv2d, GMRHarmonicConv2d])
def test_without_a_compiler_dense_runs_and_says_so_once(compiled, monkeypatch, caplog, make):
    monkeypatch.setattr(ring_kernels, "kernel_failure", lambda: "there is no C++ compiler")
    monkeypatch.setattr(compiled_loops, "compiler_failure", lambda: "there is no C++ compiler")
    compiled_loops.say_dense.cache_clear()
    layer, x = make(2, 3, 3), torch.randn(1, 2, 9, 9)
    with caplog.at_level(logging.WARNING, "monai_gmr.ops.compiled_loops"):
        found = [layer(x), layer(x)]
    assert [record.message for record in caplog.records] == [
        "backend 'compiled' is not used: there is no C++ compiler; 'dense' runs in its place."
    ]
    set_backend("dense")
    # a harmonic layer's orders run one after the other, and in backend "dense" as one kernel
    assert torch.equal(*found)
    assert torch.allclose(found[1], layer(x), atol=0 if make is GMRConv2d else 1e-6, rtol=0)


def test_the_time_of_the_first_loop_is_said_aloud(monkeypatch, caplog):
    monkeypatch.setattr(compiled_loops, "_loops", {})
    window = compiled_loops.Window((0, 0, 0), (3,), 1, (1,))
    with caplog.at_level(logging.INFO, "monai_gmr.ops.compiled_loops"):
        for channels in (3, 5, 5):
            sums = compiled_loops.TapSums(window, ((1.0,) * 3,), False)
            compiled_loops.run_loop(
                compiled_loops.Loop(sums, 1, (4,), (6,), (1, channels)), torch.ones(1, 6, 1, channels)
            )
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert " s for a loop over (4,) voxels of (1, 3) channels; each size that repeats " in caplog.records[0].message


def test_a_loop_that_cannot_be_compiled_runs_as_written_and_later_uses_are_dense(compiled, monkeypatch, caplog):
    def fail(loop):
        raise RuntimeError("no space left on device")

    monkeypatch.setattr(compiled_loops, "_loops", {})
    monkeypatch.setattr(compiled_loops, "_failures", [])
    monkeypatch.setattr(compiled_loops, "_generate", fail)
    compiled_loops.say_dense.cache_clear()
    layer, x = GMRHarmonicConv2d(2, 3, 3, padding=1, orders=(0, 1)), torch.randn(1, 2, 9, 9)
    run = lambda: [layer(x), *torch.autograd.grad(layer(x).square().sum(), list(layer.parameters()))]  # noqa: E731
    with caplog.at_level(logging.WARNING, "monai_gmr.ops.compiled_loops"):
        found = [run(), run()]
    assert [record.message for record in caplog.records] == [
        "backend 'compiled' is not used: a loop cannot be compiled (no space left on device); 'dense' runs in its place."
    ]
    set_backend("dense")
    for each in found:
        for a, b in zip(each, run()):
            assert torch.allclose(a, b, atol=1e-5)


def test_compiled_and_exported_networks_take_the_dense_kernel(compiled):
    layer, x = GMRConv2d(2, 3, 3), torch.randn(1, 2, 9, 9)
    program = torch.export.export(layer, (x,))
    assert not any("compiled" in str(node.target) for node in program.graph.nodes)
    assert torch.allclose(program.module()(x), layer(x), atol=1e-6)
