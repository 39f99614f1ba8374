"""Subclasses of MONAI's modules whose own ``forward``, not one of their layers, breaks the symmetry; conversion changes an instance's
class."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from monai.networks.blocks import SubpixelUpsample
from monai.networks.blocks.dints_block import FactorizedReduceBlock
from monai.networks.blocks.downsample import SubpixelDownsample
from monai.networks.blocks.feature_pyramid_network import FeaturePyramidNetwork
from monai.networks.blocks.mednext_block import MedNeXtBlock, MedNeXtUpBlock
from monai.networks.blocks.spade_norm import SPADE
from monai.networks.nets import DynUNet, HoVerNet, SegResNetDS, SegResNetDS2
from monai.networks.nets.spade_network import SPADEDecoder
from torch import nn

from monai_gmr.networks.layers import GMRAvgPool
from monai_gmr.ops import symmetric_upsample
from monai_gmr.ops.split_axis import split_axis


def resize_about_centre(x: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """``(batch, channels, *spatial)`` at another size: nearest if that is exact, else linear; means if it becomes smaller."""
    sizes, factors = list(x.shape[2:]), [-(-n // m) for n, m in zip(size, x.shape[2:])]
    if any(n < m for n, m in zip(size, sizes)):
        return nn.functional.interpolate(x, list(size), mode="area")
    if [m * f for m, f in zip(sizes, factors)] == list(size):
        return nn.functional.interpolate(x, list(size), mode="nearest-exact")
    return symmetric_upsample(x, list(size), factors)


class SymmetricMedNeXtUpBlock(MedNeXtUpBlock):
    """MONAI's block without the row of zeros before its upsampled image."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output = MedNeXtBlock.forward(self, x)
        return output + self.res_conv(x) if self.resample_do_res else output


class SymmetricDynUNet(DynUNet):
    """MONAI's net; the feature maps of deep supervision are enlarged about their centre."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        before = list(self.heads)
        output, maps = self.output_block(self.skip_layers(x)), list(self.heads)
        # feature maps left on the module can be neither copied nor freed
        self.heads[:] = before
        if not (self.training and self.deep_supervision):
            return output
        return torch.stack([output, *(resize_about_centre(each, output.shape[2:]) for each in maps)], dim=1)


class SymmetricSubpixelUpsample(SubpixelUpsample):
    """MONAI's upsampling with a custom block of layers: the mean over the parts of a voxel, then interpolation."""

    mean: nn.Module

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.mean(self.conv_block(x))


class _AnySize:
    """The skip connections of a converted network line up at every size."""

    def is_valid_shape(self, x: torch.Tensor) -> bool:
        return True


class SymmetricSegResNetDS(_AnySize, SegResNetDS):
    """MONAI's net for images of any size."""


class SymmetricSegResNetDS2(_AnySize, SegResNetDS2):
    """MONAI's net with two decoders, as in VISTA3D, for images of any size."""


class SymmetricSPADE(SPADE):
    """MONAI's normalisation by a map of labels, which is resized to the image about the centre."""

    def forward(self, x: torch.Tensor, segmap: torch.Tensor) -> torch.Tensor:
        return super().forward(x, resize_about_centre(segmap, x.shape[2:]))


class SymmetricSPADEDecoder(SPADEDecoder):
    """MONAI's decoder, which begins with the map of labels, resized about the centre to the smallest size."""

    def forward(self, seg: torch.Tensor, z: torch.Tensor | None = None) -> torch.Tensor:
        if self.is_vae:
            return super().forward(seg, z)
        x = self.conv_init(resize_about_centre(seg, self.latent_spatial_shape))
        for block in self.blocks:
            x = self.upsampling(block(x, seg))
        return self.last_conv(x)


class SymmetricFactorizedReduceBlock(FactorizedReduceBlock):
    """MONAI's halving by two convolutions, one of them shifted by a voxel: here both step about the centre."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act(x)
        return self.norm(torch.cat([self.conv_1(x), self.conv_2(x)], dim=1))


class SymmetricHoVerNetBlock(nn.Module):
    """A residual block of MONAI's HoVerNet that halves without padding a voxel too many and then cutting off the last."""

    shortcut: nn.Module
    layers: nn.Sequential
    bna_block: nn.Module

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        carried = self.shortcut(x)
        for layer in self.layers:
            x = carried = layer(x) + carried
        return self.bna_block(x)


