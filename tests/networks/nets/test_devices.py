"""Nets on every device: exactness in each precision, training with a gradient scaler, compiled and replayed steps."""

import copy

import pytest
import torch
from conversion_table import generators
from test_exactness import images

from monai_gmr.metrics import equivariance_error
from monai_gmr.networks.layers import GMRHarmonicConv3d
from monai_gmr.networks.nets import GMRUNet

CONVS = {"radial": "gmr", "harmonic": "gmr_harmonic", "group": ("group", {"group": "mmm"})}
# a number of bfloat16 has 8 bits, one of float16 11, and rounding adds up from layer to layer
BOUNDS = {torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 2.5e-2}
EVERY_CONV = pytest.mark.parametrize("conv", CONVS)


def make_net(conv, device):
    torch.manual_seed(0)
    features = {"group": (8, 16), "partial": (24, 24)}.get(conv, (4, 8))
    return GMRUNet(3, 1, 2, features, conv=CONVS.get(conv, conv)).to(device)


def worst(net, x, dtype):
    """The worst error under autocast over elements of the net's group."""

    def run(image):
        with torch.autocast(x.device.type, dtype, enabled=dtype != torch.float32):
            return net(image).float()

    group = getattr(net, "symmetry_group", None)
    return equivariance_error(run, x, generators(3) if group is None else group.elements[[1, -1]]).worst


@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@EVERY_CONV
def test_exact_in_each_precision(device, conv, dtype):
    net, x = make_net(conv, device), images(2, 9, 10, 8).to(device)
    for training in (False, True):
        assert worst(net.train(training), x, dtype) <= BOUNDS[dtype]


@EVERY_CONV
def test_training_under_autocast_is_that_of_float32_to_rounding(device, conv):
    """Trains with a gradient scaler for float16; weights stay float32, and the net stays exact."""
    losses = {}
    for dtype in BOUNDS:
        net, x = make_net(conv, device), images(2, 8, 9, 7).to(device)
        optimizer = torch.optim.SGD(net.parameters(), 0.05)
        scaler = torch.amp.GradScaler(device.type, init_scale=1024.0, enabled=dtype == torch.float16)
        for _ in range(3):
            optimizer.zero_grad()
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                loss = (net(x).float() - x).square().mean()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            losses.setdefault(dtype, []).append(float(loss.detach()))
        assert {parameter.dtype for parameter in net.parameters()} == {torch.float32}
        assert worst(net, x, torch.float32) <= BOUNDS[torch.float32]
    exact = torch.tensor(losses.pop(torch.float32))
    assert exact[-1] < 0.9 * exact[0]
    for dtype, found in losses.items():
        assert torch.allclose(torch.tensor(found), exact, rtol=BOUNDS[dtype])


def gradients(net, x):
    """Gradients of a loss of the net's output, for each parameter, added to the existing ones."""
    net(x).square().mean().backward()
    return [parameter.grad for parameter in net.parameters()]


def test_a_compiled_step_is_an_eager_one(device):
    torch.manual_seed(0)
    # a compiler takes long on a CPU, where test_nets.py has nets
    if device.type == "cuda":
        net, backend = GMRUNet(3, 1, 2, (4, 8), conv="gmr_harmonic"), "inductor"
    else:
        net, backend = GMRHarmonicConv3d(1, 4, 3, padding=1), "eager"
    net, x = net.to(device), images(1, 8, 9, 7).to(device)
    compiled = copy.deepcopy(net)
    found = gradients(torch.compile(compiled, backend=backend, fullgraph=True), x)
    for got, expected in zip(found, gradients(net, x)):
        assert torch.allclose(got, expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()) + 1e-7)


def captured(run, device):
    """A function that replays ``run`` as a CUDA graph; ``run`` itself on other devices."""
    if device.type != "cuda":
        return run
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream(device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("conv", [*CONVS, "partial"])
def test_a_replayed_step_is_an_eager_one(device, conv, dtype):
    """Replays a training step as a CUDA graph on another image: the forward pass neither waits for the device nor keeps results.

    Partial nets draw their elements on the host in train mode."""
    net, first, second = make_net(conv, device), images(1, 8, 9, 7).to(device), images(1, 8, 9, 7, seed=1).to(device)
    net.train(conv != "partial")
    eager, x = copy.deepcopy(net), first.clone()
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)

    def step():
        for parameter in net.parameters():
            parameter.grad.zero_()
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32, cache_enabled=False):
            gradients(net, x)

    replay = captured(step, device)
    for image in (second, first):
        x.copy_(image)
        replay()
        eager.zero_grad()
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            expected = gradients(eager, image)
        for parameter, gradient in zip(net.parameters(), expected):
            distance = (parameter.grad - gradient).norm()
            assert distance <= BOUNDS[dtype] * gradient.norm() + 1e-6
