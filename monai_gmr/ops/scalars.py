r"""The scalars of a harmonic layer, invariants and kept terms, with a gradient in few passes over memory, which bounds their time."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

from monai_gmr.ops.dense_gradients import dense_gradients, takes_dense_gradients
from monai_gmr.ops.invariants import NORM_SMOOTHING, inner_product_scale, invariants
from monai_gmr.ops.kept_terms import add_kept_terms, chiral_terms, num_chiral
from monai_gmr.ops.recorded import is_recorded

# this many numbers stay in the caches of a processor
FEW_RESPONSES = 2**16

_Pair = tuple[torch.Tensor, torch.Tensor]
# from responses and factors to terms
Terms = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class _Run(NamedTuple):
    """Consecutive orders of equal sizes."""

    rows: slice  # of the responses
    channels: slice  # of the scalars
    norms: int  # of each order, like products and components
    products: int
    components: int

    def parts(self, responses: torch.Tensor) -> torch.Tensor:
        """These orders' responses, ``(batch, groups, orders, channels, components, voxels)``."""
        return responses[:, :, self.rows].unflatten(2, (-1, self.norms + self.products, self.components))

    def scalars(self, output: torch.Tensor) -> torch.Tensor:
        """These orders' scalars, ``(batch, groups, orders, channels, voxels)``."""
        return output[:, :, self.channels].unflatten(2, (-1, self.norms + self.products))

    def crosses(self, chiral: torch.Tensor | None) -> torch.Tensor | None:
        """Factors of the cross products of channels with two components, ``(groups, orders, products, 1)``."""
        if chiral is None or self.components != 2 or not self.products:
            return None
        return chiral[:, self.channels].unflatten(1, (-1, self.norms + self.products))[..., self.norms :].unsqueeze(-1)


def _runs(norms: list[int], inner_products: list[int], components: list[int]) -> Iterator[_Run]:
    row = channel = 0
    for (n, m, count), run in itertools.groupby(zip(norms, inner_products, components)):
        channels = (n + m) * len(list(run))
        rows = channels * max(count, 1)
        if rows:
            yield _Run(slice(row, row + rows), slice(channel, channel + channels), n, m, count)
        row, channel = row + rows, channel + channels


