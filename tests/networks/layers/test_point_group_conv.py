"""Group convolutions: exact for every element of their group on every size, equal to the formula, and usable like ``torch.nn.ConvNd``."""

import copy
import io
import itertools
import pickle
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from monai_gmr.networks import layers
from monai_gmr.symmetry import PointGroup, symmetric_padding, transform_fields, transform_grid
from monai_gmr.utils import ConfigurationError, SymmetryWarning

CONV = {d: getattr(layers, f"PointGroupConv{d}d") for d in (1, 2, 3)}
TRANSPOSED = {d: getattr(layers, f"PointGroupConvTranspose{d}d") for d in (1, 2, 3)}
FILTERS = ("full", "g", "gc", "depthwise")
GROUPS = [(1, "m"), (1, "1"), (2, "4mm"), (2, "4"), (2, "2mm"), (2, ("m", "x")), (2, ("m", "y")), (2, "2"), (2, "1")]
GROUPS_3D = [(3, name) for name in ("m-3m", "432", "4/mmm", "mmm", ("mm2", "x"), "3m", "-1", "1")]
SIZES = {1: [(9,), (12,)], 2: [(7, 10), (8, 8)], 3: [(4, 5, 6)]}


def error(layer, size, dtype=torch.float64, seed=0, elements=None):
    """Largest relative error over all elements of the group under which a layer is equivariant."""
    layer = layer.to(dtype)
    torch.manual_seed(seed)
    x = torch.randn(2, layer.in_channels, *size, dtype=dtype, device=layer.weight.device)
    y, worst = layer(x), 0.0

    def moved(tensor, fields, element):
        return transform_grid(tensor, element) if fields.order == 1 else transform_fields(tensor, element, fields)

    for element in layer.rows_group.elements[:elements]:
        difference = layer(moved(x, layer.in_group, element)) - moved(y, layer.out_group, element)
        worst = max(worst, float((difference.norm() / y.norm()).detach()))
    return worst


def make(dims, group, filter="full", *, fields=2, transposed=False, **settings):
    order = PointGroup.from_name(group, dims).order
    kind = (TRANSPOSED if transposed else CONV)[dims]
    channels = fields * order
    return kind(**{"in_channels": channels, "out_channels": channels, "group": group, "filter": filter} | settings)


# every window for small groups, windows of either parity for large ones
EXACT = [(*each, k) for each in GROUPS for k in (1, 2, 3, 4, 5)]
EXACT += [(*each, k) for each in GROUPS_3D for k in ((1, 2, 3, 4, 5) if each[1] in ("mmm", ("mm2", "x")) else (2, 3))]


