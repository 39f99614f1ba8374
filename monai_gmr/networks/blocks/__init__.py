"""Blocks with the signatures of MONAI's blocks."""

from monai_gmr.networks.blocks.adn import GMRADN
from monai_gmr.networks.blocks.convolutions import GMRConvolution, GMRResidualUnit, GMRResNetBlock

__all__ = ["GMRADN", "GMRConvolution", "GMRResNetBlock", "GMRResidualUnit"]
