"""Convert the network of a MONAI bundle or config from the command line, and measure its equivariance before and after.

``python -m monai_gmr.apps.convert CONFIG --network-id network_def --check 64 --check 65`` prints what became of each module, then errors;
it exits with 0 if the converted network is exact at every size, 1 if it is not, 2 with one sentence if it cannot be converted.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence

import torch
from torch import nn

from monai_gmr.apps.check_equivariance import load_network, load_weights, parse_size
from monai_gmr.metrics import EquivarianceReport, check_equivariance
from monai_gmr.networks import convert_to_gmr
from monai_gmr.utils import ConfigurationError, SymmetryWarning


def compare_errors(before: EquivarianceReport, after: EquivarianceReport) -> str:
    """A table of the worst error at each size, before and after a conversion.

    Args:
        before, after: reports over the same sizes.

    Example:
        >>> report = check_equivariance(nn.MaxPool2d(2), [(4,), (5,)], in_channels=1, spatial_dims=2)
        >>> print(compare_errors(report, report))
        size   before     after
        4x4    0.0e+00    0.0e+00
        5x5    6.0e-01    6.0e-01
    """
    rows = [("size", "before", "after")]
    for one, two in zip(before.sizes, after.sizes):
        rows.append(("x".join(map(str, one.size)), _error_text(one), _error_text(two)))
    widths = [max(len(row[column]) for row in rows) + 2 for column in range(2)]
    return "\n".join(f"{row[0].ljust(widths[0])} {row[1].ljust(widths[1] + 1)} {row[2]}".rstrip() for row in rows)


def _error_text(check) -> str:
    if check.failure:
        return "cannot take it"
    worst = check.errors.worst
    return f"{worst:.1e}" if worst < float("inf") else "size changes"


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m monai_gmr.apps.convert",
        description="Convert a network to radial or harmonic convolutions, print what became of each module, and measure "
        "whether its answer turns with its input, before and after. Exit status: 0 exact at every size, 1 not exact, 2 cannot be done.",
    )
    parser.add_argument("source", metavar="BUNDLE_OR_CONFIG", help="bundle folder, or config file")
    parser.add_argument("--network-id", default="network_def", help="id in the config (default: network_def)")
    parser.add_argument(
        "--check",
        type=parse_size,
        action="append",
        default=[],
        metavar="SIZE",
        help="input size in voxels to measure at: 97 for a square or cube, or 64,65,70; may be given several times",
    )
    parser.add_argument(
        "--conv", default="gmr", choices=("gmr", "gmr_harmonic"), help="kind of convolution (default: gmr)"
    )
    parser.add_argument(
        "--kernel-size", type=int, help="window for all convolutions of a window above 1 (default: as they are)"
    )
    parser.add_argument("--init", action="store_true", help="fresh weights instead of projected ones")
    parser.add_argument(
        "--exclude", action="append", metavar="NAME", help="modules that are to stay, such as 'encoder.*'"
    )
    parser.add_argument("--in-channels", type=int, help="default: those of the first convolution")
    parser.add_argument("--spacing", type=float, nargs="+", metavar="MM", help="voxel size, one an axis")
    parser.add_argument("--weights", help="state dictionary or checkpoint to load before the conversion")
    parser.add_argument("--tolerance", type=float, default=1e-5, help="relative L2 error that is exact (default: 1e-5)")
    parser.add_argument("--seed", type=int, default=0, help="of the input, and of weights not loaded (default: 0)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the conversion.

    Args:
        argv: arguments, by default those of the process.

    Returns:
        the exit status: 0 exact at every size (or none asked for), 1 not exact, 2 cannot be done.
    """
    arguments = make_parser().parse_args(argv)
    try:
        torch.manual_seed(arguments.seed)
        network = load_network(arguments.source, arguments.network_id).eval()
        if arguments.weights:
            load_weights(network, arguments.weights)
        converted = convert_to_gmr(
            network,
            arguments.kernel_size,
            exclude=arguments.exclude,
            conv=arguments.conv,
            weights="init" if arguments.init else "project",
            spacing=arguments.spacing,
            in_channels=arguments.in_channels,
        )
        print(converted.conversion_report)
        if not arguments.check:
            return 0
        reports = [_check(each, arguments) for each in (network, converted)]
    except ConfigurationError as error:
        print(f"convert: {error}", file=sys.stderr)
        return 2
    print(f"\nlargest relative error over the group of the grid\n{compare_errors(*reports)}")
    if not reports[1].ok:
        print(f"\nwhat still breaks it\n{reports[1].to_text()}")
    return 0 if reports[1].ok else 1


def _check(network: nn.Module, arguments: argparse.Namespace) -> EquivarianceReport:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SymmetryWarning)
        return check_equivariance(
            network,
            arguments.check,
            arguments.in_channels,
            tolerance=arguments.tolerance,
            seed=arguments.seed,
            spacing=arguments.spacing,
            progress=len(arguments.check) > 1,
        )


if __name__ == "__main__":
    sys.exit(main())
