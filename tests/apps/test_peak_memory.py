"""Tests of the peak memory of calls with known allocations."""

import pytest
import torch

from monai_gmr.apps.peak_memory import peak_memory, replay_peak

CPU = torch.device("cpu")


def test_replayed_peak_ignores_releases_of_earlier_memory_and_reuses_addresses():
    assert replay_peak([]) == 0
    assert replay_peak([(1, -500), (1, 10), (2, 20), (1, -10), (1, 15), (2, -20), (2, 5)]) == 35


def test_peak_memory_of_known_allocations():
    before = [torch.ones(1000, 1000)]

    def run():
        a = torch.ones(500, 1000)  # 2 MB
        b = a + 1  # 4 MB
        del a
        c = torch.cat([b, b])  # 6 MB, the peak
        del b
        before.clear()  # allocated before, so not counted
        d = torch.ones(100, 1000)
        return c.sum() + d.sum()

    assert peak_memory(run, CPU) == pytest.approx(6e6, rel=0.01)


def test_peak_memory_of_a_backward_pass():
    x = torch.rand(1000, 250, requires_grad=True)

    def run():
        # saved: exp; at its end the gradients of exp and then of x, 1 MB each, are allocated next to it
        x.exp().sum().backward()
        x.grad = None

    assert peak_memory(run, CPU) == pytest.approx(2e6, rel=0.01)
