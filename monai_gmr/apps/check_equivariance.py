"""Check whether the network of a MONAI bundle or config is exactly equivariant.

``python -m monai_gmr.apps.check_equivariance BUNDLE_OR_CONFIG --size 96 --size 97`` prints a table. Exits with 0 if the
network is exact at every size, 1 if it is not, 2 and one sentence if it cannot be checked.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from torch import nn

from monai_gmr.bundle.overrides import check_settings, read_settings
from monai_gmr.command_line import command
from monai_gmr.files import check_folder, write_rows
from monai_gmr.metrics import EquivarianceReport, check_equivariance
from monai_gmr.networks.description import check_description
from monai_gmr.networks.weights import check_finite, read_checkpoint, state_of
from monai_gmr.utils import ConfigurationError, SymmetryWarning, reason

CONFIG_NAMES = tuple(f"{name}.{end}" for name in ("inference", "evaluate", "train") for end in ("json", "yaml", "yml"))


def parse_size(text: str) -> tuple[int, ...]:
    """Reads a size from the command line, written as in the printed table or with commas.

    Example:
        >>> parse_size("97"), parse_size("64,65,70"), parse_size("24x25")
        ((97,), (64, 65, 70), (24, 25))
    """
    try:
        size = tuple(int(part) for part in text.replace("x", ",").split(","))
    except ValueError:
        size = ()
    if not size or min(size) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size: give 97, or one number per axis as in 64,65,70")
    return size


def load_network(
    source: str | Path, network_id: str = "network_def", settings: dict[str, Any] | None = None
) -> nn.Module:
    """Loads the network of a config file, or of a bundle folder from the first of ``configs/{inference,evaluate,train}`` that has it.

    ``settings`` maps ids of the config to new values. Raises ``ConfigurationError`` if there is no such file, id or setting, or if the id
    is not a network."""
    source = Path(source)
    configs = [source]
    if source.is_dir():
        configs = [source / "configs" / name for name in CONFIG_NAMES if (source / "configs" / name).is_file()]
        if not configs:
            raise ConfigurationError(
                f"{source} is not a bundle: give a folder that holds configs/inference.json (or evaluate, train; or "
                ".yaml), or a config file."
            )
    elif not source.is_file():
        raise ConfigurationError(f"{source} does not exist: give a bundle folder or a config file.")
    ids: set[str] = set()
    for config in configs:
        parser = _read_config(config, source if source.is_dir() else None)
        content: Any = parser.config
        ids |= set(content)
        if network_id.replace("::", "#").split("#")[0] in content:
            check_settings(settings or {}, content, prefix="--set ")
            parser.update(settings or {})
            return _instantiate(parser, network_id, config)
    raise ConfigurationError(
        f"{' and '.join(c.name for c in configs)} hold no {network_id!r}: give --network-id, one of {', '.join(sorted(ids))}."
    )


def _read_config(config: Path, bundle: Path | None) -> ConfigParser:
    parser = ConfigParser()
    try:
        parser.read_config(str(config))
        if bundle is not None:
            if (bundle / "configs" / "metadata.json").is_file():
                parser.read_meta(str(bundle / "configs" / "metadata.json"))
            parser["bundle_root"] = str(bundle)
    except Exception as error:
        raise ConfigurationError(f"{config} cannot be read as a MONAI config ({reason(error)}): correct it.") from error
    return parser


def _instantiate(parser: ConfigParser, network_id: str, config: Path) -> nn.Module:
    # bundles keep their code in a package next to configs
    sys.path.insert(0, str(config.resolve().parents[1]))
    try:
        network = parser.get_parsed_content(network_id, instantiate=True)
    except Exception as error:
        raise ConfigurationError(f"{network_id} of {config} cannot be built ({reason(error)}): correct it.") from error
    finally:
        sys.path.pop(0)
    if not isinstance(network, nn.Module):
        raise ConfigurationError(
            f"{network_id} of {config} is a {type(network).__name__}: give the id of a torch module as --network-id."
        )
    return network


def load_weights(network: nn.Module, path: str | Path) -> None:
    """Loads a state dictionary, or a checkpoint with one under ``model``, ``network``, ``net`` or ``state_dict``; raises
    ``ConfigurationError`` if the file is missing, is not such a checkpoint or does not fit the network."""
    hint = "give a state dictionary saved by torch.save"
    state = state_of(read_checkpoint(path, hint=hint), path, hint)
    check_description(state, network, path, "give the settings that it was trained with in the config.")
    try:
        network.load_state_dict(state)
    except Exception as error:
        raise ConfigurationError(f"{path} does not fit {type(network).__name__}: {reason(error)}.") from error
    check_finite(network, state, path, "give weights of a training that went well")


def network_parser(name: str, description: str) -> argparse.ArgumentParser:
    """Makes a parser with the options that all commands for a network share."""
    parser = argparse.ArgumentParser(prog=f"python -m monai_gmr.apps.{name}", description=description)
    add = parser.add_argument
    add("source", metavar="BUNDLE_OR_CONFIG", help="bundle folder, or config file")
    add("--network-id", default="network_def", help="id in the config (default: network_def)")
    text = "ids of the config, as in conv=plain"
    add("--set", action="extend", nargs="+", default=[], metavar="KEY=VALUE", help=text)
    add("--in-channels", type=int, help="default: those of the first convolution")
    add(
        "--spacing",
        type=float,
        nargs="+",
        metavar="MM",
        help="voxel size, one per axis; axes of different size are not exchanged",
    )
    add("--weights", help="state dictionary or checkpoint to load")
    add("--tolerance", type=float, default=1e-5, help="largest relative L2 error that counts as exact (default: 1e-5)")
    add("--seed", type=int, default=0, help="seed of the input, and of weights that are not loaded (default: 0)")
    return parser


def read_network(arguments: argparse.Namespace) -> nn.Module:
    """Loads the network that the arguments of :func:`network_parser` name, with its weights or seeded random ones."""
    torch.manual_seed(arguments.seed)
    network = load_network(arguments.source, arguments.network_id, read_settings(arguments.set))
    if arguments.weights:
        load_weights(network, arguments.weights)
    return network


def check_network(
    network: nn.Module, sizes: Sequence[tuple[int, ...]], arguments: argparse.Namespace, **moves: Any
) -> EquivarianceReport:
    """Calls :func:`~monai_gmr.metrics.check_equivariance` with the arguments of :func:`network_parser`, without the layers' warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SymmetryWarning)
        options = {name: getattr(arguments, name) for name in ("in_channels", "tolerance", "seed", "spacing")}
        return check_equivariance(network, sizes, **moves, progress=len(sizes) > 1, **options)


