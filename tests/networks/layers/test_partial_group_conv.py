"""Partial group convolutions: exact with the whole group, ordinary with extent 0, gradients per sample, and ordinary modules."""

import copy
import pickle
import warnings

import pytest
import torch
from partial_chains import CONV, SIZES, chain, shrink
from torch import nn

from monai_gmr.networks.layers import (
    PartialGroupElements,
    PartialGroupPool,
    PointGroupConv2d,
    draw_elements,
)
from monai_gmr.symmetry import PointGroup, transform_grid
from monai_gmr.utils import ConfigurationError

# of each group the symmetries of the grid that it keeps
WHOLE = [
    (2, "SE(2)", 8, "4"),
    (2, "SE(2)", 6, "2"),
    (2, "E(2)", 4, "4mm"),
    (2, "4", None, "4"),
    (2, "4mm", None, "4mm"),
    (3, "SO(3)", 24, "432"),
    (3, "SO(3)", 12, "23"),
    (3, "SO(3)", 8, "222"),
    (3, "O(3)", 4, "mmm"),
    (3, "432", None, "432"),
]


def moved_fields(y, element, elements):
    """Transforms fields on a list of elements: ``y[g](p) = y[element^-1 g](element^-1 p)``, finding elements by their matrices."""
    matrices = elements().matrices.detach().to(y.device)
    wanted = torch.tensor(element.T, dtype=torch.float64, device=y.device) @ matrices
    distances = (wanted.unsqueeze(1) - matrices).flatten(2).norm(dim=2)
    assert float(distances.min(1).values.max()) < 1e-9  # the list is closed
    fields = y.unflatten(1, (-1, len(matrices)))[:, :, distances.argmin(1)]
    return transform_grid(fields.flatten(1, 2), element)


def error(net, elements, size, keeps, dims, dtype=torch.float64, count=None):
    x = torch.randn(2, 1, *size, dtype=dtype, device=net[0].weight.device)
    y, worst = net(x), 0.0
    for element in PointGroup.from_name(keeps, dims).elements[:count]:
        difference = net(transform_grid(x, element)) - moved_fields(y, element, elements)
        worst = max(worst, float((difference.norm() / y.norm()).detach()))
    return worst


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kernel", ["harmonic", "siren"])
@pytest.mark.parametrize(("dims", "group", "samples", "keeps"), WHOLE)
def test_the_whole_group_is_exact_on_the_grid(dims, group, samples, keeps, kernel, training):
    order = PartialGroupElements(dims, group, samples=samples).order
    if order >= 24:
        settings = {"fields": 1, "kernel_size": 3}
    else:
        settings = {"fields": 2, "kernel_size": 5 if dims == 2 else 3}
    net = chain(dims, group, samples, kernel=kernel, **settings).train(training)
    for size in SIZES[dims]:
        if training:
            draw_elements(net)
        count = None if order < 24 else 8
        assert error(net, net[-1].out_elements, size, keeps, dims, count=count) < 1e-10
    assert error(copy.deepcopy(net).float(), net[-1].out_elements, SIZES[dims][0], keeps, dims, torch.float32, 4) < 1e-5


