"""The block equals MONAI's for every order and activation, and calls the hooks of its submodules."""

import gc
import weakref

import pytest
import torch
from monai.networks.blocks import ADN
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from monai_gmr import set_backend
from monai_gmr.networks.blocks import GMRADN, GMRConvolution
from monai_gmr.ops import dense_harmonic
from monai_gmr.ops.cpu import library as kernels
from monai_gmr.ops.cpu import norm as cpu_norm
from monai_gmr.ops.memory_format import has_channels_last, make_channels_last

needs_kernels = pytest.mark.skipif(kernels.load_kernels() is None, reason="no kernels were built")
NORM = ("GMRINSTANCE", {"affine": True})


@pytest.fixture
def calls(monkeypatch):
    """Slopes that the kernels were called with."""
    made, original = [], cpu_norm.cpp_instance_norm
    monkeypatch.setattr(cpu_norm, "cpp_instance_norm", lambda *a: (made.append(a[-1]), original(*a))[1])
    set_backend("cpp")
    yield made
    set_backend("auto")


@needs_kernels
@pytest.mark.parametrize("size", [(5, 6), (3, 4, 5)])
@pytest.mark.parametrize(
    ("ordering", "act", "dropout", "expected"),
    [
        ("NDA", ("LeakyReLU", {"negative_slope": 0.1, "inplace": True}), None, [0.1]),
        ("NA", "RELU", None, [0.0]),
        ("NDA", "RELU", 0.5, [1.0]),
        ("AN", "LEAKYRELU", None, [1.0]),
        ("NA", "PRELU", None, [1.0]),
        ("NA", None, None, [1.0]),
        ("A", "RELU", None, []),
    ],
)
def test_the_block_is_monai_s(calls, size, ordering, act, dropout, expected):
    ours, theirs = (
        make(ordering, 3, act, norm, len(size), dropout)
        for make, norm in ((GMRADN, NORM), (ADN, ("INSTANCE", {"affine": True})))
    )
    theirs.load_state_dict(ours.state_dict())
    x = make_channels_last(torch.randn(2, 3, *size))
    torch.manual_seed(1)
    found = ours(x.clone())
    torch.manual_seed(1)
    wanted = theirs(x.clone())
    assert calls == expected
    assert has_channels_last(found)
    assert torch.allclose(found, wanted, atol=1e-5)
    assert torch.allclose(torch.jit.script(ours.eval())(x.clone()), theirs.eval()(x.clone()), atol=1e-5)


@needs_kernels
@pytest.mark.parametrize("which", ["N", "A"])
def test_hooks_see_what_lies_between(calls, which):
    block, seen = GMRADN("NA", 3, ("LEAKYRELU", {"negative_slope": 0.1}), NORM, 2), []
    x = make_channels_last(torch.randn(1, 3, 4, 4))
    together = block(x)
    block.get_submodule(which).register_forward_hook(lambda module, inputs, output: seen.append(output))
    assert torch.allclose(block(x), together, atol=1e-6)
    assert calls == [0.1, 1.0]
    assert len(seen) == 1


def tensors_alive(run, numbers):
    """Number of tensors of a given size that a forward pass leaves in memory, including its result; and the result."""
    made = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            made.extend(each.untyped_storage() for each in tree_leaves(result) if isinstance(each, torch.Tensor))
            made[:] = [weakref.ref(each) if isinstance(each, torch.UntypedStorage) else each for each in made]
            return result

    with Watch():
        y = run()
    gc.collect()
    storages = {each.data_ptr(): each for ref in made if (each := ref()) is not None}
    return sum(each.nbytes() >= 4 * numbers for each in storages.values()), y


@pytest.mark.parametrize(
    ("act", "dropout"), [("PRELU", None), ("PRELU", 0.3), ("LEAKYRELU", 0.3), ("GELU", None), ("RRELU", None)]
)
def test_behind_a_harmonic_layer_one_tensor_is_kept(act, dropout, monkeypatch):
    block = GMRConvolution(3, 4, 8, act="RELU" if act == "RRELU" else act, dropout=dropout, conv="gmr_harmonic")
    if act == "RRELU":
        # MONAI has no name for the one activation that draws
        block.adn.A = torch.nn.RReLU()
    monkeypatch.setattr(dense_harmonic, "KEPT_BYTES", 0)
    x = torch.randn(1, 4, 8, 8, 8, requires_grad=True)
    found = {}
    for recomputes in (True, False):
        block.adn.recomputes = recomputes
        torch.manual_seed(1)
        with set_backend("dense"):
            count, y = tensors_alive(lambda: block(x), 8 * 8**3)
        found[recomputes] = count, [y, *torch.autograd.grad(y.square().sum(), [x, *block.parameters()])]
    # the layer's result, which the norm takes, and the block's
    assert found[True][0] == 2 < found[False][0]
    for one, other in zip(found[True][1], found[False][1]):
        assert torch.equal(one, other)


def test_statistics_are_updated_once():
    block = GMRADN("NA", 3, "PRELU", "BATCH", 2, recomputes=True)
    block(torch.randn(2, 3, 4, 4, requires_grad=True)).sum().backward()
    assert int(block.N.num_batches_tracked) == 1


def test_an_overwritten_input_is_not_used_again():
    x = torch.randn(1, 3, 5, 5, requires_grad=True)
    settings = ("AN", 3, ("LEAKYRELU", {"negative_slope": 0.5, "inplace": True}), "INSTANCE", 2)
    found = [
        torch.autograd.grad(GMRADN(*settings, recomputes=each)(x * 1).square().sum(), x)[0] for each in (True, False)
    ]
    assert torch.equal(*found)
