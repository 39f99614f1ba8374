"""SRE convolutions: radial kernels that are constant on hard rings."""

from monai_gmr.networks.layers.gmr_conv import GMRConv2d, GMRConv3d


class SREConv2d(GMRConv2d):
    """Convolution with kernels that are constant on rings of the window: :class:`GMRConv2d` with ``rings="hard"``.

    Numerically equal to SRE-Conv 1.0.2; the arguments are those of :class:`GMRConv2d` without ``rings``.

    Example:
        >>> import torch
        >>> SREConv2d(1, 4, 5, padding=2)(torch.rand(1, 1, 8, 8)).shape
        torch.Size([1, 4, 8, 8])

    Source:
        SRE-Conv: Symmetric Rotation Equivariant Convolution for biomedical image classification, arXiv 2501.09753.
    """

    def __init__(self, *args, num_rings: int | None = None, spacing=None, **kwargs) -> None:
        super().__init__(*args, rings="hard", num_rings=num_rings, spacing=spacing, **kwargs)


class SREConv3d(GMRConv3d):
    """:class:`SREConv2d` in three dimensions.

    Example:
        >>> import torch
        >>> SREConv3d(1, 4, 3, padding=1)(torch.rand(1, 1, 6, 6, 6)).shape
        torch.Size([1, 4, 6, 6, 6])
    """

    def __init__(self, *args, num_rings: int | None = None, spacing=None, **kwargs) -> None:
        super().__init__(*args, rings="hard", num_rings=num_rings, spacing=spacing, **kwargs)
