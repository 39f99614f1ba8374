"""Thin modules over the operations: radial convolutions, resampling and pooling."""

from monai_gmr.networks.layers.factories import make_convolution, register_layers, split_convolution
from monai_gmr.networks.layers.gmr_conv import GMRConv1d, GMRConv2d, GMRConv3d
from monai_gmr.networks.layers.gmr_conv_transpose import (
    GMRConvTranspose1d,
    GMRConvTranspose2d,
    GMRConvTranspose3d,
)
from monai_gmr.networks.layers.gmr_harmonic_conv import GMRHarmonicConv1d, GMRHarmonicConv2d, GMRHarmonicConv3d
from monai_gmr.networks.layers.resampling import GMRAvgPool, GMRDownsample, GMRMaxPool, GMRUpsample
from monai_gmr.networks.layers.sre_conv import SREConv2d, SREConv3d

__all__ = [
    "GMRAvgPool",
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
    "GMRMaxPool",
    "GMRUpsample",
    "SREConv2d",
    "SREConv3d",
    "make_convolution",
    "register_layers",
    "split_convolution",
]
