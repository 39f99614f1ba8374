"""Checkpoints of GMR-Conv 1.0.3 and SRE-Conv 1.0.2 load into our nets, with the outputs of the original and the symmetry that it lacks.

The arrays are made by ``tests/reference/make_reference_nets.py``; the tests run without the peers.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from monai_gmr.metrics import check_equivariance
from monai_gmr.networks.checkpoints import load_gmr_conv_checkpoint
from monai_gmr.networks.nets import GMRResNet, GMRUNet
from monai_gmr.utils import ConfigurationError, SymmetryWarning

REFERENCE = Path(__file__).parents[1] / "reference"


def recipes():
    """The script that made the arrays, which derives weights from keys."""
    spec = importlib.util.spec_from_file_location("make_reference_nets", REFERENCE / "make_reference_nets.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


RECIPES = recipes()
# what a state dict does not tell
ARGUMENTS = {
    "gmr_resnet18_skip": {"stem_stride": 1},
    "sre_resnet50": {"stem_stride": 1},
    "unet_batch": {"downsample": "avg"},
}
POOL = ("max", {"kernel_size": 3, "padding": 1})
INEXACT = ("unet_deconv", "sre_resnet18", "sre_resnet18_even")
EXACT = [name for name in RECIPES.CASES if name not in INEXACT]
pytestmark = pytest.mark.filterwarnings("ignore:.*not equivariant")


@pytest.fixture(scope="module")
def reference():
    with np.load(REFERENCE / "peer_nets.npz", allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


@pytest.fixture(scope="module")
def make_state(reference):
    """The state dict of a case, in float64."""

    def make(name):
        shapes = json.loads(reference[f"{name}/shapes"].tobytes())
        spatial_dims, state = len(RECIPES.CASES[name][-1]), {}
        for key, shape in shapes.items():
            if key.endswith("index_mat"):
                packed = reference[RECIPES.mask_name(tuple(shape), spatial_dims)]
                array = np.unpackbits(packed, count=int(np.prod(shape))).reshape(shape).astype(np.float64)
            elif key.endswith("mus"):
                array = np.arange(shape[0], dtype=np.float64)
            elif key.endswith("num_batches_tracked"):
                array = np.array(7)
            else:
                array = RECIPES.recipe_tensor(key, tuple(shape))
            state[key] = torch.as_tensor(array)
        return state

    cache = {}
    return lambda name: dict(cache[name] if name in cache else cache.setdefault(name, make(name)))


def relative_error(actual, expected):
    return float((actual - expected).norm() / expected.norm())


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)], ids=["double", "float"]
)
@pytest.mark.parametrize("name", RECIPES.CASES)
def test_outputs_equal_the_peers(reference, make_state, name, dtype, tolerance):
    """Random weights, statistics and widths, some of them beyond the limits at which GMR-Conv clamps them."""
    state = {key: value.to(dtype) if value.is_floating_point() else value for key, value in make_state(name).items()}
    net = load_gmr_conv_checkpoint(state, **ARGUMENTS.get(name, {}))
    assert not net.training
    assert {p.dtype for p in net.parameters()} == {dtype}
    with torch.no_grad():
        y = net(RECIPES.recipe_input(*RECIPES.CASES[name][-2:]).to(dtype))
    expected = torch.as_tensor(reference[f"{name}/y"])
    assert y.shape == expected.shape
    assert relative_error(y.double(), expected) <= tolerance


@pytest.mark.parametrize("name", [name for name in EXACT if "3d" not in name])
def test_what_is_loaded_is_equivariant_at_sizes_where_the_peer_is_not(make_state, name):
    net = load_gmr_conv_checkpoint(make_state(name), **ARGUMENTS.get(name, {}))
    report = check_equivariance(net, [(33, 36), (50, 41)], tolerance=1e-10, per_module=False)
    assert report.ok, report.to_text()


def test_volumes_are_equivariant(make_state, device):
    net = load_gmr_conv_checkpoint(make_state("unet_3d")).float().to(device)
    assert check_equivariance(net, [(9, 10, 11)], tolerance=1e-5).ok
    net = load_gmr_conv_checkpoint(make_state("gmr_r3d_9")).float().to(device)
    x = torch.rand(1, 1, 9, 10, 11, device=device)
    with torch.no_grad():
        assert relative_error(net(x.rot90(1, (2, 3)).flip(4).rot90(1, (3, 4))), net(x)) <= 1e-5


def test_a_transposed_convolution_is_loaded_with_a_warning(make_state):
    with pytest.warns(SymmetryWarning, match="upsample='deconv' is not equivariant"):
        net = load_gmr_conv_checkpoint(make_state("unet_deconv"))
    assert not check_equivariance(net, [(32, 32)], 1).ok
    assert net(torch.rand(1, 1, 35, 50, dtype=torch.float64)).shape == (1, 1, 35, 50)


def test_the_max_pooling_of_sre_conv_is_exact_on_odd_sizes_or_changed(make_state):
    """The optional exact pooling equals it on odd sizes."""
    state = make_state("sre_resnet18")
    with pytest.warns(SymmetryWarning, match="even length"):
        theirs = load_gmr_conv_checkpoint(state)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        exact = load_gmr_conv_checkpoint(state, stem_downsample=POOL)
        load_gmr_conv_checkpoint(make_state("sre_resnet50"), stem_stride=1)
    assert check_equivariance(theirs, [(33, 45)], tolerance=1e-10).ok
    assert not check_equivariance(theirs, [(32, 32)]).ok
    assert check_equivariance(exact, [(33, 45), (32, 32), (50, 41)], tolerance=1e-10).ok
    x = torch.rand(1, 3, 33, 45, dtype=torch.float64)
    assert torch.allclose(theirs(x), exact(x))


@pytest.mark.parametrize("key", [None, "model", "network", "net", "state_dict"])
@pytest.mark.parametrize("prefix", ["", "module.", "module._orig_mod."])
def test_files_checkpoints_and_wrapped_nets(make_state, tmp_path, key, prefix):
    state = make_state("unet_batch")
    wrapped = {prefix + k: nn.Parameter(v) if v.is_floating_point() else v for k, v in state.items()}
    content = wrapped if key is None else {"epoch": 3, key: wrapped}
    torch.save(content, tmp_path / "checkpoint.pt")
    first, second = (load_gmr_conv_checkpoint(each) for each in (content, str(tmp_path / "checkpoint.pt")))
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name])
    assert torch.equal(first.stem[0].conv.weight, state["conv_0.conv_0.conv.weight"])


def test_the_net_is_its_own(make_state):
    """Training does not change the checkpoint; the net can be deep-copied, and its state dict fits a net made with the same arguments."""
    state = make_state("unet")
    net = load_gmr_conv_checkpoint(state)
    x = torch.rand(1, 1, 32, 32, dtype=torch.float64)
    before = net(x)
    rebuilt = GMRUNet(
        2,
        1,
        1,
        (4, 6, 8, 10, 12),
        kernel_sizes=(9, 9, 5, 5, 3),
        rings="hard_square",
        downsample="max",
        upsample="linear_corners",
        decoder_features=(5, 6, 8, 10),
        upsample_features=(6, 4, 5, 6),
    ).double()
    rebuilt.load_state_dict(net.state_dict())
    assert torch.equal(copy.deepcopy(net)(x), before)
    assert torch.equal(rebuilt.eval()(x), before)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
    assert torch.equal(load_gmr_conv_checkpoint(state)(x), before)


def test_arguments_of_the_net_are_read_off(make_state):
    net = load_gmr_conv_checkpoint(make_state("gmr_resnet50"))
    assert isinstance(net, GMRResNet)
    windows = [stage[0].convs[1 if level == 0 else 2].conv.kernel_size for level, stage in enumerate(net.stages)]
    assert (net.spatial_dims, net.n_input_channels, net.fc.out_features) == (2, 3, 4)
    assert ([len(stage) for stage in net.stages], windows) == ([3, 4, 6, 3], [(9, 9), (7, 7), (5, 5), (3, 3)])
    assert {m.rings for m in net.modules() if hasattr(m, "rings")} == {"indexed"}


def test_a_net_without_its_last_layer_gives_features(make_state):
    state = {key: value for key, value in make_state("gmr_resnet34").items() if not key.startswith("fc.")}
    assert load_gmr_conv_checkpoint(state)(torch.rand(2, 1, 32, 32, dtype=torch.float64)).shape == (2, 32)


def trained(state, key, value):
    mask = state[key].clone()
    mask.view(-1)[4] += value
    return state | {key: mask}


@pytest.mark.parametrize("value", [1e-6, -0.25, 1.0])
@pytest.mark.parametrize("end", ["weight_index_mat", "default_weight_index_mat"])
@pytest.mark.parametrize(
    ("name", "layer"), [("gmr_resnet18", "layer2.0.conv1.1"), ("unet", "down_1.convs.conv_0.conv")]
)
def test_trained_masks_are_refused(make_state, name, layer, end, value):
    """GMR-Conv up to 1.0.2 trained the masks; in 1.0.3 such a checkpoint loads and is not equivariant."""
    state = trained(make_state(name), f"{layer}.{end}", value)
    with pytest.raises(ConfigurationError, match=r"ring masks of .* are not the 0/1 masks .* train again"):
        load_gmr_conv_checkpoint(state)


def drop(state, *keys):
    return {key: value for key, value in state.items() if key not in keys}


REFUSED = {
    "another net": (None, lambda s: nn.Conv2d(1, 2, 3).state_dict(), "no ring masks"),
    "our net": (None, lambda s: GMRUNet(2, 1, 2, (4, 8)).state_dict(), "monai_gmr itself.*load_state_dict"),
    "no state dict": (None, lambda s: {"epoch": 3}, "no weights: give a state dict, or"),
    "empty": (None, lambda s: {}, "holds nothing and no weights"),
    "a layer alone": (
        None,
        lambda s: {"a.weight": torch.zeros(1, 1, 2), "a.weight_index_mat": torch.ones(1, 1, 2, 9)},
        "not known",
    ),
    "a further key": ("gmr_resnet34", lambda s: s | {"head.weight": torch.zeros(2)}, "1 keys .* 'head.weight'"),
    "a missing key": ("gmr_resnet34", lambda s: drop(s, "layer3.1.bn2.weight"), "lacks layer3.1.bn2.weight"),
    "a missing width": ("gmr_resnet34", lambda s: drop(s, "layer3.1.conv2.log_sigmas"), "mixes layers of rings"),
    "other channels": ("gmr_resnet34", lambda s: s | {"layer1.0.bn1.weight": torch.ones(9)}, r"shape \(9,\) where"),
    "moved Gaussians": ("gmr_resnet34", lambda s: s | {"conv1.mus": torch.tensor([0.0, 1.5, 2.0])}, "Gaussians at"),
    "other strides": (
        "gmr_resnet34",
        lambda s: {key.replace("layer2.0.conv1.1.", "layer2.0.conv1."): value for key, value in s.items()},
        "does not halve the grid first: only layer_stride",
    ),
    "pixel shuffle": (
        "unet_deconv",
        lambda s: {key.replace("deconv.", "pixelshuffle.conv_block."): value for key, value in s.items()},
        "upsample='pixelshuffle', which is not equivariant",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_refused(make_state, what):
    name, change, message = REFUSED[what]
    with pytest.raises(ConfigurationError, match=message) as raised:
        load_gmr_conv_checkpoint(change(make_state(name) if name else None))
    assert "\n" not in str(raised.value)


def test_other_numbers_of_rings_are_refused(make_state):
    """Three rings on a window of 3, as ``num_rings=3`` makes them: the middle one is empty."""
    state = make_state("gmr_resnet34")
    for key, value in state.items():
        if key.startswith("layer1.") and value.shape[-2:] == (2, 9):
            empty = torch.zeros(1, 1, 1, 9, dtype=value.dtype)
            state[key] = torch.cat([value[..., :1, :], empty, value[..., 1:, :]], dim=2)
    with pytest.raises(ConfigurationError, match="num_rings=3 on a window of 3"):
        load_gmr_conv_checkpoint(state)


@pytest.mark.parametrize("name", ["gmr_resnet34", "unet"])
def test_arguments_that_the_state_dict_tells_are_refused(make_state, name):
    with pytest.raises(ConfigurationError, match=r"rings cannot be given .* use "):
        load_gmr_conv_checkpoint(make_state(name), rings="gaussian")


def test_files_that_are_no_checkpoints(tmp_path):
    with pytest.raises(ConfigurationError, match="does not exist"):
        load_gmr_conv_checkpoint(tmp_path / "missing.pt")
    (tmp_path / "text.pt").write_text("not weights")
    torch.save(nn.Linear(1, 1), tmp_path / "module.pt")
    for name in ("text.pt", "module.pt"):
        with pytest.raises(ConfigurationError, match="cannot be read as a checkpoint"):
            load_gmr_conv_checkpoint(tmp_path / name)
    with pytest.raises(ConfigurationError, match=r"checkpoint=Linear.* is impossible: give a path or a state dict"):
        load_gmr_conv_checkpoint(nn.Linear(1, 1))
