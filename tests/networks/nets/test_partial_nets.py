"""Nets of partial group convolutions: exact while they keep the whole group, trainable, reproducible, and ordinary modules."""

import copy
import pickle
import warnings
from functools import lru_cache

import pytest
import torch
from monai.networks.layers import Conv
from torch import nn

from monai_gmr.metrics import equivariance_error
from monai_gmr.networks.blocks import GMRConvolution, GMRResidualUnit
from monai_gmr.networks.layers import (
    PartialGroupConv2d,
    PartialGroupConv3d,
    PartialGroupElements,
    draw_elements,
    extent_penalty,
    partial_extents,
)
from monai_gmr.networks.nets import GMRResNet, GMRUNet
from monai_gmr.utils import ConfigurationError

# dimensions, what conv says beside its name, channels of a field
CONVOLUTIONS = {
    "SE(2)": (2, {"samples": 4}, 4),
    "E(2)": (2, {"group": "E(2)", "samples": 4}, 8),
    "4": (2, {"group": "4"}, 4),
    "SO(3)": (3, {"samples": 4}, 4),
    "222": (3, {"group": "222"}, 4),
}
SIZES = {2: [(17, 20), (16, 16), (19, 19)], 3: [(9, 12, 10)]}
EVERY = pytest.mark.parametrize("kind", ["basic", "bottleneck", "unet"])
# every block with one group, blocks and U-Nets in turn with the others
CASES = pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("basic", "SE(2)"),
        ("bottleneck", "SE(2)"),
        ("unet", "SE(2)"),
        ("unet", "E(2)"),
        ("basic", "E(2)"),
        ("bottleneck", "4"),
    ]
    + [("unet", "SO(3)"), ("basic", "SO(3)"), ("unet", "222")],
)


def build(kind: str, name: str, dtype: torch.dtype = torch.float32, **settings) -> nn.Module:
    dims, arguments, order = CONVOLUTIONS[name]
    torch.manual_seed(0)
    conv = ("partial", arguments | settings)
    if kind == "unet":
        return GMRUNet(dims, 1, 2, (2 * order, 2 * order), conv=conv, kernel_sizes=3).to(dtype)
    options = {"kernel_sizes": 3, "stem_kernel_size": 3, "stem_stride": 1, "zero_init_residual": False}
    return GMRResNet(dims, 1, 3, (1, 1), kind, width=2 * order, conv=conv, **options).to(dtype)


@lru_cache(maxsize=20)
def whole(kind: str, name: str) -> nn.Module:
    """A net with settled batch statistics, in double precision."""
    net, dims = build(kind, name).double(), CONVOLUTIONS[name][0]
    for _ in range(3):
        net(torch.randn(2, 1, *SIZES[dims][0], dtype=torch.float64))
    return net


def features(net: nn.Module) -> nn.Module:
    """Pooled features of a classification net, without the linear layer, whose bias hides them."""
    if isinstance(net, GMRResNet):
        net = copy.deepcopy(net)
        net.fc = nn.Identity()
    return net


@pytest.mark.parametrize("training", [False, True])
@CASES
def test_with_the_whole_group_it_is_exact(kind, name, training):
    dims = CONVOLUTIONS[name][0]
    net = features(whole(kind, name)).train(training)
    # the same samples for the image and the rotated one
    net.draws_elements = False
    draw_elements(net)
    for size in SIZES[dims]:
        x = torch.randn(2, 1, *size, dtype=torch.float64)
        errors = equivariance_error(net, x)
        assert len(errors.views) == net.symmetry_group.order
        assert errors.worst < 1e-10
    assert equivariance_error(copy.deepcopy(net).float(), x.float()).worst < 1e-5
    other = net(torch.randn_like(x)).detach() - net(x).detach()
    assert float(other.norm() / net(x).detach().norm()) > 1e-3


@CASES
def test_with_parts_of_the_group_it_is_not(kind, name):
    net = features(whole(kind, name)).eval()
    for module in net.modules():
        if isinstance(module, PartialGroupElements) and module.learned:
            for learned in (module.extent, module.keep):
                if learned is not None:
                    learned.data.fill_(0.3)
    x = torch.randn(2, 1, *SIZES[CONVOLUTIONS[name][0]][0], dtype=torch.float64)
    assert equivariance_error(net, x).worst > 1e-3