@pytest.mark.parametrize("filter", FILTERS)
@pytest.mark.parametrize(("dims", "group", "kernel_size"), EXACT)
def test_exact_for_every_element(dims, group, filter, kernel_size):
    layer = make(dims, group, filter, kernel_size=kernel_size, padding=kernel_size // 2, fields=2 if dims < 3 else 1)
    for size in SIZES[dims]:
        assert error(layer, size) < 1e-12
        assert error(copy.deepcopy(layer), size, torch.float32, elements=2) < 1e-5


@pytest.mark.parametrize(("dims", "group"), [(1, "m"), (2, "4mm"), (2, ("m", "y")), (3, "4/mmm")])
@pytest.mark.parametrize("stride", [1, 2, 3, 4])
@pytest.mark.parametrize("kernel_size", [2, 3, 4])
@pytest.mark.parametrize("dilation", [1, 2])
def test_symmetric_padding_makes_every_stride_exact_that_has_one(dims, group, stride, kernel_size, dilation):
    layer = make(dims, group, kernel_size=kernel_size, stride=stride, dilation=dilation, padding="symmetric", fields=1)
    for size in itertools.product((9, 10), repeat=dims):
        # an odd reach of the window with an even stride fits one parity of sizes
        fits = all(
            stride % 2 or (n - dilation * (kernel_size - 1) - 1) % 2 == 0
            for n, mirrored in zip(size, layer.mirrored_axes)
            if mirrored
        )
        if fits:
            assert error(layer, size, elements=4) < 1e-12
        else:
            with pytest.raises(ConfigurationError, match="no padding makes"):
                error(layer, size)


@pytest.mark.parametrize(
    ("dims", "group", "exact_size", "inexact_size"),
    [(1, "m", (9,), (8,)), (2, "4", (9, 9), (9, 8)), (2, ("m", "x"), (9, 8), (8, 9))],
)
def test_a_stride_is_inexact_where_the_rule_says_so_and_warns(dims, group, exact_size, inexact_size):
    layer = make(dims, group, kernel_size=3, stride=2, padding=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert error(layer, exact_size) < 1e-12
    with pytest.warns(SymmetryWarning, match="not exactly equivariant on an axis of 8 voxels"):
        assert error(layer, inexact_size) > 1e-2


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("filter", FILTERS)
@pytest.mark.parametrize(("dims", "group"), [(1, "m"), (2, "4mm"), (3, "mmm")])
def test_padding_modes_groups_and_padding_by_axis(dims, group, filter, mode):
    order = PointGroup.from_name(group, dims).order
    more = {"groups": 2} if filter != "depthwise" else {}
    channels = {"in_channels": 4 * order, "out_channels": 4 * order if filter == "depthwise" else 2 * order}
    layer = make(dims, group, filter, kernel_size=3, padding=1, dilation=1, padding_mode=mode, **channels, **more)
    assert error(layer, SIZES[dims][0], elements=4) < 1e-12
    same = make(dims, group, filter, kernel_size=3, padding="same", padding_mode=mode, **channels, **more)
    same.load_state_dict(layer.state_dict())
    x = torch.randn(1, layer.in_channels, *SIZES[dims][0], dtype=torch.float64)
    assert torch.equal(layer(x), same.double()(x))
    assert torch.allclose(layer(x[0]), layer(x)[0], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("filter", ["full", "g", "gc", "depthwise"])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("dims", "group"), [(1, "m"), (2, "4mm"), (2, "4"), (3, "432")])
def test_the_kernel_is_that_of_the_formula(dims, group, filter, transposed):
    """Computes each element from its matrices, without the tables."""
    layer = make(dims, group, filter, kernel_size=3, fields=1, transposed=transposed).double()
    kernel, elements = layer.dense_kernel(), layer.group.elements
    order, taps = len(elements), list(itertools.product(range(3), repeat=dims))
    assert kernel.shape == (order, 1 if filter == "depthwise" else order, *(3,) * dims)
    place = {tuple(element.ravel()): i for i, element in enumerate(elements)}
    for g, h in itertools.product(range(0, order, max(1, order // 4)), range(order)):
        between = place[tuple((elements[g].T @ elements[h]).ravel())]
        for tap in taps:
            source = tuple(elements[g].T @ (np.array(tap) - 1) + 1)
            if filter == "full":
                expected = layer.weight.unflatten(2, (order, *(3,) * dims))[(0, 0, between, *source)]
            elif filter == "depthwise":
                expected = layer.weight.unflatten(2, (3,) * dims)[(0, 0, *source)]
            else:
                spatial = layer.spatial_weight.unflatten(2, (3,) * dims)
                expected = layer.weight[0, 0, between] * spatial[(0, 0, *source)]
            found = kernel[(g, 0 if filter == "depthwise" else h, *tap)]
            assert float(found) == pytest.approx(float(expected), rel=1e-12)


@pytest.mark.parametrize("filter", FILTERS)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("dims", "group"), [(1, "m"), (2, "4mm"), (3, "-1")])
def test_the_equal_layer_of_torch(dims, group, filter, transposed):
    layer = make(dims, group, filter, kernel_size=3, padding=1, transposed=transposed).double()
    dense = layer.to_conv()
    assert type(dense) is getattr(nn, f"Conv{'Transpose' if transposed else ''}{dims}d")
    x = torch.randn(2, layer.in_channels, *SIZES[dims][0], dtype=torch.float64)
    assert torch.allclose(layer(x), dense(x), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize(("dims", "group"), [(1, "m"), (2, "4mm"), (2, "2"), (3, "m-3m"), (3, "4/mmm")])
@pytest.mark.parametrize("transposed", [False, True])
def test_lifting_is_exact(dims, group, transposed, device):
    order = PointGroup.from_name(group, dims).order
    ends = {"out_group": "1", "in_channels": 2 * order, "out_channels": 3}
    if not transposed:
        ends = {"in_group": "1", "in_channels": 3, "out_channels": 2 * order}
    layer = make(dims, group, "gc", kernel_size=3, padding=1, transposed=transposed, **ends).to(device)
    assert layer.filter == "full"  # nothing to factorise
    assert error(layer, SIZES[dims][0]) < 1e-12


@pytest.mark.parametrize(
    ("dims", "group", "subgroup"),
    [
        (1, "m", "1"),
        (2, "4mm", "4"),
        (2, "4mm", "2mm"),
        (2, "4", "2"),
        (3, "m-3m", "432"),
        (3, "m-3m", ("4/mmm", "x")),
        (3, "432", "3"),
    ],
)
@pytest.mark.parametrize("filter", ["full", "g", "gc"])
def test_onto_a_subgroup_are_rows_of_the_whole_group(dims, group, subgroup, filter):
    whole = make(dims, group, filter, kernel_size=3, padding=1, fields=1).double()
    part = PointGroup.from_name(subgroup, dims)
    layer = make(dims, group, filter, kernel_size=3, padding=1, fields=1, out_group=subgroup, out_channels=part.order)
    layer = layer.double()
    layer.load_state_dict(whole.state_dict())
    x = torch.randn(1, whole.in_channels, *SIZES[dims][0], dtype=torch.float64)
    rows = whole.group.positions(part)
    assert torch.allclose(layer(x), whole(x)[:, rows], rtol=1e-11, atol=1e-13)
    assert error(layer, SIZES[dims][0]) < 1e-12


@pytest.mark.parametrize("filter", FILTERS)
@pytest.mark.parametrize(
    ("dims", "group", "subgroup", "kernel_size", "stride"),
    [
        (1, "m", "m", 3, 2),
        (2, "4mm", "4mm", 4, 2),
        (2, "4mm", "2", 3, 1),
        (2, "4mm", "1", 3, 3),
        (3, "mmm", "mmm", 2, 2),
    ],
)
def test_transposed_layers_are_the_adjoint(dims, group, subgroup, filter, kernel_size, stride):
    if filter == "depthwise" and group != subgroup:
        pytest.skip("a filter that keeps fields apart has one group")
    whole, part = PointGroup.from_name(group, dims), PointGroup.from_name(subgroup, dims)
    # an odd reach of an even stride has a symmetric padding on one parity of sizes
    size = (9,) * dims if kernel_size % 2 else (8,) * dims
    padding = symmetric_padding(size[0], kernel_size, stride)
    settings = {"kernel_size": kernel_size, "stride": stride, "bias": False, "padding": padding}
    down = make(dims, group, filter, out_group=subgroup, out_channels=2 * part.order, **settings).double()
    up = make(dims, group, filter, in_group=subgroup, in_channels=2 * part.order, transposed=True, **settings).double()
    up.load_state_dict(down.state_dict())
    x = torch.randn(1, 2 * whole.order, *size, dtype=torch.float64)
    y = torch.randn_like(down(x))
    spread = up(y)
    assert spread.shape == x.shape
    assert float((down(x) * y).sum()) == pytest.approx(float((x * spread).sum()), rel=1e-11)
    assert error(up, y.shape[2:]) < 1e-12


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("more", [{}, {"stride": 2, "padding": 1, "groups": 2}, {"bias": False, "dilation": 2}])
def test_the_trivial_group_is_torchs_convolution_bit_for_bit(dims, transposed, more):
    plain = getattr(nn, f"Conv{'Transpose' if transposed else ''}{dims}d")
    torch.manual_seed(3)
    expected = plain(4, 6, 3, **more)
    torch.manual_seed(3)
    layer = (TRANSPOSED if transposed else CONV)[dims](4, 6, 3, **more, group="1")
    x = torch.randn(2, 4, *(9,) * dims)
    assert torch.equal(layer(x), expected(x))
    layer = CONV[dims](4, 6, 3, stride=2, group="1", padding="symmetric")
    assert layer(torch.randn(1, 4, *(8,) * dims)).shape[2:] == (4,) * dims  # no axis has a centre to keep


@pytest.mark.parametrize("filter", FILTERS)
@pytest.mark.parametrize(("dims", "group"), [(2, "4mm"), (3, "432")])
def test_fresh_layers_have_the_output_variance_of_torchs(dims, group, filter):
    torch.manual_seed(0)
    layer = make(dims, group, filter, kernel_size=3, fields=4 if dims == 2 else 2, bias=False)
    plain = getattr(nn, f"Conv{dims}d")(layer.in_channels, layer.out_channels, 3, bias=False, groups=layer.conv_groups)
    x = torch.randn(1, layer.in_channels, *(14,) * dims)
    variances = []
    for _ in range(6):
        layer.reset_parameters()
        plain.reset_parameters()
        variances.append([float(layer(x).var()), float(plain(x).var())])
    found, expected = np.mean(variances, 0)
    assert found == pytest.approx(expected, rel=0.3)


@pytest.mark.parametrize("filter", FILTERS)
@pytest.mark.parametrize("transposed", [False, True])
def test_module_like_any_other(filter, transposed, tmp_path):
    layer = make(2, "4mm", filter, kernel_size=3, padding=1, fields=1, transposed=transposed)
    x = torch.randn(1, 8, 9, 10)
    expected = layer(x)
    assert not [name for name in layer.state_dict() if "table" in name]
    for clone in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(clone(x), expected)
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(layer), buffer)
    buffer.seek(0)
    assert torch.allclose(torch.jit.load(buffer)(x), expected, atol=1e-6)
    assert torch.allclose(torch.jit.trace(layer, x)(x), expected, atol=1e-6)
    exported = torch.export.export(layer, (x,), dynamic_shapes=({2: torch.export.Dim("h"), 3: torch.export.Dim("w")},))
    larger = torch.randn(1, 8, 12, 13)
    assert torch.allclose(exported.module()(larger), layer(larger), atol=1e-6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = layer(x)
    assert half.dtype == torch.bfloat16
    assert (half.float() - expected).norm() < 0.02 * expected.norm()
    assert layer.to(torch.bfloat16)(x.bfloat16()).dtype == torch.bfloat16
    meta = make(2, "4mm", filter, kernel_size=3, padding=1, fields=1, transposed=transposed, device="meta")
    meta.to_empty(device="cpu").load_state_dict(make(2, "4mm", filter, kernel_size=3, fields=1).state_dict())
    assert torch.isfinite(meta(x)).all()


@pytest.mark.parametrize("filter", FILTERS)
def test_gradients(filter):
    layer = make(2, "4", filter, kernel_size=2, fields=1).double()
    x = torch.randn(1, 4, 4, 3, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in layer.named_parameters()]

    def run(x, *parameters):
        return torch.func.functional_call(layer, dict(zip(names, parameters)), (x,))

    assert torch.autograd.gradcheck(run, (x, *layer.parameters()))


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("filter", FILTERS)
def test_half_precision_and_channels_last_in_3d(device, filter, transposed):
    """Under autocast the filter is spread in float32; the output equals that of the dense kernel up to rounding, in the memory format of
    the input."""
    geometry = {"kernel_size": 2, "stride": 2} if transposed else {"kernel_size": 3, "padding": 1}
    layer = make(3, "432", filter, fields=1, transposed=transposed, **geometry).to(device)
    x = torch.randn(1, 24, 4, 5, 6, device=device).to(memory_format=torch.channels_last_3d)
    exact = layer.to_conv().double()(x.double())
    for dtype, bound in ((torch.float32, 1e-5), (torch.float16, 1e-3), (torch.bfloat16, 8e-3)):
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            assert layer.dense_kernel().dtype == torch.float32
            y = layer(x)
            pooled = layers.PointGroupPool(3, "432", "222").to(device)(y)
        assert y.dtype == dtype
        assert all(each.is_contiguous(memory_format=torch.channels_last_3d) for each in (y, pooled))
        assert (y.double() - exact).norm() < bound * exact.norm()


def test_a_memory_format_of_images_and_axes_that_no_element_reverses():
    layer, x = make(2, "4mm", kernel_size=3, padding=1), torch.randn(1, 16, 6, 7)
    expected = layer(x)
    assert torch.allclose(layer.to(memory_format=torch.channels_last)(x), expected, atol=1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        TRANSPOSED[2](4, 4, 3, stride=(1, 2), padding=1, output_padding=(0, 1), group=("m", "x"))(
            torch.rand(1, 4, 5, 6)
        )


IMPOSSIBLE = {
    "nothing": (2, {"group": None}, "group=None is impossible: give a name such as '4', a pair of it and an axis"),
    "a list": (2, {"group": ["4mm"]}, "is impossible: give a name such as '4'"),
    "unknown group": (2, {"group": "5"}, "group='5' is unknown in 2D: use one of '1'"),
    "no subgroup's name": (2, {"out_group": "x"}, "out_group='x' is unknown in 2D"),
    "two names": (
        2,
        {"group": ("4mm", "2mm")},
        r"group=\('4mm', '2mm'\) is read as a name and its axis='2mm' is unknown",
    ),
    "text": (2, {"in_channels": "8"}, "in_channels='8' is impossible: give a whole number"),
    "part": (2, {"out_channels": 8.0}, r"out_channels=8\.0 is impossible: give a whole number"),
    "in_channels": (2, {"in_channels": 12}, "in_channels=12 is not a multiple of the 8 elements of .*: use 8 or 16"),
    "too few": (2, {"out_channels": 4}, "out_channels=4 is not a multiple of the 8 elements of .*: use 8 or 16"),
    "no subgroup": (
        2,
        {"group": "4", "out_group": "m"},
        "does not contain out_group=.*give a group and one of its subgroups",
    ),
    "window": (
        2,
        {"kernel_size": (3, 5)},
        r"kernel_size=\(3, 5\) is not symmetric under PointGroup\('4mm'\): .*PointGroup\('2mm'\)",
    ),
    "stride": (2, {"stride": (1, 2)}, r"stride=\(1, 2\) is not symmetric"),
    "groups": (
        2,
        {"groups": 4, "in_channels": 16, "out_channels": 16},
        "groups=4 must divide the 2 fields of in_channels=16",
    ),
    "depthwise": (2, {"filter": "depthwise", "out_channels": 16}, "filter='depthwise' keeps fields apart"),
    "filter": (2, {"filter": "gcc"}, "filter='gcc' is unknown: use one of 'full', 'g', 'gc', 'depthwise'"),
    "axes": (3, {"group": PointGroup.from_name("4", 2)}, "transforms 2 axes: give a group of 3 axes"),
}


@pytest.mark.parametrize(("dims", "settings", "sentence"), IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_impossible_layers_are_refused_in_a_sentence(dims, settings, sentence):
    with pytest.raises(ConfigurationError, match=sentence):
        CONV[dims](**{"in_channels": 8, "out_channels": 8, "kernel_size": 3, "group": "4mm"} | settings)


@pytest.mark.parametrize("settings", [{}, {"filter": "gc"}, {"filter": "depthwise"}])
@pytest.mark.parametrize("dtype", [torch.float64, torch.int64])
def test_an_input_of_another_type_is_refused_in_a_sentence(settings, dtype):
    layer = CONV[2](8, 8, 3, group="4mm", **settings)
    with pytest.raises(ConfigurationError, match=f"PointGroupConv2d has weights of torch.float32 and .* of {dtype}"):
        layer(torch.zeros(1, 8, 9, 9, dtype=dtype))
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.zeros(1, 8, 9, 9, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_an_input_of_other_channels_is_refused_in_a_sentence():
    with pytest.raises(
        ConfigurationError, match=r"PointGroupConv2d has spatial_dims=2, in_channels=8 and was given an input of shape"
    ):
        make(2, "4mm", kernel_size=3, fields=1)(torch.rand(1, 3, 9, 9))
