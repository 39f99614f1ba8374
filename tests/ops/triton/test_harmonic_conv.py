"""Harmonic layers on backend "triton" equal dense kernels in float64; without a GPU in Triton's interpreter."""

import itertools

import pytest
import torch
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st

from monai_gmr.apps.peak_memory import peak_memory
from monai_gmr.ops.harmonic_operation import dense_harmonic_operation
from monai_gmr.ops.memory_format import has_channels_last
from monai_gmr.symmetry import kernel_shells, tap_harmonics

pytest.importorskip("triton")
from monai_gmr.ops.triton import harmonic_conv, harmonic_gradient_kernels, harmonic_kernels
from monai_gmr.ops.triton import ring_conv as triton_conv
from monai_gmr.ops.triton.harmonic_conv import triton_harmonic_conv
from monai_gmr.ops.triton.launch import MOST_ACCUMULATORS, HarmonicBlocks

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# of the inputs with gradients, in the order of the operation
NAMES = ("x", "weight", "basis", "angular_weight", "linear", "chiral", "bias")
KERNELS = {
    "harmonic_kernel": harmonic_kernels,
    "input_gradient_kernel": harmonic_gradient_kernels,
    "weight_gradient_kernel": harmonic_gradient_kernels,
}
PLANE = ([2, 2], [0, 2], [0, 2])


def problem(window, size, ins, orders, kept=("linear", "chiral"), batch=2, geometry=None, dtype=torch.float64):
    """Arguments of the operation by name, in float64."""
    dims, (norms, products, components) = len(window), orders
    shells = torch.as_tensor(kernel_shells(window).tap_shell)
    counts = [count for count in components if count]
    degrees = [(count - 1) // 2 if dims == 3 else place for place, count in enumerate(counts, 1)]
    rows = [torch.as_tensor(tap_harmonics(window, None, degree)).double() for degree in degrees]
    channels, count = [n + m for n, m in zip(norms, products)], int(shells.max()) + 1
    own = {kind: sum(c for c, m in zip(channels, components) if bool(m) == kind) for kind in (False, True)}
    sizes = {"x": (batch, ins, *size), "weight": (own[False], ins, 2), "basis": (2, count)}
    sizes |= {"angular_weight": (own[True], ins, count), "bias": (sum(channels),), "chiral": (sum(channels),)}
    sizes |= {"linear": (sum(channels), sum(c * m for c, m in zip(channels, components)))}
    tensors = {name: torch.randn(sizes[name], dtype=torch.float64).to(dtype).double() for name in NAMES}
    tensors |= {name: None for name in ("linear", "chiral") if name not in kept}
    padding, dilation = geometry or ([1] * dims, [1] * dims)
    rest = {"shells": shells, "angular": torch.cat(rows), "padding": padding, "dilation": dilation}
    return tensors | rest | {"norms": norms, "products": products, "components": components}


def gradients(y, inputs, seed):
    """Gradients of the inputs that are not empty, by name."""
    names = [name for name in NAMES if inputs[name] is not None and inputs[name].requires_grad and inputs[name].numel()]
    leaves = [inputs[name] for name in names]
    return dict(zip(names, torch.autograd.grad(y, leaves, seed.to(y), allow_unused=True, materialize_grads=True)))


def dense(inputs):
    arguments = {name: value for name, value in inputs.items() if name != "bias"}
    y = dense_harmonic_operation(**arguments)
    return y + inputs["bias"].reshape(-1, *[1] * (y.dim() - 2))


def prepare(inputs, names, change=lambda tensor: tensor):
    changed = {name: None if inputs[name] is None else change(inputs[name].detach().clone()) for name in NAMES}
    for name in names:
        if changed[name] is not None:
            changed[name].requires_grad_()
    return inputs | changed


def narrow(inputs, names=NAMES, dtype=torch.float32, last=False):
    found = prepare(inputs, (), lambda tensor: tensor.float().to(DEVICE))
    x = found["x"].to(dtype)
    found["x"] = x.movedim(1, -1).contiguous().movedim(-1, 1) if last else x
    found |= {name: found[name].to(DEVICE) for name in ("shells", "angular")}
    for name in names:
        if found[name] is not None:
            found[name].requires_grad_()
    return found | {"angular": found["angular"].float()}


def relative_errors(inputs, names=NAMES, dtype=torch.float32, last=False):
    """Of the output and the gradients, by name."""
    wide, single = prepare(inputs, names), narrow(inputs, names, dtype, last)
    expected, found = dense(wide), triton_harmonic_conv(**single)
    assert found.dtype == dtype
    assert found.shape == expected.shape
    seed = torch.randn_like(expected).to(dtype).double()
    got, wanted = gradients(found, single, seed), gradients(expected, wide, seed)
    assert list(got) == list(wanted)
    pairs = {"y": (found, expected), **{name: (got[name], wanted[name]) for name in got}}
    return {
        # a gradient that is zero has no relative error
        name: float((a.detach().double().cpu() - b.detach()).norm() / max(b.detach().norm(), 1e-2))
        for name, (a, b) in pairs.items()
    }


SPACE = ([2, 2, 3], [0, 2, 1], [0, 3, 5])


@pytest.mark.parametrize(
    ("inputs", "last"),
    [
        (((3,), (5,), 2, ([1, 2], [0, 1], [0, 1])), False),
        (((3, 3), (4, 5), 3, ([2, 3, 2], [1, 0, 0], [2, 0, 2]), ("chiral",)), True),
        (((4, 3), (5, 6), 17, ([9], [9], [2]), (), 1, ([1, 0], [1, 2])), False),
        (((3, 3, 3), (2, 3, 2), 3, SPACE), True),
    ],
)
def test_forward_and_gradients(inputs, last):
    window, size, *rest = inputs
    found = relative_errors(problem(window, size, *rest), last=last)
    assert max(found.values()) <= 1e-5, found


@pytest.mark.parametrize("padding", [0, 1, 4])
def test_slabs_give_the_same(monkeypatch, padding):
    """The first axis in several slabs, with a window that reaches beyond a slab; without padding, and with padding wider than a slab."""
    monkeypatch.setattr(triton_conv, "LEAST_SLAB", 1)
    monkeypatch.setattr(harmonic_conv, "LEAST_PART", 2)
    inputs = problem((3, 2), (7, 2), 16, PLANE, geometry=([padding, 0], [1, 1]))
    found = relative_errors(inputs)
    assert max(found.values()) <= 1e-5, found


geometries = st.tuples(
    # size, window, padding and dilation of each axis
    st.lists(
        st.tuples(st.integers(2, 4), st.integers(1, 3), st.integers(0, 2), st.integers(1, 2)), min_size=2, max_size=2
    ),
    st.sampled_from([1, 3, 16, 17]),  # channels
    st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), min_size=1, max_size=2),  # norms and inner products
    st.lists(st.sampled_from(["linear", "chiral"]), unique=True),
    st.booleans(),
)