@CASES
def test_a_step_of_training_moves_every_parameter(kind, name):
    net, dims = build(kind, name).train(), CONVOLUTIONS[name][0]
    x = torch.randn(2, 1, *SIZES[dims][0])
    for module in net.modules():
        # at the end of their range probabilities and extents have gradients that may lead outwards
        if isinstance(module, PartialGroupElements) and module.learned:
            for learned in (module.extent, module.keep):
                if learned is not None:
                    learned.data.fill_(0.8)
    before = {key: value.detach().clone() for key, value in net.named_parameters()}
    optimiser = torch.optim.Adam(net.parameters(), 1e-2)
    y = net(x)
    ((y - torch.randn_like(y)) ** 2).mean().add(0.1 * extent_penalty(net)).backward()
    assert [key for key, value in net.named_parameters() if value.grad is None] == []
    optimiser.step()
    # a bias in front of a norm changes nothing
    still = [key for key, value in net.named_parameters() if torch.equal(value, before[key]) and "bias" not in key]
    assert still == []
    assert torch.isfinite(net.eval()(x)).all()


@EVERY
def test_training_draws_in_each_forward_pass_and_eval_does_not(kind):
    net, x = build(kind, "SE(2)"), torch.randn(2, 1, 16, 17)
    torch.manual_seed(1)
    first, second = net(x), net(x)
    torch.manual_seed(1)
    assert torch.equal(net(x), first)
    assert not torch.allclose(first, second)
    net.eval()
    state = torch.get_rng_state()
    assert torch.equal(net(x), net(x))
    assert torch.equal(torch.get_rng_state(), state)
    seeded = [build(kind, "SE(2)", seed=3) for _ in range(2)]
    state = torch.get_rng_state()
    assert torch.equal(*(net(x) for net in seeded))
    assert torch.equal(torch.get_rng_state(), state)


@EVERY
@pytest.mark.parametrize("name", ["E(2)", "SO(3)"])
def test_module_like_any_other(kind, name):
    net, x = build(kind, name), torch.randn(2, 1, *SIZES[CONVOLUTIONS[name][0]][-1])
    net(x).sum().backward()
    net.eval()
    expected = net(x)
    for clone in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(clone(x), expected)
        clone.train()
        draws = [module for module in clone.modules() if isinstance(module, PartialGroupElements)]
        assert len(draws) == len([module for module in net.modules() if isinstance(module, PartialGroupElements)])
    other = build(kind, name).eval()
    other.load_state_dict(net.state_dict())
    assert torch.equal(other(x), expected)


@pytest.mark.parametrize("name", ["E(2)", "SO(3)"])
def test_functions_of_torch_func(name):
    """Per-image gradients and directional derivatives equal those of autograd, image by image."""
    net = build("unet", name, dtype=torch.float64).eval()
    x = torch.randn(2, 1, *SIZES[CONVOLUTIONS[name][0]][-1], dtype=torch.float64)
    parameters = {key: each.detach() for key, each in net.named_parameters()}
    # functional_call leaves its tensors in modules that a net holds under two names, as it does elements
    called = copy.deepcopy(net)

    def loss(values, image):
        return torch.func.functional_call(called, values, image[None]).square().mean()

    batched = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
    for image, index in zip(x, range(len(x))):
        alone = torch.autograd.grad(net(image[None]).square().mean(), list(net.parameters()), materialize_grads=True)
        for key, gradient in zip(parameters, alone):
            assert torch.allclose(batched[key][index], gradient, atol=1e-10), key
    directions = {key: torch.randn_like(each) for key, each in parameters.items()}
    _, change = torch.func.jvp(lambda values: loss(values, x[0]), (parameters,), (directions,))
    expected = sum((batched[key][0] * directions[key]).sum() for key in parameters)
    assert torch.allclose(change, expected)


