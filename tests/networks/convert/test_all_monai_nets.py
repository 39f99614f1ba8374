"""Every network of ``monai.networks.nets`` is exact after conversion, or its report names why not, or conversion refuses it."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from contextlib import suppress
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from conversion_table import CASES, EFFICIENT_BLOCKS, generators, settle_statistics
from monai.networks import nets
from monai.utils import optional_import
from torch import nn

from monai_gmr.metrics.equivariance import nested_error, transform_tensors
from monai_gmr.networks import convert_to_gmr
from monai_gmr.utils import ConfigurationError, map_tensors, tensors_in

Size = tuple[int, ...]


def image(size: Size, channels: int = 1, batch: int = 2) -> torch.Tensor:
    """An image in double precision for a network."""
    return torch.randn(batch, channels, *size, dtype=torch.float64)


class Net(NamedTuple):
    """A network of the table.

    Attributes:
        make: function from the number of spatial axes to the network.
        sizes: lengths of an axis, even and odd if the network takes both; half of them in 3D.
        inputs: function from a size to the arguments of ``forward``, by name or place; default: only an image.
        channels: channels of the image.
        dims: numbers of spatial axes to test.
        needs: a package that the network needs.
        outcome: "exact"; "named": not exact, and the report says why; "refused"; "empty": a base class without an output; per number of
            spatial axes if it depends on them.
        double: whether the network runs in double precision.
        slow: whether one kind of kernel is enough.
    """

    make: Callable[[int], nn.Module]
    sizes: Size = (32, 33)
    inputs: Callable[[Size], Any] | None = None
    channels: int = 1
    dims: Size = (2,)
    needs: str = ""
    outcome: str | dict[int, str] = "exact"
    double: bool = True
    slow: bool = False


def shared(name: str, sizes: Size = (32, 33), **more: Any) -> Net:
    """A network of the README's table, which test_convert.py converts with harmonic kernels."""
    return Net(CASES[name].make, sizes, slow=True, **more)


TIMES = torch.tensor([3, 7])
DIFFUSION = {"num_res_blocks": 1, "channels": (8, 8), "attention_levels": (False, True), "norm_num_groups": 4}
CODES = {**DIFFUSION, "latent_channels": 2}
VIT = {"patch_size": 4, "hidden_size": 16, "mlp_dim": 16, "num_layers": 1, "num_heads": 2}
SMALL = {"channels": (4, 8), "strides": (2, 2)}
BLOCKS = {"block_config": (1, 1, 1, 1), "init_features": 8, "growth_rate": 4}
REGISTRATION = {"in_channels": 1, "num_channel_initial": 4}


def topology(kind: Any, dims: int) -> nn.Module:
    return kind(channel_mul=0.125, num_blocks=4 - dims, num_depths=2, spatial_dims=dims)


