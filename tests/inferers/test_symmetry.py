"""Averaging over the group makes every network equivariant; incremental results equal the definition."""

from __future__ import annotations

import gc
import weakref
from functools import partial

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import DataLoader, MetaTensor
from monai.engines import SupervisedEvaluator
from monai.inferers import SaliencyInferer, SlidingWindowInferer
from monai.networks.nets import BasicUNet, DenseNet, DynUNet, UNet, resnet10
from torch import nn

from monai_gmr.inferers import GMRSlidingWindowInferer, SymmetryInferer, rotate_image
from monai_gmr.metrics import equivariance_error
from monai_gmr.symmetry import angle_views, group_views, point_group, rotation_matrix, transform_grid, transform_image
from monai_gmr.utils import ConfigurationError

SOME_3D = [np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1]]), np.array([[0, 0, 1], [-1, 0, 0], [0, -1, 0]])]


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def error(inferer, net, x, group=None) -> float:
    return equivariance_error(lambda image: inferer(image, net), x, group).worst


def tiny(name: str, dims: int) -> nn.Module:
    torch.manual_seed(0)
    if name == "unet":
        return UNet(dims, 1, 2, channels=(2, 4), strides=(2,), num_res_units=1, norm="batch").eval()
    if name == "basic_unet":
        return BasicUNet(dims, 1, 2, features=(2, 2, 2, 2, 2, 2), norm="batch").eval()
    if name == "densenet":
        return DenseNet(dims, 1, 3, init_features=4, growth_rate=2, block_config=(1, 1), bn_size=1).eval()
    return resnet10(spatial_dims=dims, n_input_channels=1, num_classes=3, widen_factor=0.06, conv1_t_stride=2).eval()


INNER = {
    "simple": None,
    "monai": SlidingWindowInferer((16, 24), 8, 0.4, "gaussian"),
    "ours": GMRSlidingWindowInferer(16, 8, 0.4, "gaussian"),
}


@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize(("name", "size"), [("unet", (34, 28)), ("basic_unet", (33, 50)), ("basic_unet", (35, 35))])
def test_any_segmentation_net_2d(name, size, inner):
    net = tiny(name, 2)
    if name == "unet" and inner == "simple":
        assert error(lambda x, n: n(x), net, noise(1, 1, *size)) > 0.01
    x = noise(2, 1, *size)
    assert error(SymmetryInferer(INNER[inner], views_per_batch=4), net, x) < 1e-5


@pytest.mark.parametrize("inner", [None, GMRSlidingWindowInferer(16, 8), SlidingWindowInferer(16, 8)])
@pytest.mark.parametrize("size", [(16, 18, 20), (17, 19, 16)])
def test_any_segmentation_net_3d(size, inner, device):
    net = nn.Sequential(nn.Conv3d(1, 2, 3, padding=1), nn.ReLU(), nn.Conv3d(2, 2, 3, padding=1)).eval()
    net = (tiny("unet", 3) if inner is None and all(n % 2 == 0 for n in size) else net).to(device)
    x = noise(1, 1, *size).to(device)
    assert error(lambda image, n: n(image), net, x, SOME_3D) > 0.01
    assert error(SymmetryInferer(inner, activation="softmax", views_per_batch=8), net, x, SOME_3D) < 1e-5


@pytest.mark.parametrize(("name", "dims", "size"), [("resnet", 3, (17, 20, 18)), ("densenet", 2, (32, 35))])
def test_any_classifier(name, dims, size):
    net, x = tiny(name, dims), noise(2, 1, *size)
    group = None if dims == 2 else SOME_3D
    assert error(lambda image, n: n(image), net, x, group) > 1e-3
    for spatial in (False, True):
        assert error(SymmetryInferer(spatial=spatial, views_per_batch=8), net, x, group) < 1e-5


