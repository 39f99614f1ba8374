"""Parts of a bundle's training config, built without training: the network's size, and a training step to time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from monai.bundle import ConfigWorkflow
from monai.engines import default_prepare_batch
from monai.utils import set_determinism

from monai_gmr.bundle.command_line import quiet

NETWORK_IDS = ("network", "network_def", "net")


def open_training(config_file: Path, settings: Mapping[str, Any]) -> Any:
    """The parser of a bundle's ``configs/train.yaml`` with overrides; nothing is built yet."""
    settings = {"bundle_root": str(config_file.parent.parent.resolve()), **settings}
    with quiet():
        return ConfigWorkflow(str(config_file), workflow_type="train", logging_file=False, **settings).parser


def count_parameters(config_file: Path, settings: Mapping[str, Any]) -> int | None:
    """Number of trainable parameters of the network of a training config; ``None`` when it names no network."""
    parser = open_training(config_file, {**settings, "device": "cpu"})
    name = next((name for name in NETWORK_IDS if name in parser.config), None)
    if name is None:
        return None
    with quiet():
        network = parser.get_parsed_content(name)
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)


def make_step(config_file: Path, settings: Mapping[str, Any]) -> Callable[[], None]:
    """A function that does a training step on the first training batch of a config with ``network``, ``loss``, ``optimizer`` and
    ``train::dataloader``: forward, loss, backward and the optimizer's step."""
    lazy = {"cache_rate": 0.0, "num_workers": 0}
    parser = open_training(config_file, settings)
    parser.update({name: value for name, value in lazy.items() if name in parser.config})
    set_determinism(0)
    with quiet():
        network, loss, optimizer = (parser.get_parsed_content(name) for name in ("network", "loss", "optimizer"))
        batch = next(iter(parser.get_parsed_content("train::dataloader")))
    device = next(network.parameters()).device
    image, label = default_prepare_batch(batch, device)[:2]
    set_determinism(None)
    network.train()

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss(network(image), label).backward()
        optimizer.step()

    return step
