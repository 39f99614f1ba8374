"""The Triton kernels equal results in float64, forward and backward, in Triton's interpreter: no GPU is needed."""

from functools import partial

import pytest
import torch

from monai_gmr import set_backend
from monai_gmr.networks.layers import GMRConv2d, GMRConv3d, GMRHarmonicConv2d, GMRHarmonicConv3d
from monai_gmr.ops import backend as backends
from monai_gmr.ops.ring_conv import dense_shell_conv
from monai_gmr.ops.triton import launch as launches
from monai_gmr.ops.triton import shell_conv
from monai_gmr.ops.triton.launch import Blocks, choose_blocks
from monai_gmr.ops.triton.shell_conv import triton_shell_conv
from monai_gmr.ops.triton.tables import TapTable, tap_table
from monai_gmr.symmetry import kernel_shells, tap_harmonics

pytest.importorskip("triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def problem(window, channels, groups, order=0, size=None, num_shells=None, dtype=torch.float32, batch=2):
    shells = torch.as_tensor(kernel_shells(window).tap_shell)
    num_shells = int(shells.max()) + 1 if num_shells is None else num_shells
    angular = torch.as_tensor(tap_harmonics(window, None, order))
    size = size or {1: (5,), 2: (5, 6), 3: (4, 3, 5)}[len(window)]
    x = torch.randn(batch, channels[0] * groups, *size, dtype=torch.float64)
    weight = torch.randn(channels[1] * groups, channels[0], num_shells, dtype=torch.float64)
    return [t.to(dtype).to(torch.float64) for t in (x, weight)] + [shells, angular]


CASES = [
    ((3,), (3, 5), 1, 0, 1, 1, 1),
    ((3, 3), (3, 5), 1, 0, 1, 1, 1),
    ((5, 3), (2, 3), 2, 0, 1, 2, 1),
    ((4, 4), (2, 2), 1, 0, 2, 1, 1),
    ((3, 3), (1, 1), 4, 0, 1, 2, 2),
    ((3, 3, 3), (3, 2), 1, 0, 1, 1, 1),
    ((3, 3, 3), (2, 3), 1, 0, 2, 1, 1),
    ((3, 3), (2, 3), 1, 2, 1, 1, 1),
    ((3, 3, 3), (2, 2), 1, 1, 1, 1, 1),
    ((3, 3), (20, 18), 1, 0, 1, 1, 1),
]


# order 1 in 3D, slow in the interpreter, in one format
@pytest.mark.parametrize(
    ("memory_format", "window", "channels", "groups", "order", "stride", "padding", "dilation"),
    [
        *(("contiguous", *case) for case in CASES),
        *(("channels last", *case) for case in CASES if case[::3] != ((3, 3, 3), 1, 1)),
    ],
)
def test_forward_and_gradients(memory_format, window, channels, groups, order, stride, padding, dilation):
    x, weight, shells, angular = problem(window, channels, groups, order)
    dims = len(window)
    geometry = ([stride] * dims, [padding] * dims, [dilation] * dims, groups)
    inputs = [x.requires_grad_(), weight.requires_grad_()]
    expected = dense_shell_conv(x, weight, shells, angular, *geometry)
    seed = torch.randn_like(expected)
    expected_gradients = torch.autograd.grad(expected, inputs, seed)
    single = [t.detach().float().to(DEVICE) for t in (x, weight)]
    if memory_format == "channels last":
        single[0] = single[0].movedim(1, -1).contiguous().movedim(-1, 1)
    single = [t.requires_grad_() for t in single]
    found = triton_shell_conv(*single, shells, angular, *geometry)
    gradients = torch.autograd.grad(found, single, seed.float().to(DEVICE))
    for a, b in zip((found, *gradients), (expected, *expected_gradients)):
        assert a.shape == b.shape
        assert (a.double().cpu() - b).norm() <= 1e-5 * b.norm()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 2e-3), (torch.bfloat16, 2e-2)])