class SymmetricHoVerNet(HoVerNet):
    """MONAI's net with :class:`SymmetricHoVerNetBlock`."""

    def become_symmetric(self) -> None:
        for block in self.res_blocks:
            block.__class__ = SymmetricHoVerNetBlock
            for each in block.modules():
                if isinstance(each, nn.Conv2d) and max(each.stride) > 1:
                    each.padding = (each.kernel_size[0] // 2, each.kernel_size[1] // 2)


class SortedPixelUnshuffle(nn.Module):
    """Replacement of pixel unshuffling: the parts of a voxel as channels, ``scale_factor`` along each axis, sorted by value.

    Example:
        >>> SortedPixelUnshuffle(2)(torch.tensor([[[[1.0, 4.0], [3.0, 2.0]]]])).flatten()
        tensor([1., 2., 3., 4.])
    """

    def __init__(self, scale_factor: int) -> None:
        super().__init__()
        self.scale_factor = scale_factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for axis in range(x.dim() - 2):
            # (batch, channels, *parts, *coarse): an axis of parts after the channels for each spatial axis
            x = split_axis(x, 2 + 2 * axis, self.scale_factor).movedim(3 + 2 * axis, 2)
        dims = (x.dim() - 2) // 2
        return x.flatten(2, 1 + dims).sort(2).values.flatten(1, 2)


class SymmetricSubpixelDownsample(SubpixelDownsample):
    """MONAI's downsampling with its parts of a voxel sorted."""

    def become_symmetric(self) -> None:
        self.unshuffle = SortedPixelUnshuffle(self.scale_factor)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # as in MONAI
        x = self.conv_block(x)
        if any(n % self.scale_factor for n in x.shape[2:]):
            raise ValueError(f"All spatial dimensions {x.shape[2:]} must be evenly divisible by {self.scale_factor}")
        return self.unshuffle(x)


class SymmetricFeaturePyramidNetwork(FeaturePyramidNetwork):
    """MONAI's pyramid; a coarse map is enlarged about its centre before it is added to a finer one."""

    def forward(self, x: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        names, values = list(x), list(x.values())
        inner = self.get_result_from_inner_blocks(values[-1], -1)
        results = [self.get_result_from_layer_blocks(inner, -1)]
        for level in range(len(values) - 2, -1, -1):
            lateral = self.get_result_from_inner_blocks(values[level], level)
            inner = lateral + resize_about_centre(inner, lateral.shape[2:])
            results.insert(0, self.get_result_from_layer_blocks(inner, level))
        if self.extra_blocks is not None:
            results, names = self.extra_blocks(results, values, names)
        return OrderedDict(zip(names, results))


class SymmetricChannelShortcut(nn.Module):
    """MONAI's ResNet shortcut of type "A", steps about the centre and then channels of zeros, with a gradient."""

    def __init__(self, spatial_dims: int, channels: int, stride: int) -> None:
        super().__init__()
        self.channels = channels
        self.pool = GMRAvgPool(spatial_dims, 1, stride, rounding="floor")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled = self.pool(x)
        zeros = pooled.new_zeros((pooled.shape[0], self.channels - pooled.shape[1], *pooled.shape[2:]))
        return torch.cat([pooled, zeros], dim=1)


REPLACEMENTS: dict[type, tuple[type, str]] = {
    MedNeXtUpBlock: (SymmetricMedNeXtUpBlock, "without its one-sided padding"),
    DynUNet: (SymmetricDynUNet, "deep supervision about the centre"),
    SegResNetDS: (SymmetricSegResNetDS, "takes every size"),
    SegResNetDS2: (SymmetricSegResNetDS2, "takes every size"),
    SPADE: (SymmetricSPADE, "the labels at another size about the centre"),
    SPADEDecoder: (SymmetricSPADEDecoder, "the labels at another size about the centre"),
    FactorizedReduceBlock: (SymmetricFactorizedReduceBlock, "both halves about the centre"),
    SubpixelDownsample: (SymmetricSubpixelDownsample, "the parts of a voxel sorted by value, not by place"),
    FeaturePyramidNetwork: (SymmetricFeaturePyramidNetwork, "coarse maps enlarged about the centre"),
    HoVerNet: (SymmetricHoVerNet, "without its one-sided padding and cut"),
}


def replacement_of(kind: type) -> tuple[type, str] | None:
    """The class that a MONAI module of class ``kind`` becomes, and a remark; the one for a base class if only the constructor differs."""
    for base in kind.__mro__:
        if base in REPLACEMENTS:
            return REPLACEMENTS[base]
        if any(not name.startswith("__") for name in vars(base)):
            return None
    return None
