"""Instance norm that keeps channels last, alone or fused with the rectifier after it."""

import torch
import torch.nn.functional as F
from torch import nn

from monai_gmr.ops.cpu.norm import instance_norm, supports_norm


# private: the public classes have no hook between the input check and the norm
class GMRInstanceNormNd(nn.modules.instancenorm._InstanceNorm):
    """Base of :class:`GMRInstanceNorm2d` and :class:`GMRInstanceNorm3d`."""

    def _apply_instance_norm(self, input: torch.Tensor) -> torch.Tensor:
        if not torch.jit.is_scripting() and not self.track_running_stats:
            return self._by_own_statistics(input)
        by_batch = self.training or not self.track_running_stats
        momentum = self.momentum if self.momentum is not None else 0.0
        return F.instance_norm(
            input,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            use_input_stats=by_batch,
            momentum=momentum,
            eps=self.eps,
        )

    @torch.jit.unused
    def _by_own_statistics(self, input: torch.Tensor) -> torch.Tensor:
        return instance_norm(input, self.weight, self.bias, self.eps)

    def can_rectify(self, input: torch.Tensor) -> bool:
        """Whether :meth:`rectified` is faster than a separate norm and activation."""
        return not self.track_running_stats and supports_norm(input, self.weight, self.bias)

    def rectified(self, input: torch.Tensor, slope: float) -> torch.Tensor:
        """The normalised image, times ``slope`` where it is negative."""
        return instance_norm(input, self.weight, self.bias, self.eps, slope)


class GMRInstanceNorm2d(GMRInstanceNormNd, nn.InstanceNorm2d):
    """``torch.nn.InstanceNorm2d`` that keeps channels last in memory on backend "cpp".

    Example:
        >>> GMRInstanceNorm2d(3)(torch.rand(2, 3, 4, 5)).shape
        torch.Size([2, 3, 4, 5])
    """


class GMRInstanceNorm3d(GMRInstanceNormNd, nn.InstanceNorm3d):
    """:class:`GMRInstanceNorm2d` in three dimensions."""
