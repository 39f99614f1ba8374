"""Base classes of the convolutions: arguments of ``torch.nn.ConvNd``, paddings, constant tables, copies for deployment."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from monai_gmr import symmetry
from monai_gmr.annotations import Device, checked_arguments
from monai_gmr.arguments import check_choice, check_count, describe, is_whole
from monai_gmr.networks.layers.table_module import TableModule
from monai_gmr.ops import pad_nd
from monai_gmr.ops.autocast import autocast_dtype
from monai_gmr.ops.call import Call
from monai_gmr.ops.made_conv import MadeKernel, made_conv
from monai_gmr.ops.memory_format import keep_format
from monai_gmr.utils import ConfigurationError, SymmetryWarning, warn

PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


def passes_arguments_to(parent: type, without: Sequence[str] = ()) -> Callable:
    """Decorator for an ``__init__`` with ``*args`` and ``**kwargs``: adds the arguments that it passes to ``parent`` to its signature, for
    ``help`` and ``torch.nn.utils.skip_init``.

    Example:
        >>> class Layer(nn.Linear):
        ...     @passes_arguments_to(nn.Linear, without=["bias"])
        ...     def __init__(self, *args, scale=1.0, **kwargs):
        ...         super().__init__(*args, bias=False, **kwargs)
        >>> list(inspect.signature(Layer).parameters)
        ['in_features', 'out_features', 'device', 'dtype', 'scale']
    """

    def name_arguments(init: Any) -> Any:
        own = dict(inspect.signature(init).parameters)
        every = {"self": own["self"]} | dict(inspect.signature(parent).parameters) | own
        collects = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        named = [each for name, each in every.items() if each.kind not in collects and name not in without]
        init.__signature__ = inspect.Signature(sorted(named, key=lambda each: each.kind))
        return init

    return name_arguments


def whole_numbers(name: str, value: Any, spatial_dims: int, least: int | None = 1) -> Any:
    """Returns a tuple of integers of at least ``least`` (``None`` for any), one per axis, from one number for all axes or one per axis."""
    numbers = (value,) * spatial_dims if is_whole(value) else tuple(value)
    if len(numbers) != spatial_dims or (least is not None and min(numbers) < least):
        bound = "" if least is None else f" of at least {least}"
        raise ConfigurationError(
            f"{name}={value} is impossible: give {spatial_dims} whole numbers{bound}, or one for all axes."
        )
    return tuple(int(n) for n in numbers)


def check_input(module: nn.Module, x: torch.Tensor, spatial_dims: int, in_channels: int, unbatched: bool) -> None:
    """Raises if the input of a layer or net is not ``(batch, in_channels, *spatial)``; if ``unbatched``, the batch is optional."""
    if torch.jit.is_tracing():
        return
    if not isinstance(x, torch.Tensor):
        raise ConfigurationError(f"{type(module).__name__} was given {describe(x)}: give a tensor.")
    if x.dim() - spatial_dims not in ((1, 2) if unbatched else (2,)) or x.shape[-spatial_dims - 1] != in_channels:
        raise ConfigurationError(
            f"{type(module).__name__} has spatial_dims={spatial_dims}, in_channels={in_channels} and was given an input of shape "
            f"{tuple(x.shape)}: give (batch, {in_channels}, {spatial_dims} spatial sizes)"
            f"{' or the same without batch' if unbatched else ', or change the number of channels'}."
        )
    check_input_dtype(module, x)


def check_dtype(dtype: torch.dtype | None) -> None:
    """Raises if weights cannot have a dtype."""
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ConfigurationError(f"dtype={dtype} is not possible: use a real floating-point type.")


def check_input_dtype(module: nn.Module, x: torch.Tensor) -> None:
    """Raises if the input of a layer has another dtype than its weights."""
    weight = getattr(module, "weight", None)
    # under autocast the two can differ
    if weight is not None and x.dtype != weight.dtype and not x.is_meta and autocast_dtype(x) is None:
        raise ConfigurationError(
            f"{type(module).__name__} has weights of {weight.dtype} and was given an input of {x.dtype}: convert one of them by .to()."
        )


def convolution_like(kind: Any, module: Any, **changes: Any) -> Any:
    """A layer of class ``kind`` with the arguments, device and dtype of a convolution, except for ``changes``."""
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
    arguments = {name: getattr(module, name) for name in names} | {"bias": module.bias is not None}
    return kind(**arguments | {"device": module.weight.device, "dtype": module.weight.dtype} | changes)


class SymmetricConvNd(TableModule):
    """Convolution with the arguments of ``torch.nn.ConvNd``, and tables of the taps outside the state dict.

    Subclasses set ``spatial_dims`` and ``transposed`` (the adjoint), call :meth:`_finish` after creating their parameters, and implement
    ``_make_tables``, ``dense_kernel`` and ``reset_parameters``.
    """

    spatial_dims: int
    transposed: bool
    bias: torch.Tensor | None

    @checked_arguments
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int],
        padding: str | int | Sequence[int],
        dilation: int | Sequence[int],
        groups: int,
        padding_mode: str,
        dtype: torch.dtype | None,
    ) -> None:
        # not super(): a subclass can also inherit from torch.nn.ConvNd, whose arguments differ
        nn.Module.__init__(self)
        dims = self.spatial_dims
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        # groups of the equal torch.nn.ConvNd
        self.conv_groups = groups
        self.kernel_size = whole_numbers("kernel_size", kernel_size, dims)
        self.stride, self.dilation = whole_numbers("stride", stride, dims), whole_numbers("dilation", dilation, dims)
        self.padding = padding if isinstance(padding, str) else whole_numbers("padding", padding, dims, least=0)
        self.output_padding: tuple[int, ...] = (0,) * dims
        self.padding_mode = padding_mode
        # an axis that no symmetry of the layer reverses needs no fixed centre
        self.mirrored_axes = [True] * dims
        check_choice("padding_mode", padding_mode, ("zeros",) if self.transposed else PADDING_MODES)
        for name, count in (("in_channels", in_channels), ("out_channels", out_channels), ("groups", groups)):
            check_count(name, count)
        if in_channels % groups or out_channels % groups:
            raise ConfigurationError(
                f"groups={groups} must divide in_channels={in_channels} and out_channels={out_channels}."
            )
        check_dtype(dtype)
        if isinstance(padding, str):
            check_choice("padding", padding, ("symmetric",) if self.transposed else ("valid", "same", "symmetric"))
            if padding == "same" and max(self.stride) > 1:
                raise ConfigurationError(f"padding='same' takes no stride={self.stride}: use padding='symmetric'.")

    def _check_geometry(self) -> None:
        """Raises if the layer's symmetry does not allow its window or steps; radial kernels allow all."""

    def _finish(self) -> None:
        """Registers the tables and draws the weights."""
        self._finish_tables(self.get_parameter("weight").device)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws fresh weights."""
        raise NotImplementedError

    def dense_kernel(self) -> torch.Tensor:
        """The kernel over its taps, in the shape of ``torch.nn.ConvNd.weight``."""
        raise NotImplementedError

    def _dense_bias(self) -> torch.Tensor | None:
        """The bias of the equal ``torch.nn.ConvNd``, or ``None``."""
        return self.bias

    def _conv_by_kernel(
        self,
        input: torch.Tensor,
        kernel: MadeKernel,
        window: Sequence[int],
        padding: Sequence[int],
        output_padding: Sequence[int] = (),
    ) -> torch.Tensor:
        """Runs torch's convolution with a kernel over a window, for an image with or without a batch."""
        image = input[None] if input.dim() == len(window) + 1 else input
        lengths = {
            "stride": self.stride,
            "padding": padding,
            "dilation": self.dilation,
            "output_padding": output_padding,
        }
        known = {"groups": self.conv_groups, "transposed": self.transposed}
        channels = (self.in_channels, self.out_channels)
        call = Call.of_input(image, tuple(window), channels, (*kernel.parts, self.bias), **lengths, **known)
        y = self._run(call, image, kernel)
        return y if image is input else y[0]

    def _run(self, call: Call, image: torch.Tensor, kernel: MadeKernel) -> torch.Tensor:
        """The convolution ``call`` of an image with a batch."""
        return keep_format(made_conv(image, kernel, self._dense_bias(), call), image)

    def _dense_copy(self, name: str, **changes: Any) -> nn.Module:
        """The equal module of torch, of class ``name``."""
        dense = convolution_like(getattr(nn, f"{name}{self.spatial_dims}d"), self, **changes)
        bias = self._dense_bias()
        with torch.no_grad():
            dense.weight.copy_(self.dense_kernel())
            if bias is not None:
                dense.bias.copy_(bias)
        return dense.train(self.training)


