"""Converted networks in TorchScript, for every size."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn

from monai_gmr.networks.layers.size_trail import tensors_in
from monai_gmr.utils import ConfigurationError

# the first that a network takes; a graph recorded on a small image serves all
SCRIPT_SIZES = (16, 32, 33, 48, 64, 65, 96, 128)
# beyond the recorded size, to see that the graph is none of that size alone
OTHER_SIZES = (1, 2, 3, 16, 32)


class ScriptedPasses(nn.Module):
    """A network as two recorded graphs that share its weights, one in training mode, one in evaluation mode.

    Args:
        training_pass, evaluation_pass: modules of one signature.
    """

    def __init__(self, training_pass: nn.Module, evaluation_pass: nn.Module) -> None:
        super().__init__()
        self.training_pass = training_pass
        self.evaluation_pass = evaluation_pass

    def forward(self, x: torch.Tensor):
        """The answer of the pass of this mode."""
        if self.training:
            return self.training_pass(x)
        return self.evaluation_pass(x)


class ScriptedEvaluation(nn.Module):
    """A network as one recorded graph in evaluation mode, for one whose answers in training are of another type.

    Args:
        evaluation_pass: module in evaluation mode.
    """

    def __init__(self, evaluation_pass: nn.Module) -> None:
        super().__init__()
        self.evaluation_pass = evaluation_pass

    def forward(self, x: torch.Tensor):
        """The answer in evaluation mode."""
        if self.training:
            raise RuntimeError("this network answers in another form while it trains: call eval() first.")
        return self.evaluation_pass(x)


def scriptable_network(net: Any) -> nn.Module:
    """What ``torch.jit.script`` is given in the place of a converted network: its graphs, recorded with sizes as symbols.

    TorchScript compiles modules one by one, and upsampling could not see the sizes on the way down; a graph has them as values.

    Args:
        net: the network, which stays as it is, with its buffers and the state of the random generators.

    Returns:
        a module of the image alone, in the mode of the network.

    Raises:
        ConfigurationError: when the network does not take an image alone, or its graph depends on the recorded size.

    Example:
        >>> from monai.networks.nets import UNet
        >>> from monai_gmr.networks import convert_to_gmr
        >>> net = convert_to_gmr(UNet(2, 1, 2, channels=(4, 8), strides=(2,))).eval()
        >>> scripted, x = torch.jit.script(net), torch.rand(1, 1, 13, 18)
        >>> torch.allclose(scripted(x), net(x), atol=1e-5)
        True
    """
    name, mode, buffers = type(net).__name__, net.training, {k: v.clone() for k, v in net.named_buffers()}
    try:
        with torch.random.fork_rng(), torch.no_grad(), warnings.catch_warnings():
            # of branches on numbers that are alike for every size
            warnings.simplefilter("ignore", torch.jit.TracerWarning)
            image = _first_image(net.eval(), name)
            evaluation = _recorded(net, image)
            _check_other_sizes(net, evaluation, image, name)
            made: nn.Module = ScriptedPasses(_recorded(net.train(), image), evaluation)
            try:
                torch.jit.script(made)
            except RuntimeError:
                made = ScriptedEvaluation(evaluation)
    finally:
        with torch.no_grad():
            for key, value in net.named_buffers():
                value.copy_(buffers[key])
        net.train(mode)
    return made.train(mode)


def _recorded(net: nn.Module, image: torch.Tensor) -> nn.Module:
    return torch.jit.trace(net, image, check_trace=False, strict=False)


def _image(net: Any, size: list[int]) -> torch.Tensor:
    first = next(p for p in net.parameters() if p.is_floating_point())
    return torch.rand((2, net.trail_start.in_channels, *size), dtype=first.dtype, device=first.device)


def _first_image(net: Any, name: str) -> torch.Tensor:
    reference, reason = list(net.trail_start.reference), ""
    for size in [*([n] * len(reference) for n in SCRIPT_SIZES), reference]:
        image = _image(net, size)
        try:
            net(image)
            return image
        except Exception as error:  # whatever a network says to a size that it cannot take
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:160].rstrip(".")
    raise ConfigurationError(
        f"{name} cannot be scripted, for it did not take an image alone ({reason}): record it with your inputs by torch.jit.trace."
    )


def _check_other_sizes(net: Any, recorded: nn.Module, image: torch.Tensor, name: str) -> None:
    for more in OTHER_SIZES:
        other = _image(net, [n + more for n in image.shape[2:]])
        try:
            expected = tensors_in(net(other))
        except Exception:  # a network of certain sizes
            continue
        if not _is_alike(expected, recorded, other):
            raise ConfigurationError(
                f"{name} cannot be scripted for all sizes, for its own forward decides by the size of the image: record it by "
                "torch.jit.trace for each size."
            )


def _is_alike(expected: list[torch.Tensor], recorded: nn.Module, image: torch.Tensor) -> bool:
    try:
        found = tensors_in(recorded(image))
    except RuntimeError:  # a graph that refuses the size
        return False
    return all(
        one.shape == two.shape and torch.allclose(one, two, 1e-3, 1e-3 * float(one.abs().max()))
        for one, two in zip(expected, found)
    )
