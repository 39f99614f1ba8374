"""U-Nets whose segmentation rotates with the image."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from monai.data import MetaTensor
from monai.networks.layers.factories import Conv
from torch import nn

from monai_gmr.annotations import Named, checked_arguments
from monai_gmr.arguments import check_choice, check_count, check_counts
from monai_gmr.networks.blocks import GMRConvolution
from monai_gmr.networks.layers import GMRTrim, GMRUpsample, draw_elements, make_convolution, make_downsample
from monai_gmr.networks.layers.conv_nd import check_input, whole_numbers
from monai_gmr.networks.layers.factories import Convolution, one_per_level, split_convolution
from monai_gmr.networks.layers.group_levels import (
    chain,
    check_levels,
    kept_group,
    lift,
    make_head,
    onto,
    pointwise,
    restrict,
    scalars,
    upward,
    warn_of_few_scalars,
    with_group_of,
)
from monai_gmr.ops.backend import prefers_channels_last
from monai_gmr.ops.free_sizes import is_free
from monai_gmr.ops.memory_format import make_channels_last, runs_channels_last
from monai_gmr.utils import ConfigurationError, SymmetryWarning, on_plain_tensor, warn

DEFAULT_KERNEL_SIZE = {1: 5, 2: 5, 3: 3}
UPSAMPLE: dict[str, Callable[[int], nn.Module]] = {
    "linear": lambda spatial_dims: GMRUpsample(spatial_dims, 2),
    "linear_corners": lambda spatial_dims: GMRUpsample(spatial_dims, 2, align_corners=True),
    # a transposed convolution of window 2 returns one voxel too many if the finer axis has an odd length
    "deconv": lambda spatial_dims: GMRTrim(),
}


def _decoder_channels(name: str, given: Sequence[int] | None, default: Sequence[int]) -> Sequence[int]:
    """Channels of every level except the coarsest, finest first."""
    if given is None:
        return default
    if len(given) != len(default):
        raise ConfigurationError(
            f"{name}={tuple(given)} has {len(given)} entries and features has {len(default) + 1}: give one for each but the last."
        )
    return given


def check_smallest_grid(x: torch.Tensor, depth: int, per_instance: bool, training: bool) -> None:
    """Raises if halving the grid of an image ``depth`` times leaves too few voxels to normalise, per instance or over the batch."""
    if is_free(list(x.shape)):
        return
    voxels = 1 if per_instance else x.shape[0]
    for size in x.shape[2:]:
        voxels *= -(-size // 2**depth)
    if voxels == 1 and (per_instance or training):
        raise ConfigurationError(
            f"an input of size {tuple(x.shape[2:])} leaves one voxel after {depth} halvings, which cannot be normalised: "
            f"give more than {2**depth} voxels along an axis, use fewer levels, or norm='group'."
        )


class GMRUNet(nn.Module):
    """Segmentation U-Net, exactly equivariant to every symmetry of the voxel grid, at every input size.

    Has two convolutions per level, exact resampling between levels (with different windows for even and odd sizes, so sizes need not be
    divisible by anything), and skip connections by concatenation, as in ``monai.networks.nets.BasicUNet``. On backend "cpp" a net with
    instance norms computes with channels last in memory.

    Args:
        spatial_dims: 1, 2 or 3.
        in_channels: channels of the image.
        out_channels: channels of the segmentation.
        features: channels of each level, one entry per level; with groups, multiples of the group's order.
        kernel_sizes: window of each level in voxels, or one for all; default 5 in 2D, 3 in 3D, 3 for "plain" and "group".
        conv: "gmr", "gmr_harmonic" (orders 0 to 2), "group" (group convolutions, pooled to scalars before the head), "partial" (group
            convolutions whose layers learn how much of the group they keep), "sre" or "plain" (``torch.nn.ConvNd``, the baseline); or a
            pair of the name and further arguments of the layer, such as ``("gmr_harmonic", {"orders": (0, 1)})``,
            ``("group", {"group": "4mm", "filter": "gc"})`` or ``("partial", {"group": "E(2)"})``; or a list of either, one per level,
            whose groups can become smaller from level to level (the decoder then uses the smallest).
        rings: as in :class:`~monai_gmr.networks.layers.GMRConv2d`.
        spacing: voxel size in millimetres; the net is then equivariant to the symmetries that keep it.
        downsample: "lowpass" (anti-aliased), "avg" or "max".
        act, norm, bias, dropout: as in ``monai.networks.nets.BasicUNet``.
        deep_supervision: whether to also return the outputs of the coarser levels in training.
        padding_mode: "zeros", or "replicate": slower, but closer at other angles if the image reaches the border of the frame.
        upsample: "linear" (a 1x1 convolution, then interpolation about the centre), "linear_corners" (with ``align_corners=True``), or
            "deconv" (a transposed convolution of window 2, as in ``monai.networks.nets.BasicUNet``; for baselines and foreign checkpoints:
            it is **not equivariant** and warns).
        decoder_features: channels of each decoder level, finest first; default ``features[:-1]``.
        upsample_features: channels that each decoder level takes from the one below it, finest first; default ``decoder_features``.

    Shape:
        - input: ``(batch, in_channels, *spatial)``, any sizes of more than ``2 ** (levels - 1)`` voxels
        - output: ``(batch, out_channels, *spatial)``; with ``deep_supervision``, in training, a list of it and one output per coarser
          level, each half as large as the one before (as ``monai.losses.DeepSupervisionLoss`` takes)

    Raises:
        ConfigurationError: if arguments or input do not fit; the message says what does.

    Example:
        >>> net, x = GMRUNet(2, in_channels=1, out_channels=2, features=(4, 8)).eval(), torch.rand(1, 1, 17, 24)
        >>> torch.allclose(net(x).rot90(1, (2, 3)), net(x.rot90(1, (2, 3))), atol=1e-5)
        True

    Source:
        GMR-Conv, arXiv 2504.02819; Ronneberger et al., arXiv 1505.04597.
    """

    @checked_arguments
    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        features: Sequence[int] = (16, 32, 64),
        *,
        kernel_sizes: int | Sequence[int | Sequence[int]] | None = None,
        conv: Convolution = "gmr",
        rings: str = "gaussian",
        spacing: Sequence[float] | None = None,
        downsample: Named = "lowpass",
        act: Named | None = ("LeakyReLU", {"negative_slope": 0.1, "inplace": True}),
        norm: Named | None = ("instance", {"affine": True}),
        bias: bool = True,
        dropout: Named | float = 0.0,
        deep_supervision: bool = False,
        padding_mode: str = "zeros",
        upsample: str = "linear",
        decoder_features: Sequence[int] | None = None,
        upsample_features: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        if spatial_dims not in DEFAULT_KERNEL_SIZE:
            raise ConfigurationError(f"spatial_dims={spatial_dims} is impossible for GMRUNet: use 1, 2 or 3.")
        check_counts("features", features, (16, 32, 64))
        check_count("in_channels", in_channels)
        check_count("out_channels", out_channels)
        convolutions = one_per_level("conv", conv, len(features), "features")
        names = [split_convolution(each)[0] for each in convolutions]
        check_levels(convolutions, spatial_dims, features, "features")
        if kernel_sizes is None:
            kernel_sizes = [3 if name in ("plain", "group") else DEFAULT_KERNEL_SIZE[spatial_dims] for name in names]
        windows = one_per_level("kernel_sizes", kernel_sizes, len(features), "features")
        check_choice("upsample", upsample, tuple(UPSAMPLE))
        decoded = _decoder_channels("decoder_features", decoder_features, features[:-1])
        received = _decoder_channels("upsample_features", upsample_features, decoded)
        if upsample == "deconv" and any(name != "plain" for name in names):
            warn(
                "GMRUNet with upsample='deconv' is not equivariant, because a transposed convolution has separate weights for each voxel "
                "of its window: use upsample='linear'.",
                SymmetryWarning,
            )
        self.spatial_dims, self.in_channels = spatial_dims, in_channels
        # group that the net keeps; with partial convolutions, the one that it keeps before it learns to keep less
        self.symmetry_group = kept_group(convolutions[-1], spatial_dims)
        self.draws_elements = names[0] == "partial"
        self.deep_supervision = deep_supervision
        norm_name = norm[0] if isinstance(norm, tuple | list) else norm
        self.normalises_instances = str(norm_name).lower().startswith("instance")
        # window and channels of the convolutions on the finest grid
        self.window, self.channels = whole_numbers("kernel_sizes", windows[0], spatial_dims), (features[0], features[0])
        self.harmonic = names[0] == "gmr_harmonic"
        # with channels last, torch's other norms sum in single precision, and the net would not be exact
        self.may_run_channels_last = self.normalises_instances and names[0] not in ("plain", "group", "partial")
        common: dict[str, Any] = {"rings": rings, "spacing": spacing, "padding_mode": padding_mode}
        common |= {"act": act, "norm": norm, "bias": bias, "dropout": dropout or None}

        def two_convolutions(inputs: int, outputs: int, level: int, steps: list) -> nn.Sequential:
            options = {"kernel_size": windows[level], **common}
            pair = zip((inputs, outputs), steps)
            return nn.Sequential(*(GMRConvolution(spatial_dims, n, outputs, conv=each, **options) for n, each in pair))

        steps = chain(lift(convolutions[0], spatial_dims), 2, spatial_dims)
        # the last convolution of each level on the way down
        lasts = [steps[-1]]
        self.stem = two_convolutions(in_channels, features[0], 0, steps)
        self.encoders, self.decoders, self.reducers, self.heads = (nn.ModuleList() for _ in range(4))
        for level in range(1, len(features)):
            steps = chain(onto(lasts[-1], convolutions[level], spatial_dims), 2, spatial_dims)
            lasts.append(steps[-1])
            pair = two_convolutions(features[level - 1], features[level], level, steps)
            self.encoders.append(nn.Sequential(make_downsample(downsample, spatial_dims), pair))
        # in the decoder all fields are on the coarsest level's group
        coarse, last = features[-1], lasts[-1]
        skips: list[nn.Module] = []
        for level in reversed(range(1, len(features))):
            fine, taken = decoded[level - 1], received[level - 1]
            if upsample == "deconv":
                self.reducers.append(Conv["CONVTRANS", spatial_dims](coarse, taken, 2, stride=2))
            else:
                same = pointwise(with_group_of(last, convolutions[level], spatial_dims))
                self.reducers.append(make_convolution(same, spatial_dims, coarse, taken, 1))
            skips.append(restrict(lasts[level - 1], last, spatial_dims, features[level - 1]))
            steps = chain(upward(last, convolutions[level - 1], spatial_dims), 2, spatial_dims)
            last = steps[-1]
            self.decoders.append(two_convolutions(features[level - 1] + taken, fine, level - 1, steps))
            if deep_supervision and level > 1:
                self.heads.append(make_head(last, spatial_dims, fine, out_channels))
            coarse = fine
        self.skips = nn.ModuleList(reversed(skips))
        self.upsample = UPSAMPLE[upsample](spatial_dims)
        warn_of_few_scalars(coarse, scalars(last, spatial_dims, coarse)[1], out_channels)
        self.head = make_head(last, spatial_dims, coarse, out_channels)

    def decode(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Features of every decoder level, coarsest first."""
        if not torch.jit.is_scripting():
            check_input(self, x, self.spatial_dims, self.in_channels, unbatched=False)
            check_smallest_grid(x, len(self.encoders), self.normalises_instances, self.training)
            if self.draws_elements and self.training:
                draw_elements(self)
            if self.may_run_channels_last and prefers_channels_last(x, self.window, self.channels, self.harmonic):
                x = make_channels_last(x)
        x = self.stem(x)
        skips: list[torch.Tensor] = []
        for skip_connection, encoder in zip(self.skips, self.encoders):
            skips.append(skip_connection(x))
            x = encoder(x)
        levels: list[torch.Tensor] = [] if len(skips) > 0 else [x]
        for reducer, decoder in zip(self.reducers, self.decoders):
            skip = skips.pop()
            size = list(skip.shape)[2:]
            x = self._as_skip(reducer(x), skip)
            x = decoder(torch.cat([skip, self.upsample(x, size)], dim=1))
            levels.append(x)
        return levels

    def _as_skip(self, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        """Restores channels last if the skip connection has it: torch's 1x1 convolutions of few voxels lose it."""
        if not torch.jit.is_scripting() and runs_channels_last(skip):
            x = make_channels_last(x)
        return x

    def forward(self, x: torch.Tensor):
        """``(batch, in_channels, *spatial)`` to ``(batch, out_channels, *spatial)``, or a list of it and coarser outputs."""
        if not torch.jit.is_scripting() and isinstance(x, MetaTensor):
            return on_plain_tensor(partial(GMRUNet.forward, self), x)
        levels = self.decode(x)
        output = self.head(levels[-1]).contiguous()
        # a scripted net returns only the segmentation, because TorchScript allows one type of result
        if not torch.jit.is_scripting() and self.deep_supervision and self.training:
            coarse = [head(level).contiguous() for head, level in zip(self.heads, levels)]
            return [output, *reversed(coarse)]
        return output