def test_half_precision_adds_up_in_float32(dtype, tolerance):
    x, weight, shells, angular = problem((3, 3), (17, 16), 1, dtype=dtype)
    geometry = ([1, 1], [1, 1], [1, 1], 1)
    expected = dense_shell_conv(x, weight, shells, angular, *geometry)
    found = triton_shell_conv(x.to(dtype).to(DEVICE), weight.to(dtype).to(DEVICE), shells, angular, *geometry)
    assert found.dtype == dtype
    assert (found.double().cpu() - expected).norm() <= tolerance * expected.norm()


@pytest.fixture(params=[False, True])
def allowed(request):
    """Whether torch multiplies matrices in TF32."""
    # monkeypatch cannot undo it: the attribute is computed
    before, torch.backends.cuda.matmul.allow_tf32 = torch.backends.cuda.matmul.allow_tf32, request.param
    yield request.param
    torch.backends.cuda.matmul.allow_tf32 = before


def test_products_are_in_tf32_where_those_of_torch_are(allowed):
    precisions = [
        launches.product_options(dtype)["PRECISION"] for dtype in (torch.float32, torch.float16, torch.bfloat16)
    ]
    assert precisions == ["tf32" if allowed else "ieee", "ieee", "ieee"]
    x, weight, shells, angular = problem((3, 3, 3), (17, 18), 1)
    inputs, geometry = [x.requires_grad_(), weight.requires_grad_()], ([1] * 3, [1] * 3, [1] * 3, 1)
    expected = dense_shell_conv(*inputs, shells, angular, *geometry)
    single = [each.detach().float().to(DEVICE).requires_grad_() for each in inputs]
    found = triton_shell_conv(*single, shells, angular, *geometry)
    seed = torch.randn_like(expected)
    gradients = torch.autograd.grad(found, single, seed.float().to(DEVICE))
    # TF32 has ten bits of mantissa; Triton's interpreter keeps all
    tolerance = 2e-3 if allowed and DEVICE == "cuda" else 1e-5
    for a, b in zip((found, *gradients), (expected, *torch.autograd.grad(expected, inputs, seed))):
        assert (a.double().cpu() - b).norm() <= tolerance * b.norm()


def test_shells_beyond_the_weights_are_zero():
    x, weight, shells, angular = problem((5, 5), (2, 3), 1, num_shells=3)
    geometry = ([1, 1], [2, 2], [1, 1], 1)
    found = triton_shell_conv(x.float().to(DEVICE), weight.float().to(DEVICE), shells, angular, *geometry)
    whole = torch.cat([weight, torch.zeros(3, 2, int(shells.max()) - 2)], 2)
    expected = dense_shell_conv(x, whole, shells, angular, *geometry)
    assert torch.allclose(found.double().cpu(), expected, atol=1e-5)


def test_the_fastest_blocks_are_measured_once_and_those_that_do_not_run_are_left_out(monkeypatch):
    monkeypatch.setattr(launches, "_fastest", {})
    candidates, launched = Blocks.candidates(8, 8), []

    def timer(run):
        run()
        if launched[-1] == candidates[2]:
            raise RuntimeError("out of shared memory")
        return [3.0, 1.0, 0.0, 2.0][candidates.index(launched[-1])]

    for _ in range(2):
        assert choose_blocks(("key",), candidates, launched.append, timer) == candidates[1]
    assert launched == candidates
    with pytest.raises(RuntimeError, match=r"no block size of backend 'triton' runs here \(out of shared memory\)"):
        choose_blocks(("other",), candidates[2:3], launched.append, timer)


@pytest.mark.parametrize("blocks", Blocks.candidates(3, 20))
def test_all_blocks_give_the_same(monkeypatch, blocks):
    monkeypatch.setattr(Blocks, "candidates", lambda *_: [blocks])
    shells, angular = torch.tensor([[2, 1, 2], [1, 0, 1], [2, 1, 2]]), torch.randn(2, 9)
    x, weight = torch.randn(2, 3, 9, 11).to(DEVICE), torch.randn(20, 3, 3).to(DEVICE).requires_grad_()
    geometry = ([1, 1], [1, 1], [1, 1], 1)
    found, expected = triton_shell_conv(x, weight, shells, angular.to(DEVICE), *geometry), None
    wide = weight.detach().double().cpu().requires_grad_()
    expected = dense_shell_conv(x.double().cpu(), wide, shells, angular.double(), *geometry)
    assert torch.allclose(found.double().cpu(), expected, atol=1e-5)
    gradients = [torch.autograd.grad(y.square().sum(), w)[0] for y, w in ((found, weight), (expected, wide))]
    assert (gradients[0].double().cpu() - gradients[1]).norm() <= 1e-5 * gradients[1].norm()


