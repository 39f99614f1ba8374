"""Reads and checks files of weights: only tensors, in the expected form, and finite; otherwise raises an error that names the file."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from monai_gmr.checksums import check_sum
from monai_gmr.utils import ConfigurationError

STATE_KEYS = ("model", "network", "net", "state_dict")


def _why_unreadable(path: Path, error: Exception) -> str:
    """The reason why ``torch.load`` refused a file."""
    if isinstance(error, PermissionError):
        return error.strerror or "no permission"
    unsafe = "it holds more than tensors, which is not loaded because it could run any program"
    with open(path, "rb") as file:
        head = file.read(2)
    if not head:
        return "it is empty"
    if zipfile.is_zipfile(path):
        if "TorchScript" in str(error):
            return "it is a TorchScript archive"
        return unsafe if isinstance(error, pickle.UnpicklingError) else "it is damaged"
    if head == b"PK":
        return "its end is missing"
    # b"\x80": a bare pickle, as torch.save wrote before 1.6
    return unsafe if head[:1] == b"\x80" else "it was not written by torch.save"


def read_checkpoint(
    path: str | os.PathLike, device: Any = "cpu", hint: str = "give a file that train.yaml wrote"
) -> Any:
    """Reads a file of ``torch.save`` with ``weights_only=True``; ``hint``, what to do, ends the error.

    Raises:
        ConfigurationError: if the file is missing, empty, truncated or damaged, holds objects other than tensors, numbers and containers,
            or does not match the ``SHA256SUMS`` next to it.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigurationError(f"{path} {'is a folder' if path.is_dir() else 'does not exist'}: {hint}.")
    check_sum(path)
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except Exception as error:
        why = _why_unreadable(path, error)
        raise ConfigurationError(f"{path} cannot be read as a checkpoint ({why}): {hint}.") from error


def state_of(
    content: Any, name: str | os.PathLike, hint: str = "give a file that train.yaml wrote"
) -> dict[str, torch.Tensor]:
    """Returns the state dict in a checkpoint: the content of :func:`read_checkpoint`, or the value of one of :data:`STATE_KEYS`, with the
    metadata that torch keeps next to the tensors.

    Raises:
        ConfigurationError: if it holds no dictionary from names to tensors; ``name`` and ``hint`` begin and end the sentence.
    """
    if isinstance(content, Mapping):
        inner = next((content[key] for key in STATE_KEYS if isinstance(content.get(key), Mapping)), content)
        # the state of a module can hold more than tensors (get_extra_state)
        if any(torch.is_tensor(value) for value in inner.values()) and all(isinstance(key, str) for key in inner):
            state = OrderedDict(inner)
            if hasattr(inner, "_metadata"):
                # as load_state_dict copies a state dict; there is no public way
                state._metadata = inner._metadata  # type: ignore[attr-defined]
            return state
    kind = f"a {type(content).__name__}"
    if isinstance(content, Mapping):
        kind = f"the keys {', '.join(map(repr, list(content)[:5]))}" if content else "nothing"
    raise ConfigurationError(f"{name} holds {kind} and no weights: {hint}.")


def first_not_finite(state: Mapping[str, Any], parameters: Iterable[str] = ()) -> str | None:
    """Name of the first tensor with a NaN, or with infinity if it is one of ``parameters``; buffers such as masks can hold infinity."""
    learned = set(parameters)
    for name, tensor in state.items():
        if not torch.is_tensor(tensor) or not (tensor.is_floating_point() or tensor.is_complex()):
            continue
        broken = ~torch.isfinite(tensor) if name in learned else torch.isnan(tensor)
        if broken.any():
            return name
    return None


def check_finite(network: nn.Module, state: Mapping[str, Any], name: str | os.PathLike, hint: str) -> None:
    """Raises :class:`ConfigurationError` if a state dict of a network is not finite; ``name`` and ``hint`` begin and end the sentence."""
    broken = first_not_finite(state, (key for key, _ in network.named_parameters()))
    if broken is not None:
        raise ConfigurationError(f"{name} holds weights that are not finite (the first in {broken}): {hint}.")
