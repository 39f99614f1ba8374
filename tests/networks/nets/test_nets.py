"""Nets have the published sizes and parameters, work with torch's features, and reject wrong input in one sentence."""

import pytest
import torch
from monai.data import MetaTensor
from monai.losses import DeepSupervisionLoss, DiceCELoss
from monai.networks.nets import BasicUNet
from torch import nn

from monai_gmr.networks.layers import GMRConv2d, GMRConv3d, GMRHarmonicConv2d
from monai_gmr.networks.nets import GMRResNet, GMRUNet, gmr_resnet18, gmr_resnet34, gmr_resnet50
from monai_gmr.networks.utils import parameter_groups
from monai_gmr.utils import ConfigurationError


def small_resnet(**kwargs):
    return GMRResNet(2, 1, 3, **({"layers": (1, 1), "kernel_sizes": 5, "width": 4} | kwargs))


def small_unet(**kwargs):
    return GMRUNet(2, 1, 3, **({"features": (4, 8)} | kwargs))


@pytest.mark.parametrize(("classes", "warns"), [(2, False), (3, True)])
@pytest.mark.parametrize(
    "make",
    [
        lambda classes: GMRUNet(2, 1, classes, (8, 16), conv="group"),
        lambda classes: GMRResNet(2, 1, classes, layers=(1,), kernel_sizes=3, width=8, conv="group"),
        lambda classes: GMRUNet(2, 1, classes, (2, 16)),
    ],
)
def test_a_head_on_one_scalar_warns_that_it_cannot_tell_three_classes_apart(make, classes, warns, recwarn):
    net = make(classes)
    few = [str(each.message) for each in recwarn if "few for 3 outputs: give at least 16" in str(each.message)]
    assert len(few) == (warns and net.symmetry_group is not None)


@pytest.mark.parametrize(
    ("conv", "sentence"),
    [
        (("group", None), r"conv=\('group', None\) is impossible: give a name, or a pair"),
        (("group", {"filter": "depthwise"}), "keeps fields apart, so a net of it would not mix channels"),
        (("gmr_harmonic", {"keeps": "x"}), "keeps='x' is unknown in 2D"),
    ],
)
def test_an_impossible_convolution_is_one_sentence(conv, sentence):
    with pytest.raises(ConfigurationError, match=sentence):
        GMRUNet(2, 1, 2, features=(8, 16), conv=conv)


def test_resnet18_has_the_published_number_of_parameters():
    """GMR-Conv 1.0.3's gmr_resnet18([9, 9, 5, 5], 10 classes) has 3,996,685."""
    assert sum(p.numel() for p in gmr_resnet18(num_classes=10).parameters()) == 3_996_685


@pytest.mark.parametrize(
    ("make", "convolutions"), [(gmr_resnet18, 1 + 2 * 8), (gmr_resnet34, 1 + 2 * 16), (gmr_resnet50, 1 + 16)]
)
@pytest.mark.parametrize(("dims", "layer"), [(2, GMRConv2d), (3, GMRConv3d)])
def test_depths(make, convolutions, dims, layer):
    net = make(dims, 1, 2, width=2, kernel_sizes=3)
    assert sum(isinstance(m, layer) for m in net.modules()) == convolutions
    assert net.eval()(torch.rand(1, 1, *(17,) * dims)).shape == (1, 2)


def test_plain_nets_have_dense_kernels_of_three_and_equal_channels():
    plain, radial = GMRUNet(3, 1, 2, (4, 8), conv="plain"), GMRUNet(3, 1, 2, (4, 8))
    windows = {m.kernel_size for m in plain.modules() if isinstance(m, nn.Conv3d)}
    assert windows == {(1, 1, 1), (3, 3, 3)}
    channels = lambda net: [m.out_channels for m in net.modules() if hasattr(m, "out_channels")]  # noqa: E731
    assert channels(plain) == channels(radial)