def _products(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Sums of products over the components, axis -2."""
    if a.device.type != "cpu" or a.numel() <= FEW_RESPONSES:
        return (a * b).sum(-2)
    # avoid a temporary of the size of ``a``, which does not fit into the caches
    total = a[..., 0, :] * b[..., 0, :]
    for i in range(1, a.shape[-2]):
        total.addcmul_(a[..., i, :], b[..., i, :])
    return total


def _write_products(target: torch.Tensor, first: _Pair, second: _Pair, scale: float = 1.0) -> None:
    """Writes ``a * b + scale * c * d``, rounded once."""
    if target.dtype == first[0].dtype:
        torch.mul(*first, out=target).addcmul_(*second, value=scale)
    else:
        target.copy_(torch.mul(*first).addcmul_(*second, value=scale))


def _cross_products(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Cross products of two components, axis -2."""
    return (a[..., 0, :] * b[..., 1, :]).addcmul_(a[..., 1, :], b[..., 0, :], value=-1)


def _reduce(part: torch.Tensor, norms: int, crosses: torch.Tensor | None, target: torch.Tensor) -> list[torch.Tensor]:
    """Writes norms and inner products of an order ``(..., channels, components, voxels)`` to ``target`` ``(..., channels, voxels)``, plus
    cross products times ``crosses``; returns the tensors that :func:`_reduce_backward` needs."""
    left, right = part[..., :norms, :, :], part[..., norms:, :, :]
    products, count = right.shape[-3], part.shape[-2]
    saved, squares = [], _products(part, part)
    lengths = squares[..., :norms, :]
    lengths += NORM_SMOOTHING**2
    if products:
        common = (lengths[..., :products, :] + squares[..., norms:, :]).sqrt_().div_(inner_product_scale(count))
        value = _products(left[..., :products, :, :], right)
        if crosses is not None:
            value.addcmul_(_cross_products(left[..., :products, :, :], right), crosses)
        torch.div(value, common, out=target[..., norms:, :])
        saved.append(common)
    # not in place, so that the saved tensor does not contain the rows of the products
    lengths = lengths.sqrt()
    torch.sub(lengths, NORM_SMOOTHING, out=target[..., :norms, :])
    return [*saved, lengths]


def _reduce_backward(
    part: torch.Tensor,
    norms: int,
    crosses: torch.Tensor | None,
    result: torch.Tensor | None,
    saved: list[torch.Tensor],
    gradient: torch.Tensor,
    target: torch.Tensor,
) -> torch.Tensor | None:
    """Writes the gradient of :func:`_reduce` for ``part`` to ``target``, and returns the gradient for ``crosses``.

    ``result`` is the output of :func:`_reduce`, ``None`` if other terms were added to it; ``gradient`` is the gradient of the result."""
    left, right = part[..., :norms, :, :], part[..., norms:, :, :]
    products, count = right.shape[-3], part.shape[-2]
    own = gradient[..., :norms, :] / saved[-1]
    if products == 0:
        torch.mul(own.unsqueeze(-2), left, out=target)
        return None
    paired = left[..., :products, :, :]
    common = saved[0]
    across = gradient[..., norms:, :] / common
    cross = None if crosses is None else _cross_products(paired, right)
    if result is not None:
        value = result[..., norms:, :]
    else:
        value = _products(paired, right)
        if cross is not None and crosses is not None:
            value.addcmul_(cross, crosses)
        value.div_(common)
    # part of both gradients due to the common length, up to a factor
    shrink, scale = (across * value).div_(common), -1 / inner_product_scale(count) ** 2
    own[..., :products, :].add_(shrink, alpha=scale)
    own, shrink, turned = own.unsqueeze(-2), shrink.unsqueeze(-2), across.unsqueeze(-2)
    _write_products(target[..., :products, :, :], (own[..., :products, :, :], paired), (turned, right))
    if norms > products:
        torch.mul(own[..., products:, :, :], left[..., products:, :, :], out=target[..., products:norms, :, :])
    _write_products(target[..., norms:, :, :], (turned, paired), (shrink, right), scale)
    if crosses is None or cross is None:
        return None
    # gradient of a_0 b_1 - a_1 b_0
    factor = across * crosses
    for channel, other, sign in ((slice(None, products), right, 1), (slice(norms, None), paired, -1)):
        own = target[..., channel, :, :]
        own[..., 0, :].addcmul_(factor, other[..., 1, :], value=sign)
        own[..., 1, :].addcmul_(factor, other[..., 0, :], value=-sign)
    return cross.mul_(across).sum((0, -1)).unsqueeze(-1)


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _above_zero(norms: list[int], inner_products: list[int], components: list[int]) -> Iterator[tuple[slice, slice]]:
    """Rows of the responses of the orders above 0, and columns of their linear terms: first those before order 0, then those after it."""
    row = column = 0
    for above, orders in itertools.groupby(zip(norms, inner_products, components), lambda order: order[2] > 0):
        count = sum((n + m) * max(each, 1) for n, m, each in orders)
        if above and count:
            yield slice(row, row + count), slice(column, column + count)
            column += count
        row += count


class _Scalars(torch.autograd.Function):
    @staticmethod
    def forward(
        responses: torch.Tensor,
        linear: torch.Tensor | None,
        chiral: torch.Tensor | None,
        norms: list[int],
        inner_products: list[int],
        components: list[int],
    ) -> Any:
        sizes = (norms, inner_products, components)
        wide, chiral = _wide(responses), None if chiral is None else _wide(chiral)
        out = torch.empty_like(responses[:, :, : sum(norms) + sum(inner_products)])
        saved: list[torch.Tensor] = []
        for run in _runs(*sizes):
            if run.components == 0:
                out[:, :, run.channels] = wide[:, :, run.rows]
                continue
            saved += _reduce(run.parts(wide), run.norms, run.crosses(chiral), run.scalars(out))
        if linear is not None:
            for rows, columns in _above_zero(*sizes):
                out += torch.matmul(linear[..., columns].to(out.dtype), responses[:, :, rows])
        if chiral is not None:
            for run, triples in _triple_products(*sizes):
                out[:, :, run.channels].add_(triples(wide[:, :, run.rows], chiral[:, run.channels]))
        return out, *saved

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        responses, linear, chiral, *ctx.sizes = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        # without other terms, the output is the result of _reduce
        result = output[0] if linear is None and chiral is None else None
        ctx.save_for_backward(responses, linear, chiral, result, *output[1:])

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor | None, *_: Any) -> tuple:
        if gradient is None:
            return (None,) * 6
        responses, linear, chiral, out, *saved = ctx.saved_tensors
        sizes = ctx.sizes
        if takes_dense_gradients(gradient):
            found = dense_gradients(
                lambda x, *terms: _reference(x, *terms, *sizes),
                (responses, linear, chiral),
                ctx.needs_input_grad[:3],
                gradient,
            )
            return *found, None, None, None
        wide, wanted = _wide(responses), _wide(gradient)
        # in the precision of the sums if terms are added
        result = torch.empty_like(responses if out is not None else wide)
        factors = None if chiral is None else _wide(chiral)
        by_linear, by_chiral = (None if each is None else torch.zeros_like(each) for each in (linear, factors))
        for run in _runs(*sizes):
            if run.components == 0:
                result[:, :, run.rows] = wanted[:, :, run.channels]
                continue
            own = [saved.pop(0) for _ in range(2 if run.products else 1)]
            crosses, got = run.crosses(factors), None if out is None else run.scalars(out)
            places = run.scalars(wanted), run.parts(result)
            by_crosses = _reduce_backward(run.parts(wide), run.norms, crosses, got, own, *places)
            target = run.crosses(by_chiral)
            if by_crosses is not None and target is not None:
                target.copy_(by_crosses)
        if linear is not None and by_linear is not None:
            for rows, columns in _above_zero(*sizes):
                by_linear[..., columns] = torch.matmul(wanted, wide[:, :, rows].mT).sum(0)
                result[:, :, rows].add_(torch.matmul(linear[..., columns].mT.to(gradient.dtype), gradient))
        if chiral is not None and factors is not None and by_chiral is not None:
            for run, triples in _triple_products(*sizes):
                given = wide[:, :, run.rows], factors[:, run.channels]
                by_rows, by_factors = dense_gradients(triples, given, (True, True), wanted[:, :, run.channels])
                result[:, :, run.rows].add_(by_rows)  # type: ignore[arg-type]
                by_chiral[:, run.channels].add_(by_factors)  # type: ignore[arg-type]
            by_chiral = by_chiral.to(chiral.dtype)
        return result.to(responses.dtype), by_linear, by_chiral, None, None, None


