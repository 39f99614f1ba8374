"""MONAI's modules whose ``forward`` itself, not a layer in it, breaks the symmetry: subclasses that an instance becomes in place."""

from __future__ import annotations

import torch
from monai.networks.blocks import SubpixelUpsample
from monai.networks.blocks.mednext_block import MedNeXtBlock, MedNeXtUpBlock
from monai.networks.nets import DynUNet, SegResNetDS
from torch import nn

from monai_gmr.networks.layers import GMRAvgPool
from monai_gmr.ops import symmetric_upsample


class SymmetricMedNeXtUpBlock(MedNeXtUpBlock):
    """MONAI's block without the row of zeros that it puts before its upsampled image, which is as long as it should be here."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(batch, in_channels, *spatial)`` to ``(batch, out_channels, *spatial of the skip connection)``."""
        answer = MedNeXtBlock.forward(self, x)
        return answer + self.res_conv(x) if self.resample_do_res else answer


class SymmetricDynUNet(DynUNet):
    """MONAI's net; the feature maps of deep supervision are enlarged about their centre."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As ``DynUNet``'s, in training mode with deep supervision ``(batch, maps, out_channels, *spatial)``."""
        answer = self.output_block(self.skip_layers(x))
        found = list(self.heads)
        # a feature map left behind can be neither copied nor freed
        self.heads[:] = [torch.empty(1)] * len(found)
        if not (self.training and self.deep_supervision):
            return answer
        size = list(answer.shape[2:])
        maps = [answer]
        for each in found:
            factors = [max(1, -(-n // m)) for n, m in zip(size, each.shape[2:])]
            # nearest, as in MONAI, where that is exact
            nearest = [m * f for m, f in zip(each.shape[2:], factors)] == size
            maps.append(nn.functional.interpolate(each, size) if nearest else symmetric_upsample(each, size, factors))
        return torch.stack(maps, dim=1)


class SymmetricSubpixelUpsample(SubpixelUpsample):
    """MONAI's upsampling whose block of layers is somebody's own: the mean over the parts of a voxel, then interpolation."""

    mean: nn.Module

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(batch, in_channels, *spatial)`` to ``(batch, out_channels, *size)``."""
        return self.mean(self.conv_block(x))


class SymmetricSegResNetDS(SegResNetDS):
    """MONAI's net for images of any size: its skip connections line up here."""

    def is_valid_shape(self, x: torch.Tensor) -> bool:
        """Every size is valid."""
        return True


class SymmetricChannelShortcut(nn.Module):
    """MONAI's ResNet shortcut of type "A", steps about the centre and then channels of zeros, with a gradient.

    Args:
        spatial_dims: 1, 2 or 3.
        channels: channels of the result.
        stride: step in voxels.
    """

    def __init__(self, spatial_dims: int, channels: int, stride: int) -> None:
        super().__init__()
        self.channels = channels
        self.pool = GMRAvgPool(spatial_dims, 1, stride, rounding="floor")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(batch, fewer channels, *spatial)`` to ``(batch, channels, *spatial / stride)``."""
        pooled = self.pool(x)
        zeros = pooled.new_zeros((pooled.shape[0], self.channels - pooled.shape[1], *pooled.shape[2:]))
        return torch.cat([pooled, zeros], dim=1)


REPLACEMENTS: dict[type, tuple[type, str]] = {
    MedNeXtUpBlock: (SymmetricMedNeXtUpBlock, "without its one-sided padding"),
    DynUNet: (SymmetricDynUNet, "deep supervision about the centre"),
    SegResNetDS: (SymmetricSegResNetDS, "takes every size"),
}