class DirectConvNd(SymmetricConvNd):
    """Convolution that is not transposed, and its paddings."""

    transposed = False

    def _margins(self, spatial: list[int]) -> list[int]:
        """Voxels before and after each axis, first axis first."""
        margins: list[int] = []
        padding = self.padding
        for axis, size in enumerate(spatial):
            k, s, d = self.kernel_size[axis], self.stride[axis], self.dilation[axis]
            if isinstance(padding, str):
                before = after = 0
                if padding == "same":
                    before, after = d * (k - 1) // 2, (d * (k - 1) + 1) // 2
                elif padding == "symmetric":
                    before = after = d * (k - 1) // 2
                    if self.mirrored_axes[axis]:
                        before = after = symmetry.symmetric_padding(size, k, s, d)
                margins += [before, after]
            else:
                margins += [padding[axis], padding[axis]]
        return margins

    def _warn_if_inexact(self, spatial: list[int], margins: list[int]) -> None:
        if torch.jit.is_tracing() or torch.compiler.is_compiling():
            return
        for axis, size in enumerate(spatial):
            before, after = margins[2 * axis], margins[2 * axis + 1]
            k, s, d = self.kernel_size[axis], self.stride[axis], self.dilation[axis]
            if not self.mirrored_axes[axis]:
                continue
            if before != after or not symmetry.stride_is_exact(size, k, s, before, d):
                warn(
                    f"{type(self).__name__} with kernel_size={k}, stride={s}, padding={self.padding!r}, dilation={d} is not "
                    f"exactly equivariant on an axis of {size} voxels: use padding='symmetric', a kernel_size of the other "
                    "parity, or GMRDownsample.",
                    SymmetryWarning,
                )
                # one warning is enough
                return

    def _padded(self, input: torch.Tensor) -> tuple[torch.Tensor, list[int]]:
        """The input, padded if necessary, and the zero padding that is left to the convolution, per axis."""
        dims = len(self.kernel_size)
        if not torch.jit.is_scripting():
            check_input(self, input, dims, self.in_channels, unbatched=True)
            self.mend_tables()
        spatial = list(input.shape)[input.dim() - dims :]
        margins = self._margins(spatial)
        if not torch.jit.is_scripting():
            self._warn_if_inexact(spatial, margins)
        padding = margins[0::2]
        if self.padding_mode != "zeros" or padding != margins[1::2]:
            reverse: list[int] = []
            for axis in range(dims):
                reverse = margins[2 * axis : 2 * axis + 2] + reverse
            input = pad_nd(input, reverse, self.padding_mode)
            padding = [0] * dims
        return input, padding

    def to_conv(self) -> nn.Module:
        """The equal ``torch.nn.ConvNd``, for deployment; raises if ``padding="symmetric"`` depends on the input's size."""
        if self.padding != "symmetric":
            return self._dense_copy("Conv")
        if max(self.stride) > 1:
            raise ConfigurationError(
                f"padding='symmetric' with stride={self.stride} depends on the size, which torch.nn.Conv{self.spatial_dims}d "
                "cannot: give the padding in voxels."
            )
        return self._dense_copy(
            "Conv", padding=tuple(d * (k - 1) // 2 for d, k in zip(self.dilation, self.kernel_size))
        )


class TransposedConvNd(SymmetricConvNd):
    """Transposed convolution with the arguments of ``torch.nn.ConvTransposeNd``, and its output sizes."""

    transposed = True

    @checked_arguments
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: str | int | Sequence[int] = 0,
        output_padding: int | Sequence[int] = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: int | Sequence[int] = 1,
        padding_mode: str = "zeros",
        device: Device | None = None,
        dtype: torch.dtype | None = None,
        **kwargs: Any,
    ) -> None:
        geometry: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        more: dict[str, Any] = {"bias": bias, "padding_mode": padding_mode, "device": device, "dtype": dtype}
        super().__init__(in_channels, out_channels, kernel_size, **geometry, **more, **kwargs)
        self.output_padding = whole_numbers("output_padding", output_padding, self.spatial_dims, least=0)
        if any(added >= max(s, d) for added, s, d in zip(self.output_padding, self.stride, self.dilation)):
            raise ConfigurationError(
                f"output_padding={output_padding} is impossible: give less than stride={self.stride} or dilation={self.dilation}."
            )
        self._check_geometry()
        # raises if "symmetric" is impossible
        self._margins()

    def _margins(self) -> list[int]:
        """Voxels removed at both ends of each axis."""
        margins: list[int] = []
        padding = self.padding
        for axis in range(len(self.kernel_size)):
            if isinstance(padding, str):
                margins.append(
                    symmetry.transposed_padding(self.kernel_size[axis], self.stride[axis], self.dilation[axis])
                )
            else:
                margins.append(padding[axis])
        return margins

    def _warn_if_inexact(self, output_padding: list[int]) -> None:
        reversed_ends = [extra for extra, mirrored in zip(output_padding, self.mirrored_axes) if mirrored]
        if torch.jit.is_tracing() or torch.compiler.is_compiling() or max(reversed_ends, default=0) == 0:
            return
        warn(
            f"{type(self).__name__} with kernel_size={self.kernel_size}, stride={self.stride} reaches the size "
            f"of output_size only with output_padding={tuple(output_padding)}, which is not equivariant: use a "
            "kernel_size of the stride's parity and padding='symmetric'.",
            SymmetryWarning,
        )

    def _paddings(self, input: torch.Tensor, output_size: list[int] | None) -> tuple[list[int], list[int]]:
        """Voxels removed at both ends of each axis, and added at its end, to reach the spatial sizes at the end of ``output_size``. An even
        surplus over the smallest size is taken from the padding at both ends, which is exact; other surpluses are added at the end."""
        dims = len(self.kernel_size)
        if not torch.jit.is_scripting():
            check_input(self, input, dims, self.in_channels, unbatched=True)
            self.mend_tables()
        spatial = list(input.shape)[input.dim() - dims :]
        padding = self._margins()
        extra = list(self.output_padding)
        if output_size is not None:
            target = output_size[len(output_size) - dims :]
            for axis in range(dims):
                k, s, d = self.kernel_size[axis], self.stride[axis], self.dilation[axis]
                surplus = target[axis] - ((spatial[axis] - 1) * s - 2 * padding[axis] + d * (k - 1) + 1)
                if surplus < 0 or surplus >= max(s, d):
                    smallest = target[axis] - surplus
                    raise ValueError(
                        f"output_size {target[axis]} is out of reach on axis {axis}: use {smallest} to {smallest + max(s, d) - 1}."
                    )
                even = surplus % 2 == 0 and surplus // 2 <= padding[axis]
                padding[axis] -= surplus // 2 if even else 0
                extra[axis] = 0 if even else surplus
        if not torch.jit.is_scripting():
            self._warn_if_inexact(extra)
        return padding, extra

    def to_conv(self) -> nn.Module:
        """The equal ``torch.nn.ConvTransposeNd``, for deployment."""
        return self._dense_copy("ConvTranspose", padding=tuple(self._margins()), output_padding=self.output_padding)
