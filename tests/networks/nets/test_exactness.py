"""Every net rotates its output with its image, exactly: every element of D4 and Oh, every size, both modes, before and
after training.

Most sizes are tested with elements that generate the group: a third of the calls in 2D, a twelfth in 3D. Sizes in WHOLE_GROUP are tested
with all elements, for trained nets; fresh nets are tested at fewer sizes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import pytest
import torch
from conversion_table import generators
from scipy import ndimage
from torch import nn
from torch.nn import functional

from monai_gmr.metrics import check_equivariance, equivariance_error
from monai_gmr.networks.nets import GMRResNet, GMRUNet, gmr_resnet18, gmr_resnet34, gmr_resnet50
from monai_gmr.symmetry import PointGroup

pytestmark = pytest.mark.usefixtures("one_thread")
TOLERANCE = 1e-5
NETS = ("basic", "bottleneck", "unet", "unet deep supervision")
# above the other marks, so that both modes of a trained net follow each other
MODES = pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
STEPS = pytest.mark.parametrize("steps", [0, 20])
EVERY_NET = pytest.mark.parametrize("kind", NETS)
KINDS = pytest.mark.parametrize(
    ("kind", "conv"), [*((kind, "gmr") for kind in NETS), ("basic", "gmr_harmonic"), ("unet", "gmr_harmonic")]
)
# all remainders of four halvings
SIZES_2D = [(n, n) for n in range(17, 33)]
PAIRS_2D = [(17, 40), (31, 18), (24, 37), (22, 36)]
SIZES_3D = [(17, 20, 23), (18, 18, 18), (16, 21, 26)]
FRESH_2D, FRESH_3D = [*SIZES_2D[::5], (37, 37), *PAIRS_2D], SIZES_3D[:1]
WHOLE_GROUP = [(17, 17), (24, 24), *PAIRS_2D, (17, 20, 23)]


def images(batch: int, *size: int, seed: int = 0) -> torch.Tensor:
    """Smooth noise of varying contrast. Unlike white noise, whose features are nearly equal everywhere, it gives batch normalisation a
    variance that is not just rounding."""
    noise = np.random.default_rng(seed).standard_normal((batch, 1, *size))
    smooth = ndimage.gaussian_filter(noise, (0, 0, *(1.5,) * len(size)))
    contrast = np.linspace(0.5, 1.5, batch).reshape(-1, *(1,) * (len(size) + 1))
    return torch.as_tensor(contrast * smooth / smooth.std(), dtype=torch.float32)


def build(kind: str, dims: int, **arguments) -> nn.Module:
    torch.manual_seed(0)
    if kind.startswith("unet"):
        features = (4, 6, 8) if dims == 2 else (3, 4, 5)
        return GMRUNet(dims, 1, 2, features, deep_supervision="deep" in kind, **arguments)
    windows = (9, 9, 5, 5) if dims == 2 else (5, 3, 3, 3)
    narrow = {"layers": (1, 1, 1, 1), "width": 4 if dims == 2 else 2, "kernel_sizes": windows}
    # Blocks that begin as the identity would hide their convolutions in a fresh net.
    arguments = narrow | {"zero_init_residual": False} | arguments
    return GMRResNet(dims, 1, 3, block=kind, **arguments)


def fit(net: nn.Module, dims: int, steps: int) -> None:
    """Trains on upright images, with random labels or the image itself as target."""
    device = next(net.parameters()).device
    optimiser = torch.optim.Adam(net.parameters(), 3e-3)
    net.train()
    for step in range(steps):
        x = images(4 if dims == 2 else 2, *(17, 20, 18)[:dims], seed=step).to(device)
        answers = net(x)
        if isinstance(answers, list):
            loss = sum(functional.mse_loss(a, nn.functional.interpolate(x, a.shape[2:]).expand_as(a)) for a in answers)
        elif answers.ndim == 2:
            loss = functional.cross_entropy(answers, torch.arange(len(x), device=device) % 3)
        else:
            loss = functional.mse_loss(answers, x.expand_as(answers))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


@lru_cache(maxsize=4)
def trained(
    kind: str, dims: int, steps: int, conv: str = "gmr", rings: str = "gaussian", *, device: str = "cpu"
) -> nn.Module:
    net = build(kind, dims, conv=conv, rings=rings).to(device)
    untouched = [parameter.detach().clone() for parameter in net.parameters()]
    fit(net, dims, steps)
    moved = [not torch.equal(p, u) for p, u in zip(net.parameters(), untouched)]
    assert all(moved) if steps else not any(moved)
    return net


def worst(
    net: nn.Module, batch: int, sizes: list[tuple[int, ...]], whole_group: Sequence[tuple[int, ...]] = WHOLE_GROUP
) -> tuple[float, tuple[int, ...]]:
    """The worst error over sizes, and its size; tests all elements at ``whole_group``, otherwise generators."""
    found, device = [], next(net.parameters()).device
    for size in sizes:
        whole = size in whole_group
        errors = equivariance_error(net, images(batch, *size).to(device), None if whole else generators(len(size)))
        assert len(errors.views) == ({2: 8, 3: 48} if whole else {2: 2, 3: 3})[len(size)]
        found.append((errors.worst, size))
    return max(found)


@MODES
@KINDS
@STEPS
def test_2d_every_size(kind, conv, steps, training):
    sizes = SIZES_2D + PAIRS_2D if steps and not training else FRESH_2D
    whole = WHOLE_GROUP if steps else ()
    error, size = worst(trained(kind, 2, steps, conv).train(training), 4, sizes, whole)
    assert error <= TOLERANCE, size


@EVERY_NET
@pytest.mark.parametrize("rings", ["indexed", "hard"])
@STEPS
def test_2d_every_kind_of_rings(kind, rings, steps):
    for training in (False, True):
        net = trained(kind, 2, steps, rings=rings).train(training)
        sizes = [(17, 17), (32, 32), *PAIRS_2D[2:]]
        error, size = worst(net, 4, sizes, whole_group=[(24, 37)] if steps else ())
        assert error <= TOLERANCE, (size, training)


@MODES
@KINDS
@STEPS
def test_3d(kind, conv, steps, training, device):
    sizes, whole = (SIZES_3D, WHOLE_GROUP) if steps else (FRESH_3D, ())
    error, size = worst(trained(kind, 3, steps, conv, device=device.type).train(training), 2, sizes, whole)
    assert error <= TOLERANCE, size


GROUPS_2D = [["4mm"], ["4"], ["2mm"], ["m"], ["4mm", "4", "2"]]
GROUPS_3D = [["m-3m"], ["432"], ["4/mmm"], ["mmm"], ["m-3m", "432", "432"]]
OTHER_GROUP_NETS_2D = [("unet", "full", 0), ("unet", "gc", 5), ("basic", "gc", 5), ("bottleneck", "g", 5)]
OTHER_GROUP_NETS_3D = [("unet", "gc", 0), ("unet", "gc", 3), ("basic", "gc", 3)]


def name_group_case(value: object) -> str:
    return "-".join(value) if isinstance(value, list) else str(value)


def group_net(kind: str, dims: int, names: list[str], filter: str, steps: int) -> nn.Module:
    """A net of two or three levels of group convolutions, each with two fields (one for large groups), on one group or one per level."""
    torch.manual_seed(0)
    order = PointGroup.from_name(names[0], dims).order
    channels = order * (2 if order < 16 else 1)
    names = names * (3 if dims == 2 else 2) if len(names) == 1 else names
    levels = [("group", {"group": name, "filter": filter}) for name in names]
    if kind == "unet":
        net: nn.Module = GMRUNet(dims, 1, 2, (channels,) * len(levels), conv=levels)
    else:
        net = GMRResNet(dims, 1, 3, (1,) * len(levels), kind, width=channels, conv=levels, zero_init_residual=False)
    fit(net, dims, steps)
    return net


def worst_of_group(net: nn.Module, sizes: Sequence[tuple[int, ...]], whole: int) -> tuple[float, tuple[int, ...]]:
    """The worst error over sizes; tests all elements of the net's group at the first ``whole`` sizes, and generators at the others."""
    group = net.symmetry_group
    found = []
    for index, size in enumerate(sizes):
        asked = group.elements if index < whole else group.generators()
        batch = 2 if len(size) == 2 else 1
        found.append((equivariance_error(net, images(batch, *size), asked).worst, size))
    return max(found)


