"""Layers: radial convolutions with the interface of ``torch.nn.ConvNd``, resampling, pooling and norms."""

from monai_gmr.networks.layers.centred_conv import (
    GMRCentredConv1d,
    GMRCentredConv2d,
    GMRCentredConv3d,
    GMRCentredHarmonicConv1d,
    GMRCentredHarmonicConv2d,
    GMRCentredHarmonicConv3d,
)
from monai_gmr.networks.layers.factories import (
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

__all__ = ["GMRConv1d", "GMRConv2d", "GMRConv3d", "SREConv2d", "SREConv3d"]
__all__ += ["GMRConvTranspose1d", "GMRConvTranspose2d", "GMRConvTranspose3d"]
__all__ += ["GMRHarmonicConv1d", "GMRHarmonicConv2d", "GMRHarmonicConv3d"]
__all__ += ["GMRCentredConv1d", "GMRCentredConv2d", "GMRCentredConv3d"]
__all__ += ["GMRCentredHarmonicConv1d", "GMRCentredHarmonicConv2d", "GMRCentredHarmonicConv3d"]
__all__ += ["GMRInterpolate", "GMRResizedConv1d", "GMRResizedConv2d", "GMRResizedConv3d", "GMRSubpixelMean"]
__all__ += ["GMRAvgPool", "GMRDownsample", "GMRMaxPool", "GMRTrim", "GMRUpsample", "make_downsample"]
__all__ += ["GMRInstanceNorm2d", "GMRInstanceNorm3d", "keep_channels_last"]
__all__ += ["make_convolution", "one_per_level", "register_layers", "split_convolution"]
