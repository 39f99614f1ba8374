"""Number of operations of an eager pass: a GPU launches a kernel for each, which dominates on small volumes."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from monai_gmr.networks.nets import GMRUNet
from monai_gmr.ops import set_backend

# which launch nothing
VIEWS = (
    "view",
    "as_strided",
    "_unsafe_view",
    "_reshape_alias",
    "empty",
    "new_empty",
    "detach",
    "alias",
    "split_with_sizes",
)


class Launches(TorchDispatchMode):
    """Counts operations that are not views."""

    number = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        views = any(each.alias_info and not each.alias_info.is_write for each in func._schema.arguments)
        self.number += not (views or func._schema.name.removeprefix("aten::") in VIEWS)
        return result


def launches(net, x):
    """Counts the operations of the forward and backward pass, without existing gradients."""
    with set_backend("dense"):
        with Launches() as forward:
            y = net(x)
        with Launches() as backward:
            y.sum().backward()
    return forward.number, backward.number


# times the launches of plain convolutions
SHARES = {"gmr": 2.2, "gmr_harmonic": 4.9, "sre": 1.3, "group": 1.5, "partial": 31.0}


@pytest.mark.parametrize("conv", SHARES)
def test_a_pass_launches_few_kernels(conv):
    x, features = torch.randn(2, 1, 12, 12, 12), (48, 48, 48)
    plain, own = (launches(GMRUNet(3, 1, 2, features, conv=name, kernel_sizes=3), x) for name in ("plain", conv))
    assert sum(own) <= SHARES[conv] * sum(plain), (own, plain)