@pytest.mark.parametrize("make", [small_resnet, small_unet])
def test_each_level_can_have_a_convolution_of_its_own(make):
    net = make(conv=[("gmr_harmonic", {"orders": (0, 2)}), "plain"])
    kinds = [m for m in net.modules() if isinstance(m, GMRHarmonicConv2d)]
    assert {m.orders for m in kinds} == {(0, 2)}
    assert {m.out_channels for m in kinds} == {4}
    assert 8 in {m.out_channels for m in net.modules() if type(m) is nn.Conv2d and m.kernel_size[0] > 1}


def test_a_stem_of_stride_one_keeps_the_grid():
    net, halved = small_resnet(stem_stride=1), small_resnet()
    x, shapes = torch.rand(1, 1, 16, 17), []
    for each in (net, halved):
        each.stages[0].register_forward_hook(lambda module, inputs, output: shapes.append(tuple(output.shape[2:])))
        each(x)
    assert shapes == [(16, 17), (8, 9)]


@pytest.mark.parametrize("size", [(3, 3), (17, 24), (32, 31)])
@pytest.mark.parametrize("levels", [1, 2, 3])
def test_unet_takes_every_size_and_depth(size, levels):
    if min(size) > 2 ** (levels - 1):
        net = GMRUNet(2, 2, 5, features=(4, 6, 8)[:levels])
        assert net(torch.rand(1, 2, *size)).shape == (1, 5, *size)


def test_deep_supervision_fits_monais_loss():
    net, x = GMRUNet(2, 1, 3, features=(4, 6, 8, 10), deep_supervision=True), torch.rand(2, 1, 19, 24)
    outputs = net(x)
    assert [tuple(y.shape[2:]) for y in outputs] == [(19, 24), (10, 12), (5, 6)]
    loss = DeepSupervisionLoss(DiceCELoss(to_onehot_y=True, softmax=True))
    loss(outputs, torch.randint(0, 3, (2, 1, 19, 24)).float()).backward()
    assert all(p.grad is not None for p in net.parameters())
    assert net.eval()(x).shape == (2, 3, 19, 24)


@pytest.mark.parametrize("make", [small_resnet, small_unet])
def test_compile_metatensor_channels_last_and_autocast(make):
    net, x = make().eval(), torch.rand(2, 1, 17, 20)
    with torch.no_grad():
        y = net(x)
        assert torch.allclose(torch.compile(net, backend="eager", fullgraph=True)(x), y, atol=1e-5)
        assert isinstance(net(MetaTensor(x)), MetaTensor)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.allclose(net(x).float(), y, atol=0.1 * float(y.abs().max()))
        last = net.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
        assert torch.allclose(last, y, atol=1e-5)


@pytest.mark.parametrize("make", [small_resnet, small_unet])
def test_bottlenecks_norms_and_dropout_train(make):
    net = make(norm=("group", {"num_groups": 2}), dropout=0.2)
    optimizer = torch.optim.AdamW(parameter_groups(net, 1e-2), 1e-2)
    x = torch.rand(4, 1, 16, 16)
    losses = []
    for _ in range(12):
        loss = (net(x) - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]


