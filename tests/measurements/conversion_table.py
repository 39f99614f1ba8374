"""MONAI's networks before and after conversion: equivariance error, parameters, time; the table of ``monai_gmr/networks/README.md``.

``python tests/measurements/conversion_table.py`` measures all networks in 2D and 3D (about 20 minutes on two cores) and prints Markdown.
"""

from __future__ import annotations

import argparse
import copy
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.networks import nets
from torch import nn
from tqdm import tqdm

from monai_gmr.apps.timing import median_seconds
from monai_gmr.command_line import command
from monai_gmr.files import check_folder, write_text
from monai_gmr.metrics import equivariance_error
from monai_gmr.networks import convert_to_gmr
from monai_gmr.ops import symmetric_upsample
from monai_gmr.symmetry import point_group
from monai_gmr.tables import format_markdown
from monai_gmr.utils import SymmetryWarning

SIZES: dict[int, dict[str, tuple[int, ...]]] = {
    2: {"even": (64, 64), "odd": (65, 65), "mixed": (50, 67)},
    3: {"even": (32,) * 3, "odd": (33,) * 3, "mixed": (34, 39, 32)},
}
SMALL, WIDE = (8, 16, 32), (8, 8, 16, 16, 32, 8)
HIGH_RES_LAYERS: Any = (
    {"name": "conv_0", "n_features": 8, "kernel_size": 3},
    {"name": "res_1", "n_features": 8, "kernels": (3, 3), "repeat": 1},
    {"name": "res_2", "n_features": 16, "kernels": (3, 3), "repeat": 1},
    {"name": "conv_1", "n_features": 16, "kernel_size": 1},
    {"name": "conv_2", "kernel_size": 1},
)
EFFICIENT_BLOCKS = ["r1_k3_s11_e1_i32_o16_se0.25", "r1_k5_s22_e6_i16_o24_se0.25"]
BATCH = 2
COARSE = 8
TIMED_RUNS = 5


def _dynunet(dims: int, levels: int = 3, **kwargs: Any) -> nn.Module:
    filters = [8, 16, 32, 32][:levels]
    return nets.DynUNet(dims, 1, 2, [3] * levels, [1] + [2] * (levels - 1), [2] * (levels - 1), filters, **kwargs)


def _mednext(dims: int, levels: int = 4) -> nn.Module:
    ones, twos = (1,) * levels, (2,) * levels
    kwargs: dict[str, Any] = {
        "encoder_expansion_ratio": twos,
        "decoder_expansion_ratio": twos,
        "bottleneck_expansion_ratio": 2,
    }
    return nets.MedNeXt(dims, 8, 1, 2, blocks_down=ones, blocks_bottleneck=1, blocks_up=ones, **kwargs)


def _flexible(dims: int, backbone: str) -> nn.Module:
    return nets.FlexibleUNet(1, 2, backbone, spatial_dims=dims, decoder_channels=(32, 16, 16, 8, 8))


def _resnet(block: str, dims: int) -> nn.Module:
    return nets.ResNet(block, [1, 1, 1, 1], [8, 16, 16, 32], dims, 1, num_classes=3)


def _unetr(dims: int) -> nn.Module:
    return nets.UNETR(1, 2, (32,) * dims, 8, hidden_size=48, mlp_dim=64, num_heads=4, spatial_dims=dims)


class Case(NamedTuple):
    """A network of the table.

    Attributes:
        make: from the number of spatial axes to the network, freshly initialised.
        fixed: the one size along an axis that it can take; ``None`` if it takes several.
        symmetric: whether conversion makes it exact.
        shallow: likewise a network of the same blocks, but fewer, for tests of what holds for each block; default: ``make``.
    """

    make: Callable[[int], nn.Module]
    fixed: int | None = None
    symmetric: bool = True
    shallow: Callable[[int], nn.Module] | None = None