# all groups in one kind of net; layers/test_point_group_conv.py has every filter in every group
@pytest.mark.parametrize(
    ("kind", "filter", "steps", "names"),
    [
        *(("unet", "full", 5, names) for names in GROUPS_2D),
        *((*net, names) for net in OTHER_GROUP_NETS_2D for names in (GROUPS_2D[0], GROUPS_2D[-1])),
    ],
    ids=name_group_case,
)
def test_2d_group_convolutions(kind, filter, names, steps):
    net = group_net(kind, 2, names, filter, steps)
    assert net.symmetry_group == PointGroup.from_name(names[-1], 2)
    for training in (True, False):
        sizes = PAIRS_2D if training or not steps else PAIRS_2D + SIZES_2D[:: 5 if filter == "full" else 9]
        error, size = worst_of_group(net.train(training), sizes, whole=2)
        assert error <= TOLERANCE, size
    if len(names) > 1:
        whole = PointGroup.from_name(names[0], 2).elements
        assert equivariance_error(net, images(2, 24, 24), whole).worst > 100 * TOLERANCE  # what it gave up


@pytest.mark.parametrize(
    ("kind", "filter", "steps", "names"),
    [
        *(("unet", "full", 3, names) for names in GROUPS_3D),
        *((*net, names) for net in OTHER_GROUP_NETS_3D for names in (GROUPS_3D[1], GROUPS_3D[-1])),
    ],
    ids=name_group_case,
)
def test_3d_group_convolutions(kind, filter, names, steps):
    net = group_net(kind, 3, names, filter, steps)
    for training in (True, False):
        sizes = SIZES_3D if steps and not training else FRESH_3D
        error, size = worst_of_group(net.train(training), sizes, whole=0)
        assert error <= TOLERANCE, size
    smallest = images(1, 7, 8, 9)
    assert equivariance_error(net, smallest, net.symmetry_group.elements).worst <= TOLERANCE


