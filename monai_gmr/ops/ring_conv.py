"""Convolution whose kernel is a weighted sum of functions on taps, and its reference, which builds the kernel."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from monai.data import MetaTensor

from monai_gmr.ops.autocast import without_autocast
from monai_gmr.ops.backend import choose_backend
from monai_gmr.ops.call import RingKernel
from monai_gmr.ops.memory_format import keep_format
from monai_gmr.utils import on_plain_tensor


def dense_kernel(weight: torch.Tensor, basis: torch.Tensor, shells: torch.Tensor) -> torch.Tensor:
    """Kernel from ring weights: ``K[o, i, tap] = sum_r weight[o, i, r] * basis[r, shells[tap]]``.

    Args:
        weight: ``(out, in, rings)``.
        basis: ``(rings, shells)``, float32 or float64.
        shells: integers of the window's shape, the shell of each tap.

    Returns:
        ``(out, in, *kernel_size)``, dtype of ``weight``.

    Example:
        >>> dense_kernel(torch.ones(1, 1, 1), torch.tensor([[3.0, 1.0]]), torch.tensor([1, 0, 1]))
        tensor([[[1., 3., 1.]]])
    """
    # index the small basis: indexing the product would copy the whole kernel, in the backward pass too
    kernel = torch.matmul(weight.to(basis.dtype), basis.index_select(1, shells.flatten()))
    return kernel.reshape(list(weight.shape[:2]) + list(shells.shape)).to(weight.dtype)


def conv_nd(
    x: torch.Tensor,
    kernel: torch.Tensor,
    bias: torch.Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> torch.Tensor:
    """torch's convolution with the kernel's number of dimensions."""
    if kernel.dim() == 3:
        return F.conv1d(x, kernel, bias, stride, padding, dilation, groups=groups)
    if kernel.dim() == 4:
        return F.conv2d(x, kernel, bias, stride, padding, dilation, groups=groups)
    return F.conv3d(x, kernel, bias, stride, padding, dilation, groups=groups)


def dense_ring_conv(
    x: torch.Tensor,
    weight: torch.Tensor,
    basis: torch.Tensor,
    shells: torch.Tensor,
    bias: torch.Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    angular: torch.Tensor | None = None,
) -> torch.Tensor:
    """:func:`ring_conv` by a dense kernel and torch's convolution: the reference, also used by export."""
    # full precision under autocast, too
    with without_autocast(weight):
        kernel = dense_kernel(weight, basis, shells)
    if angular is None:
        y = conv_nd(x, kernel, bias, stride, padding, dilation, groups=groups)
        return keep_format(y, x)
    rows = kernel.flatten(2)[:, None] * angular.to(kernel.dtype)[None, :, None]
    rows = rows.flatten(0, 1).reshape([-1] + list(kernel.shape)[1:])
    y = conv_nd(x, rows, bias, stride, padding, dilation, groups=groups)
    return y.unflatten(1, (-1, angular.shape[0]))