@pytest.mark.parametrize("kernel_size", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("more", [{}, {"padding_mode": "replicate"}, {"dilation": 2, "padding": "symmetric"}])
def test_every_window_is_exact(kernel_size, more):
    net = chain(2, "E(2)", 4, kernel_size=kernel_size, **more)
    assert error(net, net[-1].out_elements, (12, 13), "4mm", 2) < 1e-10


def test_strides_and_groups_are_exact(device):
    lift = CONV[2](1, 16, 3, padding=1, samples=4, dtype=torch.float64)
    options = {"groups": 2, "stride": 2, "padding": "symmetric", "in_elements": lift.out_elements}
    net = nn.Sequential(lift, CONV[2](16, 8, 4, dtype=torch.float64, **options)).to(device)
    assert net[1].weight.shape[:2] == (2, 2)
    for size in [(8, 8), (10, 12)]:
        assert error(net, net[1].out_elements, size, "4", 2) < 1e-10


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kernel", ["harmonic", "siren"])
def test_half_precision_and_channels_last_in_3d(device, kernel, training):
    """Under autocast the kernel is made in float32; the output equals that of the dense kernel up to rounding, in the memory format of the
    input."""
    net = chain(3, "222", kernel=kernel, dtype=torch.float32).to(device).train(training)
    layer, x = net[1], torch.randn(1, 8, 4, 5, 6, device=device).to(memory_format=torch.channels_last_3d)
    arguments = (layer.dense_kernel().double(), layer._dense_bias().double())
    exact = nn.functional.conv3d(x.double(), *arguments, padding=1)
    for dtype, bound in ((torch.float32, 1e-5), (torch.float16, 1e-3), (torch.bfloat16, 8e-3)):
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            assert torch.equal(layer.dense_kernel().double(), arguments[0])
            y = layer(x)
            pooled = PartialGroupPool(layer.out_elements)(y)
        assert y.dtype == dtype
        assert all(each.is_contiguous(memory_format=torch.channels_last_3d) for each in (y, pooled))
        assert (y.double() - exact).norm() < bound * exact.norm()


def test_other_angles_are_as_close_as_the_taps_allow():
    """Orders and frequencies are rotated exactly, so rotating list and image by 45 degrees, an angle of the samples, nearly commutes."""
    from monai_gmr.symmetry import rotation_matrix, transform_image

    net = nn.Sequential(
        *chain(2, "SE(2)", 8, kernel_size=7), PartialGroupPool(PartialGroupElements(2, "SE(2)", samples=8))
    ).eval()
    axes = torch.meshgrid(*[torch.linspace(-1, 1, 41, dtype=torch.float64)] * 2, indexing="ij")
    x = torch.exp(-8 * ((axes[0] - 0.2) ** 2 + 2 * (axes[1] + 0.1) ** 2))[None, None]
    with torch.no_grad():
        y, z = net(x), net(transform_image(x, rotation_matrix(2, 45)))
    inside = (slice(None), slice(None), slice(8, -8), slice(8, -8))
    expected = transform_image(y, rotation_matrix(2, 45))
    assert float((z - expected)[inside].norm() / expected[inside].norm()) < 0.02


@pytest.mark.parametrize("kernel", ["harmonic", "siren"])
@pytest.mark.parametrize(
    ("dims", "group", "samples"),
    [(2, "SE(2)", 4), (2, "E(2)", 3), (2, "4mm", None), (3, "SO(3)", 5), (3, "O(3)", 4), (3, "23", None)],
)
@pytest.mark.parametrize("training", [False, True])
def test_with_extent_0_it_is_an_ordinary_convolution_on_one_element(dims, group, samples, kernel, training):
    net = chain(dims, group, samples, layers=3, kernel=kernel).train(training)
    shrink(net, 0.0)
    draw_elements(net)
    first, layer = net[1], net[2]
    order = layer.out_order
    kernels = layer.dense_kernel().unflatten(1, (-1, order)).unflatten(0, (-1, order))
    # one kernel for each pair of fields: that of the identity, relative to the identity
    upright = layer.kernel(torch.eye(dims).double()[None], torch.eye(dims).double()[None, None]).unflatten(
        4, (3,) * dims
    )
    plain = getattr(nn, f"Conv{dims}d")(2, 2, 3, padding=1).double()
    plain.weight.data.copy_(upright[:, 0, :, 0])
    plain.bias.data.copy_(layer.bias)
    if layer.out_elements.extent is not None:
        x = torch.randn(1, 2, *SIZES[dims][0], dtype=torch.float64)
        y = layer(x.repeat_interleave(order, 1)).unflatten(1, (2, order))
        torch.testing.assert_close(y[:, :, 0], plain(x))
    # all of the weight is on the elements that are left
    gates = first.out_elements().gates
    kept = gates > 0
    assert int(kept.sum()) == (samples or 1)
    assert float(kernels[:, 0, :, ~kept].detach().abs().sum()) == 0
    torch.testing.assert_close(kernels[:, 0, :, kept].sum(2), upright[:, 0, :, 0])


@pytest.mark.parametrize("kernel", ["harmonic", "siren"])
def test_between_the_ends_it_is_neither(kernel):
    net = chain(2, "SE(2)", 8, kernel_size=5, kernel=kernel)
    pool = PartialGroupPool(net[-1].out_elements, "mean")
    x = torch.randn(1, 1, 12, 12, dtype=torch.float64)

    def broken():
        y = pool(net(x).relu()).detach()
        return float((pool(net(x.rot90(1, (2, 3))).relu()).detach() - y.rot90(1, (2, 3))).norm() / y.norm())

    net.eval()
    errors = [broken() for extent in (1.0, 0.9, 0.5, 0.0) if shrink(net, extent) is None]
    assert errors[0] < 1e-10
    assert min(errors[1:]) > 1e-2
    assert errors[1] < errors[3]


def test_eval_is_fixed_and_training_is_new_each_time_and_follows_the_seed():
    net, x = chain(2, "E(2)", 4), torch.randn(1, 1, 8, 8, dtype=torch.float64)
    shrink(net, 0.5)

    def passes(seed=None, generator=None):
        found = []
        if seed is not None:
            torch.manual_seed(seed)
        for _ in range(2):
            draw_elements(net, generator)
            found.append(net(x))
        return found

    first, second = passes(0), passes(0)
    assert all(torch.equal(a, b) for a, b in zip(first, second))
    assert not torch.allclose(first[0], first[1])
    third, fourth = (passes(generator=torch.Generator().manual_seed(7)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(third, fourth))
    # without a new draw the same samples: what a recomputed part of a net needs
    assert torch.equal(net(x), net(x))
    net.eval()
    assert torch.equal(*passes())
    assert torch.equal(net(x), passes(3)[0])


def test_a_seed_of_its_own_leaves_torchs_generator_alone():
    nets = []
    for _ in range(2):
        lift = CONV[2](1, 4, 3, samples=4, seed=5)
        nets.append(nn.Sequential(lift, CONV[2](4, 4, 3, in_elements=lift.out_elements)))
    state = torch.get_rng_state()
    for net in nets:
        draw_elements(net)
    assert torch.equal(torch.get_rng_state(), state)
    draws = [[layer.out_elements.draws.clone() for layer in net] for net in nets]
    assert all(torch.equal(a, b) for a, b in zip(*draws))
    assert not torch.equal(*draws[0])  # one layer's are not those of the next
    draw_elements(nets[0])
    assert not torch.equal(nets[0][0].out_elements.draws, draws[0][0])


@pytest.mark.parametrize("kernel", ["harmonic", "siren"])
@pytest.mark.parametrize(("dims", "group", "samples"), [(2, "E(2)", 4), (2, "4", None), (3, "SO(3)", 4)])
def test_module_like_any_other(dims, group, samples, kernel):
    net = chain(dims, group, samples, kernel=kernel, dtype=torch.float32)
    shrink(net, 0.7)
    x = torch.randn(1, 1, *SIZES[dims][0])
    draw_elements(net)
    expected = net(x)
    names = list(net.state_dict())
    assert not [
        name for name in names if any(part in name for part in ("draws", "quadrature", "base", "harmonics", "shells"))
    ]
    for clone in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(clone(x), expected)
        assert clone[0].out_elements is clone[1].in_elements
    # nothing of a pass stays behind, even of one with a graph
    copy.deepcopy(net)
    net.eval()
    expected = net(x)
    other = chain(dims, group, samples, kernel=kernel, dtype=torch.float32).eval()
    other.load_state_dict(net.state_dict())
    assert torch.equal(other(x), expected)
    assert torch.allclose(net[0](x), net[0].to_conv()(x), atol=1e-6)
    y = net[0](x)
    assert torch.allclose(net[1](y), net[1].to_conv()(y), atol=1e-6)
    assert torch.allclose(net[0](x[0]), net[0](x)[0], atol=1e-6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = net(x)
    assert half.dtype == torch.bfloat16
    assert (half.float() - expected).norm() < 0.03 * expected.norm()
    assert copy.deepcopy(net).to(torch.bfloat16)(x.bfloat16()).dtype == torch.bfloat16
    if group == "4":
        exported = torch.export.export(net, (x,))
        assert torch.allclose(exported.module()(x), expected, atol=1e-5)
    with warnings.catch_warnings():
        # of sizes that are no tensors, and of constants
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        assert torch.allclose(torch.jit.trace(net, x, check_trace=False)(x), expected, atol=1e-5)


@pytest.mark.parametrize(("dims", "group"), [(2, "E(2)"), (3, "SO(3)"), (2, "4")])
@pytest.mark.parametrize("training", [False, True])
def test_elements_are_compiled_as_one_graph(dims, group, training):
    elements = PartialGroupElements(dims, group, samples=4 if group != "4" else None).train(training)
    weights = torch.linspace(-1, 1, elements.order, dtype=torch.float64)

    def gradients(compute):
        matrices, gates = compute()
        total = ((matrices.sum((1, 2)) + gates) * weights).sum()
        return [total.detach(), *torch.autograd.grad(total, list(elements.parameters()))]

    compiled = torch.compile(elements, backend="aot_eager", fullgraph=True)
    for found, expected in zip(gradients(compiled), gradients(elements)):
        assert torch.allclose(found, expected, atol=1e-12)


def test_after_the_meta_device_it_is_as_before():
    layer = CONV[2](1, 8, 3, samples=8, device="meta")
    layer.to_empty(device="cpu").load_state_dict(CONV[2](1, 8, 3, samples=8).state_dict())
    assert torch.isfinite(layer.eval()(torch.rand(1, 1, 6, 6))).all()


@pytest.mark.parametrize("kernel", ["harmonic", "siren"])
@pytest.mark.parametrize(
    ("dims", "group", "samples"), [(2, "SE(2)", 8), (2, "E(2)", 8), (3, "SO(3)", 12), (2, "4", None)]
)
def test_fresh_layers_have_the_output_variance_of_torchs(dims, group, samples, kernel):
    net = chain(dims, group, samples, fields=4, layers=3, dtype=torch.float32, kernel=kernel, bias=False)
    layer = net[2]
    x = torch.randn(1, layer.in_channels, *(12,) * dims)
    if kernel == "siren":
        # smooth kernels add up over the elements; with extent 0 fields are alike on all of them
        shrink(net, 0.0)
        x = x[:, :: layer.out_order].repeat_interleave(layer.out_order, 1)
    variances = []
    for _ in range(6):
        layer.reset_parameters()
        variances.append(layer(x).var().detach())
    assert float(torch.stack(variances).mean()) == pytest.approx(1 / 3, rel=0.35)


def test_a_group_of_the_grid_holds_what_a_group_convolution_computes():
    """With all functions that harmonics can represent, window 1 and group 4, the layer can equal any group convolution."""
    lift = CONV[2](1, 4, 1, group="4", dtype=torch.float64)
    layer = CONV[2](4, 4, 1, in_elements=lift.out_elements, frequencies=2, bias=False, dtype=torch.float64)
    reference = PointGroupConv2d(4, 4, 1, group="4", bias=False, dtype=torch.float64)
    # columns: what each weight alone makes of the first row of the kernel
    columns = []
    for index in range(layer.weight.shape[2]):
        layer.weight.data.zero_()[0, 0, index] = 1.0
        columns.append(layer.dense_kernel().flatten(1)[0].detach())
    wanted = reference.dense_kernel().flatten(1).detach()
    layer.weight.data[0, 0] = torch.linalg.lstsq(
        torch.stack(columns, 1), wanted[:1].t(), driver="gelsd"
    ).solution.squeeze(1)
    torch.testing.assert_close(layer.dense_kernel().flatten(1), wanted, atol=1e-10, rtol=0)


@pytest.mark.parametrize("reduce", ["max", "mean"])
def test_pooling_leaves_out_what_is_not_kept(reduce):
    elements = PartialGroupElements(2, "4").eval()
    elements.keep.data.copy_(torch.tensor([0.0, 1.0, 0.0]))
    pool, x = (
        PartialGroupPool(elements, reduce),
        torch.tensor([1.0, 9.0, 3.0, 9.0]).reshape(1, 4, 1, 1).requires_grad_(),
    )
    y = pool(x)
    assert float(y.detach()) == (3.0 if reduce == "max" else 2.0)
    y.sum().backward()
    assert torch.isfinite(elements.keep.grad).all()
    assert x.grad.flatten()[[1, 3]].tolist() == [0.0, 0.0]


LIFT = CONV[2](1, 8, 3, samples=8)
IMPOSSIBLE = {
    "in_channels": (
        2,
        {"in_channels": 12, "in_elements": LIFT.out_elements},
        "in_channels=12 is not a multiple of the 8 elements",
    ),
    "out_channels": (
        2,
        {"out_channels": 12},
        r"out_channels=12 is not a multiple of the 8 elements of SampledGroup\('SE\(2\)', samples=8\): use 8 or 16",
    ),
    "window": (
        2,
        {"kernel_size": (3, 5)},
        r"kernel_size=\(3, 5\) is not symmetric under SampledGroup.*equal numbers on all axes",
    ),
    "stride": (3, {"stride": (1, 1, 2), "out_channels": 24}, r"stride=\(1, 1, 2\) is not symmetric"),
    "kernel": (2, {"kernel": "mlp"}, "kernel='mlp' is unknown: use one of 'harmonic', 'siren'"),
    "orders": (2, {"kernel": "siren", "orders": (0,)}, r"orders=\(0,\) is for kernel='harmonic'"),
    "order": (2, {"orders": (0, 4)}, "order 4 is impossible in 2D: use 0 to 3"),
    "twice": (2, {"orders": (1, 1)}, r"orders=\(1, 1\) is impossible: give each order once"),
    "no directions": (2, {"kernel_size": 1, "orders": (1,)}, "has no directions for orders"),
    "frequencies": (3, {"frequencies": 4, "out_channels": 24}, "order 4 is impossible in 3D"),
    "in_elements": (
        2,
        {"in_elements": LIFT},
        "in_elements=PartialGroupConv2d is impossible: give the out_elements of another partial layer",
    ),
    "axes": (3, {"in_elements": LIFT.out_elements}, "transforms 2 axes: give elements of 3"),
    "groups": (
        2,
        {"groups": 2, "in_channels": 2},
        "groups=2 must divide the 2 fields of in_channels=2 and the 1 of out_channels=8",
    ),
    "group": (2, {"group": "SO(3)"}, r"group='SO\(3\)' transforms 3 axes"),
}


@pytest.mark.parametrize(("dims", "settings", "sentence"), IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_impossible_layers_are_refused_in_a_sentence(dims, settings, sentence):
    with pytest.raises(ConfigurationError, match=sentence):
        CONV[dims](**{"in_channels": 1, "out_channels": 8, "kernel_size": 3} | settings)


def test_an_impossible_input_and_a_deployment_while_training_are_refused_in_a_sentence():
    with pytest.raises(ConfigurationError, match="PartialGroupConv2d has spatial_dims=2, in_channels=1 and was given"):
        LIFT(torch.rand(1, 3, 9, 9))
    with pytest.raises(ConfigurationError, match=r"draws its elements in train mode: call eval\(\) before to_conv\(\)"):
        CONV[2](1, 8, 3).to_conv()
    with pytest.raises(ConfigurationError, match="PartialGroupPool of 2 spatial axes and a group of 8"):
        PartialGroupPool(LIFT.out_elements)(torch.rand(1, 3, 9, 9))
