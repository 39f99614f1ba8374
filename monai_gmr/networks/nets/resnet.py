"""ResNets whose output does not change when the image is rotated or mirrored."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from monai.data import MetaTensor
from torch import nn

from monai_gmr.annotations import Named, checked_arguments
from monai_gmr.arguments import check_choice, check_count, check_counts, check_number
from monai_gmr.networks.blocks import GMRConvolution, GMRResNetBlock
from monai_gmr.networks.layers import draw_elements, make_downsample, one_per_level, split_convolution
from monai_gmr.networks.layers.conv_nd import check_input
from monai_gmr.networks.layers.factories import Convolution
from monai_gmr.networks.layers.group_levels import check_levels, kept_group, lift, onto, scalars, warn_of_few_scalars
from monai_gmr.utils import ConfigurationError, on_plain_tensor

DEFAULT_KERNEL_SIZES = {2: (9, 9, 5, 5), 3: (5, 5, 5, 5)}


class GMRResNet(nn.Module):
    """Residual classification network, invariant to every symmetry of the voxel grid, at every input size.

    Has a stem of one convolution that halves the grid, four stages of residual blocks (each except the first halves the grid before its
    convolutions), global average pooling and a linear layer.

    Args:
        spatial_dims: 2 or 3.
        n_input_channels: channels of the image.
        num_classes: number of outputs.
        layers: number of residual blocks of each stage.
        block: "basic" or "bottleneck".
        kernel_sizes: window of each stage in voxels; default ``(9, 9, 5, 5, ...)`` in 2D, 5 in 3D, 3 for "plain" and "group".
        width: channels of the first stage; with groups, a multiple of the group's order. Each stage has twice as many as the one before.
        stem_kernel_size: window of the stem in voxels, one number or one per axis.
        stem_stride: 2 if the stem halves the grid; 1 if not, for images of few voxels.
        conv: "gmr", "gmr_harmonic" (orders 0 to 2), "group" (group convolutions, pooled to scalars before the global pooling), "partial"
            (group convolutions whose layers learn how much of the group they keep), "sre" or "plain" (``torch.nn.ConvNd``, the baseline);
            or a pair of the name and further arguments of the layer, such as ``("gmr_harmonic", {"orders": (0, 1)})``,
            ``("group", {"group": "4mm", "filter": "gc"})`` or ``("partial", {"group": "E(2)"})``; or a list of either, one per stage,
            whose groups can become smaller from stage to stage.
        rings: as in :class:`~monai_gmr.networks.layers.GMRConv2d`.
        spacing: voxel size in millimetres; the net is then invariant to the symmetries that keep it.
        downsample: layer that halves the grid: "lowpass" (anti-aliased; stays close at other angles), "avg", "max", or a tuple of the name
            and further arguments.
        act, norm: as in ``monai.networks.blocks.Convolution``. A smooth activation creates few frequencies that the coarse grids cannot
            represent: with ReLU the pooled features of a rotated image change twice as much.
        dropout: probability with which pooled features are dropped.
        feed_forward: whether the net ends with a linear layer; otherwise it returns the pooled features.
        zero_init_residual: whether the last norm of each residual block starts at zero, so that a fresh net does not amplify rounding
            errors from block to block (Goyal et al., arXiv 1706.02677).
        padding_mode: "zeros", or "replicate": slower, but closer at other angles if the image reaches the border of the frame.
        stem_downsample: layer that halves the grid after the stem; default ``downsample``.
        downsample_inside: whether bottlenecks halve the grid after their first convolution, not before it (ResNet "v1.5").

    Shape:
        - input: ``(batch, n_input_channels, *spatial)``, any sizes
        - output: ``(batch, num_classes)``

    Raises:
        ConfigurationError: if arguments or input do not fit; the message says what does.

    Example:
        >>> net = GMRResNet(2, n_input_channels=3, num_classes=5, layers=(1, 1, 1, 1), width=8).eval()
        >>> x = torch.rand(1, 3, 33, 40)
        >>> net(x).shape, torch.allclose(net(x), net(x.rot90(1, (2, 3))), atol=1e-5)
        (torch.Size([1, 5]), True)

    Source:
        GMR-Conv, arXiv 2504.02819, section 4; He et al., arXiv 1512.03385.
    """

    @checked_arguments
    def __init__(
        self,
        spatial_dims: int,
        n_input_channels: int,
        num_classes: int,
        layers: Sequence[int] = (2, 2, 2, 2),
        block: str = "basic",
        *,
        kernel_sizes: int | Sequence[int | Sequence[int]] | None = None,
        width: int = 64,
        stem_kernel_size: int | Sequence[int] = 5,
        stem_stride: int = 2,
        conv: Convolution = "gmr",
        rings: str = "gaussian",
        spacing: Sequence[float] | None = None,
        downsample: Named = ("lowpass", {"sigma": 1.5}),
        act: Named = "swish",
        norm: Named = "batch",
        dropout: float = 0.0,
        feed_forward: bool = True,
        zero_init_residual: bool = True,
        padding_mode: str = "zeros",
        stem_downsample: Named | None = None,
        downsample_inside: bool = False,
    ) -> None:
        super().__init__()
        if spatial_dims not in DEFAULT_KERNEL_SIZES:
            raise ConfigurationError(f"spatial_dims={spatial_dims} is impossible for GMRResNet: use 2 or 3.")
        check_counts("layers", layers, (2, 2, 2, 2))
        check_count("width", width)
        check_count("n_input_channels", n_input_channels)
        if feed_forward:
            check_count("num_classes", num_classes)
        check_number("dropout", dropout, 0, 1)
        check_choice("block", block, ("basic", "bottleneck"))
        check_choice("stem_stride", stem_stride, (1, 2))
        convolutions = one_per_level("conv", conv, len(layers), "layers")
        check_levels(convolutions, spatial_dims, [width * 2**level for level in range(len(layers))], "width")
        if kernel_sizes is None:
            small = all(split_convolution(each)[0] in ("plain", "group") for each in convolutions)
            usual = DEFAULT_KERNEL_SIZES[spatial_dims]
            # further stages have the window of the fourth
            kernel_sizes = 3 if small else [*usual, *usual[-1:] * len(layers)][: len(layers)]
        windows = one_per_level("kernel_sizes", kernel_sizes, len(layers), "layers")
        common: dict[str, Any] = {"rings": rings, "spacing": spacing, "padding_mode": padding_mode}
        common |= {"act": act, "norm": norm}
        self.spatial_dims, self.n_input_channels = spatial_dims, n_input_channels
        # group that the net keeps; with partial convolutions, the one that it keeps before it learns to keep less
        self.symmetry_group = kept_group(convolutions[-1], spatial_dims)
        self.draws_elements = split_convolution(convolutions[0])[0] == "partial"
        first = lift(convolutions[0], spatial_dims)
        options = common | {"kernel_size": stem_kernel_size, "conv": first, "bias": False}
        self.stem = GMRConvolution(spatial_dims, n_input_channels, width, **options)
        after_stem = downsample if stem_downsample is None else stem_downsample
        self.downsample = make_downsample(after_stem, spatial_dims) if stem_stride == 2 else nn.Identity()
        bottleneck = block == "bottleneck"
        common |= {"bottleneck": bottleneck, "downsample": downsample, "downsample_inside": downsample_inside}
        channels, expansion = width, 4 if bottleneck else 1
        self.stages = nn.ModuleList()
        last = first
        for level, (count, window, convolution) in enumerate(zip(layers, windows, convolutions)):
            stage, out_channels = nn.Sequential(), width * 2**level
            for i in range(count):
                last = onto(last, convolution, spatial_dims)
                options = common | {"stride": 2 if level > 0 and i == 0 else 1, "conv": last}
                residual = GMRResNetBlock(spatial_dims, channels, out_channels, window, **options)
                stage.add_module(f"block{i + 1}", residual)
                channels = out_channels * expansion
            self.stages.append(stage)
        if zero_init_residual:
            for module in self.modules():
                if isinstance(module, GMRResNetBlock):
                    for parameter in module.last_norm().parameters():
                        nn.init.zeros_(parameter)
        self.scalars, left = scalars(last, spatial_dims, channels)
        if feed_forward:
            warn_of_few_scalars(channels, left, num_classes)
        channels = left
        self.dropout = nn.Dropout(dropout)
        self.fc: nn.Module = nn.Linear(channels, num_classes) if feed_forward else nn.Identity()

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Pooled features, ``(batch, channels)``."""
        if not torch.jit.is_scripting():
            check_input(self, x, self.spatial_dims, self.n_input_channels, unbatched=False)
            if self.draws_elements and self.training:
                draw_elements(self)
        x = self.downsample(self.stem(x))
        for stage in self.stages:
            x = stage(x)
        return self.scalars(x).flatten(2).mean(dim=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(batch, n_input_channels, *spatial)`` to ``(batch, num_classes)``."""
        if not torch.jit.is_scripting() and isinstance(x, MetaTensor):
            return on_plain_tensor(partial(GMRResNet.forward, self), x)
        return self.fc(self.dropout(self.features(x)))


def gmr_resnet18(spatial_dims: int = 2, n_input_channels: int = 3, num_classes: int = 1000, **kwargs: Any) -> GMRResNet:
    """:class:`GMRResNet` of 18 layers; ``kwargs`` are its further arguments.

    Example:
        >>> sum(p.numel() for p in gmr_resnet18(num_classes=10, rings="hard").parameters())
        3996618
    """
    return GMRResNet(spatial_dims, n_input_channels, num_classes, (2, 2, 2, 2), "basic", **kwargs)


def gmr_resnet34(spatial_dims: int = 2, n_input_channels: int = 3, num_classes: int = 1000, **kwargs: Any) -> GMRResNet:
    """:class:`GMRResNet` of 34 layers; ``kwargs`` are its further arguments."""
    return GMRResNet(spatial_dims, n_input_channels, num_classes, (3, 4, 6, 3), "basic", **kwargs)


def gmr_resnet50(spatial_dims: int = 2, n_input_channels: int = 3, num_classes: int = 1000, **kwargs: Any) -> GMRResNet:
    """:class:`GMRResNet` of 50 layers, with bottleneck blocks; ``kwargs`` are its further arguments."""
    return GMRResNet(spatial_dims, n_input_channels, num_classes, (3, 4, 6, 3), "bottleneck", **kwargs)