@pytest.mark.parametrize(("kind", "name"), [("basic", "E(2)"), ("unet", "SO(3)")])
def test_the_older_onnx_exporter(tmp_path, kind, name):
    onnxruntime = pytest.importorskip("onnxruntime")
    net, size = build(kind, name).eval(), SIZES[CONVOLUTIONS[name][0]][-1]
    path, x = str(tmp_path / "net.onnx"), torch.randn(1, 1, *size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(net, (x,), path, dynamo=False, input_names=["x"])
    (found,) = onnxruntime.InferenceSession(path).run(None, {"x": x.numpy()})
    torch.testing.assert_close(torch.as_tensor(found), net(x).detach(), atol=1e-4, rtol=1e-4)


@EVERY
def test_scripting_is_refused_in_a_sentence(kind):
    with pytest.raises(ConfigurationError, match=r"use torch.jit.trace or torch.export, or script the to_conv\(\)"):
        torch.jit.script(build(kind, "SE(2)").eval())


def test_what_the_layers_of_a_net_share():
    """The second convolution and the shortcut of a residual block end on the same elements, which the next block takes."""
    block, following = build("basic", "SE(2)").stages[0].block1, build("basic", "SE(2)")
    first, second, shortcut = block.convs.conv1.conv, block.convs.conv2.conv, block.shortcut.conv
    assert first.in_elements is shortcut.in_elements
    assert second.in_elements is first.out_elements is not second.out_elements
    assert second.out_elements is shortcut.out_elements
    stages = following.stages
    assert stages[1].block1.convs.conv1.conv.in_elements is stages[0].block1.convs.conv2.conv.out_elements
    names = [each.layer for each in partial_extents(following)]
    assert names == ["stem.conv", *(f"stages.{s}.block1.convs.conv{c}.conv" for s in (0, 1) for c in (1, 2))]
    net = build("unet", "SE(2)")
    assert not net.stem[0].conv.out_elements.learned
    assert net.skips[0].out_elements is net.encoders[0][1][1].conv.out_elements
    assert net.decoders[0][0].conv.in_elements is net.skips[0].out_elements


@pytest.mark.parametrize("dims", [2, 3])
def test_defaults_and_other_ways_to_make_one(dims):
    net = GMRUNet(dims, 1, 2, (8, 8) if dims == 2 else (24, 24), conv="partial", deep_supervision=True)
    kind = {2: PartialGroupConv2d, 3: PartialGroupConv3d}[dims]
    assert isinstance(net.stem[0].conv, kind)
    assert Conv["PARTIALGROUP", dims] is kind
    levels = [("partial", {"samples": 4}), ("partial", {"samples": 4, "kernel": "siren"})]
    net = GMRUNet(dims, 1, 2, (4, 4), conv=levels, kernel_sizes=3, dropout=0.1, norm="batch")
    assert net(torch.randn(2, 1, *(9,) * dims)).shape == (2, 2, *(9,) * dims)


def test_blocks_hand_their_elements_on():
    block = GMRConvolution(2, 1, 8, conv=("partial", {"samples": 4}), act="relu")
    elements = block.conv.out_elements
    unit = GMRResidualUnit(2, 8, 8, strides=2, conv=("partial", {"in_elements": elements}), act="relu")
    assert unit.residual.out_elements is unit.conv.unit1.conv.out_elements
    net, x = nn.Sequential(block, unit).double().eval(), torch.randn(1, 1, 9, 12, dtype=torch.float64)
    y, turned = net(x), net(x.rot90(1, (2, 3)))
    fields = turned.rot90(-1, (2, 3)).unflatten(1, (2, 4)).detach()
    # the channels are exchanged: a quarter turn is one step along the list
    shifted = [(fields.roll(step, 2).flatten(1, 2) - y).norm() / y.norm() for step in (-1, 1)]
    assert min(float(each.detach()) for each in shifted) < 1e-10


FIELD = ("partial", {"samples": 4})
IMPOSSIBLE = {
    "channels": ({"features": (6, 8)}, r"features=6 is not a multiple of the 4 elements of SampledGroup"),
    "mixed": (
        {"conv": [FIELD, "gmr"]},
        "mixes scalars with fields of a group: give group convolutions to all levels, or to none",
    ),
    "other fields": (
        {"conv": [FIELD, ("group", {"group": "4"})]},
        "mixes fields on a group with fields on learned parts of one",
    ),
    "elements": (
        {"conv": ("partial", {"in_elements": PartialGroupElements(2)})},
        "has in_elements, which a net chooses itself",
    ),
    "key": ({"conv": ("partial", {"sample": 4})}, "the key='sample' is unknown: use one of 'group', 'samples'"),
    "spacing": ({"spacing": (1.0, 2.0)}, r"spacing=\(1.0, 2.0\) is not symmetric under SampledGroup"),
    "activation": (
        {"act": ("prelu", {"num_parameters": 4})},
        "has weights for single channels, which a group exchanges",
    ),
}


@pytest.mark.parametrize(("settings", "sentence"), IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_impossible_nets_are_refused_in_a_sentence(settings, sentence):
    with pytest.raises(ConfigurationError, match=sentence):
        GMRUNet(
            **{"spatial_dims": 2, "in_channels": 1, "out_channels": 2, "features": (4, 4), "conv": FIELD} | settings
        )


def test_one_dimension_is_refused_in_a_sentence():
    with pytest.raises(ConfigurationError, match="spatial_dims=1 has no partial group convolution: use 2 or 3"):
        GMRUNet(1, 1, 2, (4, 4), conv="partial")