def test_weight_decay_spares_sigma_biases_and_norms():
    net = small_unet()
    decaying, constant = parameter_groups(net, 0.1)
    names = {id(p): name for name, p in net.named_parameters()}
    assert all(names[id(p)].endswith("weight") and ".adn." not in names[id(p)] for p in decaying["params"])
    assert any(names[id(p)].endswith("log_sigma") for p in constant["params"])
    assert len(decaying["params"]) + len(constant["params"]) == len(names)
    assert (decaying["weight_decay"], constant["weight_decay"]) == (0.1, 0.0)


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (small_resnet, {"block": "wide"}, "block='wide' is unknown"),
        (small_resnet, {"kernel_sizes": (3, 3, 3)}, "has 3 entries and layers has 2"),
        (small_unet, {"kernel_sizes": (3,)}, "has 1 entries and features has 2"),
        (small_unet, {"conv": ("gmr",)}, "has 1 entries and features has 2"),
        (small_unet, {"conv": ("gmr", 3)}, "conv=.*3.* is impossible"),
        (small_resnet, {"conv": "dense"}, "conv='dense' is unknown"),
        (small_resnet, {"stem_stride": 3}, "stem_stride=3 is unknown"),
        (
            small_unet,
            {"features": ()},
            r"features=\(\) is impossible: give a list of whole numbers, such as \[16, 32, 64\]",
        ),
        (small_unet, {"features": 8}, "features=8 is impossible: give a list of whole numbers"),
        (small_unet, {"features": (8.5, 16)}, r"features\[0\]=8\.5 is impossible: give a list of whole numbers"),
        (small_resnet, {"layers": 2}, "layers=2 is impossible: give a list of whole numbers"),
        (
            small_unet,
            {"conv": None},
            "conv=None is impossible: give a name, a pair of it and arguments, or a list of one a level",
        ),
        (
            small_unet,
            {"conv": ("gmr_harmonic", {"orderz": 1})},
            r"conv=.*: the key='orderz' is unknown: use one of .*'orders'",
        ),
        (small_resnet, {"conv": ("plain", {"rings": "hard"})}, r"the key='rings' is unknown"),
        (small_unet, {"norm": "layer"}, "norm of a block cannot be built .*normalized_shape"),
        (lambda **_: GMRUNet(2, 1, 0), {}, "out_channels=0 is impossible"),
        (lambda **_: GMRResNet(2, 1, 0), {}, "num_classes=0 is impossible"),
        (small_unet, {"rings": "round"}, "rings='round' is unknown"),
        (small_unet, {"downsample": "stride"}, "downsample='stride' is unknown"),
        (lambda **_: GMRUNet(4, 1, 1), {}, "spatial_dims=4 is impossible"),
        (lambda **_: GMRResNet(1, 1, 1), {}, "spatial_dims=1 is impossible"),
    ],
)
def test_impossible_nets_end_in_one_sentence(make, arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        make(**arguments)


@pytest.mark.parametrize("make", [small_resnet, small_unet])
@pytest.mark.parametrize("shape", [(1, 2, 16, 16), (1, 1, 8, 8, 8), (1, 16, 16)])
def test_wrong_input_ends_in_one_sentence(make, shape):
    with pytest.raises(ConfigurationError, match="in_channels=1 and was given an input of shape"):
        make()(torch.rand(shape))


@pytest.mark.parametrize("conv", ["gmr", "gmr_harmonic", "group", "partial"])
def test_a_batch_of_no_images_has_an_answer_of_none(conv):
    unet, resnet = GMRUNet(2, 1, 2, (8, 16), conv=conv, norm="batch"), GMRResNet(2, 1, 3, (1, 1), width=8, conv=conv)
    assert unet.eval()(torch.rand(0, 1, 16, 17)).shape == (0, 2, 16, 17)
    assert resnet.eval()(torch.rand(0, 1, 16, 17)).shape == (0, 3)


def test_too_small_an_input_ends_in_one_sentence():
    with pytest.raises(ConfigurationError, match="give more than 4 voxels along an axis"):
        GMRUNet(2, 1, 1, features=(2, 2, 2))(torch.rand(1, 1, 4, 4))


def test_parameters_are_a_tenth_of_monais_basic_unet():
    features = (16, 32, 64, 128, 256, 16)
    theirs = sum(p.numel() for p in BasicUNet(3, 1, 2, features).parameters())
    assert sum(p.numel() for p in GMRUNet(3, 1, 2, features[:5]).parameters()) < theirs / 8


@pytest.mark.parametrize(("dims", "stages", "windows"), [(2, 2, [9, 9]), (2, 5, [9, 9, 5, 5, 5]), (3, 3, [5, 5, 5])])
def test_the_usual_windows_are_for_any_number_of_stages(dims, stages, windows):
    net = GMRResNet(dims, 1, 2, layers=(1,) * stages, width=2)
    found = [next(each for each in stage.modules() if hasattr(each, "log_sigma")) for stage in net.stages]
    assert [each.kernel_size for each in found] == [(k,) * dims for k in windows]
