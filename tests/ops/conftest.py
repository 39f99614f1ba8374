"""What tests of the backends share."""

import pytest
import torch

from monai_gmr import set_backend
from monai_gmr.ops.cpu import library as kernels


@pytest.fixture
def cpp():
    """Backend "cpp"."""
    set_backend("cpp")
    yield
    set_backend("auto")


@pytest.fixture
def far_apart():
    """A function ``(array, axis)`` to an array of the same numbers that lie 2^31 numbers apart along an axis, in memory that else is not
    touched."""

    def move(x: torch.Tensor, axis: int) -> torch.Tensor:
        strides = list(x.stride())
        strides[axis] = -(-(2**31) // (x.shape[axis] - 1))
        memory = x.new_empty(2**31 + 2 * x.numel())
        return memory.as_strided(x.shape, strides).copy_(x)

    return move


@pytest.fixture(scope="module", params=list(kernels.PROCESSORS))
def processor(request):
    """The kernels that were built for each kind of processor, as far as this one runs them."""
    names, capability = list(kernels.PROCESSORS), torch.backends.cpu.get_cpu_capability()
    if capability in names and names.index(request.param) < names.index(capability):
        pytest.skip(f"this processor has no {request.param}")
    try:
        library = kernels.open_library(kernels.PROCESSORS[request.param])
    except OSError as error:
        pytest.skip(str(error))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "load_kernels", lambda: library)
        yield