def levels(size: Size) -> tuple:
    return ([image(size, 8), image(tuple(-(-n // 2) for n in size), 16)],)


def senet(kind: Any) -> Callable[[int], nn.Module]:
    return lambda d: kind(layers=(1, 1, 1, 1), spatial_dims=d, in_channels=1, num_classes=2)


def densenet(kind: Any) -> Net:
    return Net(lambda d: kind(d, 1, 2, **BLOCKS), slow=kind is not nets.DenseNet)


def vista(dims: int) -> nn.Module:
    encoder = nets.SegResNetDS2(3, 8, 1, 8, norm="instance", blocks_down=(1, 1))
    points = part("vista3d", "PointMappingSAM")(feature_size=8, n_classes=20, last_supported=10)
    classes = part("vista3d", "ClassMappingClassify")(n_classes=20, feature_size=8, use_mlp=True)
    return nets.VISTA3D(encoder, classes, points)


def bert() -> Any:
    return SimpleNamespace(
        num_attention_heads=2, hidden_size=8, attention_probs_dropout_prob=0.0, hidden_dropout_prob=0.0
    )


def part(file: str, name: str) -> Any:
    """A class in a file from which the package exports no class."""
    return getattr(importlib.import_module(f"{nets.__name__}.{file}"), name)


def hovernet(dims: int) -> nn.Module:
    net = nets.HoVerNet("fast", 1, decoder_padding=True)
    # it only takes images of 256 x 256: here it downsamples them early
    net.conv0.conv = nn.Conv2d(1, 64, 7, 8, 3, bias=False)
    return net


def transchex() -> nn.Module:
    def fresh(kind: Any, *, bert_config: dict, path_or_repo_id: str, filename: str, **layers: int) -> nn.Module:
        return kind(**layers, bert_config=bert_config)

    # would download weights
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nets.MultiModal, "from_pretrained", classmethod(fresh))
        sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
        return nets.Transchex(1, (16, 16), (8, 8), 2, 1, 1, 1, **sizes)


def adapted(dims: int) -> nn.Module:
    model = nets.ResNet("basic", [1, 1, 1, 1], [4, 4, 8, 8], dims, 1, num_classes=2)
    return nets.NetAdapter(model, 2, dims, in_channels=8, pool=None, fc_name="fc")


def voxelmorph(dims: int) -> nn.Module:
    return nets.VoxelMorphUNet(dims, 2, 4, (4, 4, 8, 8, 8, 8), (4, 4))


NETS: dict[str, Net] = {
    "AHNet": Net(lambda d: nets.AHNet((1, 1, 1, 1), d, 1, 2, 0), (64,), dims=(3,), outcome="named", slow=True),
    "AttentionUnet": shared("AttentionUnet"),
    "AutoEncoder": shared("AutoEncoder"),
    "AutoencoderKL": Net(lambda d: nets.AutoencoderKL(d, 1, 1, **CODES), (16, 17), dims=(2, 3), outcome="named"),
    "BasicUNet": shared("BasicUNet"),
    "BasicUNetPlusPlus": shared("BasicUNetPlusPlus"),
    "Classifier": Net(lambda d: nets.Classifier((1, *(16,) * d), 2, **SMALL), (16,), outcome="named"),
    "Critic": Net(lambda d: nets.Critic((1, *(16,) * d), **SMALL), (16,)),
    "Discriminator": Net(lambda d: nets.Discriminator((1, *(16,) * d), **SMALL), (16,), outcome="named"),
    "ControlNet": Net(
        lambda d: nets.ControlNet(d, 1, conditioning_embedding_num_channels=(4, 8), **DIFFUSION),
        (16, 17),
        lambda size: (image(size), TIMES, image(tuple(2 * n for n in size))),
    ),
    "DAF3D": Net(lambda d: nets.DAF3D(1, 2), (32,), dims=(3,), outcome="named", needs="torchvision", slow=True),
    "DenseNet": densenet(nets.DenseNet),
    "DenseNet121": densenet(nets.DenseNet121),
    "DenseNet169": densenet(nets.DenseNet169),
    "DenseNet201": densenet(nets.DenseNet201),
    "DenseNet264": densenet(nets.DenseNet264),
    "DiffusionModelUNet": Net(
        lambda d: nets.DiffusionModelUNet(d, 1, 1, num_head_channels=4, **DIFFUSION),
        (16, 17),
        lambda size: (image(size), TIMES),
        dims=(2, 3),
    ),
    "DiNTS": Net(
        lambda d: nets.DiNTS(topology(nets.TopologyInstance, d), 1, 2, spatial_dims=d),
        (16, 17),
        dims=(2, 3),
        # in 3D its operations are kernels such as 3 x 3 x 1, each with its own weight
        outcome={2: "exact", 3: "named"},
        slow=True,
    ),
    "TopologyConstruction": Net(lambda d: topology(nets.TopologyConstruction, d), (16,), levels, outcome="empty"),
    "TopologyInstance": Net(lambda d: topology(nets.TopologyInstance, d), (16, 17), levels),
    "TopologySearch": Net(lambda d: topology(nets.TopologySearch, d), (16, 17), levels),
    "DynUNet": shared("DynUNet, residual"),
    "EfficientNet": Net(lambda d: nets.EfficientNet(EFFICIENT_BLOCKS, d, 1, 2)),
    "EfficientNetBN": shared("EfficientNetBN, b0"),
    "EfficientNetBNFeatures": Net(
        lambda d: nets.EfficientNetBNFeatures("efficientnet-b0", False, spatial_dims=d, in_channels=1), slow=True
    ),
    "EfficientNetEncoder": Net(
        lambda d: nets.EfficientNetEncoder("efficientnet-b0", False, spatial_dims=d, in_channels=1), slow=True
    ),
    "FlexibleUNet": shared("FlexibleUNet, resnet18"),
    "FullyConnectedNet": Net(lambda d: nets.FullyConnectedNet(4, 2, (4,)), outcome="refused"),
    "VarFullyConnectedNet": Net(lambda d: nets.VarFullyConnectedNet(4, 2, 2, (4,), (4,)), outcome="refused"),
    "Generator": Net(
        lambda d: nets.Generator((5,), (4, *(4,) * d), **SMALL),
        (4,),
        lambda size: (torch.randn(2, 5).double(),),
        outcome="named",
    ),
    "HighResBlock": Net(lambda d: nets.HighResBlock(d, 1, 4)),
    "HighResNet": shared("HighResNet", (16, 17)),
    "HoVerNet": Net(hovernet, (256,), lambda size: (image(size, batch=1),), slow=True),
    "HyenaNDUNETR": Net(
        lambda d: nets.HyenaNDUNETR(
            1, 2, (True, False, True, False), 12, spatial_dims=d, depths=(1, 1, 1, 1), num_heads=(1, 2, 2, 2)
        ),
        (64,),
        needs="nvsubquadratic",
        outcome="named",
    ),
    "MaskedAutoEncoderViT": Net(
        lambda d: nets.MaskedAutoEncoderViT(
            1,
            (16,) * d,
            decoder_hidden_size=16,
            decoder_mlp_dim=16,
            decoder_num_layers=1,
            decoder_num_heads=2,
            spatial_dims=d,
            **VIT,
        ),
        (16,),
        outcome="named",
    ),
    "MedNeXt": shared("MedNeXt"),
    "MILModel": Net(
        lambda d: nets.MILModel(
            2,
            "att",
            pretrained=False,
            backbone=nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
            backbone_num_features=8,
        ),
        (32, 33),
        lambda size: (torch.randn(2, 3, 1, *size).double(),),
    ),
    "NaViT": Net(lambda d: nets.NaViT((16,) * d, 8, 2, 16, 16, 1, 2, spatial_dims=d), (16,), outcome="refused"),
    "NetAdapter": Net(adapted, (64, 65)),
    "MultiScalePatchDiscriminator": Net(
        lambda d: nets.MultiScalePatchDiscriminator(2, 1, d, 4, 1, minimum_size_im=32), (64, 65)
    ),
    "PatchDiscriminator": Net(lambda d: nets.PatchDiscriminator(d, 4, 1, num_layers_d=2), (32, 33), dims=(2, 3)),
    "Quicknat": Net(lambda d: nets.Quicknat(2, 1, 4), (32, 33)),
    "Regressor": Net(lambda d: nets.Regressor((1, *(16,) * d), (2,), **SMALL), (16,), outcome="named"),
    "GlobalNet": Net(
        lambda d: nets.GlobalNet([16] * d, d, depth=2, **REGISTRATION), (16,), double=False, outcome="named"
    ),
    "LocalNet": Net(
        lambda d: nets.LocalNet(d, extract_levels=(0, 2), out_channels=d, **REGISTRATION), (32, 33), dims=(2, 3)
    ),
    "RegUNet": Net(lambda d: nets.RegUNet(d, depth=2, extract_levels=(0, 1, 2), out_channels=2, **REGISTRATION)),
    "ResNet": Net(lambda d: nets.ResNet("basic", [1] * 4, [4, 4, 8, 8], d, 1, num_classes=2)),
    "ResNetFeatures": Net(lambda d: nets.ResNetFeatures("resnet10", False, d, 1), slow=True),
    "ResNetEncoder": Net(lambda d: nets.ResNetEncoder("resnet10", False, d, 1), slow=True),
    "ResNetBlock": Net(lambda d: nets.ResNetBlock(4, 4, d), channels=4),
    "ResNetBottleneck": Net(lambda d: nets.ResNetBottleneck(16, 4, d), channels=16),
    "SegResNet": shared("SegResNet"),
    "SegResNetVAE": shared("SegResNetVAE", (32,)),
    "SegResNetDS": shared("SegResNetDS"),
    "SegResNetDS2": Net(lambda d: nets.SegResNetDS2(d, 4, 1, 2, blocks_down=(1, 1, 1)), (32, 33)),
    "SENet": Net(
        lambda d: nets.SENet(d, 1, "se_resnet_bottleneck", (1, 1, 1, 1), 1, 4, 0.0, 1, 8, 1, num_classes=2),
        (16, 17),
        slow=True,
    ),
    "SENet154": Net(
        lambda d: nets.SENet154(
            (1, 1, 1, 1), spatial_dims=d, in_channels=1, num_classes=2, inplanes=8, downsample_kernel_size=1
        ),
        (16,),
        slow=True,
    ),
    "SEResNet50": Net(senet(nets.SEResNet50), (16, 17), slow=True),
    "SEResNet101": Net(senet(nets.SEResNet101), (16, 17), slow=True),
    "SEResNet152": Net(senet(nets.SEResNet152), (16, 17), slow=True),
    "SEResNext50": Net(senet(nets.SEResNext50), (16, 17), slow=True),
    "SEResNext101": Net(senet(nets.SEResNext101), (16, 17), slow=True),
    "SPADEAutoencoderKL": Net(
        lambda d: nets.SPADEAutoencoderKL(d, 3, 1, 1, spade_intermediate_channels=8, **CODES),
        (16, 17),
        lambda size: (image(size), image(size, 3)),
        outcome="named",
    ),
    "SPADEDiffusionModelUNet": Net(
        lambda d: nets.SPADEDiffusionModelUNet(
            d, 1, 1, 3, num_head_channels=4, spade_intermediate_channels=8, **DIFFUSION
        ),
        (16, 17),
        lambda size: (image(size), TIMES, image(size, 3)),
        dims=(2, 3),
    ),
    "SPADENet": Net(
        lambda d: nets.SPADENet(d, 1, 1, 3, [16] * d, [8, 8], is_vae=False, spade_intermediate_channels=8),
        (16,),
        channels=3,
        dims=(2, 3),
    ),
    "SwinUNETR": shared("SwinUNETR", (64,), outcome="named"),
    "PatchMerging": Net(lambda d: nets.PatchMerging(4, spatial_dims=d), (16,), outcome="refused"),
    "PatchMergingV2": Net(lambda d: nets.PatchMergingV2(4, spatial_dims=d), (16,), outcome="refused"),
    "TorchVisionFCModel": Net(
        lambda d: nets.TorchVisionFCModel("resnet18", 2, use_conv=False, pool=None, weights=None),
        (32, 33),
        channels=3,
        needs="torchvision",
        slow=True,
    ),
    "BertAttention": Net(lambda d: nets.BertAttention(bert()), outcome="refused"),
    "BertMixedLayer": Net(lambda d: nets.BertMixedLayer(bert()), outcome="refused"),
    "BertOutput": Net(lambda d: nets.BertOutput(bert()), outcome="refused"),
    "BertPreTrainedModel": Net(lambda d: nets.BertPreTrainedModel(), outcome="refused"),
    "MultiModal": Net(lambda d: nets.MultiModal(1, 1, 1, {}), needs="transformers", outcome="refused"),
    "Pooler": Net(lambda d: nets.Pooler(8), outcome="refused"),
    "Transchex": Net(
        lambda d: transchex(),
        (16,),
        lambda size: (torch.ones(2, 4, dtype=torch.long), torch.zeros(2, 4, dtype=torch.long), image(size)),
        needs="transformers",
        outcome="named",
    ),
    "DecoderOnlyTransformer": Net(lambda d: nets.DecoderOnlyTransformer(8, 16, 8, 1, 2), outcome="refused"),
    "UNet": shared("UNet"),
    "UNETR": shared("UNETR", (32,), outcome="named"),
    "VarAutoEncoder": shared("VarAutoEncoder", (32,), outcome="named"),
    "VISTA3D": Net(
        vista,
        (16, 17),
        lambda size: {"input_images": image(size, batch=1), "class_vector": torch.tensor([[1], [2]])},
        dims=(3,),
    ),
    "ViT": Net(lambda d: nets.ViT(1, (16,) * d, spatial_dims=d, **VIT), (16,), outcome="named"),
    "ViTAutoEnc": Net(
        lambda d: nets.ViTAutoEnc(1, (16,) * d, deconv_chns=4, spatial_dims=d, **VIT), (16,), outcome="named"
    ),
    "VNet": shared("VNet"),
    "VoxelMorph": Net(
        lambda d: nets.VoxelMorph(voxelmorph(d), spatial_dims=d),
        (32,),
        lambda size: (image(size), image(size)),
        outcome="named",
    ),
    "VoxelMorphUNet": Net(lambda d: voxelmorph(d), (32, 33), channels=2),
    "VQVAE": Net(
        lambda d: nets.VQVAE(
            d,
            1,
            1,
            (4, 8),
            1,
            (4, 8),
            ((2, 4, 1, 1),) * 2,
            ((2, 4, 1, 1, 0),) * 2,
            num_embeddings=8,
            embedding_dim=4,
        ),
        (16, 17),
        double=False,
        dims=(2, 3),
    ),
    "CellSamWrapper": Net(
        lambda d: part("cell_sam_wrapper", "CellSamWrapper")(checkpoint=None),
        (64,),
        channels=3,
        double=False,
        slow=True,
        needs="segment_anything",
        outcome="named",
    ),
    "Restormer": Net(lambda d: part("restormer", "Restormer")(d, 1, 2, 8, (1, 1), (1, 1), 1), (16, 17), dims=(2, 3)),
    "MDTATransformerBlock": Net(lambda d: part("restormer", "MDTATransformerBlock")(d, 4, 1, 2.0, False), channels=4),
    "OverlapPatchEmbed": Net(lambda d: part("restormer", "OverlapPatchEmbed")(d, 1, 4)),
}


def networks() -> set[str]:
    """Names of all network classes of ``monai.networks.nets``: those that the package exports, and those in files from which it exports
    none."""
    exported = {each for each in vars(nets).values() if inspect.isclass(each) and issubclass(each, nn.Module)}
    seen = {each.__module__ for each in exported}
    for info in pkgutil.iter_modules(nets.__path__, nets.__name__ + "."):
        for each in vars(importlib.import_module(info.name)).values():
            if inspect.isclass(each) and issubclass(each, nn.Module) and each.__module__ == info.name not in seen:
                exported.add(each)
    return {each.__name__ for each in exported}


def test_every_network_is_in_the_table():
    missing, gone = networks() - set(NETS), set(NETS) - networks()
    assert not missing, (
        f"add a small {', '.join(sorted(missing))} to NETS of {__file__}: what does conversion make of it?"
    )
    assert not gone, f"{', '.join(sorted(gone))} of NETS is not a network of monai.networks.nets"


def arguments_of(case: Net, size: Size) -> tuple[tuple, dict]:
    given = case.inputs(size) if case.inputs else (image(size, case.channels),)
    if not case.double:
        given = map_tensors(given, lambda each: each.float() if each.is_floating_point() else each)
    return ((), given) if isinstance(given, dict) else (given, {})


def answer_of(net: nn.Module, args: tuple, kwargs: dict) -> Any:
    """Outputs of a network minus their means, which could hide an error, with the same random numbers each time."""
    torch.manual_seed(0)

    def varying(answer: torch.Tensor) -> torch.Tensor:
        if answer.dim() < 2 or not answer.is_floating_point():
            return answer
        rest = answer - answer.mean((0, *range(2, answer.dim())), keepdim=True)
        # a single number for one image has no part that varies
        return rest if float(rest.norm()) > 1e-6 * float(answer.norm()) else answer

    with torch.no_grad():
        return map_tensors(net(*args, **kwargs), varying)


def error_of(net: nn.Module, dims: int, args: tuple, kwargs: dict) -> float | None:
    """Worst relative error over generators of the group; ``None`` for a network without outputs."""
    upright = answer_of(net, args, kwargs)
    if not tensors_in(upright):
        return None
    assert any(float(each.double().norm()) > 0 for each in tensors_in(upright))
    errors = []
    for element in generators(dims):
        rotated = answer_of(net, *transform_tensors((args, kwargs), element, dims))
        errors.append(nested_error(rotated, transform_tensors(upright, element, dims)))
    return max(errors)


def make(name: str, dims: int) -> nn.Module:
    """A network without weights of 0, which would hide errors."""
    net = NETS[name].make(dims).eval()
    for parameter in net.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, 0, 0.1)
    return net.double() if NETS[name].double else net


def outcome_of(name: str, dims: int, **options: Any) -> str:
    """Measured outcome of a conversion, in the words of :class:`Net`."""
    case, net = NETS[name], make(name, dims)
    sizes = [(n if dims == 2 else -(-n // 2),) * dims for n in case.sizes]
    args, kwargs = arguments_of(case, sizes[0])
    if case.inputs:
        options["example_inputs"] = kwargs or args
    elif case.channels > 1:
        options["in_channels"] = case.channels
    try:
        converted = convert_to_gmr(net, **options)
    except ConfigurationError as error:
        text = str(error)
        assert text.endswith(".")
        assert ". " not in text
        assert "\n" not in text
        return "refused"
    settle_statistics(converted, *args, **kwargs)
    errors = []
    for size in sizes:
        args, kwargs = arguments_of(case, size)
        try:
            answer_of(net, args, kwargs)
        except Exception:  # the given network may raise anything for a size that only the converted one takes
            with suppress(Exception):
                errors.append(error_of(converted, dims, args, kwargs))
            continue
        errors.append(error_of(converted, dims, args, kwargs))
    assert errors
    if None in errors:
        return "empty"
    exact = max(errors) < (1e-8 if case.double else 3e-4)
    limits = converted.conversion_report.evaluation_limits
    assert exact is (not limits), (errors, limits)
    return "exact" if exact else "named"


KINDS = {"gmr": {"weights": "project"}, "gmr_harmonic": {"weights": "init", "conv": "gmr_harmonic"}}
RUNS = [(name, dims, "gmr") for name, case in NETS.items() for dims in case.dims]
RUNS += [(name, case.dims[0], "gmr_harmonic") for name, case in NETS.items() if not case.slow]


@pytest.mark.parametrize(("name", "dims", "kind"), RUNS)
def test_each_network_is_exact_or_its_report_says_why_not_or_it_is_refused(name, dims, kind):
    needs = NETS[name].needs
    if needs and not optional_import(needs)[1]:
        pytest.skip(f"{needs} cannot be imported")
    expected = NETS[name].outcome
    assert outcome_of(name, dims, **KINDS[kind]) == (expected if isinstance(expected, str) else expected[dims])


@pytest.mark.parametrize(("name", "labels"), [("AutoencoderKL", 0), ("SPADEAutoencoderKL", 3), ("VQVAE", 0)])
@pytest.mark.parametrize("dims", [2, 3])
def test_codes_and_reconstructions_of_autoencoders_are_exact(name, labels, dims):
    net = make(name, dims).double()
    net = convert_to_gmr(net, example_inputs=(image((16,) * dims), *([image((16,) * dims, labels)] if labels else [])))

    def answer(x, *maps):
        # forward draws a code at random, or takes the nearest in single precision
        code = net.encode(x)
        return code, net.decode(code if isinstance(code, torch.Tensor) else code[0], *maps)

    for n in (8, 12):
        size = (n, *(8,) * (dims - 1))
        assert error_of(answer, dims, (image(size), *([image(size, labels)] if labels else [])), {}) < 1e-8
    for n in (9, 11):
        assert error_of(net.encode, dims, (image((n, *(8,) * (dims - 1))),), {}) < 1e-8
