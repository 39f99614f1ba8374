"""Blocks of :class:`GMRResNet`: resampling before the convolutions, activation after the sum."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai.networks.layers.factories import Pool
from monai.networks.layers.utils import get_act_layer
from torch import nn

from monai_gmr.networks.blocks.convolutions import GMRConvolution
from monai_gmr.networks.layers import GMRAvgPool, GMRDownsample, GMRMaxPool
from monai_gmr.utils import check_choice

DOWNSAMPLE: dict[str, Callable[..., nn.Module]] = {
    "lowpass": GMRDownsample,
    "avg": GMRAvgPool,
    "max": GMRMaxPool,
    "plain_max": lambda spatial_dims, **arguments: Pool["MAX", spatial_dims](**arguments),
}


def make_downsample(downsample: str | tuple | list, spatial_dims: int) -> nn.Module:
    """The layer that halves the grid, exact on every size.

    Args:
        downsample: "lowpass" (:class:`GMRDownsample`, anti-aliased), "avg" or "max", or a tuple of the name and further
            arguments, such as ``("lowpass", {"sigma": 0.8})`` or ``("max", {"kernel_size": 3, "padding": 1})``; or "plain_max"
            (``torch.nn.MaxPoolNd``, for the checkpoints of others: **not exact** where its windows do not end with the grid).
        spatial_dims: 1, 2 or 3.

    Raises:
        ConfigurationError: when there is no such layer.

    Example:
        >>> make_downsample("max", 2)
        GMRMaxPool(kernel_size=(2, 2), stride=(2, 2), padding=(0, 0))
        >>> make_downsample(("lowpass", {"sigma": 1.0}), 2)
        GMRDownsample(scale_factor=(2, 2), sigma=1)
    """
    name, arguments = (downsample, {}) if isinstance(downsample, str) else downsample
    check_choice("downsample", name, tuple(DOWNSAMPLE))
    step: dict[str, Any] = {"scale_factor": 2} if name == "lowpass" else {"kernel_size": 2, "stride": 2}
    return DOWNSAMPLE[name](spatial_dims, **(step | dict(arguments)))


class GMRResNetBlock(nn.Module):
    """Basic (two convolutions) or bottleneck (1, k, 1) residual block.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the input.
        channels: channels of the convolutions; the output has ``channels * expansion``.
        kernel_size: window length in voxels.
        stride: 1, or 2: halve the grid before the convolutions, in both paths at once.
        bottleneck: whether it is a bottleneck block, of expansion 4.
        downsample: as in :func:`make_downsample`.
        act, norm: as in ``monai.networks.blocks.Convolution``.
        conv, rings, spacing, padding_mode: as in :class:`GMRConvolution`.
        downsample_inside: whether a bottleneck halves the grid after its first convolution, not before it (ResNet "v1.5").

    Example:
        >>> GMRResNetBlock(2, 8, 16, kernel_size=5, stride=2)(torch.rand(1, 8, 9, 12)).shape
        torch.Size([1, 16, 5, 6])
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        channels: int,
        kernel_size: int | Sequence[int],
        stride: int = 1,
        bottleneck: bool = False,
        downsample: str | tuple = ("lowpass", {"sigma": 1.5}),
        act: tuple | str = "swish",
        norm: tuple | str = "batch",
        conv: str | Sequence = "gmr",
        rings: str = "gaussian",
        spacing: Sequence[float] | None = None,
        padding_mode: str = "zeros",
        downsample_inside: bool = False,
    ) -> None:
        super().__init__()
        expansion = 4 if bottleneck else 1
        widths = (
            [in_channels, channels, channels, channels * expansion] if bottleneck else [in_channels, channels, channels]
        )
        windows: list = [1, kernel_size, 1] if bottleneck else [kernel_size, kernel_size]
        self.downsample = make_downsample(downsample, spatial_dims) if stride > 1 else nn.Identity()
        self.inside = downsample_inside and bottleneck and stride > 1
        common: dict[str, Any] = {"norm": norm, "bias": False}
        self.convs = nn.Sequential()
        for i, window in enumerate(windows):
            last = i == len(windows) - 1
            block = GMRConvolution(
                spatial_dims,
                widths[i],
                widths[i + 1],
                kernel_size=window,
                act=None if last else act,
                conv="plain" if window == 1 else conv,
                rings=rings,
                spacing=spacing,
                padding_mode=padding_mode,
                **common,
            )
            self.convs.add_module(f"conv{i + 1}", block)
            if self.inside and i == 0:
                self.convs.add_module("downsample", make_downsample(downsample, spatial_dims))
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or in_channels != widths[-1]:
            self.shortcut = GMRConvolution(
                spatial_dims, in_channels, widths[-1], kernel_size=1, act=None, conv="plain", **common
            )
        self.act = get_act_layer(act)

    def last_norm(self) -> nn.Module:
        """The norm before the sum; started at zero it makes a fresh block pass its input on."""
        return self.convs[-1].get_submodule("adn.N")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(batch, in_channels, *spatial)`` to ``(batch, channels * expansion, *ceil(spatial / stride))``."""
        coarse = self.downsample(x)
        return self.act(self.convs(x if self.inside else coarse) + self.shortcut(coarse))
