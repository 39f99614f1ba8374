"""What tests of the backends share."""

import pytest
import torch

from monai_gmr import set_backend
from monai_gmr.ops.cpu import library as kernels
from monai_gmr.ops.once import Once


@pytest.fixture
def compiled():
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


@pytest.fixture(scope="module", params=[8, 16])
def vectors(request):
    """Kernels as processors with vectors of 8 or of 16 floats have them; those that this one has not are put together of others."""
    if kernels.kernel_failure() is not None:
        pytest.skip("no C++ compiler")
    library = kernels.compile_kernels(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "load_kernels", Once(lambda: library))
        yield