@pytest.mark.parametrize("reduce", ["mean", "median", "max", "vote"])
@pytest.mark.parametrize("views_per_batch", [1, 3, 8])
def test_equals_brute_force(reduce, views_per_batch):
    net, x = tiny("basic_unet", 2), noise(2, 1, 33, 36)
    inferer = SymmetryInferer(
        reduce=reduce, activation="softmax", views_per_batch=views_per_batch, uncertainty=["std", "entropy"]
    )
    with torch.no_grad():
        answers = [net(transform_grid(x, g)).softmax(1) for g in point_group(2)]
        answer = inferer(x, net)
    stack = torch.stack([transform_grid(a, g.T) for a, g in zip(answers, point_group(2))]).double().numpy()
    votes = np.stack([stack.argmax(2) == c for c in range(2)], 2).mean(0)
    expected = {"mean": stack.mean(0), "median": np.median(stack, 0), "max": stack.max(0), "vote": votes}[reduce]
    assert np.abs(answer["pred"].numpy() - expected).max() < 1e-6
    assert np.abs(answer["std"].numpy() - stack.std(0)).max() < 1e-6
    mean = votes if reduce == "vote" else stack.mean(0)
    entropy = -(mean * np.log(np.maximum(mean, 1e-30))).sum(1, keepdims=True)
    assert np.abs(answer["entropy"].numpy() - entropy).max() < 1e-5
    assert answer["entropy"].shape == (2, 1, 33, 36)


def test_sigmoid_votes_and_entropy_of_each_channel():
    x = noise(1, 2, 5, 5)
    answer = SymmetryInferer(reduce="vote", activation="sigmoid", uncertainty=("entropy",))(x, nn.Identity())
    assert torch.equal(answer["pred"], (x > 0).float())
    assert answer["entropy"].shape == x.shape
    assert answer["entropy"].abs().max() == 0
    same = SymmetryInferer(activation=torch.exp)(x, nn.Identity())
    assert torch.allclose(same, x.exp())


@pytest.mark.parametrize("reduce", ["mean", "max", "vote"])
def test_memory_does_not_grow_with_the_views(reduce):
    earlier: list[weakref.ref] = []
    alive, tensors = [], []

    def net(x):
        alive.append(sum(reference() is not None for reference in earlier))
        if len(alive) in (3, 48):
            tensors.append(sum(isinstance(each, torch.Tensor) for each in gc.get_objects()))
        answers = [x + 1, {"coarse": x * 2}]
        earlier.extend([weakref.ref(x), weakref.ref(answers[0]), weakref.ref(answers[1]["coarse"])])
        return answers

    with torch.no_grad():
        SymmetryInferer(reduce=reduce, uncertainty="std")(noise(1, 2, 4, 5, 6), net)
    assert len(alive) == 48
    assert max(alive) == 0
    assert tensors[1] <= tensors[0]


def test_nested_outputs_and_deep_supervision():
    net = DynUNet(2, 1, 2, (3, 3, 3), (1, 2, 2), (2, 2), filters=(2, 4, 4), deep_supervision=True, deep_supr_num=1)
    conv = nn.Conv2d(1, 2, 3, padding=1)

    def nested(x):
        y = conv(x)
        return {"maps": [y, nn.functional.avg_pool2d(y, 2)], "scores": (y[:, :, 0, 0],)}

    x = noise(1, 1, 16, 20)
    for network in (net.train(), nested):
        for views_per_batch in (1, 4):
            inferer = SymmetryInferer(views_per_batch=views_per_batch if network is nested else 1)
            assert error(inferer, network, x) < 1e-5
    answer = SymmetryInferer(uncertainty="std")(x, nested)
    assert answer["pred"]["maps"][1].shape == answer["std"]["maps"][1].shape == (1, 2, 8, 10)
    assert isinstance(answer["pred"]["scores"], tuple)


def test_other_angles_are_interpolated():
    views = [*group_views(2)[:1], *angle_views(2, 30)]
    ramp = torch.linspace(-1, 1, 41)
    x = torch.exp(-4 * (ramp[:, None] ** 2 + 2 * (ramp[None, :] - 0.2) ** 2))[None, None]
    answer = SymmetryInferer(views=views, uncertainty="std")(x, lambda y: [y, nn.functional.avg_pool2d(y, 3, 2, 1)])
    assert (answer["pred"][0] - x).abs().max() < 0.02
    assert answer["std"][0].max() < 0.03
    assert (answer["pred"][1] - nn.functional.avg_pool2d(x, 3, 2, 1)).abs()[..., 4:-4, 4:-4].max() < 0.03