# the same examples each time, and no smaller ones after a failure: the interpreter takes half a second for each
@settings(max_examples=4, deadline=None, derandomize=True, phases=[Phase.generate])
@given(geometry=geometries)
def test_random_geometries(geometry):
    axes, ins, sizes, kept, last = geometry
    size, window, padding, dilation = ([axis[i] for axis in axes] for i in range(4))
    assume(all(n + 2 * p > d * (k - 1) for n, k, p, d in axes))
    torch.manual_seed(0)
    norms, products = zip(*((n, min(n, m)) for n, m in sizes))
    orders = ([3, *norms], [0, *products], [0, *[2] * len(norms)])
    inputs = problem(tuple(window), tuple(size), ins, orders, kept, geometry=(padding, dilation))
    found = relative_errors(inputs, last=last)
    assert max(found.values()) <= 1e-4, found


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 3e-3), (torch.bfloat16, 2e-2)])
def test_half_precision_sums_in_float32(dtype, tolerance):
    found = relative_errors(problem((3, 3), (4, 4), 17, PLANE, dtype=dtype), dtype=dtype, last=True)
    assert max(found.values()) <= tolerance, found


@pytest.mark.parametrize("names", [("x",), ("angular_weight",), ("chiral", "linear")])
def test_gradients_that_are_not_asked_for_are_not_computed(monkeypatch, names):
    for name, kernels in KERNELS.items():
        if name == "input_gradient_kernel" and "x" not in names:
            monkeypatch.setattr(kernels, name, None)
        if name == "weight_gradient_kernel" and "angular_weight" not in names:
            monkeypatch.setattr(kernels, name, None)
    assert max(relative_errors(problem((2, 2), (3, 3), 2, PLANE), names).values()) <= 1e-5