@command("check_equivariance")
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the check; returns the exit status: 0 exact, 1 not exact, 2 cannot be checked."""
    parser = network_parser(
        "check_equivariance",
        "Measure whether a network rotates and mirrors its answer with its input, and name the modules that break it. "
        "Exit status: 0 exact at every size, 1 not exact, 2 cannot be checked.",
    )
    add = parser.add_argument
    text = "input size in voxels: 97 for a square or cube, or 64,65,70; can be given several times"
    add("--size", type=parse_size, action="append", required=True, help=text)
    add(
        "--angles",
        type=float,
        nargs="+",
        default=[],
        metavar="DEGREES",
        help="other angles; measured, but do not change the exit status",
    )
    text = "distances in voxels along each axis, such as 0.5; measured, but do not change the exit status"
    add("--shifts", type=float, nargs="+", default=[], metavar="VOXELS", help=text)
    add("--csv", type=Path, help="write every row to this file")
    text = "list all modules, not only those that break it, also under --angles and --shifts (takes minutes in 3D)"
    add("--per-module", action="store_true", help=text)
    add("--train", action="store_true", help="check in train mode (default: eval mode)")
    arguments = parser.parse_args(argv)
    if arguments.csv:
        check_folder(arguments.csv.parent)
    network = read_network(arguments).train(arguments.train)
    moves = {"angles": arguments.angles, "shifts": arguments.shifts, "moves_per_module": arguments.per_module}
    report = check_network(network, arguments.size, arguments, **moves)
    if arguments.csv:
        write_rows(report.rows, arguments.csv)
    print(report.to_text(every_module=arguments.per_module))
    return 0 if report.ok else 1


if __name__ == "__main__":
    sys.exit(main())