def dense_shell_conv(
    x: torch.Tensor,
    weight: torch.Tensor,
    shells: torch.Tensor,
    angular: torch.Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> torch.Tensor:
    """Convolution with weights of shells times angular functions, by a dense kernel and torch's convolution.

    Args:
        x: ``(batch, groups * in_channels, *spatial)``, 1 to 3 spatial axes.
        weight: ``(out_channels, in_channels, num_shells)``; further shells count as zero.
        shells: integers of the window's shape, the shell of each tap.
        angular: ``(components, taps)``.
        stride, padding, dilation: in voxels, one per axis; ``padding`` adds zeros at both ends.
        groups: blocks of channels that do not mix.

    Returns:
        ``(batch, out_channels, components, *spatial_out)``.

    Example:
        >>> shells = torch.tensor([1, 0, 1])
        >>> y = dense_shell_conv(torch.ones(1, 1, 4), torch.ones(1, 1, 2), shells, torch.ones(1, 3), [1], [1], [1], groups=1)
        >>> y.flatten().tolist()
        [2.0, 3.0, 3.0, 2.0]
    """
    num_shells = weight.shape[2]
    flat = shells.flatten()
    spread = weight.index_select(2, flat.clamp(max=num_shells - 1)) * (flat < num_shells)
    kernel = (spread[:, None] * angular.to(weight.dtype)[None, :, None]).flatten(0, 1)
    kernel = kernel.unflatten(2, shells.shape).to(x.dtype)
    y = conv_nd(x, kernel, None, list(stride), list(padding), list(dilation), groups=groups)
    return y.unflatten(1, (weight.shape[0], len(angular)))


def conv_transpose_nd(
    x: torch.Tensor,
    kernel: torch.Tensor,
    bias: torch.Tensor | None,
    stride: list[int],
    padding: list[int],
    output_padding: list[int],
    groups: int,
    dilation: list[int],
) -> torch.Tensor:
    """torch's transposed convolution with the kernel's number of dimensions."""
    if kernel.dim() == 3:
        return F.conv_transpose1d(x, kernel, bias, stride, padding, output_padding, groups=groups, dilation=dilation)
    if kernel.dim() == 4:
        return F.conv_transpose2d(x, kernel, bias, stride, padding, output_padding, groups=groups, dilation=dilation)
    return F.conv_transpose3d(x, kernel, bias, stride, padding, output_padding, groups=groups, dilation=dilation)


def pad_nd(x: torch.Tensor, padding: list[int], padding_mode: str) -> torch.Tensor:
    """Pads the last axes by ``padding``, in the order of ``F.pad``: the last axis first, before and after.

    Args:
        x: ``(..., *spatial)``.
        padding: ``2 * d`` numbers of voxels.
        padding_mode: "zeros", "reflect", "replicate" or "circular".

    Example:
        >>> pad_nd(torch.tensor([[1.0, 2.0]]), [1, 0], "replicate")
        tensor([[1., 1., 2.]])
    """
    if max(padding) == 0:
        return x
    if padding_mode == "zeros":
        return F.pad(x, padding)
    return F.pad(x, padding, mode=padding_mode)


def ring_conv(
    x: torch.Tensor,
    weight: torch.Tensor,
    basis: torch.Tensor,
    shells: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
    angular: torch.Tensor | None = None,
    num_shells: int | None = None,
) -> torch.Tensor:
    r"""Convolves with a kernel given by ring weights.

    .. math::
        y = x \star K + b, \qquad K_{oi}(t) = \sum_r w_{oir}\, b_{r, s(t)}

    or, with ``angular``, with :math:`K_{omi}(t) = f_m(t)\, K_{oi}(t)` for each component :math:`m`: a profile times angular functions,
    such as harmonics. Has gradients for ``x``, ``weight``, ``basis`` and ``bias``. A basis with one shell per tap can express any
    convolution; a basis that is constant on shells of equal radius gives an equivariant one.

    Args:
        x: ``(batch, in_channels, *spatial)`` or ``(in_channels, *spatial)``, 1 to 3 spatial axes.
        weight: ``(out_channels, in_channels / groups, rings)``.
        basis: ``(rings, shells)``.
        shells: integers of shape ``kernel_size``, the shell of each tap.
        bias: ``(out_channels,)`` or ``None``.
        stride: step in voxels, one number or one per axis.
        padding: voxels added at both ends of an axis, one number or one per axis.
        dilation: distance of neighbouring taps in voxels, one number or one per axis.
        groups: blocks of channels that do not mix.
        padding_mode: "zeros", "reflect", "replicate" or "circular".
        angular: ``(components, taps)``, constants; not together with ``bias``.
        num_shells: number of shells in use, if ``basis`` is zero on the others; this saves work, and the others get no gradient.

    Returns:
        ``(batch, out_channels, *spatial_out)``, sizes as in ``torch.nn.ConvNd``; with ``angular`` ``(batch, out_channels, components,
        *spatial_out)``.

    Raises:
        ConfigurationError: if ``MONAI_GMR_BACKEND`` is not the name of a backend.

    Example:
        >>> shells = torch.tensor([[2, 1, 2], [1, 0, 1], [2, 1, 2]])
        >>> ring_conv(torch.ones(1, 1, 4, 4), torch.ones(1, 1, 1), torch.ones(1, 3), shells, padding=1)[0, 0, 0]
        tensor([4., 6., 6., 4.])
    """
    if isinstance(x, MetaTensor):
        lengths = {"stride": stride, "padding": padding, "dilation": dilation, "padding_mode": padding_mode}
        given = {"bias": bias, "groups": groups, "angular": angular, "num_shells": num_shells}
        return on_plain_tensor(ring_conv, x, weight, basis, shells, **lengths, **given)
    dims = shells.dim()
    margins = _per_axis(padding, dims)
    if padding_mode != "zeros":
        x = pad_nd(x, [m for m in reversed(margins) for _ in range(2)], padding_mode)
        margins = (0,) * dims
    kernel = RingKernel(weight, basis, shells, bias, angular, num_shells)
    steps = {"stride": _per_axis(stride, dims), "dilation": _per_axis(dilation, dims)}
    backend, call, image = choose_backend(x, kernel, groups, padding=margins, **steps)
    y = backend.conv(call, image, kernel)
    return y if image is x else y[0]


def ring_conv_transpose(
    x: torch.Tensor,
    weight: torch.Tensor,
    basis: torch.Tensor,
    shells: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    output_padding: int | Sequence[int] = 0,
    groups: int = 1,
    dilation: int | Sequence[int] = 1,
    num_shells: int | None = None,
) -> torch.Tensor:
    """Transposed convolution, the adjoint of :func:`ring_conv`: spreads each voxel over the window.

    Args:
        x: ``(batch, in_channels, *spatial)`` or without the batch.
        weight: ``(in_channels, out_channels / groups, rings)``.
        basis, shells, bias, groups, num_shells: as in :func:`ring_conv`.
        stride: factor by which an axis grows.
        padding: voxels removed at both ends of an axis.
        output_padding: voxels added at the end of an axis; values other than 0 break the symmetry.
        dilation: distance of neighbouring taps in voxels.

    Returns:
        ``(batch, out_channels, *spatial_out)``, sizes as in ``torch.nn.ConvTransposeNd``.

    Example:
        >>> shells = torch.zeros(2, dtype=torch.long)
        >>> x, one = torch.tensor([[[1.0, 2.0]]]), torch.ones(1, 1, 1)
        >>> ring_conv_transpose(x, one, torch.ones(1, 1), shells, stride=2)
        tensor([[[1., 1., 2., 2.]]])
    """
    lengths = {"stride": stride, "padding": padding, "output_padding": output_padding, "dilation": dilation}
    if isinstance(x, MetaTensor):
        given = {"bias": bias, "groups": groups, "num_shells": num_shells}
        return on_plain_tensor(ring_conv_transpose, x, weight, basis, shells, **lengths, **given)
    kernel = RingKernel(weight, basis, shells, bias, num_shells=num_shells)
    geometry = {name: _per_axis(value, shells.dim()) for name, value in lengths.items()}
    backend, call, image = choose_backend(x, kernel, groups, transposed=True, **geometry)
    y = backend.conv_transpose(call, image, kernel)
    return y if image is x else y[0]


def _per_axis(value: int | Sequence[int], dims: int) -> tuple[int, ...]:
    """One number per axis."""
    return (value,) * dims if isinstance(value, int) else tuple(value)