@EVERY_NET
@pytest.mark.parametrize("rings", ["indexed", "hard"])
@STEPS
def test_3d_every_kind_of_rings(kind, rings, steps):
    """Tests only generators: the test above covers the whole group with "gaussian", and layers/test_gmr_conv.py layers with these rings."""
    for training in (False, True):
        net = trained(kind, 3, steps, rings=rings).train(training)
        error, size = worst(net, 2, SIZES_3D[:1], whole_group=())
        assert error <= TOLERANCE, (size, training)


@pytest.mark.parametrize("dims", [2, 3])
def test_deep_supervision_is_asked_at_every_level(dims):
    net = build("unet deep supervision", dims).train()
    x = images(2, *(17, 20, 23)[:dims])
    assert [tuple(a.shape[2:]) for a in net(x)] == [(17, 20, 23)[:dims], (9, 10, 12)[:dims]]
    assert isinstance(net.eval()(x), torch.Tensor)


@pytest.mark.parametrize("make", [gmr_resnet18, gmr_resnet34, gmr_resnet50])
@pytest.mark.parametrize("dims", [2, 3])
def test_full_depth_in_float64(make, dims):
    """Batch statistics of a deep untrained net amplify rounding; in float64 only the symmetry itself remains."""
    torch.manual_seed(0)
    arguments = {} if dims == 2 else {"kernel_sizes": 3, "stem_kernel_size": 3}
    net = make(dims, 1, 3, width=4 if dims == 2 else 2, zero_init_residual=False, **arguments).double()
    for training in (False, True):
        for size in [(17, 17), (32, 37)] if dims == 2 else [(17, 16, 20)]:
            errors = equivariance_error(net.train(training), images(2, *size).double())
            assert errors.worst < 1e-10, (size, training)


@pytest.mark.parametrize("size", [(40, 40), (33, 48)])
@MODES
def test_full_depth_in_float32(size, training):
    torch.manual_seed(0)
    net = gmr_resnet18(2, 1, 3, width=16).train(training)
    assert equivariance_error(net, images(8, *size)).worst <= TOLERANCE


@EVERY_NET
@pytest.mark.parametrize("downsample", ["avg", "max"])
def test_other_ways_down(kind, downsample):
    error, size = worst(build(kind, 2, downsample=downsample), 4, [(n, n + 3) for n in range(17, 30)])
    assert error <= TOLERANCE, size


@EVERY_NET
def test_sre(kind):
    error, size = worst(build(kind, 2, conv="sre"), 4, [(17, 17), (24, 37), (32, 32)])
    assert error <= TOLERANCE, size


@EVERY_NET
def test_anisotropic_voxels_keep_the_group_of_their_spacing(kind):
    spacing = (1.0, 1.0, 1.5)
    net = build(kind, 3, spacing=spacing).eval()
    x = images(2, 17, 20, 18)
    errors = equivariance_error(net, x, spacing=spacing)
    assert len(errors.views) == 16
    assert errors.worst <= TOLERANCE
    fit(net, 3, 3)
    assert equivariance_error(net.eval(), x, generators(3)).worst > 10 * TOLERANCE


@pytest.mark.parametrize("kind", ["basic", "unet"])
@pytest.mark.parametrize("dims", [2, 3])
def test_no_module_breaks_the_symmetry(kind, dims):
    report = check_equivariance(build(kind, dims), [(18,), (17, 20, 23)[:dims]])
    assert report.broken == (), str(report)


@EVERY_NET
def test_plain_baseline_is_not_exact(kind):
    """The tests above detect a net that is not equivariant."""
    arguments = {"conv": "plain", "kernel_sizes": 3}
    assert worst(build(kind, 2, **arguments).train(), 4, [(24, 24)])[0] > 1e-2