@pytest.mark.parametrize(("dims", "size"), [(2, (17, 20)), (3, (9, 12, 11))])
@pytest.mark.parametrize("spacing", [None, "unlike"])
def test_rotate_image_equals_scipy(dims, size, spacing):
    x, step = noise(1, 2, *size), None if spacing is None else (1.0, 1.0, 3.0)[-dims:]
    for degrees in (0, 30, 90, 217):
        matrix = rotation_matrix(dims, degrees, 1)
        expected = transform_image(x, matrix, 1, step)
        assert torch.allclose(rotate_image(x, matrix, step), expected, atol=1e-4)


def test_spacing_leaves_out_exchanges():
    x = noise(1, 1, 6, 7, 8)
    net = nn.Conv3d(1, 1, 3, padding=1)
    inferer = SymmetryInferer(spacing=(1, 1, 3), views_per_batch=4)
    assert len(inferer.matrices(3)) == 16
    assert error(inferer, net, x, point_group(3, (1, 1, 3))) < 1e-5


def test_metadata_gradients_amp_and_one_axis():
    x = MetaTensor(noise(1, 1, 8, 9), meta={"filename_or_obj": "a.nii"})
    net = nn.Conv2d(1, 2, 3, padding=1)
    answer = SymmetryInferer(uncertainty="std")(x, net)
    assert all(isinstance(each, MetaTensor) for each in answer.values())
    assert answer["pred"].meta["filename_or_obj"] == "a.nii"
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = SymmetryInferer()(x.as_tensor(), net)
    assert half.dtype == torch.float32
    assert torch.allclose(half, answer["pred"].as_tensor(), atol=0.05)
    leaf = noise(1, 1, 8, 9).requires_grad_()
    SymmetryInferer(activation="softmax", views=[*group_views(2), *angle_views(2, 45)])(leaf, net).pow(
        2
    ).sum().backward()
    assert leaf.grad.abs().sum() > 0
    assert net.weight.grad.abs().sum() > 0
    assert error(SymmetryInferer(), nn.Conv1d(1, 1, 3, padding=1), noise(1, 1, 9)) < 1e-6


def test_saliency_maps():
    net = tiny("densenet", 2)
    inferer = SymmetryInferer(SaliencyInferer("GradCAM", "class_layers.relu", class_idx=0))
    x = noise(1, 1, 32, 32)
    element = point_group(2)[3]
    difference = inferer(transform_grid(x, element), net) - transform_grid(inferer(x, net), element)
    assert difference.abs().max() < 1e-5


def test_the_image_is_unchanged_and_arguments_are_transformed_with_it():
    x = noise(1, 1, 5, 6)
    kept = x.clone()

    def net(image, scale, condition):
        assert torch.equal(condition, kept_transformed[len(calls) % 8])
        calls.append(0)
        return image.mul_(scale)

    calls: list[int] = []
    sizes = sorted(point_group(2), key=lambda g: abs(g[0, 0]) == 0)
    kept_transformed = [transform_grid(2 * kept, g) for g in sizes]
    assert torch.allclose(SymmetryInferer()(x, net, 3.0, condition=2 * x), 3 * kept)
    assert torch.equal(x, kept)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"views": []}, "views is empty"),
        ({"views": "octahedron"}, "octahedron"),
        ({"views": 8}, "views='8' is unknown"),
        ({"views": 2.5}, "views=2.5 is impossible"),
        ({"views": [np.ones((2, 2))]}, "not an orthogonal matrix"),
        ({"views": [np.eye(2), np.eye(3)]}, "different shapes"),
        ({"reduce": "average"}, "reduce='average' is unknown"),
        ({"activation": "relu"}, "activation='relu' is unknown"),
        ({"uncertainty": "variance"}, "uncertainty='variance' is unknown"),
        ({"uncertainty": "entropy"}, "needs probabilities"),
        ({"views_per_batch": 0}, "views_per_batch=0 is impossible: give a whole number of at least 1"),
        ({"inferer": 3}, "inferer=3 is impossible: give a MONAI inferer"),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises(ConfigurationError, match=message):
        SymmetryInferer(**options)