CASES: dict[str, Case] = {
    "UNet": Case(
        lambda d: nets.UNet(d, 1, 2, SMALL, (2, 2), num_res_units=2),
        shallow=lambda d: nets.UNet(d, 1, 2, (4, 8), (2,), num_res_units=1),
    ),
    "BasicUNet": Case(lambda d: nets.BasicUNet(d, 1, 2, WIDE)),
    "BasicUNet, pixelshuffle": Case(lambda d: nets.BasicUNet(d, 1, 2, WIDE, upsample="pixelshuffle")),
    "BasicUNetPlusPlus": Case(lambda d: nets.BasicUNetPlusPlus(d, 1, 2, WIDE)),
    "FlexibleUNet, resnet18": Case(lambda d: _flexible(d, "resnet18"), shallow=lambda d: _flexible(d, "resnet10")),
    "FlexibleUNet, efficientnet-b0": Case(lambda d: _flexible(d, "efficientnet-b0")),
    "DynUNet": Case(_dynunet),
    "DynUNet, residual": Case(lambda d: _dynunet(d, res_block=True)),
    "DynUNet, deep supervision": Case(lambda d: _dynunet(d, 4, deep_supervision=True)),
    "SegResNet": Case(
        lambda d: nets.SegResNet(d, 8, 1, 2),
        shallow=lambda d: nets.SegResNet(d, 8, 1, 2, blocks_down=(1, 1, 1), blocks_up=(1, 1)),
    ),
    "SegResNetDS": Case(
        lambda d: nets.SegResNetDS(d, 8, 1, 2, dsdepth=2),
        shallow=lambda d: nets.SegResNetDS(d, 8, 1, 2, blocks_down=(1, 1, 1), dsdepth=2),
    ),
    "SegResNetVAE": Case(lambda d: nets.SegResNetVAE((32,) * d, spatial_dims=d, in_channels=1, out_channels=2), 32),
    "AttentionUnet": Case(
        lambda d: nets.AttentionUnet(d, 1, 2, SMALL, (2, 2)),
        shallow=lambda d: nets.AttentionUnet(d, 1, 2, (4, 8), (2,)),
    ),
    "VNet": Case(lambda d: nets.VNet(d, 1, 2)),
    "HighResNet": Case(
        lambda d: nets.HighResNet(d, 1, 2), shallow=lambda d: nets.HighResNet(d, 1, 2, layer_params=HIGH_RES_LAYERS)
    ),
    "UNETR": Case(_unetr, 32, symmetric=False),
    "SwinUNETR": Case(
        lambda d: nets.SwinUNETR(1, 2, feature_size=12, spatial_dims=d),
        64,
        symmetric=False,
        shallow=lambda d: nets.SwinUNETR(1, 2, feature_size=12, depths=(1, 1, 1, 1), spatial_dims=d),
    ),
    "MedNeXt": Case(_mednext, shallow=lambda d: _mednext(d, 2)),
    "ResNet10": Case(
        lambda d: nets.resnet10(spatial_dims=d, n_input_channels=1, num_classes=3), shallow=partial(_resnet, "basic")
    ),
    "ResNet18": Case(
        lambda d: nets.resnet18(spatial_dims=d, n_input_channels=1, num_classes=3), shallow=partial(_resnet, "basic")
    ),
    "ResNet50": Case(
        lambda d: nets.resnet50(spatial_dims=d, n_input_channels=1, num_classes=3),
        shallow=partial(_resnet, "bottleneck"),
    ),
    "SEResNet50": Case(
        lambda d: nets.SEResNet50(spatial_dims=d, in_channels=1, num_classes=3),
        shallow=lambda d: nets.SEResNet50((1, 1, 1, 1), spatial_dims=d, in_channels=1, num_classes=3),
    ),
    "DenseNet121": Case(
        lambda d: nets.DenseNet121(d, 1, 3),
        shallow=lambda d: nets.DenseNet(d, 1, 3, init_features=16, growth_rate=8, block_config=(2, 2, 2, 2)),
    ),
    "EfficientNetBN, b0": Case(
        lambda d: nets.EfficientNetBN(
            "efficientnet-b0", pretrained=False, spatial_dims=d, in_channels=1, num_classes=3
        ),
        shallow=lambda d: nets.EfficientNet(EFFICIENT_BLOCKS, d, 1, 3),
    ),
    "AutoEncoder": Case(lambda d: nets.AutoEncoder(d, 1, 1, (8, 16), (2, 2))),
    "VarAutoEncoder": Case(
        lambda d: nets.VarAutoEncoder(d, (1, *(32,) * d), 1, 8, (8, 16), (2, 2)), 32, symmetric=False
    ),
}


