"""Conversion of networks that somebody already has."""

from monai_gmr.networks.convert.convert import convert_to_gmr
from monai_gmr.networks.convert.report import ConversionReport, ConvertedModule

__all__ = ["ConversionReport", "ConvertedModule", "convert_to_gmr"]
