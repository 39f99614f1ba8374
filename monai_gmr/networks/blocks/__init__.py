"""Blocks with the signatures of MONAI's."""

from monai_gmr.networks.blocks.adn import GMRADN
from monai_gmr.networks.blocks.convolutions import GMRConvolution, GMRResidualUnit
from monai_gmr.networks.blocks.resnet_blocks import GMRResNetBlock, make_downsample
from monai_gmr.networks.blocks.upsampling import GMRCornerUpsample, GMRTrim

__all__ = [
    "GMRADN",
    "GMRConvolution",
    "GMRCornerUpsample",
    "GMRResNetBlock",
    "GMRResidualUnit",
    "GMRTrim",
    "make_downsample",
]
