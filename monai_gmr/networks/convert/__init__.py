"""Conversion of existing networks to equivariant ones, and its report."""

from monai_gmr.networks.convert.convert import convert_to_gmr
from monai_gmr.networks.convert.report import ConversionReport, ConvertedModule

__all__ = ["ConversionReport", "ConvertedModule", "convert_to_gmr"]
