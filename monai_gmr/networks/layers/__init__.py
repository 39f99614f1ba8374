"""Layers: radial convolutions with the interface of ``torch.nn.ConvNd``, resampling, pooling and norms."""

from monai_gmr.networks.layers.annealed_conv import AnnealedConv, AnnealedConvTranspose
from monai_gmr.networks.layers.centred_conv import (
    GMRCentredConv1d,
    GMRCentredConv2d,
    GMRCentredConv3d,
    GMRCentredHarmonicConv1d,
    GMRCentredHarmonicConv2d,
    GMRCentredHarmonicConv3d,
)
from monai_gmr.networks.layers.factories import (
    convolution_label,
    keep_channels_last,
    make_convolution,
    one_per_level,
    register_layers,
    split_convolution,
)
from monai_gmr.networks.layers.gmr_conv import GMRConv1d, GMRConv2d, GMRConv3d, SREConv2d, SREConv3d
from monai_gmr.networks.layers.gmr_conv_transpose import GMRConvTranspose1d, GMRConvTranspose2d, GMRConvTranspose3d
from monai_gmr.networks.layers.gmr_harmonic_conv import GMRHarmonicConv1d, GMRHarmonicConv2d, GMRHarmonicConv3d
from monai_gmr.networks.layers.instance_norm import GMRInstanceNorm2d, GMRInstanceNorm3d
from monai_gmr.networks.layers.partial_elements import GroupElements, PartialGroupElements
from monai_gmr.networks.layers.partial_extents import (
    PartialExtent,
    draw_elements,
    extent_penalty,
    partial_extents,
    set_temperature,
)
from monai_gmr.networks.layers.partial_group_conv import PartialGroupConv2d, PartialGroupConv3d, PartialGroupPool
from monai_gmr.networks.layers.point_group_conv import (
    PointGroupConv1d,
    PointGroupConv2d,
    PointGroupConv3d,
    PointGroupConvTranspose1d,
    PointGroupConvTranspose2d,
    PointGroupConvTranspose3d,
)
from monai_gmr.networks.layers.point_group_fields import (
    PointGroupDense,
    PointGroupDropout,
    PointGroupNorm,
    PointGroupPool,
    PointGroupRestrict,
)
from monai_gmr.networks.layers.resampling import (
    GMRAvgPool,
    GMRDownsample,
    GMRMaxPool,
    GMRTrim,
    GMRUpsample,
    make_downsample,
)
from monai_gmr.networks.layers.sized_upsampling import (
    GMRInterpolate,
    GMRResizedConv1d,
    GMRResizedConv2d,
    GMRResizedConv3d,
    GMRSubpixelMean,
)

__all__ = [
    "AnnealedConv",
    "AnnealedConvTranspose",
    "GMRAvgPool",
    "GMRCentredConv1d",
    "GMRCentredConv2d",
    "GMRCentredConv3d",
    "GMRCentredHarmonicConv1d",
    "GMRCentredHarmonicConv2d",
    "GMRCentredHarmonicConv3d",
    "GMRConv1d",
    "GMRConv2d",
    "GMRConv3d",
    "GMRConvTranspose1d",
    "GMRConvTranspose2d",
    "GMRConvTranspose3d",
    "GMRDownsample",
    "GMRHarmonicConv1d",
    "GMRHarmonicConv2d",
    "GMRHarmonicConv3d",
    "GMRInstanceNorm2d",
    "GMRInstanceNorm3d",
    "GMRInterpolate",
    "GMRMaxPool",
    "GMRResizedConv1d",
    "GMRResizedConv2d",
    "GMRResizedConv3d",
    "GMRSubpixelMean",
    "GMRTrim",
    "GMRUpsample",
    "GroupElements",
    "PartialExtent",
    "PartialGroupConv2d",
    "PartialGroupConv3d",
    "PartialGroupElements",
    "PartialGroupPool",
    "PointGroupConv1d",
    "PointGroupConv2d",
    "PointGroupConv3d",
    "PointGroupConvTranspose1d",
    "PointGroupConvTranspose2d",
    "PointGroupConvTranspose3d",
    "PointGroupDense",
    "PointGroupDropout",
    "PointGroupNorm",
    "PointGroupPool",
    "PointGroupRestrict",
    "SREConv2d",
    "SREConv3d",
    "convolution_label",
    "draw_elements",
    "extent_penalty",
    "keep_channels_last",
    "make_convolution",
    "make_downsample",
    "one_per_level",
    "partial_extents",
    "register_layers",
    "set_temperature",
    "split_convolution",
]
