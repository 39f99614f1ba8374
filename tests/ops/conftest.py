"""Fixtures of the tests of backends."""

from contextlib import suppress

import pytest
import torch

from monai_gmr import set_backend
from monai_gmr.ops.cpu import backend as cpu_backend
from monai_gmr.ops.cpu import library as kernels


@pytest.fixture
def cpp():
    """Backend "cpp"."""
    set_backend("cpp")
    yield
    set_backend("auto")


@pytest.fixture
def calls(monkeypatch, cpp):
    """Image shapes of the calls of the operation of harmonic layers, on backend "cpp"."""
    made, original = [], cpu_backend.cpp_harmonic_conv
    monkeypatch.setattr(cpu_backend, "cpp_harmonic_conv", lambda **a: (made.append(a["x"].shape), original(**a))[1])
    return made


@pytest.fixture
def break_symmetry():
    """A function that randomises the parameters with which a harmonic layer breaks symmetry, and returns the layer."""

    def draw(layer):
        for parameter in (layer.relax_weight, layer.chiral_weight):
            if parameter is not None:
                torch.nn.init.normal_(parameter, std=0.5)
        return layer

    return draw


@pytest.fixture
def far_apart():
    """A function ``(array, axis)`` that copies an array into memory where elements are 2^31 numbers apart along an axis; the rest of the
    memory is never touched."""

    def move(x: torch.Tensor, axis: int) -> torch.Tensor:
        strides = list(x.stride())
        strides[axis] = -(-(2**31) // (x.shape[axis] - 1))
        memory = x.new_empty(2**31 + 2 * x.numel())
        return memory.as_strided(x.shape, strides).copy_(x)

    return move


@pytest.fixture(scope="session")
def libraries():
    """The kernels built for each kind of processor, by its name, if this processor supports them."""
    names, capability, found = list(kernels.PROCESSORS), torch.backends.cpu.get_cpu_capability(), {}
    for name in names[names.index(capability) if capability in names else 0 :]:
        with suppress(OSError):
            found[name] = kernels.open_library(kernels.PROCESSORS[name])
    return found


@pytest.fixture(scope="module", params=list(kernels.PROCESSORS))
def processor(request, libraries):
    """Makes kernels run in one of the libraries instead of the best one."""
    if request.param not in libraries:
        pytest.skip(f"no kernels for {request.param} were built, or this processor does not run them")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "load_kernels", lambda: libraries[request.param])
        yield