@pytest.mark.parametrize(("of_input", "axis"), [(True, 0), (True, 1), (True, 2), (False, 0), (False, 1), (False, 2)])
def test_places_that_32_bits_do_not_count(far_apart, of_input, axis):
    shells = kernel_shells((3, 1, 1)).tap_shell
    table = TapTable(*(each.to(DEVICE) for each in tap_table(shells, 2, [1, 0, 0], [1] * 3)))
    angular = torch.randn(3, len(table.order)).to(DEVICE)
    x, weight = torch.randn(2, 3, 4, 2, 3).half().to(DEVICE), torch.randn(1, 2, 3, 2).half().to(DEVICE)
    seed, found = torch.randn(2, 2, 3, 4, 2, 3).half().to(DEVICE), []
    for far in (False, True):
        image = far_apart(x, axis) if far and of_input else x
        y = far_apart(seed, axis) if far and not of_input else seed.clone()
        gradient = shell_conv._launch_weight_gradient(image, y, table, angular, weight.shape, [1] * 3)
        shell_conv._launch_convolution(image, weight, table, angular, y, [1] * 3)
        found.append((gradient, y))
    assert all(torch.equal(a, b) for a, b in zip(*found))


@pytest.fixture
def triton_backend():
    set_backend("triton")
    yield
    set_backend("auto")


HARMONIC_LAYERS = [
    GMRHarmonicConv2d,
    partial(GMRHarmonicConv2d, groups=2),
    GMRHarmonicConv3d,
    partial(GMRHarmonicConv2d, groups=2, keeps="1", order_split=(0, 1, 1)),
    partial(GMRHarmonicConv3d, keeps="422", orders=(0, 1), order_split=(1, 1)),
]


@pytest.mark.parametrize("layer", [GMRConv2d, GMRConv3d, *HARMONIC_LAYERS])
def test_a_layer_gives_the_same_and_learns_the_same(layer, triton_backend):
    module = layer(4, 8, 3, padding=1).to(DEVICE)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    x = torch.randn(2, 4, *(4, 3, 3)[: module.spatial_dims]).to(DEVICE).requires_grad_()
    found, gradients = [], []
    for backend in ("triton", "dense"):
        set_backend(backend)
        y = module(x)
        found.append(y)
        gradients.append(torch.autograd.grad(y.square().sum(), [x, *module.parameters()]))
    assert torch.allclose(*found, atol=1e-5)
    for a, b in zip(*gradients):
        assert (a - b).norm() <= 1e-4 * b.norm()
    set_backend("triton")
    assert torch.allclose(module(x[0]), found[1][0], atol=1e-5)


@pytest.mark.parametrize("layer", [GMRConv2d, partial(GMRHarmonicConv2d, keeps="1")])
def test_compiled_and_exported_layers_keep_working(triton_backend, layer):
    module, x = layer(2, 4, 2, padding=1).to(DEVICE), torch.randn(1, 2, 3, 4).to(DEVICE)
    expected = module(x)
    assert torch.allclose(torch.compile(module, backend="eager", fullgraph=True)(x), expected, atol=1e-5)
    exported = torch.export.export(module, (x,))
    assert "monai_gmr" not in str(exported.graph)
    assert torch.allclose(exported.module()(x), expected, atol=1e-5)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_without_a_device_the_dense_backend_runs_and_says_so_once(triton_backend, monkeypatch, caplog):
    monkeypatch.delenv("TRITON_INTERPRET")
    monkeypatch.setattr(backends, "_logged", {})
    module, x = GMRConv2d(2, 3, 3, padding=1), torch.randn(1, 2, 5, 6)
    with caplog.at_level("WARNING", logger="monai_gmr"):
        found = [module(x), module(x)]
    assert [record.message for record in caplog.records] == [
        "backend 'triton' is not used: it needs a CUDA device and the input is on cpu; 'dense' runs in its place."
    ]
    assert torch.equal(*found)