# torch reads the signature at every call, and would otherwise compute it each time
_Scalars.forward.__signature__ = inspect.signature(_Scalars.forward)  # type: ignore[attr-defined]


def _triple_products(
    norms: list[int], inner_products: list[int], components: list[int]
) -> Iterator[tuple[_Run, Terms]]:
    """Orders with triple products, and functions that compute these terms from responses and factors of the order."""
    for run in _runs(norms, inner_products, components):
        if run.components != 2 and num_chiral(run.norms, run.products, run.components):
            own = [run.norms], [run.products], [run.components]
            yield run, lambda responses, factors, own=own: chiral_terms(responses, *own, factors)  # type: ignore[misc, call-arg]


def _reference(
    responses: torch.Tensor, linear: torch.Tensor | None, chiral: torch.Tensor | None, *sizes: list[int]
) -> torch.Tensor:
    """:func:`fused_scalars` in operations that compilers and exporters support."""
    norms, products, components = sizes
    output = invariants(responses, norms, products, components)
    return add_kept_terms(output, responses, norms, products, components, linear=linear, chiral=chiral)


def fused_scalars(
    responses: torch.Tensor,
    linear: torch.Tensor | None,
    chiral: torch.Tensor | None,
    norms: list[int],
    inner_products: list[int],
    components: list[int],
) -> torch.Tensor:
    """Invariants plus kept terms, fused in eager mode; recorded graphs get the reference, which compilers fuse themselves.

    Args:
        responses: ``(batch, groups, responses, voxels)``, as in :func:`~monai_gmr.ops.invariants.invariants`.
        linear: as in :func:`~monai_gmr.ops.kept_terms.linear_terms`.
        chiral: factors as in :func:`~monai_gmr.ops.kept_terms.chiral_terms`.
        norms, inner_products, components: of each order.

    Returns ``(batch, groups, outputs, voxels)``. Saved for backward: the responses, their lengths and, without terms, the result.

    Example:
        >>> fused_scalars(torch.tensor([3.0, 4.0]).reshape(1, 1, 2, 1), None, None, [1], [0], [2]).flatten()
        tensor([4.9900])
    """
    arguments = (responses, linear, chiral, norms, inner_products, components)
    if is_recorded(responses, linear, chiral):
        return _reference(*arguments)
    return _Scalars.apply(*arguments)[0]
