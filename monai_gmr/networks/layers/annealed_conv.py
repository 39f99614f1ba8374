"""Trained convolution that is annealed to an equivariant one: the equivariant layer plus the rest of the trained kernel."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from monai_gmr.annotations import checked_arguments
from monai_gmr.ops.free_sizes import is_free


class AnnealedConv(nn.Module):
    r"""Equivariant layer :math:`E` plus a rest :math:`R`: starts as a trained convolution, and is only the layer once the rest is zero.

    .. math::
        y = E(x) + R \star x \quad\text{or, if the layer blends,}\quad y = \Big(1 - \frac{|R|}{|K|}\Big) E(x) + R \star x

    A linear layer with the geometry of the trained one starts with the projection :math:`P` of the trained kernel :math:`K`, and the rest
    with :math:`K - P`. A layer that takes norms, or whose steps lie elsewhere, has no such kernel: there the rest starts as :math:`K`, and
    the layer is weighted by the share that the rest has lost. A rest of :math:`c K` then gives :math:`(1 - c) E(x) + c K \star x`. A
    learned scale that starts at zero would remain in the final layer, and norms of weights that start at zero have no gradient.

    A rest of exactly zero is no longer computed. State dicts have the keys of the equivariant layer, plus ``rest.weight`` and
    ``kernel_norm`` while the rest is not zero. Both kinds can be loaded.

    Args:
        equivariant: the equivariant layer, for ``(batch, channels, *spatial)``.
        rest: a convolution of ``torch.nn`` with the trained one's geometry.
        kernel_norm: :math:`|K|`.
        blends: whether to use the second, blended sum.
        ends: zero padding of the rest's input, in the order of ``torch.nn.functional.pad``.

    Example:
        >>> from monai_gmr.networks.layers import GMRConv2d
        >>> trained, layer = nn.Conv2d(1, 2, 3, padding=1, bias=False), GMRConv2d(1, 2, 3, padding=1, bias=False)
        >>> rest = nn.Conv2d(1, 2, 3, padding=1, bias=False)
        >>> rest.weight.data = (trained.weight - layer.dense_kernel()).detach()
        >>> annealed, x = AnnealedConv(layer, rest, trained.weight.norm().item()), torch.rand(1, 1, 8, 8)
        >>> torch.allclose(annealed(x), trained(x), atol=1e-6)
        True
    """

    kernel_norm: torch.Tensor
    ends: list[int]

    @checked_arguments
    def __init__(
        self,
        equivariant: nn.Module,
        rest: nn.Module,
        kernel_norm: float,
        *,
        blends: bool = False,
        ends: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.equivariant, self.rest, self.blends = equivariant, rest, blends
        self.ends = [int(n) for n in ends]
        # geometry attributes of a convolution, for code that reads them
        for name in ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups"):
            setattr(self, name, getattr(rest, name))
        fields = getattr(equivariant, "field_groups", None)
        if fields is not None:
            self.field_groups = fields
        weight: Any = rest.weight
        self.register_buffer("kernel_norm", torch.tensor(kernel_norm, device=weight.device, dtype=torch.float32))
        self.holds_rest = True
        self.register_state_dict_post_hook(_write_names)
        self.register_load_state_dict_pre_hook(_read_names)
        self.register_load_state_dict_post_hook(_settle)
        self.settle()

    def settle(self) -> bool:
        """Checks whether the rest is exactly zero, and then stops computing it; returns whether it is not zero."""
        self.holds_rest = any(each.is_meta or bool((each != 0).any()) for each in self.rest.parameters())
        return self.holds_rest

    def rest_size(self) -> torch.Tensor:
        """Norm of the rest's kernel relative to the trained kernel, float32."""
        weight = self.rest.weight
        assert isinstance(weight, torch.Tensor)
        norm = torch.linalg.vector_norm(weight.detach().float())
        return norm / self.kernel_norm.float().clamp(min=1e-30)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """``(batch, in_channels, *spatial)`` to the size of the trained convolution."""
        return self._with_rest(input, self.equivariant(input))

    def _with_rest(self, input: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """Adds the rest to the output of the equivariant layer."""
        runs = self.holds_rest
        if not torch.jit.is_scripting():
            # a distributed run waits for the gradients of all parameters
            runs = runs or (self.training and dist.is_available() and dist.is_initialized())
        if not runs:
            return output
        if self.blends:
            output = output * (1 - self.rest_size()).clamp(min=0.0).to(output.dtype)
        return output + self._rest_beside(input, output)

    def _rest_beside(self, input: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        if len(self.ends) > 0:
            input = F.pad(input, self.ends)
        return self.rest(input)

    def extra_repr(self) -> str:
        return f"blends={self.blends}, holds_rest={self.holds_rest}"


class AnnealedConvTranspose(AnnealedConv):
    """:class:`AnnealedConv` of a transposed convolution: the rest is padded to the size of the equivariant layer, which knows the sizes of
    skip connections."""

    def forward(self, input: torch.Tensor, output_size: list[int] | None = None) -> torch.Tensor:
        """``(batch, in_channels, *spatial)`` to ``output_size``, or the size of the equivariant layer."""
        output = self.equivariant(input) if output_size is None else self.equivariant(input, output_size)
        return self._with_rest(input, output)

    def _rest_beside(self, input: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        weight: Any = self.rest.weight
        rest, dims = self.rest(input), weight.dim() - 2
        gaps = [wanted - n for wanted, n in zip(output.shape[-dims:], rest.shape[-dims:])]
        if is_free(gaps) or any(gaps):
            rest = F.pad(rest, [n for gap in reversed(gaps) for n in (0, gap)])
        return rest


def _settle(module: Any, *_: Any) -> None:
    module.settle()


def _is_own(name: str) -> bool:
    return name.startswith("rest.") or name == "kernel_norm"


def _write_names(module: Any, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """State dict hook: removes "equivariant." from the keys, and a rest of zero."""
    for key in [key for key in state_dict if key.startswith(prefix)]:
        name = key[len(prefix) :]
        if not _is_own(name):
            # in its order
            state_dict[prefix + name.removeprefix("equivariant.")] = state_dict.pop(key)
        elif not module.holds_rest:
            del state_dict[key]


def _read_names(module: Any, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Hook before loading: restores the keys of the submodules, and adds zeros for a missing rest."""
    found = [key for key in state_dict if key.startswith(prefix)]
    for key in found:
        name = key[len(prefix) :]
        if not _is_own(name) and not name.startswith("equivariant."):
            state_dict[f"{prefix}equivariant.{name}"] = state_dict.pop(key)
    tensors = [state_dict[key] for key in state_dict if key.startswith(prefix)]
    if not tensors:
        return
    for name, each in module.rest.named_parameters():
        zeros = torch.zeros(each.shape, dtype=each.dtype, device=tensors[0].device)
        state_dict.setdefault(f"{prefix}rest.{name}", zeros)
    norm = module.kernel_norm
    state_dict.setdefault(
        f"{prefix}kernel_norm", torch.ones_like(norm, device=tensors[0].device) if norm.is_meta else norm
    )