def test_gradients_of_gradients_are_those_of_the_dense_operation():
    inputs = problem((3, 2), (3, 3), 2, PLANE)
    penalties = []
    for function, own in ((triton_harmonic_conv, narrow(inputs)), (dense, prepare(inputs, NAMES))):
        leaves = [own[name] for name in NAMES[:-1]]
        y = function(**own) if function is triton_harmonic_conv else function(own)
        first = torch.autograd.grad(y.square().sum(), leaves, create_graph=True)
        penalties.append(torch.autograd.grad(sum(each.square().sum() for each in first), leaves))
    for a, b in zip(*penalties):
        assert (a.double().cpu() - b).norm() <= 1e-4 * b.norm()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_the_operation_says_of_itself_what_it_does(memory_format):
    inputs = narrow(problem((2, 2), (3, 3), 2, PLANE))
    inputs["x"] = inputs["x"].detach().to(memory_format=memory_format).requires_grad_()
    y = triton_harmonic_conv(**inputs)
    assert has_channels_last(y) == (memory_format == torch.channels_last)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    found = torch.library.opcheck(triton_harmonic_conv, (), inputs, test_utils=tests)
    assert set(found.values()) == {"SUCCESS"}


class Fewer:
    """A kernel without its last ``missing`` programs along an axis of the grid."""

    def __init__(self, kernel, axis, missing):
        self.kernel, self.axis, self.missing = kernel, axis, missing

    def __getitem__(self, grid):
        sizes = [size - self.missing * (axis == self.axis) for axis, size in enumerate(grid)]
        return self.kernel[tuple(sizes)] if min(sizes) else lambda *_, **__: None


@pytest.fixture
def poisoned():
    """Uninitialised memory holds NaN."""
    # only a warning: a GPU's libraries have no deterministic algorithms for some calls here
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.zeros(1).new_empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("left_out", [None, *KERNELS])
def test_a_kernel_fills_all_of_its_result(monkeypatch, poisoned, left_out):
    for name, kernels in KERNELS.items():
        missing = Fewer(getattr(kernels, name), 0 if name != "weight_gradient_kernel" else 2, int(name == left_out))
        monkeypatch.setattr(kernels, name, missing)
    # more voxels than a program computes
    own = narrow(problem((2, 2), (9, 16), 2, ([1], [1], [2]), (), batch=1, geometry=([0, 0], [1, 1])))
    y = triton_harmonic_conv(**own)
    finite = [y.isfinite().all(), *(each.isfinite().all() for each in gradients(y, own, torch.ones_like(y)).values())]
    assert all(finite) == (left_out is None)


@pytest.mark.parametrize(("kept", "most"), [((), 4.0), (("chiral",), 4.0), (("linear", "chiral"), 5.5)])
def test_a_step_never_holds_the_responses(monkeypatch, kept, most):
    """In units of the image's memory: the result, its gradient, the image's gradient, and a slab; all responses alone would take 4."""
    monkeypatch.setattr(triton_conv, "LEAST_SLAB", 1)
    monkeypatch.setattr(triton_conv, "ring_sums", lambda *a: None if len(a) < 5 or a[4] is None else a[1].basis)
    for name, kernels in KERNELS.items():
        monkeypatch.setattr(kernels, name, Fewer(None, 0, 0))
        monkeypatch.setattr(Fewer, "__getitem__", lambda self, grid: lambda *_, **__: None)
    own = narrow(problem((3, 3, 3), (24, 16, 16), 16, ([8, 2, 2], [0, 2, 2], [0, 3, 5]), kept, batch=1), last=True)

    def step():
        y = triton_harmonic_conv(**own)
        gradients(y, own, torch.ones_like(y))

    assert peak_memory(step, own["x"].device) <= most * own["x"].nbytes


@pytest.mark.parametrize(
    ("channels", "columns", "components"), itertools.product((1, 32, 200), (8, 32), (1, 2, 3, 5, 7, 9))
)
def test_blocks_fit_into_registers(channels, columns, components):
    candidates = HarmonicBlocks.candidates(channels, columns, components)
    assert candidates
    for each in candidates:
        assert components * each.voxels * each.columns <= 32 * each.warps * MOST_ACCUMULATORS
        assert min(each[:3]) >= 16
