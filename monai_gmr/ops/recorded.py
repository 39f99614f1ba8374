"""Checks whether an operation is recorded in a graph or runs under ``torch.func``, which cannot see inside our kernels."""

import torch
from torch.autograd.forward_ad import unpack_dual


def is_recorded(*tensors: torch.Tensor | None) -> bool:
    """Whether operations on tensors are recorded in a graph, or any of the tensors :func:`is_transformed`.

    Example:
        >>> weight = torch.ones(3)
        >>> outside, inside = [is_recorded(weight)], []
        >>> _ = torch.func.grad(lambda weight: (inside.append(is_recorded(torch.ones(1), weight)), weight.sum())[1])(weight)
        >>> outside, inside
        ([False], [True])
    """
    return torch.jit.is_tracing() or torch.compiler.is_compiling() or any(map(is_transformed, tensors))


def is_transformed(x: torch.Tensor | None) -> bool:
    """Whether a tensor is wrapped by ``torch.func``, is a batch of gradients (``is_grads_batched`` of ``torch.autograd.grad``), has a
    tangent (``torch.autograd.forward_ad``), or is a fake CPU tensor (``FakeTensorMode``), which has no numbers for the CPU's kernels.

    Example:
        >>> x = torch.ones(3, requires_grad=True)
        >>> _ = x.register_hook(lambda gradient: print(is_transformed(gradient)))
        >>> torch.autograd.grad(x * 2, x, torch.eye(3), is_grads_batched=True)[0].shape
        True
        torch.Size([3, 3])
    """
    if x is None:
        return False
    try:
        storage = x.untyped_storage()
    except NotImplementedError:  # raised for tensors of torch.func
        return True
    is_fake = x.device.type == "cpu" != storage.device.type
    return is_fake or unpack_dual(x).tangent is not None
