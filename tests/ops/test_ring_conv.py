"""``ring_conv`` is a convolution with any basis on taps, and differentiable in all its tensors."""

import pytest
import torch
import torch.nn.functional as F

from monai_gmr.ops import dense_kernel, ring_conv


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("padding_mode", ["zeros", "reflect", "replicate", "circular"])
def test_one_shell_a_tap_is_any_convolution(dims, padding_mode):
    kernel = torch.randn(4, 3, *(3,) * dims, dtype=torch.float64)
    shells = torch.arange(3**dims).reshape((3,) * dims)
    x = torch.randn(2, 3, *(6, 5, 7)[:dims], dtype=torch.float64)
    basis = torch.eye(3**dims, dtype=torch.float64)
    y = ring_conv(x, kernel.flatten(2), basis, shells, padding=1, padding_mode=padding_mode)
    mode = "constant" if padding_mode == "zeros" else padding_mode
    expected = getattr(F, f"conv{dims}d")(F.pad(x, [1, 1] * dims, mode=mode), kernel)
    assert torch.allclose(y, expected)


def test_gradients_of_input_weight_basis_and_bias():
    shells = torch.tensor([[2, 1, 2], [1, 0, 1], [2, 1, 2]])
    shapes = [(1, 2, 4, 5), (4, 1, 2), (2, 3), (4,)]
    x, weight, basis, bias = (torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes)
    run = lambda *values: ring_conv(values[0], values[1], values[2], shells, values[3], 2, 1, groups=2)  # noqa: E731
    assert torch.autograd.gradcheck(run, (x, weight, basis, bias))


def test_kernel_of_known_rings():
    shells = torch.tensor([[2, 1, 2], [1, 0, 1], [2, 1, 2]])
    basis = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.5]])
    kernel = dense_kernel(torch.tensor([[[2.0, 4.0]]]), basis, shells)
    assert torch.equal(kernel[0, 0], torch.tensor([[2.0, 4.0, 2.0], [4.0, 2.0, 4.0], [2.0, 4.0, 2.0]]))


def test_angular_functions_make_a_component_each():
    shells, angular = torch.tensor([1, 0, 1]), torch.tensor([[1.0, 1.0, 1.0], [-1.0, 0.0, 1.0]], dtype=torch.float64)
    weight, basis = torch.randn(4, 1, 2, dtype=torch.float64), torch.randn(2, 2, dtype=torch.float64)
    x = torch.randn(2, 2, 6, dtype=torch.float64)
    y = ring_conv(x, weight, basis, shells, padding=1, groups=2, angular=angular)
    assert y.shape == (2, 4, 2, 6)
    for component in range(2):
        kernel = dense_kernel(weight, basis, shells) * angular[component]
        assert torch.allclose(y[:, :, component], F.conv1d(x, kernel, padding=1, groups=2))
    assert torch.allclose(ring_conv(x[0], weight, basis, shells, padding=1, groups=2, angular=angular), y[0])
