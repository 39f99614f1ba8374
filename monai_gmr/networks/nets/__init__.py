"""Networks: ResNets and U-Nets, in 2D and 3D."""

from monai_gmr.networks.nets.resnet import GMRResNet, gmr_resnet18, gmr_resnet34, gmr_resnet50
from monai_gmr.networks.nets.unet import GMRUNet

__all__ = ["GMRResNet", "GMRUNet", "gmr_resnet18", "gmr_resnet34", "gmr_resnet50"]
