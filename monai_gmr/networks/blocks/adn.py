"""MONAI's ``ADN`` with a fused instance norm and rectifier."""

from collections.abc import Sequence
from typing import Any

import torch
from monai.networks.blocks import ADN
from torch import nn

# private: torch has no public way to check for hooks
from torch.nn.modules.module import _has_any_global_hook as has_global_hooks
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from monai_gmr.networks.layers.instance_norm import GMRInstanceNormNd
from monai_gmr.ops.recorded import is_recorded
from monai_gmr.utils import ConfigurationError


class GMRADN(ADN):
    """Activation, dropout and normalisation in any order: ``monai.networks.blocks.ADN``, with its arguments, submodules and results.

    On backend "cpp", for images with channels last, an instance norm and a ``LeakyReLU`` or ``ReLU`` right after it are fused, with a third
    fewer passes over memory; modules with hooks run one by one.

    Args:
        recomputes: whether the backward pass keeps only the input and recomputes the tensors between the modules. Not done with modules
            that update statistics, have hooks or overwrite the input.

    Example:
        >>> GMRADN("NA", 3, "LEAKYRELU", "GMRINSTANCE", 2)(torch.rand(1, 3, 4, 4)).shape
        torch.Size([1, 3, 4, 4])
    """

    def __init__(self, *args: Any, recomputes: bool = False, **kwargs: Any) -> None:
        try:
            super().__init__(*args, **kwargs)
        except (TypeError, ValueError) as error:
            if isinstance(error, ConfigurationError):
                raise
            raise ConfigurationError(
                f"the activation, dropout or norm of a block cannot be built ({error}): give it as a pair of its name and all arguments "
                "that it needs, such as ('group', {'num_groups': 4})."
            ) from None
        self.recomputes = recomputes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(batch, channels, *spatial)`` to the same shape."""
        if torch.jit.is_scripting():
            for module in self:
                x = module(x)
            return x
        return self._modules_in_turn(x)

    @torch.jit.unused
    def _modules_in_turn(self, x: torch.Tensor) -> torch.Tensor:
        if not (self.recomputes and torch.is_grad_enabled() and x.requires_grad) or is_recorded(x):
            return self._by_pairs(x)
        # MONAI names them A, D and N
        active = {name: module for name, module in self.named_children() if name != "D" or _draws(module)}
        modules = list(active.values())
        if not _keep_more_than_their_input(modules, x) or any(map(_has_hooks, modules)):
            return self._by_pairs(x)
        draws = any(map(_draws, modules))
        # RReLU fills noise after saving it: a recomputation that stops at the last saved tensor leaves it empty
        with set_checkpoint_early_stop(not draws):
            return checkpoint(self._by_pairs, x, use_reentrant=False, preserve_rng_state=draws)

    @torch.jit.unused
    def _by_pairs(self, x: torch.Tensor) -> torch.Tensor:
        modules = list(self)
        while modules:
            module, *modules = modules
            slope = rectifier_slope(modules[0]) if modules else None
            watched = any(map(_has_hooks, (module, *modules[:1])))
            if slope is not None and not watched and isinstance(module, GMRInstanceNormNd) and module.can_rectify(x):
                x = module.rectified(x, slope)
                modules.pop(0)
            else:
                x = module(x)
        return x


def rectifier_slope(activation: nn.Module) -> float | None:
    """Factor of an activation for negative values; ``None`` for other functions."""
    if type(activation) is nn.LeakyReLU:
        return float(activation.negative_slope)
    return 0.0 if type(activation) is nn.ReLU else None


def _keep_more_than_their_input(modules: Sequence[nn.Module], x: torch.Tensor) -> bool:
    """Whether modules keep more than their input for the backward pass, and can be recomputed."""
    if len(modules) < 2 or getattr(modules[0], "inplace", False):
        return False
    if any(module.training and getattr(module, "track_running_stats", False) for module in modules):
        return False
    first, second = modules[:2]
    in_place = getattr(second, "inplace", False) or (isinstance(first, GMRInstanceNormNd) and first.can_rectify(x))
    return len(modules) > 2 or rectifier_slope(second) is None or not in_place


def _draws(module: nn.Module) -> bool:
    """Whether a module draws random numbers now: dropout with a probability ``p``, or a random activation."""
    return module.training and (isinstance(module, nn.RReLU) or bool(getattr(module, "p", 0)))


def _has_hooks(module: nn.Module) -> bool:
    """Whether hooks are registered on a module or globally."""
    own = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(own) or has_global_hooks()