def make_images(size: Sequence[int], seed: int) -> torch.Tensor:
    """Images of coarse and fine structure, ``(batch, 1, *size)``: white noise alone means nothing to deep layers.

    Args:
        size: in voxels.
        seed: of the noise.
    """
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(BATCH, 1, *(-(-n // COARSE) for n in size), generator=generator)
    fine = torch.randn(BATCH, 1, *size, generator=generator)
    return symmetric_upsample(coarse, list(size), [COARSE] * len(size)) + fine / 2


class VaryingPart(nn.Module):
    """The first answer of a network less its mean over batch and voxels: that of an untrained one is often nearly constant, which would
    hide an error."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(batch, channels, *spatial)`` to the like or ``(batch, classes)``."""
        answer: Any = self.net(x)
        while isinstance(answer, list | tuple):
            answer = answer[0]
        return answer - answer.mean((0, *range(2, answer.dim())), keepdim=True)


def settle_statistics(net: nn.Module, *inputs: Any, **named: Any) -> nn.Module:
    """Give batch norms the statistics of an input, as training would, so that no layer's answer is lost in the next; in eval mode then."""
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = None
            module.reset_running_stats()
    net.train()
    with torch.no_grad():
        net(*inputs, **named)
    return net.eval()


def sizes_of(case: Case, dims: int) -> dict[str, tuple[int, ...]]:
    """An even, an odd and a mixed size, or the one that a network can take."""
    if case.fixed is not None:
        return {"even": (case.fixed,) * dims}
    return dict(SIZES[dims])


def make_pair(
    name: str, dims: int, seed: int = 0, shallow: bool = False, **options: Any
) -> tuple[nn.Module, nn.Module]:
    """A network of the table and its conversion, both in eval mode.

    Args:
        name: of :data:`CASES`.
        dims: number of spatial axes.
        seed: of the weights.
        shallow: whether to take the case's shallow network, where it has one.
        options: of :func:`~monai_gmr.networks.convert_to_gmr`.

    Example:
        >>> before, after = make_pair("AutoEncoder", 2)
        >>> sum(p.numel() for p in before.parameters()), sum(p.numel() for p in after.parameters())
        (2484, 450)
    """
    torch.manual_seed(seed)
    case = CASES[name]
    make = case.shallow if shallow and case.shallow else case.make
    before = make(dims).eval()
    return before, convert_to_gmr(before, **{"weights": "init"} | options)


def structural_error(net: nn.Module, size: Sequence[int]) -> float | None:
    """Worst relative error of an answer's varying part over elements that generate the group, in float64 and with settled statistics, so
    that neither a constant hides it nor rounding makes it; ``None`` for a size that the network cannot take."""
    device = next(net.parameters()).device
    x = make_images(size, 1).double().to(device)
    try:
        settle_statistics(net, make_images(size, 0).double().to(device))
        return _worst(VaryingPart(net), x, generators(len(size)))
    except Exception:  # whatever a network says to a size that it cannot take
        return None


def _worst(net: nn.Module, x: torch.Tensor, elements: Sequence) -> float:
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", SymmetryWarning)
        return equivariance_error(net, x, elements).worst


def generators(dims: int) -> list[np.ndarray]:
    """Elements that generate the group of the grid: a mirror, and exchanges of neighbouring axes.

    Example:
        >>> [g.tolist() for g in generators(2)]
        [[[-1, 0], [0, 1]], [[0, 1], [1, 0]]]
    """
    unit = np.eye(dims, dtype=int)
    mirror = unit * np.where(np.arange(dims) == 0, -1, 1)
    return [mirror, *(unit[[*range(i), i + 1, i, *range(i + 2, dims)]] for i in range(dims - 1))]


def group_error(net: nn.Module, sizes: Sequence[Sequence[int]], dtype: torch.dtype = torch.float64) -> float:
    """The worst error of a network of group convolutions, converted to a type; all elements of its group are asked at the first size, those
    that generate it at the others."""
    net, found = copy.deepcopy(net).to(dtype), []
    for index, size in enumerate(sizes):
        group: Any = net.symmetry_group
        asked = group.elements if index == 0 else group.generators()
        found.append(equivariance_error(net, torch.randn(2, 1, *size, dtype=dtype), asked).worst)
    return max(found)


def measure(name: str, dims: int, brief: bool = False, labels: Sequence[str] = tuple(SIZES[2])) -> dict[str, Any]:
    """One row: errors before and after at each size, the worst in float32 over the whole group after, parameters and times.

    Args:
        name: of :data:`CASES`.
        dims: number of spatial axes.
        brief: whether to leave out times and the whole group in float32.
        labels: of the sizes.
    """
    before, after = make_pair(name, dims)
    sizes = {label: size for label, size in sizes_of(CASES[name], dims).items() if label in labels}
    row: dict[str, Any] = {"net": name, "dims": dims}
    row["parameters"] = [sum(p.numel() for p in each.parameters()) for each in (before, after)]
    if not brief:
        group = list(point_group(dims))
        row["float32"] = max(_worst(after, make_images(size, 1)[:1], group) for size in sizes.values())
        x = make_images(sizes["even"], 1)[:1]
        with torch.no_grad():
            row["seconds"] = list(
                median_seconds({each: partial(each, x) for each in (before, after)}, TIMED_RUNS).values()
            )
    for each in (before, after):
        each.double()
    for label, size in sizes.items():
        row[label] = [structural_error(each, size) for each in (before, after)]
    return row


def _error(value: float | None) -> str:
    return "-" if value is None else "other size" if value == float("inf") else f"{value:.0e}"


HEAD = ["net", "", "even size", "odd size", "mixed size", "after, float32, whole group", "parameters", "forward, ms"]


def cells_of(row: dict[str, Any]) -> list[str]:
    """The cells of a row of the table."""
    cells = [row["net"], f"{row['dims']}D"]
    for label in ("even", "odd", "mixed"):
        cells.append(" → ".join(map(_error, row[label])) if label in row else "")
    cells.append(_error(row["float32"]) if "float32" in row else "")
    cells.append(" → ".join(f"{n:,}" for n in row["parameters"]))
    cells.append(" → ".join(f"{1000 * s:.0f}" for s in row["seconds"]) if "seconds" in row else "")
    return cells


@command("conversion_table")
def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--dims", type=int, nargs="+", default=[2, 3], choices=(2, 3), help="spatial axes (default: 2 3)"
    )
    parser.add_argument(
        "--nets", nargs="+", default=list(CASES), choices=list(CASES), metavar="NET", help="default: all"
    )
    parser.add_argument("--output", type=Path, help="file for the table, beside the screen")
    arguments = parser.parse_args(argv)
    if arguments.output:
        check_folder(arguments.output.parent)
    cases = [(name, dims) for dims in arguments.dims for name in arguments.nets]
    rows = [measure(name, dims) for name, dims in tqdm(cases, desc="networks", unit="net")]
    table = format_markdown([HEAD, *map(cells_of, rows)])
    print(table)
    if arguments.output:
        write_text(table + "\n", arguments.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
