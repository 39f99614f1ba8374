"""A bundle in Python: its network with weights, and its preprocessing, inferer and postprocessing."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.inferers import SimpleInferer
from monai.transforms import Compose, LoadImage, LoadImaged

from monai_gmr.bundle.checks import load_network
from monai_gmr.bundle.command_line import GMRWorkflow, quiet
from monai_gmr.bundle.config_parts import make_importable, remove_disabled, switch_off, transforms_in
from monai_gmr.bundle.headers import describe_resampling
from monai_gmr.bundle.shipped import METADATA, WEIGHTS, check_packages, find_bundle, find_config, read_metadata
from monai_gmr.transforms import LoadCased
from monai_gmr.utils import ConfigurationError, find_configuration_error, reason, warn


@dataclass(frozen=True)
class LoadedBundle:
    """The network of a bundle with its preprocessing, inferer and postprocessing; a call with an image predicts.

    The image is the path of a file or, if the preprocessing reads no file, also an array ``(channels, *spatial)``. A call returns the
    prediction that the bundle's inference would write: a label volume ``(1, *spatial)``, or the class probabilities. It raises
    ``ConfigurationError`` for an image that cannot be predicted.

    Attributes:
        folder: folder of the bundle.
        network: network in eval mode, on ``device``.
        device: device of the network.
        preprocessing: called with a dictionary that has the key ``image``.
        inferer: called with a batch and the network.
        postprocessing: called with the preprocessed dictionary and the network's output as ``pred``; writes no file.
        metadata: content of ``metadata.json``.
    """

    folder: Path
    network: torch.nn.Module
    device: torch.device
    preprocessing: Callable[[Any], Any]
    inferer: Callable[..., Any]
    postprocessing: Callable[[Any], Any]
    metadata: Mapping[str, Any] = field(repr=False)

    def __call__(self, image: Any) -> torch.Tensor:
        """Predicts one image."""
        readers = (LoadImage, LoadImaged, LoadCased)
        reads = any(isinstance(each, readers) for each in transforms_in(self.preprocessing))
        is_path = isinstance(image, (str, os.PathLike))
        if not is_path and reads:
            raise TypeError(
                f"the image is a {type(image).__name__} and {self.folder.name} reads files: give the path of one, or call preprocessing, "
                "inferer and postprocessing yourself."
            )
        case: dict[Any, Any] = {"image": image if is_path else torch.as_tensor(image)}
        resampling = ""
        try:
            if is_path:
                resampling = describe_resampling(os.fspath(image), self.preprocessing)
            if is_path and not reads:
                layout = self.metadata["network_data_format"]["inputs"]["image"]
                case = LoadCased("image", len(layout["spatial_shape"]), layout["num_channels"])(case)
            elif not is_path and case["image"].ndim < 2:
                # MONAI would broadcast it
                raise ValueError("it has less than two axes")
            case = self.preprocessing(case)
            with torch.no_grad():
                case["pred"] = self.inferer(case["image"][None].to(self.device), self.network)[0].cpu()
            return self.postprocessing(case)["pred"]
        except Exception as error:
            raise self._refusal(image, error, resampling) from error

    def _refusal(self, image: Any, error: Exception, resampling: str) -> ConfigurationError:
        """The sentence about an image that cannot be predicted."""
        is_path = isinstance(image, (str, os.PathLike))
        name = image if is_path else f"an array of {tuple(np.shape(image))}"
        beginning = f"{name} cannot be predicted by {self.folder.name}"
        try:
            layout = self.metadata["network_data_format"]["inputs"]["image"]
            channels, spatial = getattr(self.network, "in_channels", layout["num_channels"]), layout["spatial_shape"]
            if not is_path and (len(np.shape(image)) != 1 + len(spatial) or len(image) != channels):
                return ConfigurationError(
                    f"{beginning}: give one image without batch, {channels} channel{'s' * (channels != 1)} first and then {len(spatial)} "
                    f"spatial axes, such as {(channels, *spatial)}."
                )
        except (KeyError, TypeError):
            # metadata that do not say it
            pass
        known = find_configuration_error(error)
        if known is not None and resampling and os.path.basename(name) not in str(known):
            return ConfigurationError(f"{beginning}, {resampling}: {known}")
        return known or ConfigurationError(
            f"{beginning} ({reason(error)}): give an image as its docs/README.md describes."
        )


def load_bundle(bundle: str | os.PathLike[str], **settings: Any) -> LoadedBundle:
    """Loads the network of a bundle, with its weights, preprocessing, inferer and postprocessing, from its ``configs/inference``.

    Args:
        bundle: the name of a bundle that ships (``python -m monai_gmr.apps.bundles list``), or the folder of any bundle; a
            folder takes precedence over a name.
        settings: new values for ids of the config, such as ``device="cpu"`` or ``roi_size=[64, 64, 64]``.

    The weights come from the setting ``checkpoint``, by default ``models/model.pt``, read with ``weights_only=True`` and compared with
    ``SHA256SUMS`` in the same folder if it exists. Without weights, a warning says that the network has random weights. Like every
    MONAI config, a bundle's config can run any code: load only bundles that you trust.

    Raises:
        ConfigurationError: if there is no such bundle or setting, a part of it cannot be made, or the weights are damaged or belong to
            another network.

    Example:
        >>> import numpy as np
        >>> bundle = load_bundle("medmnist2d_classification_gmr_resnet", device="cpu")
        >>> bundle(np.zeros((1, 28, 28), np.float32)).shape
        torch.Size([2])
    """
    check_packages("yaml", "ignite")
    root = find_bundle(bundle)
    metadata = read_metadata(root)
    config = find_config(root, "inference")
    if config is None:
        raise ConfigurationError(f"{root} has no configs/inference.yaml or .json: give a bundle that has one.")
    try:
        make_importable(root)
        with quiet():
            return _load(root, metadata, config, settings)
    except Exception as error:
        known = find_configuration_error(error)
        if known is not None:
            raise ConfigurationError(f"{root.name}: {known}") from error
        raise ConfigurationError(
            f"{config} cannot be made ({reason(error)}): correct it, or give what it lacks as a setting."
        ) from error


def _load(root: Path, metadata: dict[str, Any], config: Path, settings: dict[str, Any]) -> LoadedBundle:
    workflow = GMRWorkflow(str(config), str(root / METADATA), logging_file=False, workflow_type="infer", **settings)
    parser: ConfigParser = workflow.parser
    switch_off(parser)
    remove_disabled(parser)
    network = parser.get_parsed_content("network" if "network" in parser else "network_def")
    device = torch.device(parser.get_parsed_content("device") if "device" in parser else "cpu")
    weights = Path(parser.get_parsed_content("checkpoint") if "checkpoint" in parser else root / WEIGHTS)
    if weights.is_file() or "checkpoint" in settings:
        load_network(network, weights, device)
    else:
        warn(f"there are no weights at {weights}: the network of {root.name} has random ones.")
    parts: dict[str, Any] = {name: parser.get_parsed_content(name) if name in parser else None for name in PARTS}
    parts = {name: PARTS[name]() if part is None else part for name, part in parts.items()}
    return LoadedBundle(root, network.to(device).eval(), device, metadata=metadata, **parts)


PARTS: dict[str, Callable[[], Any]] = {"preprocessing": Compose, "inferer": SimpleInferer, "postprocessing": Compose}