def classes(keepdim, dtype=torch.int64):
    """A network that returns class numbers, the brighter the higher."""
    return lambda x: torch.cat((0.2 - x, x - 0.5, 0 * x), 1).argmax(1, keepdim=keepdim).to(dtype)


@pytest.mark.parametrize("views", ["group", {"angles": 45}])
@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8])
@pytest.mark.parametrize(
    ("keepdim", "options"),
    [(keepdim, {"reduce": reduce}) for keepdim in (False, True) for reduce in ("mean", "median", "max")]
    + [(False, {"reduce": "vote"}), (True, {"views_per_batch": 2}), (True, {"uncertainty": "std"})],
)
def test_maps_of_class_numbers_are_refused(keepdim, options, dtype, views):
    with pytest.raises(ConfigurationError, match=r"class numbers have no .* over the views: let it return scores"):
        SymmetryInferer(views=views, **options)(noise(1, 1, 6, 7), classes(keepdim, dtype))


def test_an_activation_that_returns_class_numbers_is_refused():
    activation = partial(torch.argmax, dim=1, keepdim=True)
    with pytest.raises(ConfigurationError, match="class numbers have no mean"):
        SymmetryInferer(activation=activation)(noise(1, 1, 6, 7), nn.Conv2d(1, 2, 1))


@pytest.mark.parametrize(
    ("options", "net"),
    [
        ({"reduce": "vote"}, classes(True)),
        ({}, lambda x: classes(True)(x) > 0),
        ({}, lambda x: classes(True)(x).float()),
        ({}, lambda x: torch.cat([classes(True)(x) == number for number in range(3)], 1).long()),
        ({}, lambda x: classes(True)(x).amax((1, 2, 3))),
        ({"activation": lambda y: torch.cat([y == number for number in range(3)], 1).float()}, classes(True)),
    ],
)
def test_integers_and_switches_that_have_a_mean_stay(options, net):
    x = noise(1, 1, 6, 7)
    answer = SymmetryInferer(**options)(x, net)
    # the networks look at one voxel at a time, so all views agree
    expected = options.get("activation", lambda y: y)(net(x)).float()
    assert torch.allclose(answer, (expected > 0).float() if options.get("reduce") else expected)


@pytest.mark.parametrize(
    ("options", "net", "message"),
    [
        ({}, lambda x: "tumour", "a str without tensors"),
        ({}, lambda x: {}, "a dict without tensors"),
        ({"views": group_views(3)}, nn.Identity(), "views are of 3 axes"),
        ({"spacing": (1, 1, 1)}, nn.Identity(), "spacing has 3 entries"),
        ({"spatial": False}, nn.Identity(), "use spatial=True"),
        ({"views_per_batch": 2}, lambda x: x.mean(0), "views_per_batch=1"),
        ({"activation": "softmax"}, nn.Identity(), "use 'sigmoid'"),
    ],
)
def test_wrong_networks(options, net, message):
    with pytest.raises(ConfigurationError, match=message):
        SymmetryInferer(**options)(noise(1, 1, 6, 7), net)


def test_named_sets_of_views():
    assert len(SymmetryInferer(views="432").matrices(3)) == 24
    assert len(SymmetryInferer(views={"angles": 30}).matrices(2)) == 12


def test_from_a_config_with_a_bundle_evaluator():
    parser = ConfigParser(
        {
            "inferer": {
                "_target_": "monai_gmr.inferers.SymmetryInferer",
                "inferer": {"_target_": "monai_gmr.inferers.GMRSlidingWindowInferer", "roi_size": [8, 8]},
                "views_per_batch": 4,
            }
        }
    )
    image = MetaTensor(noise(1, 12, 9), meta={"filename_or_obj": "a.nii"})
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader([{"image": image, "label": image}] * 2, batch_size=2),
        network=nn.Conv2d(1, 2, 3, padding=1),
        inferer=parser.get_parsed_content("inferer"),
    )
    evaluator.run()
    # the engine splits batches by the metadata of their tensors
    assert [item["pred"].shape for item in evaluator.state.output] == [(2, 12, 9)] * 2
    assert evaluator.state.output[1]["pred"].meta["filename_or_obj"] == "a.nii"
