"""Blocks with the signatures of MONAI's."""

from monai_gmr.networks.blocks.convolutions import GMRConvolution, GMRResidualUnit
from monai_gmr.networks.blocks.resnet_blocks import GMRResNetBlock, make_downsample

__all__ = ["GMRConvolution", "GMRResNetBlock", "GMRResidualUnit", "make_downsample"]
